//! `casbah bst-artifact-server`: the options of BuildStream's old server, as settings of ours.
//!
//! What the old program accepted is accepted: several of one option (the last wins), an empty text for none, `_` in
//! numbers. What it did wrong is done right (`docs/clients/buildstream.md` lists the differences).

use std::ffi::{OsStr, OsString};

use toml::{Table, Value};

use super::args::{BstArguments, BstLogLevel};
use super::error::Failure;
use super::serve;
use crate::config::{Assignment, ByteSize, Clients, Config, Sources};
use crate::observe::logs;

/// Runs a node until it is told to stop.
///
/// # Errors
/// When the options contradict each other, or the node cannot start.
pub fn run(arguments: &BstArguments) -> Result<(), Failure> {
    let config = translate(arguments, Sources::of_this_process())?;
    logs::start(&config.log).map_err(|error| Failure::from_error(&error))?;
    if is_open_to_all(&config) {
        tracing::warn!(
            "--enable-push without --client-certs: everybody on the network may replace what is in the cache"
        );
    }
    serve::serve(config)
}

/// The settings that the options stand for.
fn translate(arguments: &BstArguments, sources: Sources) -> Result<Config, Failure> {
    let listener = listener(arguments)?;
    let level = match arguments.log_level {
        BstLogLevel::Warning => "warn",
        BstLogLevel::Info => "info",
        BstLogLevel::Trace => "trace",
    };
    let assign = |key, value: Value, option| Assignment { key, value, option };
    let assignments = vec![
        assign("node.dir", text(&arguments.repo, "REPO")?, "REPO"),
        assign("store.capacity", Value::String(quota(&arguments.quota)?.to_string()), "--quota"),
        // The least recently used go at once, however recently that was.
        assign("store.retention_floor", "0s".into(), "bst-artifact-server"),
        assign("log.level", level.into(), "--log-level"),
        assign("listener", Value::Array(vec![Value::Table(listener)]), "--port"),
    ];
    Ok(Sources { assignments, ..sources }.load()?.config)
}

fn listener(arguments: &BstArguments) -> Result<Table, Failure> {
    let given = |option: &Option<OsString>| option.clone().filter(|file| !file.is_empty());
    let (key, certificate) = (given(&arguments.server_key), given(&arguments.server_cert));
    let clients = given(&arguments.client_certs);
    let mut listener = Table::new();
    let mut set = |key: &str, value: Value| drop(listener.insert(key.to_owned(), value));
    set("address", format!("[::]:{}", port(&arguments.port)?).into());
    // As its users expect: the warning is ours.
    set("insecure", true.into());
    set("services", if arguments.index_only { "index" } else { "all" }.into());
    set("allow", if arguments.enable_push { vec!["read", "write"] } else { vec!["read"] }.into());
    match (key, certificate) {
        (Some(key), Some(certificate)) => {
            let mut tls = Table::new();
            tls.insert("key".into(), text(&key, "--server-key")?);
            tls.insert("certificate".into(), text(&certificate, "--server-cert")?);
            set("tls", tls.into());
        }
        (None, None) if clients.is_some() => {
            return Err(Failure::new("--client-certs can only be used with --server-key and --server-cert")
                .hint("clients show certificates over TLS alone"));
        }
        (None, None) => {}
        (key, _) => {
            let missing = if key.is_some() { "--server-cert" } else { "--server-key" };
            return Err(Failure::new("--server-key and --server-cert are both required for TLS")
                .hint(format!("add {missing} FILE, or leave both out for plaintext")));
        }
    }
    if let Some(clients) = clients {
        set("clients", "certificate".into());
        set("authorized", text(&clients, "--client-certs")?);
    }
    Ok(listener)
}

fn port(text: &str) -> Result<u16, Failure> {
    text.trim().replace('_', "").parse().map_err(|_| {
        Failure::new(format!("--port: \"{text}\" is not a port"))
            .hint("ports are numbers from 1 to 65535, and 0 stands for any free one")
    })
}

