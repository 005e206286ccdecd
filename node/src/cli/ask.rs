//! What commands ask of the admin port of a node.

use std::io;

use serde::de::DeserializeOwned;

use super::args::{AskArguments, OutputFormat};
use super::error::Failure;
use super::{http, output};
use crate::config::{AddressError, ListenAddress};
use crate::observe::cluster::Cluster;
use crate::observe::orders::Order;
use crate::observe::snapshot::{FORMAT, Snapshot};

/// The address of an admin port.
///
/// # Errors
/// When it is none.
pub(super) fn admin(text: &str) -> Result<ListenAddress, Failure> {
    text.parse().map_err(|error: AddressError| {
        Failure::caused("--admin", &error).hint("name the admin port of a node, such as localhost:8982")
    })
}

/// A page, as text and as what it says.
///
/// # Errors
/// When the node cannot be asked, or its answer cannot be read.
pub(super) fn page<T: DeserializeOwned>(admin: &ListenAddress, path: &str) -> Result<(T, String), Failure> {
    let answer = http::get(admin, path).map_err(|error| unreachable(admin, &error))?;
    match serde_json::from_str(&answer.body) {
        Ok(data) if answer.status == 200 => Ok((data, answer.body)),
        _ if answer.status == 503 => Err(Failure::new(format!("{admin}: {}", answer.body.trim_end()))
            .hint("casbah status says what the node waits for")),
        _ => Err(Failure::new(format!("{admin} did not answer as the admin port of a node does"))
            .hint("look at admin.address in the node's configuration")),
    }
}

/// The status of a node, as text and as what it says.
///
/// # Errors
/// As [`page`], and when the node is of a version that is not understood.
pub(super) fn status(admin: &ListenAddress) -> Result<(Snapshot, String), Failure> {
    let (snapshot, body): (Snapshot, String) = page(admin, "/status.json")?;
    if snapshot.format != FORMAT {
        let message = format!("the node speaks format {} of its status, this program {FORMAT}", snapshot.format);
        return Err(Failure::new(message).hint("use the program that the node runs"));
    }
    Ok((snapshot, body))
}

/// The cluster as a node sees it.
///
/// # Errors
/// As [`status`], and when the node is in none.
pub(super) fn cluster(arguments: &AskArguments) -> Result<Cluster, Failure> {
    let admin = admin(&arguments.admin)?;
    let (snapshot, _) = status(&admin)?;
    snapshot.cluster.ok_or_else(|| {
        Failure::new(format!("the node {} at {admin} is in no cluster (yet)", snapshot.name))
            .hint("its log says what it waits for: other nodes (cluster.bootstrap_expect, cluster.join), or a leader")
    })
}

/// Has something done to the cluster. `hint` is what helps when it is refused.
///
/// # Errors
/// When it is refused, or cannot be done now, and when the node cannot be asked.
pub(super) fn order(admin: &ListenAddress, order: &Order, hint: &str) -> Result<(), Failure> {
    let json = serde_json::to_string(order).map_err(|error| Failure::from_error(&error))?;
    let answer = http::order(admin, &json).map_err(|error| unreachable(admin, &error))?;
    let reason = answer.body.trim_end().to_owned();
    match answer.status {
        200 => Ok(()),
        409 => Err(Failure::new(reason).hint(hint)),
        403 => Err(Failure::new(format!("{admin}: {reason}"))
            .hint("give the command on the machine of any node of the cluster; in a container: inside of it")),
        503 => Err(Failure::new(reason).hint("casbah raft status says whether somebody leads; try again then")),
        _ => Err(Failure::new(format!("{admin} did not answer as the admin port of a node does"))
            .hint("look at admin.address in the node's configuration, and use the program that the node runs")),
    }
}

/// Prints for eyes or for machines.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn show(
    format: OutputFormat,
    data: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        OutputFormat::Json => output::print_json(data),
        OutputFormat::Text => output::print(&text()),
    }
}

/// The node does not answer.
pub(super) fn unreachable(admin: &ListenAddress, error: &io::Error) -> Failure {
    Failure::caused(format!("cannot ask the node at {admin}"), error).hint(
        "does it run, and does its configuration set admin.address? --admin names another address; `casbah dev` prints its own",
    )
}
