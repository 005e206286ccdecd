//! A person who runs other people's programs: with a home of their own, none of the tester's settings, and nothing left
//! running.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

/// How long one command may take: many times what it needs, with its retries on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);

/// How long a process that was killed may take to be gone.
const KILLED_DEADLINE: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(20);

/// A home directory, and all processes that have it in their environment.
pub struct Home {
    dir: TempDir,
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Outcome {
    pub(crate) command: String,
    /// The exit status.
    pub status: ExitStatus,
    /// What was asked for.
    pub stdout: String,
    /// What the program has to say.
    pub stderr: String,
}

// === impl Home ===

impl Home {
    /// One in which nothing has ever been run.
    ///
    /// # Errors
    /// When there is no temporary directory.
    pub fn new() -> Result<Home> {
        let home = Home { dir: tempfile::tempdir()? };
        fs::create_dir(home.path().join("tmp"))?;
        Ok(home)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A folder in it, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A command that has this home, the tester's `PATH` and no other setting of theirs: not even a proxy, which gRPC
    /// would ask for localhost.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .process_group(0)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("LANG", "C.UTF-8")
            .env("HOME", self.path())
            .env("TMPDIR", self.path().join("tmp"));
        command
    }

    /// Runs a [`Home::command`] to its end. What it has left running is left alone.
    ///
    /// # Errors
    /// When it does not end in time; it is killed then.
    pub fn run(&self, name: &str, mut command: Command) -> Result<Outcome> {
        let begun = Instant::now();
        let outputs = [self.path().join("stdout"), self.path().join("stderr")];
        // Files, not pipes: nobody has to read them, and nothing that is left behind can keep them open.
        let [stdout, stderr] = outputs.each_ref().map(File::create);
        command.stdout(stdout?).stderr(stderr?);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        let ended = wait_for_end(pid, DEADLINE);
        if !matches!(ended, Ok(true)) {
            // Not reaped yet, so the group's id is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let status = child.wait()?;
        let [stdout, stderr] = outputs.map(fs::read).map(|bytes| bytes.map(|bytes| lossy(&bytes)));
        let outcome = Outcome { command: name.to_owned(), status, stdout: stdout?, stderr: stderr? };
        // Shown by the test runner when the test has failed.
        eprintln!("--- {name} ({status}, {:.1?})\n{}{}---", begun.elapsed(), outcome.stdout, outcome.stderr);
        ensure!(ended?, "{name} was killed after {DEADLINE:?}\n{}", outcome.stderr);
        Ok(outcome)
    }

    /// Waits that long for what was left running (in whatever process group), then kills it. Returns what had to be
    /// killed.
    ///
    /// # Errors
    /// When the processes cannot be listed or waited for.
    pub fn kill_stragglers(&self, patience: Duration) -> Result<Vec<String>> {
        let until = Instant::now() + patience;
        let mut left = self.stragglers()?;
        while !left.is_empty() && Instant::now() < until {
            std::thread::sleep(PAUSE); // why: a process that is no child of ours gives no event
            left = self.stragglers()?;
        }
        let mut killed = Vec::new();
        for pid in left {
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Asked again while the descriptor holds on to it: the number alone could be another's by now.
            if self.started(pid) {
                killed.push(lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " "));
                let _ = pidfd_send_signal(&process, Signal::KILL);
                wait_for_end(pid, KILLED_DEADLINE)?;
            }
        }
        Ok(killed)
    }

    fn stragglers(&self) -> Result<Vec<Pid>> {
        let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(names.filter_map(Pid::from_raw).filter(|pid| self.started(*pid)).collect())
    }

    /// Whether this process was started from here: it has inherited the home.
    fn started(&self, pid: Pid) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
        let home = format!("HOME={}", self.path().display());
        environment.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.kill_stragglers(Duration::ZERO);
    }
}

// === impl Outcome ===

impl Outcome {
    /// Itself, if it has.
    ///
    /// # Errors
    /// When it has failed.
    pub fn succeeded(self) -> Result<Outcome> {
        ensure!(self.status.success(), "{} failed ({})\n{}{}", self.command, self.status, self.stdout, self.stderr);
        Ok(self)
    }

    /// Itself, if it has, with an exit code that says so.
    ///
    /// # Errors
    /// When it has succeeded, or was ended by a signal.
    pub fn failed(self) -> Result<Outcome> {
        let failed = self.status.code().is_some_and(|code| code != 0);
        ensure!(failed, "{} did not fail ({})\n{}{}", self.command, self.status, self.stdout, self.stderr);
        Ok(self)
    }

    /// Itself, if this is somewhere in its messages.
    ///
    /// # Errors
    /// When it is not.
    pub fn saying(self, part: &str) -> Result<Outcome> {
        ensure!(self.says(part), "{} does not say {part:?}\n{}", self.command, self.stderr);
        Ok(self)
    }

    /// Whether this is somewhere in its messages.
    pub fn says(&self, part: &str) -> bool {
        self.stderr.contains(part)
    }
}

/// Whether the process has ended within this time. One that is unknown has.
fn wait_for_end(pid: Pid, time: Duration) -> Result<bool> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_leaves_behind_is_killed() -> Result<()> {
        let home = Home::new()?;
        let mut sleeper = Command::new("sleep");
        let mut sleeper = sleeper.arg("1000").env("HOME", home.path()).spawn()?;
        let killed = home.kill_stragglers(Duration::ZERO)?;
        assert_eq!(killed, ["sleep 1000 "]);
        sleeper.wait()?;
        assert_eq!(home.stragglers()?, []);
        Ok(())
    }
}
