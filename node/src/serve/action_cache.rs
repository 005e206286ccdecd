//! ActionCache: results of actions, answered only when everything they name is in the store (G5).

use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::index::ActionIndex;
use crate::serve::cas::{digest_of, function_of, to_message};
use crate::serve::completeness::{Completeness, Incomplete};
use crate::serve::status_map;
use crate::store::Store;

/// Bytes of output that are sent along with a result when the client asks for it. Clients take messages of 4 MiB.
const INLINE_BYTES: u64 = 1 << 20;

/// The largest result that is kept: some 20,000 outputs.
const RESULT_BYTES_MAX: usize = 4 << 20;

/// The ActionCache service.
pub struct ActionCache {
    /// The results.
    pub index: ActionIndex,
    /// The outputs.
    pub store: Store,
    /// Whether the outputs are there.
    pub completeness: Arc<Completeness>,
}

// === impl ActionCache ===

impl ActionCache {
    /// Whether everything that the result names is in the store.
    async fn check(&self, function: DigestFunction, result: &api::ActionResult) -> Result<(), Incomplete> {
        let malformed = |message: &api::Digest| {
            let digest = Digest::of(function, &message.encode_to_vec());
            move |error| Incomplete::Malformed {
                digest,
                source: Box::new(crate::serve::completeness::MalformedDirectory::Digest(error)),
            }
        };
        let of = |message: &api::Digest| digest_of(function, message).map_err(malformed(message));
        let outputs = result.output_files.iter().filter_map(|file| file.digest.as_ref());
        let streams = [&result.stdout_digest, &result.stderr_digest].into_iter().flatten();
        let blobs = outputs.chain(streams).map(of).collect::<Result<Vec<_>, _>>()?;
        let directories = &result.output_directories;
        let roots = directories.iter().filter_map(|directory| directory.root_directory_digest.as_ref());
        let roots = roots.map(of).collect::<Result<Vec<_>, _>>()?;
        let trees = directories.iter().filter_map(|directory| directory.tree_digest.as_ref());
        let trees = trees.map(of).collect::<Result<Vec<_>, _>>()?;
        self.completeness.check(&blobs, &roots).await?;
        self.completeness.check_tree_messages(&trees).await
    }

    /// Sends small outputs along, as far as the client asked for them and they fit.
    async fn inline(
        &self,
        request: &api::GetActionResultRequest,
        function: DigestFunction,
        result: &mut api::ActionResult,
    ) {
        let mut room = INLINE_BYTES;
        if request.inline_stdout {
            result.stdout_raw = self.content(function, result.stdout_digest.as_ref(), &mut room).await;
        }
        if request.inline_stderr {
            result.stderr_raw = self.content(function, result.stderr_digest.as_ref(), &mut room).await;
        }
        for file in &mut result.output_files {
            if request.inline_output_files.contains(&file.path) {
                file.contents = self.content(function, file.digest.as_ref(), &mut room).await;
            }
        }
    }

    /// The blob when it fits into the room that is left, else nothing: the client reads it by its digest then.
    async fn content(&self, function: DigestFunction, digest: Option<&api::Digest>, room: &mut u64) -> Bytes {
        let Some(Ok(digest)) = digest.map(|digest| digest_of(function, digest)) else { return Bytes::new() };
        match self.store.get(&digest, *room).await {
            Ok(content) => {
                *room -= content.len() as u64;
                content
            }
            Err(_) => Bytes::new(),
        }
    }

    /// Puts content that was sent inside the result into the store, and its digest in its place.
    async fn move_into_store(&self, function: DigestFunction, result: &mut api::ActionResult) -> Result<(), Status> {
        for file in &mut result.output_files {
            let content = std::mem::take(&mut file.contents);
            self.put(function, content, &mut file.digest).await?;
        }
        let (stdout, stderr) = (std::mem::take(&mut result.stdout_raw), std::mem::take(&mut result.stderr_raw));
        self.put(function, stdout, &mut result.stdout_digest).await?;
        self.put(function, stderr, &mut result.stderr_digest).await
    }

