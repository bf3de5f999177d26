//! Positions in the replicated log, and where each epoch starts in it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Number of the writer's term of office; strictly increasing, from a committed raft entry.
/// Zero means "none yet".
pub type Epoch = u64;

/// Position of a WAL record: `epoch.seq`. `seq` has no holes and never restarts; the first
/// record has seq 1, and [`Lsn::ZERO`] is the position before it.
///
/// The order is (epoch, seq): it tells which of two *last* records is further on (section 6.4,
/// rule 3). It does not tell whether one log contains the other; [`EpochTable`] does.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn {
    /// The epoch in which the record was written.
    pub epoch: Epoch,
    /// Its number in the log.
    pub seq: u64,
}

impl Lsn {
    /// The position before the first record.
    pub const ZERO: Self = Self { epoch: 0, seq: 0 };

    /// The position `epoch.seq`.
    pub const fn new(epoch: Epoch, seq: u64) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.epoch, self.seq))
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not `epoch.seq`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a position (want EPOCH.SEQ, for example 3.1042): {0:?}")]
pub struct LsnParseError(String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, LsnParseError> {
        let number =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        text.split_once('.')
            .and_then(|(epoch, seq)| Some(Self { epoch: number(epoch)?, seq: number(seq)? }))
            .ok_or_else(|| LsnParseError(text.chars().take(64).collect()))
    }
}

/// Where each epoch starts in one log: (epoch, seq of its first record), both increasing.
///
/// Two logs that agree on the start of an epoch are prefixes of each other within it, because
/// all records of one epoch come from one process. That is all that comparing, cutting and
/// resuming needs; bare sequence numbers are never enough.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTable(Vec<(Epoch, u64)>);

impl EpochTable {
    /// An empty table: a log that holds no record.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A table from its entries, or `None` unless both columns strictly increase from 1.
    pub fn from_entries(entries: Vec<(Epoch, u64)>) -> Option<Self> {
        let mut last = (0, 0);
        for &(epoch, start) in &entries {
            if epoch <= last.0 || start <= last.1 {
                return None;
            }
            last = (epoch, start);
        }
        Some(Self(entries))
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[(Epoch, u64)] {
        &self.0
    }

    /// The epoch of the newest entry, 0 when empty.
    pub fn last_epoch(&self) -> Epoch {
        self.0.last().map_or(0, |e| e.0)
    }

    /// Notes that the record at `seq` is of `epoch`. Records of a known last epoch change nothing.
    /// Returns false, and changes nothing, for an epoch older than the last or a start not behind it.
    pub fn note(&mut self, epoch: Epoch, seq: u64) -> bool {
        match self.0.last() {
            Some(&(last, start)) if epoch == last => seq >= start,
            Some(&(last, start)) if epoch < last || seq <= start => false,
            _ if epoch == 0 || seq == 0 => false,
            _ => {
                self.0.push((epoch, seq));
                true
            }
        }
    }

    /// Forgets every epoch that starts behind `seq`.
    pub fn cut_after(&mut self, seq: u64) {
        self.0.retain(|e| e.1 <= seq);
    }

    /// The epoch of the record at `seq`, `None` before the first entry. The caller knows where
    /// the log ends.
    pub fn epoch_at(&self, seq: u64) -> Option<Epoch> {
        self.0.iter().rev().find(|e| e.1 <= seq).map(|e| e.0)
    }

    /// The seq at which `epoch` starts.
    pub fn start_of(&self, epoch: Epoch) -> Option<u64> {
        self.0.iter().find(|e| e.0 == epoch).map(|e| e.1)
    }

    /// True when the log with this table, ending at `end`, holds the record at `at`.
    /// [`Lsn::ZERO`] is held by every log.
    pub fn holds(&self, at: Lsn, end: u64) -> bool {
        at == Lsn::ZERO || (at.seq <= end && self.epoch_at(at.seq) == Some(at.epoch))
    }

    /// The last seq up to which a follower's log (its table and last seq) is certainly a prefix of
    /// the sender's (`self`, ending at `end`), judged by epoch starts alone.
    ///
    /// Records behind it must be cut **only where the sender's table shows a later epoch start**:
    /// a follower that is merely longer within the sender's newest epoch keeps its tail, and the
    /// answer is then the follower's own end.
    pub fn common_prefix(&self, follower: &Self, follower_end: u64) -> u64 {
        // The newest epoch that starts at the same seq in both: up to its end in the follower or
        // the next epoch start in the sender, whichever is first, both logs are equal.
        // Model: cut_by_epoch_table
        let shared = follower.0.iter().rev().find(|&&(epoch, start)| self.start_of(epoch) == Some(start));
        let Some(&(epoch, _)) = shared else {
            // Nothing shared: equal only before either's first record.
            let first = self.0.first().map_or(u64::MAX, |e| e.1);
            return follower.0.first().map_or(follower_end, |e| e.1 - 1).min(first.saturating_sub(1));
        };
        let next = |table: &Self| table.0.iter().find(|e| e.0 > epoch).map(|e| e.1);
        let follower_part = next(follower).map_or(follower_end, |start| start - 1);
        // Model: cut_only_at_later_epoch
        match next(self) {
            Some(start) => follower_part.min(start - 1),
            None => follower_part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u64, u64)]) -> EpochTable {
        EpochTable::from_entries(entries.to_vec()).unwrap()
    }

    #[test]
    fn lsn_text_form() {
        assert_eq!("3.42".parse(), Ok(Lsn::new(3, 42)));
        assert_eq!(Lsn::new(3, 42).to_string(), "3.42");
        for wrong in ["", "3", "3.", ".3", "+3.1", "3.1.2", "-1.2"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn notes_only_forward() {
        let mut t = EpochTable::new();
        assert!(t.note(1, 1));
        assert!(t.note(1, 2));
        assert!(t.note(3, 5));
        assert!(!t.note(2, 9));
        assert!(!t.note(4, 5));
        assert_eq!(t.entries(), [(1, 1), (3, 5)]);
        assert_eq!((t.epoch_at(4), t.epoch_at(5), t.epoch_at(0)), (Some(1), Some(3), None));
    }

    #[test]
    fn prefix_by_epoch_never_by_length() {
        // Equal logs; a longer follower in the sender's newest epoch keeps its tail.
        assert_eq!(table(&[(1, 1)]).common_prefix(&table(&[(1, 1)]), 9), 9);
        // The sender went on in epoch 2 at seq 5: what the follower holds of epoch 1 behind it goes.
        assert_eq!(table(&[(1, 1), (2, 5)]).common_prefix(&table(&[(1, 1)]), 9), 4);
        assert_eq!(table(&[(1, 1), (2, 5)]).common_prefix(&table(&[(1, 1)]), 3), 3);
        // The follower followed an epoch 2 that lost; the sender has 3 from seq 7.
        assert_eq!(table(&[(1, 1), (3, 7)]).common_prefix(&table(&[(1, 1), (2, 5)]), 9), 4);
        // Same epoch, different start: cannot be, and is never trusted.
        assert_eq!(table(&[(1, 1), (2, 5)]).common_prefix(&table(&[(1, 1), (2, 6)]), 9), 4);
        // Nothing shared, and an empty follower.
        assert_eq!(table(&[(2, 1)]).common_prefix(&table(&[(1, 1)]), 9), 0);
        assert_eq!(table(&[(2, 1)]).common_prefix(&EpochTable::new(), 0), 0);
    }
}
