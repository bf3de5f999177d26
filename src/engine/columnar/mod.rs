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

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use bytes::Bytes;
use tokio::time::Instant;

use self::{
    absorbed::Absorbed,
    assigned::Assigned,
    schema::{SchemaError, Schemas},
    state::State,
};
use super::{EngineError, Export, Operation, Pace, Refused, StorageEngine, Work};
use crate::{disk::Disk, types::Lsn};

mod absorbed;
mod assigned;
pub mod batch;
mod compaction;
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
mod snapshot;
#[cfg(feature = "sql")]
pub mod sql;
mod state;
pub mod survey;
#[cfg(test)]
mod tests;
mod verify;

pub use absorbed::ToldSchemas;

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
}

impl Default for ColumnarConfig {
    fn default() -> Self {
        Self { flush_bytes: 64 << 20, flush_age: Duration::from_secs(60), compaction_memory: 256 << 20 }
    }
}

/// What a database keeps and holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSurvey {
    /// Its name.
    pub name: String,
    /// How many tables.
    pub tables: usize,
    /// Age from which on points are gone; `None` for ever.
    pub keep: Option<Duration>,
    /// Points before this time are gone, ns since 1970; `None` while none are.
    pub horizon_ns: Option<i64>,
    /// How many data files this node has of it.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
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

    /// The databases by name.
    pub fn databases(&self) -> Vec<String> {
        self.inner.state().schemas.databases().map(|(name, _)| name.to_owned()).collect()
    }

    /// The databases by name with what they keep and hold; also those that were only told what to
    /// keep.
    pub fn survey_databases(&self) -> Vec<DatabaseSurvey> {
        let state = self.inner.state();
        let one = |(name, retention, files): (String, retention::Retention, Vec<&data_file::FileEntry>)| {
            DatabaseSurvey {
                tables: state.schemas.tables(&name).map_or(0, |tables| tables.len()),
                keep: retention.keep_ns.map(|ns| Duration::from_nanos(ns.unsigned_abs())),
                horizon_ns: retention.horizon,
                files: files.len() as u64,
                bytes: files.iter().map(|file| file.size).sum(),
                name,
            }
        };
        state.databases().into_iter().map(one).collect()
    }

    /// The tables of a database by name; `None` if there is no such database.
    pub fn tables(&self, database: &str) -> Option<Vec<String>> {
        Some(self.inner.state().schemas.tables(database)?.keys().cloned().collect())
    }

    /// How many data files were found to be damaged since this process has them: queries that need
    /// one fail, and it has to be replaced from another node.
    pub fn damaged_files(&self) -> usize {
        self.damaged().len()
    }

    /// What compactions have done since this process began.
    pub fn compactions(&self) -> CompactionTotals {
        *lock(&self.inner.compacted)
    }

    /// How many rows a table holds; `None` if there is no such table. A point that was written
    /// again may be counted more than once until its rows are put together.
    pub fn row_count(&self, database: &str, table: &str) -> Option<u64> {
        let view = self.inner.state().view(database, table).ok()??;
        let files: u64 = view.files.iter().map(|file| file.entry.rows).sum();
        let rows: usize = view.rows.iter().map(|rows| rows.batch().num_rows()).sum();
        Some(files + rows as u64)
    }

    /// Every point of a table, by time and each once, with the position that this answers for;
    /// `None` if there is no such table. Holds all of it in memory: for tests and small tables.
    ///
    /// # Errors
    /// The disk fails or a file does not decode.
    pub async fn scan(
        &self,
        database: &str,
        table: &str,
    ) -> Result<Option<(Lsn, Vec<RecordBatch>)>, EngineError> {
        let (applied, view) = {
            let mut state = self.inner.state();
            (state.applied, state.view(database, table).map_err(unreadable)?)
        };
        let Some(view) = view else { return Ok(None) };
        let schema = view.schema.to_arrow();
        let mut all = Vec::new();
        for file in &view.files {
            let damaged = |e: String| EngineError::Damaged(file.path.display().to_string(), e);
            let bytes = file.read_checked(&*self.inner.disk).await?;
            let floor = view.retention.floor_of(&file.entry);
            for batch in parquet::decode(bytes).map_err(|e| damaged(e.to_string()))? {
                all.push(retention::not_before(&batch, floor).map_err(unreadable)?);
            }
        }
        for rows in &view.rows {
            let floor = view.retention.floor_of_rows();
            all.push(retention::not_before(rows.batch(), floor).map_err(unreadable)?);
        }
        let all = all.iter().map(|batch| merge::conform(batch, &schema)).collect::<Result<Vec<_>, _>>();
        let points = all.and_then(|all| merge::merge(&schema, &all)).map_err(unreadable)?;
        Ok(Some((applied, points)))
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
        let header = batch::peek(payload).map_err(|e| Refused::Invalid(e.to_string()))?;
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
                Some(batch::decode_like(payload, &known).map_err(|e| broken(e.to_string()))?)
            }
            Operation::Batch { encoding, .. } => return Err(broken(format!("unknown encoding {encoding}"))),
            Operation::DropDatabase { .. }
            | Operation::SetRetention { .. }
            | Operation::Expire { .. }
            | Operation::Nothing => None,
        };
        let mut state = self.inner.state();
        if at <= state.applied {
            return Err(broken(format!("{} was applied before it", state.applied)));
        }
        if let Some(batch) = decoded {
            state.append(at, &batch)?;
            self.inner.assigned().applied(&batch, &state.schemas);
        }
        match operation {
            Operation::DropDatabase { database } => {
                state.drop_database(database);
                self.inner.assigned().dropped(database);
                lock(&self.inner.absorbed).dropped(database);
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
        Box::pin(async move { compaction::compact(&inner).await })
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