    async fn put(
        &self,
        function: DigestFunction,
        content: Bytes,
        digest: &mut Option<api::Digest>,
    ) -> Result<(), Status> {
        if content.is_empty() {
            return Ok(());
        }
        let named = match digest {
            Some(digest) => digest_of(function, digest).map_err(|error| status_map::digest(&error))?,
            None => Digest::of(function, &content),
        };
        self.store.put(&named, content).await.map_err(|error| status_map::write(&error))?;
        *digest = Some(to_message(&named));
        Ok(())
    }
}

/// Every output must have a name and a digest: a result without them is of no use to anybody.
fn validate(function: DigestFunction, result: &api::ActionResult) -> Result<(), Status> {
    let need = |path: &str, digest: Option<&api::Digest>| match digest {
        Some(digest) => digest_of(function, digest).map(drop).map_err(|error| {
            Status::invalid_argument(format!("the output \"{path}\" has a malformed digest: {error}"))
        }),
        None => Err(Status::invalid_argument(format!("the output \"{path}\" has no digest"))),
    };
    for file in &result.output_files {
        need(&file.path, file.digest.as_ref())?;
    }
    for directory in &result.output_directories {
        let digests = [&directory.tree_digest, &directory.root_directory_digest];
        if digests.iter().all(|digest| digest.is_none()) {
            need(&directory.path, None)?;
        }
        for digest in digests.into_iter().flatten() {
            need(&directory.path, Some(digest))?;
        }
    }
    for (name, digest) in [("stdout", &result.stdout_digest), ("stderr", &result.stderr_digest)] {
        if let Some(digest) = digest {
            need(name, Some(digest))?;
        }
    }
    Ok(())
}

fn action(function: DigestFunction, digest: Option<&api::Digest>) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument("the request has no action_digest"))?;
    digest_of(function, digest).map_err(|error| status_map::digest(&error))
}

#[tonic::async_trait]
impl api::action_cache_server::ActionCache for ActionCache {
    async fn get_action_result(
        &self,
        request: Request<api::GetActionResultRequest>,
    ) -> Result<Response<api::ActionResult>, Status> {
        let request = request.into_inner();
        let function = function_of(request.digest_function, request.action_digest.as_ref())?;
        let action = action(function, request.action_digest.as_ref())?;
        let found = self.index.get(&request.instance_name, &action).map_err(|error| status_map::index(&error))?;
        let Some(bytes) = found else {
            return Err(Status::not_found(format!("no result of the action {action} is known")));
        };
        let mut result = api::ActionResult::decode(bytes.as_slice())
            .map_err(|error| Status::not_found(format!("the result of the action {action} is damaged: {error}")))?;
        self.check(function, &result).await.map_err(|error| match error {
            Incomplete::Store(error) => status_map::read(&error),
            error => Status::not_found(format!(
                "the result of the action {action} is no longer whole: {}",
                status_map::with_causes(&error)
            )),
        })?;
        self.index.used(&request.instance_name, &action);
        self.inline(&request, function, &mut result).await;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<api::UpdateActionResultRequest>,
    ) -> Result<Response<api::ActionResult>, Status> {
        let request = request.into_inner();
        let function = function_of(request.digest_function, request.action_digest.as_ref())?;
        let action = action(function, request.action_digest.as_ref())?;
        let Some(mut result) = request.action_result else {
            return Err(Status::invalid_argument("the request has no action_result"));
        };
        self.move_into_store(function, &mut result).await?;
        validate(function, &result)?;
        let bytes = result.encode_to_vec();
        if bytes.len() > RESULT_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "the result has {} bytes where at most {RESULT_BYTES_MAX} are kept",
                bytes.len()
            )));
        }
        let updated = self.index.update(&request.instance_name, &action, bytes).await;
        updated.map_err(|error| status_map::index(&error))?;
        Ok(Response::new(result))
    }
}
