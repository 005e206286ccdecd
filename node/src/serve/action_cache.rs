//! ActionCache: results of actions, answered only when everything they name is in the store (G5).

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestError, DigestFunction};
use casbah_proto::build::bazel::remote::execution::v2 as api;
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::observe::counters::COUNTERS;
use crate::observe::labels::Lookup;
use crate::observe::with_causes;
use crate::route::{Actions, Blobs};
use crate::serve::cas::{digest_of, function_of, to_message};
use crate::serve::completeness::{Completeness, Incomplete};
use crate::serve::instances::Instances;
use crate::serve::status_map;

/// Bytes of output that are sent along with a result when the client asks for it.
const INLINE_BYTES: usize = 1 << 20;

/// The largest message that every client takes: outputs are sent along as far as the result leaves room in it.
const CLIENT_MESSAGE_BYTES: usize = 4 << 20;

/// Bytes of a message around each output that is sent along.
const INLINE_FRAME_BYTES: u64 = 16;

/// The largest result that is kept: some 20,000 outputs.
const RESULT_BYTES_MAX: usize = 4 << 20;

/// The ActionCache service.
pub struct ActionCache {
    /// The results.
    pub actions: Actions,
    /// The outputs.
    pub blobs: Blobs,
    /// Whether the outputs are there.
    pub completeness: Arc<Completeness>,
    /// The instances that are served.
    pub instances: Instances,
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
        let left = CLIENT_MESSAGE_BYTES.saturating_sub(result.encoded_len());
        let mut room = INLINE_BYTES.min(left) as u64;
        let wanted: HashSet<&str> = request.inline_output_files.iter().map(String::as_str).collect();
        if request.inline_stdout {
            result.stdout_raw = self.content(function, result.stdout_digest.as_ref(), &mut room).await;
        }
        if request.inline_stderr {
            result.stderr_raw = self.content(function, result.stderr_digest.as_ref(), &mut room).await;
        }
        for file in &mut result.output_files {
            if wanted.contains(&*file.path) {
                file.contents = self.content(function, file.digest.as_ref(), &mut room).await;
            }
        }
    }

    /// The blob when it fits into the room that is left, else nothing: the client reads it by its digest then.
    async fn content(&self, function: DigestFunction, digest: Option<&api::Digest>, room: &mut u64) -> Bytes {
        let Some(Ok(digest)) = digest.map(|digest| digest_of(function, digest)) else { return Bytes::new() };
        match self.blobs.get(&digest, room.saturating_sub(INLINE_FRAME_BYTES)).await {
            Ok(content) => {
                *room = room.saturating_sub(content.len() as u64 + INLINE_FRAME_BYTES);
                content
            }
            Err(_) => Bytes::new(),
        }
    }

    /// Puts content that was sent inside a result into the store.
    async fn put(&self, contents: Vec<(Digest, Bytes)>) -> Result<(), Status> {
        let outcomes = self.blobs.put_many(contents).await;
        outcomes.into_iter().try_for_each(|outcome| outcome.map_err(|error| status_map::write(&error)))
    }
}

/// Takes content that was sent inside the result out of it, and leaves its digest in its place. Nothing is stored yet:
/// a result that is refused leaves nothing behind.
fn take_contents(function: DigestFunction, result: &mut api::ActionResult) -> Result<Vec<(Digest, Bytes)>, Status> {
    let files = result.output_files.iter_mut().map(|file| (&*file.path, &mut file.contents, &mut file.digest));
    let streams = [
        ("stdout", &mut result.stdout_raw, &mut result.stdout_digest),
        ("stderr", &mut result.stderr_raw, &mut result.stderr_digest),
    ];
    let mut contents = Vec::new();
    for (output, content, digest) in files.chain(streams) {
        let content = std::mem::take(content);
        if content.is_empty() {
            continue;
        }
        let actual = Digest::of(function, &content);
        let named = match &digest {
            Some(digest) => digest_of(function, digest).map_err(|error| malformed(output, &error))?,
            None => actual,
        };
        if named != actual {
            return Err(Status::invalid_argument(format!(
                "the content of the output \"{output}\" has the digest {actual}, not {named}"
            )));
        }
        *digest = Some(to_message(&actual));
        contents.push((actual, content));
    }
    Ok(contents)
}

