//! Logs and metrics.

pub mod calls;
pub mod logs;
