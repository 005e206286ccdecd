//! Waiting where there is no event to wait for.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::DEADLINE;

const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until the answer is yes. Only for what the server does not announce.
///
/// # Errors
/// When it is not within [`DEADLINE`], or when asking fails.
pub async fn eventually<F, A>(what: &str, mut ask: F) -> Result<()>
where
    F: FnMut() -> A,
    A: Future<Output = Result<bool>>,
{
    let until = Instant::now() + DEADLINE;
    while !ask().await? {
        if Instant::now() > until {
            bail!("still not after {DEADLINE:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await; // why: the outside world has no event to wait for
    }
    Ok(())
}

/// Waits for a future for [`DEADLINE`] at the most.
///
/// # Errors
/// When it takes longer.
pub async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("took longer than {DEADLINE:?}: {what}"),
    }
}
