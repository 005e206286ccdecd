//! Results of actions, by name and by partition.

use super::*;
use casbah_cluster::digest::DigestFunction;
use casbah_cluster::ring::{PARTITIONS, partition_of};

use crate::index::action_keys::sum;

fn open(folder: &tempfile::TempDir) -> ActionIndex {
    ActionIndex::open(&folder.path().join("actions.redb"), 10).unwrap()
}

fn action(text: &str) -> Digest {
    Digest::of(DigestFunction::Sha256, text.as_bytes())
}

fn version(time_ms: u64, count: u32, node: u64) -> Version {
    Version { time_ms, count, node: NodeId(node) }
}

fn result(index: &ActionIndex, name: &str) -> Option<Bytes> {
    index.get("main", &action(name)).unwrap().map(|(_, result)| result)
}

#[tokio::test]
async fn results_are_told_apart_by_instance_and_action() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let at = version(7, 8, 9);
    index.put_if_newer("main", &action("a"), at, Bytes::from_static(b"result")).await.unwrap();
    assert_eq!(index.get("main", &action("a")).unwrap(), Some((at, Bytes::from_static(b"result"))));
    assert_eq!(index.get("", &action("a")).unwrap(), None);
    assert_eq!(index.get("main/x", &action("a")).unwrap(), None);
    assert_eq!(index.get("main", &action("b")).unwrap(), None);
}

#[tokio::test]
async fn the_newest_version_stays_in_whatever_order_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let versions = [version(256, 0, 1), version(255, 9, 9), version(256, 0, 0), version(256, 1, 0), version(1, 0, 0)];
    for version in versions {
        let text = Bytes::from(format!("{version:?}"));
        index.put_if_newer("main", &action("a"), version, text).await.unwrap();
    }
    assert_eq!(index.get("main", &action("a")).unwrap().map(|(version, _)| version), Some(version(256, 1, 0)));
    assert_eq!(result(&index, "a").unwrap(), format!("{:?}", version(256, 1, 0)));
}

#[tokio::test]
async fn the_newest_of_many_written_at_once_stays() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let name = action("a");
    let puts = (0..100_u64).map(|at| {
        let time_ms = at * 37 % 100;
        index.put_if_newer("main", &name, version(time_ms, 0, 0), Bytes::from(time_ms.to_string()))
    });
    for outcome in futures_util::future::join_all(puts).await {
        outcome.unwrap();
    }
    assert_eq!(result(&index, "a").unwrap(), "99");
}

#[tokio::test]
async fn an_update_wins_over_what_is_here_although_the_clock_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let ahead = version(unix_ms() + 3_600_000, u32::MAX, 3);
    index.put_if_newer("main", &action("a"), ahead, Bytes::from_static(b"1")).await.unwrap();
    for at in 2..5 {
        let next = index.next_version(NodeId(1), "main", &action("a")).unwrap();
        index.put_if_newer("main", &action("a"), next, Bytes::from(at.to_string())).await.unwrap();
        assert_eq!(result(&index, "a").unwrap(), at.to_string());
    }
    // And of no other action.
    assert!(index.next_version(NodeId(1), "main", &action("b")).unwrap() < ahead);
}

#[tokio::test]
async fn a_version_that_was_seen_makes_the_next_ones_later() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let seen = version(unix_ms() + 30_000, 5, 2);
    index.observe(seen);
    assert!(index.next_version(NodeId(1), "main", &action("a")).unwrap() > seen);
}

#[tokio::test]
async fn a_record_that_is_too_short_for_a_version_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    index.records.put(key("main", &action("a")), vec![0; VERSION_BYTES - 1], None).await.unwrap();
    assert_eq!(result(&index, "a"), None);
    index.put_if_newer("main", &action("a"), version(1, 0, 0), Bytes::new()).await.unwrap();
    assert_eq!(result(&index, "a").unwrap(), "");
}

/// The inventories of all partitions, once all is counted.
async fn inventories(index: &ActionIndex) -> Vec<Inventory> {
    loop {
        let all: Option<Vec<Inventory>> = (0..PARTITIONS).map(|partition| index.inventory(partition)).collect();
        match all {
            Some(all) => return all,
            None => tokio::task::yield_now().await,
        }
    }
}

