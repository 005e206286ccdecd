//! What a person reads when something failed: `error:`, `caused by:` along the chain, `hint:`.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use super::output::Colours;
use crate::config::ConfigErrors;

/// A command that failed, and what is said about it.
#[derive(Debug)]
pub struct Failure {
    reports: Vec<Report>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub message: String,
    /// Why, and why that.
    pub causes: Vec<String>,
    /// What another program said about it, line by line.
    pub quoted: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

// === impl Failure ===

impl Failure {
    /// With this message alone.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { reports: vec![Report::new(message)] }
    }

    /// With an error and what caused it, along its chain.
    pub fn from_error(error: &(dyn Error + 'static)) -> Failure {
        Failure { reports: vec![Report::from_error(error)] }
    }

    /// With a message, and an error that caused it.
    pub fn caused(message: impl Into<String>, cause: &(dyn Error + 'static)) -> Failure {
        let inner = Report::from_error(cause);
        let mut causes = vec![inner.message];
        causes.extend(inner.causes);
        Failure { reports: vec![Report { causes, hint: inner.hint, ..Report::new(message) }] }
    }

    /// Several at once.
    pub fn all(failures: Vec<Failure>) -> Failure {
        Failure { reports: failures.into_iter().flat_map(|failure| failure.reports).collect() }
    }

    /// With advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        if let Some(report) = self.reports.last_mut() {
            report.hint = Some(hint.into());
        }
        self
    }

    /// With what another program said.
    #[must_use]
    pub fn quoting(mut self, lines: Vec<String>) -> Failure {
        if let Some(report) = self.reports.last_mut() {
            report.quoted = lines;
        }
        self
    }

    /// As it is printed.
    #[must_use]
    pub fn render(&self, colours: Colours) -> String {
        let reports: Vec<String> = self.reports.iter().map(|report| report.render("error:", colours)).collect();
        reports.join("\n")
    }

    /// Prints it to standard error as something that may be meant so.
    pub fn warn(&self) {
        for report in &self.reports {
            eprint!("{}", report.render("warning:", Colours::of_stderr()));
        }
    }

    /// Prints it to standard error.
    pub fn print(&self) -> ExitCode {
        eprint!("{}", self.render(Colours::of_stderr()));
        ExitCode::FAILURE
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        let report = |error: &crate::config::ConfigError| Report { hint: error.hint(), ..Report::from_error(error) };
        Failure { reports: errors.0.iter().map(report).collect() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::from_error(&error)
    }
}

// === impl Report ===

impl Report {
    fn new(message: impl Into<String>) -> Report {
        Report { message: message.into(), causes: Vec::new(), quoted: Vec::new(), hint: None }
    }

    fn from_error(error: &(dyn Error + 'static)) -> Report {
        let mut report = Report::new(error.to_string());
        let mut last = report.message.clone();
        let mut next = error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Some errors repeat their cause in their own text.
            if !last.ends_with(&text) {
                report.causes.push(text.clone());
                last = text;
            }
            next = cause.source();
        }
        report.hint = hint(error);
        report
    }

    fn render(&self, beginning: &str, colours: Colours) -> String {
        let mut text = String::new();
        let _infallible = writeln!(text, "{} {}", colours.red(beginning), self.message);
        for cause in &self.causes {
            let _infallible = writeln!(text, "{} {cause}", colours.red("caused by:"));
        }
        for line in &self.quoted {
            let _infallible = writeln!(text, "  | {line}");
        }
        if let Some(hint) = &self.hint {
            let _infallible = writeln!(text, "{} {hint}", colours.cyan("hint:"));
        }
        text
    }
}

/// What can be said without knowing more than what the system says.
fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "another program listens there; stop it, or choose another port",
                io::ErrorKind::AddrNotAvailable => {
                    "this machine does not have that address; [::] stands for all it has"
                }
                io::ErrorKind::PermissionDenied => {
                    "this user may not do that; look at who owns it and what its mode is"
                }
                io::ErrorKind::StorageFull => "the disk is full",
                _ => return None,
            };
            return Some(hint.to_owned());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen on {address}")]
    struct Bind {
        address: &'static str,
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start: {0}")]
    struct Repeating(#[source] Bind);

    fn bind() -> Bind {
        Bind { address: "localhost:80", source: io::Error::new(io::ErrorKind::AddrInUse, "the address is in use") }
    }

    #[test]
    fn an_error_is_told_along_its_chain_with_a_hint() {
        assert_eq!(
            Failure::from_error(&bind()).render(Colours::NONE),
            "error: cannot listen on localhost:80\n\
             caused by: the address is in use\n\
             hint: another program listens there; stop it, or choose another port\n"
        );
    }

    #[test]
    fn what_an_error_repeats_is_told_once() {
        let text = Failure::from_error(&Repeating(bind())).render(Colours::NONE);
        assert_eq!(text.matches("cannot listen").count(), 1, "{text}");
        assert_eq!(text.matches("the address is in use").count(), 1, "{text}");
    }

    #[test]
    fn another_programs_words_are_set_apart() {
        let failure = Failure::new("node-1 ended").quoting(vec!["error: no".into()]).hint("look there");
        assert_eq!(failure.render(Colours::NONE), "error: node-1 ended\n  | error: no\nhint: look there\n");
    }

    #[test]
    fn colours_are_only_around_the_words_that_begin_lines() {
        let text = Failure::new("no").hint("yes").render(Colours::ALL);
        assert_eq!(text, "\u{1b}[1;31merror:\u{1b}[0m no\n\u{1b}[1;36mhint:\u{1b}[0m yes\n");
    }
}
