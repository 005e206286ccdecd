//! One span and one line for each call: who called what, for which build, and how it ended. It is counted here too, and
//! nowhere else.
//!
//! The span is there at the level `debug` alone, since it costs more than a small call. Errors of the server's own
//! are told at `info`, and look the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use casbah_proto::build::bazel::remote::execution::v2::RequestMetadata;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use http_body::{Frame, SizeHint};
use prost::Message as _;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tracing::{Level, Span};

use super::counters::COUNTERS;
use super::labels::{CallCode, Method};
use super::throttle::Throttle;

/// Where clients say for which build they call.
const METADATA_NAME: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
const METADATA: HeaderName = HeaderName::from_static(METADATA_NAME);

/// The longest encoded metadata that is looked at. Bazel's have some 300 bytes.
const METADATA_BYTES_MAX: usize = 4 << 10;

/// Characters of one name of a client's choice in the log.
const SHOWN_MAX: usize = 200;

/// Lines about calls that failed here.
static FAILED: Throttle = Throttle::new();

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A call that is under way. Dropped, it is over, and told of: as cancelled if nobody has said how it ended.
pub struct Call {
    span: Span,
    facts: Facts,
    began: Instant,
    code: Option<Code>,
    counted: bool,
}

/// What is known of a call when it begins.
struct Facts {
    uri: Uri,
    who: Arc<str>,
    metadata: Option<HeaderValue>,
}

/// The span of a call, at a level that must be known to the compiler.
macro_rules! call_span {
    ($level:expr, $facts:expr) => {{
        let (method, who) = (shown($facts.uri.path()), shown(&$facts.who));
        let metadata = $facts.metadata.as_ref().and_then(decode).unwrap_or_default();
        let tool = metadata.tool_details.unwrap_or_default();
        tracing::span!(
            $level,
            "call",
            method,
            who,
            instance = tracing::field::Empty,
            tool_name = given(&tool.tool_name),
            tool_version = given(&tool.tool_version),
            action_id = given(&metadata.action_id),
            action_mnemonic = given(&metadata.action_mnemonic),
            target_id = given(&metadata.target_id),
            configuration_id = given(&metadata.configuration_id),
            tool_invocation_id = given(&metadata.tool_invocation_id),
            correlated_invocations_id = given(&metadata.correlated_invocations_id),
        )
    }};
}

// === impl Call ===

impl Call {
    /// A call of this method by `who`, which begins now.
    pub fn begin(uri: &Uri, headers: &HeaderMap, who: &Arc<str>) -> Call {
        let facts = Facts { uri: uri.clone(), who: Arc::clone(who), metadata: headers.get(METADATA).cloned() };
        let span = match tracing::enabled!(Level::DEBUG) {
            true => call_span!(Level::DEBUG, facts),
            false => Span::none(),
        };
        COUNTERS.calls_begun.add(1);
        Call { span, facts, began: Instant::now(), code: None, counted: false }
    }

    /// What is logged while this is entered belongs to the call.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The answer, which ends the call when it has been sent.
    pub fn answered(mut self, response: http::Response<Body>) -> http::Response<Body> {
        self.code = code(response.headers());
        match self.code {
            Some(_) => response,
            None => response.map(|body| Body::new(Answer { body, call: self })),
        }
    }

    /// Counts it, once. Before its end is sent, so that a client that has the answer finds it counted.
    fn count(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            let code = CallCode::from(self.code.unwrap_or(Code::Cancelled));
            COUNTERS.call_ended(Method::of(self.facts.uri.path()), code, self.began.elapsed());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.count();
        let code = self.code.unwrap_or(Code::Cancelled);
        let duration_us = || u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        match code {
            Code::Internal | Code::Unavailable | Code::DataLoss => {
                // A node that has too much to do is not to write a line for each call on top of it.
                FAILED.line(|left_out| {
                    // Where there is no span, the line has one of its own.
                    let own = self.span.is_none().then(|| call_span!(Level::INFO, self.facts));
                    let _entered = own.as_ref().unwrap_or(&self.span).enter();
                    tracing::info!(?code, duration_us = duration_us(), left_out, "a call failed here");
                });
            }
            _ if self.span.is_none() => {}
            code => {
                let _entered = self.span.enter();
                tracing::debug!(?code, duration_us = duration_us(), "call");
            }
        }
    }
}

