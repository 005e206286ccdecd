//! casbah: a build cache that does not go down.

use std::process::ExitCode;

use casbah::cli::args::{Arguments, Command};
use casbah::cli::{blob, bst, cluster, config, dev, generate, serve, status, version};
use clap::Parser as _;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Dev(arguments) => dev::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::BstArtifactServer(arguments) => bst::run(&arguments),
        Command::Status(arguments) => match status::run(&arguments) {
            Ok(code) => return code,
            Err(failure) => Err(failure),
        },
        Command::Node(command) => cluster::node(&command),
        Command::Ring(command) => cluster::ring(&command),
        Command::Raft(command) => cluster::raft(&command),
        Command::Config(command) => config::run(&command),
        Command::Blob(command) => blob::run(&command),
        Command::Version(arguments) => version::run(&arguments),
        Command::Completion(arguments) => generate::completion(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.print(),
    }
}