/// Every output must have a place and a digest, and every link a target: a result without them is of no use to anybody.
/// Whether the outputs are there is asked when the result is asked for.
fn validate(function: DigestFunction, result: &api::ActionResult) -> Result<(), Status> {
    let need = |output: &str, digest: Option<&api::Digest>| match digest {
        Some(digest) => digest_of(function, digest).map(drop).map_err(|error| malformed(output, &error)),
        None => Err(Status::invalid_argument(format!("the output \"{output}\" has no digest"))),
    };
    for file in &result.output_files {
        check_path(&file.path, false)?;
        need(&file.path, file.digest.as_ref())?;
    }
    for directory in &result.output_directories {
        // An empty path is the working directory itself.
        check_path(&directory.path, true)?;
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
    #[allow(deprecated, reason = "clients of version 2.0 send them")]
    let old_links = result.output_file_symlinks.iter().chain(&result.output_directory_symlinks);
    for link in result.output_symlinks.iter().chain(old_links) {
        check_path(&link.path, false)?;
        if link.target.is_empty() {
            return Err(Status::invalid_argument(format!("the link \"{}\" has no target", link.path)));
        }
    }
    Ok(())
}

fn check_path(path: &str, may_be_empty: bool) -> Result<(), Status> {
    if path.starts_with('/') {
        return Err(Status::invalid_argument(format!(
            "the path \"{path:.200}\" of an output is not relative to the working directory"
        )));
    }
    if path.is_empty() && !may_be_empty {
        return Err(Status::invalid_argument("an output has no path"));
    }
    Ok(())
}

fn malformed(output: &str, error: &DigestError) -> Status {
    Status::invalid_argument(format!("the output \"{output}\" has a malformed digest: {error}"))
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
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.action_digest.as_ref())?;
        let action = action(function, request.action_digest.as_ref())?;
        let found = self.actions.get(&request.instance_name, &action).await;
        let found = found.map_err(|error| status_map::action(&error))?;
        let count = |outcome: Lookup| COUNTERS.action_lookups.add(outcome as usize, 1);
        let Some(bytes) = found else {
            count(Lookup::Miss);
            return Err(Status::not_found(format!("no result of the action {action} is known")));
        };
        let mut result = api::ActionResult::decode(bytes).map_err(|error| {
            count(Lookup::Miss);
            Status::not_found(format!("the result of the action {action} is damaged: {error}"))
        })?;
        self.check(function, &result).await.map_err(|error| match error {
            Incomplete::Store(error) => status_map::read(&error),
            error => {
                count(Lookup::Incomplete);
                Status::not_found(format!(
                    "the result of the action {action} is no longer whole: {}",
                    with_causes(&error)
                ))
            }
        })?;
        count(Lookup::Hit);
        self.actions.used(&request.instance_name, &action);
        self.inline(&request, function, &mut result).await;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<api::UpdateActionResultRequest>,
    ) -> Result<Response<api::ActionResult>, Status> {
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let function = function_of(request.digest_function, request.action_digest.as_ref())?;
        let action = action(function, request.action_digest.as_ref())?;
        let Some(mut result) = request.action_result else {
            return Err(Status::invalid_argument("the request has no action_result"));
        };
        let contents = take_contents(function, &mut result)?;
        validate(function, &result)?;
        let bytes = Bytes::from(result.encode_to_vec());
        if bytes.len() > RESULT_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "the result has {} bytes where at most {RESULT_BYTES_MAX} are kept",
                bytes.len()
            )));
        }
        self.put(contents).await?;
        let updated = self.actions.update(&request.instance_name, &action, bytes).await;
        updated.map_err(|error| status_map::action(&error))?;
        Ok(Response::new(result))
    }
}
