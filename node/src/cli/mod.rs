//! The face of the program: arguments, output, errors.
//!
//! Each command has a file that turns its arguments into calls of the modules below. Data goes to standard output, the
//! rest to standard error; a failure is told in lines that begin with `error:`, `caused by:` and `hint:`.

pub mod args;
mod ask;
pub mod blob;
pub mod bst;
pub mod cluster;
pub mod config;
pub mod dev;
pub mod error;
pub mod generate;
mod http;
mod life;
pub mod output;
mod plan;
pub mod serve;
pub mod status;
mod table;
pub mod version;

#[cfg(test)]
mod reference;
