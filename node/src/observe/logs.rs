//! The log: lines on standard error, for eyes or for machines.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// The variable whose filters replace the configured level.
pub const FILTER_VARIABLE: &str = "CASBAH_LOG";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The variable holds no filters.
    #[error("{FILTER_VARIABLE} holds \"{text}\", which is no filter")]
    Filter {
        /// As it was given.
        text: String,
        /// What the parser says.
        #[source]
        source: ParseError,
    },
    /// The process has a log already.
    #[error("the log was started twice")]
    Twice,
}

/// From now on, what happens is written to standard error.
///
/// # Errors
/// [`LogError`] when the filters of the variable cannot be read.
pub fn start(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(config.level, std::env::var(FILTER_VARIABLE).ok().as_deref())?;
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(colour).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_twice| LogError::Twice)
}

/// Our own modules at the configured level, libraries from warnings on: at `debug` they would drown us.
fn filter(level: LogLevel, variable: Option<&str>) -> Result<EnvFilter, LogError> {
    if let Some(text) = variable.filter(|text| !text.trim().is_empty()) {
        return EnvFilter::builder().parse(text).map_err(|source| LogError::Filter { text: text.to_owned(), source });
    }
    Ok(EnvFilter::new(match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "warn,casbah=info,casbah_cluster=info",
        LogLevel::Debug => "warn,casbah=debug,casbah_cluster=debug",
        LogLevel::Trace => "trace",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_for_our_own_modules() {
        assert_eq!(filter(LogLevel::Debug, None).unwrap().to_string(), "casbah_cluster=debug,casbah=debug,warn");
        assert_eq!(filter(LogLevel::Error, Some(" ")).unwrap().to_string(), "error");
    }

    #[test]
    fn the_variable_replaces_the_level() {
        assert_eq!(
            filter(LogLevel::Error, Some("info,casbah::store=trace")).unwrap().to_string(),
            "casbah::store=trace,info"
        );
    }

    #[test]
    fn a_variable_that_is_no_filter_is_refused() {
        let error = filter(LogLevel::Info, Some("casbah=loud")).unwrap_err();
        assert_eq!(error.to_string(), "CASBAH_LOG holds \"casbah=loud\", which is no filter");
    }
}
