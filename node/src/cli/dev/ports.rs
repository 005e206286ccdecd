//! Ports for the nodes: each is free on both addresses of `localhost`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use crate::cli::error::Failure;

/// The ports of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    /// Anyone, reading.
    pub(super) public: u16,
    /// Reading and writing.
    pub(super) client: u16,
    /// Probes, metrics and status.
    pub(super) admin: u16,
    /// The other nodes; `None` where there are none.
    pub(super) peer: Option<u16>,
}

/// Between the ports of one node and those of the next.
const STRIDE: u16 = 10;

/// Attempts to find a port that is free on both addresses.
const ATTEMPTS: usize = 16;

/// The ports of `nodes` nodes from `base` on: `base + 1` to `base + 4`, then ten further each; 0 for any free ones.
///
/// They are free now; somebody else may take one before the node does, which the node then tells.
pub(super) fn choose(base: u16, nodes: u16) -> Result<Vec<Ports>, Failure> {
    if base == 0 {
        return any(nodes);
    }
    let mut ports = Vec::new();
    for index in 0..nodes {
        let of_node = |offset: u16| base.checked_add(index.checked_mul(STRIDE)?)?.checked_add(offset);
        let (Some(public), Some(client), Some(admin), Some(peer)) = (of_node(1), of_node(2), of_node(3), of_node(4))
        else {
            return Err(Failure::new(format!("--port-base {base}: ports end at 65535")).hint("take a lower one"));
        };
        let peer = (nodes > 1).then_some(peer);
        for port in [Some(public), Some(client), Some(admin), peer].into_iter().flatten() {
            hold(port).map_err(|error| taken(port, &error))?;
        }
        ports.push(Ports { public, client, admin, peer });
    }
    Ok(ports)
}

fn any(nodes: u16) -> Result<Vec<Ports>, Failure> {
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut next = || {
        let mut outcome = hold(0);
        for _ in 1..ATTEMPTS {
            if outcome.is_ok() {
                break;
            }
            outcome = hold(0);
        }
        let (port, listeners) = outcome.map_err(|error| Failure::caused("cannot find a free port", &error))?;
        held.push(listeners);
        Ok::<u16, Failure>(port)
    };
    let mut of_node = || -> Result<Ports, Failure> {
        let (public, client, admin) = (next()?, next()?, next()?);
        let peer = if nodes > 1 { Some(next()?) } else { None };
        Ok(Ports { public, client, admin, peer })
    };
    (0..nodes).map(|_| of_node()).collect()
}

/// Takes the port on both addresses; a machine without IPv6 has one.
fn hold(port: u16) -> io::Result<(u16, Vec<TcpListener>)> {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = four.local_addr()?.port();
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        Ok(six) => Ok((port, vec![four, six])),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_no_ipv6) => Ok((port, vec![four])),
    }
}

fn taken(port: u16, error: &io::Error) -> Failure {
    let hint = "choose other ports, such as --port-base 12000, or --port-base 0 for any free ones";
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(format!("port {port} is taken by another program")).hint(hint),
        _ => Failure::caused(format!("cannot listen on port {port}"), error).hint(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Colours;

    #[test]
    fn free_ports_are_all_different() {
        let ports = choose(0, 3).unwrap();
        let of_node = |ports: &Ports| [ports.public, ports.client, ports.admin, ports.peer.unwrap()];
        let mut all: Vec<u16> = ports.iter().flat_map(of_node).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12);
    }

    #[test]
    fn a_node_alone_has_no_port_for_others() {
        assert_eq!(choose(0, 1).unwrap().first().unwrap().peer, None);
    }

    #[test]
    fn a_port_that_is_taken_on_either_address_is_told() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Where a machine has no IPv6, there is nothing to see.
            let Ok(other) = TcpListener::bind(address) else { continue };
            let port = other.local_addr().unwrap().port();
            let told = choose(port - 2, 1).unwrap_err().render(Colours::NONE);
            assert_eq!(
                told,
                format!(
                    "error: port {port} is taken by another program\n\
                     hint: choose other ports, such as --port-base 12000, or --port-base 0 for any free ones\n"
                )
            );
        }
    }

    #[test]
    fn ports_beyond_the_last_are_told() {
        let told = choose(65534, 1).unwrap_err().render(Colours::NONE);
        assert!(told.starts_with("error: --port-base 65534: ports end at 65535\n"), "{told}");
    }
}
