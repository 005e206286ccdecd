//! What `casbah dev` puts on the disk before any node runs.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::ports::{self, Ports};
use super::printout;
use crate::authenticate::throwaway::{PeerSet, Throwaway};
use crate::cli::args::DevArguments;
use crate::cli::error::Failure;

/// Everything that is known before the nodes run.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    /// To be removed at the end.
    pub(super) temporary: bool,
    /// `None`: plaintext.
    pub(super) certificates: Option<Throwaway>,
    /// On how many nodes each blob is kept.
    pub(super) copies: u16,
    pub(super) nodes: Vec<NodeLayout>,
}

/// The same for one node.
#[derive(Debug, Clone)]
pub(super) struct NodeLayout {
    pub(super) name: String,
    pub(super) ports: Ports,
    /// Its configuration.
    pub(super) config: PathBuf,
    /// What it writes to standard error.
    pub(super) log: PathBuf,
    /// What it keeps.
    pub(super) data: PathBuf,
}

// === impl Layout ===

impl Layout {
    /// Chooses ports, makes certificates and writes the files. What is made in a temporary directory goes again when
    /// something fails.
    pub(super) fn make(arguments: &DevArguments) -> Result<Layout, Failure> {
        let ports = ports::choose(arguments.port_base, arguments.nodes)?;
        let (dir, temporary) = match &arguments.dir {
            Some(dir) => (make_dir(dir)?, false),
            None => (make_dir(&std::env::temp_dir().join(format!("casbah-dev-{}", short_id())))?, true),
        };
        if let Some(others) = made_for(&dir).filter(|count| *count != arguments.nodes) {
            let message = format!("{} has the data of {others} node(s), not of {}", dir.display(), arguments.nodes);
            return Err(Failure::new(message).hint(format!("take --nodes {others}, or another directory")));
        }
        let made = Layout::fill(&dir, temporary, &ports, arguments);
        if made.is_err() && temporary {
            // The failure is what is told; an empty directory more or less is not.
            let _best_effort = std::fs::remove_dir_all(&dir);
        }
        made
    }

    fn fill(dir: &Path, temporary: bool, ports: &[Ports], arguments: &DevArguments) -> Result<Layout, Failure> {
        let certificates = if arguments.insecure { None } else { Some(certificates(&dir.join("tls"))?) };
        if ports.len() > 1 {
            PeerSet::ensure(&dir.join("peers")).map_err(|error| Failure::caused("cannot make certificates", &error))?;
        }
        let node = |(index, ports): (usize, &Ports)| NodeLayout::at(dir, index + 1, *ports);
        let nodes = ports.iter().enumerate().map(node).collect();
        let copies = arguments.replicas.min(arguments.nodes);
        let layout = Layout { dir: dir.to_path_buf(), temporary, certificates, copies, nodes };
        for node in &layout.nodes {
            let folder = node.config.parent().unwrap_or(dir);
            std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
            write(&node.config, &node.settings(&layout))?;
        }
        if let Some(node) = layout.nodes.first() {
            let certificates = layout.certificates.as_ref();
            write(&layout.buildstream_file(), &printout::buildstream(node, certificates))?;
            write(&layout.bazel_file(), &printout::bazel(node, certificates))?;
        }
        Ok(layout)
    }

    /// What a node is told of the cluster; nothing for one that is alone.
    fn cluster_settings(&self, node: &NodeLayout) -> String {
        let Some(peer) = node.ports.peer else { return String::new() };
        let all = self.nodes.iter().filter_map(|node| node.ports.peer);
        let join: Vec<String> = all.map(|port| format!("localhost:{port}")).collect();
        format!(
            "# Each blob is kept on {copies} of {nodes} nodes.\n[cluster]\nname = \"dev\"\ncopies = {copies}\n\
             bootstrap_expect = {nodes}\njoin = {join:?}\n\n\
             # The other nodes, with certificates of their own.\n[peers]\n\
             address = \"localhost:{peer}\"\nadvertise = \"localhost:{peer}\"\n\
             tls = {{ certificate = \"../peers/peer.crt\", key = \"../peers/peer.key\" }}\n\
             authorities = \"../peers/ca.crt\"\n\n",
            copies = self.copies,
            nodes = self.nodes.len(),
        )
    }

    /// The user configuration for `bst --config`.
    pub(super) fn buildstream_file(&self) -> PathBuf {
        self.dir.join("buildstream.conf")
    }

    /// The options for `bazel --bazelrc`.
    pub(super) fn bazel_file(&self) -> PathBuf {
        self.dir.join("bazelrc")
    }
}

// === impl NodeLayout ===

impl NodeLayout {
    pub(super) fn at(dir: &Path, number: usize, ports: Ports) -> NodeLayout {
        let name = format!("node-{number}");
        let folder = dir.join(&name);
        NodeLayout {
            name,
            ports,
            config: folder.join("casbah.toml"),
            log: folder.join("log"),
            data: folder.join("data"),
        }
    }

    /// Its configuration file. Paths in it are relative, so that the directory can be moved.
    fn settings(&self, layout: &Layout) -> String {
        let NodeLayout { name, ports: Ports { public, client, admin, .. }, .. } = self;
        let (insecure, cluster) = (layout.certificates.is_none(), layout.cluster_settings(self));
        let (tls, trust) = if insecure {
            ("", "")
        } else {
            (
                "tls = { certificate = \"../tls/server.crt\", key = \"../tls/server.key\" }\n",
                "clients = \"certificate\"\nauthorities = \"../tls/ca.crt\"\n",
            )
        };
        let who = if insecure { "Everybody on this machine" } else { "Those with the client certificate" };
        format!(
            "# Written by `casbah dev`, anew each time it starts.\n\n\
             [node]\nname = \"{name}\"\ndir = \"data\"\n\n\
             [store]\ncapacity = \"10GiB\"\n\n{cluster}\
             # Probes, metrics and status.\n[admin]\naddress = \"localhost:{admin}\"\n\n\
             # Anyone may read.\n[[listener]]\naddress = \"localhost:{public}\"\n{tls}allow = [\"read\"]\n\n\
             # {who} may read and write.\n[[listener]]\naddress = \"localhost:{client}\"\n{tls}{trust}\
             allow = [\"read\", \"write\"]\n"
        )
    }
}

