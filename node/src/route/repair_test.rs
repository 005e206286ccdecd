//! Copies get to where they belong: after an owner was away, after a node has lost what it had, and when nodes come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use casbah_cluster::digest::Digest;
use casbah_cluster::membership::{ClusterState, Epoch, NodeId};
use casbah_cluster::replication::Version;
use casbah_cluster::ring::partition_of;
use casbah_cluster::view::View;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::repair::{Repair, RepairParts, Tell, TellError};
use crate::route::testing::{Behaviour, TestCluster};
use crate::store::testing::Bench;

/// What a test waits for comes within this time, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

const RATE_BYTES: u64 = 1 << 30;

/// A cluster whose nodes repair, and what they agree on.
struct Repaired {
    cluster: Arc<TestCluster>,
    state: Arc<Mutex<ClusterState>>,
    /// What each node has told, in order.
    told: Arc<Mutex<Vec<(NodeId, Epoch)>>>,
    repairs: BTreeMap<NodeId, Repair>,
    tasks: BTreeMap<NodeId, JoinSet<()>>,
}

impl Repaired {
    fn of(cluster: TestCluster, layouts: &[(u64, &[u64])]) -> Repaired {
        let state = cluster.with_layouts(layouts);
        let repaired = Repaired {
            cluster: Arc::new(cluster),
            state: Arc::new(Mutex::new(state)),
            told: Arc::default(),
            repairs: BTreeMap::new(),
            tasks: BTreeMap::new(),
        };
        adopt(&repaired.cluster, &repaired.state());
        repaired
    }

    async fn new(count: u64, layouts: &[(u64, &[u64])]) -> Repaired {
        Repaired::of(TestCluster::new(count, 2, 2).await, layouts)
    }

    fn state(&self) -> ClusterState {
        self.state.lock().unwrap().clone()
    }

    fn view(&self) -> View {
        View::new(NodeId(1), self.state())
    }

    fn owners(&self, digest: &Digest) -> Vec<NodeId> {
        self.view().owners(partition_of(digest)).to_vec()
    }

    /// Goes over to these layouts, on all nodes.
    fn change(&self, layouts: &[(u64, &[u64])]) {
        let mut state = self.state.lock().unwrap();
        state.layouts = self.cluster.with_layouts(layouts).layouts;
        adopt(&self.cluster, &state);
    }

    fn start_all(&mut self, rate_bytes: u64) {
        (1..=self.cluster.nodes.len() as u64).for_each(|id| self.start(NodeId(id), rate_bytes));
    }

    fn start(&mut self, id: NodeId, rate_bytes: u64) {
        let node = self.cluster.node(id);
        let (cluster, state, told) = (Arc::clone(&self.cluster), Arc::clone(&self.state), Arc::clone(&self.told));
        let tell: Tell = Arc::new(move |node, epoch| {
            let (cluster, state, told) = (Arc::clone(&cluster), Arc::clone(&state), Arc::clone(&told));
            Box::pin(async move {
                told.lock().unwrap().push((node, epoch));
                let mut state = state.lock().unwrap();
                state.synced(node, epoch).map_err(|refusal| TellError(Box::new(refusal)))?;
                adopt(&cluster, &state);
                Ok(())
            })
        });
        let (_never_changes, peer_changes) = watch::channel(0);
        let repair = Repair::new(RepairParts {
            nodes: node.nodes.clone(),
            index: node.index.clone(),
            rate_bytes,
            interval: Duration::from_secs(3600),
            retention_floor: node.bench.options.retention_floor,
            peer_changes,
            tell,
        });
        let mut task = JoinSet::new();
        task.spawn(repair.clone().run());
        self.repairs.insert(id, repair);
        self.tasks.insert(id, task);
    }

    /// As a kill does.
    async fn stop(&mut self, id: NodeId) {
        self.repairs.remove(&id);
        if let Some(mut task) = self.tasks.remove(&id) {
            task.shutdown().await;
        }
    }

    async fn upload(&self, through: u64, count: u64) -> Vec<Digest> {
        let mut digests = Vec::new();
        for seed in 0..count {
            let (digest, bytes) = TestCluster::blob(seed, 2000);
            self.cluster.node(NodeId(through)).upload(&digest, &bytes, 1 << 20).await.unwrap();
            digests.push(digest);
        }
        self.cluster.settle().await;
        digests
    }

    fn has(&self, node: NodeId, digest: &Digest) -> bool {
        self.cluster.node(node).store.contains(digest)
    }

