//! Which versions of the peer protocol this process speaks.

use std::env::VarError;

use casbah_cluster::membership::{Protocols, ProtocolsError};

/// Has the program pass for an older or a newer one, `1` or `1-2`: for tests of upgrades, and for nothing else. A version that
/// is to come is spoken as the newest one that there is.
const VARIABLE: &str = "CASBAH_TEST_PROTOCOLS";

/// Why it is not known what to speak.
#[derive(Debug, thiserror::Error)]
pub enum SpokenError {
    /// The variable is not text.
    #[error("{VARIABLE} cannot be read")]
    Variable(#[source] VarError),
    /// It says no versions.
    #[error("{VARIABLE} is no range of versions of the peer protocol")]
    Versions(#[source] ProtocolsError),
}

/// What the program speaks, or passes for.
///
/// # Errors
/// [`SpokenError`] when the environment says nonsense.
pub(super) fn spoken() -> Result<Protocols, SpokenError> {
    let text = match std::env::var(VARIABLE) {
        Ok(text) => text,
        Err(VarError::NotPresent) => return Ok(Protocols::SPOKEN),
        Err(error) => return Err(SpokenError::Variable(error)),
    };
    let spoken: Protocols = text.parse().map_err(SpokenError::Versions)?;
    tracing::warn!(%spoken, "{VARIABLE} is set: this node passes for a program of other versions, which is for tests alone");
    Ok(spoken)
}
