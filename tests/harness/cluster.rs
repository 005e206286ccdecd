//! Clusters of real processes on this machine, with a proxy of ours on every edge between them.
//!
//! Each cluster has a loopback network of its own, `127.a.b.0/24`, so that every node keeps its addresses when it is
//! started again and no cluster meets another. In it, the node `i` listens at `.10+i`, calls others from there, and is
//! reached by them at `.110+i`, where its proxy is.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt as _;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

mod disks;

use crate::admin;
use crate::authority::{Authority, Identity};
use crate::clients::{Client, Trust};
use crate::process::{DEADLINE, Process, Server, command};
use crate::proxy::{Mode, Proxies, Stop};

/// The ports of every node; the address tells them apart.
const CLIENT_PORT: u16 = 8980;
const PEERS_PORT: u16 = 7980;
const ADMIN_PORT: u16 = 8982;

/// Whoever holds it at `.1` has the network.
const NETWORK_PORT: u16 = 7979;

/// Where the nodes and their proxies are in the network.
const NODES_FROM: u8 = 10;
const PROXIES_FROM: u8 = 110;

/// Nodes that vote, where there are as many and not ten.
const VOTERS_COUNT: usize = 3;

/// Networks that are tried before it is given up.
const NETWORK_ATTEMPTS: usize = 100;

/// Between two looks at a cluster.
const PAUSE: Duration = Duration::from_millis(30);

/// For what a few tests have written to be moved, on a machine that does other things as well.
const SETTLES: Duration = Duration::from_secs(120);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many. One has no peers, and is what a single node is.
    pub nodes: usize,
    /// Copies of a blob (N).
    pub copies: u8,
    /// Their zones, one after the other and from the start again; none for none.
    pub zones: Vec<&'static str>,
    /// Whether clients come with certificates; plaintext otherwise.
    pub client_tls: bool,
    /// Whether the nodes reach each other without the proxies: where it is measured what they cost.
    pub direct: bool,
    /// Fresh nodes that form a cluster together; as many as there are by default.
    pub bootstrap_expect: Option<usize>,
    /// Each node has a disk of its own, of so many bytes, which can be full. Only for root: it is mounted.
    pub disk_bytes: Option<u64>,
    /// Lines of TOML for every node: `store.capacity = "22MB"`.
    pub settings: Vec<String>,
}

/// Some nodes, running or not. Dropping it ends them, and removes what they have kept.
pub struct Cluster {
    // In this order: the processes are gone before their network and their directory.
    nodes: Vec<Node>,
    proxies: Proxies,
    network: Network,
    authority: Option<Authority>,
    /// Each node's own, if they have any.
    disks: Vec<Disk>,
    _dir: TempDir,
}

/// A mounted disk in memory. Dropping it unmounts it.
struct Disk(PathBuf);

struct Node {
    name: String,
    config: PathBuf,
    data: PathBuf,
    server: Option<Server>,
    is_paused: bool,
    /// The versions of the peer protocol that its program is to pass for.
    protocols: Option<&'static str>,
}

/// A network that nobody else has.
struct Network {
    prefix: [u8; 3],
    _held: TcpListener,
}

// === impl ClusterOptions ===

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            nodes: 3,
            copies: 2,
            zones: Vec::new(),
            client_tls: false,
            direct: false,
            bootstrap_expect: None,
            disk_bytes: None,
            settings: Vec::new(),
        }
    }
}

impl ClusterOptions {
    /// So many nodes with two copies.
    pub fn nodes(nodes: usize) -> ClusterOptions {
        ClusterOptions { nodes, ..ClusterOptions::default() }
    }

    /// With one more line of TOML for every node.
    #[must_use]
    pub fn set(mut self, line: &str) -> ClusterOptions {
        self.settings.push(line.to_owned());
        self
    }
}

// === impl Network ===

impl Network {
    fn claim() -> Result<Network> {
        for _ in 0..NETWORK_ATTEMPTS {
            let prefix = [127, rand::rng().random_range(16..240), rand::rng().random_range(0..=255)];
            let network = |held| Network { prefix, _held: held };
            let [a, b, c] = prefix;
            if let Ok(held) = TcpListener::bind((Ipv4Addr::new(a, b, c, 1), NETWORK_PORT)) {
                return Ok(network(held));
            }
        }
        bail!("no network 127.a.b.0/24 is free")
    }

