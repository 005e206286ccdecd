//! Where a blob is cut into chunks: FastCDC of 2020, with the parameters that Capabilities advertises.
//!
//! A cut depends on the bytes around it alone, so that two blobs with a part in common have chunks in common. Clients cut
//! by the same parameters and find the same chunks; a change of any of these would leave all that was shared unshared.

use fastcdc::v2020::{FastCDC, Normalization};

/// The size that most chunks are near. What the API advises: half a megabyte keeps the list of a blob's chunks short,
/// and a chunk worth a file of its own.
pub const AVERAGE_CHUNK_BYTES: usize = 512 << 10;

/// No chunk is smaller, but for a blob's last one. The API has it follow from the average.
pub const MIN_CHUNK_BYTES: usize = AVERAGE_CHUNK_BYTES / 4;

/// No chunk is larger, and no smaller blob is cut at all. The API has it follow from the average.
pub const MAX_CHUNK_BYTES: usize = AVERAGE_CHUNK_BYTES * 4;

/// Changes all cuts. What the API advises, so that other clients and caches have the same.
pub const SEED: u32 = 0;

/// The length of the first chunk of these bytes, which are all the rest of a blob, or at least [`MAX_CHUNK_BYTES`] of it.
pub fn first_chunk_bytes(rest: &[u8]) -> usize {
    // The API has the normalization be of level 2.
    let level = Normalization::Level2;
    let (min, average, max) = (MIN_CHUNK_BYTES, AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES);
    FastCDC::with_level_and_seed(rest, min, average, max, level, u64::from(SEED)).cut(0, rest.len()).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastcdc::v2020::{get_gear_with_seed, select_masks};
    use md5::Digest as _;

    /// Bytes that look random and are the same everywhere: a linear congruential generator's upper ones.
    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn cuts(blob: &[u8]) -> Vec<usize> {
        let mut cuts = Vec::new();
        let mut rest = blob;
        while !rest.is_empty() {
            let window = &rest[..rest.len().min(MAX_CHUNK_BYTES)];
            cuts.push(first_chunk_bytes(window));
            rest = &rest[cuts[cuts.len() - 1]..];
        }
        cuts
    }

    #[test]
    fn the_gear_table_is_the_one_of_the_api_s_test_vectors() {
        // Of 64 times the byte, as the paper's authors have it; the API's comment leaves the 64 out, its vectors do not.
        let (gear, _) = get_gear_with_seed(u64::from(SEED));
        for byte in 0..=255_u8 {
            let [a, b, c, d, e, f, g, h, ..] = <[u8; 16]>::from(md5::Md5::digest([byte; 64]));
            assert_eq!(gear[usize::from(byte)], u64::from_be_bytes([a, b, c, d, e, f, g, h]), "{byte}");
        }
    }

    /// The algorithm as the paper has it, a byte at a time. An odd last byte is never a cut of its own.
    fn first_chunk_by_the_paper(rest: &[u8]) -> usize {
        let (gear, _) = get_gear_with_seed(u64::from(SEED));
        let (strict, relaxed) = select_masks(AVERAGE_CHUNK_BYTES, Normalization::Level2);
        let end = rest.len().min(MAX_CHUNK_BYTES);
        let mut hash = 0_u64;
        for at in MIN_CHUNK_BYTES..end & !1 {
            hash = (hash << 1).wrapping_add(gear[usize::from(rest[at])]);
            let mask = if at < AVERAGE_CHUNK_BYTES { strict } else { relaxed };
            if hash & mask == 0 {
                return at;
            }
        }
        end
    }

    #[test]
    fn cuts_are_those_of_the_paper() {
        for (seed, length) in [(1, 9 << 20), (2, (5 << 20) + 1), (3, MAX_CHUNK_BYTES), (4, MIN_CHUNK_BYTES + 3), (5, 1)]
        {
            let blob = bytes(seed, length);
            let mut rest = blob.as_slice();
            for cut in cuts(&blob) {
                assert_eq!(cut, first_chunk_by_the_paper(rest), "seed {seed}");
                rest = &rest[cut..];
            }
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn chunks_keep_to_their_bounds_and_come_near_the_average() {
        let blob = bytes(7, 64 << 20);
        let cuts = cuts(&blob);
        let (last, others) = cuts.split_last().unwrap();
        assert!(others.iter().all(|cut| (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(cut)) && *last <= MAX_CHUNK_BYTES);
        assert!((AVERAGE_CHUNK_BYTES / 2..AVERAGE_CHUNK_BYTES * 2).contains(&(blob.len() / cuts.len())), "{cuts:?}");
        // Bytes without any pattern are cut at the maximum.
        assert_eq!(first_chunk_bytes(&vec![0; MAX_CHUNK_BYTES]), MAX_CHUNK_BYTES);
    }

    #[test]
    fn cuts_stay_where_they_are_from_version_to_version() {
        // Golden: clients have chunks that were cut here. If this fails, they lose them.
        let found = cuts(&bytes(42, 4 << 20));
        assert_eq!(found.iter().sum::<usize>(), 4 << 20);
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [usize; 8] = [189_971, 576_062, 525_051, 667_114, 614_730, 700_325, 536_234, 384_817];
}
