//! `casbah status`: what the admin port of a node says, for people, machines and probes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use super::args::{OutputFormat, StatusArguments};
use super::error::Failure;
use super::output::{self, Colours};
use super::{ask, http};
use crate::config::ListenAddress;
use crate::observe::snapshot::Snapshot;
use crate::observe::summary;

/// Between two looks with `--watch`.
const PAUSE: Duration = Duration::from_secs(2);

/// Moves to the top of a terminal and clears what is below.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Prints what the node says of itself.
///
/// # Errors
/// When it cannot be asked, or its answer cannot be read.
pub fn run(arguments: &StatusArguments) -> Result<ExitCode, Failure> {
    let admin = ask::admin(&arguments.admin)?;
    if arguments.ready {
        return probe(&admin, "/readyz");
    }
    if arguments.live {
        return probe(&admin, "/livez");
    }
    loop {
        show(&admin, arguments)?;
        if !arguments.watch {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(PAUSE);
    }
}

/// For probes: the exit code says it, and the line why.
fn probe(admin: &ListenAddress, path: &str) -> Result<ExitCode, Failure> {
    let answer = http::get(admin, path).map_err(|error| ask::unreachable(admin, &error))?;
    output::print(&answer.body)?;
    Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(admin: &ListenAddress, arguments: &StatusArguments) -> Result<(), Failure> {
    let (snapshot, body) = ask::status(admin)?;
    match arguments.output {
        // As it came, on one line: a node that is newer may say more.
        OutputFormat::Json => output::print_json(
            &serde_json::from_str::<serde_json::Value>(&body).map_err(|error| Failure::from_error(&error))?,
        ),
        OutputFormat::Text => {
            let clear = if arguments.watch && io::stdout().is_terminal() { CLEAR } else { "" };
            output::print(&format!("{clear}{}", table(&snapshot, Colours::of_stdout())))
        }
    }
}

/// For eyes.
fn table(snapshot: &Snapshot, colours: Colours) -> String {
    let mut text = String::new();
    let groups = summary::groups(snapshot);
    let width = groups.iter().flat_map(|group| &group.rows).map(|(name, _)| name.len()).max().unwrap_or_default();
    let _infallible = writeln!(text, "{}", colours.bold(&snapshot.name));
    for group in groups {
        let percent = group.used_percent.map(|percent| format!(" ({percent} % used)")).unwrap_or_default();
        let _infallible = writeln!(text, "\n{}{percent}", colours.bold(group.title));
        for (name, value) in group.rows {
            let _infallible = writeln!(text, "  {} {value}", colours.dim(&format!("{name:width$}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::reference::assert_same;

    #[test]
    fn the_table_is_for_eyes() {
        assert_same("node/src/cli/snapshots/status.txt", &table(&Snapshot::sample(), Colours::NONE));
    }

    fn of(admin: &str) -> StatusArguments {
        StatusArguments { admin: admin.into(), output: OutputFormat::Text, watch: false, ready: false, live: false }
    }

    #[test]
    fn an_address_that_is_none_is_told() {
        let arguments = StatusArguments { ready: true, ..of("8982") };
        let told = run(&arguments).unwrap_err().render(Colours::NONE);
        assert_eq!(
            told,
            "error: --admin\ncaused by: \"8982\" has no port\nhint: name the admin port of a node, such as localhost:8982\n"
        );
    }

    #[test]
    fn a_node_that_is_not_there_is_told() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = socket.local_addr().unwrap().to_string();
        drop(socket);
        for arguments in [of(&admin), StatusArguments { live: true, ..of(&admin) }] {
            let told = run(&arguments).unwrap_err().render(Colours::NONE);
            assert!(told.starts_with(&format!("error: cannot ask the node at {admin}\ncaused by: ")), "{told}");
            assert!(told.contains("admin.address"), "{told}");
        }
    }
}
