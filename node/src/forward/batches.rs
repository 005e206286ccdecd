//! Lists cut into parts that fit a message each.

use crate::config::limits;

/// What fits a message.
pub(super) struct BatchLimits {
    bytes: u64,
    count: usize,
}

// === impl BatchLimits ===

impl BatchLimits {
    /// Of blobs.
    pub(super) const OF_BLOBS: BatchLimits =
        BatchLimits { bytes: limits::PEER_BATCH_BYTES, count: limits::PEER_DIGESTS_MAX };
}

/// Parts of a list that fit a message each, in order. An item that is too large alone is alone.
pub(super) fn batches<'a, T>(mut items: &'a [T], size_bytes: impl Fn(&T) -> u64, limits: &BatchLimits) -> Vec<&'a [T]> {
    let mut parts = Vec::new();
    while !items.is_empty() {
        let mut bytes: u64 = 0;
        let fitting = items.iter().take(limits.count).take_while(|item| {
            bytes = bytes.saturating_add(size_bytes(item));
            bytes <= limits.bytes
        });
        let (part, rest) = items.split_at(fitting.count().max(1));
        parts.push(part);
        items = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: BatchLimits = BatchLimits { bytes: 10, count: 4 };

    fn cut(sizes: &[u64]) -> Vec<&[u64]> {
        batches(sizes, |size| *size, &SMALL)
    }

    #[test]
    fn every_part_fits_and_nothing_is_lost() {
        assert_eq!(cut(&[]), Vec::<&[u64]>::new());
        assert_eq!(cut(&[10]), [&[10]]);
        assert_eq!(cut(&[5, 5, 1]), [&[5, 5][..], &[1]]);
        assert_eq!(cut(&[9, 2, 9]), [[9], [2], [9]]);
        assert_eq!(cut(&[0; 9]), [&[0; 4][..], &[0; 4], &[0]]);
    }

    #[test]
    fn what_is_too_large_goes_alone() {
        assert_eq!(cut(&[1, 11, 1, u64::MAX, u64::MAX]), [&[1][..], &[11], &[1], &[u64::MAX], &[u64::MAX]]);
    }
}
