//! Packets between the nodes of a cluster that are dropped on their way, as a network does that is cut: what is open stays open and
//! hears nothing. Only inside a network of one's own (`kubernetes::inside`), whose packets nobody else wants.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;

const TABLE: [&str; 3] = ["ip", "casbah_test", "dropped"];

/// Which packets are dropped.
pub struct Packets {
    /// Of each node: where it listens and whence it calls.
    addresses: Vec<IpAddr>,
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("{program} cannot be run"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Has the network of one's own carry something, to itself.
///
/// # Errors
/// When this is not the place for it.
pub fn loopback_up() -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])
}

// === impl Packets ===

impl Packets {
    /// Of the nodes of this cluster, which reach each other directly. None is dropped yet.
    ///
    /// # Errors
    /// When nft does not do as it is told.
    pub fn of(cluster: &Cluster) -> Result<Packets> {
        let [family, table, chain] = TABLE;
        run("nft", &["add", "table", family, table])?;
        run("nft", &["add", "chain", family, table, chain, "{ type filter hook output priority 0 ; }"])?;
        Ok(Packets { addresses: cluster.places().into_iter().map(|place| cluster.admin(place).ip()).collect() })
    }

    /// From now on nothing goes from any of these nodes to any of those.
    ///
    /// # Errors
    /// When nft does not do as it is told.
    pub fn drop_between(&self, from: &[usize], to: &[usize]) -> Result<()> {
        let [family, table, chain] = TABLE;
        let set = |places: &[usize]| {
            let addresses = places.iter().filter_map(|place| self.addresses.get(*place)).map(ToString::to_string);
            format!("{{ {} }}", addresses.collect::<Vec<_>>().join(", "))
        };
        let (from, to) = (set(from), set(to));
        run("nft", &["add", "rule", family, table, chain, "ip", "saddr", &from, "ip", "daddr", &to, "drop"])
    }

    /// Everything arrives again.
    ///
    /// # Errors
    /// When nft does not do as it is told.
    pub fn pass(&self) -> Result<()> {
        let [family, table, chain] = TABLE;
        run("nft", &["flush", "chain", family, table, chain])
    }
}
