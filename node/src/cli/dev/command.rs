//! The command: starts the nodes, says how to use them, watches them, and stops them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::formation;
use super::layout::Layout;
use super::printout;
use super::process::{Ending, Node};
use crate::cli::args::{DevArguments, OutputFormat};
use crate::cli::error::Failure;
use crate::cli::output::{self, Colours};

/// Enough for every experiment on one machine. Ports that belong to one node do not reach into another hundred.
const NODES_MAX: u16 = 32;

/// A node that does not serve by then hangs.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Nodes that are no cluster by then do not become one.
const FORM_DEADLINE: Duration = Duration::from_secs(60);

/// One Ctrl-C may come as several signals, from the terminal and from a program between; a second one comes later.
const SECOND_THOUGHT: Duration = Duration::from_secs(1);

/// A node that was told to stop and is still there by then is killed; it finishes requests for 25 s at the most.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Starts the nodes, prints what they are, and keeps them until it is told to stop.
///
/// # Errors
/// When they cannot be started.
pub fn run(arguments: &DevArguments) -> Result<(), Failure> {
    check(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::caused("cannot start", &error))?.block_on(start_and_keep(arguments))
}

fn check(arguments: &DevArguments) -> Result<(), Failure> {
    match (arguments.nodes, arguments.replicas) {
        (0, _) => Err(Failure::new("--nodes 0: there is nothing to start").hint("take one at least")),
        (_, 0) => Err(Failure::new("--replicas 0: nothing would be kept").hint("take one at least")),
        (nodes, _) if nodes > NODES_MAX => {
            let message = format!("--nodes {nodes}: that is more than one machine is good for");
            Err(Failure::new(message).hint(format!("take up to {NODES_MAX}")))
        }
        _ => Ok(()),
    }
}

async fn start_and_keep(arguments: &DevArguments) -> Result<(), Failure> {
    let mut signals = Signals::install().map_err(|error| Failure::caused("cannot handle signals", &error))?;
    let layout = Layout::make(arguments)?;
    let program = std::env::current_exe().map_err(|error| Failure::caused("cannot find this program", &error))?;
    let mut nodes = Vec::new();
    let started = start(&layout, &program, &mut nodes, &mut signals).await;
    let kept = match started {
        Ok(Start::Serving) => {
            print(arguments, &layout, &program, &nodes)?;
            Ok(keep(&mut nodes, &layout, &program, &mut signals).await)
        }
        Ok(Start::Interrupted) => Ok(AllWell::Yes),
        Err(failure) => Err(failure),
    };
    stop(&mut nodes, &mut signals).await;
    finish(layout, kept)
}

/// How starting ended, when it did not fail.
enum Start {
    Serving,
    Interrupted,
}

/// Whether every node was there until the end.
#[derive(PartialEq)]
enum AllWell {
    Yes,
    No,
}

async fn start(
    layout: &Layout,
    program: &Path,
    nodes: &mut Vec<Node>,
    signals: &mut Signals,
) -> Result<Start, Failure> {
    for node in &layout.nodes {
        nodes.push(Node::start(program, node)?);
    }
    for node in nodes.iter_mut() {
        tokio::select! {
            serving = tokio::time::timeout(START_DEADLINE, node.serving()) => match serving {
                Ok(served) => served?,
                Err(_elapsed) => {
                    let message = format!("{} does not serve after {} s", node.name, START_DEADLINE.as_secs());
                    return Err(Failure::new(message).quoting(node.last_words()));
                }
            },
            () = signals.stop() => return Ok(Start::Interrupted),
        }
    }
    if let [_one] = layout.nodes.as_slice() {
        return Ok(Start::Serving);
    }
    tokio::select! {
        formed = tokio::time::timeout(FORM_DEADLINE, formation::wait(&layout.nodes)) => match formed {
            Ok(()) => Ok(Start::Serving),
            Err(_elapsed) => {
                let message = format!("the nodes are no cluster after {} s", FORM_DEADLINE.as_secs());
                Err(Failure::new(message).quoting(nodes.iter().flat_map(Node::last_words).collect()))
            }
        },
        ending = first_ending(nodes) => {
            let message = format!("{} ended before there was a cluster ({})", ending.name, ending.how);
            Err(Failure::new(message).quoting(ending.last_words))
        }
        () = signals.stop() => Ok(Start::Interrupted),
    }
}

