//! `casbah blob`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casbah_cluster::digest::{Digest, DigestError};
use serde::Serialize;

use super::args::{BlobCommand, BlobVerifyArguments, BlobWhereArguments, OutputFormat};
use super::ask;
use super::error::Failure;
use super::output::{self, Colours};
use super::table::table;
use crate::observe::cluster::Whereabouts;
use crate::run::Look;
use crate::store::{self, Finding, VerifyReport};

/// Between two lines of progress: often enough to be seen to move, seldom enough to cost nothing.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What `--output json` prints: a contract.
#[derive(Serialize)]
struct Report<'a> {
    dir: &'a Path,
    good_blobs: u64,
    good_bytes: u64,
    /// Some of the index could not be read.
    index_damaged: bool,
    findings: Vec<Found<'a>>,
}

#[derive(Serialize)]
struct Found<'a> {
    /// The digest, as HASH/SIZE.
    blob: &'a str,
    kind: Kind,
    message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// It is not what was stored.
    Damaged,
    /// It is what was stored, and not what its digest names.
    Wrong,
    /// The disk did not say.
    Unreadable,
}

/// A line of progress that is written over, where somebody sees it.
struct Progress {
    shown: bool,
    next: Instant,
}

/// Does what the command says.
///
/// # Errors
/// When damage is found, or nothing can be looked at.
pub fn run(command: &BlobCommand) -> Result<(), Failure> {
    match command {
        BlobCommand::Verify(arguments) => verify(arguments),
        BlobCommand::Where(arguments) => find(arguments),
    }
}

/// Asks any node, which asks those that may have the blob.
fn find(arguments: &BlobWhereArguments) -> Result<(), Failure> {
    let digest: Digest = arguments.digest.parse().map_err(|error: DigestError| {
        Failure::from_error(&error).hint("a digest is printed so in logs, in resource names, and by clients")
    })?;
    let admin = ask::admin(&arguments.ask.admin)?;
    let (found, _): (Whereabouts, String) =
        ask::page(&admin, &format!("/blobs/{}/{digest}", digest.function().name()))?;
    ask::show(arguments.ask.output, &found, || whereabouts(&found, Colours::of_stdout()))
}

fn whereabouts(found: &Whereabouts, colours: Colours) -> String {
    let rows: Vec<Vec<String>> = found
        .nodes
        .iter()
        .map(|node| {
            let part = if node.owner { "owner" } else { "stands in" };
            vec![node.id.to_string(), node.name.clone(), part.to_owned(), node.copy.word().to_owned()]
        })
        .collect();
    let rows = table(&["ID", "NODE", "PART", "COPY"], &[true, false, false, false], &rows, colours);
    format!("{} is in partition {} of 4096\n\n{rows}", found.digest, found.partition)
}

fn verify(arguments: &BlobVerifyArguments) -> Result<(), Failure> {
    let (node, store) = directories(&arguments.dir)?;
    // Kept until the end, so that no node starts meanwhile.
    let _stopped = match Look::at(&node) {
        Ok(Look::Stopped(stopped)) => stopped,
        Ok(Look::Running { pid }) => {
            let by = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            return Err(Failure::new(format!("{} is in use by {by}", node.display()))
                .hint("stop the node first; a running node checks its blobs by itself"));
        }
        Err(error) => return Err(Failure::caused(format!("cannot look at {}", node.display()), &error)),
    };
    let mut progress = Progress::new();
    let report = store::verify(&store, |done, all| progress.show(done, all));
    progress.clear();
    let report = report.map_err(|error| Failure::from_error(&error))?;
    match arguments.output {
        OutputFormat::Text => output::print(&as_text(&report))?,
        OutputFormat::Json => output::print_json(&as_json(&store, &report))?,
    }
    complaint(&report).map_or(Ok(()), Err)
}

/// The directory of the node, and that of its store.
fn directories(dir: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let dir = dir.canonicalize().map_err(|error| Failure::caused(format!("cannot open {}", dir.display()), &error))?;
    if dir.join("format").is_file() {
        return Ok((dir.parent().unwrap_or(&dir).to_owned(), dir));
    }
    let store = dir.join(store::DIRECTORY);
    if store.join("format").is_file() {
        return Ok((dir, store));
    }
    Err(Failure::new(format!("there is no blob store in {}", dir.display()))
        .hint("name the directory that node.dir says; casbah config show prints it"))
}

