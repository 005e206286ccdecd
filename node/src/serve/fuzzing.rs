//! What fuzzers call: what clients send, as any bytes. Each panics when what reads them does not keep its word.
//!
//! `fuzz/` has the targets for cargo-fuzz; tests beside the readers give each some thousand mutations.

use std::sync::LazyLock;

use bytes::Bytes;
use casbah_cluster::asset::{AssetKey, AssetKind, Qualifier};
use tokio::runtime::Runtime;

use super::compression::{Compression, Form};
use super::resource_name::ResourceName;
use crate::config::RESERVED_SEGMENTS;

/// The size of the blob that the frames are said to make takes this many bytes of the input.
const SIZE_BYTES: usize = 3;

/// Resource names: refused, or understood in one way. Says how many of both kinds of names it was.
pub fn resource_name(data: &[u8]) -> usize {
    let Ok(name) = str::from_utf8(data) else { return 0 };
    let parsers = [ResourceName::for_reading, ResourceName::for_writing];
    let understood = parsers.into_iter().filter(|parse| match parse(name) {
        Ok(parsed) => {
            assert_eq!(parse(&printed(&parsed)).as_ref(), Ok(&parsed), "{name:?} means the same when written again");
            // Nothing is read into a name that does not stand in it.
            assert!(name.contains(&parsed.digest.hash_hex()) && name.contains(&parsed.instance), "{name:?}");
            let reserved = |segment: &str| segment.is_empty() || RESERVED_SEGMENTS.contains(&segment);
            assert!(parsed.instance.is_empty() || !parsed.instance.split('/').any(reserved), "{name:?}");
            true
        }
        Err(error) => {
            let shown: String = name.chars().take(300).collect();
            assert!(error.to_string().contains(&shown), "{name:?}: {error}");
            false
        }
    });
    understood.count()
}

/// The name as this server would write it.
fn printed(name: &ResourceName) -> String {
    let mut text = String::new();
    if !name.instance.is_empty() {
        text += &format!("{}/", name.instance);
    }
    if !name.uuid.is_empty() {
        text += &format!("uploads/{}/", name.uuid);
    }
    text += match name.form {
        Form::Identity => "blobs",
        Form::Zstd => "compressed-blobs/zstd",
    };
    let digest = &name.digest;
    text + &format!("/{}/{}/{}", digest.function().name(), digest.hash_hex(), digest.size_bytes())
}

/// Names of assets, a line for the instance, one for the URI, and two for each qualifier: their order does not matter.
pub fn asset_name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let (instance, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let rest: Vec<&str> = lines.collect();
    let qualifiers = rest.chunks(2).map(|pair| Qualifier {
        name: pair.first().copied().unwrap_or_default().to_owned(),
        value: pair.last().copied().unwrap_or_default().to_owned(),
    });
    let qualifiers: Vec<Qualifier> = qualifiers.collect();
    let key = |kind, qualifiers: Vec<Qualifier>| AssetKey::new(instance, kind, uri, qualifiers);
    let turned = qualifiers.iter().rev().cloned().collect();
    let (blob, directory) = (key(AssetKind::Blob, qualifiers.clone()), key(AssetKind::Directory, qualifiers.clone()));
    assert_eq!(blob.is_ok(), key(AssetKind::Blob, turned).is_ok_and(|turned| blob.as_ref().ok() == Some(&turned)));
    assert!(blob.is_err() || blob.ok() != directory.ok(), "a blob is no directory");
}

/// zstd frames of an upload: at most as many bytes come out as the blob has; and what is compressed comes back.
pub fn zstd(data: &[u8]) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime of one thread can be made")
    });
    let Some((size, frames)) = data.split_first_chunk::<SIZE_BYTES>() else { return };
    let [low, middle, high] = *size;
    let size_bytes = u64::from_le_bytes([low, middle, high, 0, 0, 0, 0, 0]);
    RUNTIME.block_on(async {
        let compression = Compression::new();
        let idle_bytes = compression.idle_memory_bytes();
        let mut decoder = compression.decoder(size_bytes, 0);
        let mut decoded_bytes = 0;
        if decoder.push(Bytes::copy_from_slice(frames)).is_ok() {
            while let Ok(Some(piece)) = decoder.next().await {
                decoded_bytes += piece.len() as u64;
                assert!(decoded_bytes <= size_bytes, "{decoded_bytes} bytes of {size_bytes}");
            }
        }
        drop(decoder);
        assert_eq!(compression.idle_memory_bytes(), idle_bytes, "memory was not given back");
        let compressed = compression.compress(Bytes::copy_from_slice(data)).await.expect("any bytes can be compressed");
        let decompressed = compression.decompress(data.len() as u64, compressed).await;
        assert_eq!(decompressed.expect("what was compressed can be decompressed"), data);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{random, seed};
    use rand::{Rng as _, RngExt as _};

    #[test]
    fn frames_that_were_tampered_with_make_no_more_than_the_blob_has() {
        let mut random = random(seed());
        for _ in 0..1000 {
            let size = random.random_range(0..3000);
            let blob: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
            let mut data = (size as u32).to_le_bytes()[..SIZE_BYTES].to_vec();
            data.extend(zstd::bulk::compress(&blob, 3).unwrap());
            for _ in 0..random.random_range(0..3) {
                let at = random.random_range(0..data.len());
                match random.random_range(0..3) {
                    0 => data[at] ^= 1 << random.random_range(0..8),
                    1 => data.truncate(at),
                    _ => random.fill_bytes(&mut data[at..]),
                }
                if data.is_empty() {
                    break;
                }
            }
            super::zstd(&data);
        }
    }

    #[test]
    fn the_names_of_assets_may_be_any_text() {
        let mut random = random(seed());
        let pieces = ["\n", "\n\n", "a", "urn:x", "é", "\0", "resource_type", "a\nb"];
        for _ in 0..10_000 {
            let text: String = (0..random.random_range(0..12)).map(|_| pieces[random.random_range(0..8)]).collect();
            asset_name(text.as_bytes());
        }
    }
}
