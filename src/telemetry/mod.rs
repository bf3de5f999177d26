//! Logging and metrics.

#[cfg(feature = "server")]
mod logging;
mod metrics;

#[cfg(feature = "server")]
pub use logging::Logging;
pub use metrics::{Counter, Gauge, Histogram, Registry};
