//! Logs, metrics, and what the admin port says of a node.
//!
//! `counters` is what the node counts as it runs, `snapshot` what it is at one moment, with `cluster` for those around it, to whom `orders` has things done; `metrics` is the catalogue of both,
//! `summary` and `page` show them to people.

pub mod calls;
mod causes;
pub mod cluster;
pub mod counters;
pub mod exposition;
pub mod labels;
pub mod logs;
pub mod metrics;
pub mod orders;
pub mod page;
pub mod snapshot;
pub mod summary;
pub mod throttle;

pub use causes::with_causes;
