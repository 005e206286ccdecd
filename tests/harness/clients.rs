//! Clients of the Remote Execution and Remote Asset APIs, as strict as the APIs and as patient as a test.
//!
//! Every call answers with the server's own [`Status`], so that a test can say which one it must be. Nothing is retried.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower::Service;

use crate::authority::Identity;

pub use casbah_proto::build::bazel::remote::asset::v1 as asset;
pub use casbah_proto::build::bazel::remote::execution::v2 as reapi;
pub use casbah_proto::google::bytestream;

pub use crate::trees::{Tree, TreeBuilder};
pub use crate::trust::{Tls, Trust};

use asset::fetch_client::FetchClient;
use asset::push_client::PushClient;
use bytestream::byte_stream_client::ByteStreamClient;
use bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteRequest, WriteResponse};
use reapi::capabilities_client::CapabilitiesClient;
use reapi::content_addressable_storage_client::ContentAddressableStorageClient;
use reapi::digest_function::Value as DigestFunction;
use reapi::{
    BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest, GetCapabilitiesRequest,
    ServerCapabilities, batch_read_blobs_response, batch_update_blobs_request, batch_update_blobs_response,
};

/// No message of any test is larger.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What [`Client::upload`] puts into one message, as buildbox does.
pub const CHUNK_BYTES: usize = 2 << 20;

const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// One connection to one address, and the instance name of the calls made on it.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    instance: String,
}

/// An upload whose messages the test sends one by one.
pub struct Upload {
    sender: mpsc::Sender<WriteRequest>,
    answer: JoinHandle<Result<WriteResponse, Status>>,
}

/// The name of an asset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssetName {
    /// In the order of the client's preference.
    pub uris: Vec<String>,
    /// Name and value.
    pub qualifiers: Vec<(String, String)>,
}

// === impl Client ===

