//! From which moment on a query on this node may be answered.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    replication::{
        Replica,
        read_index::{ReadIndex, ReadIndexError},
    },
    types::{Epoch, EpochTable, Lsn},
    write_path::apply::Apply,
};

/// What a read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever this node has applied.
    Local,
    /// Everything acknowledged at `quorum` until so long ago.
    MaxStaleness(Duration),
    /// At least this position (read your own writes on any node).
    MinLsn(Lsn),
    /// Everything acknowledged at `quorum` before the read began.
    Linearizable,
}

/// Where a read stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPoint {
    /// Applied here.
    pub applied: Lsn,
    /// How old that may be; unknown while no majority has confirmed a writer.
    pub staleness: Option<Duration>,
}

/// A read that cannot be served as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The position is not in this history: its write was cut off in a failover.
    #[error("lost position: {wanted} is not in this cluster's history (its write was never committed)")]
    LostPosition {
        /// As asked.
        wanted: Lsn,
    },
    /// Not reached in time.
    #[error("not there yet: this node has applied {applied}")]
    NotReached {
        /// What it has.
        applied: Lsn,
    },
    /// Nobody could say how far to read.
    #[error("no writer with a majority answered in time; see `skein status`")]
    NoWriter,
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// Between two attempts to get a read index.
const RETRY: Duration = Duration::from_millis(20);

/// Answers for one node.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) replica: Arc<Replica>,
    pub(super) apply: Arc<Apply>,
    pub(super) index: Arc<ReadIndex>,
}

