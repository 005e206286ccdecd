//! Positions on the ring: a hash that is the same everywhere and forever.
//!
//! Neither std's hashers nor its `Hash` of strings, tuples and `usize` promise that. What is hashed here is written as two
//! numbers, and the mixing is spelled out.

use std::hash::{BuildHasher, Hash, Hasher};

use crate::membership::NodeId;

/// A point of the ring that stands for a node. A node has many, so that its share of the ring is near its weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct VirtualNode {
    /// The node that it stands for.
    pub node: NodeId,
    /// Which of the node's virtual nodes it is.
    pub index: u32,
    /// The node's place among the layout's nodes. Not hashed: it shifts when others come and go.
    pub place: u32,
}

/// Makes the ring's hashers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens;

/// A hash of a few numbers: each is folded in and mixed by the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub(super) struct TokenHasher(u64);

/// SplitMix64's increment: the golden ratio's fraction, an odd number without a pattern.
const START: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hash for VirtualNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.node.0);
        state.write_u64(u64::from(self.index));
    }
}

impl BuildHasher for Tokens {
    type Hasher = TokenHasher;

    fn build_hasher(&self) -> TokenHasher {
        TokenHasher(START)
    }
}

impl Hasher for TokenHasher {
    fn write_u64(&mut self, number: u64) {
        let folded = (self.0 ^ number).wrapping_add(START);
        let mixed = (folded ^ (folded >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = mixed ^ (mixed >> 31);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(node: u64, index: u32) -> u64 {
        Tokens.hash_one(VirtualNode { node: NodeId(node), index, place: 0 })
    }

    #[test]
    fn tokens_are_those_that_they_have_always_been() {
        let tokens = [token(0, 0), token(1, 0), token(1, 1), token(u64::MAX, u32::MAX)];
        assert_eq!(tokens.map(|token| format!("{token:016x}")), GOLDEN);
    }

    const GOLDEN: [&str; 4] = ["46b73e79f0c37c00", "7f46a57c92dbee5f", "dcdbc20a2319b9cb", "716216a406bb6ecf"];

    #[test]
    fn a_node_s_place_among_others_does_not_move_its_tokens() {
        let here = VirtualNode { node: NodeId(7), index: 3, place: 0 };
        assert_eq!(Tokens.hash_one(here), Tokens.hash_one(VirtualNode { place: 9, ..here }));
    }

    #[test]
    fn tokens_are_spread_over_the_whole_ring() {
        let mut slices = [0_u32; 16];
        for node in 1..=100 {
            for index in 0..512 {
                slices[(token(node, index) >> 60) as usize] += 1;
            }
        }
        // 3200 each are expected; the standard deviation is 55.
        assert!(slices.iter().all(|count| (2920..3480).contains(count)), "{slices:?}");
    }
}
