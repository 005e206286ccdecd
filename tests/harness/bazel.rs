//! Bazel as people run it: a server of its own for each user and workspace, on a sample workspace that needs nothing
//! from the network.
//!
//! `scripts/test-env` installs Debian's bazel-bootstrap; `CASBAH_BAZEL` names another one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::authority::IdentityFiles;
use crate::files::{Files, copy_tree};
use crate::home::Home;
use crate::process::Endpoint;

pub use crate::home::Outcome;

/// Where Bazel of the sample workspace puts what it has built, below its output base.
const BIN_FOLDER: &str = "execroot/sample/bazel-out/k8-fastbuild/bin";

/// For the Java program that Bazel is: little memory, and compiled no more than a minute of work is worth.
const JVM: [&str; 3] = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];

/// Netty's TLS, which Debian's Bazel needs under another name than Debian's package gives it.
const NETTY_TLS: (&str, &str) = ("jni/libnetty-tcnative.so", "libnetty_tcnative.so");

/// A copy of `tests/bazel/workspace` in a temporary directory.
pub struct Workspace {
    dir: Arc<TempDir>,
}

/// One user's Bazel on one workspace, with an output base that is empty at first. It ends when this is dropped.
pub struct Bazel {
    /// As long as somebody works on it, it is there.
    workspace: Arc<TempDir>,
    home: Home,
}

/// A remote cache, as Bazel's options name it.
#[derive(Debug, Clone)]
pub struct RemoteCache {
    options: Vec<OsString>,
}

/// `INFO: 116 processes: 111 remote cache hit, 5 internal.`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processes {
    /// Answered by the remote cache.
    pub hits: u32,
    /// Run here.
    pub local: u32,
    /// Bazel's own work, which no cache can spare it.
    pub internal: u32,
}

// === impl Workspace ===

impl Workspace {
    /// The sample workspace.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn sample() -> Result<Workspace> {
        let dir = Arc::new(tempfile::tempdir()?);
        copy_tree(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bazel/workspace")), dir.path())?;
        Ok(Workspace { dir })
    }

    /// Adds to the end of a file, which need not exist.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&self, path: &str, text: &str) -> Result<()> {
        let path = self.dir.path().join(path);
        let before = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        Ok(fs::write(path, before + text)?)
    }
}

// === impl Bazel ===

impl Bazel {
    /// A user who has never run Bazel, in this workspace.
    ///
    /// # Errors
    /// When there is no Bazel.
    pub fn new(workspace: &Workspace) -> Result<Bazel> {
        program()?;
        let bazel = Bazel { workspace: Arc::clone(&workspace.dir), home: Home::new()? };
        let libraries = bazel.home.folder("libraries")?;
        fs::copy(netty_tls()?, libraries.join(NETTY_TLS.1))?;
        Ok(bazel)
    }

    /// `bazel test`, which builds the targets and runs the tests among them.
    ///
    /// # Errors
    /// As [`Bazel::run`].
    pub fn test(&self, cache: &RemoteCache, targets: &[&str]) -> Result<Outcome> {
        self.build_by("test", cache, targets)
    }

    /// `bazel build`.
    ///
    /// # Errors
    /// As [`Bazel::run`].
    pub fn build(&self, cache: &RemoteCache, targets: &[&str]) -> Result<Outcome> {
        self.build_by("build", cache, targets)
    }

    fn build_by(&self, name: &str, cache: &RemoteCache, targets: &[&str]) -> Result<Outcome> {
        let mut args = vec![
            "--jobs=4".into(),
            "--symlink_prefix=/".into(),
            // The sandbox is not what is tested, and not every container can have one.
            "--spawn_strategy=local".into(),
            "--verbose_failures".into(),
        ];
        args.extend(cache.options.iter().cloned());
        args.extend(targets.iter().map(OsString::from));
        self.run(name, &args)
    }

    /// Forgets everything that was built, as with an output base that is new; but the server goes on.
    ///
    /// # Errors
    /// When it cannot.
    pub fn clean(&self) -> Result<()> {
        self.run("clean", &[])?.succeeded().map(drop)
    }