/// Tells the span of a call for which instance it is.
pub fn record_instance(span: &Span, name: &str) {
    if !span.is_none() {
        span.record("instance", shown(name));
    }
}

/// The body of an answer, whose trailers say how the call has ended.
struct Answer {
    body: Body,
    call: Call,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Answer { body, call } = &mut *self;
        let frame = {
            let _entered = call.span.enter();
            ready!(Pin::new(body).poll_frame(context))
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.code = code(trailers);
                    call.count();
                }
            }
            Some(Err(status)) => call.code = Some(status.code()),
            // An answer that never said how it ended.
            None => call.code = call.code.or(Some(Code::Unknown)),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How a call has ended, if these headers or trailers say so.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// What the client says of itself. Nothing of it is verified, and what cannot be read is no error.
fn decode(header: &HeaderValue) -> Option<RequestMetadata> {
    if header.len() > METADATA_BYTES_MAX {
        tracing::debug!(bytes = header.len(), "the metadata of a request is too long to be looked at");
        return None;
    }
    let headers = MetadataMap::from_headers(HeaderMap::from_iter([(METADATA, header.clone())]));
    let bytes = headers.get_bin(METADATA_NAME).and_then(|value| value.to_bytes().ok());
    let metadata = bytes.and_then(|bytes| RequestMetadata::decode(bytes).ok());
    if metadata.is_none() {
        tracing::debug!("the metadata of a request cannot be read");
    }
    metadata
}

/// What was given, and nothing where nothing was.
fn given(text: &str) -> Option<&str> {
    Some(shown(text)).filter(|text| !text.is_empty())
}