    fn all_owners_have(&self, digests: &[Digest]) -> bool {
        digests.iter().all(|digest| self.owners(digest).iter().all(|owner| self.has(*owner, digest)))
    }

    /// Minutes pass until none but owners have these.
    async fn drop_what_is_left(&self, digests: &[Digest]) {
        let begun = std::time::Instant::now();
        while digests.iter().any(|digest| self.cluster.holders(digest).len() > self.owners(digest).len()) {
            assert!(begun.elapsed() < PATIENCE, "copies are still where they were");
            // why: the nodes do what there is to do before more time passes
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.repairs.values().for_each(|repair| repair.pass(Duration::from_secs(5)));
        }
    }

    /// Whether a node has compared what it has with the others, and has all that it takes.
    fn has_all(&self, node: NodeId) -> bool {
        let progress = self.repairs[&node].progress();
        progress.synced_epoch.is_some() && progress.completed_seconds_ago.is_some()
    }

    fn told(&self) -> Vec<(NodeId, Epoch)> {
        self.told.lock().unwrap().clone()
    }

    async fn until(&self, what: &str, mut is_so: impl FnMut(&Repaired) -> bool) {
        let begun = std::time::Instant::now();
        while !is_so(self) {
            let progress: Vec<_> = self.repairs.iter().map(|(id, repair)| (*id, repair.progress())).collect();
            assert!(begun.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}; {progress:#?}");
            // why: it is looked at again and again until it is so
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn adopt(cluster: &TestCluster, state: &ClusterState) {
    (1..=cluster.nodes.len() as u64).for_each(|id| cluster.adopt(NodeId(id), state));
}

#[tokio::test]
async fn a_copy_for_an_owner_that_was_away_is_handed_over_and_dropped() {
    let mut nodes = Repaired::new(4, &[(1, &[1, 2, 3, 4])]).await;
    nodes.cluster.set(NodeId(2), Behaviour::Away);
    let digests = nodes.upload(1, 40).await;
    let missed: Vec<Digest> = digests.into_iter().filter(|digest| nodes.owners(digest).contains(&NodeId(2))).collect();
    let stand_ins = |nodes: &Repaired, digest: &Digest| {
        let owners = nodes.owners(digest);
        nodes.cluster.holders(digest).into_iter().filter(|node| !owners.contains(node)).count()
    };
    assert!(!missed.is_empty() && missed.iter().all(|digest| stand_ins(&nodes, digest) == 1));
    nodes.start_all(RATE_BYTES);
    nodes.cluster.set(NodeId(2), Behaviour::Well);
    nodes.until("the owner has what it missed", |nodes| nodes.all_owners_have(&missed)).await;
    assert!(missed.iter().all(|digest| stand_ins(&nodes, digest) == 1), "whoever looks for it now still finds it here");
    let held: u64 = missed.len() as u64;
    nodes
        .until("stand-ins know what they hold", |nodes| {
            nodes.repairs.values().map(|repair| repair.progress().held).sum::<u64>() >= held
        })
        .await;
    nodes.drop_what_is_left(&missed).await;
    assert!(nodes.all_owners_have(&missed));
}

#[tokio::test]
async fn a_node_that_has_lost_everything_is_filled_again_and_by_the_times_of_use() {
    let mut nodes = Repaired::new(3, &[(1, &[1, 2, 3])]).await;
    nodes.cluster.nodes.iter().for_each(|node| node.bench.clock.advance(7));
    let digests = nodes.upload(1, 60).await;
    let (large, bytes) = TestCluster::blob(1000, 6 << 20);
    nodes.cluster.node(NodeId(1)).upload(&large, &bytes, 1 << 20).await.unwrap();
    nodes.cluster.settle().await;
    nodes.cluster.nodes.iter().for_each(|node| node.bench.clock.advance(1000));
    let mut all = digests.clone();
    all.push(large);
    let lost: Vec<Digest> = all.iter().filter(|digest| nodes.has(NodeId(3), digest)).copied().collect();
    assert_eq!(nodes.cluster.node(NodeId(3)).store.remove(&all, u64::MAX), lost.len());
    nodes.start(NodeId(3), RATE_BYTES);
    nodes.until("it has all of it again", |nodes| nodes.all_owners_have(&all)).await;
    for node in &nodes.cluster.nodes {
        for partition in all.iter().map(partition_of) {
            let page = node.store.list(partition, None, 100).await.unwrap();
            assert!(page.entries.iter().all(|blob| blob.used_ms == 1_000_007_000), "to be copied is no use: {page:?}");
        }
    }
    let progress = nodes.repairs[&NodeId(3)].progress();
    assert_eq!(progress.copies_pulled, lost.len() as u64);
    assert_eq!((progress.partitions_to_pull, progress.copies_to_pull, progress.held), (0, 0, 0));
}

#[tokio::test]
async fn a_node_that_joins_is_filled_and_then_the_older_layout_is_retired() {
    let mut nodes = Repaired::new(4, &[(1, &[1, 2, 3])]).await;
    let digests = nodes.upload(1, 60).await;
    for (at, action) in digests.iter().enumerate() {
        let result = Bytes::from(format!("result {at}"));
        nodes.cluster.node(NodeId(2)).actions.update("main", action, result).await.unwrap();
    }
    nodes.cluster.settle().await;
    nodes.change(&[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4])]);
    nodes.start_all(RATE_BYTES);
    nodes.until("one layout is left", |nodes| nodes.state().layouts.len() == 1).await;
    assert_eq!(nodes.state().layouts[0].epoch, Epoch(2));
    assert!(nodes.all_owners_have(&digests));
    let given = digests.iter().filter(|digest| nodes.owners(digest).contains(&NodeId(4)));
    assert!(given.count() > 10);
    for (at, action) in digests.iter().enumerate() {
        for owner in nodes.owners(action) {
            let found = nodes.cluster.node(owner).index.get("main", action).unwrap();
            assert_eq!(found.unwrap().1, format!("result {at}"));
        }
    }
    let mut told = nodes.told();
    told.sort();
    told.dedup();
    assert_eq!(told, [1, 2, 3, 4].map(|id| (NodeId(id), Epoch(2))));
    // What has been left behind goes, blobs and results.
    nodes
        .until("what was left behind is known", |nodes| {
            nodes.repairs.values().map(|repair| repair.progress().held).sum::<u64>() > 0
        })
        .await;
    nodes.drop_what_is_left(&digests).await;
    assert!(nodes.all_owners_have(&digests));
}

#[tokio::test]
async fn a_node_that_dies_while_it_is_filled_goes_on_when_it_is_back() {
    let mut nodes = Repaired::new(4, &[(1, &[1, 2, 3])]).await;
    let digests = nodes.upload(1, 60).await;
    nodes.change(&[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4])]);
    [1, 2, 3].into_iter().for_each(|id| nodes.start(NodeId(id), RATE_BYTES));
    // A few blobs a second.
    nodes.start(NodeId(4), 16 << 10);
    nodes.until("it has begun", |nodes| nodes.repairs[&NodeId(4)].progress().copies_pulled > 0).await;
    nodes.stop(NodeId(4)).await;
    assert!(!nodes.told().iter().any(|(node, _)| *node == NodeId(4)));
    assert!(!nodes.all_owners_have(&digests));
    assert_eq!(nodes.state().layouts.len(), 2);
    nodes.start(NodeId(4), RATE_BYTES);
    nodes.until("one layout is left", |nodes| nodes.state().layouts.len() == 1).await;
    assert!(nodes.all_owners_have(&digests));
}

