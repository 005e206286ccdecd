//! The wire contract of casbah. In public, the Remote Execution API's caches, the Remote Asset API and ByteStream, as
//! messages, servers and clients generated from the `.proto` files beside this crate's sources.
//!
//! Modules mirror packages: `build.bazel.semver` is [`build::bazel::semver`]. Every field of type `bytes` is a
//! [`prost::bytes::Bytes`], which shares its memory with the message that it came in. `grpc.health.v1` is
//! `tonic-health`'s, and well-known types are [`prost_types`]'.

/// The encoded `google.protobuf.FileDescriptorSet` of all packages here and their imports, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");

/// The packages of the Bazel community: `build.*`.
pub mod build {
    /// `build.bazel.*`
    pub mod bazel {
        /// `build.bazel.remote.*`
        pub mod remote {
            /// `build.bazel.remote.asset.*`
            pub mod asset {
                /// The Remote Asset API.
                #[allow(missing_docs, clippy::all, reason = "generated")]
                pub mod v1 {
                    tonic::include_proto!("build.bazel.remote.asset.v1");
                }
            }

            /// `build.bazel.remote.execution.*`
            pub mod execution {
                /// The Remote Execution API.
                #[allow(missing_docs, clippy::all, reason = "generated")]
                pub mod v2 {
                    tonic::include_proto!("build.bazel.remote.execution.v2");
                }
            }
        }

        /// Version numbers in capabilities.
        #[allow(missing_docs, clippy::all, reason = "generated")]
        pub mod semver {
            tonic::include_proto!("build.bazel.semver");
        }
    }
}

/// Google's packages that the APIs build on: `google.*`.
pub mod google {
    /// Blobs as streams.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod bytestream {
        tonic::include_proto!("google.bytestream");
    }

    /// Operations that outlive a call.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod longrunning {
        tonic::include_proto!("google.longrunning");
    }

    /// Outcomes and their details.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// The contract between nodes of a cluster.
pub mod peer {
    /// Its first version.
    #[allow(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("casbah.peer.v1");
    }
}
