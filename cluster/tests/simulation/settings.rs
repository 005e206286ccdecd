//! What a seed makes of a run, and the rules that can be broken on purpose.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// For how long a member is gone before it is given up.
pub const LOST_AFTER_MS: u64 = 10 * 60_000;
/// For how long a copy stays that was used.
pub const FLOOR_MS: u64 = 20 * 60_000;
/// What clocks differ by at the most, either way.
pub const SKEW_MS: u64 = 20_000;
/// What a power failure may take: longer than in earnest, so that it happens.
pub const SYNC_INTERVAL_MS: u64 = 5_000;
/// Deadline of a call between nodes.
pub const CALL_MS: u64 = 4_000;
/// For how long a node waits to hear of a layout that another one knows.
pub const CATCH_UP_MS: u64 = 1_000;
/// For how long a write waits for those that say nothing.
pub const LAGGARD_MS: u64 = 2_000;

/// How a run is.
#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    /// At first.
    pub nodes: usize,
    pub copies: u8,
    pub write_quorum: u8,
    pub zones: usize,
    /// Disks are too small for all there is.
    pub is_tight: bool,
    /// Blobs that a disk takes.
    pub capacity: usize,
    pub blobs: u32,
    /// For how long clients and faults go on.
    pub length_ms: u64,
    /// Between what clients do, on average.
    pub pause_ms: u64,
    /// Between faults, on average.
    pub calm_ms: u64,
    /// Of a hundred messages.
    pub lost_percent: u32,
    pub doubled_percent: u32,
    pub slow_percent: u32,
    /// Rules that are broken.
    pub broken: Option<Rule>,
    /// Whether all is written down that happens.
    pub traced: bool,
}

/// A rule that the simulation can break, to show that it would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Reads ask the owners by all layouts in force.
    OldOwnersAreAsked,
    /// A write is acknowledged by W nodes.
    AcknowledgedByQuorum,
    /// One of the W is an owner.
    AnOwnerAmongThem,
    /// A miss needs fewer than W silent nodes, or all owners' word.
    SilenceIsNoMiss,
    /// An answer by a newer layout is not counted before the view has it.
    EpochsAreHeard,
    /// A layout is retired when all members have synced to the next.
    RetiredWhenAllHaveSynced,
    /// A call for another node than this one is refused.
    CallsAreForOneNode,
    /// A reader of an action's result asks until the newest must have been told.
    NewestIsTold,
    /// A version is later than those that its maker has seen.
    VersionsRise,
    /// What was used within the floor stays.
    FloorHolds,
    /// A node has pulled everything before it says that it is synced.
    SyncedIsFilled,
    /// Fallbacks are sources too.
    FallbacksAreAsked,
    /// What a node does by an older layout ends before it says that it is synced to the newer.
    OwnOperationsEnd,
    /// A node that is called by a newer layout than its own learns of that first.
    CalleesCatchUp,
    /// Surplus is dropped only when all owners have it.
    SurplusIsKept,
    /// A copy travels with the time of its use.
    UseTravels,
    /// What is promised to stay is moved to where it belongs, however full that is.
    PromisedIsMoved,
    /// A search that says that there is nothing is no older than copies are left where they were.
    MissesAreFresh,
    /// Copies are left where they were for a while after they have come to where they belong.
    SurplusStaysAWhile,
    /// A node whose power failed does not say what it has not, before it has asked the others what it should have.
    LossIsDoubted,
    /// A node that has a damaged copy does not say that it has none.
    DamageIsNoMiss,
    /// An empty volume is a new node.
    EmptyIsNew,
    /// A node that may have been given up denies and acknowledges nothing.
    DoubtIsMinded,
}

impl Rule {
    /// Those that some hundred runs suffice for. The others can be broken too, and come to light more seldom.
    pub const NOTICED: [Rule; 13] = [
        Rule::OldOwnersAreAsked,
        Rule::AcknowledgedByQuorum,
        Rule::AnOwnerAmongThem,
        Rule::SilenceIsNoMiss,
        Rule::RetiredWhenAllHaveSynced,
        Rule::NewestIsTold,
        Rule::FloorHolds,
        Rule::SyncedIsFilled,
        Rule::SurplusIsKept,
        Rule::UseTravels,
        Rule::PromisedIsMoved,
        Rule::DamageIsNoMiss,
        Rule::EmptyIsNew,
    ];
}

impl Settings {
    pub fn of(seed: u64) -> Settings {
        // Not the world's own numbers: what a run is like does not change with what happens in it.
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5e77_1265);
        let nodes = random.random_range(3..=6);
        let (copies, write_quorum) = match random.random_range(0..10) {
            0..4 => (2, 2),
            4..7 => (3, 2),
            7 => (3, 3),
            8 => (2, 1),
            _ => (1, 1),
        };
        let is_tight = random.random_bool(0.25);
        Settings {
            seed,
            nodes,
            copies,
            write_quorum,
            zones: if random.random_bool(0.3) { random.random_range(2..=3) } else { 1 },
            is_tight,
            capacity: if is_tight { random.random_range(8..24) } else { 10_000 },
            blobs: random.random_range(10..40),
            length_ms: random.random_range(15..50) * 60_000,
            pause_ms: random.random_range(4_000..15_000),
            calm_ms: random.random_range(40_000..240_000),
            lost_percent: if random.random_bool(0.4) { random.random_range(1..10) } else { 0 },
            doubled_percent: if random.random_bool(0.4) { random.random_range(1..10) } else { 0 },
            slow_percent: if random.random_bool(0.4) { random.random_range(1..20) } else { 0 },
            broken: None,
            traced: false,
        }
    }
}
