//! Data goes to standard output, everything else to standard error.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::error::Failure;

/// Whether words may be coloured. Nothing is told by colour alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colours {
    on: bool,
}

// === impl Colours ===

impl Colours {
    /// Plain text.
    pub const NONE: Colours = Colours { on: false };
    /// Always.
    pub const ALL: Colours = Colours { on: true };

    /// For standard output: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
    #[must_use]
    pub fn of_stdout() -> Colours {
        Colours { on: io::stdout().is_terminal() && wanted() }
    }

    /// The same for standard error.
    #[must_use]
    pub fn of_stderr() -> Colours {
        Colours { on: io::stderr().is_terminal() && wanted() }
    }

    /// What is wrong.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// What to do, and what to copy.
    #[must_use]
    pub fn cyan(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    /// Headings.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What can be skipped.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints text as it is.
///
/// # Errors
/// When standard output cannot be written; not when its reader has had enough, as `head` has.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::caused("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Prints one line of JSON.
///
/// # Errors
/// As [`print()`].
pub fn print_json(data: &impl Serialize) -> Result<(), Failure> {
    let mut line = serde_json::to_string(data).map_err(|error| Failure::from_error(&error))?;
    line.push('\n');
    print(&line)
}
