//! `casbah config check`, `show` and `init`.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use super::args::ConfigCommand;
use super::error::Failure;
use super::{output, serve};
use crate::accept::ListenerTls;
use crate::config::{Config, reference};

/// Does what the command says.
///
/// # Errors
/// When the configuration cannot be used, or nothing can be written.
pub fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(arguments) => {
            let config = serve::load(arguments)?.config;
            check_certificates(&config)?;
            output::print("ok\n")
        }
        ConfigCommand::Show(arguments) => {
            let loaded = serve::load(&arguments.configuration)?;
            output::print(&reference::show(&loaded, arguments.origin))
        }
        ConfigCommand::Init(arguments) => match &arguments.path {
            Some(path) => write_new(path, &reference::init_file()),
            None => output::print(&reference::init_file()),
        },
    }
}

/// What a node would read when it starts; all that is wrong is told at once. Files that cannot be read are no error: some
/// are there only while the service runs, or only for its user.
fn check_certificates(config: &Config) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for listener in &config.listeners {
        let Some(tls) = &listener.tls else { continue };
        let Err(error) = ListenerTls::load(tls, &listener.clients) else { continue };
        let failure = Failure::caused(format!("the listener on {} cannot offer TLS", listener.address), &error);
        match is_unreadable(&error) {
            true => failure.warn(),
            false => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::all(failures)) }
}

fn is_unreadable(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let unreadable = matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied));
    unreadable || error.source().is_some_and(is_unreadable)
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    match file.and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => {
            eprintln!("wrote {}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Failure::new(format!("{} exists, and is not overwritten", path.display()))
                .hint("name another path, or none to print it"))
        }
        Err(error) => Err(Failure::caused(format!("cannot write {}", path.display()), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Colours;
    use crate::config::{Machine, Sources};

    #[test]
    fn a_file_is_written_once_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casbah.toml");
        write_new(&path, "first").unwrap();
        let error = write_new(&path, "second").unwrap_err().render(Colours::NONE);
        assert!(error.contains("casbah.toml exists, and is not overwritten\nhint: name another path"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
    }

    /// Two listeners with the same certificate and key.
    fn two_listeners(certificate: &Path, key: &Path) -> Config {
        let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
        let set = format!("listener=[{{ address=\"localhost:1\", {tls} }}, {{ address=\"localhost:2\", {tls} }}]");
        Sources { set: vec![set], machine: Machine::this(), ..Sources::default() }.load().unwrap().config
    }

    #[test]
    fn certificates_that_cannot_be_used_are_told_for_each_listener() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.crt");
        std::fs::write(&file, "no certificate\n").unwrap();
        let told = check_certificates(&two_listeners(&file, &file)).unwrap_err().render(Colours::NONE);
        assert!(told.starts_with("error: the listener on localhost:1 cannot offer TLS\ncaused by: "), "{told}");
        assert!(told.contains("\n\nerror: the listener on localhost:2 cannot offer TLS\n"), "{told}");
    }

    #[test]
    fn certificates_that_may_be_there_later_are_no_error() {
        assert!(check_certificates(&two_listeners(Path::new("/nowhere/c"), Path::new("/nowhere/k"))).is_ok());
    }

    #[test]
    fn a_place_that_is_not_there_is_told() {
        let error = write_new(Path::new("/nowhere/casbah.toml"), "").unwrap_err().render(Colours::NONE);
        assert!(error.starts_with("error: cannot write /nowhere/casbah.toml\ncaused by: No such file"), "{error}");
    }
}
