//! How many of the copies a node may get: its fair share, as far as zones allow it, and a little more.
//!
//! All in whole numbers: the same on every machine.

/// A node may have so many hundredths of its fair share, rounded up. Less makes more data move, more makes loads uneven.
const BOUND_PERCENT: u128 = 105;
/// And so many at the most, rounded down: of the 82 partitions that a node of a hundred has, one is more than a hundredth.
const MAX_PERCENT: u128 = 106;

/// A claim to a part of a total, with bounds.
#[derive(Debug, Clone, Copy)]
struct Claim {
    weight: u64,
    least: u64,
    most: u64,
}

/// What a claim gets: `total * weight / weights`.
#[derive(Debug, Clone, Copy)]
struct Share {
    total: u128,
    weight: u128,
    weights: u128,
}

/// A node as far as its load is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    /// Its zone, numbered from 0.
    pub zone: usize,
    /// Its share relative to others.
    pub weight: u32,
}

/// For each node, how many partitions it may own: ceil(1.05 x its fair share), but not more than 1.06 x that.
///
/// Copies of a partition are spread over zones as evenly as the zones' nodes allow. Where zones are of unequal weight that
/// gives a light zone more than its weight says; the zone's nodes share it by their weights.
pub(super) fn bounds(nodes: &[Loaded], zone_count: usize, copies: usize, partitions: usize) -> Vec<u64> {
    let (copies, partitions) = (copies as u64, partitions as u64);
    let of_zone = |zone| nodes.iter().filter(move |node| node.zone == zone);
    let node_counts: Vec<u64> = (0..zone_count).map(|zone| of_zone(zone).count() as u64).collect();
    // So many copies of one partition come into one zone at the most; all zones that have the nodes get one fewer at least.
    let fits = |limit: &u64| node_counts.iter().map(|count| count.min(limit)).sum::<u64>() >= copies;
    let most = (1..=copies).find(fits).unwrap_or(copies);
    let zone_claims = node_counts.iter().enumerate().map(|(zone, count)| Claim {
        weight: of_zone(zone).map(|node| u64::from(node.weight)).sum(),
        least: partitions * (most - 1).min(*count),
        most: partitions * most.min(*count),
    });
    let zone_shares = divide(copies * partitions, &zone_claims.collect::<Vec<_>>());

    let mut bounds = vec![0; nodes.len()];
    for (zone, zone_share) in zone_shares.iter().enumerate() {
        let places: Vec<usize> = (0..nodes.len()).filter(|at| nodes.get(*at).is_some_and(|n| n.zone == zone)).collect();
        let weight = |at: &usize| nodes.get(*at).map_or(0, |node| u64::from(node.weight));
        let claims = places.iter().map(|at| Claim { weight: weight(at), least: 0, most: partitions });
        let shares = divide(zone_share.rounded_up(), &claims.collect::<Vec<_>>());
        for (at, share) in places.iter().zip(shares) {
            if let Some(bound) = bounds.get_mut(*at) {
                *bound = share.bound().min(partitions);
            }
        }
    }
    bounds
}

/// Divides a total by weights, within each claim's bounds: claims that would leave their bounds get the bound, the others
/// divide what is left. Whichever side (too little or too much) is violated by more in sum is settled first, as a settled
/// claim of that side never wants to come back.
fn divide(total: u64, claims: &[Claim]) -> Vec<Share> {
    let mut settled: Vec<Option<u64>> = vec![None; claims.len()];
    loop {
        let taken: u64 = settled.iter().flatten().sum();
        let open = || claims.iter().zip(&settled).filter(|(_, settled)| settled.is_none()).map(|(claim, _)| claim);
        let left = i128::from(total.saturating_sub(taken));
        let weights: i128 = open().map(|claim| i128::from(claim.weight)).sum();
        // All in units of 1/weights.
        let wanted = |claim: &Claim| left * i128::from(claim.weight);
        let least = |claim: &Claim| i128::from(claim.least) * weights;
        let most = |claim: &Claim| i128::from(claim.most) * weights;
        let lacking: i128 = open().map(|claim| (least(claim) - wanted(claim)).max(0)).sum();
        let excess: i128 = open().map(|claim| (wanted(claim) - most(claim)).max(0)).sum();
        if lacking == 0 && excess == 0 {
            let share = |claim: &Claim, settled: &Option<u64>| match settled {
                Some(amount) => Share { total: u128::from(*amount), weight: 1, weights: 1 },
                None => Share {
                    total: left.unsigned_abs(),
                    weight: u128::from(claim.weight),
                    weights: weights.unsigned_abs().max(1),
                },
            };
            return claims.iter().zip(&settled).map(|(claim, settled)| share(claim, settled)).collect();
        }
        let decisions: Vec<Option<u64>> = claims
            .iter()
            .zip(&settled)
            .map(|(claim, settled)| match settled {
                Some(amount) => Some(*amount),
                None if excess >= lacking => (wanted(claim) > most(claim)).then_some(claim.most),
                None => (wanted(claim) < least(claim)).then_some(claim.least),
            })
            .collect();
        settled = decisions;
    }
}

