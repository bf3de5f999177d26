//! How log lines look. The subscriber itself is installed by the program (`cli/`), never here.

use crate::config::{Log, LogFormat};

/// What a program installs as its subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// The form of lines.
    pub format: LogFormat,
    /// What is logged, as `tracing` filter directives.
    pub filter: String,
}

impl Logging {
    /// From the configuration; without a word in it, people get lines for people.
    pub fn of(config: &Log, on_a_terminal: bool) -> Self {
        let fitting = if on_a_terminal { LogFormat::Pretty } else { LogFormat::Json };
        Self { format: config.format.unwrap_or(fitting), filter: config.filter.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_decides_unless_told() {
        let log = Log::default();
        assert_eq!(Logging::of(&log, true).format, LogFormat::Pretty);
        assert_eq!(Logging::of(&log, false).format, LogFormat::Json);
        let told = Log { format: Some(LogFormat::Json), ..log };
        assert_eq!(Logging::of(&told, true).format, LogFormat::Json);
    }
}
