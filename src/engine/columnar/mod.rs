//! The columnar engine: Arrow in memory, Parquet on disk.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow_schema::ArrowError;
use bytes::Bytes;
use tokio::time::Instant;

use self::{
    absorbed::Absorbed,
    assigned::Assigned,
    schema::{SchemaError, Schemas},
    series::Series,
    state::State,
};
use super::{EngineError, Export, Operation, Pace, Refused, Room, StorageEngine, Work};
use crate::{disk::Disk, types::Lsn};

mod absorbed;
mod assigned;
mod background;
pub mod batch;
mod compaction;
mod contents;
mod data_file;
mod flush;
pub mod ingest;
#[cfg(feature = "sql")]
mod latest;
mod manifest;
mod memtable;
mod merge;
#[cfg(feature = "sql")]
mod overlap;
mod parquet;
mod recovery;
mod registry;
mod retention;
mod runs;
pub mod saved;
pub mod schema;
mod series;
mod snapshot;
#[cfg(feature = "sql")]
pub mod sql;
mod state;
pub mod survey;
#[cfg(test)]
mod tests;
mod verify;
mod views;

pub use absorbed::ToldSchemas;
pub use contents::DatabaseSurvey;
pub use series::SeriesGate;

/// Times what a flush is worth that may be in memory, beside what one that runs holds, before records are
/// slowed down and before they wait.
const CROWDED: (usize, usize) = (2, 4);
/// Time from a failed checkpoint to the next try.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// When a checkpoint is worth its cost.
#[derive(Debug, Clone)]
pub struct ColumnarConfig {
    /// Bytes of rows in memory; 64 MiB by default.
    pub flush_bytes: usize,
    /// Age of the oldest record that is in memory only; 60 s by default.
    pub flush_age: Duration,
    /// Memory that a compaction may take, about; 256 MiB by default, 0 for no compaction.
    pub compaction_memory: usize,
    /// Series of a database from which on a row of another is refused at the edge; 0, the default, for no
    /// limit.
    pub max_series: usize,
}

impl Default for ColumnarConfig {
    fn default() -> Self {
        Self {
            flush_bytes: 64 << 20,
            flush_age: Duration::from_secs(60),
            compaction_memory: 256 << 20,
            max_series: 0,
        }
    }
}

/// What compactions have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionTotals {
    /// How many were committed.
    pub runs: u64,
    /// Files they replaced.
    pub files: u64,
    /// Bytes of those.
    pub bytes_read: u64,
    /// Bytes of the files they made.
    pub bytes_written: u64,
}

/// Stores batches of line protocol as columns, and answers SQL (feature `sql`).
pub struct ColumnarEngine {
    inner: Arc<Inner>,
}

/// What the futures of a checkpoint share with the engine.
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    config: ColumnarConfig,
    state: Mutex<State>,
    /// Taken after `state` where both are.
    assigned: Mutex<Assigned>,
    absorbed: Mutex<Absorbed>,
    /// A checkpoint or an install runs.
    busy: AtomicBool,
    /// Held from the look at the files that there are until a manifest names them.
    committing: tokio::sync::Mutex<()>,
    compacted: Mutex<CompactionTotals>,
    /// Not there without a limit.
    series: Option<Arc<Series>>,
    /// Maintenance begins with a count of series.
    counts_next: AtomicBool,
    #[cfg(feature = "sql")]
    digests: Arc<latest::Digests>,
}

impl ColumnarEngine {
    /// Opens the engine in `dir`, which it makes if it is not there, at its last checkpoint.
    ///
    /// # Errors
    /// The disk fails, the manifest does not verify, or a file it names is missing.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        config: ColumnarConfig,
    ) -> Result<Arc<Self>, EngineError> {
        let state = recovery::recover(&*disk, &dir).await?;
        let mut assigned = Assigned::default();
        assigned.reset(&state.schemas);
        let series = Series::new(config.max_series, &state);
        let inner = Inner {
            disk,
            dir,
            config,
            state: Mutex::new(state),
            assigned: Mutex::new(assigned),
            absorbed: Mutex::default(),
            busy: AtomicBool::new(false),
            committing: tokio::sync::Mutex::new(()),
            compacted: Mutex::default(),
            series,
            counts_next: AtomicBool::new(true),
            #[cfg(feature = "sql")]
            digests: Arc::default(),
        };
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// The columns of every table, for an edge to parse against: applied ones, and those it was
    /// told of in the last seconds. Cheap.
    pub fn schemas(&self) -> Schemas {
        let mut schemas = self.inner.state().schemas.clone();
        lock(&self.inner.absorbed).add_to(&mut schemas);
        schemas
    }

    /// Takes over the bytes of [`Refused::SchemaChanged`], so that an edge that parses again does
    /// so against the writer's columns.
    ///
    /// # Errors
    /// They are not schemas.
    pub fn absorb_schema(&self, bytes: &[u8]) -> Result<(), SchemaError> {
        let told = Schemas::from_bytes(bytes)?;
        lock(&self.inner.absorbed).absorb(&told);
        Ok(())
    }

    /// Judges rows by their series, for a body of that database; `None` without a limit.
    pub fn series_gate(&self, database: &str) -> Option<SeriesGate> {
        Some(SeriesGate::new(self.inner.series.as_ref()?, database))
    }
}

