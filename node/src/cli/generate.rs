//! `casbah completion` and `casbah man`.

use clap::CommandFactory as _;

use super::args::{Arguments, CompletionArguments, ManArguments};
use super::error::Failure;
use super::output;

/// Prints a completion script.
///
/// # Errors
/// When it cannot be written.
pub fn completion(arguments: &CompletionArguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "casbah", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Prints the manual page, or writes one for each command.
///
/// # Errors
/// When they cannot be written.
pub fn man(arguments: &ManArguments) -> Result<(), Failure> {
    let Some(dir) = &arguments.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
        return output::print(&String::from_utf8_lossy(&page));
    };
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Arguments::command(), dir));
    written.map_err(|error| Failure::caused(format!("cannot write the pages into {}", dir.display()), &error))
}
