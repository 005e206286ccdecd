//! `casbah dev`.
use super::args::DevArguments;
use super::error::Failure;
/// Stub.
pub fn run(_arguments: &DevArguments) -> Result<(), Failure> {
    Err(Failure::new("not yet"))
}
