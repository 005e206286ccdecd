//! What nodes tell each other of what they hold.

use std::collections::BTreeSet;

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::inventory::{ActionName, ListedAction, ListedBlob, PartitionSummary};
use casbah_cluster::membership::{Epoch, NodeId, Roster};
use casbah_cluster::replication::Version;
use casbah_cluster::ring::{PARTITIONS, partition_of};

use super::peers_testing::{Node, Site};
use crate::config::Compression;
use crate::forward::{Copy, PeerError};
use crate::store::Presence;

const TWO: NodeId = NodeId(2);

fn blob(number: u64, function: DigestFunction) -> (Digest, Bytes) {
    let data = Bytes::from(format!("blob {number}"));
    (Digest::of(function, &data), data)
}

/// All summaries, once what was there at the start has been counted.
async fn summaries(from: &Node, of: NodeId) -> Vec<PartitionSummary> {
    let all: Vec<u16> = (0..PARTITIONS as u16).collect();
    loop {
        match from.peers.compare(of, &all).await {
            Ok(summaries) => break summaries,
            Err(PeerError::Full { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn listed(from: &Node, partition: u16) -> Vec<ListedBlob> {
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = from.peers.list_blobs(TWO, partition, after).await.unwrap();
        after = page.entries.last().map(|blob| blob.digest);
        listed.extend(page.entries);
        if page.is_last {
            return listed;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_holds_is_told_by_sums_and_lists() {
    let (_site, one, two) = Site::pair().await;
    let mut blobs = BTreeSet::new();
    for number in 0..100 {
        for function in [DigestFunction::Sha256, DigestFunction::Sha512] {
            let (digest, data) = blob(number, function);
            two.store.put(&digest, data).await.unwrap();
            blobs.insert(digest);
        }
    }
    let mut actions = BTreeSet::new();
    for (number, digest) in blobs.iter().enumerate() {
        let version = Version { time_ms: number as u64, count: 7, node: NodeId(3) };
        two.results.put_if_newer("main", digest, version, Bytes::from_static(b"result")).await.unwrap();
        actions.insert((*digest, version));
    }
    let summaries = summaries(&one, TWO).await;
    assert_eq!(summaries.iter().map(|summary| summary.blobs.count).sum::<u64>(), 200);
    assert_eq!(summaries.iter().map(|summary| summary.actions.count).sum::<u64>(), 200);
    for (partition, summary) in summaries.iter().enumerate() {
        if summary.blobs.count == 0 {
            assert_eq!(*summary, PartitionSummary::default());
            continue;
        }
        let here = listed(&one, partition as u16).await;
        assert_eq!(here.len() as u64, summary.blobs.count);
        let plain = here.iter().filter(|blob| blob.digest.function() == DigestFunction::Sha256);
        let plain: Vec<&[u8]> = plain.map(|blob| blob.digest.hash()).collect();
        assert!(plain.is_sorted());
        for ListedBlob { digest, used_ms } in here {
            assert!(used_ms > 1_000_000_000_000, "{used_ms}");
            assert_eq!(partition_of(&digest), partition);
            assert!(blobs.remove(&digest));
        }
        let page = one.peers.list_actions(TWO, partition as u16, None).await.unwrap();
        assert!(page.is_last);
        assert_eq!(page.entries.len() as u64, summary.actions.count);
        for ListedAction { instance, action, version } in page.entries {
            assert_eq!(instance, "main");
            assert!(actions.remove(&(action, version)));
        }
    }
    assert!(blobs.is_empty() && actions.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_hold_the_same_say_the_same_however_it_came_about() {
    let (_site, one, two) = Site::pair().await;
    let version = |time_ms| Version { time_ms, count: 0, node: NodeId(1) };
    for node in [&one, &two] {
        for number in 0..50 {
            let (digest, data) = blob(if node.id == TWO { number } else { 49 - number }, DigestFunction::Sha256);
            node.store.put(&digest, data).await.unwrap();
            if node.id == TWO {
                node.results.put_if_newer("", &digest, version(1), Bytes::from_static(b"old")).await.unwrap();
            }
            node.results.put_if_newer("", &digest, version(2), Bytes::from_static(b"new")).await.unwrap();
        }
    }
    let of_two = summaries(&one, TWO).await;
    assert_eq!(summaries(&two, NodeId(1)).await, of_two);
    let (digest, _) = blob(7, DigestFunction::Sha256);
    one.results.put_if_newer("", &digest, version(3), Bytes::from_static(b"newer")).await.unwrap();
    let [of_one] = two.peers.compare(NodeId(1), &[partition_of(&digest) as u16]).await.unwrap()[..] else {
        panic!("one was asked for")
    };
    assert_eq!(of_one.blobs, of_two[partition_of(&digest)].blobs);
    assert_eq!(of_one.actions.count, of_two[partition_of(&digest)].actions.count);
    assert_ne!(of_one.actions.xor, of_two[partition_of(&digest)].actions.xor);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_sums_of_what_is_no_partition_are_refused() {
    let (_site, one, _two) = Site::pair().await;
    let none = PARTITIONS as u16;
    let refused = |error| assert!(matches!(error, PeerError::Broken(_)), "{error}");
    refused(one.peers.compare(TWO, &[0, none]).await.unwrap_err());
    refused(one.peers.compare(TWO, &vec![0; PARTITIONS + 1]).await.unwrap_err());
    refused(one.peers.list_blobs(TWO, none, None).await.unwrap_err());
    refused(one.peers.list_actions(TWO, none, None).await.unwrap_err());
    assert_eq!(one.peers.compare(TWO, &[]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_on_after_what_is_not_there() {
    let (_site, one, two) = Site::pair().await;
    let (digest, data) = blob(1, DigestFunction::Sha256);
    let partition = partition_of(&digest) as u16;
    two.store.put(&digest, data).await.unwrap();
    let first = Digest::from_raw(DigestFunction::Sha256, &[0; 32], 1).unwrap();
    let last = Digest::from_raw(DigestFunction::Sha512, &[0xff; 64], 1).unwrap();
    let page = one.peers.list_blobs(TWO, partition, Some(first)).await.unwrap();
    assert_eq!(page.entries.iter().map(|blob| blob.digest).collect::<Vec<_>>(), [digest]);
    assert!(one.peers.list_blobs(TWO, partition, Some(last)).await.unwrap().entries.is_empty());
    for action in [first, last] {
        let after = ActionName { instance: "x".into(), action };
        let page = one.peers.list_actions(TWO, partition, Some(after)).await.unwrap();
        assert!(page.is_last && page.entries.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_not_heard_of_the_callers_layout_tells_nothing() {
    let (mut site, one, two) = Site::pair().await;
    site.epoch = 5;
    site.tell(&[&one]);
    let error = one.peers.compare(TWO, &[1]).await.unwrap_err();
    assert!(matches!(error, PeerError::Stale(_)), "{error}");
    // It hears of it while the call waits.
    let (answer, ()) = tokio::join!(one.peers.list_blobs(TWO, 1, None), async { site.tell(&[&two]) });
    assert!(answer.unwrap().is_last);
    assert_eq!(two.roster.borrow().epoch(), Epoch(5));
    let _known: &Roster = &two.roster.borrow();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_keeps_its_last_use_however_it_is_sent() {
    let (_site, one, two) = Site::pair().await;
    let (first, used_ms) = (Bytes::from(vec![7; 300_000]), 1_700_000_000_000);
    let digest = Digest::of(DigestFunction::Sha256, &first);
    let mut upload = one.peers.store_copy(TWO, &digest, used_ms + 321).await.unwrap();
    upload.send(first).await.unwrap();
    upload.commit().await.unwrap();
    let mut copies: Vec<Copy> = (0..20)
        .map(|number| {
            let (digest, data) = blob(number, DigestFunction::Sha256);
            Copy { digest, data, used_ms: used_ms + 1000 * number }
        })
        .collect();
    copies[5].data = Bytes::from_static(b"others than its own");
    let outcomes = one.peers.store_copies(TWO, copies.clone()).await.unwrap();
    assert_eq!((0..20).filter(|at| outcomes[*at].is_err()).collect::<Vec<_>>(), [5]);
    let list = listed(&one, partition_of(&digest) as u16).await;
    assert!(list.contains(&ListedBlob { digest, used_ms }));
    for copy in copies.into_iter().filter(|copy| two.store.contains(&copy.digest)) {
        let list = listed(&one, partition_of(&copy.digest) as u16).await;
        assert!(list.contains(&ListedBlob { digest: copy.digest, used_ms: copy.used_ms }));
        // What is there already stays as it is.
        let again = Copy { used_ms: copy.used_ms + 5000, ..copy.clone() };
        assert!(one.peers.store_copies(TWO, vec![again]).await.unwrap()[0].is_ok());
        assert!(listed(&one, partition_of(&copy.digest) as u16).await == list);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_takes_no_copy_that_would_be_the_next_to_go() {
    let mut site = Site::new();
    let one = Node::start(&site.authority, NodeId(1)).await;
    let two = Node::start_with(&site.authority, TWO, Compression::None, 2 << 20).await;
    site.addresses = [(one.id, one.port), (TWO, two.port)].into();
    site.tell(&[&one, &two]);
    for length in [700_000, 700_001] {
        let data = vec![1; length];
        two.store.put(&Digest::of(DigestFunction::Sha256, &data), data.into()).await.unwrap();
    }
    let data = Bytes::from(vec![2; 700_002]);
    let digest = Digest::of(DigestFunction::Sha256, &data);
    let copy = Copy { digest, data: data.clone(), used_ms: 1_700_000_000_000 };
    let refused = one.peers.store_copies(TWO, vec![copy]).await.unwrap().remove(0).unwrap_err();
    assert!(matches!(refused, PeerError::OutOfRange), "{refused}");
    assert!(!refused.is_in_doubt());
    let mut upload = one.peers.store_copy(TWO, &digest, 1_700_000_000_000).await.unwrap();
    let refused = match upload.send(data).await {
        Ok(()) => upload.commit().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, PeerError::OutOfRange), "{refused}");
    assert_eq!(two.store.status().blobs, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_lost_a_blob_cannot_say_that_it_is_not_there() {
    let (_site, one, two) = Site::pair().await;
    let data = Bytes::from(vec![7; 300_000]);
    let (digest, (absent, _), (here, small)) =
        (Digest::of(DigestFunction::Sha256, &data), blob(1, DigestFunction::Sha256), blob(2, DigestFunction::Sha256));
    two.store.put(&digest, data.clone()).await.unwrap();
    two.store.put(&here, small).await.unwrap();
    two.damage_files();
    for _ in 0..2 {
        let error = one.peers.read(TWO, &digest, 0, None, false).await.err().unwrap();
        assert!(matches!(error, PeerError::Unsure), "{error}");
        assert!(!error.is_in_doubt());
        let error = one.peers.read_batch(TWO, &[digest], u64::MAX, true).await.unwrap().remove(0).unwrap_err();
        assert!(matches!(error, PeerError::Unsure), "{error}");
        for touch in [true, false] {
            let found = one.peers.find(TWO, &[absent, digest, here], touch).await.unwrap();
            assert_eq!(found, [Presence::Absent, Presence::Unsure, Presence::Here]);
        }
    }
    assert!(listed(&one, partition_of(&digest) as u16).await.is_empty());
    let mut upload = one.peers.store(TWO, &digest).await.unwrap();
    upload.send(data).await.unwrap();
    upload.commit().await.unwrap();
    assert_eq!(one.peers.find(TWO, &[digest], false).await.unwrap(), [Presence::Here]);
}