    fn at(&self, from: u8, place: usize) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, from.saturating_add(u8::try_from(place).unwrap_or(u8::MAX)))
    }

    fn node(&self, place: usize) -> Ipv4Addr {
        self.at(NODES_FROM, place)
    }

    /// Without its proxy, the node says of itself where it listens.
    fn advertised(&self, place: usize, direct: bool) -> SocketAddr {
        let Stop { advertised, listens, .. } = self.stop(place);
        if direct { listens } else { advertised }
    }

    fn stop(&self, place: usize) -> Stop {
        let source = self.node(place);
        let advertised = SocketAddr::new(IpAddr::V4(self.at(PROXIES_FROM, place)), PEERS_PORT);
        Stop { source, advertised, listens: SocketAddr::new(IpAddr::V4(source), PEERS_PORT) }
    }
}

// === impl Disk ===

impl Disk {
    fn mount(at: &Path, bytes: u64) -> Result<Disk> {
        std::fs::create_dir(at)?;
        let options = format!("size={bytes}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "casbah-test"]).arg(at).status()?;
        ensure!(status.success(), "no disk was mounted, which only root can do: {status}");
        Ok(Disk(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        if !status.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!("{} stays mounted: {status:?}", self.0.display());
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts every node, and waits until they are one cluster.
    ///
    /// # Errors
    /// When they do not become one.
    pub fn start(options: &ClusterOptions) -> Result<Cluster> {
        let mut cluster = Cluster::prepare(options)?;
        cluster.start_all()?;
        cluster.wait_formed(&cluster.places())?;
        Ok(cluster)
    }

    /// Writes what the nodes need, and starts none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare(options: &ClusterOptions) -> Result<Cluster> {
        ensure!((1..=100).contains(&options.nodes), "{} nodes", options.nodes);
        let (dir, network) = (tempfile::tempdir()?, Network::claim()?);
        let stops: Vec<Stop> = (0..options.nodes).map(|place| network.stop(place)).collect();
        let proxies = Proxies::start(&stops)?;
        let peers = Authority::new("casbah peers")?;
        std::fs::write(dir.path().join("peers-ca.crt"), peers.certificate_pem())?;
        let authority = if options.client_tls { Some(Authority::new("casbah clients")?) } else { None };
        if let Some(authority) = &authority {
            let names: Vec<String> = stops.iter().map(|stop| stop.source.to_string()).collect();
            authority.server_named(&names)?.write(dir.path(), "server")?;
            std::fs::write(dir.path().join("clients-ca.crt"), authority.certificate_pem())?;
        }
        let (mut nodes, mut disks) = (Vec::new(), Vec::new());
        for place in 0..options.nodes {
            let name = format!("node-{}", place + 1);
            if let Some(bytes) = options.disk_bytes {
                disks.push(Disk::mount(&dir.path().join(&name), bytes)?);
            }
            peers.peer(&name, &[network.node(place).to_string()])?.write(dir.path(), &name)?;
            let (config, data) = (dir.path().join(format!("{name}.toml")), dir.path().join(&name));
            std::fs::write(&config, settings(options, &network, place, dir.path()))?;
            nodes.push(Node { name, config, data, server: None, is_paused: false, protocols: None });
        }
        Ok(Cluster { nodes, proxies, network, authority, disks, _dir: dir })
    }

    /// Starts those that do not run, all at once, and waits until each says that it is ready.
    ///
    /// # Errors
    /// When one does not.
    pub fn start_all(&mut self) -> Result<()> {
        std::thread::scope(|scope| {
            let idle = self.nodes.iter_mut().filter(|node| node.server.is_none());
            let starting: Vec<_> = idle.map(|node| scope.spawn(|| node.start())).collect();
            starting.into_iter().try_for_each(|thread| thread.join().expect("starting does not panic"))
        })
    }

    /// How many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The places of all nodes.
    pub fn places(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// The places of all others.
    pub fn others(&self, place: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != place).collect()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self, place: usize) -> Result<()> {
        self.take(place)?.kill9()?;
        Ok(())
    }

    /// `kill -9` of all that run, at once.
    ///
    /// # Errors
    /// When one of them has ended by itself.
    pub fn kill9_all(&mut self) -> Result<()> {
        let running: Vec<Server> = self.nodes.iter_mut().filter_map(|node| node.server.take()).collect();
        for server in &running {
            server.signal(Signal::KILL)?;
        }
        running.iter().try_for_each(|server| server.wait_exit().map(drop))
    }

    /// Waits until a node ends by itself, and returns how.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn ends(&mut self, place: usize) -> Result<ExitStatus> {
        self.take(place)?.wait_exit()
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not run, or does not end well.
    pub fn stop(&mut self, place: usize) -> Result<()> {
        let status = self.take(place)?.stop()?;
        ensure!(status.success(), "node {place} ended with {status}");
        Ok(())
    }

    /// SIGSTOP: it keeps its connections and says nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self, place: usize) -> Result<()> {
        self.server(place)?.signal(Signal::STOP)?;
        self.node_mut(place)?.is_paused = true;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self, place: usize) -> Result<()> {
        self.server(place)?.signal(Signal::CONT)?;
        self.node_mut(place)?.is_paused = false;
        Ok(())
    }

    /// Starts a node that does not run, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self, place: usize) -> Result<()> {
        self.node_mut(place)?.start()
    }

    /// Has a node pass for an older or a newer program, which speaks these versions, from its next start on: `1-2`.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn passes_for(&mut self, place: usize, protocols: &'static str) -> Result<()> {
        self.node_mut(place)?.protocols = Some(protocols);
        Ok(())
    }

