//! The network between the nodes of a cluster, with a fault to be had on each edge.
//!
//! Every node is reached by the others at an address of ours alone. Who calls is told by the source address, which each
//! node has one of its own of, so that the ways from A to B and from B to A fail one without the other. What stands here
//! is about connections by who has opened them: the edge from A to B carries A's requests and B's answers to them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Read and delivered at once. Small, so that a slow edge is slow from the first byte on.
const PIECE_BYTES: usize = 16 << 10;

/// On their way in one direction of one connection. A sender whose network is slower than that waits, as it would.
const PIECES_MAX: usize = 64;

/// Attempts at a connection under way to one node; more are a mistake of somebody's.
const CONNECTIONS_MAX: usize = 4096;

/// What an edge does to what it carries. It holds for connections that are open as well as for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Everything arrives at once.
    #[default]
    Pass,
    /// Everything arrives this much later, in both directions.
    Delay(Duration),
    /// At this many bytes a second, in both directions. Never 0.
    Slow(u32),
    /// Nothing arrives and nothing is lost: what was held goes on its way afterwards, as a cable that is plugged in again.
    Hold,
    /// Connections are accepted, and whatever is sent on them is swallowed. They are reset afterwards.
    HalfOpen,
    /// Requests arrive, answers are swallowed. The connections are reset afterwards.
    OneWay,
    /// Connections are reset, and new ones as soon as they are made.
    Cut,
}

/// The edges between so many nodes. Dropping it ends every connection.
pub struct Proxies {
    edges: Arc<Edges>,
    /// Its own, so that a test which blocks its thread does not stop the network.
    runtime: Option<Runtime>,
}

/// By who calls and who is called.
struct Edges(HashMap<(usize, usize), watch::Sender<Mode>>);

/// Where one node is, as seen from the proxies.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// The address from which this node calls others.
    pub source: Ipv4Addr,
    /// Where others are told that it listens.
    pub advertised: SocketAddr,
    /// Where it does.
    pub listens: SocketAddr,
}

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the caller.
    Requests,
    /// To the caller.
    Answers,
}

/// Some bytes on their way.
struct Piece {
    arrived: Instant,
    bytes: Vec<u8>,
}

// === impl Mode ===

impl Mode {
    fn swallows(self, way: Way) -> bool {
        match self {
            Mode::HalfOpen => true,
            Mode::OneWay => way == Way::Answers,
            Mode::Pass | Mode::Delay(_) | Mode::Slow(_) | Mode::Hold | Mode::Cut => false,
        }
    }
}

// === impl Proxies ===

impl Proxies {
    /// Listens at the advertised address of each of these nodes. Every edge passes everything.
    ///
    /// # Errors
    /// When an address is taken.
    pub fn start(stops: &[Stop]) -> Result<Proxies> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxies")
            .enable_all()
            .build()
            .context("cannot start the proxies")?;
        let pairs = (0..stops.len()).flat_map(|from| (0..stops.len()).map(move |to| (from, to)));
        let edges = Arc::new(Edges(pairs.map(|pair| (pair, watch::Sender::new(Mode::Pass))).collect()));
        let callers: Arc<Vec<Ipv4Addr>> = Arc::new(stops.iter().map(|stop| stop.source).collect());
        let entered = runtime.enter();
        for (to, stop) in stops.iter().enumerate() {
            let bound = std::net::TcpListener::bind(stop.advertised);
            let listener = bound.with_context(|| format!("cannot listen on {}", stop.advertised))?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            runtime.spawn(accept(listener, stop.listens, to, Arc::clone(&callers), Arc::clone(&edges)));
        }
        drop(entered);
        Ok(Proxies { edges, runtime: Some(runtime) })
    }

    /// What the edge from one node to another does from now on.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn set(&self, from: usize, to: usize, mode: Mode) {
        self.edges.0.get(&(from, to)).expect("both nodes exist").send_replace(mode);
    }

    /// What all edges do from now on.
    pub fn set_all(&self, mode: Mode) {
        for edge in self.edges.0.values() {
            edge.send_replace(mode);
        }
    }

    /// What every edge between one of these nodes and one that is none of them does from now on, both ways.
    pub fn set_around(&self, nodes: &[usize], mode: Mode) {
        for ((from, to), edge) in &self.edges.0 {
            if nodes.contains(from) != nodes.contains(to) {
                edge.send_replace(mode);
            }
        }
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped in a test that is itself run by tokio, it may not wait.
            runtime.shutdown_background();
        }
    }
}

// === connections ===

async fn accept(listener: TcpListener, target: SocketAddr, to: usize, callers: Arc<Vec<Ipv4Addr>>, edges: Arc<Edges>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let Ok((stream, peer)) = accepted else { continue };
                let from = callers.iter().position(|caller| IpAddr::V4(*caller) == peer.ip());
                // A caller that is none of the nodes is refused: it would pass around every fault.
                let Some(mode) = from.and_then(|from| edges.0.get(&(from, to))).map(watch::Sender::subscribe) else {
                    reset(&stream);
                    continue;
                };
                connections.spawn(async move { connection(stream, target, mode).await });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut caller: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if let Some(mut callee) = connect(&mut caller, target, &mut mode).await {
        if relay(&mut caller, &mut callee, mode).await == End::InGoodOrder {
            return;
        }
        reset(&callee);
    }
    reset(&caller);
}

