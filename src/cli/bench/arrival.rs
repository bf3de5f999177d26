//! A newcomer on its way: what it fetches of the engine's files, and when it is level.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::cli::{Client, Failure};

use super::metrics::Metrics;

/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// Seconds count from the start of its process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Arrival {
    /// Until it said that it is ready: admitted, and its edge open.
    pub(super) ready_s: f64,
    /// Of the engine's files, that it fetched.
    pub(super) bytes: u64,
    /// Until the last of them was there.
    pub(super) here_s: f64,
    /// Until it had applied all that was committed one look earlier; `None` if time was up first.
    pub(super) level_s: Option<f64>,
}

impl Arrival {
    /// Looks at a node that has just said that it is ready, until it is level or time is up. `fetches` is
    /// called whenever more bytes have come.
    pub(super) async fn follow(
        newcomer: &Client,
        writer: &Client,
        began: Instant,
        deadline: Instant,
        mut fetches: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let ready_s = began.elapsed().as_secs_f64();
        let mut arrival = Self { ready_s, bytes: 0, here_s: ready_s, level_s: None };
        let mut committed = Metrics::of(writer).await?.count("skein_commit_seq")?;
        while Instant::now() < deadline {
            sleep(LOOK).await;
            let metrics = Metrics::of(newcomer).await?;
            let (now, bytes) = (began.elapsed(), metrics.count("skein_snapshot_received_bytes_total")?);
            if bytes > arrival.bytes {
                (arrival.bytes, arrival.here_s) = (bytes, now.as_secs_f64());
                fetches()?;
            }
            if metrics.count("skein_applied_seq")? >= committed {
                arrival.level_s = Some(now.as_secs_f64());
                break;
            }
            committed = Metrics::of(writer).await?.count("skein_commit_seq")?;
        }
        match arrival.bytes {
            0 => Err(Failure::new("the newcomer fetched no snapshot: have more rows written first")),
            _ => Ok(arrival),
        }
    }

    /// From when it was ready until the last byte was there, per second.
    pub(super) fn fetched_mb_per_s(&self) -> f64 {
        // It may all have come between two looks.
        self.bytes as f64 / 1e6 / (self.here_s - self.ready_s).max(LOOK.as_secs_f64())
    }

    /// From its start to level, per second.
    pub(super) fn mb_per_s(&self) -> Option<f64> {
        self.level_s.map(|seconds| self.bytes as f64 / 1e6 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_second_of_the_fetching_and_of_all() {
        let mut arrival = Arrival { ready_s: 0.5, bytes: 30_000_000, here_s: 2.0, level_s: Some(3.0) };
        assert_eq!((arrival.fetched_mb_per_s(), arrival.mb_per_s()), (20.0, Some(10.0)));
        (arrival.here_s, arrival.level_s) = (0.5, None);
        assert_eq!((arrival.fetched_mb_per_s(), arrival.mb_per_s()), (1500.0, None));
    }
}