    /// Replaces a node's program by another one, as an upgrade does: SIGTERM, a start, and on to the next one when all is well.
    ///
    /// # Errors
    /// When the old one does not end well, or the new one does not become a part of the cluster.
    pub fn replace(&mut self, place: usize, protocols: &'static str) -> Result<()> {
        self.stop(place)?;
        self.passes_for(place, protocols)?;
        self.restart(place)?;
        self.wait_formed(&self.places())
    }

    /// Starts a node that does not run and will not get ready, and leaves it to the caller.
    ///
    /// # Errors
    /// When it runs.
    pub fn start_in_vain(&self, place: usize) -> Result<Process> {
        let node = self.node(place)?;
        ensure!(node.server.is_none(), "{} runs already", node.name);
        Process::spawn(node.command()?)
    }

    /// Removes everything that a node has kept, which does not run.
    ///
    /// # Errors
    /// When it runs.
    pub fn wipe(&mut self, place: usize) -> Result<()> {
        let node = self.node_mut(place)?;
        ensure!(node.server.is_none(), "{} runs", node.name);
        Ok(std::fs::remove_dir_all(&node.data)?)
    }

    /// Ends everything that is wrong with nodes, disks and edges: all run, all reach each other.
    ///
    /// # Errors
    /// When a node does not start.
    pub fn mend(&mut self) -> Result<()> {
        self.proxies.set_all(Mode::Pass);
        for place in self.places() {
            match std::fs::remove_file(self.ballast(place)?) {
                // A log that could not be written is closed until the node starts anew, for which it may have ended already.
                Ok(()) => drop(self.take(place)?.kill9()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        for place in self.places() {
            if self.node(place)?.is_paused {
                self.resume(place)?;
            }
        }
        self.start_all()
    }

    /// The network between the nodes.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }

    /// The process of a node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn server(&self, place: usize) -> Result<&Server> {
        let node = self.node(place)?;
        node.server.as_ref().with_context(|| format!("{} does not run", node.name))
    }

    /// What a node keeps.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn data(&self, place: usize) -> Result<&Path> {
        Ok(&self.node(place)?.data)
    }

    /// Where clients connect to, `host:port`, whether the node runs or not.
    pub fn authority(&self, place: usize) -> String {
        format!("{}:{CLIENT_PORT}", self.network.node(place))
    }

    /// The same for all nodes.
    pub fn authorities(&self) -> Vec<String> {
        self.places().into_iter().map(|place| self.authority(place)).collect()
    }

    /// The admin port.
    pub fn admin(&self, place: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.network.node(place)), ADMIN_PORT)
    }

    /// A client of this node, with a certificate where one is asked for.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn client(&self, place: usize) -> Result<Client> {
        match &self.authority {
            None => Client::plaintext(&self.authority(place)).await,
            Some(authority) => {
                let trust = Trust::Authority(authority.certificate_pem().to_owned());
                Client::tls(&self.authority(place), &trust, Some(&authority.client("client")?)).await
            }
        }
    }

    /// A client of each node.
    ///
    /// # Errors
    /// When one cannot be reached.
    pub async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for place in self.places() {
            clients.push(self.client(place).await?);
        }
        Ok(clients)
    }

    /// What clients trust, and who they are.
    ///
    /// # Errors
    /// When they speak plaintext.
    pub fn client_identity(&self) -> Result<(String, Identity)> {
        let authority = self.authority.as_ref().context("clients of this cluster have no certificates")?;
        Ok((authority.certificate_pem().to_owned(), authority.client("client")?))
    }

    /// What a node says of itself (`/status.json`).
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self, place: usize) -> Result<Value> {
        admin::status(self.admin(place))
    }

    /// The id of the cluster that a node says it is in.
    ///
    /// # Errors
    /// When it does not answer, or is in none.
    pub fn cluster_id(&self, place: usize) -> Result<String> {
        let id = self.status(place)?.pointer("/cluster/id").and_then(Value::as_str).map(str::to_owned);
        id.context("it is in no cluster")
    }

    /// The place of the leader, once the nodes that run agree on one that does.
    ///
    /// # Errors
    /// When they do not within [`DEADLINE`].
    pub fn leader(&self) -> Result<usize> {
        let mut found = None;
        self.wait("there is one leader", || {
            found = self.agreed_leader();
            Ok(found.is_some())
        })?;
        found.context("there is none")
    }

    /// A place that is not the leader's.
    ///
    /// # Errors
    /// As [`Cluster::leader`].
    pub fn follower(&self) -> Result<usize> {
        self.others(self.leader()?).into_iter().next().context("there is only one node")
    }

    fn agreed_leader(&self) -> Option<usize> {
        let asked: Vec<usize> = self.places().into_iter().filter(|place| self.answers(*place)).collect();
        let mut leaders = asked.iter().map(|place| self.leader_of(*place));
        let first = leaders.next()??;
        (leaders.all(|leader| leader == Some(first)) && asked.contains(&first)).then_some(first)
    }

    /// Which node this node thinks is the leader.
    fn leader_of(&self, place: usize) -> Option<usize> {
        let status = self.status(place).ok()?;
        let leader = status.pointer("/cluster/raft/leader")?;
        let members = status.pointer("/cluster/members")?.as_array()?;
        let name = members.iter().find(|member| member.get("id") == Some(leader))?.get("name")?.as_str()?;
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Waits until these nodes are ready, in one cluster, of which all of them know each other, the leader and all voters.
    ///
    /// # Errors
    /// When that takes longer than [`DEADLINE`].
    pub fn wait_formed(&self, places: &[usize]) -> Result<()> {
        let mut last = Ok(());
        let waited = self.wait("the nodes have formed a cluster", || {
            last = self.formed(places);
            Ok(last.is_ok())
        });
        waited.and(last)
    }

    fn formed(&self, places: &[usize]) -> Result<()> {
        let mut ids = Vec::new();
        for place in places {
            let ready = admin::get(self.admin(*place), "/readyz")?;
            ensure!(ready.status == 200, "node {place} is not ready: {}", ready.body);
            if self.nodes.len() == 1 {
                continue;
            }
            let status = self.status(*place)?;
            let members = status.pointer("/cluster/members").and_then(Value::as_array).context("no members")?;
            for other in places {
                let name = &self.node(*other)?.name;
                let of_name = |member: &&Value| member.get("name").and_then(Value::as_str) == Some(name);
                let member = members.iter().find(of_name);
                let reachable = member.and_then(|member| member.get("reachable")).and_then(Value::as_bool);
                ensure!(other == place || reachable == Some(true), "node {place} does not reach {name}: {member:?}");
            }
            ensure!(self.leader_of(*place).is_some(), "node {place} knows no leader");
            // Until then, the loss of one node may be the loss of a majority.
            let voters = status.pointer("/cluster/raft/voters").and_then(Value::as_array).map_or(0, Vec::len);
            ensure!(voters >= places.len().min(VOTERS_COUNT), "node {place} knows of {voters} voters");
            ids.push(status.pointer("/cluster/id").cloned());
        }
        ensure!(ids.windows(2).all(|pair| pair.first() == pair.last()), "several clusters: {ids:?}");
        Ok(())
    }

    /// Waits until there is one layout, of these nodes alone, and each of them has all that it gives it.
    ///
    /// # Errors
    /// When that takes longer than two minutes.
    pub fn wait_settled(&self, places: &[usize]) -> Result<()> {
        self.wait_for(SETTLES, "there is one layout, of which each node has its part", || {
            Ok(places.iter().all(|place| self.is_settled(*place, places.len()).unwrap_or(false)))
        })
    }

    fn is_settled(&self, place: usize, members: usize) -> Result<bool> {
        let status = self.status(place)?;
        let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
        let count = |pointer: &str| status.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
        let synced = number("/cluster/repair/synced_epoch");
        let is_synced = synced.is_some() && synced == number("/cluster/epoch");
        Ok(count("/cluster/epochs") == 1 && count("/cluster/members") == members && is_synced)
    }

    fn answers(&self, place: usize) -> bool {
        self.node(place).is_ok_and(|node| node.server.is_some() && !node.is_paused)
    }

    fn wait(&self, what: &str, ask: impl FnMut() -> Result<bool>) -> Result<()> {
        self.wait_for(DEADLINE, what, ask)
    }

    fn wait_for(&self, patience: Duration, what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
        let until = Instant::now() + patience;
        while !ask()? {
            for node in &self.nodes {
                let ended = node.server.as_ref().is_some_and(|server| !server.is_running());
                ensure!(!ended, "{} has ended by itself", node.name);
            }
            ensure!(Instant::now() < until, "still not after {patience:?}: {what}");
            std::thread::sleep(PAUSE); // why: a cluster does not announce what becomes of it
        }
        Ok(())
    }

    fn node(&self, place: usize) -> Result<&Node> {
        self.nodes.get(place).with_context(|| format!("there is no node {place}"))
    }

    fn node_mut(&mut self, place: usize) -> Result<&mut Node> {
        self.nodes.get_mut(place).with_context(|| format!("there is no node {place}"))
    }

    fn take(&mut self, place: usize) -> Result<Server> {
        let node = self.node_mut(place)?;
        node.is_paused = false;
        node.server.take().with_context(|| format!("{} does not run", node.name))
    }
}

