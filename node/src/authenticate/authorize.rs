//! Role times operation: may this caller make this call?
//!
//! Every method of the API is named here once, with what it takes to call it. What is not named is not served.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tower::Service;
use tracing::Instrument as _;

use crate::config::Services;
use crate::observe::calls::Call;
use crate::serve::Access;

/// What a method does, as far as permissions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// Health and Capabilities: whoever may connect may ask.
    Ask,
    /// What the services look like: for readers, where the listener offers it.
    Reflect,
    /// Whether blobs are there: for readers, and for writers before they upload.
    Find,
    /// Blobs out.
    Read,
    /// Blobs in.
    Write,
    /// Assets out.
    Fetch,
    /// Assets in.
    Push,
}

fn operation(path: &str) -> Option<Operation> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (service, method) {
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => Operation::Ask,
        ("build.bazel.remote.execution.v2.Capabilities", "GetCapabilities") => Operation::Ask,
        ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", method) => match method {
            "ServerReflectionInfo" => Operation::Reflect,
            _ => return None,
        },
        ("build.bazel.remote.execution.v2.ContentAddressableStorage", method) => match method {
            "FindMissingBlobs" => Operation::Find,
            "BatchReadBlobs" | "GetTree" | "SplitBlob" => Operation::Read,
            "BatchUpdateBlobs" | "SpliceBlob" => Operation::Write,
            _ => return None,
        },
        ("build.bazel.remote.execution.v2.ActionCache", "GetActionResult") => Operation::Read,
        ("build.bazel.remote.execution.v2.ActionCache", "UpdateActionResult") => Operation::Write,
        ("google.bytestream.ByteStream", "Read") => Operation::Read,
        ("google.bytestream.ByteStream", "Write" | "QueryWriteStatus") => Operation::Write,
        ("build.bazel.remote.asset.v1.Fetch", "FetchBlob" | "FetchDirectory") => Operation::Fetch,
        ("build.bazel.remote.asset.v1.Push", "PushBlob" | "PushDirectory") => Operation::Push,
        _ => return None,
    })
}

/// Whether the call of this method is allowed, where the services describe themselves or do not.
fn check(path: &str, access: &Access, reflection: bool) -> Result<(), Status> {
    let Some(operation) = operation(path).filter(|operation| reflection || *operation != Operation::Reflect) else {
        return Err(Status::unimplemented(format!("this server does not offer {path}")));
    };
    let served = match operation {
        Operation::Ask | Operation::Reflect => true,
        Operation::Find | Operation::Read | Operation::Write => access.services != Services::Index,
        Operation::Fetch | Operation::Push => access.services != Services::Storage,
    };
    if !served {
        let what = if access.services == Services::Index { "assets, not blobs" } else { "blobs, not assets" };
        return Err(Status::unimplemented(format!("this address serves {what}: {path} is not offered here")));
    }
    let may = access.permissions;
    let (allowed, verb) = match operation {
        Operation::Ask => (true, "ask"),
        Operation::Find => (may.read || may.write, "look for blobs"),
        Operation::Read | Operation::Fetch | Operation::Reflect => (may.read, "read"),
        Operation::Write | Operation::Push => (may.write, "write"),
    };
    match operation {
        _ if allowed => Ok(()),
        // BuildStream tells its user on this code, and on no other, that the address does not take pushes.
        Operation::Push => Err(Status::unimplemented("this address does not take pushes: it is for reading only")),
        _ => {
            tracing::info!(who = %access.who, path, "refused");
            Err(Status::permission_denied(format!("{} may not {verb} here", access.who)))
        }
    }
}

/// Lets a request through to the services only when its caller may make it, tells them who it is, and the log how it went.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    access: Access,
    reflection: bool,
}

// === impl Gate ===

