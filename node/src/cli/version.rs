//! `casbah version`.

use serde::Serialize;

use super::args::{OutputFormat, VersionArguments};
use super::error::Failure;
use super::output;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from, where that is known.
pub const COMMIT: Option<&str> = option_env!("CASBAH_COMMIT");

/// `0.1.0 (4f2a91c03b7e)`
pub const LINE: &str = env!("CASBAH_VERSION");

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    commit: Option<&'static str>,
}

/// Prints the version.
///
/// # Errors
/// When it cannot be written.
pub fn run(arguments: &VersionArguments) -> Result<(), Failure> {
    match arguments.output {
        OutputFormat::Json => output::print_json(&Version { name: "casbah", version: VERSION, commit: COMMIT }),
        OutputFormat::Text => output::print(&format!("casbah {}\n", LINE)),
    }
}
