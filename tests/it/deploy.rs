//! What is shipped to be installed: the systemd units and their configuration, as systemd and casbah themselves see them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use casbah_tests::process;

const UNITS: [&str; 3] = ["casbah.service", "casbah-artifact-pull.service", "casbah-artifact-push.service"];
/// Where the units expect the program.
const PROGRAM: &str = "/usr/local/bin/casbah";
/// systemd's measure of what a service could reach, from 0 to 100 (printed as 10.0).
const MAX_EXPOSURE: u32 = 20;

fn shipped(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs `systemd-analyze` on a unit with this text. The program's path is one that exists, since that is looked at.
fn analyze(arguments: &[&str], name: &str, unit: &str) -> Result<(bool, String)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(name);
    fs::write(&path, unit.replace(PROGRAM, "/bin/true"))?;
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(&path).env("SYSTEMD_COLORS", "0").env("SYSTEMD_PAGER", "");
    let output =
        command.output().context("systemd-analyze (Debian: package systemd) is installed by `make test-env`")?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((output.status.success(), text))
}

/// # Errors
/// What systemd has to say about the unit. It ends with success for a misspelled key, which it would ignore.
fn check_syntax(name: &str, unit: &str) -> Result<()> {
    let (is_success, text) = analyze(&["verify", "--man=no", "--recursive-errors=no"], name, unit)?;
    let about_unit: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
    ensure!(is_success && about_unit.is_empty(), "{name}: {text}");
    Ok(())
}

/// # Errors
/// When the unit leaves a service more than [`MAX_EXPOSURE`].
fn check_exposure(name: &str, unit: &str) -> Result<()> {
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    let (is_success, text) = analyze(&["security", "--offline=true", &threshold], name, unit)?;
    ensure!(text.contains("Overall exposure level"), "{name} was not judged: {text}");
    ensure!(is_success, "{name}: {text}");
    Ok(())
}

/// The words of a unit's command after the program.
fn arguments(unit: &str) -> Result<Vec<String>> {
    let unit = unit.replace("\\\n", " ");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("no ExecStart")?;
    let mut words = command.split_whitespace().map(str::to_owned);
    ensure!(words.next().as_deref() == Some(PROGRAM), "ExecStart does not start {PROGRAM}");
    Ok(words.collect())
}

/// # Errors
/// When the program's help for `subcommand` does not know an option of the unit.
fn check_options(name: &str, unit: &str) -> Result<()> {
    let words = arguments(unit)?;
    let subcommand = words.first().with_context(|| format!("{name}: no subcommand"))?;
    let help = process::run(&[subcommand, "--help"])?;
    let help = String::from_utf8_lossy(&help.stdout);
    for option in words.iter().filter(|word| word.starts_with("--")) {
        let is_known = help.split_whitespace().any(|word| word.trim_end_matches([',', '.']) == option);
        ensure!(is_known, "{name}: `casbah {subcommand}` knows no {option}");
    }
    Ok(())
}