    /// Runs `bazel COMMAND ARGS` to its end. Its server stays.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn run(&self, name: &str, args: &[OsString]) -> Result<Outcome> {
        let mut command = self.home.command(&program()?);
        command
            .current_dir(self.workspace.path())
            .env("USER", "tester")
            // Not --ignore_all_rc_files: Debian's own says where the program's parts are.
            .args(["--nohome_rc", "--noworkspace_rc"])
            // Should the test be killed, its server ends by itself.
            .arg("--max_idle_secs=60")
            .arg(option("--output_user_root=", &self.home.path().join("user_root")))
            .arg(option("--output_base=", &self.output_base()))
            .args(JVM.map(|argument| format!("--host_jvm_args={argument}")))
            .arg(option("--host_jvm_args=-Djava.library.path=", &self.home.path().join("libraries")))
            .arg(name)
            .args(["--color=no", "--curses=no", "--noshow_progress"]);
        if name != "clean" {
            // Debian's own sets it, and every sandbox would be left behind.
            command.arg("--nosandbox_debug");
        }
        command.args(args);
        let words = args.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        self.home.run(&format!("bazel {name} {words}"), command)
    }

    /// What was built or downloaded, without what names absolute paths.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn outputs(&self) -> Result<Files> {
        let of_this_machine = [".runfiles", ".runfiles_manifest"];
        Files::read_where(&self.output_base().join(BIN_FOLDER), |path| {
            !of_this_machine.iter().any(|end| path.as_os_str().as_encoded_bytes().ends_with(end.as_bytes()))
        })
    }

    /// Whether this output is on the disk.
    pub fn has_output(&self, path: &str) -> bool {
        self.output_base().join(BIN_FOLDER).join(path).exists()
    }

    /// This output's text.
    ///
    /// # Errors
    /// When it is not on the disk, or no text.
    pub fn read_output(&self, path: &str) -> Result<String> {
        let path = self.output_base().join(BIN_FOLDER).join(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn output_base(&self) -> PathBuf {
        self.home.path().join("output_base")
    }
}

impl Drop for Bazel {
    fn drop(&mut self) {
        let _ = self.home.kill_stragglers(Duration::ZERO);
        // A tree artifact is read-only, and could not be removed with the rest.
        make_writable(&self.output_base());
    }
}

// === impl RemoteCache ===

impl RemoteCache {
    /// None.
    pub fn none() -> RemoteCache {
        RemoteCache { options: Vec::new() }
    }

    /// This endpoint, called `localhost` where it is that. It is asked twice at the most: Bazel would go on for half a minute.
    pub fn of(endpoint: &Endpoint) -> RemoteCache {
        let scheme = if endpoint.tls { "grpcs" } else { "grpc" };
        let url = format!("--remote_cache={scheme}://{}", endpoint.called());
        RemoteCache::none().with(&url).with("--remote_retries=1")
    }

    /// With one more option.
    #[must_use]
    pub fn with(mut self, option: &str) -> RemoteCache {
        self.options.push(option.into());
        self
    }

    /// Known by a certificate of this authority.
    #[must_use]
    pub fn trusting(mut self, authority: &Path) -> RemoteCache {
        self.options.push(option("--tls_certificate=", authority));
        self
    }

    /// Shown this certificate.
    #[must_use]
    pub fn showing(mut self, identity: &IdentityFiles) -> RemoteCache {
        self.options.push(option("--tls_client_certificate=", &identity.certificate));
        self.options.push(option("--tls_client_key=", &identity.key));
        self
    }

    /// Called with this instance name.
    #[must_use]
    pub fn instance(self, name: &str) -> RemoteCache {
        self.with(&format!("--remote_instance_name={name}"))
    }

    /// Only asked; nothing of what is built here is sent.
    #[must_use]
    pub fn not_uploading(self) -> RemoteCache {
        self.with("--remote_upload_local_results=false")
    }
}

// === impl Outcome ===

impl Outcome {
    /// What Bazel says of the processes of a build.
    ///
    /// # Errors
    /// When it says nothing of them, or something new.
    pub fn processes(&self) -> Result<Processes> {
        let line = self.stderr.lines().find_map(|line| line.strip_prefix("INFO: ")?.split_once(" process"));
        let (_, counts) =
            line.with_context(|| format!("{} says nothing of processes\n{}", self.command, self.stderr))?;
        let counts = counts.split_once(": ").map_or("", |(_, counts)| counts).trim_end_matches('.');
        let mut processes = Processes::default();
        for count in counts.split(", ") {
            let (number, kind) = count.split_once(' ').with_context(|| format!("no count in {count:?}"))?;
            let place = match kind {
                "remote cache hit" => &mut processes.hits,
                "local" => &mut processes.local,
                "internal" => &mut processes.internal,
                other => bail!("{} has processes of a kind that is not expected: {other}", self.command),
            };
            *place = number.parse()?;
        }
        Ok(processes)
    }

    /// Itself, if every action was answered by the cache.
    ///
    /// # Errors
    /// When one was run.
    pub fn all_hits(self) -> Result<Outcome> {
        let processes = self.processes()?;
        ensure!(processes.hits > 0 && processes.local == 0, "not all were hits: {processes:?}\n{}", self.stderr);
        Ok(self)
    }

    /// Itself, if every action was run here.
    ///
    /// # Errors
    /// When one was answered by the cache.
    pub fn no_hits(self) -> Result<Outcome> {
        let processes = self.processes()?;
        ensure!(processes.local > 0 && processes.hits == 0, "some were hits: {processes:?}\n{}", self.stderr);
        Ok(self)
    }
}

// === files ===

/// `CASBAH_BAZEL`, or the one that `scripts/test-env` has installed.
fn program() -> Result<PathBuf> {
    let program = std::env::var_os("CASBAH_BAZEL").map_or_else(|| PathBuf::from("/usr/bin/bazel"), PathBuf::from);
    ensure!(program.is_file(), "there is no Bazel at {}; run: scripts/test-env", program.display());
    Ok(program)
}

/// The library in the folder of this machine's architecture.
fn netty_tls() -> Result<PathBuf> {
    let found = fs::read_dir("/usr/lib")?.filter_map(|folder| Some(folder.ok()?.path().join(NETTY_TLS.0)));
    let found = found.into_iter().find(|file| file.is_file());
    found.with_context(|| format!("there is no /usr/lib/*/{}; run: scripts/test-env", NETTY_TLS.0))
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

/// Gives the owner back the right to change every folder. What fails here fails again, and louder, at the removal.
fn make_writable(dir: &Path) {
    let Ok(metadata) = fs::symlink_metadata(dir) else { return };
    if !metadata.is_dir() {
        return;
    }
    let mode = metadata.permissions().mode();
    if mode & 0o200 == 0 {
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o700));
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        make_writable(&entry.path());
    }
}