impl Client {
    /// Connects without TLS.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn plaintext(authority: &str) -> Result<Client> {
        let endpoint = transport(&format!("http://{authority}"))?;
        Ok(Client { channel: endpoint.connect().await?, instance: String::new() })
    }

    /// Connects without TLS when a call is made, and again whenever a call finds the connection gone.
    ///
    /// # Errors
    /// When this is no address.
    pub fn lazy(authority: &str) -> Result<Client> {
        let endpoint = transport(&format!("http://{authority}"))?;
        Ok(Client { channel: endpoint.connect_lazy(), instance: String::new() })
    }

    /// Connects to all of these without TLS. Each call goes to one that has little to do, by chance.
    ///
    /// # Errors
    /// When one is no address.
    pub fn spread(authorities: &[&str]) -> Result<Client> {
        let endpoints = authorities.iter().map(|authority| transport(&format!("http://{authority}")));
        let endpoints: Vec<_> = endpoints.collect::<Result<_>>()?;
        Ok(Client { channel: Channel::balance_list(endpoints.into_iter()), instance: String::new() })
    }

    /// Connects with TLS, and shows a certificate if given one. That a TLS 1.3 server refuses it may become known only
    /// with the first call.
    ///
    /// # Errors
    /// When nobody listens or the handshake fails.
    pub async fn tls(authority: &str, trust: &Trust, identity: Option<&Identity>) -> Result<Client> {
        Client::tls_with(authority, Arc::new(trust.config(identity, rustls::ALL_VERSIONS)?)).await
    }

    /// Connects with TLS as configured; sessions may be resumed among all connections with one configuration.
    ///
    /// # Errors
    /// As [`Client::tls`].
    pub async fn tls_with(authority: &str, config: Arc<ClientConfig>) -> Result<Client> {
        let host = authority.rsplit_once(':').context("host:port is needed")?.0;
        let host = host.trim_matches(['[', ']']).to_owned();
        let (endpoint, connect) = tls_endpoint(authority, &Tls { server: host, config })?;
        Ok(Client { channel: endpoint.connect_with_connector(connect).await?, instance: String::new() })
    }

    /// Connects with TLS when a call is made, and again whenever a call finds the connection gone.
    ///
    /// # Errors
    /// When this is no address, or the server's name is none.
    pub fn lazy_tls(authority: &str, tls: &Tls) -> Result<Client> {
        let (endpoint, connect) = tls_endpoint(authority, tls)?;
        Ok(Client { channel: endpoint.connect_with_connector_lazy(connect), instance: String::new() })
    }

    /// On a connection that the test has made in its own way.
    pub fn on(channel: Channel) -> Client {
        Client { channel, instance: String::new() }
    }

    /// The same connection, calls for another instance.
    pub fn with_instance(&self, instance: &str) -> Client {
        Client { channel: self.channel.clone(), instance: instance.to_owned() }
    }

    /// The instance name of the calls.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The connection itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Raw calls.
    pub fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Raw calls.
    pub fn bytestream(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Raw calls.
    pub fn fetch(&self) -> FetchClient<Channel> {
        FetchClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Raw calls.
    pub fn push(&self) -> PushClient<Channel> {
        PushClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// The server's status.
    pub async fn capabilities(&self) -> Result<ServerCapabilities, Status> {
        let request = GetCapabilitiesRequest { instance_name: self.instance.clone() };
        Ok(CapabilitiesClient::new(self.channel.clone()).get_capabilities(request).await?.into_inner())
    }

    /// Which of these the server lacks.
    ///
    /// # Errors
    /// The server's status.
    pub async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Status> {
        let request = FindMissingBlobsRequest {
            instance_name: self.instance.clone(),
            blob_digests: digests.to_vec(),
            digest_function: DigestFunction::Sha256.into(),
        };
        Ok(self.cas().find_missing_blobs(request).await?.into_inner().missing_blob_digests)
    }

    /// Whether the server has this blob.
    ///
    /// # Errors
    /// The server's status.
    pub async fn has(&self, digest: &Digest) -> Result<bool, Status> {
        Ok(self.find_missing(std::slice::from_ref(digest)).await?.is_empty())
    }

    /// BatchUpdateBlobs with these digests and bytes, true or not; the answers as they come.
    ///
    /// # Errors
    /// The status of the whole call.
    pub async fn batch_update(
        &self,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<batch_update_blobs_response::Response>, Status> {
        let request = BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests: blobs
                .into_iter()
                .map(|(digest, data)| batch_update_blobs_request::Request {
                    digest: Some(digest),
                    data,
                    ..Default::default()
                })
                .collect(),
            digest_function: DigestFunction::Sha256.into(),
        };
        Ok(self.cas().batch_update_blobs(request).await?.into_inner().responses)
    }

    /// BatchReadBlobs; the answers as they come.
    ///
    /// # Errors
    /// The status of the whole call.
    pub async fn batch_read(&self, digests: &[Digest]) -> Result<Vec<batch_read_blobs_response::Response>, Status> {
        let request = BatchReadBlobsRequest {
            instance_name: self.instance.clone(),
            digests: digests.to_vec(),
            digest_function: DigestFunction::Sha256.into(),
            ..Default::default()
        };
        Ok(self.cas().batch_read_blobs(request).await?.into_inner().responses)
    }

    /// Uploads by ByteStream in chunks of [`CHUNK_BYTES`], and returns the digest that is now held.
    ///
    /// # Errors
    /// The server's status; DATA_LOSS when it acknowledges another size than the blob's.
    pub async fn upload(&self, blob: impl Into<Bytes>) -> Result<Digest, Status> {
        self.upload_in_chunks(blob.into(), CHUNK_BYTES).await
    }

    /// [`Client::upload`] in chunks of this size.
    ///
    /// # Errors
    /// As [`Client::upload`].
    pub async fn upload_in_chunks(&self, blob: Bytes, chunk_bytes: usize) -> Result<Digest, Status> {
        let digest = digest_of(&blob);
        let name = self.upload_name(&digest);
        let answer = self.bytestream().write(tokio_stream::iter(write_requests(name, blob, chunk_bytes))).await?;
        if answer.into_inner().committed_size != digest.size_bytes {
            return Err(Status::data_loss("the server has acknowledged another size"));
        }
        Ok(digest)
    }

    /// Starts an upload whose messages the test sends.
    pub fn begin_upload(&self) -> Upload {
        let (sender, receiver) = mpsc::channel(4);
        let mut client = self.bytestream();
        let answer = tokio::spawn(async move { Ok(client.write(ReceiverStream::new(receiver)).await?.into_inner()) });
        Upload { sender, answer }
    }

    /// How much of an upload the server has.
    ///
    /// # Errors
    /// The server's status.
    pub async fn query_write(&self, resource_name: &str) -> Result<QueryWriteStatusResponse, Status> {
        let request = QueryWriteStatusRequest { resource_name: resource_name.to_owned() };
        Ok(self.bytestream().query_write_status(request).await?.into_inner())
    }

    /// Downloads a whole blob by ByteStream.
    ///
    /// # Errors
    /// The server's status.
    pub async fn download(&self, digest: &Digest) -> Result<Vec<u8>, Status> {
        self.read(&self.blob_name(digest), 0, 0).await
    }

    /// ByteStream.Read of any resource name.
    ///
    /// # Errors
    /// The server's status.
    pub async fn read(&self, resource_name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Status> {
        let request = ReadRequest { resource_name: resource_name.to_owned(), read_offset: offset, read_limit: limit };
        let mut stream = self.bytestream().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await? {
            bytes.extend_from_slice(&message.data);
        }
        Ok(bytes)
    }

    /// `INSTANCE/blobs/HASH/SIZE`.
    pub fn blob_name(&self, digest: &Digest) -> String {
        format!("{}blobs/{}/{}", self.instance_prefix(), digest.hash, digest.size_bytes)
    }

    /// `INSTANCE/uploads/UUID/blobs/HASH/SIZE` with a new uuid.
    pub fn upload_name(&self, digest: &Digest) -> String {
        self.upload_name_with(&uuid::Uuid::new_v4().to_string(), digest)
    }

    /// `INSTANCE/uploads/UUID/blobs/HASH/SIZE`.
    pub fn upload_name_with(&self, uuid: &str, digest: &Digest) -> String {
        format!("{}uploads/{uuid}/blobs/{}/{}", self.instance_prefix(), digest.hash, digest.size_bytes)
    }

    fn instance_prefix(&self) -> String {
        if self.instance.is_empty() { String::new() } else { format!("{}/", self.instance) }
    }

    /// Uploads every blob of a tree.
    ///
    /// # Errors
    /// The server's status.
    pub async fn upload_tree(&self, tree: &Tree) -> Result<(), Status> {
        for blob in &tree.blobs {
            self.upload(blob.clone()).await?;
        }
        Ok(())
    }

    /// PushBlob without expiry and references.
    ///
    /// # Errors
    /// The server's status.
    pub async fn push_blob(&self, name: &AssetName, blob: &Digest) -> Result<(), Status> {
        self.push().push_blob(self.push_blob_request(name, blob)).await.map(|_| ())
    }

    /// The request of [`Client::push_blob`], to be changed.
    pub fn push_blob_request(&self, name: &AssetName, blob: &Digest) -> asset::PushBlobRequest {
        asset::PushBlobRequest {
            instance_name: self.instance.clone(),
            uris: name.uris.clone(),
            qualifiers: name.proto_qualifiers(),
            blob_digest: Some(blob.clone()),
            ..Default::default()
        }
    }

    /// PushDirectory without expiry and references.
    ///
    /// # Errors
    /// The server's status.
    pub async fn push_directory(&self, name: &AssetName, root: &Digest) -> Result<(), Status> {
        self.push().push_directory(self.push_directory_request(name, root)).await.map(|_| ())
    }

    /// The request of [`Client::push_directory`], to be changed.
    pub fn push_directory_request(&self, name: &AssetName, root: &Digest) -> asset::PushDirectoryRequest {
        asset::PushDirectoryRequest {
            instance_name: self.instance.clone(),
            uris: name.uris.clone(),
            qualifiers: name.proto_qualifiers(),
            root_directory_digest: Some(root.clone()),
            ..Default::default()
        }
    }

    /// FetchBlob.
    ///
    /// # Errors
    /// The server's status, also when it stands inside of an OK answer.
    pub async fn fetch_blob(&self, name: &AssetName) -> Result<asset::FetchBlobResponse, Status> {
        let answer = self.fetch().fetch_blob(self.fetch_blob_request(name)).await?.into_inner();
        inner_status(answer.status.as_ref())?;
        Ok(answer)
    }

    /// The request of [`Client::fetch_blob`], to be changed.
    pub fn fetch_blob_request(&self, name: &AssetName) -> asset::FetchBlobRequest {
        asset::FetchBlobRequest {
            instance_name: self.instance.clone(),
            uris: name.uris.clone(),
            qualifiers: name.proto_qualifiers(),
            ..Default::default()
        }
    }

    /// FetchDirectory.
    ///
    /// # Errors
    /// As [`Client::fetch_blob`].
    pub async fn fetch_directory(&self, name: &AssetName) -> Result<asset::FetchDirectoryResponse, Status> {
        let answer = self.fetch().fetch_directory(self.fetch_directory_request(name)).await?.into_inner();
        inner_status(answer.status.as_ref())?;
        Ok(answer)
    }

    /// The request of [`Client::fetch_directory`], to be changed.
    pub fn fetch_directory_request(&self, name: &AssetName) -> asset::FetchDirectoryRequest {
        asset::FetchDirectoryRequest {
            instance_name: self.instance.clone(),
            uris: name.uris.clone(),
            qualifiers: name.proto_qualifiers(),
            ..Default::default()
        }
    }
}

/// Where to connect to with TLS, and how.
fn tls_endpoint(
    authority: &str,
    tls: &Tls,
) -> Result<(
    Endpoint,
    impl Service<Uri, Response = TokioIo<TlsStream<TcpStream>>, Error = std::io::Error, Future: Send> + Send + use<>,
)> {
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let (address, name) = (authority.to_owned(), ServerName::try_from(tls.server.clone())?);
    let connect = tower::service_fn(move |_| {
        let (connector, address, name) = (connector.clone(), address.clone(), name.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // tonic without its own TLS refuses to dial https; only the origin says it.
    Ok((transport(&format!("http://{authority}"))?.origin(format!("https://{authority}").try_into()?), connect))
}

fn transport(url: &str) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(Duration::from_secs(10))
        .timeout(Duration::from_secs(300))
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        // Frames that were on their way when a call was cancelled are no attack.
        .http2_max_local_error_reset_streams(None)
        .tcp_nodelay(true))
}

/// A status inside of an OK answer, which clients overlook.
fn inner_status(status: Option<&casbah_proto::google::rpc::Status>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => {
            Err(Status::data_loss(format!("{status:?} was hidden inside of an OK answer")))
        }
        _ => Ok(()),
    }
}

// === impl Upload ===

impl Upload {
    /// Sends a message; `false` when the server has already answered.
    pub async fn send(&self, request: WriteRequest) -> bool {
        self.sender.send(request).await.is_ok()
    }

    /// Sends what makes the next message of an upload: the name only if given.
    pub async fn send_bytes(&self, name: &str, offset: usize, data: &[u8], finish_write: bool) -> bool {
        self.send(WriteRequest {
            resource_name: name.to_owned(),
            write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            finish_write,
            data: data.to_vec().into(),
        })
        .await
    }

    /// Closes the client's side, and waits for the answer.
    ///
    /// # Errors
    /// The server's status.
    pub async fn finish(self) -> Result<WriteResponse, Status> {
        drop(self.sender);
        self.answer.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }

    /// Waits for the answer without closing the client's side.
    ///
    /// # Errors
    /// The server's status.
    pub async fn answer(self) -> Result<WriteResponse, Status> {
        let Upload { sender, answer } = self;
        let answer = answer.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())));
        drop(sender);
        answer
    }

    /// Cancels the call, as a client does that is interrupted.
    pub async fn abandon(self) {
        self.answer.abort();
        let _ = self.answer.await;
    }
}