impl StorageEngine for ColumnarEngine {
    fn recovered(&self) -> (Lsn, Bytes) {
        let manifest = self.inner.state().manifest.clone();
        (manifest.position, manifest.sidecar.clone().into())
    }

    fn applied(&self) -> Lsn {
        self.inner.state().applied
    }

    fn admit(&self, encoding: u8, payload: &Bytes) -> Result<(), Refused> {
        if encoding != batch::ENCODING {
            return Err(Refused::Invalid(format!("this engine does not know encoding {encoding}")));
        }
        let invalid = |e: batch::BatchError| Refused::Invalid(e.to_string());
        let known = self.inner.assigned().known();
        let new = batch::peek_new(payload, &known).map_err(invalid)?;
        if let Some(series) = &self.inner.series {
            let points = batch::points_like(payload, &known).map_err(invalid)?;
            let batch = points.to_batch().map_err(|e| invalid(e.into()))?;
            series.check(&batch).map_err(Refused::Invalid)?;
        }
        let header = match new {
            Some(header) => header,
            None if self.inner.assigned().admit_known(&known) => return Ok(()),
            // Something that is new came meanwhile.
            None => batch::peek(payload).map_err(invalid)?,
        };
        self.inner.assigned().admit(&header)
    }

    fn withdraw(&self, _encoding: u8, _payload: &Bytes) {
        let state = self.inner.state();
        self.inner.assigned().withdraw(&state.schemas);
    }

    fn validate(&self, encoding: u8, payload: &Bytes) -> Result<(), String> {
        if encoding != batch::ENCODING {
            return Err(format!("this engine does not know encoding {encoding}"));
        }
        batch::decode(payload).map(drop).map_err(|e| e.to_string())
    }

    fn forget_reservations(&self) {
        let state = self.inner.state();
        self.inner.assigned().reset(&state.schemas);
    }

    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        let broken = |why: String| EngineError::Broken(format!("record {at}: {why}"));
        let decoded = match operation {
            Operation::Batch { encoding, payload } if *encoding == batch::ENCODING => {
                let known = self.inner.state().schemas.clone();
                let points = batch::points_like(payload, &known).map_err(|e| broken(e.to_string()))?;
                Some((points, known))
            }
            Operation::Batch { encoding, .. } => return Err(broken(format!("unknown encoding {encoding}"))),
            Operation::DropDatabase { .. }
            | Operation::SetRetention { .. }
            | Operation::Expire { .. }
            | Operation::Nothing => None,
        };
        let series = self.inner.series.as_ref().zip(decoded.as_ref());
        let series = series.map(|(series, (points, _))| Ok((series, series.of_batch(&points.to_batch()?)?)));
        let series = series.transpose().map_err(|e: ArrowError| broken(e.to_string()))?;
        let mut state = self.inner.state();
        if at <= state.applied {
            return Err(broken(format!("{} was applied before it", state.applied)));
        }
        if let Some((mut points, known)) = decoded {
            // Judged by what is replaced since, should another call have come between.
            points.all_known &= known.is(&state.schemas);
            // What is held is copied when it changes.
            drop(known);
            let brought = state.append(at, &points)?;
            self.inner.assigned().applied(&points, brought, &state.schemas);
            // Together with its rows: a count sees both or neither.
            if let Some((series, prints)) = series {
                series.note(points.database, prints);
            }
        }
        match operation {
            Operation::DropDatabase { database } => {
                state.drop_database(database);
                self.inner.assigned().dropped(database);
                lock(&self.inner.absorbed).dropped(database);
                if let Some(series) = &self.inner.series {
                    series.dropped(database);
                }
            }
            Operation::SetRetention { database, keep_ns } => {
                state.set_retention(at, database, *keep_ns).map_err(unreadable)?;
            }
            Operation::Expire { now_ns } => state.expire(*now_ns),
            Operation::Batch { .. } | Operation::Nothing => {}
        }
        state.applied = at;
        state.oldest.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn expiry_due(&self, now_ns: i64) -> bool {
        self.inner.state().expiry_due(now_ns)
    }

