//! BuildStream as people run it: the program from PyPI with a home, a configuration and a cache of its own, working on
//! a sample project.
//!
//! `scripts/test-env` installs it; `CASBAH_BST` names another one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use crate::clients::{digest_of, reapi};
use crate::files::copy_tree;
use crate::home::Home;
use crate::process::run_command;

pub use crate::bst_remote::Remote;
pub use crate::files::{Entry, Files};
pub use crate::home::Outcome;

/// How long buildbox-casd, which BuildStream stops and waits for, may outlive it.
const STRAGGLERS_DEADLINE: Duration = Duration::from_secs(10);

/// Where in its temporary directory a project is, beside its upstream.
const PROJECT_FOLDER: &str = "project";

/// What the sample project calls itself.
const PROJECT_NAME: &str = "casbah-sample";

/// Over the 4 MiB of a gRPC message, and no multiple of any chunk.
const LARGE_BYTES: usize = (5 << 20) + 13;

/// In `many.bst`: more than a batch of casd's own (512), few enough to be quick.
const MANY_COUNT: usize = 600;

/// What the commands of `compiled.bst` are made of.
const BUSYBOX_COMMANDS: [&str; 16] = [
    "cat",
    "chmod",
    "cp",
    "echo",
    "find",
    "ln",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sort",
    "touch",
    "tr",
];

/// A copy of `tests/bst/project` in a temporary directory, with what git does not keep, and an upstream of its own.
pub struct Project {
    dir: Arc<TempDir>,
    /// For each element that downloads: for each of its sources the SHA-256, or `None` for a local one.
    refs: BTreeMap<String, Vec<Option<String>>>,
}

/// One user's BuildStream on one project.
pub struct Bst {
    /// As long as somebody works on it, it is there.
    project: Arc<TempDir>,
    home: Home,
}

/// A line of the summary: `Pull Queue: processed 7, skipped 1, failed 0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Done.
    pub processed: u32,
    /// Had nothing to do.
    pub skipped: u32,
    /// In vain.
    pub failed: u32,
}

/// What `bst show` says of a cached element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// `PROJECT/ELEMENT/KEY`: what it is called without its sources at hand.
    pub name: String,
    /// Of its tree of files.
    pub tree: reapi::Digest,
}

// === impl Project ===

impl Project {
    /// The sample project with its upstream.
    ///
    /// # Errors
    /// When it cannot be written, or there is no static busybox.
    pub fn sample() -> Result<Project> {
        let mut project = Project { dir: Arc::new(tempfile::tempdir()?), refs: BTreeMap::new() };
        copy_tree(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/bst/project")), &project.project_dir())?;
        fs::create_dir(project.upstream_dir())?;
        project.write_generated()?;
        project.write_upstream()?;
        project.write_refs()?;
        Ok(project)
    }

    /// A project of the same name without elements and sources: the artifacts are only known by their names.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn bare() -> Result<Project> {
        let project = Project { dir: Arc::new(tempfile::tempdir()?), refs: BTreeMap::new() };
        fs::create_dir(project.project_dir())?;
        let conf = format!("name: {PROJECT_NAME}\nmin-version: \"2.0\"\n");
        fs::write(project.project_dir().join("project.conf"), conf)?;
        Ok(project)
    }

