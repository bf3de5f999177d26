//! The checker: from a history to what is wrong with it. Pure; each rule has a test that it sees a
//! planted violation.

mod claims;
mod losses;
mod positions;
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
    found.extend(history.alarms.iter().map(|says| Violation::new("alarm", says)));
    found.extend(rows::check(history));
    found.extend(positions::check(history));
    found.extend(losses::believed_lost(history));
    found.extend(registers::check(&history.sets, &history.gets));
    found.extend(claims::check(&history.claims, &history.held));
    found
}

#[cfg(test)]
mod sample {
    //! Short forms for the tests of the checks.

    use skeinmesh::types::Lsn;

    use crate::history::{Ack, Final, Level, Mode, Nanos, Read, Write};

    pub(super) fn write(n: u64, invoked: Nanos, at: Option<(u64, u64, Nanos)>, level: Level) -> Write {
        let acks = at.map(|(epoch, seq, when)| Ack { at: Lsn::new(epoch, seq), level, when });
        Write {
            n,
            keyed: true,
            asked: Some(level),
            invoked,
            taken: 1,
            acks: acks.into_iter().collect(),
            refused: false,
        }
    }

    pub(super) fn read(mode: Mode, invoked: Nanos, applied: u64, rows: &[u64]) -> Read {
        let rows = rows.to_vec();
        Read {
            client: 0,
            node: 0,
            bucket: 0,
            mode,
            invoked,
            returned: invoked + 5,
            applied: Lsn::new(1, applied),
            rows,
        }
    }

    pub(super) fn last(node: usize, rows: &[u64]) -> Final {
        Final { node, applied: Lsn::ZERO, rows: rows.to_vec() }
    }
}
