//! The container image: what deploy/oci-image makes of a program, and that it runs with nothing else around it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use casbah_tests::process;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const USER: &str = "65532";
/// The programs that tests are made of are larger than what is shipped: nothing optimised them.
const BYTES_MAX: &str = "200000000";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn oci_image(arguments: &[&str]) -> Result<Output> {
    Command::new(root().join("deploy/oci-image")).args(arguments).output().context("deploy/oci-image")
}

fn succeeds(output: Output) -> Result<Vec<u8>> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

fn at<'a>(value: &'a Value, pointer: &str) -> Result<&'a Value> {
    value.pointer(pointer).with_context(|| format!("no {pointer} in {value}"))
}

/// The program under test without what only a debugger reads.
struct Images {
    dir: TempDir,
}

impl Images {
    fn program(&self) -> PathBuf {
        self.dir.path().join("casbah")
    }

    /// An image of it.
    fn layout(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn make(&self, out: &Path) -> Result<()> {
        let (program, out) = (self.program(), text(out)?);
        succeeds(oci_image(&["--name", "casbah:test", "--bytes-max", BYTES_MAX, text(&program)?, out])?).map(drop)
    }

    fn blob(&self, descriptor: &Value) -> Result<Vec<u8>> {
        let digest = at(descriptor, "/digest")?.as_str().context("the digest is no text")?;
        let hash = digest.strip_prefix("sha256:").context("it is not of SHA-256")?;
        let blob = fs::read(self.layout().join("blobs/sha256").join(hash))?;
        ensure!(sha256(&blob) == hash, "the blob {hash} is another");
        ensure!(*at(descriptor, "/size")? == blob.len(), "the size of {hash} is another");
        Ok(blob)
    }

    /// The manifest and the configuration.
    fn described(&self) -> Result<(Value, Value)> {
        let index: Value = serde_json::from_slice(&fs::read(self.layout().join("index.json"))?)?;
        let manifest: Value = serde_json::from_slice(&self.blob(at(&index, "/manifests/0")?)?)?;
        let config = serde_json::from_slice(&self.blob(at(&manifest, "/config")?)?)?;
        Ok((manifest, config))
    }

    /// The layer, unpacked.
    fn tar(&self) -> Result<Vec<u8>> {
        let (manifest, _) = self.described()?;
        let packed = tempfile::NamedTempFile::new()?;
        fs::write(packed.path(), self.blob(at(&manifest, "/layers/0")?)?)?;
        let unpacked = Command::new("gzip").arg("-dc").stdin(Stdio::from(fs::File::open(packed.path())?)).output()?;
        succeeds(unpacked)
    }
}

fn images() -> Result<&'static Images> {
    static IMAGES: OnceLock<Result<Images, String>> = OnceLock::new();
    let images = IMAGES.get_or_init(|| {
        let make = || {
            let images = Images { dir: tempfile::tempdir()? };
            let strip = Command::new("strip").arg("-o").arg(images.program()).arg(process::binary()).output();
            succeeds(strip.context("strip (Debian: package binutils)")?)?;
            images.make(&images.layout())?;
            Ok(images)
        };
        make().map_err(|error: anyhow::Error| format!("{error:#}"))
    });
    images.as_ref().map_err(|error| anyhow!("{error}"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What lies in a tar file: `mode owner/group` by path.
fn listed(tar: &[u8]) -> Result<BTreeMap<String, String>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), tar)?;
    let listing = succeeds(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(file.path()).output()?)?;
    let listing = String::from_utf8(listing)?;
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _size, date, _time, path] = words[..] else { bail!("{line}") };
        ensure!(date.starts_with("1970"), "it has a date: {line}");
        Ok((path.trim_end_matches('/').to_owned(), format!("{mode} {owner}")))
    };
    listing.lines().map(entry).collect()
}

#[test]
fn the_image_is_well_formed_and_says_what_it_is() -> Result<()> {
    let images = images()?;
    let marker: Value = serde_json::from_slice(&fs::read(images.layout().join("oci-layout"))?)?;
    assert_eq!(marker, json!({"imageLayoutVersion": "1.0.0"}));
    let (manifest, config) = images.described()?;
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&images.tar()?))]));
    let blobs = fs::read_dir(images.layout().join("blobs/sha256"))?.count();
    assert_eq!(blobs, 3, "manifest, configuration and layer, and nothing else");

    assert_eq!(config["os"], "linux");
    let run = &config["config"];
    assert_eq!(run["Entrypoint"], json!(["/usr/local/bin/casbah"]));
    assert_eq!(run["User"], format!("{USER}:{USER}"));
    Ok(())
}

