//! The tracing subscriber of the program: standard error only.

use std::io;

use tracing_subscriber::{EnvFilter, fmt};

use super::Failure;
use crate::{config::LogFormat, telemetry::Logging};

/// Installs the subscriber of this process. Called once, by commands that run a node.
///
/// # Errors
/// The filter is malformed (usage), or there is a subscriber already.
pub fn install(logging: &Logging, ansi: bool) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&logging.filter)
        .map_err(|e| Failure::usage(format!("log.filter {:?}: {e}", logging.filter)))?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let installed = match logging.format {
        LogFormat::Pretty => builder.with_ansi(ansi).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    installed.map_err(|e| Failure::new(format!("cannot install the log: {e}")))
}
