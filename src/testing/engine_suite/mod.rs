//! Whether a [`StorageEngine`] keeps its contract: [`run`].
//!
//! Tell the suite how to open your engine, how to make a batch and what can be read ([`Subject`]), and
//! assert that nothing failed:
//!
//! ```
//! use skeinmesh::testing::engine_suite::{self, Ground, Subject};
//!
//! async fn keeps_its_contract(mine: &impl Subject) {
//!     let report = engine_suite::run(mine, Ground::Simulated).await;
//!     assert!(report.failed.is_empty(), "{report}");
//! }
//! ```
//!
//! On the simulated disk the power is cut at every call of a checkpoint and of an install. An engine that
//! keeps its files by other means than [`Disk`] is given a real directory, and those checks are skipped.

mod admission;
mod durability;
mod rig;
mod snapshots;
#[cfg(test)]
mod tests;
mod upkeep;

use std::{fmt, future::Future, panic::AssertUnwindSafe, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use self::rig::Rig;
use crate::{
    disk::Disk,
    engine::{EngineError, StorageEngine, Work},
};

/// Until a check is given up: an engine whose future never comes to its end.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the suite must know of an engine.
pub trait Subject: Send + Sync {
    /// The engine.
    type Engine: StorageEngine;

    /// Opens it in `dir`, which may not be there yet; again and again on the same directory.
    fn open(&self, disk: Arc<dyn Disk>, dir: PathBuf) -> Work<Arc<Self::Engine>>;

    /// Encoding and payload of a batch with one point, which is told from others by `point`.
    fn batch(&self, database: &str, point: u64, time_ns: i64) -> (u8, Bytes);

    /// The points of a database that can be read, ascending, each as often as a reader meets it; of
    /// payloads that the suite did not make, nothing. An engine without databases tells of all.
    fn held<'a>(
        &'a self,
        engine: &'a Self::Engine,
        database: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u64>, EngineError>>;

    /// False for an engine that has no databases and makes nothing of retention.
    fn has_databases(&self) -> bool {
        true
    }
}

/// What the engines stand on.
#[derive(Debug, Clone)]
pub enum Ground {
    /// A [`super::SimDisk`] each, which loses power.
    Simulated,
    /// A real directory, empty: for engines that have their own way to the disk.
    Directory(PathBuf),
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Checks that hold.
    pub passed: Vec<&'static str>,
    /// Checks that mean nothing for this engine, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// Checks that do not hold, and what was seen.
    pub failed: Vec<(&'static str, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} hold", self.passed.len())?;
        for (check, why) in &self.skipped {
            writeln!(f, "SKIPPED {check}: {why}")?;
        }
        for (check, what) in &self.failed {
            writeln!(f, "FAILED {check}: {what}")?;
        }
        Ok(())
    }
}

/// How one check ended, if not well.
enum Ended {
    Skipped(String),
    Failed(String),
}

impl From<String> for Ended {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

type Outcome = Result<(), Ended>;

/// A check that means nothing here.
fn skip(why: &str) -> Outcome {
    Err(Ended::Skipped(why.to_owned()))
}

/// Fails with what was seen, unless it is so.
macro_rules! ensure {
    ($so:expr, $($seen:tt)+) => {
        if !$so {
            return Err(format!($($seen)+).into());
        }
    };
}
use ensure;

impl Report {
    async fn check(&mut self, name: &'static str, check: impl Future<Output = Outcome>) {
        let bounded = tokio::time::timeout(PATIENCE, AssertUnwindSafe(check).catch_unwind());
        match bounded.await {
            Ok(Ok(Ok(()))) => self.passed.push(name),
            Ok(Ok(Err(Ended::Skipped(why)))) => self.skipped.push((name, why)),
            Ok(Ok(Err(Ended::Failed(what)))) => self.failed.push((name, what)),
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
                self.failed.push((name, format!("it panicked: {text}")));
            }
            Err(_) => self.failed.push((name, format!("it did not come to an end within {PATIENCE:?}"))),
        }
    }
}

/// Puts an engine through every check, each on fresh ground.
pub async fn run<S: Subject>(subject: &S, ground: Ground) -> Report {
    let mut report = Report::default();
    macro_rules! checks {
        ($($part:ident :: $check:ident),+ $(,)?) => {$({
            let rig = Rig::new(subject, &ground, stringify!($check));
            report.check(stringify!($check), $part::$check(&rig)).await;
        })+};
    }
    checks!(
        admission::starts_empty,
        admission::applies_each_record_once,
        admission::refuses_what_was_applied,
        admission::is_asked_from_any_thread,
        admission::applies_what_it_admits,
        admission::takes_back_what_it_reserved,
        admission::answers_whatever_bytes,
        durability::fixes_a_checkpoint_when_it_is_asked_for,
        durability::keeps_the_sidecar,
        durability::goes_back_to_the_checkpoint,
        durability::survives_a_dropped_checkpoint,
        durability::survives_a_power_cut_in_a_checkpoint,
        durability::recovers_what_no_power_cut_takes_back,
        durability::survives_a_full_disk,
        snapshots::exports_the_last_checkpoint,
        snapshots::installs_over_anything,
        snapshots::keeps_an_export_while_it_is_held,
        snapshots::refuses_a_damaged_export,
        snapshots::survives_a_power_cut_in_an_install,
        upkeep::comes_to_the_same_everywhere,
        upkeep::maintains_without_a_trace,
        upkeep::verifies_its_files,
        upkeep::keeps_databases_apart,
    );
    report
}