impl<S> Gate<S> {
    /// In front of `inner`, for a caller with this access; `reflection`: whether the services describe themselves.
    pub fn new(inner: S, access: Access, reflection: bool) -> Gate<S> {
        Gate { inner, access, reflection }
    }
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let call = Call::begin(request.uri(), request.headers(), &self.access.who);
        let span = call.span().clone();
        let _entered = span.enter();
        match check(request.uri().path(), &self.access, self.reflection) {
            Ok(()) => {
                request.extensions_mut().insert(self.access.clone());
                let answer = self.inner.call(request).instrument(span.clone());
                Box::pin(async move {
                    let Ok(response) = answer.await;
                    Ok(call.answered(response))
                })
            }
            Err(status) => Box::pin(std::future::ready(Ok(call.answered(status.into_http())))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Permissions;
    use tonic::Code;

    const FIND: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
    const UPDATE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    const READ: &str = "/google.bytestream.ByteStream/Read";
    const WRITE: &str = "/google.bytestream.ByteStream/Write";
    const FETCH: &str = "/build.bazel.remote.asset.v1.Fetch/FetchBlob";
    const PUSH: &str = "/build.bazel.remote.asset.v1.Push/PushBlob";
    const ASK: &str = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";

    fn access(read: bool, write: bool, services: Services) -> Access {
        let permissions = Permissions { read, write, admin: true };
        Access { who: "somebody".into(), permissions, services, from: None }
    }

    fn code(path: &str, access: &Access) -> Code {
        check(path, access, true).map_or_else(|status| status.code(), |()| Code::Ok)
    }

    #[test]
    fn a_reader_reads_and_does_not_write() {
        let reader = access(true, false, Services::All);
        for path in [ASK, FIND, READ, FETCH] {
            assert_eq!(code(path, &reader), Code::Ok, "{path}");
        }
        for path in [UPDATE, WRITE] {
            assert_eq!(code(path, &reader), Code::PermissionDenied, "{path}");
        }
        assert_eq!(code(PUSH, &reader), Code::Unimplemented, "BuildStream understands this one alone");
    }

    #[test]
    fn a_writer_writes_and_does_not_read() {
        let writer = access(false, true, Services::All);
        for path in [ASK, FIND, UPDATE, WRITE, PUSH] {
            assert_eq!(code(path, &writer), Code::Ok, "{path}");
        }
        for path in [READ, FETCH] {
            assert_eq!(code(path, &writer), Code::PermissionDenied, "{path}");
        }
    }

    #[test]
    fn the_services_are_described_to_readers_where_that_is_offered() {
        let (reader, writer) = (access(true, false, Services::Index), access(false, true, Services::All));
        for version in ["v1", "v1alpha"] {
            let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
            assert_eq!((code(&path, &reader), code(&path, &writer)), (Code::Ok, Code::PermissionDenied), "{path}");
            assert_eq!(check(&path, &reader, false).unwrap_err().code(), Code::Unimplemented, "{path}");
        }
    }

    #[test]
    fn nobody_does_nothing_by_default() {
        let nobody = access(false, false, Services::All);
        for path in [FIND, UPDATE, READ, WRITE, FETCH] {
            assert_eq!(code(path, &nobody), Code::PermissionDenied, "{path}");
        }
        assert_eq!(code(PUSH, &nobody), Code::Unimplemented);
    }

    #[test]
    fn an_index_has_no_blobs_and_a_storage_has_no_assets() {
        let (index, storage) = (access(true, true, Services::Index), access(true, true, Services::Storage));
        for path in [FIND, UPDATE, READ, WRITE] {
            assert_eq!((code(path, &index), code(path, &storage)), (Code::Unimplemented, Code::Ok), "{path}");
        }
        for path in [FETCH, PUSH] {
            assert_eq!((code(path, &index), code(path, &storage)), (Code::Ok, Code::Unimplemented), "{path}");
        }
        assert_eq!((code(ASK, &index), code(ASK, &storage)), (Code::Ok, Code::Ok));
    }

    #[test]
    fn what_is_not_named_is_not_served() {
        let all = access(true, true, Services::All);
        for path in [
            "",
            "/",
            "FindMissingBlobs",
            "/google.bytestream.ByteStream",
            "/google.bytestream.ByteStream/read",
            "/google.bytestream.ByteStream/Read/",
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/Erase",
            "/build.bazel.remote.execution.v2.Execution/Execute",
            "/grpc.reflection.v1.ServerReflection/Erase",
            "/grpc.reflection.v2.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(code(path, &all), Code::Unimplemented, "{path}");
        }
    }
}