#[tokio::test]
async fn a_node_that_is_away_holds_up_those_who_may_need_something_of_it() {
    let mut nodes = Repaired::new(4, &[(1, &[1, 2, 3])]).await;
    let digests = nodes.upload(1, 20).await;
    nodes.cluster.set(NodeId(3), Behaviour::Away);
    nodes.change(&[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4])]);
    nodes.start_all(RATE_BYTES);
    nodes
        .until("they have got from others what these have", |nodes| {
            let progress = nodes.repairs[&NodeId(4)].progress();
            progress.completed_seconds_ago.is_some() && progress.waits_for == [3]
        })
        .await;
    assert!(nodes.told().iter().all(|(node, _)| *node == NodeId(3)), "{:?}", nodes.told());
    assert_eq!(nodes.state().layouts.len(), 2);
    nodes.cluster.set(NodeId(3), Behaviour::Well);
    nodes.until("one layout is left", |nodes| nodes.state().layouts.len() == 1).await;
    assert!(nodes.all_owners_have(&digests));
}

#[tokio::test]
async fn what_is_decided_by_an_older_layout_holds_up_the_node_that_decides() {
    let mut nodes = Repaired::new(3, &[(1, &[1, 2])]).await;
    let operation = nodes.cluster.node(NodeId(2)).nodes.view();
    nodes.change(&[(1, &[1, 2]), (2, &[1, 2, 3])]);
    nodes.start_all(RATE_BYTES);
    nodes.until("the others have told", |nodes| nodes.told().len() == 2).await;
    let told: Vec<NodeId> = nodes.told().into_iter().map(|(node, _)| node).collect();
    assert!(!told.contains(&NodeId(2)), "{told:?}");
    assert_eq!(nodes.repairs[&NodeId(2)].progress().synced_epoch, Some(2));
    drop(operation);
    nodes.until("one layout is left", |nodes| nodes.state().layouts.len() == 1).await;
}