/// The start of it, as far as a line of the log has room.
fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN_MAX).map_or(text, |(end, _)| text.split_at(end).0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use casbah_proto::build::bazel::remote::execution::v2::ToolDetails;
    use http_body_util::BodyExt as _;
    use std::io;
    use std::sync::{LazyLock, Mutex, PoisonError};
    use tonic::metadata::MetadataValue;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// As long as there is one dispatcher alone, tracing asks that of whichever thread comes first whether an event matters
    /// to anybody, and another test has none. With a second one, it asks them all.
    static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(io::sink);
        tracing::Dispatch::new(subscriber.finish())
    });

    /// What is logged at this level while this is done.
    fn logged(level: Level, action: impl FnOnce()) -> String {
        LazyLock::force(&SECOND);
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, action);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    fn begin(metadata: Option<HeaderValue>) -> Call {
        let mut headers = HeaderMap::new();
        if let Some(metadata) = metadata {
            headers.insert(METADATA, metadata);
        }
        Call::begin(&Uri::from_static("/a.Service/Method"), &headers, &"CN=client".into())
    }

    fn header(metadata: &RequestMetadata) -> HeaderValue {
        let mut map = MetadataMap::new();
        map.insert_bin(METADATA_NAME, MetadataValue::from_bytes(&metadata.encode_to_vec()));
        map.into_headers().remove(METADATA).unwrap()
    }

    fn with_status(code: Code) -> http::Response<Body> {
        Status::new(code, "why").into_http()
    }

    #[test]
    fn a_call_is_told_with_all_that_its_client_says_of_it() {
        let metadata = RequestMetadata {
            tool_details: Some(ToolDetails { tool_name: "bazel".into(), tool_version: "9.1".into() }),
            action_id: "a-1".into(),
            tool_invocation_id: "i-1".into(),
            correlated_invocations_id: "c-1".into(),
            action_mnemonic: "CppCompile".into(),
            target_id: "//x:y".into(),
            configuration_id: String::new(),
        };
        let log = logged(Level::DEBUG, || {
            let call = begin(Some(header(&metadata)));
            record_instance(call.span(), "team/a");
            call.answered(with_status(Code::NotFound));
        });
        for part in [
            "DEBUG",
            "method=\"/a.Service/Method\"",
            "who=\"CN=client\"",
            "instance=\"team/a\"",
            "tool_name=\"bazel\"",
            "tool_version=\"9.1\"",
            "action_id=\"a-1\"",
            "tool_invocation_id=\"i-1\"",
            "correlated_invocations_id=\"c-1\"",
            "action_mnemonic=\"CppCompile\"",
            "target_id=\"//x:y\"",
            "code=NotFound",
            "duration_us=",
        ] {
            assert!(log.contains(part), "{part}: {log}");
        }
        assert!(!log.contains("configuration_id"), "{log}");
        assert_eq!(log.lines().count(), 1);
    }

    #[test]
    fn errors_of_the_servers_own_are_told_without_being_asked_and_others_are_not() {
        for code in [Code::Internal, Code::Unavailable, Code::DataLoss] {
            let log = logged(Level::INFO, || drop(begin(None).answered(with_status(code))));
            assert!(log.contains("INFO") && log.contains(&format!("code={code:?}")), "{log}");
            assert!(log.contains("who=\"CN=client\""), "{log}");
        }
        for code in [Code::Ok, Code::NotFound, Code::InvalidArgument, Code::PermissionDenied] {
            assert_eq!(logged(Level::INFO, || drop(begin(None).answered(with_status(code)))), "");
        }
        assert_eq!(logged(Level::INFO, || drop(begin(None))), "", "a client that went away");
    }

    #[test]
    fn a_call_that_nobody_waits_for_was_cancelled() {
        let log = logged(Level::DEBUG, || drop(begin(None)));
        assert!(log.contains("code=Cancelled"), "{log}");
        let log = logged(Level::DEBUG, || drop(begin(None).answered(http::Response::new(Body::empty()))));
        assert!(log.contains("code=Cancelled"), "{log}");
    }

    #[test]
    fn a_stream_is_told_when_its_trailers_have_come() {
        for (code, told) in [(Code::Ok, "code=Ok"), (Code::DataLoss, "code=DataLoss")] {
            let log = logged(Level::DEBUG, || {
                let mut trailers = HeaderMap::new();
                Status::new(code, "").add_header(&mut trailers).unwrap();
                let body = http_body_util::Full::new(Bytes::from_static(b"some"));
                let body = body.with_trailers(std::future::ready(Some(Ok(trailers)))).map_err(|never| match never {});
                let response = begin(None).answered(http::Response::new(Body::new(body)));
                let whole = futures_util::FutureExt::now_or_never(response.into_body().collect()).unwrap().unwrap();
                assert_eq!(whole.to_bytes().as_ref(), b"some");
            });
            assert!(log.contains(told), "{log}");
        }
    }

    #[test]
    fn metadata_that_cannot_be_read_harm_nobody() {
        for (value, told) in [
            (HeaderValue::from_static("%%%"), "cannot be read"),
            (HeaderValue::from_static("/////w"), "cannot be read"),
            (HeaderValue::from_bytes(&[0xff, 0xfe]).unwrap(), "cannot be read"),
            (HeaderValue::from_str(&"A".repeat(METADATA_BYTES_MAX + 1)).unwrap(), "too long"),
        ] {
            let log = logged(Level::DEBUG, || drop(begin(Some(value)).answered(with_status(Code::NotFound))));
            assert!(log.contains(told) && log.contains("code=NotFound"), "{log}");
            assert_eq!(logged(Level::INFO, || drop(begin(None).answered(with_status(Code::Ok)))), "");
        }
    }

    #[test]
    fn metadata_of_any_kind_are_read_or_left() {
        use rand::{RngExt as _, SeedableRng as _};
        let given = std::env::var("CASBAH_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = given.unwrap_or_else(|| rand::rng().random());
        println!("CASBAH_TEST_SEED={seed}");
        let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
        let whole = RequestMetadata { action_id: "a-1".into(), target_id: "//x:y".into(), ..Default::default() };
        let whole = header(&whole);
        for _ in 0..10_000 {
            let mut bytes = whole.as_bytes().to_vec();
            for _ in 0..rng.random_range(1..4) {
                let place = rng.random_range(0..=bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes.truncate(place),
                    1 => bytes.insert(place, rng.random_range(0x20..0x7f)),
                    _ => bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte = rng.random_range(0x80..0xff)),
                }
            }
            let _read_or_not = decode(&HeaderValue::from_bytes(&bytes).unwrap());
        }
    }

    #[test]
    fn what_a_client_says_neither_breaks_lines_nor_fills_the_log() {
        let metadata = RequestMetadata {
            action_id: "x\nERROR forged\u{1b}[31m".into(),
            target_id: "é".repeat(1000),
            ..Default::default()
        };
        let log = logged(Level::DEBUG, || drop(begin(Some(header(&metadata))).answered(with_status(Code::NotFound))));
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(!log.contains('\u{1b}'), "{log}");
        assert_eq!(log.matches('é').count(), SHOWN_MAX);
    }
}
