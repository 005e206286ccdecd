use casbah_proto::peer::v1 as api;
use futures_util::stream;
use http::{HeaderMap, HeaderValue};
use http_body_util::StreamBody;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Code;

use super::*;

type Sent = Result<Frame<Bytes>, Status>;

fn body(frames: Vec<Sent>) -> impl Body<Data = Bytes, Error = Status> + Unpin {
    StreamBody::new(stream::iter(frames))
}

fn bytes_of(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Vec<u8> {
    frames.into_iter().flat_map(|frame| frame.into_data().unwrap().to_vec()).collect()
}

fn data(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn trailers(code: &'static str) -> Sent {
    Ok(Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(code),
    )])))
}

/// Everything that comes, the data of a message in one; or why it broke off.
async fn all(
    mut messages: Messages<impl Body<Data = Bytes, Error = Status> + Unpin>,
) -> Result<Vec<Part>, FramingError> {
    let mut parts: Vec<Part> = Vec::new();
    while let Some(part) = messages.next().await? {
        match (parts.last_mut(), part) {
            (Some(Part::Data { form, data }), Part::Data { form: next_form, data: next }) if *form == next_form => {
                *data = Bytes::from([&data[..], &next[..]].concat());
            }
            (_, part) => parts.push(part),
        }
    }
    Ok(parts)
}

#[tokio::test]
async fn what_is_sent_by_hand_is_what_the_contract_says() {
    for length in [0, 1, 127, 128, 1000, 1 << 20] {
        for form in [0, 1] {
            let sent = bytes_of(data_frames(form, data(length)));
            let message = api::ReadResponse::decode(&sent[HEADER_BYTES..]).unwrap();
            assert_eq!((message.form, message.data), (form, data(length)));
            assert_eq!(sent[..HEADER_BYTES], [&[0][..], &((sent.len() - HEADER_BYTES) as u32).to_be_bytes()].concat());
        }
        let sent = bytes_of(data_frames(0, data(length)));
        let part = api::StoreRequest::decode(&sent[HEADER_BYTES..]).unwrap().part;
        assert_eq!(part, Some(api::store_request::Part::Data(data(length))));
    }
}

#[tokio::test]
async fn what_the_generated_code_sends_is_taken_apart() {
    let message = api::ReadResponse { form: 1, data: data(5000) };
    let sent = bytes_of([message_frame(&message)]);
    let parts = all(Messages::request(body(vec![Ok(Frame::data(sent.into()))]))).await.unwrap();
    assert_eq!(parts, [Part::Data { form: 1, data: data(5000) }]);
}

#[tokio::test]
async fn messages_are_the_same_wherever_the_stream_is_cut_into_frames() {
    let begin = api::StoreRequest {
        part: Some(api::store_request::Part::Begin(api::store_request::Begin {
            digest: Some(api::Digest { function: 1, hash: data(32), size_bytes: 70_000 }),
            used_ms: Some(77),
        })),
    };
    let commit = api::StoreRequest { part: Some(api::store_request::Part::Commit(api::store_request::Commit {})) };
    let large = api::StoreRequest {
        part: Some(api::store_request::Part::Begin(api::store_request::Begin {
            digest: Some(api::Digest { function: 1, hash: data(400), size_bytes: 1 }),
            used_ms: None,
        })),
    };
    let mut sent = bytes_of([message_frame(&begin)]);
    sent.extend(bytes_of(data_frames(0, data(70_000))));
    sent.extend(bytes_of(data_frames(0, data(10))));
    sent.extend(bytes_of([message_frame(&large)]));
    sent.extend(bytes_of([message_frame(&commit)]));
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..100 {
        let mut frames = Vec::new();
        let mut left = Bytes::from(sent.clone());
        while !left.is_empty() {
            let most = if round == 0 { 1 } else { 1 << random.random_range(0..17) };
            frames.push(Ok(Frame::data(left.split_to(random.random_range(0..=most).min(left.len())))));
        }
        let parts = all(Messages::request(body(frames))).await.unwrap();
        let expected = [
            Part::Message(begin.encode_to_vec().into()),
            Part::Data { form: 0, data: data(70_000) },
            Part::Message(
                api::StoreRequest { part: Some(api::store_request::Part::Data(data(10))) }.encode_to_vec().into(),
            ),
            Part::Message(large.encode_to_vec().into()),
            Part::Message(commit.encode_to_vec().into()),
        ];
        assert_eq!(parts, expected);
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_anywhere_is_an_error() {
    let sent = Bytes::from(bytes_of(data_frames(1, data(1000))));
    for length in 1..sent.len() {
        let frames = vec![Ok(Frame::data(sent.slice(..length))), trailers("0")];
        assert!(matches!(all(Messages::answer(body(frames))).await, Err(FramingError::Cut)), "{length}");
    }
}

#[tokio::test]
async fn an_answer_without_a_status_is_cut_off() {
    let sent = Bytes::from(bytes_of(data_frames(0, data(1000))));
    let whole = || Ok(Frame::data(sent.clone()));
    assert!(matches!(all(Messages::answer(body(vec![whole()]))).await, Err(FramingError::Cut)));
    assert_eq!(all(Messages::answer(body(vec![whole(), trailers("0")]))).await.unwrap().len(), 1);
    let mut over = Messages::answer(body(vec![trailers("0")]));
    assert_eq!((over.next().await.unwrap(), over.next().await.unwrap()), (None, None));
    let told = all(Messages::answer(body(vec![whole(), trailers("14")]))).await;
    assert!(matches!(told, Err(FramingError::Status(status)) if status.code() == Code::Unavailable));
}

#[tokio::test]
async fn what_breaks_the_stream_is_told() {
    let broken = vec![Ok(Frame::data(data(3))), Err(Status::aborted("broken"))];
    let told = all(Messages::request(body(broken))).await;
    assert!(matches!(told, Err(FramingError::Status(status)) if status.code() == Code::Aborted));
}

#[tokio::test]
async fn nonsense_is_refused_and_nothing_large_is_made_of_it() {
    let compressed = vec![Ok(Frame::data(Bytes::from_static(&[1, 0, 0, 0, 1, 0])))];
    assert!(matches!(all(Messages::request(body(compressed))).await, Err(FramingError::Nonsense(_))));
    // Four gigabytes of something else.
    let endless = vec![Ok(Frame::data([&[0, 255, 255, 255, 255, 0x0a], &[0; 100][..]].concat().into()))];
    assert!(matches!(all(Messages::request(body(endless))).await, Err(FramingError::Nonsense(_))));
    // Data that would not end with its message.
    let longer = vec![Ok(Frame::data([&[0, 0, 0, 4, 0, 0x12, 0xff, 0xff, 0x03], &[0; 2000][..]].concat().into()))];
    assert!(all(Messages::request(body(longer))).await.is_ok_and(|parts| matches!(&parts[0], Part::Message(_))));
}
