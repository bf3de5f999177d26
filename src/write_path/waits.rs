//! How long writes wait for the level that they asked for.

use tokio::time::Instant;

use crate::{protocol::forward::AckLevel, telemetry::Histogram};

/// How long batches waited for their level, from when they were let in.
#[derive(Debug)]
pub struct CommitWaits([(AckLevel, Histogram); 4]);

impl Default for CommitWaits {
    fn default() -> Self {
        Self(AckLevel::EVERY.map(|level| (level, Histogram::new(Histogram::FINE_SECONDS))))
    }
}

impl CommitWaits {
    /// By level.
    pub fn by_level(&self) -> impl Iterator<Item = &(AckLevel, Histogram)> {
        self.0.iter()
    }

    pub(super) fn note(&self, level: AckLevel, since: Instant) {
        if let Some((_, waits)) = self.0.iter().find(|(of, _)| *of == level) {
            waits.observe_duration(since.elapsed());
        }
    }
}