/// The messages of an upload: the resource name on the first only, the end marked on the last.
pub fn write_requests(name: String, blob: Bytes, chunk_bytes: usize) -> impl Iterator<Item = WriteRequest> + Send {
    let chunk_count = blob.len().div_ceil(chunk_bytes).max(1);
    (0..chunk_count).map(move |chunk| {
        let start = chunk * chunk_bytes;
        let end = blob.len().min(start + chunk_bytes);
        WriteRequest {
            resource_name: if chunk == 0 { name.clone() } else { String::new() },
            write_offset: i64::try_from(start).unwrap_or(i64::MAX),
            finish_write: end == blob.len(),
            data: blob.slice(start..end),
        }
    })
}

// === impl AssetName ===

impl AssetName {
    /// One URI, no qualifiers.
    pub fn new(uri: &str) -> AssetName {
        AssetName { uris: vec![uri.to_owned()], qualifiers: Vec::new() }
    }

    /// A URI that no test has used before.
    pub fn unique() -> AssetName {
        AssetName::new(&format!("urn:casbah-test:{}", uuid::Uuid::new_v4()))
    }

    /// With one more qualifier.
    #[must_use]
    pub fn qualified(mut self, name: &str, value: &str) -> AssetName {
        self.qualifiers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn proto_qualifiers(&self) -> Vec<asset::Qualifier> {
        let qualifier =
            |(name, value): &(String, String)| asset::Qualifier { name: name.clone(), value: value.clone() };
        self.qualifiers.iter().map(qualifier).collect()
    }
}

// === digests and statuses ===

/// The SHA-256 digest of these bytes, computed without the server's code.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest { hash: hex(&Sha256::digest(bytes)), size_bytes: i64::try_from(bytes.len()).unwrap_or(i64::MAX) }
}

