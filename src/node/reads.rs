//! From which moment on a query on this node may be answered.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    replication::{
        Replica,
        read_index::{ReadIndex, ReadIndexError},
    },
    types::Lsn,
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
        Ok(ReadPoint { applied: self.applied(), staleness: self.staleness() })
    }

    fn applied(&self) -> Lsn {
        *self.apply.watch().borrow()
    }

    /// How old what is applied here may be: monotonic clocks and the age that comes with the
    /// writer's heartbeats, never a wall clock.
    pub(super) fn staleness(&self) -> Option<Duration> {
        let now = Instant::now();
        // First how fresh, then how far: what comes in between makes data look older, never younger.
        let confirmed = match self.replica.tenure() {
            // Model: read_after_epoch_start_commits
            Some(tenure) => self.replica.confirmed(&tenure, now),
            None => self.replica.watch_contact().borrow().and_then(|contact| contact.confirmed),
        };
        if self.applied().seq < self.replica.commit().seq {
            return None;
        }
        confirmed.map(|at| now.saturating_duration_since(at))
    }

    async fn reach(&self, wanted: Lsn, deadline: Instant) -> Result<(), ReadError> {
        // An epoch that starts at or below the position and is later than its own: lost.
        let lost = |epochs: &crate::types::EpochTable| {
            epochs.entries().iter().any(|&(epoch, start)| epoch > wanted.epoch && start <= wanted.seq)
        };
        if lost(&self.replica.wal.epochs()) {
            return Err(ReadError::LostPosition { wanted });
        }
        self.reach_seq(wanted.seq, deadline).await?;
        // While a snapshot is installed, or a damaged log is being repaired, the log ends below what is
        // applied, and tells nothing about it.
        let mut end = self.replica.wal.watch_end();
        match timeout_at(deadline, end.wait_for(|end| end.seq >= wanted.seq)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(ReadError::Stopping),
            Err(_) => return Err(ReadError::NotReached { applied: self.applied() }),
        }
        let epochs = self.replica.wal.epochs();
        if epochs.holds(wanted, self.replica.wal.end().seq) {
            Ok(())
        } else {
            Err(ReadError::LostPosition { wanted })
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
