//! The labels of metrics. All are closed: no client can make a further series, and no digest, name or URI is one.

use tonic::Code;

/// The name of a label and every value it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values, in the order of the enum.
    pub values: &'static [&'static str],
}

/// An enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$docs:meta])* $name:ident is $label:literal { $($variant:ident = $value:literal),* $(,)? }) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = concat!("`", $value, "`")] $variant),*
        }

        impl $name {
            /// As it is written.
            pub const LABEL: Label = Label { name: $label, values: &[$($value),*] };

            /// How many values there are.
            pub const COUNT: usize = $name::LABEL.values.len();
        }
    };
}

label! {
    /// Which call it was; everything that is not served is `other`.
    Method is "method" {
        Check = "Health.Check",
        Watch = "Health.Watch",
        List = "Health.List",
        Reflection = "ServerReflection.ServerReflectionInfo",
        GetCapabilities = "Capabilities.GetCapabilities",
        FindMissingBlobs = "ContentAddressableStorage.FindMissingBlobs",
        BatchUpdateBlobs = "ContentAddressableStorage.BatchUpdateBlobs",
        BatchReadBlobs = "ContentAddressableStorage.BatchReadBlobs",
        GetTree = "ContentAddressableStorage.GetTree",
        SplitBlob = "ContentAddressableStorage.SplitBlob",
        SpliceBlob = "ContentAddressableStorage.SpliceBlob",
        GetActionResult = "ActionCache.GetActionResult",
        UpdateActionResult = "ActionCache.UpdateActionResult",
        Read = "ByteStream.Read",
        Write = "ByteStream.Write",
        QueryWriteStatus = "ByteStream.QueryWriteStatus",
        FetchBlob = "Fetch.FetchBlob",
        FetchDirectory = "Fetch.FetchDirectory",
        PushBlob = "Push.PushBlob",
        PushDirectory = "Push.PushDirectory",
        Other = "other",
    }
}

label! {
    /// How a call ended, as gRPC names it.
    CallCode is "code" {
        Ok = "OK",
        Cancelled = "CANCELLED",
        Unknown = "UNKNOWN",
        InvalidArgument = "INVALID_ARGUMENT",
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        NotFound = "NOT_FOUND",
        AlreadyExists = "ALREADY_EXISTS",
        PermissionDenied = "PERMISSION_DENIED",
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        FailedPrecondition = "FAILED_PRECONDITION",
        Aborted = "ABORTED",
        OutOfRange = "OUT_OF_RANGE",
        Unimplemented = "UNIMPLEMENTED",
        Internal = "INTERNAL",
        Unavailable = "UNAVAILABLE",
        DataLoss = "DATA_LOSS",
        Unauthenticated = "UNAUTHENTICATED",
    }
}

label! {
    /// Calls whose durations may be compared with each other. Those that have no end of their own are in none.
    Class is "class" {
        Ask = "ask",
        Find = "find",
        BatchRead = "batch_read",
        BatchWrite = "batch_write",
        StreamRead = "stream_read",
        StreamWrite = "stream_write",
        Tree = "tree",
        Split = "split",
        Splice = "splice",
        ResultGet = "result_get",
        ResultUpdate = "result_update",
        Fetch = "fetch",
        Push = "push",
    }
}

label! {
    /// The form of a blob on its way.
    Encoding is "encoding" {
        Identity = "identity",
        Zstd = "zstd",
    }
}

label! {
    /// Whether a blob that was asked for is here.
    Presence is "outcome" {
        Present = "present",
        Missing = "missing",
    }
}

label! {
    /// What a lookup found; `incomplete`: something that is of no use, since a blob that it names has gone.
    Lookup is "outcome" {
        Hit = "hit",
        Miss = "miss",
        Incomplete = "incomplete",
    }
}

label! {
    /// What a connection is carried by.
    Transport is "transport" {
        Plaintext = "plaintext",
        Tls = "tls",
    }
}

label! {
    /// Why a connection came to nothing. What begins with `tls_` is a handshake that failed.
    Refused is "reason" {
        Accept = "accept_failed",
        Silent = "silent",
        Certificate = "tls_certificate",
        NoCertificate = "tls_no_certificate",
        NotHttp2 = "tls_no_http2",
        NotTls = "tls_not_spoken",
        Alert = "tls_alert",
        Failed = "tls_failed",
        Broken = "tls_broken",
        Timeout = "tls_timeout",
    }
}

label! {
    /// Whose calls.
    Traffic is "traffic" {
        Clients = "clients",
        Nodes = "nodes",
    }
}