/// What the lists of all partitions have, by pages of this many.
fn listed(index: &ActionIndex, limit: usize) -> Vec<ListedAction> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let mut after = None;
        loop {
            let page = index.list(partition, after.as_ref(), (limit, usize::MAX)).unwrap();
            assert!(page.entries.len() <= limit && (page.is_last || page.entries.len() == limit));
            assert!(page.entries.iter().all(|listed| partition_of(&listed.action) == partition));
            after = page.entries.last().map(ListedAction::name);
            all.extend(page.entries);
            if page.is_last {
                break;
            }
        }
    }
    all
}

/// As counted from what is listed.
fn summed(index: &ActionIndex) -> Vec<Inventory> {
    let mut all = vec![Inventory::default(); PARTITIONS];
    for listed in listed(index, 100) {
        let key = key(&listed.instance, &listed.action);
        all[partition_of(&listed.action)].add(&sum(&key, &encode_version(listed.version)));
    }
    all
}

#[tokio::test]
async fn inventories_follow_what_is_written_replaced_evicted_and_removed_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let index = ActionIndex::open(&folder.path().join("actions.redb"), 50).unwrap();
    for number in 0..80_u64 {
        let name = action(&(number % 60).to_string());
        let instance = if number % 2 == 0 { "even" } else { "odd" };
        index.put_if_newer(instance, &name, version(number, 0, 1), Bytes::from_static(b"result")).await.unwrap();
        if number % 16 == 0 {
            // Older than what is here: nothing changes.
            let old = Version::default();
            index.put_if_newer(instance, &name, old, Bytes::from_static(b"result")).await.unwrap();
        }
    }
    let all = listed(&index, 100);
    assert_eq!(all.len(), 50);
    assert_eq!(inventories(&index).await, summed(&index));
    let gone: Vec<ListedAction> = all.iter().step_by(3).cloned().collect();
    index.remove(&gone).await.unwrap();
    index.remove(&gone).await.unwrap();
    assert_eq!(listed(&index, 1).len(), 50 - gone.len());
    let before = inventories(&index).await;
    assert_eq!(before, summed(&index));
    index.close();
    drop(index);
    let index = ActionIndex::open(&folder.path().join("actions.redb"), 50).unwrap();
    // Written while it is being counted, or after.
    index.put_if_newer("even", &action("new"), version(99, 0, 1), Bytes::new()).await.unwrap();
    let after = inventories(&index).await;
    assert_eq!(after, summed(&index));
    let differing = (0..PARTITIONS).filter(|partition| before[*partition] != after[*partition]);
    assert_eq!(differing.collect::<Vec<_>>(), [partition_of(&action("new"))]);
}

#[tokio::test]
async fn a_result_that_was_replaced_since_it_was_listed_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    index.put_if_newer("main", &action("a"), version(1, 0, 0), Bytes::from_static(b"old")).await.unwrap();
    let old = listed(&index, 10);
    index.put_if_newer("main", &action("a"), version(2, 0, 0), Bytes::from_static(b"new")).await.unwrap();
    index.remove(&old).await.unwrap();
    assert_eq!(result(&index, "a").unwrap(), "new");
    index.remove(&listed(&index, 10)).await.unwrap();
    assert_eq!(result(&index, "a"), None);
    assert_eq!(inventories(&index).await, vec![Inventory::default(); PARTITIONS]);
}

#[tokio::test]
async fn lists_go_on_from_name_to_name_and_end_with_the_bytes_they_may_have() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let name = action("a");
    for instance in ["", "a", "b", "ba"] {
        index.put_if_newer(instance, &name, version(1, 0, 0), Bytes::new()).await.unwrap();
    }
    let instances: Vec<String> = listed(&index, 1).into_iter().map(|listed| listed.instance).collect();
    assert_eq!(instances, ["", "a", "b", "ba"]);
    let page = index.list(partition_of(&name), None, (10, 1)).unwrap();
    assert_eq!((page.entries.len(), page.is_last), (1, false));
    let after = ActionName { instance: "aa".into(), action: name };
    let page = index.list(partition_of(&name), Some(&after), (10, usize::MAX)).unwrap();
    assert_eq!(page.entries.len(), 2);
}

#[tokio::test]
async fn records_under_keys_of_earlier_versions_are_never_found_and_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    for number in 0..10_u8 {
        index.records.put(vec![2, number], vec![0; 100], None).await.unwrap();
    }
    assert_eq!((listed(&index, 10), index.counts().records), (vec![], Some(10)));
    for number in 0..10 {
        index.put_if_newer("", &action(&number.to_string()), version(1, 0, 0), Bytes::new()).await.unwrap();
    }
    assert_eq!((listed(&index, 10).len(), index.counts().evicted), (10, 10));
    assert_eq!(inventories(&index).await, summed(&index));
}