fn as_text(report: &VerifyReport) -> String {
    let mut text = String::new();
    for (blob, finding) in &report.bad {
        let _infallible = writeln!(text, "{blob}: {finding}{}", cause(finding));
    }
    if report.index_damaged {
        text.push_str("the index is damaged; blobs were looked for in all files\n");
    }
    let (good, bytes, bad) = (report.good_blobs, report.good_bytes, report.bad.len());
    let _infallible = writeln!(text, "{good} blobs ({bytes} bytes) are good, {bad} are not");
    text
}

fn cause(finding: &Finding) -> String {
    match finding {
        Finding::Io(error) => format!(": {error}"),
        Finding::Damaged(_) | Finding::Hash => String::new(),
    }
}

fn as_json<'a>(dir: &'a Path, report: &'a VerifyReport) -> Report<'a> {
    let findings = report.bad.iter().map(|(blob, finding)| {
        let kind = match finding {
            Finding::Damaged(_) => Kind::Damaged,
            Finding::Hash => Kind::Wrong,
            Finding::Io(_) => Kind::Unreadable,
        };
        Found { blob, kind, message: format!("{finding}{}", cause(finding)) }
    });
    Report {
        dir,
        good_blobs: report.good_blobs,
        good_bytes: report.good_bytes,
        index_damaged: report.index_damaged,
        findings: findings.collect(),
    }
}

/// What makes the command fail, if anything does.
fn complaint(report: &VerifyReport) -> Option<Failure> {
    let bad = report.bad.len();
    if bad > 0 {
        let all = report.good_blobs + bad as u64;
        return Some(
            Failure::new(format!("{bad} of {all} blobs cannot be used"))
                .hint("a node drops a damaged blob when it comes across it; the next upload brings it back"),
        );
    }
    report.index_damaged.then(|| {
        Failure::new("the index is damaged").hint("the next start reads all files once, and writes the index anew")
    })
}

// === impl Progress ===

impl Progress {
    fn new() -> Progress {
        Progress { shown: io::stderr().is_terminal(), next: Instant::now() }
    }

    fn show(&mut self, done: u64, all: u64) {
        if self.shown && Instant::now() >= self.next {
            eprint!("\r\u{1b}[Kchecked {done} of {all} blobs");
            self.next = Instant::now() + PROGRESS_INTERVAL;
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Damage;

    fn report() -> VerifyReport {
        let bad = vec![
            ("aa/1".to_owned(), Finding::Damaged(Damage::Checksum)),
            ("bb/2".to_owned(), Finding::Io(io::Error::other("no"))),
        ];
        VerifyReport { good_blobs: 3, good_bytes: 70, bad, index_damaged: false }
    }

    #[test]
    fn each_finding_is_a_line_and_the_last_line_sums_up() {
        assert_eq!(
            as_text(&report()),
            "aa/1: it is damaged: its bytes do not match their checksum\n\
             bb/2: it cannot be read: no\n\
             3 blobs (70 bytes) are good, 2 are not\n"
        );
    }

    #[test]
    fn the_json_is_a_contract() {
        let text = serde_json::to_string(&as_json(Path::new("/x"), &report())).unwrap();
        assert_eq!(
            text,
            r#"{"dir":"/x","good_blobs":3,"good_bytes":70,"index_damaged":false,"findings":[{"blob":"aa/1","kind":"damaged","message":"it is damaged: its bytes do not match their checksum"},{"blob":"bb/2","kind":"unreadable","message":"it cannot be read: no"}]}"#
        );
    }

    #[test]
    fn damage_of_any_kind_makes_the_command_fail() {
        assert!(complaint(&report()).is_some());
        assert!(complaint(&VerifyReport { bad: Vec::new(), ..report() }).is_none());
        assert!(complaint(&VerifyReport { bad: Vec::new(), index_damaged: true, ..report() }).is_some());
    }
}