    /// Adds the element `NAME.bst`, which downloads a file of each of these sizes. No byte of it is in another one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_download(&mut self, name: &str, sizes_bytes: &[usize]) -> Result<()> {
        let mut element = "kind: import\n\nsources:\n".to_owned();
        let mut refs = Vec::new();
        for (place, size_bytes) in sizes_bytes.iter().enumerate() {
            let file = format!("{name}-{place}.bin");
            refs.push(Some(self.write_upstream_file(&file, &seeded_bytes(&file, *size_bytes))?));
            element.push_str(&format!("- kind: remote\n  url: upstream:{file}\n"));
        }
        self.refs.insert(format!("{name}.bst"), refs);
        fs::write(self.project_dir().join(format!("elements/{name}.bst")), element)?;
        self.write_refs()
    }

    /// Everything that could be downloaded is gone.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn lose_upstream(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.upstream_dir())?)
    }

    fn project_dir(&self) -> PathBuf {
        self.dir.path().join(PROJECT_FOLDER)
    }

    fn upstream_dir(&self) -> PathBuf {
        self.dir.path().join("upstream")
    }

    /// Local sources that git cannot hold or that depend on the machine.
    fn write_generated(&self) -> Result<()> {
        let generated = self.project_dir().join("files/generated");
        let bin = generated.join("shell/bin");
        fs::create_dir_all(&bin)?;
        fs::copy(busybox()?, bin.join("busybox")).context("cannot copy busybox")?;
        for command in BUSYBOX_COMMANDS {
            symlink("busybox", bin.join(command))?;
        }
        fs::create_dir_all(generated.join("tree/data/empty-directory/within"))?;
        let links = generated.join("tree/links");
        fs::create_dir_all(&links)?;
        symlink("nowhere", links.join("dangling"))?;
        symlink("/etc/hostname", links.join("absolute"))?;
        symlink(".", links.join("self"))?;
        Ok(())
    }

    fn write_upstream(&mut self) -> Result<()> {
        let include = self.project_dir().join("include");
        fs::create_dir_all(&include)?;
        fs::write(include.join("upstream.yml"), format!("upstream: file://{}/\n", self.upstream_dir().display()))?;

        let notice = self.write_upstream_file("notice.txt", b"a file from elsewhere\n")?;
        let large = self.write_upstream_file("large.bin", &seeded_bytes("large", LARGE_BYTES))?;
        let archive = self.write_upstream_archive("archive", 5, 2000)?;
        let many = self.write_upstream_archive("many", MANY_COUNT, 20)?;
        self.refs.insert("compiled.bst".to_owned(), vec![None, Some(archive.clone())]);
        self.refs.insert("downloads.bst".to_owned(), vec![Some(archive), Some(notice)]);
        self.refs.insert("large.bst".to_owned(), vec![Some(large)]);
        self.refs.insert("many.bst".to_owned(), vec![Some(many)]);
        Ok(())
    }

    fn write_upstream_file(&self, name: &str, bytes: &[u8]) -> Result<String> {
        fs::write(self.upstream_dir().join(name), bytes)?;
        Ok(digest_of(bytes).hash)
    }

    /// `NAME.tar` with files `NAME/<0 to 6>/file-<n>`, each a byte longer than the one before.
    fn write_upstream_archive(&self, name: &str, file_count: usize, size_bytes: usize) -> Result<String> {
        let beside = tempfile::tempdir()?;
        for number in 0..file_count {
            let folder = beside.path().join(name).join((number % 7).to_string());
            fs::create_dir_all(&folder)?;
            let file = format!("file-{number}");
            fs::write(folder.join(&file), seeded_bytes(&format!("{name}/{file}"), size_bytes + number))?;
        }
        let archive = self.upstream_dir().join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"]);
        tar.arg("-cf").arg(&archive).arg("-C").arg(beside.path()).arg(name);
        let output = run_command(tar)?;
        ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(digest_of(&fs::read(archive)?).hash)
    }

    /// `project.refs` pins every download, as `bst source track` would.
    fn write_refs(&self) -> Result<()> {
        let mut text = format!("projects:\n  {PROJECT_NAME}:\n");
        for (element, refs) in &self.refs {
            text.push_str(&format!("    {element}:\n"));
            for pinned in refs {
                match pinned {
                    Some(hash) => text.push_str(&format!("    - ref: {hash}\n")),
                    None => text.push_str("    - {}\n"),
                }
            }
        }
        Ok(fs::write(self.project_dir().join("project.refs"), text)?)
    }
}

// === impl Bst ===

impl Bst {
    /// A user who has never run BuildStream, in this project.
    ///
    /// # Errors
    /// When there is no BuildStream.
    pub fn new(project: &Project) -> Result<Bst> {
        program()?;
        let home = Home::new()?;
        for folder in ["cache", "config"] {
            home.folder(folder)?;
        }
        let bst = Bst { project: Arc::clone(&project.dir), home };
        bst.configure(&[], &[])?;
        Ok(bst)
    }

