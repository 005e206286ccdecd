use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use zstd::stream::raw::CParameter;
use zstd::zstd_safe::CCtx;

use super::frames::DecodeError;
use super::workers::Compression;

const MIB: usize = 1 << 20;

/// From `CASBAH_TEST_SEED`, or a new one. Printed, and so shown when the test fails.
fn random() -> SmallRng {
    let given = std::env::var("CASBAH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    println!("CASBAH_TEST_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// Bytes of which some repeat and some do not.
fn content(random: &mut SmallRng, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for line in bytes.chunks_mut(100) {
        if random.random_bool(0.3) {
            random.fill_bytes(line);
        } else {
            line.fill(random.random());
        }
    }
    bytes
}

fn frame(content: &[u8], level: i32, checksum: bool, says_size: bool) -> Vec<u8> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level)).unwrap();
    context.set_parameter(CParameter::ChecksumFlag(checksum)).unwrap();
    context.set_parameter(CParameter::ContentSizeFlag(says_size)).unwrap();
    let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
    context.compress2(&mut frame, content).unwrap();
    frame
}

fn skippable(length: usize) -> Vec<u8> {
    let mut frame = 0x184D_2A57_u32.to_le_bytes().to_vec();
    frame.extend((length as u32).to_le_bytes());
    frame.resize(8 + length, 0xAA);
    frame
}

/// A frame of one uncompressed block, which asks for a window of this many bytes (a power of two).
fn raw_frame(window_log: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, (window_log - 10) << 3];
    frame.extend(&(((content.len() as u32) << 3) | 1).to_le_bytes()[..3]);
    frame.extend(content);
    frame
}

/// Decodes in messages of these lengths, the last one again and again.
async fn decode(size: usize, frames: &[u8], lengths: &[usize]) -> Result<Vec<u8>, DecodeError> {
    let compression = Compression::new();
    let idle_bytes = compression.idle_memory_bytes();
    let decoded = decode_with(&compression, size, frames, lengths).await;
    assert_eq!(compression.idle_memory_bytes(), idle_bytes, "memory was not given back");
    decoded
}

async fn decode_with(
    compression: &Compression,
    size: usize,
    frames: &[u8],
    lengths: &[usize],
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = compression.decoder(size as u64, 0);
    let (mut rest, mut lengths, mut length) = (frames, lengths.iter(), frames.len());
    let mut decoded = Vec::new();
    while !rest.is_empty() {
        length = lengths.next().copied().unwrap_or(length).min(rest.len());
        let (message, after) = rest.split_at(length);
        decoder.push(Bytes::copy_from_slice(message))?;
        while let Some(piece) = decoder.next().await? {
            decoded.extend_from_slice(&piece);
            assert!(decoded.len() <= size, "{} bytes came out for a blob of {size}", decoded.len());
        }
        rest = after;
    }
    decoder.finish()?;
    Ok(decoded)
}

#[tokio::test]
async fn however_a_blob_is_cut_into_frames_and_messages_it_is_the_same() {
    let mut random = random();
    for _ in 0..60 {
        let size = *[0, 1, 100, 5000, 70_000, 3 * MIB].get(random.random_range(0..6)).unwrap();
        let blob = content(&mut random, size);
        let mut frames = Vec::new();
        let mut rest = blob.as_slice();
        loop {
            let (part, after) = rest.split_at(random.random_range(0..=rest.len()));
            frames.extend(frame(part, random.random_range(-3..9), random.random(), random.random()));
            if random.random_bool(0.3) {
                frames.extend(skippable(random.random_range(0..1000)));
            }
            rest = after;
            if rest.is_empty() || random.random_bool(0.2) {
                break;
            }
        }
        frames.extend(frame(rest, 3, false, true));
        let mut lengths: Vec<usize> = (0..20).map(|_| random.random_range(0..30)).collect();
        lengths.extend((0..20).map(|_| random.random_range(0..100_000)));
        lengths.push(random.random_range(1..MIB));
        assert!(decode(size, &frames, &lengths).await.unwrap() == blob, "{size} bytes in {lengths:?}");
    }
}

#[tokio::test]
async fn byte_by_byte_and_all_at_once_are_the_same() {
    let blob = content(&mut random(), 20_000);
    let frames = [skippable(300), frame(&blob[..7000], 3, true, false), raw_frame(20, &blob[7000..])].concat();
    assert!(decode(blob.len(), &frames, &[1]).await.unwrap() == blob);
    assert!(decode(blob.len(), &frames, &[]).await.unwrap() == blob);
    let whole = Compression::new().decompress(blob.len() as u64, frames.into()).await.unwrap();
    assert!(whole == blob);
}

#[tokio::test]
async fn very_many_frames_take_time_by_their_number_alone() {
    let blob = content(&mut random(), 100_000);
    let frames: Vec<u8> = blob.iter().flat_map(|byte| raw_frame(10, &[*byte])).collect();
    let frames = [frames, skippable(0).repeat(1000)].concat();
    assert!(decode(blob.len(), &frames, &[]).await.is_ok_and(|decoded| decoded == blob));
}

#[tokio::test]
async fn a_blob_that_is_cut_anywhere_is_refused() {
    let blob = content(&mut random(), 600);
    let frames = [frame(&blob[..300], 3, true, true), frame(&blob[300..], 3, true, true)].concat();
    let first_bytes = frame(&blob[..300], 3, true, true).len();
    for length in 1..frames.len() {
        let decoded = decode(blob.len(), &frames[..length], &[]).await;
        if length == first_bytes {
            // As far as frames go, that is whole. The digest knows better.
            assert!(decoded.unwrap() == blob[..300]);
        } else {
            assert!(matches!(decoded, Err(DecodeError::Truncated)), "{length}: {decoded:?}");
        }
    }
}