/// `casbah config check` on this text.
fn check_configuration(text: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("node.toml");
    fs::write(&path, text)?;
    let path = path.to_str().context("a temporary path is UTF-8")?;
    let output = process::run(&["config", "check", "--config", path])?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Result<()> {
    UNITS.iter().try_for_each(|name| check_syntax(name, &shipped(name)?))
}

#[test]
fn a_unit_with_a_mistake_is_found_out() -> Result<()> {
    let unit = shipped("casbah.service")?;
    for (right, wrong) in [
        ("ProtectSystem=strict", "ProtectSytem=strict"),
        ("Type=notify", "Type=notfy"),
        ("ExecStart=/usr/local/bin/casbah", "ExecStart=/usr/local/bin/no-such-program"),
        ("[Service]", "[Servce]"),
    ] {
        let broken = unit.replace(right, wrong);
        assert_ne!(broken, unit, "the unit has no {right}");
        assert!(check_syntax("casbah.service", &broken).is_err(), "{wrong} was not found");
    }
    Ok(())
}

#[test]
fn the_units_expose_little() -> Result<()> {
    UNITS.iter().try_for_each(|name| check_exposure(name, &shipped(name)?))
}

#[test]
fn a_unit_that_exposes_more_is_found_out() -> Result<()> {
    let unit = shipped("casbah.service")?;
    let dropped = ["CapabilityBoundingSet", "SystemCallFilter", "RestrictNamespaces", "PrivateUsers", "ProtectSystem"];
    let exposed: Vec<&str> =
        unit.lines().filter(|line| !dropped.iter().any(|key| line.starts_with(&format!("{key}=")))).collect();
    assert!(check_exposure("casbah.service", &exposed.join("\n")).is_err());
    Ok(())
}

#[test]
fn the_program_knows_every_option_of_the_units() -> Result<()> {
    for name in UNITS {
        let unit = shipped(name)?;
        check_options(name, &unit)?;
        let wrong = unit.replace("--port", "--prot").replace("--config", "--confg");
        assert!(check_options(name, &wrong).is_err(), "{name}: a wrong option was not found");
    }
    Ok(())
}

/// The store reads the boot's id to tell a killed process from a machine that went down; without it, every start would
/// take the longer way.
#[test]
fn the_units_leave_the_boot_id_in_sight() -> Result<()> {
    for name in UNITS {
        let unit = shipped(name)?;
        assert!(!unit.lines().any(|line| line.starts_with("ProcSubset=")), "{name} hides /proc/sys");
    }
    Ok(())
}

/// A user of `bst-artifact-server` changes the program's path alone.
#[test]
fn the_pair_has_the_options_that_buildstream_documents() -> Result<()> {
    let pull = "--port 11001 --server-key /home/artifacts/server.key --server-cert /home/artifacts/server.crt \
                /home/artifacts/artifacts";
    let push = "--port 11002 --server-key /home/artifacts/server.key --server-cert /home/artifacts/server.crt \
                --client-certs /home/artifacts/authorized.crt --enable-push /home/artifacts/artifacts";
    for (name, documented) in [("casbah-artifact-pull.service", pull), ("casbah-artifact-push.service", push)] {
        let expected: Vec<&str> = ["bst-artifact-server"].into_iter().chain(documented.split_whitespace()).collect();
        assert_eq!(arguments(&shipped(name)?)?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn the_example_configuration_is_accepted() -> Result<()> {
    check_configuration(&shipped("node.toml")?)
}

#[test]
fn an_example_configuration_with_a_mistake_is_refused() -> Result<()> {
    let example = shipped("node.toml")?;
    for (right, wrong) in [("capacity =", "capacty ="), ("[\"read\"]", "[\"raed\"]"), ("[::]:11001", "[::]:110011")] {
        let broken = example.replace(right, wrong);
        assert_ne!(broken, example, "the example has no {right}");
        assert!(check_configuration(&broken).is_err(), "{wrong} was accepted");
    }
    Ok(())
}

/// The unit provides what the configuration names: the directory and the credentials.
#[test]
fn the_unit_and_its_configuration_agree() -> Result<()> {
    let unit = shipped("casbah.service")?;
    let example = shipped("node.toml")?;
    let state = unit.lines().find_map(|line| line.strip_prefix("StateDirectory=")).context("no StateDirectory")?;
    assert!(example.contains(&format!("dir = \"/var/lib/{state}\"")), "node.dir is not /var/lib/{state}");

    let credentials: Vec<&str> = example.split("/run/credentials/casbah.service/").skip(1).collect();
    assert!(!credentials.is_empty());
    for credential in credentials {
        let name = credential.split('"').next().unwrap_or_default();
        assert!(unit.contains(&format!("LoadCredential={name}:/etc/casbah/tls/{name}\n")), "{name} is not handed over");
    }
    Ok(())
}