fn quota(text: &str) -> Result<ByteSize, Failure> {
    text.parse().map_err(|error: crate::config::UnitError| Failure::new(format!("--quota: {error}")).hint(error.hint()))
}

/// Settings are text.
fn text(value: &OsStr, option: &str) -> Result<Value, Failure> {
    let text = value.to_str().ok_or_else(|| Failure::new(format!("{option}: the path is not UTF-8")))?;
    // A path that begins with a tilde is one here; a shell would have changed it if it was to be changed.
    Ok(Value::String(if text.starts_with('~') { format!("./{text}") } else { text.to_owned() }))
}

fn is_open_to_all(config: &Config) -> bool {
    config.listeners.iter().any(|listener| listener.allow.write && listener.clients == Clients::Anyone)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Arguments, Command};
    use crate::cli::output::Colours;
    use crate::config::{ListenerConfig, LogLevel, Machine, Permissions, Services};

    fn parse(line: &str) -> Result<BstArguments, clap::Error> {
        let words =
            ["casbah", "bst-artifact-server"].into_iter().chain(line.split(' ').map(|word| word.trim_matches('\'')));
        match Arguments::try_parse_from(words)?.command {
            Command::BstArtifactServer(arguments) => Ok(arguments),
            other => panic!("{other:?}"),
        }
    }

    fn config(line: &str) -> Result<Config, String> {
        let machine = Machine {
            host_name: "h".into(),
            current_dir: "/here".into(),
            data_dir: "/data".into(),
            ..Machine::default()
        };
        let arguments = parse(line).map_err(|error| error.to_string())?;
        let config = translate(&arguments, Sources { machine, ..Sources::default() });
        config.map_err(|failure| failure.render(Colours::NONE))
    }

    fn listener(line: &str) -> ListenerConfig {
        config(line).unwrap().listeners.into_iter().next().unwrap()
    }

    #[test]
    fn the_documented_pull_server() {
        let config =
            config("--port 11001 --server-key server.key --server-cert server.crt /home/artifacts/artifacts").unwrap();
        assert_eq!(config.node.dir, Path::new("/home/artifacts/artifacts"));
        assert_eq!(config.store.capacity_bytes, 10_000_000_000);
        assert_eq!(config.store.retention_floor, Duration::ZERO);
        assert_eq!(config.log.level, LogLevel::Warn);
        let [listener] = &*config.listeners else { panic!() };
        assert_eq!(listener.address.to_string(), "[::]:11001");
        assert_eq!(listener.tls.as_ref().unwrap().key, Path::new("/here/server.key"));
        assert_eq!(listener.tls.as_ref().unwrap().certificate, Path::new("/here/server.crt"));
        assert_eq!(listener.clients, Clients::Anyone);
        assert_eq!(listener.allow, Permissions { read: true, ..Permissions::default() });
    }

    #[test]
    fn the_documented_push_server() {
        let line = "--port 11002 --server-key server.key --server-cert server.crt --client-certs authorized.crt --enable-push \
                    artifacts";
        let listener = listener(line);
        let authorized = Some("/here/authorized.crt".into());
        assert_eq!(listener.clients, Clients::Certificate { authorized, authorities: None });
        assert_eq!(listener.allow, Permissions { read: true, write: true, admin: false });
        assert_eq!(config(line).unwrap().node.dir, Path::new("/here/artifacts"));
        assert!(!is_open_to_all(&config(line).unwrap()));
    }

    #[test]
    fn what_the_old_program_accepted_is_accepted() {
        assert_eq!(listener("-p 11001 r").address.port, 11001);
        assert_eq!(listener("-p11001 r").address.port, 11001);
        assert_eq!(listener("--port=11001 r").address.port, 11001);
        assert_eq!(listener("r --port 1 --port 2 --enable-push --enable-push").address.port, 2);
        assert_eq!(listener("-p 0 r").address.port, 0);
        assert_eq!(listener("-p 11_001 -- r").address.port, 11001);
        assert_eq!(listener("-p 1 --server-key= --server-cert '' --client-certs= r").tls, None);
        assert_eq!(config("-p 1 ~repo").unwrap().node.dir, Path::new("/here/./~repo"));
    }

    #[test]
    fn quotas_have_units_if_wanted() {
        let quota = |text: &str| config(&format!("-p 1 --quota {text} r")).map(|config| config.store.capacity_bytes);
        assert_eq!(quota("22000000"), Ok(22_000_000));
        assert_eq!(quota("10e9"), Ok(10_000_000_000));
        assert_eq!(quota("10_000_000_000"), Ok(10_000_000_000));
        assert_eq!(quota("500GiB"), Ok(500 << 30));
        assert_eq!(quota("20M"), Ok(20 << 20));
        assert!(quota("lots").unwrap_err().starts_with("error: --quota: \"lots\" is not a size\nhint: "));
        assert!(quota("-1").unwrap_err().starts_with("error: --quota: \"-1\" is not a size\n"));
        assert!(
            quota("10").unwrap_err().starts_with("error: --quota: store.capacity: 10B is less than the smallest store")
        );
    }

    #[test]
    fn levels_are_those_of_the_old_program_in_any_case() {
        let level = |text: &str| config(&format!("-p 1 --log-level {text} r")).map(|config| config.log.level);
        assert_eq!(level("warning"), Ok(LogLevel::Warn));
        assert_eq!(level("INFO"), Ok(LogLevel::Info));
        assert_eq!(level("trace"), Ok(LogLevel::Trace));
        assert!(level("debug").is_err());
    }

    #[test]
    fn an_index_alone_checks_no_blobs() {
        let config = config("-p 1 --index-only --enable-push r").unwrap();
        assert!(config.listeners.iter().all(|listener| listener.services == Services::Index));
    }

    #[test]
    fn plaintext_pushing_is_warned_about_and_not_refused() {
        assert!(is_open_to_all(&config("-p 1 --enable-push r").unwrap()));
        assert!(!is_open_to_all(&config("-p 1 r").unwrap()));
    }

    #[test]
    fn half_of_tls_is_refused() {
        let message = "error: --server-key and --server-cert are both required for TLS\n";
        let only_key = config("-p 1 --server-key k r").unwrap_err();
        assert_eq!(only_key, format!("{message}hint: add --server-cert FILE, or leave both out for plaintext\n"));
        let only_certificate = config("-p 1 --server-cert c --client-certs a r").unwrap_err();
        assert_eq!(
            only_certificate,
            format!("{message}hint: add --server-key FILE, or leave both out for plaintext\n")
        );
        let only_clients = config("-p 1 --client-certs a r").unwrap_err();
        assert!(only_clients.starts_with("error: --client-certs can only be used with --server-key"), "{only_clients}");
    }

    #[test]
    fn what_is_missing_or_no_port_is_refused() {
        assert!(config("-p 1").is_err());
        assert!(config("r").is_err());
        for port in ["65536", "-1", "x", "1.5"] {
            let error = config(&format!("--port {port} r")).unwrap_err();
            assert!(error.starts_with(&format!("error: --port: \"{port}\" is not a port\n")), "{error}");
        }
    }

    #[test]
    fn settings_of_the_environment_do_not_open_anything() {
        let machine = Machine {
            host_name: "h".into(),
            current_dir: "/here".into(),
            data_dir: "/data".into(),
            ..Machine::default()
        };
        let environment = vec![
            ("CASBAH_LISTENER__0__ALLOW".into(), "read,write".into()),
            ("CASBAH_LOG__FORMAT".into(), "json".into()),
        ];
        let sources = Sources { machine, environment, ..Sources::default() };
        let config = translate(&parse("-p 1 r").unwrap(), sources).unwrap();
        assert!(config.listeners.iter().all(|listener| !listener.allow.write));
        assert_eq!(config.log.format, crate::config::LogFormat::Json);
    }
}
