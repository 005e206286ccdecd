//! Compiles the wire contract: no protoc, no network.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use protox::prost::Message;

/// Every file of the contract, by its import path.
const FILES: &[&str] = &[
    "build/bazel/remote/asset/v1/remote_asset.proto",
    "build/bazel/remote/execution/v2/remote_execution.proto",
    "build/bazel/semver/semver.proto",
    "google/bytestream/bytestream.proto",
    "google/longrunning/operations.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
];

/// The contract between nodes, which is nobody else's: its descriptors are not shipped.
const PEER_FILES: &[&str] =
    &["peer/v1/blobs.proto", "peer/v1/inventories.proto", "peer/v1/membership.proto", "peer/v1/raft.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for root in ["build.rs", "build", "google", "peer"] {
        println!("cargo::rerun-if-changed={root}");
    }

    // Comments become the documentation of the generated types, and have no place in the descriptors that ship.
    let mut descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .bytes(".") // every bytes field of the contract is somebody's data: received and sent without a copy
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors.clone())?;

    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(protox::compile(PEER_FILES, ["."])?)?;

    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out_dir = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out_dir).join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
