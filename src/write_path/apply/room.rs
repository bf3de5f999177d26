//! What is applied goes no further ahead of checkpoints than the engine has room for.

use std::sync::atomic::Ordering;

use tokio::time::{Duration, Instant, sleep};

use super::{Apply, SLOW};
use crate::{engine::Room, replication::Replica};

/// Records that have waited so long are worth a word.
const LONG_WAIT: Duration = Duration::from_secs(1);

impl Apply {
    /// True while records wait until a checkpoint has made room.
    pub fn waits_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::Relaxed)
    }

    /// Before records are applied: lets checkpoints keep up. A new writer does not wait before it is open: it is
    /// what everybody waits for.
    pub(super) async fn wait_for_room(&self, replica: &Replica) {
        let opening = || replica.tenure().is_some_and(|tenure| !tenure.is_open());
        if self.engine.room() == Room::Little && !opening() {
            sleep(SLOW.1).await;
            self.checkpoint_if_due();
        }
        let (began, mut said) = (Instant::now(), false);
        while self.engine.room() == Room::None && !opening() {
            self.waits_for_room.store(true, Ordering::Relaxed);
            if !said && began.elapsed() >= LONG_WAIT {
                said = true;
                let applied = *self.applied.borrow();
                tracing::warn!(
                    %applied,
                    "records wait until a checkpoint has made room for them, and writes with them: is the \
                     disk slow or full, or do checkpoints fail?"
                );
            }
            sleep(SLOW.1).await;
            self.checkpoint_if_due();
        }
        self.waits_for_room.store(false, Ordering::Relaxed);
        if said {
            tracing::info!(waited = ?began.elapsed(), "a checkpoint has made room; records are applied again");
        }
    }
}
