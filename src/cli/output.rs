//! Standard output of the commands.

use std::io::{self, IsTerminal, Write};

use super::Failure;

/// Writes text and flushes.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes a value as one line of JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string(value).map_err(|e| Failure::new(format!("cannot show the answer: {e}")))?;
    print(&format!("{text}\n"))
}

/// Writes what was done: as JSON if that is wanted, else as the text for people.
pub(super) fn done(as_json: bool, value: &impl serde::Serialize, text: &str) -> Result<(), Failure> {
    if as_json { json(value) } else { print(text) }
}

/// Writes bytes and flushes.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// So many of something, as people say it.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// True when a person looks at standard output.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}
