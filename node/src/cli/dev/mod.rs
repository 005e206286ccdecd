//! `casbah dev`: nodes on this machine as processes of their own, with throw-away certificates.
//!
//! Everything is in one directory: `tls/`, `peers/`, a folder for each node with its configuration, log and data, and the lines for
//! clients as files. A node that goes down stays down until somebody starts it by the command line that was printed;
//! the other way round, no node outlives this program, since each watches a pipe that it holds.

mod command;
mod formation;
mod layout;
mod ports;
mod printout;
mod process;

pub use command::run;
