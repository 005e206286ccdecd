//! What a node holds of a partition, in short.

/// Blobs and results of actions of a partition on one node: two nodes that hold the same have the same summary, and hardly any
/// others have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many there are.
    pub count: u64,
    /// Made of their names, and of the versions of those that have one.
    pub mark: u128,
}

// === impl Summary ===

impl Summary {
    /// Of what has these exclusive-ors of names, one for each kind of things, and so many of each.
    pub fn of(kinds: &[(u64, [u8; 32])]) -> Summary {
        let mut summary = Summary::default();
        for (count, xor) in kinds {
            let (halves, _) = xor.as_chunks::<16>();
            let folded = halves.iter().fold(0, |mark: u128, half| mark.rotate_left(1) ^ u128::from_be_bytes(*half));
            summary.count = summary.count.saturating_add(*count);
            // So that no two kinds have the same part in it, and the count has one.
            summary.mark = summary.mark.rotate_left(43) ^ folded ^ u128::from(*count).wrapping_mul(SPREAD);
        }
        summary
    }
}

/// An odd number whose bits are without order (the golden ratio's): spreads a count over all bits.
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_differs_has_another_mark() {
        let mut one = [0; 32];
        let mut marks = BTreeSet::from([Summary::of(&[(0, one), (0, one)]).mark]);
        for at in 0..32 {
            one[at] = 1;
            assert!(marks.insert(Summary::of(&[(7, one), (0, [0; 32])]).mark), "a name more, at {at}");
            assert!(marks.insert(Summary::of(&[(0, [0; 32]), (7, one)]).mark), "of the other kind, at {at}");
            assert!(marks.insert(Summary::of(&[(9, one), (0, [0; 32])]).mark), "another count, at {at}");
            one[at] = 0;
        }
    }

    #[test]
    fn the_same_has_the_same() {
        let kinds = [(3, [5; 32]), (4, [6; 32])];
        assert_eq!(Summary::of(&kinds), Summary::of(&kinds));
        assert_eq!(Summary::of(&kinds).count, 7);
        assert_eq!(Summary::of(&[]), Summary::default());
        assert_eq!(Summary::of(&[(0, [0; 32]), (0, [0; 32])]), Summary::default());
    }
}