    /// Writes `buildstream.conf` with these servers for artifacts and for sources.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, artifacts: &[Remote], sources: &[Remote]) -> Result<()> {
        self.write_config("", artifacts, sources)
    }

    /// The same with a `storage-service`, where blobs are kept instead of here; this machine has a cache of them.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure_storage_service(&self, storage: &Remote, artifacts: &[Remote]) -> Result<()> {
        self.write_config(&format!("  storage-service:\n    url: {:?}\n", storage.url()), artifacts, &[])
    }

    fn write_config(&self, storage: &str, artifacts: &[Remote], sources: &[Remote]) -> Result<()> {
        // Its own default is 5 % of the disk, and casd evicts what it should keep on one that is nearly full.
        let mut text = format!("cache:\n  reserved-disk-space: 10M\n{storage}");
        for (caches, remotes) in [("artifacts", artifacts), ("source-caches", sources)] {
            if !remotes.is_empty() {
                let servers: String = remotes.iter().map(Remote::yaml).collect();
                text.push_str(&format!("{caches}:\n  servers:\n{servers}"));
            }
        }
        Ok(fs::write(self.home.path().join("config/buildstream.conf"), text)?)
    }

    /// Forgets everything that was built, pulled, fetched or downloaded.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        let cache = self.home.path().join("cache");
        fs::remove_dir_all(&cache)?;
        Ok(fs::create_dir(cache)?)
    }

    /// `bst build`: pulls what it can, builds the rest, and pushes where it may.
    ///
    /// # Errors
    /// As [`Bst::run`].
    pub fn build(&self, element: &str) -> Result<Outcome> {
        self.run(&["build", element])
    }

    /// `bst artifact push` of an element with all that it was made of.
    ///
    /// # Errors
    /// As [`Bst::run`].
    pub fn push(&self, element: &str) -> Result<Outcome> {
        self.run(&["artifact", "push", "--deps", "all", element])
    }

    /// `bst artifact pull` of this one alone; an element, or an artifact's name.
    ///
    /// # Errors
    /// As [`Bst::run`].
    pub fn pull(&self, artifact: &str) -> Result<Outcome> {
        self.run(&["artifact", "pull", artifact])
    }

    /// `bst source push` of an element's sources and those of all that it is made of.
    ///
    /// # Errors
    /// As [`Bst::run`].
    pub fn push_sources(&self, element: &str) -> Result<Outcome> {
        self.run(&["source", "push", "--deps", "all", element])
    }

    /// `bst source fetch` of an element's sources and those of all that it is made of.
    ///
    /// # Errors
    /// As [`Bst::run`].
    pub fn fetch_sources(&self, element: &str) -> Result<Outcome> {
        self.run(&["source", "fetch", "--deps", "all", element])
    }

    /// `bst artifact checkout`: the files that a user sees in the end, with those of what it needs to run. An artifact
    /// that is called by its name is checked out alone.
    ///
    /// # Errors
    /// When it fails.
    pub fn checkout(&self, artifact: &str) -> Result<Files> {
        let dir = tempfile::tempdir()?;
        let files = dir.path().join("files");
        let deps = if artifact.ends_with(".bst") { "run" } else { "none" };
        self.run(&["artifact", "checkout", "--deps", deps, "--directory", utf8(&files)?, artifact])?.succeeded()?;
        Files::read(&files)
    }

    /// What is known of an element that has been built or pulled.
    ///
    /// # Errors
    /// When it is not cached here.
    pub fn artifact(&self, element: &str) -> Result<Artifact> {
        let format = "%{state} %{full-key} %{artifact-cas-digest}";
        let shown = self.run(&["show", "--deps", "none", "--format", format, element])?.succeeded()?;
        let line = shown.stdout.trim();
        let Some(("cached", rest)) = line.split_once(' ') else { bail!("{element} is not cached: {line}") };
        let (key, digest) = rest.split_once(' ').with_context(|| format!("no digest in {line:?}"))?;
        let (hash, size_bytes) = digest.split_once('/').with_context(|| format!("no digest in {line:?}"))?;
        let short = element.trim_end_matches(".bst").replace('/', "-");
        Ok(Artifact {
            name: format!("{PROJECT_NAME}/{short}/{key}"),
            tree: reapi::Digest { hash: hash.to_owned(), size_bytes: size_bytes.parse()? },
        })
    }

    /// Runs `bst ARGS` to its end, and sees to it that nothing of it is left running.
    ///
    /// # Errors
    /// When it does not end in time (it is killed then), or leaves a process behind (which is killed too).
    pub fn run(&self, args: &[&str]) -> Result<Outcome> {
        let name = format!("bst {}", args.join(" "));
        let mut command = self.command()?;
        command.args(args);
        let outcome = self.home.run(&name, command);
        let succeeded = outcome.as_ref().is_ok_and(|outcome| outcome.status.success());
        // buildbox-casd is in a process group of its own.
        let left = self.home.kill_stragglers(if succeeded { STRAGGLERS_DEADLINE } else { Duration::ZERO })?;
        ensure!(!succeeded || left.is_empty(), "{name} has left behind: {left:?}");
        outcome
    }

    fn command(&self) -> Result<Command> {
        let program = program()?;
        let home = self.home.path();
        let mut path = OsString::from(program.parent().unwrap_or(Path::new("/")));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        let mut command = self.home.command(&program);
        command
            .args(["--no-interactive", "--no-colors"])
            .current_dir(self.project.path().join(PROJECT_FOLDER))
            .env("PATH", path)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("data"));
        Ok(command)
    }
}

