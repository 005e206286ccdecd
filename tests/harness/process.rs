//! The casbah program as an operator runs it: started with arguments, watched through its output, stopped by signals.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tempfile::TempDir;

use crate::authority::IdentityFiles;

/// How long a process may take to say that it serves, to print an expected line, or to end. Far more than it needs, so
/// that a busy machine fails no test.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// In which the kernel counts processor time for programs (USER_HZ): a hundredth of a second on every architecture that
/// casbah is built for.
const TICK: Duration = Duration::from_millis(10);

/// The casbah program under test: `CASBAH_BINARY` if set, otherwise the one of this workspace and profile, which is
/// brought up to date first (once per test process, and cheap when it is).
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}"))).clone().expect("casbah can be built")
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CASBAH_BINARY") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "CASBAH_BINARY is {}, where there is no file", path.display());
        return Ok(path);
    }
    // A test executable is target/<profile>/deps/<name>.
    let this = std::env::current_exe()?;
    let profile_dir = this.parent().and_then(Path::parent).context("the test executable is in no profile folder")?;
    let target_dir = profile_dir.parent().context("the test executable is in no target folder")?;
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} is not the folder of a profile", profile_dir.display()),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--package", "casbah", "--bin", "casbah", "--quiet", "--profile", profile, "--target-dir"])
        .arg(target_dir)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // What cargo tells this test about its own package would make the build scripts of others run again.
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| own.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    let built =
        cargo.stdin(Stdio::null()).output().context("cannot run cargo; set CASBAH_BINARY, or run: cargo build")?;
    ensure!(
        built.status.success(),
        "`cargo build -p casbah` failed ({}):\n{}",
        built.status,
        String::from_utf8_lossy(&built.stderr)
    );
    let binary = profile_dir.join("casbah");
    ensure!(binary.is_file(), "{} does not exist; run: cargo build", binary.display());
    Ok(binary)
}

/// A command of the program, before it is started: `casbah ARGS`, with none of the tester's own `CASBAH_` settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CASBAH_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `casbah ARGS` to its end.
///
/// # Errors
/// When it does not end within [`DEADLINE`] (it is killed then).
pub fn run(args: &[&str]) -> Result<Output> {
    run_command(command(args))
}

/// Runs a command to its end, as [`run`].
///
/// # Errors
/// As [`run`].
pub fn run_command(command: Command) -> Result<Output> {
    let mut process = Process::spawn(command)?;
    let status = process.wait_exit()?;
    // The caller has its output, and shows it where it matters.
    process.shown = true;
    process.stdout.wait_closed(DEADLINE);
    process.stderr.wait_closed(DEADLINE);
    Ok(Output { status, stdout: process.stdout().into_bytes(), stderr: process.stderr().into_bytes() })
}

/// A child process in a process group of its own, whose output is read as it comes. Dropping it kills the group.
pub struct Process {
    name: String,
    pid: Pid,
    /// Readable once the process has ended.
    ended: OwnedFd,
    child: Mutex<Child>,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    /// Somebody else shows the output.
    shown: bool,
}

/// A casbah process that serves.
pub struct Server {
    process: Process,
    endpoints: Vec<Endpoint>,
}

/// An address that a server said it listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// As printed; IPv6 addresses without brackets.
    pub host: String,
    /// The bound port, never 0.
    pub port: u16,
    /// What is said of it between the brackets: `plaintext, anyone, read+write`.
    pub description: String,
}

/// A configuration file in a temporary directory, and the node's own directory beside it.
pub struct Config {
    dir: TempDir,
    /// What stands before the listeners.
    settings: String,
    listeners: String,
}

/// One `[[listener]]` of a [`Config`], on a free loopback port. Its clients may read and write unless said otherwise.
#[derive(Debug, Clone)]
pub struct Listener {
    lines: Vec<String>,
    allow: Vec<String>,
}

/// What a process has printed on one of its outputs.
#[derive(Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Default)]
struct LinesState {
    lines: Vec<String>,
    closed: bool,
}

// === impl Process ===

