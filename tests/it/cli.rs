//! The face of the program: errors that help, and commands that do what they say.

use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::clients::{AssetName, Client};
use casbah_tests::load::new_bytes;
use casbah_tests::process::{self, Server};
use rustix::process::Signal;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must fail in three lines (error, cause, hint) which contain these parts.
fn fails_saying(args: &[&str], parts: &[&str]) -> Result<String> {
    let output = process::run(args)?;
    let said = stderr(&output);
    ensure!(!output.status.success(), "{args:?} succeeded:\n{}", stdout(&output));
    ensure!(said.lines().any(|line| line.starts_with("error:")), "{args:?}: no error: in\n{said}");
    ensure!(!said.contains("panicked"), "{args:?}:\n{said}");
    ensure!(output.stdout.is_empty(), "{args:?} printed data:\n{}", stdout(&output));
    for part in parts {
        ensure!(said.contains(part), "{args:?}: no {part:?} in\n{said}");
    }
    Ok(said)
}

fn succeeds(args: &[&str]) -> Result<String> {
    let output = process::run(args)?;
    ensure!(output.status.success(), "{args:?} failed:\n{}", stderr(&output));
    Ok(stdout(&output))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

// === help ===

#[test]
fn without_arguments_it_says_what_it_can_do() -> Result<()> {
    let output = process::run(&[])?;
    let said = stdout(&output) + &stderr(&output);
    for part in ["Usage", "serve", "dev", "config", "bst-artifact-server"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    Ok(())
}

#[test]
fn every_command_has_help_and_help_is_data() -> Result<()> {
    for command in [&[][..], &["serve"], &["dev"], &["config"], &["config", "show"], &["bst-artifact-server"]] {
        let help = succeeds(&[command, &["--help"]].concat())?;
        assert!(help.contains("Usage"), "{command:?}:\n{help}");
        assert!(help.lines().all(|line| !line.contains('\u{1b}')), "{command:?}: coloured into a pipe");
    }
    Ok(())
}

#[test]
fn the_version_is_printed() -> Result<()> {
    assert!(succeeds(&["--version"])?.starts_with("casbah "));
    Ok(())
}

#[test]
fn a_command_that_does_not_exist_is_an_error_that_names_the_nearest() -> Result<()> {
    let output = process::run(&["serv"])?;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("'serve'"), "{}", stderr(&output));
    Ok(())
}

// === configuration ===

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name_wherever_it_comes_from() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("casbah.toml");
    std::fs::write(&file, "[store]\ncapacty = \"1GiB\"\n")?;
    fails_saying(&["serve", "--config", text(&file)?], &["capacty", "capacity", "hint:"])?;
    fails_saying(&["config", "check", "--config", text(&file)?], &["capacty", "capacity", "casbah.toml"])?;
    fails_saying(&["serve", "--set", "store.capacty=1GiB"], &["capacty", "capacity"])?;
    fails_saying(&["serve", "--set", "stor.capacity=1GiB"], &["stor", "store"])?;
    let mut command = process::command(&["serve"]);
    command.env("CASBAH_STORE__CAPACTY", "1GiB");
    let output = process::run_command(command)?;
    assert!(!output.status.success());
    for part in ["CASBAH_STORE__CAPACTY", "CASBAH_STORE__CAPACITY"] {
        assert!(stderr(&output).contains(part), "no {part:?} in\n{}", stderr(&output));
    }
    Ok(())
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_by_name_with_what_was_expected() -> Result<()> {
    for (setting, part) in [
        ("store.capacity=much", "much"),
        ("store.capacity=-1", "-1"),
        ("store.retention_floor=soon", "soon"),
        ("store.compression=lz4", "lz4"),
        ("log.level=loud", "loud"),
    ] {
        let key = setting.split('=').next().unwrap_or_default();
        fails_saying(&["serve", "--set", setting], &[key, part])?;
    }
    fails_saying(&["serve", "--set", "store.capacity"], &["store.capacity"]).map(|_| ())
}

#[test]
fn a_file_that_is_missing_or_is_not_toml_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("node.toml");
    fails_saying(&["serve", "--config", text(&file)?], &["node.toml", "caused by:"])?;
    std::fs::write(&file, "[store\ncapacity")?;
    fails_saying(&["serve", "--config", text(&file)?], &["node.toml"]).map(|_| ())
}

#[test]
fn what_init_writes_check_takes_and_show_shows() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("casbah.toml");
    let example = succeeds(&["config", "init"])?;
    std::fs::write(&file, &example)?;
    succeeds(&["config", "check", "--config", text(&file)?])?;
    let shown = succeeds(&["config", "show", "--config", text(&file)?])?;
    for part in ["capacity", "retention_floor"] {
        assert!(example.contains(part), "init does not explain {part}");
        assert!(shown.contains(part), "show does not show {part}:\n{shown}");
    }
    Ok(())
}