impl Reads {
    /// Waits until this node may answer.
    pub(super) async fn point(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<ReadPoint, ReadError> {
        let deadline = Instant::now() + timeout;
        match consistency {
            Consistency::Local => {}
            Consistency::MinLsn(wanted) => self.reach(wanted, deadline).await?,
            Consistency::Linearizable => {
                let index = self.read_index(deadline).await?;
                self.reach_seq(index.seq, deadline).await?;
            }
            Consistency::MaxStaleness(bound) => {
                if self.staleness().is_none_or(|age| age > bound) {
                    // Not fresh enough by what this node hears: the index is as fresh as the question.
                    let asked = Instant::now();
                    let index = self.read_index(deadline).await?;
                    self.reach_seq(index.seq, deadline).await?;
                    return Ok(ReadPoint { applied: self.applied(), staleness: Some(asked.elapsed()) });
                }
            }
        }
        // The age is that of what is applied by then, so it is asked first.
        let staleness = self.staleness();
        Ok(ReadPoint { applied: self.applied(), staleness })
    }

    fn applied(&self) -> Lsn {
        *self.apply.watch().borrow()
    }

    fn staleness(&self) -> Option<Duration> {
        staleness(&self.replica, &self.apply)
    }

    /// Waits until everything up to `wanted` is applied here, if that position is part of history.
    async fn reach(&self, wanted: Lsn, deadline: Instant) -> Result<(), ReadError> {
        let (mut applied, mut end) = (self.apply.watch(), self.replica.wal.watch_end());
        loop {
            let at = *applied.borrow_and_update();
            let last = *end.borrow_and_update();
            match judge(wanted, at, last, &self.replica.wal.epochs()) {
                Some(true) => return Ok(()),
                Some(false) => return Err(ReadError::LostPosition { wanted }),
                None => {}
            }
            let changed = async {
                tokio::select! {
                    changed = applied.changed() => changed,
                    changed = end.changed() => changed,
                }
            };
            match timeout_at(deadline, changed).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ReadError::Stopping),
                Err(_) => return Err(ReadError::NotReached { applied: self.applied() }),
            }
        }
    }

    async fn reach_seq(&self, seq: u64, deadline: Instant) -> Result<(), ReadError> {
        let mut applied = self.apply.watch();
        match timeout_at(deadline, applied.wait_for(|at| at.seq >= seq)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopping),
            Err(_) => Err(ReadError::NotReached { applied: self.applied() }),
        }
    }

    async fn read_index(&self, deadline: Instant) -> Result<Lsn, ReadError> {
        loop {
            match self.index.current().await {
                Ok(at) => return Ok(at),
                Err(
                    ReadIndexError::NotWriter | ReadIndexError::NoQuorum | ReadIndexError::Unreachable(_),
                ) => {
                    if Instant::now() + RETRY >= deadline {
                        return Err(ReadError::NoWriter);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// How old what is applied here may be: monotonic clocks and the age that comes with the
/// writer's heartbeats, never a wall clock.
pub(super) fn staleness(replica: &Replica, apply: &Apply) -> Option<Duration> {
    let now = Instant::now();
    // First how fresh, then how far: what comes in between makes data look older, never younger.
    let confirmed = match replica.tenure() {
        // Model: read_after_epoch_start_commits
        Some(tenure) => replica.confirmed(&tenure, now),
        None => replica.watch_contact().borrow().and_then(|contact| contact.confirmed),
    };
    if apply.watch().borrow().seq < replica.commit().seq {
        return None;
    }
    confirmed.map(|at| now.saturating_duration_since(at))
}

/// Whether the record at `wanted` is applied (`Some(true)`) or not part of history (`Some(false)`), as
/// far as the log of this node can tell: its last record and the epoch starts of it.
///
/// What is applied is committed, so the log is history up to there, and only up to there: behind it may
/// be a tail that no majority ever had. While a snapshot is installed or a damaged log is repaired the
/// log does not hold what is applied, and tells nothing.
fn judge(wanted: Lsn, applied: Lsn, last: Lsn, epochs: &EpochTable) -> Option<bool> {
    if wanted == Lsn::ZERO {
        return Some(true);
    }
    #[cfg(feature = "testing")]
    if crate::types::planted::is("position_by_seq") {
        return (wanted.seq <= applied.seq).then_some(true);
    }
    if !epochs.holds(applied, last.seq) {
        return None;
    }
    let later =
        |&(epoch, start): &(Epoch, u64)| epoch > wanted.epoch && start <= wanted.seq && start <= applied.seq;
    if epochs.entries().iter().any(later) {
        return Some(false);
    }
    (wanted.seq <= applied.seq).then(|| epochs.epoch_at(wanted.seq) == Some(wanted.epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_only_as_far_as_it_holds_what_is_applied() {
        let table = |entries: &[(Epoch, u64)]| EpochTable::from_entries(entries.to_vec()).unwrap();
        let lsn = Lsn::new;
        let plain = table(&[(1, 1), (3, 89)]);
        for (wanted, said) in [
            (Lsn::ZERO, Some(true)),
            (lsn(1, 88), Some(true)),
            (lsn(3, 99), Some(true)),
            (lsn(1, 89), Some(false)),
            (lsn(2, 89), Some(false)),
            (lsn(4, 99), Some(false)),
            (lsn(3, 121), None),
            (lsn(1, 121), Some(false)),
            (lsn(4, 121), None),
        ] {
            assert_eq!(judge(wanted, lsn(3, 120), lsn(3, 125), &plain), said, "{wanted}");
        }
        // A snapshot at 3.120 is in the engine, and the log still ends with a tail nobody committed.
        let tail = table(&[(1, 1), (2, 69)]);
        assert_eq!(judge(lsn(3, 99), lsn(3, 120), lsn(2, 110), &tail), None);
        // A damaged log ends below what is applied.
        assert_eq!(judge(lsn(1, 99), lsn(1, 120), lsn(1, 25), &table(&[(1, 1)])), None);
        // The start of an office that may never be committed takes no position away.
        let started = table(&[(1, 1), (2, 90)]);
        assert_eq!(judge(lsn(1, 95), lsn(1, 89), lsn(2, 90), &started), None);
    }
}
