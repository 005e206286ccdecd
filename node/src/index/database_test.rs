//! The index against its promises: last push wins, ends, bounds, and what is on disk stays there.

use super::*;
use casbah_cluster::asset::AssetKind;
use casbah_cluster::digest::{Digest, DigestFunction};

const FOREVER: u64 = 1_000;

fn key(uri: &str) -> AssetKey {
    AssetKey::new("", AssetKind::Blob, uri, []).unwrap()
}

fn record(content: &str) -> AssetRecord {
    AssetRecord {
        target: Digest::of(DigestFunction::Sha256, content.as_bytes()),
        referenced_blobs: vec![],
        referenced_directories: vec![],
        pushed_at: now(),
        expires_at: None,
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn open(&self, capacity: u64) -> AssetIndex {
        AssetIndex::open(&self.folder.path().join("index.redb"), capacity).unwrap()
    }
}

#[tokio::test]
async fn what_was_pushed_is_there_after_a_restart() {
    let place = Place::new();
    let index = place.open(FOREVER);
    index.push(key("urn:a"), &record("a")).await.unwrap();
    index.close();
    drop(index);
    assert_eq!(place.open(FOREVER).get(&key("urn:a")).unwrap().unwrap().target, record("a").target);
}

#[tokio::test]
async fn the_last_push_wins() {
    let index = Place::new().open(FOREVER);
    for content in ["one", "two", "three"] {
        index.push(key("urn:a"), &record(content)).await.unwrap();
    }
    assert_eq!(index.get(&key("urn:a")).unwrap().unwrap().target, record("three").target);
    assert_eq!(index.len().unwrap(), 1);
}

#[tokio::test]
async fn an_unknown_asset_is_none() {
    let index = Place::new().open(FOREVER);
    assert!(index.is_empty().unwrap());
    index.push(key("urn:a"), &record("a")).await.unwrap();
    assert_eq!(index.get(&key("urn:b")).unwrap(), None);
    let directory = AssetKey::new("", AssetKind::Directory, "urn:a", []).unwrap();
    assert_eq!(index.get(&directory).unwrap(), None);
}

#[tokio::test]
async fn a_full_index_drops_the_least_recently_fetched() {
    let index = Place::new().open(3);
    for uri in ["urn:a", "urn:b", "urn:c"] {
        index.push(key(uri), &record(uri)).await.unwrap();
    }
    index.used(&key("urn:a"));
    index.push(key("urn:d"), &record("d")).await.unwrap();
    let left: Vec<bool> =
        ["urn:a", "urn:b", "urn:c", "urn:d"].iter().map(|uri| index.get(&key(uri)).unwrap().is_some()).collect();
    assert_eq!(left, [true, false, true, true]);
    assert_eq!(index.len().unwrap(), 3);
}

#[tokio::test]
async fn an_ended_asset_is_swept_with_the_next_write() {
    let index = Place::new().open(FOREVER);
    let ended = AssetRecord { expires_at: Some(Moment(now().0 - 1)), ..record("a") };
    index.push(key("urn:a"), &ended).await.unwrap();
    index.push(key("urn:b"), &record("b")).await.unwrap();
    assert_eq!(index.get(&key("urn:a")).unwrap(), None);
    assert_eq!(index.len().unwrap(), 1);
}

#[tokio::test]
async fn an_end_that_a_later_push_took_back_removes_nothing() {
    let index = Place::new().open(FOREVER);
    let ending = AssetRecord { expires_at: Some(Moment(now().0 + 3_600_000_000_000)), ..record("a") };
    index.push(key("urn:a"), &ending).await.unwrap();
    index.push(key("urn:a"), &record("a")).await.unwrap();
    let transaction = index.database.begin_read().unwrap();
    assert_eq!(transaction.open_table(ENDS).unwrap().len().unwrap(), 0);
    assert!(index.get(&key("urn:a")).unwrap().is_some());
}

#[tokio::test]
async fn pushes_at_once_are_all_kept() {
    let index = Place::new().open(FOREVER);
    let pushes = (0..300).map(|number| {
        let index = index.clone();
        async move { index.push(key(&format!("urn:{number}")), &record("x")).await }
    });
    for outcome in futures_util::future::join_all(pushes).await {
        outcome.unwrap();
    }
    assert_eq!(index.len().unwrap(), 300);
}

#[tokio::test]
async fn a_closed_index_refuses_pushes_and_says_so() {
    let index = Place::new().open(FOREVER);
    index.close();
    assert!(matches!(index.push(key("urn:a"), &record("a")).await, Err(IndexError::Closed)));
}

#[test]
fn a_file_that_is_no_index_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    std::fs::write(&path, b"something else entirely").unwrap();
    assert!(AssetIndex::open(&path, FOREVER).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"something else entirely");
}

#[test]
fn another_format_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let Err(error) = AssetIndex::open(&path, FOREVER) else { panic!("it was opened") };
    assert!(matches!(error, IndexError::Format { found: 9, .. }), "{error}");
}