#[test]
fn show_origin_says_where_each_value_comes_from_and_the_later_source_wins() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("casbah.toml");
    std::fs::write(&file, "[store]\ncapacity = \"1GiB\"\nretention_floor = \"1h\"\n[log]\nlevel = \"warn\"\n")?;
    let mut command = process::command(&["config", "show", "--origin", "--config"]);
    command.arg(&file).args(["--set", "log.level=debug"]).env("CASBAH_STORE__CAPACITY", "2GiB");
    let output = process::run_command(command)?;
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = stdout(&output);
    for (key, value, origin) in [
        ("capacity", "2GiB", "CASBAH_STORE__CAPACITY"),
        ("retention_floor", "1h", "casbah.toml"),
        ("level", "debug", "--set"),
        ("sync", "", "default"),
    ] {
        let line = shown.lines().find(|line| line.contains(key)).with_context(|| format!("no {key} in\n{shown}"))?;
        assert!(line.contains(value) && line.contains(origin), "{key} is not {value} from {origin}: {line}");
    }
    Ok(())
}

// === serve ===

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_without_any_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(&["serve", "--dir", text(dir.path())?, "--listen", "127.0.0.1:0"])?;
    let client = Client::plaintext(&server.endpoint(0).authority()).await?;
    let digest = client.upload(new_bytes(1000)).await?;
    client.push_blob(&AssetName::unique(), &digest).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn localhost_means_both_loopback_addresses_and_one_port() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Server::start(&["serve", "--dir", text(dir.path())?, "--listen", "localhost:0"])?;
    let port = server.port(0);
    assert!(server.endpoints().iter().all(|endpoint| endpoint.port == port), "{:?}", server.endpoints());
    Client::plaintext(&format!("127.0.0.1:{port}")).await?.capabilities().await?;
    if tokio::net::TcpListener::bind("[::1]:0").await.is_ok() {
        Client::plaintext(&format!("[::1]:{port}")).await?.capabilities().await?;
    }
    Ok(())
}

#[test]
fn plaintext_writing_beyond_loopback_needs_the_word_insecure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for address in ["0.0.0.0:0", "[::]:0"] {
        fails_saying(&["serve", "--dir", text(dir.path())?, "--listen", address], &["insecure", "hint:"])?;
    }
    let file = dir.path().join("casbah.toml");
    let listener = "[[listener]]\naddress = \"0.0.0.0:0\"\n";
    std::fs::write(&file, format!("{listener}allow = [\"read\", \"write\"]\n"))?;
    fails_saying(&["serve", "--dir", text(dir.path())?, "--config", text(&file)?], &["insecure"])?;
    // Said aloud, or reading alone.
    for line in ["allow = [\"read\", \"write\"]\ninsecure = true\n", "allow = [\"read\"]\n"] {
        std::fs::write(&file, format!("{listener}{line}"))?;
        Server::start(&["serve", "--dir", text(dir.path())?, "--config", text(&file)?])?;
    }
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    fails_saying(&["serve", "--dir", text(dir.path())?, "--listen", &address], &[&address, "in use", "hint:"])?;
    Ok(())
}

#[test]
fn addresses_that_are_none_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (address, named) in [
        ("nonsense", "nonsense"),
        ("127.0.0.1:70000", "70000"),
        ("127.0.0.1:", "port"),
        ("host.invalid:0", "host.invalid:0"),
    ] {
        fails_saying(&["serve", "--dir", text(dir.path())?, "--listen", address], &[named])?;
    }
    Ok(())
}

#[test]
fn certificates_that_are_missing_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("casbah.toml");
    let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    std::fs::write(&file, format!("{listener}tls = {{ certificate = '/nowhere/a.crt', key = '/nowhere/a.key' }}\n"))?;
    fails_saying(&["serve", "--dir", text(dir.path())?, "--config", text(&file)?], &["/nowhere/a."])?;
    // Certificates of clients need TLS.
    std::fs::write(&file, format!("{listener}clients = \"certificate\"\nauthorized = '/nowhere/authorized.crt'\n"))?;
    fails_saying(&["serve", "--dir", text(dir.path())?, "--config", text(&file)?], &["tls"])?;
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_made_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("a-file");
    std::fs::write(&file, "")?;
    fails_saying(&["serve", "--dir", text(&file.join("node"))?, "--listen", "127.0.0.1:0"], &["a-file"]).map(|_| ())
}

#[test]
fn sigint_stops_a_node_like_sigterm() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(&["serve", "--dir", text(dir.path())?, "--listen", "127.0.0.1:0"])?;
        server.signal(signal)?;
        assert!(server.wait_exit()?.success());
    }
    Ok(())
}

// === dev ===

#[test]
fn dev_that_cannot_start_says_why_and_leaves_nothing_running() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("a-file");
    std::fs::write(&file, "")?;
    fails_saying(&["dev", "--port-base", "0", "--dir", text(&file)?], &["a-file"])?;
    Ok(())
}

#[test]
fn dev_names_a_port_that_is_taken_and_leaves_nothing_running() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    // The ports of a node come right after the base.
    for port_base in [port - 1, port - 2] {
        let (port_base, named) = (port_base.to_string(), port.to_string());
        let args = ["dev", "--port-base", &port_base, "--dir", text(dir.path())?];
        fails_saying(&args, &[&named, "--port-base", "hint:"])?;
    }
    Ok(())
}
