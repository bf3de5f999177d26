//! The scrub: everything that lies still on this node's disk is read again and verified, slowly, over
//! and over. What it finds `damage.rs` mends, while other nodes still have it.
//!
//! A pass takes the configured interval: what there is to read, divided by it, gives the rate, and a
//! bound keeps a large node from reading faster than its disk should. What comes into being during a
//! pass is read in the next one. A process starts its first pass at another file each time, so that
//! a node that is restarted often reads everything too.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use rand::RngCore;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::{
    engine::Pace,
    wal::{ReadError, Wal},
};

use super::{NodeError, local::ThisNode};

/// From the start of the process to the first pass.
const FIRST: Duration = Duration::from_secs(60);
/// Bytes of the log read at a time.
const STEP: u64 = 1 << 20;

/// How often and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubConfig {
    /// How long a pass takes; zero for no scrub at all.
    pub interval: Duration,
    /// Bytes per second at most.
    pub max_rate: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(7 * 24 * 3600), max_rate: 16 << 20 }
    }
}

/// What the scrub of this process has done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes read.
    pub(super) bytes: AtomicU64,
    /// Passes that came to their end.
    pub(super) passes: AtomicU64,
    /// Files and sections of the log that did not verify, or could not be read.
    pub(super) findings: AtomicU64,
    finished: AtomicI64,
}

impl Progress {
    /// When the last pass came to its end, in seconds since 1970.
    pub(super) fn finished(&self) -> Option<i64> {
        Some(self.finished.load(Ordering::Acquire)).filter(|at| *at > 0)
    }
}

/// Runs for as long as the process.
pub(super) async fn scrub(this: Arc<ThisNode>, config: ScrubConfig) -> Result<(), NodeError> {
    if config.interval.is_zero() || config.max_rate == 0 {
        return std::future::pending().await;
    }
    sleep(FIRST.min(config.interval)).await;
    loop {
        let (began, progress) = (Instant::now(), &this.findings.scrub);
        let before = progress.bytes.load(Ordering::Acquire);
        pass(&this, config).await;
        progress.passes.fetch_add(1, Ordering::AcqRel);
        let now = i64::try_from(this.surroundings.unix_seconds()).unwrap_or(i64::MAX);
        progress.finished.store(now, Ordering::Release);
        tracing::info!(
            seconds = began.elapsed().as_secs(),
            bytes = progress.bytes.load(Ordering::Acquire) - before,
            findings = progress.findings.load(Ordering::Acquire),
            "everything stored was read and verified once more"
        );
        sleep_until(began + config.interval).await;
    }
}

async fn pass(this: &Arc<ThisNode>, config: ScrubConfig) {
    let mut files = this.engine.files();
    let sealed = this.replica.wal.sealed();
    let rate = rate(sealed.bytes + files.iter().map(|file| file.1).sum::<u64>(), config);
    let counted = this.clone();
    let pace: Pace = Arc::new(move |bytes| {
        let this = counted.clone();
        Box::pin(async move {
            sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
            this.findings.scrub.bytes.fetch_add(bytes, Ordering::AcqRel);
        })
    });
    read_log(&this.replica.wal, sealed.last_seq, &this.findings.scrub, &pace).await;
    if !files.is_empty() {
        let start = usize::try_from(this.surroundings.rng().next_u64() % files.len() as u64).unwrap_or(0);
        files.rotate_left(start);
    }
    for (name, _) in files {
        match this.engine.verify(&name, pace.clone()).await {
            Ok(true) => {}
            Ok(false) => this.findings.scrub.found(),
            Err(error) => {
                this.findings.scrub.found();
                tracing::error!(file = name, %error, "a data file could not be read");
            }
        }
    }
}

/// The log up to `last`, which was sealed when the pass began, or up to the first damage: what is done
/// about that may move all behind it. The pace was not made for what has been sealed since: on a node
/// that had next to nothing, one segment would take years.
async fn read_log(wal: &Wal, last: u64, progress: &Progress, pace: &Pace) {
    let mut next = Some(wal.first_seq());
    while let Some(from) = next.filter(|from| *from <= last) {
        match wal.scrub(from, STEP).await {
            Ok(step) => {
                pace(step.bytes).await;
                next = step.next;
            }
            Err(error) => {
                progress.found();
                if !matches!(error, ReadError::Damaged { .. }) {
                    tracing::error!(from, %error, "the log could not be read");
                }
                return;
            }
        }
    }
}

impl Progress {
    fn found(&self) {
        self.findings.fetch_add(1, Ordering::AcqRel);
    }
}

/// Bytes per second that read `total` in the interval, if they may.
fn rate(total: u64, config: ScrubConfig) -> f64 {
    (total as f64 / config.interval.as_secs_f64()).clamp(1.0, config.max_rate as f64)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        testing::SimDisk,
        types::ClusterId,
        wal::{Draft, RecordKind, WalConfig},
    };

    #[test]
    fn a_pass_takes_the_interval_or_as_long_as_its_bound_asks_for() {
        let config = ScrubConfig { interval: Duration::from_secs(1000), max_rate: 500 };
        assert_eq!(rate(100_000, config), 100.0);
        assert_eq!(rate(10_000_000, config), 500.0);
        assert_eq!(rate(0, config), 1.0);
        let week = ScrubConfig::default();
        // 1 TiB in a week is below the bound of the defaults.
        assert!(rate(1 << 40, week) < 2e6, "{}", rate(1 << 40, week));
    }

    async fn fill(wal: &Wal) {
        let payload = Bytes::from(vec![7; 4 << 10]);
        for _ in 0..20 {
            let draft = Draft::unkeyed(RecordKind::Batch, 1, 0, payload.clone());
            wal.append(1, draft).unwrap();
            wal.settle().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_sealed_during_a_pass_is_read_in_the_next_one() {
        let config = WalConfig { segment_bytes: 16 << 10, ..WalConfig::new("/wal") };
        let disk = Arc::new(SimDisk::new().boot());
        let (wal, driver, _) = Wal::open(disk, config, ClusterId([2; 16]), Box::new(|| 7)).await.unwrap();
        tokio::spawn(driver.run());
        fill(&wal).await;
        let (began, progress) = (wal.sealed(), Arc::new(Progress::default()));
        let (grows, counted) = (wal.clone(), progress.clone());
        let pace: Pace = Arc::new(move |bytes| {
            let (wal, counted) = (grows.clone(), counted.clone());
            Box::pin(async move {
                if counted.bytes.fetch_add(bytes, Ordering::AcqRel) == 0 {
                    fill(&wal).await;
                }
            })
        });
        read_log(&wal, began.last_seq, &progress, &pace).await;
        let read = progress.bytes.load(Ordering::Acquire);
        assert!(read > 0 && read <= began.bytes, "{read} of {began:?}");
        assert!(wal.sealed().bytes > began.bytes);
        read_log(&wal, wal.sealed().last_seq, &progress, &pace).await;
        assert!(progress.bytes.load(Ordering::Acquire) > read + began.bytes);
    }
}