impl Process {
    /// Starts the command with its input closed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Process> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the process")?;
        let (stdout, stderr) = (Arc::new(Lines::default()), Arc::new(Lines::default()));
        let mut readers = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            readers.push(Lines::fill(&stdout, pipe)?);
        }
        if let Some(pipe) = child.stderr.take() {
            readers.push(Lines::fill(&stderr, pipe)?);
        }
        Ok(Process { name, pid, ended, child: Mutex::new(child), stdout, stderr, readers, shown: false })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Everything printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Everything printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on standard output that contains `part`, and returns it.
    ///
    /// # Errors
    /// When the output ends or [`DEADLINE`] passes before.
    pub fn wait_for_stdout(&self, part: &str) -> Result<String> {
        self.wait_for_line(&self.stdout, "standard output", part)
    }

    /// Waits for a line on standard error that contains `part`, and returns it.
    ///
    /// # Errors
    /// As [`Process::wait_for_stdout`].
    pub fn wait_for_stderr(&self, part: &str) -> Result<String> {
        self.wait_for_line(&self.stderr, "standard error", part)
    }

    fn wait_for_line(&self, lines: &Lines, output: &str, part: &str) -> Result<String> {
        lines.wait_for(|line| line.contains(part), DEADLINE).ok_or_else(|| {
            anyhow!(
                "no \"{part}\" on {output} of {}\nstdout:\n{}\nstderr:\n{}",
                self.name,
                self.stdout(),
                self.stderr()
            )
        })
    }

    /// Sends a signal to the process alone, not to its children.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child.lock().expect("nobody panics with the lock");
        ensure!(child.try_wait()?.is_none(), "{} has ended", self.name);
        // Not reaped, so the id is still its own.
        kill_process(self.pid, signal).context("cannot send the signal")
    }

    /// Waits until the process ends by itself, and returns how.
    ///
    /// # Errors
    /// When it does not within [`DEADLINE`].
    pub fn wait_exit(&self) -> Result<ExitStatus> {
        self.exit_within(DEADLINE)?.ok_or_else(|| {
            anyhow!(
                "{} did not end within {DEADLINE:?}\nstdout:\n{}\nstderr:\n{}",
                self.name,
                self.stdout(),
                self.stderr()
            )
        })
    }

    /// How the process ended, if it does so within this time.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn exit_within(&self, time: Duration) -> Result<Option<ExitStatus>> {
        if !wait_readable(&self.ended, time)? {
            return Ok(None);
        }
        let mut child = self.child.lock().expect("nobody panics with the lock");
        Ok(Some(child.wait()?))
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        matches!(self.exit_within(Duration::ZERO), Ok(None))
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill9(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait_exit()
    }

    /// SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When it had ended before, or does not end within [`DEADLINE`].
    pub fn stop(&self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_exit()
    }

    /// The memory it has now (resident set).
    ///
    /// # Errors
    /// When it has ended.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most memory it has had since the start or the last [`Process::reset_peak_rss`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Begins a new measurement of [`Process::peak_rss_bytes`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn reset_peak_rss(&self) -> Result<()> {
        // proc(5): 5 resets the peak resident set size to the current value.
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }

    /// The processor time that it has used, in user and in system mode, to the clock tick.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // proc(5): utime and stime are the 12th and 13th field behind the program's name in brackets.
        let fields = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        Ok(TICK * u32::try_from(ticks)?)
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib =
            line.and_then(|rest| rest.trim().strip_suffix(" kB")).with_context(|| format!("no {field} in status"))?;
        Ok(kib.trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("nobody panics with the lock");
        if let Ok(None) = child.try_wait() {
            // The leader is not reaped, so the group's id is still its own; its children go with it.
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = child.wait();
        }
        // A child that outlives its parent holds the pipe open: its output is not waited for.
        self.readers.retain(|reader| !reader.is_finished());
        if self.shown {
            return;
        }
        // Shown by the test runner when the test has failed.
        eprintln!("--- {} (pid {})\n{}{}---", self.name, self.pid(), self.stdout.text(), self.stderr.text());
    }
}

/// Waits until this descriptor (of a process) is readable.
fn wait_readable(descriptor: &OwnedFd, time: Duration) -> Result<bool> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

// === impl Server ===

impl Server {
    /// Starts `casbah ARGS` and waits until it prints `ready`.
    ///
    /// # Errors
    /// When it ends before, or is not ready within [`DEADLINE`]; the message has its output.
    pub fn start(args: &[&str]) -> Result<Server> {
        Server::start_command(command(args))
    }