/// The program, what it is linked with, and what the C library reads: no shell, and nobody's rights to set.
#[test]
fn the_image_has_nothing_in_it_but_the_program() -> Result<()> {
    let listed = listed(&images()?.tar()?)?;
    let is_library = |path: &str| path.starts_with("lib") && path.contains(".so");
    let files: Vec<&str> = listed.iter().filter(|(_, mode)| !mode.starts_with('d')).map(|(path, _)| &**path).collect();
    let others: Vec<&str> = files.iter().filter(|path| !is_library(path)).copied().collect();
    let expected =
        ["etc/group", "etc/nsswitch.conf", "etc/passwd", "usr/local/bin/casbah", "usr/share/doc/casbah/LICENSE"];
    assert_eq!(others, expected);
    assert!(files.len() < expected.len() + 8, "{files:?}");
    for (path, mode) in &listed {
        if path == "var/lib/casbah" {
            assert_eq!(mode, &format!("drwx------ {USER}/{USER}"));
        } else {
            assert!(["-rwxr-xr-x 0/0", "-rw-r--r-- 0/0", "drwxr-xr-x 0/0"].contains(&mode.as_str()), "{path}: {mode}");
        }
    }
    Ok(())
}

#[test]
fn the_same_program_makes_the_same_image() -> Result<()> {
    let images = images()?;
    let again = images.dir.path().join("again");
    images.make(&again)?;
    let same = Command::new("diff").arg("-r").arg(images.layout()).arg(&again).output()?;
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    Ok(())
}

/// As another user, with a root that cannot be written, and with no file of this machine's.
#[test]
fn the_program_runs_in_its_image_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (tar, image) = (dir.path().join("layer.tar"), dir.path().join("root"));
    fs::write(&tar, images()?.tar()?)?;
    fs::create_dir(&image)?;
    succeeds(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&image).arg("--no-same-owner").output()?)?;
    // This one comes from the container's engine.
    fs::write(image.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    let run = |arguments: &[&str]| {
        let mut command = Command::new("bwrap");
        command.arg("--bind").arg(&image).arg("/").args(["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/"]);
        command.args(["--tmpfs", "/var/lib/casbah", "--unshare-all", "--uid", USER, "--gid", USER, "--clearenv"]);
        command.args(["--setenv", "PATH", "/usr/local/bin", "casbah"]).args(arguments).output().context("bwrap")
    };
    assert!(String::from_utf8(succeeds(run(&["version"])?)?)?.starts_with("casbah "));
    // A name is looked up by the C library, which wants no further file for it: the answer is the one of the address.
    let asked = run(&["status", "--live", "--admin", "localhost:9"])?;
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success() && said.contains("Connection refused"), "{said}");
    Ok(())
}

#[test]
fn what_is_no_image_of_casbah_is_not_made() -> Result<()> {
    let program = images()?.program();
    let program = text(&program)?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let out = text(&out)?;
    let here = text(dir.path())?;
    fs::write(dir.path().join("script"), "#!/bin/sh\n")?;
    let script = format!("{here}/script");
    for (arguments, expected) in [
        (&["/nowhere/casbah", out][..], "is not a program"),
        (&[&script, out], "is not a program"),
        (&["/bin/ls", out], "is not casbah"),
        (&["--bytes-max", "1000000", program, out], "is it built with --profile dist?"),
        (&[program, here], "is not empty"),
    ] {
        let output = oci_image(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(!Path::new(out).exists(), "{arguments:?} left something behind");
    }
    Ok(())
}

/// Both ways to an image lead to the same one.
#[test]
fn the_containerfile_describes_the_same_image() -> Result<()> {
    let (_, config) = images()?.described()?;
    let file = fs::read_to_string(root().join("deploy/Containerfile"))?;
    let (build, last) = file.rsplit_once("\nFROM ").context("it has one stage")?;
    assert!(last.starts_with("scratch\n"), "the image has a base");
    assert!(build.contains("deploy/oci-image --root target/dist/casbah /image"), "{build}");
    assert!(last.contains("COPY --from=build /image/ /\n"), "{last}");
    let told = |key: &str| last.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap_or_default();
    let config = &config["config"];
    let environment: Vec<&str> = told("ENV ").split_whitespace().collect();
    assert_eq!(config["Env"], json!(environment));
    assert_eq!(config["User"], told("USER "));
    assert_eq!(config["WorkingDir"], told("WORKDIR "));
    assert_eq!(config["Volumes"], json!({ told("VOLUME "): {} }));
    assert_eq!(config["StopSignal"], told("STOPSIGNAL "));
    assert_eq!(config["Entrypoint"], serde_json::from_str::<Value>(told("ENTRYPOINT "))?);
    assert_eq!(config["Cmd"], serde_json::from_str::<Value>(told("CMD "))?);
    let health = last.split_once("HEALTHCHECK").context("no health check")?.1;
    assert!(health.contains(r#"CMD ["casbah", "status", "--live"]"#), "{health}");
    Ok(())
}