#[tokio::test]
async fn a_full_node_takes_what_was_used_later_than_what_it_has_and_nothing_else() {
    // Used at 1,000,000 s, 1,000,100 s and 1,000,200 s: the second node has the middle ones, and room for little more.
    let benches = vec![Bench::new(64 << 20), Bench::new(4 << 20)];
    let mut nodes = Repaired::of(TestCluster::of(benches, 2, 1).await, &[(1, &[1, 2])]);
    let mut blobs = Vec::new();
    let (one, two) = (NodeId(1), NodeId(2));
    for age in 0..3_u64 {
        let these: Vec<_> = (0..30).map(|seed| TestCluster::blob(age * 100 + seed, 100_000)).collect();
        for (digest, bytes) in &these {
            nodes.cluster.node(one).store.put(digest, bytes.clone()).await.unwrap();
            if age == 1 {
                nodes.cluster.node(two).store.put(digest, bytes.clone()).await.unwrap();
            }
        }
        nodes.cluster.nodes.iter().for_each(|node| node.bench.clock.advance(100));
        blobs.push(these.into_iter().map(|(digest, _)| digest).collect::<Vec<_>>());
    }
    nodes.start_all(RATE_BYTES);
    nodes.until("the second node has what it takes", |nodes| nodes.has_all(two)).await;
    let count = |digests: &[Digest]| digests.iter().filter(|digest| nodes.has(two, digest)).count();
    let [oldest, middle, newest] = [0, 1, 2].map(|age| count(&blobs[age]));
    assert_eq!(newest, 30);
    assert!(middle < 30, "some made room");
    assert!(oldest < 10, "what would have gone next has not come: {oldest}");
    let pulled = nodes.repairs[&two].progress().copies_pulled;
    nodes.cluster.set(one, Behaviour::Away);
    // why: both are seen
    tokio::time::sleep(Duration::from_millis(600)).await;
    nodes.cluster.set(one, Behaviour::Well);
    // why: the comparison that follows is to come to nothing
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(nodes.repairs[&two].progress().copies_pulled, pulled);
}

#[tokio::test]
async fn of_two_results_the_later_one_comes_to_both_owners() {
    let mut nodes = Repaired::new(2, &[(1, &[1, 2])]).await;
    let version = |time_ms, node| Version { time_ms, count: 0, node: NodeId(node) };
    let actions: Vec<Digest> = (0..20).map(|seed| TestCluster::blob(seed, 10).0).collect();
    for (at, action) in actions.iter().enumerate() {
        let (early, late) = (1_000, 2_000);
        let (first, second) = if at % 2 == 0 { (early, late) } else { (late, early) };
        for (id, time_ms) in [(1, first), (2, second)] {
            let index = &nodes.cluster.node(NodeId(id)).index;
            index.put_if_newer("main", action, version(time_ms, id), Bytes::from(time_ms.to_string())).await.unwrap();
        }
    }
    nodes.start_all(RATE_BYTES);
    nodes.until("both have all", |nodes| nodes.has_all(NodeId(1)) && nodes.has_all(NodeId(2))).await;
    for action in &actions {
        for id in [1, 2] {
            assert_eq!(nodes.cluster.node(NodeId(id)).index.get("main", action).unwrap().unwrap().1, "2000");
        }
    }
}

#[tokio::test]
async fn find_missing_has_an_owner_mended_that_lacks_what_another_one_has() {
    let nodes = Repaired::new(4, &[(1, &[1, 2, 3, 4])]).await;
    let digests = nodes.upload(1, 30).await;
    for digest in &digests {
        let owners = nodes.owners(digest);
        nodes.cluster.node(owners[1]).store.remove(&[*digest], u64::MAX);
    }
    assert_eq!(nodes.cluster.node(NodeId(1)).blobs.find(&digests).await, vec![true; 30]);
    nodes.until("every owner has it", |nodes| nodes.all_owners_have(&digests)).await;
}