    /// Starts a prepared [`command`], as [`Server::start`].
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_command(command: Command) -> Result<Server> {
        let process = Process::spawn(command)?;
        let ready = process.stdout.wait_for(|line| line == "ready", DEADLINE);
        if ready.is_none() {
            let ended = process.exit_within(Duration::ZERO)?;
            let how =
                ended.map_or_else(|| format!("is not ready after {DEADLINE:?}"), |status| format!("ended: {status}"));
            bail!("{} {how}\nstdout:\n{}\nstderr:\n{}", process.name, process.stdout(), process.stderr());
        }
        let endpoints = process.stdout().lines().filter_map(Endpoint::parse).collect();
        Ok(Server { process, endpoints })
    }

    /// The address printed in this place, counted from 0.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn endpoint(&self, place: usize) -> &Endpoint {
        self.endpoints.get(place).expect("the server printed that many addresses")
    }

    /// The port of [`Server::endpoint`].
    ///
    /// # Panics
    /// As [`Server::endpoint`].
    pub fn port(&self, place: usize) -> u16 {
        self.endpoint(place).port
    }

    /// Every address printed before `ready`, in order.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl Deref for Server {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads `listening on grpc://127.0.0.1:1234 (plaintext, anyone, read+write)`.
    fn parse(line: &str) -> Option<Endpoint> {
        let (url, description) = line.strip_prefix("listening on ")?.split_once(' ')?;
        let (scheme, authority) = url.split_once("://")?;
        let (host, port) = authority.trim_end_matches('/').rsplit_once(':')?;
        let description = description.trim().trim_start_matches('(').trim_end_matches(')');
        Some(Endpoint {
            tls: scheme == "grpcs",
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: port.parse().ok()?,
            description: description.to_owned(),
        })
    }

    /// As HTTP clients and BuildStream write it: `http://localhost:1234`.
    pub fn http_url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// `localhost:port` for an address of that name and for every address of this machine, and [`Endpoint::authority`] for
    /// others.
    pub fn called(&self) -> String {
        match self.host.as_str() {
            "127.0.0.1" | "::1" | "localhost" | "::" | "0.0.0.0" => format!("localhost:{}", self.port),
            _ => self.authority(),
        }
    }

    /// `host:port`, with brackets where an IPv6 address needs them.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    /// `grpc://127.0.0.1:1234` or `grpcs://…`, as Bazel writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "grpcs" } else { "grpc" }, self.authority())
    }
}

// === impl Config ===

impl Config {
    /// No listener yet, everything else as by default.
    ///
    /// # Errors
    /// When there is no temporary directory.
    pub fn new() -> Result<Config> {
        Ok(Config { dir: tempfile::tempdir()?, settings: String::new(), listeners: String::new() })
    }

    /// Where the tests may put certificates; the node's own directory is `node` in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// With `table.key = value` (a TOML value) before the listeners.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Config {
        self.settings.push_str(&format!("{key} = {value}\n"));
        self
    }

    /// With one more listener.
    #[must_use]
    pub fn listener(mut self, listener: &Listener) -> Config {
        self.listeners.push_str("\n[[listener]]\n");
        for line in &listener.lines {
            self.listeners.push_str(line);
            self.listeners.push('\n');
        }
        self.listeners.push_str(&format!("allow = {:?}\n", listener.allow));
        self
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("casbah.toml");
        let node = quoted(&self.dir.path().join("node"))?;
        std::fs::write(&path, format!("node.dir = {node}\n{}{}", self.settings, self.listeners))?;
        Ok(path)
    }

    /// Writes the file and starts `casbah serve --config` with it.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start(&self) -> Result<Server> {
        let path = self.write()?;
        Server::start(&["serve", "--config", path.to_str().context("the path is not UTF-8")?])
    }
}

// === impl Listener ===

impl Listener {
    /// Plaintext.
    pub fn plaintext() -> Listener {
        let allow = ["read", "write"].map(str::to_owned).to_vec();
        Listener { lines: vec!["address = \"127.0.0.1:0\"".to_owned()], allow }
    }

    /// TLS with this certificate.
    ///
    /// # Errors
    /// When the paths are not UTF-8.
    pub fn tls(server: &IdentityFiles) -> Result<Listener> {
        let (certificate, key) = (quoted(&server.certificate)?, quoted(&server.key)?);
        Ok(Listener::plaintext().with(&format!("tls = {{ certificate = {certificate}, key = {key} }}")))
    }

