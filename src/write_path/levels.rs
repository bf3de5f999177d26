//! Waiting for a level: each function returns once a record has reached it, or says how far it got.
//! None of them ever answers with a level that was not seen to be reached.

use tokio::{
    sync::oneshot,
    time::{Duration, Instant, timeout_at},
};

use crate::{
    protocol::forward::{AckLevel, Progress},
    replication::Tenure,
    types::Lsn,
};

use super::commit::{CommitError, Writer};

/// Between two looks at a lease that was not live.
const LOOK: Duration = Duration::from_millis(5);

/// What is waited for, for which record, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) at: Lsn,
    pub(super) asked: AckLevel,
    pub(super) deadline: Instant,
}

impl Wait {
    fn in_vain(self, reached: AckLevel) -> CommitError {
        CommitError::Unknown(Some(Progress { at: self.at, asked: self.asked, reached }))
    }
}

impl Writer {
    /// `local`: on this disk, and the lease live **after** the fdatasync. Whatever comes first of
    /// that and a commit is acknowledged.
    pub(super) async fn until_local(
        &self,
        tenure: &Tenure,
        wait: Wait,
        mut told: oneshot::Receiver<Lsn>,
    ) -> Result<(), CommitError> {
        let mut durable = self.replica.wal.watch_durable();
        let mut look = tokio::time::interval(LOOK);
        loop {
            let on_disk = self.is_on_disk(tenure, wait.at);
            if on_disk && self.is_leased(tenure) {
                return Ok(());
            }
            tokio::select! {
                applied = &mut told => return is_this(applied.ok(), wait.at),
                _ = durable.changed(), if !on_disk => {}
                _ = look.tick() => {}
                () = tokio::time::sleep_until(wait.deadline) => return Err(wait.in_vain(AckLevel::Memory)),
            }
        }
    }

    /// `quorum`: applied, and so committed and on this disk as well.
    pub(super) async fn until_applied(
        &self,
        tenure: &Tenure,
        wait: Wait,
        told: oneshot::Receiver<Lsn>,
    ) -> Result<(), CommitError> {
        match timeout_at(wait.deadline, told).await {
            Ok(applied) => is_this(applied.ok(), wait.at),
            Err(_) if self.is_on_disk(tenure, wait.at) && self.is_leased(tenure) => {
                Err(wait.in_vain(AckLevel::Local))
            }
            Err(_) => Err(wait.in_vain(AckLevel::Memory)),
        }
    }

    /// `all`, for a record that has been applied: also one of an earlier office, or one that was
    /// answered at a lower level before. Every voter that is one *now* must have acknowledged it in
    /// this office.
    pub(super) async fn until_everywhere(&self, tenure: &Tenure, wait: Wait) -> Result<(), CommitError> {
        #[cfg(feature = "testing")]
        if crate::types::planted::is("all_is_quorum") {
            return Ok(());
        }
        let mut everywhere = tenure.watch_everywhere();
        let mut office = self.replica.watch_tenure();
        tokio::select! {
            biased;
            // The sender lives as long as the tenure.
            _ = everywhere.wait_for(|seq| *seq >= wait.at.seq) => Ok(()),
            _ = office.wait_for(|held| held.as_ref().is_none_or(|held| held.epoch != tenure.epoch)) => {
                Err(CommitError::LostOffice)
            }
            () = tokio::time::sleep_until(wait.deadline) => Err(wait.in_vain(AckLevel::Quorum)),
        }
    }

    fn is_on_disk(&self, tenure: &Tenure, at: Lsn) -> bool {
        self.replica.fence.durable_for(tenure.epoch).is_some_and(|durable| durable.seq >= at.seq)
    }

    fn is_leased(&self, tenure: &Tenure) -> bool {
        tenure.acks().lease_live(Instant::now(), self.replica.lease_term)
    }
}

/// A record of another epoch at this seq is not the one that was let in, and without a word the office
/// is over.
fn is_this(applied: Option<Lsn>, at: Lsn) -> Result<(), CommitError> {
    if applied == Some(at) { Ok(()) } else { Err(CommitError::LostOffice) }
}
