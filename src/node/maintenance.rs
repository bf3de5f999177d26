//! Keeps the engine tidy in the background: one piece of work at a time, and never more than half of
//! the time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::NodeError;
use crate::engine::StorageEngine;

/// Between two looks when there was nothing to do.
const LOOK: Duration = Duration::from_secs(10);
/// Least pause after a piece of work.
const BREATH: Duration = Duration::from_secs(1);
/// Pause after one that failed, for example for want of space.
const RETRY: Duration = Duration::from_secs(60);

/// Runs as long as the process.
pub(super) async fn run(engine: Arc<dyn StorageEngine>) -> Result<(), NodeError> {
    let mut pause = LOOK;
    loop {
        sleep(pause).await;
        let began = Instant::now();
        pause = match engine.maintain().await {
            Ok(true) => began.elapsed().max(BREATH),
            Ok(false) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "maintenance of the data files failed; it is tried again");
                RETRY
            }
        };
    }
}
