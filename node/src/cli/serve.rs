//! `casbah serve`: settings, log, runtime, and then the node.

use std::io::Read as _;
use std::path::Path;
use std::process;
use std::thread;

use super::args::{ConfigurationArguments, ServeArguments};
use super::error::Failure;
use crate::config::{Config, Loaded, Sources};
use crate::observe::logs;
use crate::run::{self, RunError};

/// Runs a node until it is told to stop.
///
/// # Errors
/// When its configuration cannot be used, or it cannot start.
pub fn run(arguments: &ServeArguments) -> Result<(), Failure> {
    let config = load(&arguments.configuration)?.config;
    logs::start(&config.log).map_err(|error| Failure::from_error(&error))?;
    if arguments.exit_with_stdin {
        stop_with_stdin()?;
    }
    serve(config)
}

/// The configuration that these arguments, the environment and the machine make.
///
/// # Errors
/// With everything that is wrong with it.
pub fn load(arguments: &ConfigurationArguments) -> Result<Loaded, Failure> {
    let sources = Sources {
        file: arguments.config.clone(),
        dir: arguments.dir.clone(),
        listen: arguments.listen.clone(),
        set: arguments.set.clone(),
        ..Sources::of_this_process()
    };
    Ok(sources.load()?)
}

/// Runs a node with this configuration; the log is on already.
///
/// # Errors
/// When it cannot start.
pub fn serve(config: Config) -> Result<(), Failure> {
    end_with_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::caused("cannot start the threads of the node", &error))?;
    let dir = config.node.dir.clone();
    runtime.block_on(run::serve(config)).map_err(|error| explain(&error, &dir))
}

fn explain(error: &RunError, dir: &Path) -> Failure {
    let failure = Failure::from_error(error);
    match error {
        RunError::Directory { .. } => {
            failure.hint(format!("name another directory than {} with --dir or node.dir", dir.display()))
        }
        error if error.is_of_version() => failure.hint(
            "start the version of casbah that it ran last, or one that speaks both; `casbah node show` on another node says what each speaks",
        ),
        RunError::ClosedLog => failure.hint("start it again, unless a supervisor does: nothing that was acknowledged is lost"),
        _ => failure,
    }
}

/// A panic is a bug that may have left anything half-done: the process ends, and a supervisor starts it again from what is
/// on the disk, which is the tested path.
fn end_with_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        process::abort();
    }));
}

/// Whoever started this process holds the other end of its standard input: when that ends, however it ends, so does the
/// node, in the same way as for a signal.
fn stop_with_stdin() -> Result<(), Failure> {
    let wait = || {
        let mut buffer = [0; 64];
        while std::io::stdin().read(&mut buffer).is_ok_and(|length| length > 0) {}
        if rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).is_err() {
            process::abort();
        }
    };
    let started = thread::Builder::new().name("stdin".into()).spawn(wait);
    started.map(drop).map_err(|error| Failure::caused("cannot watch standard input", &error))
}