#[tokio::test]
async fn a_damaged_frame_makes_an_error_or_bytes_but_never_too_many() {
    let blob = content(&mut random(), 900);
    let whole = frame(&blob, 3, true, true);
    for place in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << bit;
            // A bit that means nothing may change; with a checksum in the frame, no other one.
            let decoded = decode(blob.len(), &damaged, &[]).await;
            assert!(decoded.is_err() || decoded.is_ok_and(|decoded| decoded == blob), "{place}.{bit}");
        }
    }
}

#[tokio::test]
async fn what_is_not_zstd_is_refused_wherever_it_stands() {
    let blob = content(&mut random(), 3000);
    let good = frame(&blob, 3, false, true);
    for garbage in [&b"garbage"[..], b"\x1f\x8b\x08\x00\x00", &[0; 10], &good[1..]] {
        assert!(matches!(decode(3000, garbage, &[]).await, Err(DecodeError::NotZstd)));
        let trailing = [&good, garbage].concat();
        for lengths in [&[][..], &[1], &[good.len()]] {
            assert!(matches!(decode(3000, &trailing, lengths).await, Err(DecodeError::NotZstd)));
        }
    }
    // Too little to tell.
    for trailing in [&b"x"[..], b"abc", &good[..3]] {
        let trailing = [&good, trailing].concat();
        assert!(matches!(decode(3000, &trailing, &[]).await, Err(DecodeError::Truncated)));
    }
}

#[tokio::test]
async fn a_bomb_stops_one_byte_too_late_whether_it_announces_itself_or_not() {
    let zeros = vec![0; 64 * MIB];
    // One for all, so that what comes later finds the large rooms of what was before.
    let compression = Compression::new();
    for says_size in [true, false] {
        let bomb = frame(&zeros, 1, false, says_size);
        for size in [0, 1, 1000, 64 * MIB - 1, 70_000] {
            let error = decode_with(&compression, size, &bomb, &[]).await.unwrap_err();
            let DecodeError::TooLong { decoded_bytes } = error else { panic!("{error:?}") };
            let expected = if says_size { zeros.len() } else { size + 1 };
            assert_eq!(decoded_bytes, expected as u64);
        }
        assert!(decode(zeros.len(), &bomb, &[]).await.unwrap() == zeros);
    }
    // Many small ones are one large one.
    let many = frame(&zeros[..1000], 1, false, true).repeat(50);
    assert!(matches!(decode(49_999, &many, &[]).await, Err(DecodeError::TooLong { .. })));
}

#[tokio::test]
async fn a_frame_that_asks_for_too_large_a_window_is_refused() {
    let blob = vec![1; 1000];
    assert!(decode(1000, &raw_frame(27, &blob), &[]).await.is_ok());
    for window_log in [28, 31, 41] {
        let refused = decode(1000, &raw_frame(window_log, &blob), &[]).await;
        assert!(matches!(refused, Err(DecodeError::Window { .. })), "{window_log}: {refused:?}");
    }
}

#[tokio::test]
async fn frames_that_make_nothing_do_not_go_on_for_ever() {
    for nothing in [skippable(100_000), raw_frame(10, b""), frame(b"", 3, true, false)] {
        let endless = nothing.repeat((3 * MIB).div_ceil(nothing.len()));
        let refused = decode(1000, &endless, &[64 << 10]).await;
        assert!(matches!(refused, Err(DecodeError::Padded { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_decoder_waits_for_the_memory_that_another_has() {
    let compression = Compression::new();
    let size = 200 * MIB as u64;
    // Each wants the largest window, and there is memory for one of them.
    let begin = Bytes::from(raw_frame(27, b"")).slice(..6);
    let mut first = compression.decoder(size, 0);
    first.push(begin.clone()).unwrap();
    assert!(first.next().await.unwrap().is_none());
    let taken_bytes = compression.idle_memory_bytes();
    let mut second = compression.decoder(size, 0);
    second.push(begin).unwrap();
    let mut waiting = Box::pin(second.next());
    let one_after_the_other = async {
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no memory for two"),
            () = tokio::task::yield_now() => {}
        }
        // A small one waits its turn behind a large one, and is not forgotten.
        drop(first);
        waiting.as_mut().await
    };
    assert!(one_after_the_other.await.unwrap().is_none());
    drop(waiting);
    assert_eq!(compression.idle_memory_bytes(), taken_bytes);
    drop(second);
    assert!(compression.idle_memory_bytes() > size);
}

#[tokio::test]
async fn what_is_compressed_is_what_it_was() {
    let mut random = random();
    let compression = Compression::new();
    for size in [0, 1, 511, 64 << 10, (64 << 10) + 1, MIB] {
        let piece = Bytes::from(content(&mut random, size));
        let compressed = compression.compress(piece.clone()).await.unwrap();
        assert!(!compressed.is_empty(), "nothing is a frame too");
        assert!(size < 100 || compressed.len() < size, "{size}: {}", compressed.len());
        assert!(compression.decompress(size as u64, compressed).await.unwrap() == piece);
    }
    let mut noise = vec![0; MIB];
    random.fill_bytes(&mut noise);
    let compressed = compression.compress(noise.into()).await.unwrap();
    assert!(compressed.len() <= MIB + 100, "{}", compressed.len());
}
