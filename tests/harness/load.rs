//! Seeded blob traffic that remembers what was acknowledged, and a checker that holds the server to it.

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};

use crate::clients::bytestream::{ReadRequest, WriteRequest};
use crate::clients::reapi::Digest;
use crate::clients::{Client, digest_of, hex};

/// A [`Content`] is made in pieces of this size.
const BLOCK_BYTES: usize = 1 << 20;

/// Uploads up to this size go by BatchUpdateBlobs every other time.
const BATCHED_BYTES_MAX: u64 = 64 << 10;

/// The digests of one call of the checker.
const FIND_MISSING_COUNT: usize = 1000;

/// The bytes of a blob, made again whenever they are needed instead of being held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    seed: u64,
    size_bytes: u64,
}

/// Blobs of mixed sizes, the same ones for the same seed.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    seed: u64,
}

/// Which uploads were begun, and which of them the server has acknowledged.
#[derive(Debug, Default)]
pub struct History {
    begun: Mutex<Vec<Content>>,
    acknowledged: Mutex<Vec<Content>>,
}

/// The seed of a random test: `CASBAH_TEST_SEED`, or a new one. It is printed, and the test runner shows it on failure.
///
/// # Panics
/// When the variable is not a number.
pub fn test_seed() -> u64 {
    let seed = match std::env::var("CASBAH_TEST_SEED") {
        Ok(text) => text.parse().expect("CASBAH_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    eprintln!("CASBAH_TEST_SEED={seed}");
    seed
}

/// Bytes that no test has used before.
pub fn new_bytes(size_bytes: usize) -> Bytes {
    let mut bytes = vec![0; size_bytes];
    rand::fill(bytes.as_mut_slice());
    bytes.into()
}

// === impl Content ===

impl Content {
    /// That many bytes that no test has used before.
    pub fn new(size_bytes: u64) -> Content {
        Content { seed: rand::random(), size_bytes }
    }

    /// That many bytes, the same ones for the same seed.
    pub fn seeded(seed: u64, size_bytes: u64) -> Content {
        Content { seed, size_bytes }
    }

    /// What tells it from others: its seed and its size.
    pub fn key(&self) -> (u64, u64) {
        (self.seed, self.size_bytes)
    }

    /// How many they are.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The pieces in their order.
    pub fn blocks(self) -> impl Iterator<Item = Vec<u8>> + Send {
        let block_bytes = BLOCK_BYTES as u64;
        (0..self.size_bytes.div_ceil(block_bytes)).map(move |block| {
            let size = block_bytes.min(self.size_bytes - block * block_bytes);
            let mut bytes = vec![0; usize::try_from(size).expect("a block is small")];
            SmallRng::seed_from_u64(self.seed ^ block.wrapping_mul(0x9E37_79B9_7F4A_7C15)).fill_bytes(&mut bytes);
            bytes
        })
    }

    /// All of it at once.
    pub fn bytes(&self) -> Bytes {
        self.blocks().flatten().collect::<Vec<u8>>().into()
    }

    /// Its digest.
    ///
    /// # Panics
    /// When it has more than 2^63 bytes.
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        for block in self.blocks() {
            hasher.update(block);
        }
        let size_bytes = i64::try_from(self.size_bytes).expect("a blob is smaller than 2^63 bytes");
        Digest { hash: hex(&hasher.finalize()), size_bytes }
    }

    /// Uploads it by ByteStream without ever holding it whole.
    ///
    /// # Errors
    /// The server's status.
    pub async fn upload(self, client: &Client) -> Result<Digest, Status> {
        let digest = self.digest();
        let mut name = client.upload_name(&digest);
        let mut offset = 0;
        let requests = self.blocks().map(move |block| {
            let write_offset = offset;
            offset += i64::try_from(block.len()).unwrap_or(i64::MAX);
            WriteRequest {
                resource_name: std::mem::take(&mut name),
                write_offset,
                finish_write: offset == i64::try_from(self.size_bytes).unwrap_or(i64::MAX),
                data: block.into(),
            }
        });
        let answer = client.bytestream().write(tokio_stream::iter(requests)).await?.into_inner();
        if answer.committed_size != digest.size_bytes {
            return Err(Status::data_loss("the server has acknowledged another size"));
        }
        Ok(digest)
    }

    /// Uploads it in a batch if that is asked for and it is small, or else by ByteStream.
    ///
    /// # Errors
    /// The server's status.
    pub async fn send(self, client: &Client, batched: bool) -> Result<(), Status> {
        if !batched || self.size_bytes > BATCHED_BYTES_MAX {
            return self.upload(client).await.map(|_| ());
        }
        let bytes = self.bytes();
        let answers = client.batch_update(vec![(digest_of(&bytes), bytes)]).await?;
        let status = answers.into_iter().next().and_then(|answer| answer.status).unwrap_or_default();
        if status.code != 0 {
            return Err(Status::new(Code::from(status.code), status.message));
        }
        Ok(())
    }

    /// Downloads it by ByteStream without ever holding it whole, and compares its hash.
    ///
    /// # Errors
    /// The server's status; DATA_LOSS when other bytes came.
    pub async fn verify(self, client: &Client) -> Result<(), Status> {
        let digest = self.digest();
        let request = ReadRequest { resource_name: client.blob_name(&digest), ..Default::default() };
        let mut stream = client.bytestream().read(request).await?.into_inner();
        let mut hasher = Sha256::new();
        let mut size_bytes: u64 = 0;
        while let Some(message) = stream.message().await? {
            hasher.update(&message.data);
            size_bytes += message.data.len() as u64;
        }
        if size_bytes != self.size_bytes || hex(&hasher.finalize()) != digest.hash {
            return Err(Status::data_loss(format!("{size_bytes} other bytes came for {}", digest.hash)));
        }
        Ok(())
    }
}

// === impl Load ===

impl Load {
    /// The traffic of this seed.
    pub fn new(seed: u64) -> Load {
        Load { seed }
    }

    /// The blob in this place: mostly a few KiB, some MiB now and then, as builds make them.
    pub fn blob(&self, place: u64) -> Content {
        let mut random = SmallRng::seed_from_u64(self.seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let size_bytes = match random.random_range(0..100_u32) {
            0..30 => random.random_range(1..1 << 10),
            30..70 => random.random_range(1 << 10..64 << 10),
            70..95 => random.random_range(64 << 10..1 << 20),
            _ => random.random_range(1 << 20..8 << 20),
        };
        Content { seed: random.random(), size_bytes }
    }

    /// Uploads these blobs, that many at once over the connections in turn, and goes on when one fails.
    pub async fn run(&self, clients: &[Client], places: std::ops::Range<u64>, at_once: usize, history: &History) {
        let upload = |place: u64| async move {
            let turn = usize::try_from(place).unwrap_or_default().checked_rem(clients.len()).unwrap_or_default();
            let Some(client) = clients.get(turn) else { return };
            let content = self.blob(place);
            history.begin(content);
            if content.send(client, place.is_multiple_of(2)).await.is_ok() {
                history.acknowledge(content);
            }
        };
        stream::iter(places).for_each_concurrent(at_once, upload).await;
    }
}

// === impl History ===

impl History {
    fn begin(&self, content: Content) {
        self.begun.lock().expect("nobody panics with the lock").push(content);
    }

    fn acknowledge(&self, content: Content) {
        self.acknowledged.lock().expect("nobody panics with the lock").push(content);
    }

    /// How many uploads were begun.
    pub fn begun_count(&self) -> usize {
        self.begun.lock().expect("nobody panics with the lock").len()
    }

    /// How many were acknowledged.
    pub fn acknowledged_count(&self) -> usize {
        self.acknowledged.lock().expect("nobody panics with the lock").len()
    }

    /// G1, G2 and G9: every acknowledged blob is found and comes back byte for byte; every other one is a plain miss or
    /// comes back byte for byte; and what FindMissingBlobs calls present can be read.
    ///
    /// # Errors
    /// What is not so.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let acknowledged = self.acknowledged.lock().expect("nobody panics with the lock").clone();
        let begun = self.begun.lock().expect("nobody panics with the lock").clone();
        for contents in acknowledged.chunks(FIND_MISSING_COUNT) {
            let digests: Vec<Digest> = contents.iter().map(Content::digest).collect();
            let missing = client.find_missing(&digests).await?;
            ensure!(missing.is_empty(), "{} acknowledged blobs are missing: {missing:?}", missing.len());
        }
        for content in &acknowledged {
            content.verify(client).await.with_context(|| format!("acknowledged: {:?}", content.digest()))?;
        }
        for content in begun.iter().filter(|content| !acknowledged.contains(content)) {
            let present = client.has(&content.digest()).await?;
            match content.verify(client).await {
                Ok(()) => {}
                Err(status) if status.code() == Code::NotFound && !present => {}
                Err(status) => anyhow::bail!("never acknowledged, {present}: {:?}: {status:?}", content.digest()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_traffic() {
        let blobs = |seed| (0..50).map(|place| Load::new(seed).blob(place)).collect::<Vec<_>>();
        assert_eq!(blobs(7), blobs(7));
        assert_ne!(blobs(7), blobs(8));
    }

    #[test]
    fn a_content_is_made_again_byte_for_byte() {
        let content = Content::new(2 * BLOCK_BYTES as u64 + 5);
        assert_eq!(content.bytes(), content.bytes());
        assert_eq!(content.bytes().len() as u64, content.size_bytes());
        assert_eq!(content.digest(), digest_of(&content.bytes()));
    }
}
