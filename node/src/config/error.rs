//! What can be wrong with a configuration: which key, where it was set, what is wrong, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::address::AddressError;
use super::keys::KeyPath;
use super::rules::Broken;
use super::units::UnitError;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file, from 1.
    File {
        /// As it was named on the command line.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// An option of the command line.
    Flag {
        /// Its name, with dashes.
        name: &'static str,
    },
}

/// Everything that is wrong with a configuration; never empty.
#[derive(Debug, thiserror::Error)]
#[error("the configuration cannot be used")]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    /// The key; `None` when it is the file or an option as a whole.
    pub key: Option<KeyPath>,
    /// Where it was set.
    pub origin: Origin,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("not TOML: {message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// No such key.
    #[error("no such key")]
    Unknown {
        /// Those that are most like it, as they would be written at this origin.
        nearest: Vec<String>,
    },
    /// An option without `=`.
    #[error("\"{text}\" is not KEY=VALUE")]
    NotAnAssignment {
        /// As it was given.
        text: String,
    },
    /// A variable whose value is not UTF-8.
    #[error("the value is not UTF-8")]
    NotText,
    /// A table of a list that has fewer of them.
    #[error("there is no {list} before this one: they are numbered from 0 without gaps")]
    Gap {
        /// The list.
        list: String,
    },
    /// Not of the form that the key asks for.
    #[error("{found} is not {expected}")]
    Form {
        /// As it was given.
        found: String,
        /// What the key takes.
        expected: String,
    },
    /// None of the values that the key takes.
    #[error("\"{found}\" is not one of {}", choices.join(", "))]
    Choice {
        /// As it was given.
        found: String,
        /// What the key takes.
        choices: Vec<String>,
    },
    /// Not a quantity.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Not an address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A path that is empty.
    #[error("the path is empty")]
    PathEmpty,
    /// A path that a shell would have changed.
    #[error("`~` is not expanded here")]
    PathTilde,
    /// Two ways to say what the listeners are.
    #[error("there are listeners already, at {at}")]
    ListenTwice {
        /// Where.
        at: Origin,
    },
    /// Well-formed, and against a rule.
    #[error(transparent)]
    Rule(#[from] Broken),
}

// === impl ConfigError ===

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match &self.problem {
            Problem::Unknown { nearest } if !nearest.is_empty() => {
                Some(format!("did you mean {}?", nearest.join(" or ")))
            }
            Problem::Unknown { .. } => Some("`casbah config init` prints all keys with what they mean".into()),
            Problem::NotAnAssignment { .. } => Some("such as --set store.capacity=500GiB".into()),
            Problem::Choice { found, choices } => {
                let like = |choice: &&String| strsim::normalized_damerau_levenshtein(found, choice) > 0.5;
                choices.iter().find(like).map(|choice| format!("did you mean {choice}?"))
            }
            Problem::Unit(error) => Some(error.hint().into()),
            Problem::Address(error) => Some(error.hint()),
            Problem::PathTilde => Some("write the whole path".into()),
            Problem::ListenTwice { .. } => {
                Some("change one of them with --set listener.0.address=ADDRESS, or leave --listen out".into())
            }
            Problem::Rule(broken) => match (&self.origin, &self.key) {
                (Origin::Flag { .. }, Some(key)) => {
                    Some(broken.hint().replace("set insecure = true", &format!("add --set {key}.insecure=true")))
                }
                _ => Some(broken.hint()),
            },
            _ => None,
        }
    }
}

impl fmt::Display for ConfigError {
    /// `casbah.toml:4: store.capacity: "50Gob" is not a size`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A variable names its key well enough.
        let key = self.key.as_ref().filter(|_| !matches!(self.origin, Origin::Environment { .. }));
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if let Some(key) = key {
            write!(f, "{key}: ")?;
        }
        self.problem.fmt(f)
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment { name } => f.write_str(name),
            Origin::Flag { name } => f.write_str(name),
        }
    }
}