impl Share {
    fn rounded_up(self) -> u64 {
        u64::try_from((self.total * self.weight).div_ceil(self.weights)).unwrap_or(u64::MAX)
    }

    fn bound(self) -> u64 {
        let (share, hundred) = (self.total * self.weight, self.weights * 100);
        let bound = (share * BOUND_PERCENT).div_ceil(hundred).min(share * MAX_PERCENT / hundred);
        u64::try_from(bound).unwrap_or(u64::MAX).max(self.rounded_up())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds_of(nodes: &[(usize, u32)], copies: usize) -> Vec<u64> {
        let zone_count = nodes.iter().map(|(zone, _)| zone + 1).max().unwrap_or(0);
        let nodes: Vec<Loaded> = nodes.iter().map(|(zone, weight)| Loaded { zone: *zone, weight: *weight }).collect();
        bounds(&nodes, zone_count, copies, 4096)
    }

    #[test]
    fn equal_nodes_may_own_a_twentieth_more_than_their_share() {
        // 2 x 4096 / 3 = 2730.67, and 1.05 times that is 2867.2.
        assert_eq!(bounds_of(&[(0, 100); 3], 2), [2868; 3]);
        assert_eq!(bounds_of(&[(0, 7); 3], 2), [2868; 3]);
        assert_eq!(bounds_of(&[(0, 100)], 1), [4096]);
    }

    #[test]
    fn rounding_gives_nobody_more_than_six_hundredths_above_the_share() {
        // 2 x 4096 / 100 = 81.92; 1.05 times that is 86.02, and 87 would be 1.062 times.
        assert_eq!(bounds_of(&[(0, 100); 100], 2), [86; 100]);
        // Where a whole partition is more than that, the share itself is rounded up: there must be room for all.
        assert_eq!(bounds_of(&[(0, 100); 1000], 1), [5; 1000]);
    }

    #[test]
    fn nobody_may_own_a_partition_twice_and_others_get_the_rest() {
        // By weight alone the first would have 6144 of 8192.
        assert_eq!(bounds_of(&[(0, 300), (0, 50), (0, 50)], 2), [4096, 2151, 2151]);
        assert_eq!(bounds_of(&[(0, u32::MAX), (0, 1)], 2), [4096, 4096]);
    }

    #[test]
    fn a_light_zone_has_a_whole_copy_where_there_are_as_many_zones_as_copies() {
        // The second zone holds one copy of everything, alone; the first one's nodes share the other.
        assert_eq!(bounds_of(&[(0, 100), (0, 100), (0, 100), (1, 100)], 2), [1434, 1434, 1434, 4096]);
        // Three copies in two zones: one in each, and the third where it fits.
        assert_eq!(bounds_of(&[(0, 100), (0, 100), (0, 100), (1, 100)], 3), [2868, 2868, 2868, 4096]);
    }

    #[test]
    fn shares_add_up_to_the_total_within_their_bounds() {
        for weights in [[1, 1, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1_000_000], [0, 1, 5, 9]] {
            let claims = weights.map(|weight| Claim { weight, least: 10, most: 400 });
            let shares = divide(1000, &claims);
            let sum: f64 = shares.iter().map(|s| s.total as f64 * s.weight as f64 / s.weights as f64).sum();
            assert!((sum - 1000.0).abs() < 1e-6, "{weights:?}: {shares:?}");
            assert!(shares.iter().all(|share| (10..=400).contains(&share.rounded_up())), "{weights:?}: {shares:?}");
        }
    }
}