/// How many nodes have left data in this directory, if any have.
fn made_for(dir: &Path) -> Option<u16> {
    let count = (1..=u16::MAX).take_while(|number| dir.join(format!("node-{number}/data")).exists()).count();
    u16::try_from(count).ok().filter(|count| *count > 0)
}

fn certificates(dir: &Path) -> Result<Throwaway, Failure> {
    Throwaway::ensure(dir, &[], "client").map_err(|error| Failure::caused("cannot make certificates", &error))
}

/// Makes a directory for this user alone, if it is not there; its path from the root.
fn make_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| dir.canonicalize()).map_err(|error| {
        Failure::caused(format!("cannot use the directory {}", dir.display()), &error)
            .hint("name another one with --dir")
    })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    Failure::caused(format!("cannot write {}", path.display()), error)
}

/// Enough to tell directories of one machine apart.
fn short_id() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Clients, Machine, Sources};

    fn arguments(dir: Option<PathBuf>, insecure: bool) -> DevArguments {
        let output = crate::cli::args::OutputFormat::Text;
        DevArguments { nodes: 1, replicas: 1, dir, port_base: 0, insecure, output }
    }

    #[test]
    fn other_nodes_than_those_that_have_left_data_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let of = |nodes| DevArguments { nodes, ..arguments(Some(folder.path().into()), true) };
        let layout = Layout::make(&of(3)).unwrap();
        for node in &layout.nodes {
            std::fs::create_dir(&node.data).unwrap();
        }
        assert_eq!(Layout::make(&of(3)).unwrap().nodes.len(), 3);
        let told = Layout::make(&of(1)).unwrap_err().render(crate::cli::output::Colours::NONE);
        assert!(
            told.contains("has the data of 3 node(s), not of 1\nhint: take --nodes 3, or another directory"),
            "{told}"
        );
    }

    #[test]
    fn nodes_are_told_of_each_other() {
        let folder = tempfile::tempdir().unwrap();
        for nodes in [1, 3, 5] {
            let arguments = DevArguments { nodes, replicas: 4, ..arguments(Some(folder.path().into()), true) };
            let layout = Layout::make(&arguments).unwrap();
            assert_eq!((layout.nodes.len(), layout.copies), (usize::from(nodes), nodes.min(4)));
            for node in &layout.nodes {
                let sources =
                    Sources { file: Some(node.config.clone()), machine: Machine::this(), ..Sources::default() };
                let config = sources.load().unwrap().config;
                assert_eq!(config.peers.is_some(), nodes > 1);
                let expected = usize::from(if nodes > 1 { nodes } else { 0 });
                assert_eq!(config.cluster.join.len(), expected);
            }
        }
    }

    fn config(layout: &Layout) -> crate::config::Config {
        let file = Some(layout.nodes.first().unwrap().config.clone());
        Sources { file, machine: Machine::this(), ..Sources::default() }.load().unwrap().config
    }

    #[test]
    fn a_node_has_a_public_and_an_authenticated_address() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::make(&arguments(Some(folder.path().join("new/dir")), false)).unwrap();
        let config = config(&layout);
        let node = layout.nodes.first().unwrap();
        let [public, client] = &*config.listeners else { panic!("{:?}", config.listeners) };
        assert_eq!((public.address.port, client.address.port), (node.ports.public, node.ports.client));
        assert!(public.allow.read && !public.allow.write && client.allow.read && client.allow.write);
        assert_eq!(public.clients, Clients::Anyone);
        assert!(matches!(&client.clients, Clients::Certificate { authorities: Some(path), .. } if path.exists()));
        assert!(public.tls.as_ref().is_some_and(|tls| tls.certificate.exists() && tls.key.exists()));
        assert_eq!(config.node.dir, node.data);
        assert!(config.admin.is_some_and(|admin| admin.port == node.ports.admin && admin.is_loopback()));
        assert!(!layout.temporary);
    }

    #[test]
    fn without_certificates_both_are_plaintext_and_open_to_this_machine() {
        let layout = Layout::make(&arguments(None, true)).unwrap();
        let config = config(&layout);
        assert!(config.listeners.iter().all(|listener| listener.tls.is_none() && listener.address.is_loopback()));
        assert!(layout.temporary);
        std::fs::remove_dir_all(&layout.dir).unwrap();
    }

    #[test]
    fn a_directory_that_is_used_again_keeps_its_certificates_and_data() {
        let folder = tempfile::tempdir().unwrap();
        let first = Layout::make(&arguments(Some(folder.path().into()), false)).unwrap();
        let node = first.nodes.first().unwrap();
        std::fs::create_dir(&node.data).unwrap();
        let authority = std::fs::read(&first.certificates.unwrap().authority).unwrap();
        let again = Layout::make(&arguments(Some(folder.path().into()), false)).unwrap();
        assert_eq!(std::fs::read(&again.certificates.unwrap().authority).unwrap(), authority);
        assert!(again.nodes.first().unwrap().data.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let failure = Layout::make(&arguments(Some(file.join("below")), false)).unwrap_err();
        let told = failure.render(crate::cli::output::Colours::NONE);
        assert!(told.starts_with("error: cannot use the directory") && told.contains("hint: name another"), "{told}");
    }
}