    fn checkpoint_due(&self) -> bool {
        if self.inner.busy.load(Ordering::Acquire) {
            return false;
        }
        let state = self.inner.state();
        if let Some(at) = state.retry_at {
            return Instant::now() >= at;
        }
        state.dropped
            || state.oldest.is_some_and(|oldest| oldest.elapsed() >= self.inner.config.flush_age)
            || state.live_bytes() >= self.inner.config.flush_bytes
    }

    fn room(&self) -> Room {
        let (busy, state) = (self.inner.busy.load(Ordering::Acquire), self.inner.state());
        // What a checkpoint that failed was to hold is nobody's now.
        let bytes = state.live_bytes() + if busy { 0 } else { state.frozen_bytes() };
        let times = |most: usize| self.inner.config.flush_bytes.saturating_mul(most);
        match bytes {
            bytes if bytes >= times(CROWDED.1) => Room::None,
            bytes if bytes >= times(CROWDED.0) => Room::Little,
            _ => Room::Enough,
        }
    }

    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        let begun = Busy::begin(&self.inner).and_then(|busy| {
            let retry_at = Instant::now() + RETRY_AFTER;
            let frozen = self.inner.state().freeze(retry_at).map_err(unreadable)?;
            Ok((busy, frozen))
        });
        Box::pin(async move {
            let (busy, frozen) = begun?;
            flush::checkpoint(&busy.0, frozen, sidecar).await
        })
    }

    fn export(&self) -> Work<Export> {
        let inner = self.inner.clone();
        Box::pin(async move { snapshot::export(&inner).await })
    }

    fn maintain(&self) -> Work<bool> {
        let inner = self.inner.clone();
        Box::pin(async move {
            // In turn, so that neither waits for an end of the other.
            let counts_first = inner.counts_next.fetch_xor(true, Ordering::AcqRel);
            if counts_first && series::count(&inner).await {
                return Ok(true);
            }
            Ok(compaction::compact(&inner).await? || !counts_first && series::count(&inner).await)
        })
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let busy = Busy::begin(&self.inner);
        Box::pin(async move {
            let busy = busy?;
            snapshot::install(&busy.0, &from).await
        })
    }

    fn files(&self) -> Vec<(String, u64)> {
        let state = self.inner.state();
        state.committed.iter().map(|file| (file.entry.name(), file.entry.size)).collect()
    }

    fn verify(&self, name: &str, pace: Pace) -> Work<bool> {
        let inner = self.inner.clone();
        let file = inner.state().committed.iter().find(|file| file.entry.name() == name).cloned();
        Box::pin(async move {
            let Some(file) = file else { return Ok(true) };
            match file.verify(&*inner.disk, Some(&pace)).await {
                Ok(_) => Ok(true),
                Err(EngineError::Damaged(..)) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn damaged(&self) -> Vec<String> {
        let state = self.inner.state();
        let damaged = state.committed.iter().filter(|file| file.damaged.get().is_some());
        damaged.map(|file| file.entry.name()).collect()
    }
}

impl fmt::Debug for ColumnarEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColumnarEngine").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn assigned(&self) -> MutexGuard<'_, Assigned> {
        lock(&self.assigned)
    }
}

/// The right to replace the manifest, one at a time.
struct Busy(Arc<Inner>);

impl Busy {
    fn begin(inner: &Arc<Inner>) -> Result<Self, EngineError> {
        if inner.busy.swap(true, Ordering::AcqRel) {
            return Err(EngineError::Broken("a checkpoint or install is still running".into()));
        }
        Ok(Self(inner.clone()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// A panic elsewhere must not take queries down with it; the state is changed in steps that leave
/// it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreadable(error: ArrowError) -> EngineError {
    EngineError::Broken(format!("rows in memory cannot be read: {error}"))
}
