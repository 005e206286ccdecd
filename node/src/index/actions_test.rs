//! Results of actions, by name and by partition.

use super::*;
use casbah_cluster::digest::DigestFunction;

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
