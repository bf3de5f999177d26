//! Section `log`: how the node tells what it does.

use serde::{Deserialize, Serialize};

use super::{FromText, section::section};

section! {
    /// Logging.
    Log in "log" {
        /// `pretty` or `json`. Default: pretty on a terminal, JSON otherwise.
        format: Option<LogFormat> = None,
        /// What is logged: a level, or directives such as `info,skeinmesh::raft=debug`. Raft's library
        /// tells each heartbeat that fails, and more: what matters of it is told by this crate.
        filter: String = "info,openraft=error".to_owned(),
    }
}

impl Log {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.filter.is_empty() {
            Err("log.filter is empty: say for example info,openraft=error".to_owned())
        } else {
            Ok(())
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

impl FromText for LogFormat {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a log format (pretty, json)")),
        }
    }
}
