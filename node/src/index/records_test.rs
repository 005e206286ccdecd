//! A table against its promises: last write wins, ends, bounds, and what is on disk stays there.

use super::*;
use crate::index::tables::{ENDS, META};

const MANY: u64 = 1_000;

async fn put(records: &Records, key: &str, value: &str) {
    records.put(key.into(), value.into(), None).await.unwrap();
}

fn value(records: &Records, key: &str) -> Option<String> {
    records.get(key.as_bytes()).unwrap().map(|value| String::from_utf8(value).unwrap())
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn open(&self, capacity: u64) -> Records {
        Records::open(&self.folder.path().join("records.redb"), capacity).unwrap()
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let place = Place::new();
    let records = place.open(MANY);
    put(&records, "a", "1").await;
    records.close();
    drop(records);
    assert_eq!(value(&place.open(MANY), "a").as_deref(), Some("1"));
}

#[tokio::test]
async fn the_last_write_wins() {
    let records = Place::new().open(MANY);
    for text in ["1", "2", "3"] {
        put(&records, "a", text).await;
    }
    assert_eq!(value(&records, "a").as_deref(), Some("3"));
    assert_eq!(records.len().unwrap(), 1);
}

#[tokio::test]
async fn an_unknown_key_has_no_record() {
    let records = Place::new().open(MANY);
    assert_eq!(records.len().unwrap(), 0);
    put(&records, "a", "1").await;
    assert_eq!(value(&records, "b"), None);
}

#[tokio::test]
async fn a_full_table_drops_the_least_recently_used() {
    let records = Place::new().open(3);
    for key in ["a", "b", "c"] {
        put(&records, key, key).await;
    }
    records.used(b"a");
    put(&records, "d", "d").await;
    let left = ["a", "b", "c", "d"].map(|key| value(&records, key).is_some());
    assert_eq!(left, [true, false, true, true]);
    assert_eq!(records.counts(), IndexCounts { records: Some(3), evicted: 1, expired: 0 });
    assert_eq!(records.len().unwrap(), 3);
}

#[tokio::test]
async fn the_order_of_use_survives_a_restart() {
    let place = Place::new();
    let records = place.open(2);
    put(&records, "a", "1").await;
    put(&records, "b", "2").await;
    records.used(b"a");
    records.close();
    drop(records);
    let records = place.open(2);
    put(&records, "c", "3").await;
    assert_eq!([value(&records, "a").is_some(), value(&records, "b").is_some()], [true, false]);
}

#[tokio::test]
async fn an_ended_record_is_swept_with_the_next_write() {
    let records = Place::new().open(MANY);
    records.put(b"a".into(), b"1".into(), Some(Moment(now().0 - 1))).await.unwrap();
    put(&records, "b", "2").await;
    assert_eq!(value(&records, "a"), None);
    assert_eq!(records.counts(), IndexCounts { records: Some(1), evicted: 0, expired: 1 });
    assert_eq!(records.len().unwrap(), 1);
}

#[tokio::test]
async fn an_end_that_a_later_write_took_back_removes_nothing() {
    let records = Place::new().open(MANY);
    records.put(b"a".into(), b"1".into(), Some(Moment(now().0 + 3_600_000_000_000))).await.unwrap();
    put(&records, "a", "2").await;
    let transaction = records.database.begin_read().unwrap();
    assert_eq!(transaction.open_table(ENDS).unwrap().len().unwrap(), 0);
    assert_eq!(value(&records, "a").as_deref(), Some("2"));
}

#[tokio::test]
async fn writes_at_once_are_all_kept() {
    let records = Place::new().open(MANY);
    let writes = (0..300).map(|number: u32| records.put(number.to_be_bytes().into(), b"x".into(), None));
    for outcome in futures_util::future::join_all(writes).await {
        outcome.unwrap();
    }
    assert_eq!(records.len().unwrap(), 300);
}

#[tokio::test]
async fn a_closed_table_refuses_writes_and_says_so() {
    let records = Place::new().open(MANY);
    records.close();
    assert!(matches!(records.put(b"a".into(), b"1".into(), None).await, Err(IndexError::Closed)));
}

#[test]
fn a_file_that_is_no_index_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.redb");
    std::fs::write(&path, b"something else entirely").unwrap();
    assert!(Records::open(&path, MANY).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"something else entirely");
}

#[test]
fn another_format_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let Err(error) = Records::open(&path, MANY) else { panic!("it was opened") };
    assert!(matches!(error, IndexError::Format { found: 9, .. }), "{error}");
}

/// A reader that lets go of its transaction before it has read would have the writer free a page under it, which the
/// database takes for a fault of the program and ends it.
#[test]
fn records_are_read_while_others_take_their_place() {
    let place = Place::new();
    let records = place.open(16);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for key in 0..16 {
                        let found = value(&records, &key.to_string());
                        assert!(found.is_none_or(|value| value.len() == 3000));
                    }
                }
            });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for round in 0..200 {
            let text = "x".repeat(3000);
            runtime.block_on(put(&records, &(round % 16).to_string(), &text));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