/// The next node to end, of those that run; waits for ever when none does.
async fn first_ending(nodes: &mut [Node]) -> Ending {
    let running = nodes.iter_mut().filter(|node| node.is_running());
    let mut endings: FuturesUnordered<_> = running.map(Node::ended).collect();
    match endings.next().await {
        Some(ending) => ending,
        None => std::future::pending().await,
    }
}

fn print(arguments: &DevArguments, layout: &Layout, program: &Path, nodes: &[Node]) -> Result<(), Failure> {
    let pids: Vec<u32> = nodes.iter().filter_map(Node::pid).collect();
    match arguments.output {
        OutputFormat::Json => output::print_json(&printout::json(layout, &pids)),
        OutputFormat::Text => output::print(&printout::text(layout, &pids, program, Colours::of_stdout())),
    }
}

/// Until a signal comes. A node that ends is told of, and left.
async fn keep(nodes: &mut [Node], layout: &Layout, program: &Path, signals: &mut Signals) -> AllWell {
    let mut all_well = AllWell::Yes;
    loop {
        tokio::select! {
            () = signals.stop() => return all_well,
            ending = first_ending(nodes) => {
                all_well = AllWell::No;
                tell(&ending, layout, program);
            }
        }
    }
}

fn tell(ending: &Ending, layout: &Layout, program: &Path) {
    let colours = Colours::of_stderr();
    eprintln!("\n{} {} is down ({})", colours.red("warning:"), ending.name, ending.how);
    for line in &ending.last_words {
        eprintln!("  | {line}");
    }
    if let Some(node) = layout.nodes.iter().find(|node| node.name == ending.name) {
        eprintln!("{} {}", colours.cyan("start it again:"), printout::restart_line(program, &node.config));
    }
}

/// All at once, each within its deadline; a second signal asks for haste.
async fn stop(nodes: &mut [Node], signals: &mut Signals) {
    for node in nodes.iter() {
        node.terminate();
    }
    let all_ended = async {
        for node in nodes.iter_mut().filter(|node| node.is_running()) {
            node.ended().await;
        }
    };
    tokio::select! {
        () = all_ended => return,
        () = signals.stop_again() => eprintln!("told twice: nodes that still finish requests are killed"),
        () = tokio::time::sleep(STOP_DEADLINE) => eprintln!("nodes that did not stop in time are killed"),
    }
    for node in nodes.iter_mut() {
        node.kill().await;
    }
}

/// Leaves nothing behind, unless somebody may want to look at it.
fn finish(layout: Layout, kept: Result<AllWell, Failure>) -> Result<(), Failure> {
    let dir: PathBuf = layout.dir;
    match kept {
        Ok(AllWell::No) if layout.temporary => {
            eprintln!("a node went down: {} is left for you to look at", dir.display())
        }
        _ if layout.temporary => {
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                eprintln!("cannot remove {}: {error}", dir.display());
            }
        }
        _ => {}
    }
    kept.map(drop)
}

/// SIGTERM, SIGINT and SIGHUP (the terminal has gone).
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

// === impl Signals ===

impl Signals {
    fn install() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// After the first one.
    async fn stop_again(&mut self) {
        tokio::time::sleep(SECOND_THOUGHT).await;
        while self.stop().now_or_never().is_some() {}
        self.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Arguments, Command};

    fn checked(line: &str) -> Result<(), String> {
        match Arguments::try_parse_from(line.split(' ')).unwrap().command {
            Command::Dev(arguments) => check(&arguments).map_err(|failure| failure.render(Colours::NONE)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn there_are_some_nodes_and_copies_and_not_too_many() {
        assert_eq!(checked("casbah dev"), Ok(()));
        assert_eq!(checked("casbah dev --nodes 1 --replicas 3"), Ok(()));
        assert_eq!(checked("casbah dev --nodes 5 --replicas 3"), Ok(()));
        assert_eq!(
            checked("casbah dev --nodes 1000").unwrap_err(),
            "error: --nodes 1000: that is more than one machine is good for\nhint: take up to 32\n"
        );
        assert!(checked("casbah dev --nodes 0").is_err());
        assert!(checked("casbah dev --replicas 0").is_err());
    }
}