// === impl Outcome ===

impl Outcome {
    /// The line of the summary of this queue (`Pull`, `Fetch`, `Build`, `Push`, `Src-push`).
    ///
    /// # Errors
    /// When there is none.
    pub fn queue(&self, name: &str) -> Result<Queue> {
        let prefix = format!("{name} Queue:");
        let line = self.stderr.lines().find_map(|line| line.trim().strip_prefix(prefix.as_str()));
        let line = line.with_context(|| format!("{} has no {prefix}\n{}", self.command, self.stderr))?;
        let mut counts = line.split(|byte: char| !byte.is_ascii_digit()).filter(|word| !word.is_empty());
        let mut count = || Ok::<u32, anyhow::Error>(counts.next().context("a count is missing")?.parse()?);
        Ok(Queue { processed: count()?, skipped: count()?, failed: count()? })
    }
}

// === files and processes ===

/// `CASBAH_BST`, or the one that `scripts/test-env` has installed.
fn program() -> Result<PathBuf> {
    let installed = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/bin/bst"));
    let program = std::env::var_os("CASBAH_BST").map_or_else(installed, PathBuf::from);
    ensure!(program.is_file(), "there is no BuildStream at {}; run: scripts/test-env", program.display());
    Ok(program)
}

fn busybox() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.is_file());
    found.context("there is no busybox; run: scripts/test-env")
}

/// The same bytes for the same name, and others for another: elements keep their cache keys from test to test.
fn seeded_bytes(name: &str, size_bytes: usize) -> Vec<u8> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
    let mut bytes = vec![0; size_bytes];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_project_builds_without_a_server() -> Result<()> {
        let bst = Bst::new(&Project::sample()?)?;
        let built = bst.build("all.bst")?.succeeded()?;
        assert_eq!(built.queue("Build")?, Queue { processed: 8, skipped: 0, failed: 0 });
        let files = bst.checkout("all.bst")?;
        assert!(files.count() > MANY_COUNT);
        assert_eq!(files.get("links/relative"), Some(&Entry::Symlink("../bin/hello".into())));
        assert_eq!(files.get("links/dangling"), Some(&Entry::Symlink("nowhere".into())));
        assert!(matches!(files.get("data/empty-directory/within"), Some(Entry::Directory(_))));
        assert!(matches!(files.get("data/empty-executable"), Some(Entry::File(mode, _)) if mode & 0o111 != 0));
        assert!(matches!(files.get("data/empty"), Some(Entry::File(mode, _)) if mode & 0o111 == 0));
        assert!(matches!(files.get("opt/app/program"), Some(Entry::File(mode, _)) if mode & 0o111 != 0));
        Ok(())
    }
}