/// A connection to the node, once the edge lets one through; `None` when it does not.
async fn connect(caller: &mut TcpStream, target: SocketAddr, mode: &mut watch::Receiver<Mode>) -> Option<TcpStream> {
    let now = *mode.borrow_and_update();
    match now {
        Mode::Cut => return None,
        Mode::HalfOpen => {
            let mut rest = vec![0; PIECE_BYTES];
            let swallow = async { while caller.read(&mut rest).await.is_ok_and(|size| size > 0) {} };
            tokio::select! {
                () = swallow => {}
                _ = mode.wait_for(|mode| *mode != Mode::HalfOpen) => {}
            }
            return None;
        }
        Mode::Pass | Mode::Delay(_) | Mode::Slow(_) | Mode::Hold | Mode::OneWay => {}
    }
    let callee = TcpStream::connect(target).await.ok()?;
    caller.set_nodelay(true).ok()?;
    callee.set_nodelay(true).ok()?;
    Some(callee)
}

/// How a connection ended.
#[derive(PartialEq)]
enum End {
    InGoodOrder,
    Broken,
}

async fn relay(caller: &mut TcpStream, callee: &mut TcpStream, mode: watch::Receiver<Mode>) -> End {
    let mut cut = mode.clone();
    let (from_caller, to_caller) = caller.split();
    let (from_callee, to_callee) = callee.split();
    let both = try_join(
        carry(from_caller, to_callee, Way::Requests, mode.clone()),
        carry(from_callee, to_caller, Way::Answers, mode),
    );
    tokio::select! {
        ended = both => if ended.is_ok() { End::InGoodOrder } else { End::Broken },
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => End::Broken,
    }
}

async fn carry(mut from: ReadHalf<'_>, to: WriteHalf<'_>, way: Way, mode: watch::Receiver<Mode>) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let take = async move {
        loop {
            let mut bytes = vec![0; PIECE_BYTES];
            let size = from.read(&mut bytes).await?;
            bytes.truncate(size);
            if size == 0 || sender.send(Piece { arrived: Instant::now(), bytes }).await.is_err() {
                return Ok(());
            }
        }
    };
    try_join(take, deliver(receiver, to, way, mode)).await.map(|_| ())
}