label! {
    /// Why a call was told to come again: too many wait already, it has waited too long, or it sent a message for which there
    /// is no room.
    TurnedAway is "reason" {
        LineFull = "line_full",
        TooLong = "waited_too_long",
        Grown = "message_too_long",
    }
}

label! {
    /// Who did not go on: one that was sent an answer, or one that was sending a request.
    Stalled is "client" {
        Reader = "reader",
        Writer = "writer",
    }
}

label! {
    /// Which index.
    IndexName is "index" {
        Assets = "assets",
        Actions = "actions",
    }
}

label! {
    /// Why the store takes no writes.
    ReadOnly is "reason" {
        DiskFull = "disk_full",
        DiskFailed = "disk_failed",
    }
}

// === impl Method ===

impl Method {
    /// By the path of the request.
    pub fn of(path: &str) -> Method {
        match path {
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs" => Method::FindMissingBlobs,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs" => Method::BatchUpdateBlobs,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs" => Method::BatchReadBlobs,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => Method::GetTree,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob" => Method::SplitBlob,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob" => Method::SpliceBlob,
            "/build.bazel.remote.execution.v2.ActionCache/GetActionResult" => Method::GetActionResult,
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult" => Method::UpdateActionResult,
            "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities" => Method::GetCapabilities,
            "/google.bytestream.ByteStream/Read" => Method::Read,
            "/google.bytestream.ByteStream/Write" => Method::Write,
            "/google.bytestream.ByteStream/QueryWriteStatus" => Method::QueryWriteStatus,
            "/build.bazel.remote.asset.v1.Fetch/FetchBlob" => Method::FetchBlob,
            "/build.bazel.remote.asset.v1.Fetch/FetchDirectory" => Method::FetchDirectory,
            "/build.bazel.remote.asset.v1.Push/PushBlob" => Method::PushBlob,
            "/build.bazel.remote.asset.v1.Push/PushDirectory" => Method::PushDirectory,
            "/grpc.health.v1.Health/Check" => Method::Check,
            "/grpc.health.v1.Health/Watch" => Method::Watch,
            "/grpc.health.v1.Health/List" => Method::List,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Method::Reflection,
            _ => Method::Other,
        }
    }

    /// With which others its duration may be compared.
    pub fn class(self) -> Option<Class> {
        Some(match self {
            Method::Check | Method::List | Method::GetCapabilities => Class::Ask,
            Method::FindMissingBlobs | Method::QueryWriteStatus => Class::Find,
            Method::BatchReadBlobs => Class::BatchRead,
            Method::BatchUpdateBlobs => Class::BatchWrite,
            Method::Read => Class::StreamRead,
            Method::Write => Class::StreamWrite,
            Method::GetTree => Class::Tree,
            Method::SplitBlob => Class::Split,
            Method::SpliceBlob => Class::Splice,
            Method::GetActionResult => Class::ResultGet,
            Method::UpdateActionResult => Class::ResultUpdate,
            Method::FetchBlob | Method::FetchDirectory => Class::Fetch,
            Method::PushBlob | Method::PushDirectory => Class::Push,
            Method::Watch | Method::Reflection | Method::Other => return None,
        })
    }
}

impl From<Code> for CallCode {
    fn from(code: Code) -> CallCode {
        match code {
            Code::Ok => CallCode::Ok,
            Code::Cancelled => CallCode::Cancelled,
            Code::Unknown => CallCode::Unknown,
            Code::InvalidArgument => CallCode::InvalidArgument,
            Code::DeadlineExceeded => CallCode::DeadlineExceeded,
            Code::NotFound => CallCode::NotFound,
            Code::AlreadyExists => CallCode::AlreadyExists,
            Code::PermissionDenied => CallCode::PermissionDenied,
            Code::ResourceExhausted => CallCode::ResourceExhausted,
            Code::FailedPrecondition => CallCode::FailedPrecondition,
            Code::Aborted => CallCode::Aborted,
            Code::OutOfRange => CallCode::OutOfRange,
            Code::Unimplemented => CallCode::Unimplemented,
            Code::Internal => CallCode::Internal,
            Code::Unavailable => CallCode::Unavailable,
            Code::DataLoss => CallCode::DataLoss,
            Code::Unauthenticated => CallCode::Unauthenticated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_one_series() {
        for path in ["", "/", "/a.B/C", "/google.bytestream.ByteStream/read", "/google.bytestream.ByteStream/Read/x"] {
            assert_eq!(Method::of(path), Method::Other, "{path}");
        }
    }

    #[test]
    fn every_code_has_its_name() {
        for number in 0..CallCode::COUNT {
            let code = CallCode::from(Code::from_i32(number as i32));
            assert_eq!(code as usize, number, "the order is that of gRPC");
        }
    }
}