// === impl Node ===

impl Node {
    fn start(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "{} runs already", self.name);
        self.server = Some(Server::start_command(self.command()?)?);
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let config = self.config.to_str().context("the temporary directory is not UTF-8")?;
        let mut command = command(&["serve", "--config", config]);
        if let Some(protocols) = self.protocols {
            command.env("CASBAH_TEST_PROTOCOLS", protocols);
        }
        Ok(command)
    }
}

/// A node's configuration.
fn settings(options: &ClusterOptions, network: &Network, place: usize, dir: &Path) -> String {
    let (name, address) = (format!("node-{}", place + 1), network.node(place));
    let dir = dir.display();
    let mut text =
        format!("node.name = \"{name}\"\nnode.dir = '{dir}/{name}'\nadmin.address = \"{address}:{ADMIN_PORT}\"\n");
    if options.nodes > 1 {
        let advertised = |place| network.advertised(place, options.direct);
        let join: Vec<String> = (0..options.nodes).map(|other| advertised(other).to_string()).collect();
        let expected = options.bootstrap_expect.unwrap_or(options.nodes);
        let zone = options.zones.iter().cycle().nth(place).unwrap_or(&"");
        let (advertised, Stop { source, listens, .. }) = (advertised(place), network.stop(place));
        let _infallible = write!(
            text,
            "cluster.copies = {}\ncluster.bootstrap_expect = {expected}\ncluster.join = {join:?}\n\
             cluster.zone = \"{zone}\"\n\
             peers.address = \"{listens}\"\npeers.advertise = \"{advertised}\"\npeers.dial_from = \"{source}\"\n\
             peers.tls = {{ certificate = '{dir}/{name}.crt', key = '{dir}/{name}.key' }}\n\
             peers.authorities = '{dir}/peers-ca.crt'\n",
            options.copies
        );
    }
    for line in &options.settings {
        text.push_str(line);
        text.push('\n');
    }
    let _infallible =
        write!(text, "\n[[listener]]\naddress = \"{address}:{CLIENT_PORT}\"\nallow = [\"read\", \"write\"]\n");
    if options.client_tls {
        let _infallible = write!(
            text,
            "tls = {{ certificate = '{dir}/server.crt', key = '{dir}/server.key' }}\n\
             clients = \"certificate\"\nauthorities = '{dir}/clients-ca.crt'\n"
        );
    }
    text
}