async fn deliver(
    mut pieces: mpsc::Receiver<Piece>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut mode: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut lost_some = false;
    loop {
        if lost_some && !mode.borrow_and_update().swallows(way) {
            // A stream with a hole in it is none.
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            changed = mode.changed() => {
                changed.map_err(|_closed| io::ErrorKind::ConnectionReset)?;
                continue;
            }
        };
        let ended = piece.is_none();
        // The end of a stream arrives as everything else does.
        let piece = piece.unwrap_or_else(|| Piece { arrived: Instant::now(), bytes: Vec::new() });
        lost_some = !arrives(&piece, way, &mut mode).await? || lost_some;
        if !lost_some {
            to.write_all(&piece.bytes).await?;
        }
        if ended && !lost_some {
            return to.shutdown().await;
        }
        if ended {
            let _ = mode.wait_for(|mode| !mode.swallows(way)).await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

/// Waits until the piece arrives; `false` when it is swallowed.
async fn arrives(piece: &Piece, way: Way, mode: &mut watch::Receiver<Mode>) -> io::Result<bool> {
    let begun = Instant::now();
    loop {
        let now = *mode.borrow_and_update();
        let until = match now {
            _ if now.swallows(way) => return Ok(false),
            Mode::Pass | Mode::HalfOpen | Mode::OneWay => return Ok(true),
            Mode::Delay(by) => Some(piece.arrived + by),
            Mode::Slow(bytes_per_second) => {
                let seconds = piece.bytes.len() as f64 / f64::from(bytes_per_second.max(1));
                Some(begun + Duration::from_secs_f64(seconds))
            }
            // Whoever carries this is told of the cut, too.
            Mode::Hold | Mode::Cut => None,
        };
        let wait = async {
            match until {
                Some(until) => sleep_until(until).await, // why: this is the fault
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => return Ok(true),
            changed = mode.changed() => changed.map_err(|_closed| io::ErrorKind::ConnectionReset)?,
        }
    }
}

/// Closes with a reset when the stream is dropped.
fn reset(stream: &TcpStream) {
    // It fails for a connection that has ended, which is what is asked for.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::within_deadline;

    /// Callers 127.0.0.2 and 127.0.0.3, and an echo behind the proxy at the index 1.
    struct Network {
        proxies: Proxies,
        advertised: SocketAddr,
    }

    /// A port that is free on 127.0.0.1 right now.
    fn free() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    async fn echo(mut stream: TcpStream) {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }

    impl Network {
        async fn new() -> Network {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let listens = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(echo(stream));
                }
            });
            let stop = |octet, advertised| Stop { source: Ipv4Addr::new(127, 0, 0, octet), advertised, listens };
            let advertised = free();
            let proxies = Proxies::start(&[stop(2, free()), stop(3, advertised)]).unwrap();
            Network { proxies, advertised }
        }

        /// From the node 0 to the node 1.
        async fn call(&self) -> io::Result<TcpStream> {
            self.call_from("127.0.0.2:0").await
        }

        async fn call_from(&self, source: &str) -> io::Result<TcpStream> {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(source.parse().unwrap())?;
            socket.connect(self.advertised).await
        }
    }

    async fn exchange(stream: &mut TcpStream, word: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(word).await?;
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    /// Nothing comes for as long as a busy machine takes to bring something, mostly.
    async fn nothing_comes(stream: &mut TcpStream) {
        let read = tokio::time::timeout(Duration::from_millis(150), stream.read_u8()).await;
        assert!(read.is_err(), "{read:?}");
    }

    async fn is_reset(stream: &mut TcpStream) {
        let read = within_deadline("a reset", stream.read_u8()).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    /// A connection that is reset as soon as it is made: whoever made it may hear of it at once, or when he reads.
    async fn is_reset_at_once(made: io::Result<TcpStream>) {
        match made {
            Ok(mut stream) => is_reset(&mut stream).await,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    #[tokio::test]
    async fn what_passes_arrives_whole_and_so_does_its_end() {
        let network = Network::new().await;
        let mut stream = network.call().await.unwrap();
        let words: Vec<u8> = (0..3_000_000_u32).map(|place| place.to_le_bytes()[0]).collect();
        let (mut from, mut to) = stream.split();
        let send = async {
            to.write_all(&words).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut answer = Vec::new();
        let (_, read) = tokio::join!(send, from.read_to_end(&mut answer));
        read.unwrap();
        assert!(answer == words, "{} bytes came", answer.len());
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_open_and_what_is_new_until_it_is_mended() {
        let network = Network::new().await;
        let mut open = network.call().await.unwrap();
        assert_eq!(exchange(&mut open, b"one").await.unwrap(), b"one");
        network.proxies.set(0, 1, Mode::Cut);
        is_reset(&mut open).await;
        is_reset_at_once(network.call().await).await;
        network.proxies.set(0, 1, Mode::Pass);
        assert_eq!(exchange(&mut network.call().await.unwrap(), b"two").await.unwrap(), b"two");
    }

    #[tokio::test]
    async fn an_edge_fails_for_its_own_caller_alone() {
        let network = Network::new().await;
        network.proxies.set(0, 1, Mode::Cut);
        let mut other = network.call_from("127.0.0.3:0").await.unwrap();
        assert_eq!(exchange(&mut other, b"word").await.unwrap(), b"word");
        network.proxies.set_around(&[0], Mode::Pass);
        assert_eq!(exchange(&mut network.call().await.unwrap(), b"word").await.unwrap(), b"word");
        // Somebody from nowhere is no node.
        is_reset_at_once(network.call_from("127.0.0.9:0").await).await;
    }

    #[tokio::test]
    async fn what_was_held_goes_on_its_way() {
        let network = Network::new().await;
        let mut open = network.call().await.unwrap();
        exchange(&mut open, b"one").await.unwrap();
        network.proxies.set(0, 1, Mode::Hold);
        open.write_all(b"two").await.unwrap();
        nothing_comes(&mut open).await;
        network.proxies.set(0, 1, Mode::Pass);
        let mut answer = [0; 3];
        within_deadline("what was held", open.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"two");
    }

    #[tokio::test]
    async fn what_was_swallowed_is_lost_and_its_connection_with_it() {
        let network = Network::new().await;
        for mode in [Mode::HalfOpen, Mode::OneWay] {
            let mut open = network.call().await.unwrap();
            exchange(&mut open, b"one").await.unwrap();
            network.proxies.set(0, 1, mode);
            let mut new = network.call().await.unwrap();
            for stream in [&mut open, &mut new] {
                stream.write_all(b"two").await.unwrap();
                nothing_comes(stream).await;
            }
            network.proxies.set(0, 1, Mode::Pass);
            is_reset(&mut open).await;
            is_reset(&mut new).await;
        }
    }

    #[tokio::test]
    async fn a_delay_counts_both_ways() {
        let network = Network::new().await;
        network.proxies.set_all(Mode::Delay(Duration::from_millis(60)));
        let mut stream = network.call().await.unwrap();
        let begun = Instant::now();
        exchange(&mut stream, b"word").await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_slow_edge_is_slow_and_mended_at_once() {
        let network = Network::new().await;
        network.proxies.set(0, 1, Mode::Slow(1_000_000));
        let mut stream = network.call().await.unwrap();
        let begun = Instant::now();
        exchange(&mut stream, &[7; 100_000]).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
        // A byte an hour.
        network.proxies.set(0, 1, Mode::Slow(1));
        stream.write_all(&[7; 3600]).await.unwrap();
        nothing_comes(&mut stream).await;
        network.proxies.set(0, 1, Mode::Pass);
        within_deadline("the rest", stream.read_exact(&mut [0; 3600])).await.unwrap().unwrap();
    }
}
