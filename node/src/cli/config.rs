//! `casbah config check`, `show` and `init`.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use super::args::ConfigCommand;
use super::error::Failure;
use super::{output, serve};
use crate::config::reference;

/// Does what the command says.
///
/// # Errors
/// When the configuration cannot be used, or nothing can be written.
pub fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(arguments) => {
            serve::load(arguments)?;
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

    #[test]
    fn a_file_is_written_once_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("casbah.toml");
        write_new(&path, "first").unwrap();
        let error = write_new(&path, "second").unwrap_err().render(Colours::NONE);
        assert!(error.contains("casbah.toml exists, and is not overwritten\nhint: name another path"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
    }

    #[test]
    fn a_place_that_is_not_there_is_told() {
        let error = write_new(Path::new("/nowhere/casbah.toml"), "").unwrap_err().render(Colours::NONE);
        assert!(error.starts_with("error: cannot write /nowhere/casbah.toml\ncaused by: No such file"), "{error}");
    }
}
