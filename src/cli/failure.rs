//! How a command fails: with a message that says what to do, and an exit code.

use std::{fmt, io, process::ExitCode};

use super::client::ClientError;
use crate::config::ConfigError;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed: exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// It was asked wrongly: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// The disk failed: exit code 74.
    pub fn disk(message: impl Into<String>) -> Self {
        Self { code: 74, message: message.into() }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Writes the message to standard error and gives the exit code to the shell.
    pub fn report(&self) -> ExitCode {
        use io::Write;
        if !self.message.is_empty() {
            // Nobody can be told that standard error is gone.
            let _ = writeln!(io::stderr(), "skein: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Target(_) => Self::usage(error.to_string()),
            _ => Self::new(error.to_string()),
        }
    }
}

/// Standard output or input failed. Whoever closed the pipe has seen enough: no message then.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(String::new()),
            _ => Self::new(error.to_string()),
        }
    }
}