/// The digest of no bytes.
pub fn empty_digest() -> Digest {
    Digest { hash: EMPTY_HASH.to_owned(), size_bytes: 0 }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether the call never reached a service: the connection, not the server's code, made this status.
pub fn is_transport_error(status: &Status) -> bool {
    status.source().is_some()
}

/// Checks that a call has failed with this code, and returns the message.
///
/// # Errors
/// When it has not.
pub fn refused_with<T>(code: Code, answer: Result<T, Status>) -> Result<String> {
    match answer {
        Ok(_) => anyhow::bail!("was to be refused with {code:?} but was not"),
        Err(status) => {
            ensure!(status.code() == code, "was to be refused with {code:?} but: {status:?}");
            Ok(status.message().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digests_are_the_published_ones() {
        assert_eq!(digest_of(b""), empty_digest());
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(b"abc"), Digest { hash: abc.to_owned(), size_bytes: 3 });
    }

    #[test]
    fn an_upload_is_cut_into_chunks_that_name_it_once() {
        let requests: Vec<_> = write_requests("name".to_owned(), Bytes::from_static(b"12345"), 2).collect();
        let shapes: Vec<_> =
            requests.iter().map(|r| (r.resource_name.as_str(), r.write_offset, r.finish_write)).collect();
        assert_eq!(shapes, [("name", 0, false), ("", 2, false), ("", 4, true)]);
        assert_eq!(write_requests(String::new(), Bytes::new(), 2).count(), 1);
    }
}
