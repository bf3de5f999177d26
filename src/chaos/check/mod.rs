//! The checker: from a history to what is wrong with it. Pure; each rule has a test that it sees a
//! planted violation.

mod registers;
mod rows;

use std::fmt;

use serde::Serialize;

use crate::history::History;

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The number of the invariant in docs/testing.md.
    pub check: &'static str,
    pub says: String,
}

impl Violation {
    pub fn new(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, says: says.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.says)
    }
}

/// Everything that is wrong.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found: Vec<Violation> =
        history.oddities.iter().map(|says| Violation::new("answer", says)).collect();
    found.extend(rows::check(history));
    found.extend(registers::check(&history.sets, &history.gets));
    found
}
