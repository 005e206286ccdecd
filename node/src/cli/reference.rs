//! The generated pages of `docs/reference` are what the program says. `CASBAH_BLESS=1` writes them anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;

use super::args::Arguments;
use crate::config::reference;
use crate::observe::metrics;

/// Compares with a file of the repository, or writes it when asked to.
pub(super) fn assert_same(path: &str, actual: &str) {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("CASBAH_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        return std::fs::write(&file, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let first = expected.lines().zip(actual.lines()).position(|(old, new)| old != new);
    let first = first.unwrap_or(expected.lines().count().min(actual.lines().count()));
    let line = |text: &str| text.lines().nth(first).unwrap_or("(the end)").to_owned();
    assert!(
        expected == actual,
        "{path} is out of date from line {} on:\n- {}\n+ {}\nCASBAH_BLESS=1 cargo test -p casbah --lib cli:: writes it anew",
        first + 1,
        line(&expected),
        line(actual)
    );
}

/// All commands and their help, as they are printed.
fn help_of_all_commands() -> String {
    let mut page = String::from(
        "# Commands\n\n\
         <!-- Generated from node/src/cli/args.rs; CASBAH_BLESS=1 cargo test -p casbah --lib reference writes it anew. -->\n\n\
         Data is printed on standard output, the rest on standard error. The exit code is 0, 1 when something failed, or 2\n\
         when the command line was not understood. Colours are left out when standard output is no terminal or `NO_COLOR`\n\
         is set.\n",
    );
    let mut root = Arguments::command().term_width(100);
    root.build();
    describe(&mut page, &mut root, "");
    page
}

fn describe(page: &mut String, command: &mut clap::Command, above: &str) {
    let name = format!("{above}{}", command.get_name());
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(page, "\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
    for below in command.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
        describe(page, below, &format!("{name} "));
    }
}

#[test]
fn the_reference_of_commands_is_what_help_prints() {
    assert_same("docs/reference/cli.md", &help_of_all_commands());
}

#[test]
fn the_reference_of_settings_is_what_the_structs_say() {
    assert_same("docs/reference/config.md", &reference::markdown());
}

#[test]
fn the_reference_of_metrics_is_what_the_catalogue_has() {
    assert_same("docs/reference/metrics.md", &metrics::markdown());
}

#[test]
fn the_file_to_start_from_is_what_the_structs_say() {
    assert_same("node/src/cli/snapshots/config_init.toml", &reference::init_file());
}

#[test]
fn the_commands_are_well_formed() {
    Arguments::command().debug_assert();
}
