//! How results of actions are named and kept in the database.

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::inventory::SUM_BYTES;
use casbah_cluster::membership::NodeId;
use casbah_cluster::replication::Version;
use casbah_cluster::ring::partition_of;

/// The version of keys, and so of records. 1: results without versions; 2: not in the order of partitions. Those are never found
/// and go when they are the least recently used.
const KEYS: u8 = 3;

/// What stands before each result.
pub(super) const VERSION_BYTES: usize = 20;

/// Version, partition, function, hash, size, and last the instance name: every part but the last has a known length. Keys are
/// in the order of partitions, functions, hashes, sizes and names.
pub(super) fn key(instance: &str, action: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(12 + action.hash().len() + instance.len());
    key.extend_from_slice(&first_key(partition_of(action)));
    key.push(action.function().number());
    key.extend_from_slice(action.hash());
    key.extend_from_slice(&action.size_bytes().to_be_bytes());
    key.extend_from_slice(instance.as_bytes());
    key
}

/// What the keys of a partition, and of later ones, are not below. Of one past the last: what all keys are below.
pub(super) fn first_key(partition: usize) -> [u8; 3] {
    let [.., high, low] = partition.to_be_bytes();
    [KEYS, high, low]
}

/// The partition, instance name and action of a key; `None` of one that was not made by [`key`].
pub(super) fn parse_key(key: &[u8]) -> Option<(usize, &str, Digest)> {
    let ([KEYS, high, low, function], rest) = key.split_first_chunk()? else { return None };
    let function = DigestFunction::from_number(*function)?;
    let (hash, rest) = rest.split_at_checked(function.hash_len())?;
    let (size_bytes, instance) = rest.split_first_chunk()?;
    let action = Digest::from_raw(function, hash, u64::from_be_bytes(*size_bytes))?;
    let partition = usize::from(u16::from_be_bytes([*high, *low]));
    (partition == partition_of(&action)).then_some((partition, std::str::from_utf8(instance).ok()?, action))
}

/// What is summed up of a result in its partition's inventory: the SHA-256 of its key, from the function on, and its version.
pub(super) fn sum(key: &[u8], head: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = DigestFunction::Sha256.hasher();
    hasher.update(key.get(3..).unwrap_or_default());
    hasher.update(head);
    hasher.finish().hash().try_into().unwrap_or([0; SUM_BYTES])
}

/// The version, so that versions are ordered as their bytes are.
pub(super) fn encode_version(version: Version) -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    let fields = version.time_ms.to_be_bytes().into_iter();
    let fields = fields.chain(version.count.to_be_bytes()).chain(version.node.0.to_be_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

/// The version that a record begins with; `None` when it is too short for one.
pub(super) fn decode_version(record: &[u8]) -> Option<Version> {
    let (time_ms, rest) = record.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let (node, _) = rest.split_first_chunk()?;
    let node = NodeId(u64::from_be_bytes(*node));
    Some(Version { time_ms: u64::from_be_bytes(*time_ms), count: u32::from_be_bytes(*count), node })
}

/// A record: the version and the result.
pub(super) fn encode(version: Version, result: &[u8]) -> Vec<u8> {
    [&encode_version(version), result].concat()
}

/// The version and the result of a record.
pub(super) fn decode(record: Vec<u8>) -> Option<(Version, Bytes)> {
    Some((decode_version(&record)?, Bytes::from(record).slice(VERSION_BYTES..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written_and_nothing_else_is() {
        for function in DigestFunction::ALL {
            for instance in ["", "main", "a/b"] {
                let action = Digest::of(*function, instance.as_bytes());
                let key = key(instance, &action);
                assert_eq!(parse_key(&key), Some((partition_of(&action), instance, action)));
                let short = key.len() - instance.len();
                assert!((0..short).all(|length| parse_key(&key[..length]).is_none()));
                for wrong in [0, 1, 2, 3] {
                    let mut other = key.clone();
                    other[wrong] ^= 0x80;
                    assert_eq!(parse_key(&other), None, "byte {wrong}");
                }
            }
        }
    }

    #[test]
    fn keys_are_ordered_by_partition() {
        let action = |text: &str| Digest::of(DigestFunction::Sha256, text.as_bytes());
        for text in ["a", "b", "c", "d"] {
            let (key, partition) = (key("main", &action(text)), partition_of(&action(text)));
            assert!(key.as_slice() >= first_key(partition).as_slice());
            assert!(key.as_slice() < first_key(partition + 1).as_slice());
        }
    }
}
