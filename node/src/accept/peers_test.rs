//! Nodes among themselves: what they do for each other, and whom they refuse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_cluster::membership::{Epoch, NodeId};
use casbah_cluster::replication::Version;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::peers_testing::{Node, Proxy, Site};
use crate::config::{Compression, limits};
use crate::forward::{Form, PeerError, PeerRead, Unreachable};
use crate::store::{Presence, ReadError};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const MIB: usize = 1 << 20;

fn blob(seed: u64, length: usize) -> (Digest, Bytes) {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    (Digest::of(DigestFunction::Sha256, &bytes), bytes.into())
}

async fn send(node: &Node, to: NodeId, digest: &Digest, data: &Bytes) -> Result<(), PeerError> {
    let mut upload = node.peers.store(to, digest).await?;
    for at in (0..data.len()).step_by(MIB) {
        upload.send(data.slice(at..(at + MIB).min(data.len()))).await?;
    }
    upload.commit().await
}

async fn all(mut read: PeerRead) -> Result<Vec<u8>, PeerError> {
    let mut bytes = Vec::new();
    while let Some(piece) = read.next().await? {
        assert!(!piece.is_empty());
        bytes.extend(piece);
    }
    Ok(bytes)
}

/// Waits until something is so, for as long as such a thing may take.
async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it took too long");
        // why: what is waited for tells nobody.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_stored_on_another_node_comes_back_whole_and_in_ranges() {
    let (_site, one, two) = Site::pair().await;
    for (seed, length) in [1, 300, 65_536, 131_072, 131_073, MIB, 5 * MIB + 17].into_iter().enumerate() {
        let (digest, data) = blob(seed as u64, length);
        send(&one, TWO, &digest, &data).await.unwrap();
        assert_eq!(two.store.get(&digest, u64::MAX).await.unwrap(), data);
        assert!(!one.store.contains(&digest));
        for offset in [0, 1, length / 2, length] {
            for limit in [None, Some(0), Some(1), Some(100_000), Some(length)] {
                let end = limit.map_or(length, |limit| (offset + limit).min(length));
                let read = one.peers.read(TWO, &digest, offset as u64, limit.map(|limit| limit as u64), true).await;
                let read = read.unwrap();
                assert_eq!(read.form(), Form::Identity);
                assert_eq!(all(read).await.unwrap(), &data[offset..end], "{length} {offset} {limit:?}");
            }
        }
        let past = one.peers.read(TWO, &digest, length as u64 + 1, None, false).await.err().unwrap();
        assert!(matches!(past, PeerError::OutOfRange), "{past}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_there_already_is_not_sent_again() {
    let (_site, one, two) = Site::pair().await;
    let (digest, data) = blob(1, 20 * MIB);
    two.store.put(&digest, data.clone()).await.unwrap();
    let mut upload = one.peers.store(TWO, &digest).await.unwrap();
    // More than fits anywhere on the way: it ends because the answer has come.
    for _ in 0..100 {
        upload.send(data.slice(..MIB)).await.unwrap();
    }
    upload.commit().await.unwrap();
    assert_eq!(two.store.get(&digest, u64::MAX).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_committed_or_not_whole_is_not_stored() {
    let (_site, one, two) = Site::pair().await;
    for (seed, length) in [(1, 100), (2, 100_000), (3, 3 * MIB)] {
        let (digest, data) = blob(seed, length);
        // All of it, and no commit.
        let mut upload = one.peers.store(TWO, &digest).await.unwrap();
        upload.send(data.clone()).await.unwrap();
        drop(upload);
        // A commit, and not all of it.
        let mut upload = one.peers.store(TWO, &digest).await.unwrap();
        upload.send(data.slice(1..)).await.unwrap();
        let error = upload.commit().await.unwrap_err();
        assert!(matches!(error, PeerError::Broken(_)), "{error}");
        // More than all of it.
        let mut upload = one.peers.store(TWO, &digest).await.unwrap();
        let sent = upload.send(data.clone()).await.and(upload.send(data.slice(..1)).await);
        let error = match sent {
            Ok(()) => upload.commit().await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, PeerError::Broken(_)), "{error}");
        assert!(!two.store.contains(&digest));
    }
    until(|| two.store.status().reserved_bytes == 0).await;
    assert_eq!(two.store.status().blobs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_a_damaged_copy_and_a_blob_too_large_are_told_apart() {
    let (_site, one, two) = Site::pair().await;
    let (absent, _) = blob(1, 1000);
    let miss = one.peers.read(TWO, &absent, 0, None, false).await.err().unwrap();
    assert!(matches!(miss, PeerError::NotFound), "{miss}");
    let (huge, data) = (Digest::from_raw(DigestFunction::Sha256, &[7; 32], 1 << 40).unwrap(), blob(2, 1000).1);
    let mut upload = one.peers.store(TWO, &huge).await.unwrap();
    let error = match upload.send(data).await {
        Ok(()) => upload.commit().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, PeerError::TooLarge(_)), "{error}");
    assert!(!error.is_in_doubt());
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_says_when_to_come_back() {
    let mut site = Site::new();
    let one = Node::start(&site.authority, ONE).await;
    let two = Node::start_with(&site.authority, TWO, Compression::None, 2 << 20).await;
    site.addresses = [(ONE, one.port), (TWO, two.port)].into();
    site.tell(&[&one, &two]);
    let outcomes = one.peers.store_batch(TWO, (0..60).map(|seed| blob(seed, 100_000)).collect()).await.unwrap();
    let full = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
    assert!(matches!(full, PeerError::Full { retry_after, .. } if *retry_after > Duration::from_secs(600)), "{full}");
    let (digest, data) = blob(100, MIB);
    let error = send(&one, TWO, &digest, &data).await.unwrap_err();
    assert!(matches!(error, PeerError::Full { retry_after, .. } if retry_after > Duration::from_secs(600)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_have_an_outcome_for_each_blob_in_order() {
    let (_site, one, two) = Site::pair().await;
    // More than fits one message, of all sizes.
    let blobs: Vec<(Digest, Bytes)> = (0..300).map(|seed| blob(seed, seed as usize * 300)).collect();
    let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
    let mut sent = blobs.clone();
    sent[7].1 = Bytes::from_static(b"too short");
    let outcomes = one.peers.store_batch(TWO, sent).await.unwrap();
    let failed: Vec<usize> = (0..300).filter(|at| outcomes[*at].is_err()).collect();
    assert_eq!(failed, [7]);
    let found = one.peers.find(TWO, &digests, true).await.unwrap();
    assert_eq!((0..300).filter(|at| found[*at] != Presence::Here).collect::<Vec<_>>(), [7]);
    let read = one.peers.read_batch(TWO, &digests, 80_000, false).await.unwrap();
    for (at, outcome) in read.into_iter().enumerate() {
        match outcome {
            Ok((data, form)) => assert_eq!((data, form), (blobs[at].1.clone(), Form::Identity)),
            Err(PeerError::NotFound) => assert_eq!(at, 7),
            Err(PeerError::TooLarge(_)) => assert!(blobs[at].1.len() > 80_000, "{at}"),
            Err(error) => panic!("{at}: {error}"),
        }
    }
    assert_eq!(two.store.status().blobs, 298, "the first one is empty");
    assert_eq!(one.peers.find(TWO, &[], false).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_in_frames_of_zstd_comes_so_where_that_is_taken() {
    let mut site = Site::new();
    let one = Node::start(&site.authority, ONE).await;
    let two = Node::start_with(&site.authority, TWO, Compression::Zstd, 256 << 20).await;
    site.addresses = [(ONE, one.port), (TWO, two.port)].into();
    site.tell(&[&one, &two]);
    for length in [5000, 3 * MIB] {
        let data: Bytes = (0..length).map(|at| b"0123456789abcdef"[at * 7 % 16]).collect();
        let digest = Digest::of(DigestFunction::Sha256, &data);
        send(&one, TWO, &digest, &data).await.unwrap();
        let read = one.peers.read(TWO, &digest, 0, None, true).await.unwrap();
        assert_eq!(read.form(), Form::Zstd);
        let frames = all(read).await.unwrap();
        assert!(frames.len() < length / 2);
        assert_eq!(zstd::stream::decode_all(&*frames).unwrap(), data);
        let plain = one.peers.read(TWO, &digest, 0, None, false).await.unwrap();
        assert_eq!((plain.form(), all(plain).await.unwrap()), (Form::Identity, data.to_vec()));
        let [Ok((frames, Form::Zstd))] = &*one.peers.read_batch(TWO, &[digest], u64::MAX, true).await.unwrap() else {
            panic!("it does not come in frames")
        };
        assert_eq!(zstd::stream::decode_all(&**frames).unwrap(), data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_result_of_an_action_stays() {
    let (_site, one, _two) = Site::pair().await;
    let (action, _) = blob(1, 10);
    let version = |time_ms| Version { time_ms, count: 3, node: ONE };
    assert_eq!(one.peers.get_action(TWO, "main", &action, true).await.unwrap(), None);
    let put = |time, text: &'static [u8]| one.peers.put_action(TWO, "main", &action, version(time), text.into());
    put(5, b"new").await.unwrap();
    put(4, b"old").await.unwrap();
    let found = one.peers.get_action(TWO, "main", &action, true).await.unwrap();
    assert_eq!(found, Some((version(5), Bytes::from_static(b"new"))));
    assert_eq!(one.peers.get_action(TWO, "other", &action, true).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_group_and_snapshots_reach_it_and_what_breaks_off_is_not_whole() {
    use crate::index::{Network as _, NetworkError, RaftCall};
    let (_site, one, two) = Site::pair().await;
    let network = &one.peers;
    let deadline = Duration::from_secs(5);
    let answer = network.call(TWO, RaftCall::Vote, Bytes::from_static(b"payload"), deadline).await.unwrap();
    assert_eq!(answer, "Vote payload");
    let error = network.call(TWO, RaftCall::Propose, Bytes::new(), deadline).await.unwrap_err();
    assert!(matches!(error, NetworkError::Failed { node: TWO, .. }), "{error}");
    let error = network.call(NodeId(8), RaftCall::Append, Bytes::new(), deadline).await.unwrap_err();
    assert!(matches!(error, NetworkError::Unreachable { node: NodeId(8), .. }), "{error}");

    let (_, data) = blob(1, 3 * MIB);
    let pieces: Vec<std::io::Result<Bytes>> =
        data.chunks(400_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let stream = Box::pin(futures_util::stream::iter(pieces));
    let head = Bytes::from_static(b"head");
    let answer = crate::index::Network::send_snapshot(network, TWO, head.clone(), stream, deadline).await.unwrap();
    assert_eq!(answer, head);
    let broken: Vec<std::io::Result<Bytes>> = vec![Ok(data.slice(..9)), Err(std::io::ErrorKind::Other.into())];
    let stream = Box::pin(futures_util::stream::iter(broken));
    crate::index::Network::send_snapshot(network, TWO, head, stream, deadline).await.unwrap_err();
    // Whoever takes it in is told of the break, or is dropped with the stream: it is whole in neither case.
    let taken = two.inner.snapshots.lock().unwrap().clone();
    assert_eq!(taken.first(), Some(&Ok(data.to_vec())));
    assert!(taken.get(1).is_none_or(|second| second.is_err()), "{} bytes", data.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_log_is_told_of_the_cluster_until_the_stream_breaks() {
    use crate::index::{Network, NetworkError, WatchPart};
    use futures_util::StreamExt as _;
    let (_site, one, mut two) = Site::pair().await;
    let refused = one.peers.watch_state(TWO).await.map(drop).unwrap_err();
    assert!(matches!(refused, PeerError::Full { .. }), "{refused}");
    let state = Some(Bytes::from_static(b"state"));
    let first = WatchPart { position: 7, state, leader: Some(TWO), is_current: false };
    let sign = WatchPart { position: 0, state: None, leader: None, is_current: true };
    *two.inner.told.lock().unwrap() = vec![first.clone(), sign.clone()];
    let mut parts = Network::watch(&one.peers, TWO).await.unwrap();
    assert_eq!(parts.next().await.unwrap().unwrap(), first);
    assert_eq!(parts.next().await.unwrap().unwrap(), sign);
    two.kill().await;
    let broken = tokio::time::timeout(Duration::from_secs(20), parts.next()).await.expect("nobody told that it broke");
    assert!(matches!(broken, Some(Err(NetworkError::Failed { node: TWO, .. }))), "{broken:?}");
    assert!(Network::watch(&one.peers, TWO).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_do_not_know_each_other_are_introduced() {
    use crate::forward::DiscoveryError;
    use casbah_proto::peer::v1::Introduction;
    let site = Site::new();
    let (one, two) = (Node::start(&site.authority, ONE).await, Node::start(&site.authority, TWO).await);
    let own = |cluster: &str| Introduction {
        node_name: "one".into(),
        cluster_name: cluster.into(),
        ..Introduction::default()
    };
    let discovery = one.discovery();
    let found = discovery.introduce(two.address(), &own("casbah")).await.unwrap();
    assert_eq!((found.at, &*found.introduction.node_name), (two.address(), "who met one"));
    let address = two.address().to_string().parse().unwrap();
    assert_eq!(discovery.look_up(&address).await.unwrap(), [two.address()]);
    assert_eq!(discovery.join(two.address(), &own("casbah")).await.unwrap().node_id, 9);
    let later = discovery.join(two.address(), &own("")).await.unwrap_err();
    assert!(matches!(later, DiscoveryError::NotNow { .. }), "{later}");
    let never = discovery.join(two.address(), &own("other")).await.unwrap_err();
    assert!(matches!(never, DiscoveryError::Refused { .. }), "{never}");
    // Oneself is found, too, and nobody where nobody listens.
    discovery.introduce(one.address(), &own("casbah")).await.unwrap();
    let nobody = discovery.introduce(([127, 0, 0, 1], 1).into(), &own("casbah")).await.unwrap_err();
    assert!(matches!(nobody, DiscoveryError::Dial(_)), "{nobody}");
    let unknown = discovery.look_up(&"no-such-host.invalid:7980".parse().unwrap()).await.unwrap_err();
    assert!(matches!(unknown, DiscoveryError::Dial(_)), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_is_away_at_once_and_back_when_it_answers() {
    let (mut site, mut one, mut two) = Site::pair().await;
    one.watch();
    until(|| one.peers.report(TWO).is_some()).await;
    assert!(one.peers.health(TWO).reachable && one.peers.health(TWO).writable);
    assert_eq!(two.inner.heard.lock().unwrap().first(), Some(&ONE));
    *two.inner.writable.lock().unwrap() = false;
    until(|| !one.peers.health(TWO).writable).await;

    let (digest, data) = blob(1, 5 * MIB);
    two.store.put(&digest, data).await.unwrap();
    let mut changes = one.peers.changes();
    changes.mark_unchanged();
    let mut read = one.peers.read(TWO, &digest, 0, None, false).await.unwrap();
    let killed = Instant::now();
    two.kill().await;
    let broken = loop {
        match read.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it came to its end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, PeerError::Unreachable(_)), "{broken}");
    let refused = one.peers.find(TWO, &[digest], false).await.unwrap_err();
    // By the refusal itself, or since a heartbeat has met it already.
    assert!(matches!(refused, PeerError::Unreachable(_)), "{refused}");
    assert!(!one.peers.health(TWO).reachable);
    assert!(killed.elapsed() < Duration::from_secs(3));
    assert!(changes.has_changed().unwrap());

    // Another process under the same id.
    let two = Node::start(&site.authority, TWO).await;
    site.addresses.insert(TWO, two.port);
    site.tell(&[&one, &two]);
    until(|| one.peers.report(TWO).is_some_and(|report| report.writable)).await;
    assert!(one.peers.health(TWO).reachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_falls_silent_is_away_within_three_seconds_and_so_are_calls_to_it() {
    let (mut site, mut one, two) = Site::pair().await;
    let proxy = Proxy::to(two.port).await;
    site.addresses.insert(TWO, proxy.port);
    site.tell(&[&one, &two]);
    one.watch();
    let (digest, data) = blob(1, 40 * MIB);
    two.store.put(&digest, data).await.unwrap();
    until(|| one.peers.report(TWO).is_some()).await;
    let mut read = one.peers.read(TWO, &digest, 0, None, false).await.unwrap();
    read.next().await.unwrap().unwrap();

    let fell_silent = Instant::now();
    proxy.silent.send_replace(true);
    let asked = one.peers.find(TWO, &[digest], false).await.unwrap_err();
    assert!(matches!(asked, PeerError::Unreachable(_)), "{asked}");
    let broken = loop {
        match read.next().await {
            Ok(piece) => drop(piece.expect("the rest cannot have come")),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, PeerError::Unreachable(_)), "{broken}");
    assert!(!one.peers.health(TWO).reachable);
    assert!(fell_silent.elapsed() < Duration::from_secs(3), "{:?}", fell_silent.elapsed());

    // New connections get through, which are made although nobody has closed the old ones.
    proxy.silent.send_replace(false);
    until(|| one.peers.health(TWO).reachable).await;
    assert_eq!(one.peers.find(TWO, &[digest], false).await.unwrap(), [Presence::Here]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_takes_connections_and_says_nothing_is_no_node() {
    let (mut site, mut one, two) = Site::pair().await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    site.addresses.insert(TWO, mute.local_addr().unwrap().port());
    site.tell(&[&one, &two]);
    let began = Instant::now();
    one.watch();
    let asked = one.peers.find(TWO, &[blob(1, 1).0], false).await.unwrap_err();
    assert!(matches!(asked, PeerError::Unreachable(_)), "{asked}");
    until(|| !one.peers.health(TWO).reachable).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_stops_reading_holds_up_its_sender_and_no_memory() {
    let (mut site, one, two) = Site::pair().await;
    let proxy = Proxy::to(two.port).await;
    site.addresses.insert(TWO, proxy.port);
    site.tell(&[&one, &two]);
    let (digest, data) = blob(1, 100 * MIB);
    one.peers.find(TWO, &[digest], false).await.unwrap();
    let mut upload = one.peers.store(TWO, &digest).await.unwrap();
    upload.send(data.slice(..MIB)).await.unwrap();
    proxy.silent.send_replace(true);
    let mut sent = 0;
    let began = Instant::now();
    let stalled = loop {
        match upload.send(data.slice(..MIB)).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(stalled, PeerError::TimedOut | PeerError::Unreachable(_)), "{stalled}");
    // What fits the windows, and what the proxy threw away of it.
    assert!(sent < 30, "{sent} MiB");
    assert!(began.elapsed() < limits::PEER_STORE_DEADLINE + Duration::from_secs(3));
    until(|| two.store.status().reserved_bytes == 0).await;
    assert!(matches!(two.store.get(&digest, u64::MAX).await, Err(ReadError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_reaches_nobody() {
    let peers = crate::forward::Peers::alone();
    let error = peers.find(TWO, &[], false).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(Unreachable::Alone)), "{error}");
    assert!(!peers.health(TWO).reachable);
    let (_site, one, _two) = Site::pair().await;
    let error = one.peers.find(NodeId(5), &[], false).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable(Unreachable::NoMember)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_hear_of_a_newer_layout_and_wait_for_an_older_one() {
    let (mut site, one, two) = Site::pair().await;
    let asked = [blob(1, 1).0];
    site.epoch = 5;
    site.tell(&[&two]);
    one.peers.find(TWO, &asked, false).await.unwrap();
    assert_eq!(one.peers.health(TWO).epoch, Epoch(5));
    // Now it is the callee that is behind, and catches up.
    site.epoch = 6;
    site.tell(&[&one]);
    let peers = one.peers.clone();
    let call = tokio::spawn(async move { peers.find(TWO, &asked, false).await });
    let began = Instant::now();
    // why: the call is to be there before the layout is.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!call.is_finished());
    site.tell(&[&two]);
    call.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    // And does not.
    site.epoch = 7;
    site.tell(&[&one]);
    let stale = one.peers.find(TWO, &asked, false).await.unwrap_err();
    assert!(matches!(stale, PeerError::Stale(_)), "{stale}");
    assert!(Arc::strong_count(&two.inner) > 0);
}