    /// For clients that show a certificate known by this file, or signed by one in it.
    ///
    /// # Errors
    /// When the path is not UTF-8.
    pub fn authorized(self, file: &Path) -> Result<Listener> {
        Ok(self.with("clients = \"certificate\"").with(&format!("authorized = {}", quoted(file)?)))
    }

    /// For clients that show a certificate issued by an authority of this file.
    ///
    /// # Errors
    /// When the path is not UTF-8.
    pub fn authorities(self, file: &Path) -> Result<Listener> {
        Ok(self.with("clients = \"certificate\"").with(&format!("authorities = {}", quoted(file)?)))
    }

    /// What its clients may do: `read`, `write`.
    #[must_use]
    pub fn allow(mut self, permissions: &[&str]) -> Listener {
        self.allow = permissions.iter().map(|&permission| permission.to_owned()).collect();
        self
    }

    /// What is served: `all`, `storage`, `index`.
    #[must_use]
    pub fn services(self, services: &str) -> Listener {
        self.with(&format!("services = {services:?}"))
    }

    /// With one more line of TOML.
    #[must_use]
    pub fn with(mut self, line: &str) -> Listener {
        self.lines.push(line.to_owned());
        self
    }
}

/// A path as a TOML string.
fn quoted(path: &Path) -> Result<String> {
    Ok(format!("'{}'", path.to_str().context("the path is not UTF-8")?))
}

// === impl Lines ===

impl Lines {
    /// Reads lines on a thread of its own until the pipe is closed.
    fn fill(lines: &Arc<Lines>, pipe: impl Read + Send + 'static) -> Result<JoinHandle<()>> {
        let lines = Arc::clone(lines);
        let read = move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                lines.change(|state| state.lines.push(String::from_utf8_lossy(&line).into_owned()));
            }
            lines.change(|state| state.closed = true);
        };
        Ok(std::thread::Builder::new().name("output".to_owned()).spawn(read)?)
    }

    fn change(&self, change: impl FnOnce(&mut LinesState)) {
        change(&mut self.state.lock().expect("nobody panics with the lock"));
        self.changed.notify_all();
    }

    /// The first line that fits, once it is there; `None` when the output ends or the time is up before.
    fn wait_for(&self, fits: impl Fn(&str) -> bool, time: Duration) -> Option<String> {
        let until = Instant::now() + time;
        let mut state = self.state.lock().expect("nobody panics with the lock");
        let mut seen = 0;
        loop {
            if let Some(line) = state.lines.iter().skip(seen).find(|line| fits(line)) {
                return Some(line.clone());
            }
            seen = state.lines.len();
            let left = until.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).expect("nobody panics with the lock").0;
        }
    }

    fn wait_closed(&self, time: Duration) {
        self.wait_for(|_| false, time);
    }

    fn text(&self) -> String {
        let state = self.state.lock().expect("nobody panics with the lock");
        state.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_address_is_understood() {
        let endpoint = Endpoint::parse("listening on grpc://127.0.0.1:8980 (plaintext, anyone, read+write)").unwrap();
        assert_eq!(endpoint.to_string(), "grpc://127.0.0.1:8980");
        assert_eq!(endpoint.http_url(), "http://127.0.0.1:8980");
        assert_eq!(endpoint.description, "plaintext, anyone, read+write");
        let endpoint = Endpoint::parse("listening on grpcs://[::1]:443 (TLS, certificate, read)").unwrap();
        assert!(endpoint.tls);
        assert_eq!((endpoint.host.as_str(), endpoint.authority().as_str()), ("::1", "[::1]:443"));
        assert_eq!(Endpoint::parse("ready"), None);
    }

    #[test]
    fn a_process_that_ends_is_noticed_and_its_output_is_kept() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo out; echo err >&2; exit 3"]);
        let output = run_command(shell).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    }

    #[test]
    fn a_process_that_does_not_end_is_killed_when_dropped() {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("1000");
        let process = Process::spawn(sleeper).unwrap();
        assert_eq!(process.exit_within(Duration::ZERO).unwrap(), None);
        let folder = format!("/proc/{}", process.pid());
        drop(process);
        assert!(!Path::new(&folder).exists());
    }
}
