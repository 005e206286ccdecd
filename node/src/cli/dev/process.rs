//! A node as a child process.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::layout::NodeLayout;
use crate::cli::error::Failure;

/// The line a node prints when it serves.
const READY: &str = "ready";

/// Lines of a node's log that are shown when it went down, and the most bytes they may have.
const LAST_WORDS_LINES: usize = 10;
const LAST_WORDS_BYTES: u64 = 16 << 10;

/// A node that was started.
pub(super) struct Node {
    pub(super) name: String,
    child: Child,
    ended: bool,
    stdout: Lines<BufReader<ChildStdout>>,
    /// The node ends when this end of its standard input goes.
    _stdin: Option<ChildStdin>,
    log: PathBuf,
    /// Where its log begins in the file, which older runs may have written to.
    log_start: u64,
}

/// How a node ended.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) name: String,
    /// Such as `signal: 9 (SIGKILL)`.
    pub(super) how: String,
    pub(super) last_words: Vec<String>,
}

// === impl Node ===

impl Node {
    /// Starts it.
    pub(super) fn start(program: &Path, layout: &NodeLayout) -> Result<Node, Failure> {
        let mut command = Command::new(program);
        command.args(["serve", "--exit-with-stdin", "--config"]).arg(&layout.config);
        Node::start_command(command, layout)
    }

    /// In a process group of its own, so that Ctrl-C reaches this program alone.
    fn start_command(mut command: Command, layout: &NodeLayout) -> Result<Node, Failure> {
        let opened = File::options().create(true).append(true).open(&layout.log);
        let log = opened.map_err(|error| Failure::caused(format!("cannot write {}", layout.log.display()), &error))?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::from(log)).process_group(0);
        // What is set in this environment was not meant for nodes of this program, and could close their ports.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CASBAH_")) {
            if name != crate::observe::logs::FILTER_VARIABLE {
                command.env_remove(name);
            }
        }
        let spawned = command.kill_on_drop(true).spawn();
        let mut child = spawned.map_err(|error| Failure::caused(format!("cannot start {}", layout.name), &error))?;
        let stdout = child.stdout.take().ok_or_else(|| Failure::new("the node has no standard output"))?;
        Ok(Node {
            name: layout.name.clone(),
            ended: false,
            stdout: BufReader::new(stdout).lines(),
            _stdin: child.stdin.take(),
            child,
            log: layout.log.clone(),
            log_start,
        })
    }

    /// Waits until it serves.
    pub(super) async fn serving(&mut self) -> Result<(), Failure> {
        while let Ok(Some(line)) = self.stdout.next_line().await {
            if line == READY {
                return Ok(());
            }
        }
        let ending = self.ended().await;
        Err(Failure::new(format!("{} ended before it served ({})", self.name, ending.how)).quoting(ending.last_words))
    }

    /// Waits until it ends.
    pub(super) async fn ended(&mut self) -> Ending {
        let how = match self.child.wait().await {
            Ok(status) => describe(status),
            Err(error) => error.to_string(),
        };
        self.ended = true;
        Ending { name: self.name.clone(), how, last_words: self.last_words() }
    }

    /// Whether nobody was told yet that it ended.
    pub(super) fn is_running(&self) -> bool {
        !self.ended
    }

    /// While it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to stop.
    pub(super) fn terminate(&self) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It fails when the process has just ended, which is what is asked for.
            let _already_gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Ends it at once.
    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await
            && !self.ended
        {
            eprintln!("cannot kill {}: {error}", self.name);
        }
    }

    /// The last lines it wrote to its log.
    pub(super) fn last_words(&self) -> Vec<String> {
        last_lines(&self.log, self.log_start).unwrap_or_default()
    }
}

fn last_lines(log: &Path, from: u64) -> std::io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(LAST_WORDS_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    // A first line that was cut says nothing.
    if start > from && lines.len() > 1 {
        lines.remove(0);
    }
    let skipped = lines.len().saturating_sub(LAST_WORDS_LINES);
    Ok(lines.into_iter().skip(skipped).map(str::to_owned).collect())
}

/// `exit status: 1`, `signal: 9 (SIGKILL)`.
fn describe(status: ExitStatus) -> String {
    if status.success() { "it stopped by itself".to_owned() } else { status.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::ports::Ports;
    use crate::cli::output::Colours;

    /// A program that does as a node would.
    fn start(folder: &Path, script: &str) -> Node {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Node::start_command(command, &layout(folder)).unwrap()
    }

    fn layout(folder: &Path) -> NodeLayout {
        let layout = NodeLayout::at(folder, 1, Ports { public: 1, client: 2, admin: 3, peer: None });
        std::fs::create_dir_all(layout.config.parent().unwrap()).unwrap();
        layout
    }

    #[tokio::test]
    async fn a_node_serves_when_it_says_so_and_stops_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut node = start(folder.path(), "echo listening on x; echo ready; read line");
        node.serving().await.unwrap();
        assert!(node.pid().is_some() && node.is_running());
        node.terminate();
        assert!(node.ended().await.how.starts_with("signal: 15"));
        assert!(!node.is_running());
        node.terminate();
    }

    #[tokio::test]
    async fn a_node_ends_when_its_parent_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut node = start(folder.path(), "echo ready; read line; exit 7");
        node.serving().await.unwrap();
        node._stdin = None;
        assert_eq!(node.ended().await.how, "exit status: 7");
    }

    #[tokio::test]
    async fn a_node_that_does_not_start_has_its_last_words_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(&layout(folder.path()).log, "of an earlier run\n").unwrap();
        let mut node = start(folder.path(), "echo 'error: no' >&2; echo 'hint: yes' >&2; exit 1");
        let told = node.serving().await.unwrap_err().render(Colours::NONE);
        assert_eq!(told, "error: node-1 ended before it served (exit status: 1)\n  | error: no\n  | hint: yes\n");
    }

    #[tokio::test]
    async fn a_node_that_does_not_listen_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut node = start(folder.path(), "trap '' TERM; echo ready; while :; do read line; done");
        node.serving().await.unwrap();
        node.terminate();
        node.kill().await;
        assert!(node.ended().await.how.starts_with("signal: 9"));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = Node::start(Path::new("/nowhere"), &layout(folder.path())).err().unwrap().render(Colours::NONE);
        assert!(told.starts_with("error: cannot start node-1\ncaused by: No such file"), "{told}");
    }

    #[test]
    fn last_words_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let text: String = (0..5000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&log, text).unwrap();
        let lines = last_lines(&log, 0).unwrap();
        assert_eq!(lines.len(), LAST_WORDS_LINES);
        assert_eq!(lines.last().unwrap(), "line 4999");
    }
}
