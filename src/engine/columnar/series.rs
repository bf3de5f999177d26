//! How many series a database has, where somebody wants that limited (`storage.max_series`).
//!
//! A series is a table and the values of all its tags. The engine keeps nothing per series, so a limit has
//! to be asked for: it takes a hash and a look per row, and about 20 bytes of memory per series.
//!
//! Nothing of this decides what is applied. Rows are judged where a body is parsed, by what this node has
//! applied, and batches once more where the writer lets them in; each node by its own limit. What is on its
//! way at the same time is not seen, so the limit may be passed by that.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use arrow_array::{Array, RecordBatch, cast::AsArray};
use arrow_schema::ArrowError;
use parquet::errors::ParquetError;
use tokio::time::Instant;

use super::{
    Inner,
    background::background,
    batch::{Batch, TableBatch},
    data_file::DataFile,
    ingest::shortened,
    memtable::width,
    merge::tags,
    parquet::{decoded_len, read_tags},
    retention::not_before,
    schema::Tables,
    state::State,
    unreadable,
};
use crate::engine::EngineError;

/// Least time between two counts of one database that has as many as it may: retention takes series away.
const COUNT_AGAIN: Duration = Duration::from_secs(600);
/// And so many times as long as the last one took.
const COUNT_REST: u32 = 50;
/// Bytes of the rows of a file that are decoded at a time to be counted, about, and how many rows may be.
const READ_BYTES: usize = 4 << 20;
const READ_ROWS: std::ops::RangeInclusive<usize> = 16..=8_192;
/// Longest text about a point that is refused, in bytes, but for the end of a tag.
const MAX_REASON: usize = 256;

/// The series of all databases, as fingerprints.
#[derive(Debug)]
pub(super) struct Series {
    limit: usize,
    /// With keys of its own, so that nobody can choose tags that meet in one fingerprint.
    hasher: RandomState,
    of: RwLock<HashMap<String, Known>>,
}

/// Those of one database.
#[derive(Debug, Default)]
struct Known {
    all: HashSet<u64>,
    /// `None` until what was there at the start has been counted: nothing is refused before.
    counted: Option<Counted>,
    /// What a count that is under way has found, and what came meanwhile.
    found: Option<HashSet<u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    took: Duration,
    /// What was gone by then.
    horizon: Option<i64>,
}

/// Judges the rows of one body.
#[derive(Debug, Clone)]
pub struct SeriesGate {
    series: Arc<Series>,
    database: String,
    /// A body with a point of one too many is refused whole.
    pub(super) whole: bool,
}

impl Series {
    /// For the state that an engine begins with; `None` without a limit.
    pub(super) fn new(limit: usize, state: &State) -> Option<Arc<Self>> {
        let series = Self { limit, hasher: RandomState::new(), of: RwLock::default() };
        series.reset(state);
        (limit > 0).then(|| Arc::new(series))
    }

    /// Begins anew: of every database that is there nothing is known.
    pub(super) fn reset(&self, state: &State) {
        let there = state.schemas.databases().map(|(name, _)| (name.to_owned(), Known::default()));
        *self.write() = there.collect();
    }

    /// Counts the series of a batch that is being applied.
    pub(super) fn note(&self, database: &str, prints: Vec<u64>) {
        let mut of = self.write();
        let known = of.entry(database.to_owned()).or_insert_with(|| Known {
            counted: Some(Counted { at: Instant::now(), took: Duration::ZERO, horizon: None }),
            ..Known::default()
        });
        if let Some(found) = &mut known.found {
            found.extend(&prints);
        }
        known.all.extend(prints);
    }

    /// The fingerprints of a batch.
    ///
    /// # Errors
    /// A tag is no text.
    pub(super) fn of_batch(&self, batch: &Batch) -> Result<Vec<u64>, ArrowError> {
        let prints = batch.tables.iter().map(|table| self.fingerprints(&table.table, &table.rows));
        Ok(prints.collect::<Result<Vec<_>, _>>()?.concat())
    }

    pub(super) fn dropped(&self, database: &str) {
        self.write().remove(database);
    }

    /// How many series each database has, as far as they are counted.
    pub(super) fn counts(&self) -> Vec<(String, usize)> {
        self.read().iter().map(|(name, known)| (name.clone(), known.all.len())).collect()
    }

    /// Why a batch is not let in: series that it brings would be too many.
    ///
    /// # Errors
    /// That reason.
    pub(super) fn check(&self, batch: &Batch) -> Result<(), String> {
        let mut brought = HashSet::new();
        for table in &batch.tables {
            let judged = self.judge(&batch.database, table, &mut brought).map_err(|e| e.to_string())?;
            if let Some(row) = judged.iter().position(|fits| !fits) {
                return Err(self.reason(&batch.database, table, row));
            }
        }
        Ok(())
    }

    /// For each row whether its series is known or there is room for one more; `brought` are those new
    /// ones that the body has brought so far.
    fn judge(
        &self,
        database: &str,
        table: &TableBatch,
        brought: &mut HashSet<u64>,
    ) -> Result<Vec<bool>, ArrowError> {
        let prints = self.fingerprints(&table.table, &table.rows)?;
        let of = self.read();
        let known = of.get(database);
        if known.is_some_and(|known| known.counted.is_none()) {
            return Ok(vec![true; prints.len()]);
        }
        let there = known.map_or(0, |known| known.all.len());
        let mut fits = |print: &u64| {
            known.is_some_and(|known| known.all.contains(print))
                || brought.contains(print)
                || (there + brought.len() < self.limit && brought.insert(*print))
        };
        Ok(prints.iter().map(&mut fits).collect())
    }

    fn reason(&self, database: &str, table: &TableBatch, row: usize) -> String {
        let mut point = table.table.clone();
        for column in tags(table.rows.schema_ref()) {
            if point.len() > MAX_REASON {
                break;
            }
            let values = table.rows.column(column).as_string_opt::<i32>();
            if let Some(values) = values.filter(|values| values.is_valid(row)) {
                point.extend([",", table.rows.schema_ref().field(column).name(), "=", values.value(row)]);
            }
        }
        let (limit, point) = (self.limit, shortened(&point, MAX_REASON));
        format!(
            "database {database:?} has {limit} series, as many as storage.max_series allows, and {point} is none of them"
        )
    }

    /// One word for the series of each row: equal for equal ones, whatever the order of their tags.
    fn fingerprints(&self, table: &str, rows: &RecordBatch) -> Result<Vec<u64>, ArrowError> {
        let mut prints = vec![self.hasher.hash_one(table); rows.num_rows()];
        for column in tags(rows.schema_ref()) {
            let name = rows.schema_ref().field(column).name();
            let Some(values) = rows.column(column).as_string_opt::<i32>() else {
                return Err(ArrowError::SchemaError(format!("tag {name:?} is no text")));
            };
            for (print, value) in prints.iter_mut().zip(values) {
                if let Some(value) = value {
                    *print = print.wrapping_add(self.hasher.hash_one((name, value)));
                }
            }
        }
        Ok(prints)
    }

    /// A database that has to be counted; what is applied from here on is counted too.
    fn begin(&self, state: &State) -> Option<String> {
        let now = Instant::now();
        let mut of = self.write();
        let due = |(name, known): &(&String, &mut Known)| match known.counted {
            None => true,
            Some(counted) => {
                known.all.len() >= self.limit
                    && now.duration_since(counted.at) >= COUNT_AGAIN.max(counted.took * COUNT_REST)
                    && state.retentions.of(name).horizon != counted.horizon
            }
        };
        let (name, known) = of.iter_mut().find(due)?;
        known.found = Some(HashSet::new());
        Some(name.clone())
    }

    fn found(&self, database: &str, prints: Vec<u64>) {
        // It may have been dropped since, and come back as another.
        if let Some(found) = self.write().get_mut(database).and_then(|known| known.found.as_mut()) {
            found.extend(prints);
        }
    }

    fn end(&self, database: &str, took: Duration, horizon: Option<i64>) -> Option<usize> {
        let mut of = self.write();
        let known = of.get_mut(database)?;
        known.all = known.found.take()?;
        known.all.shrink_to_fit();
        known.counted = Some(Counted { at: Instant::now(), took, horizon });
        Some(known.all.len())
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Known>> {
        self.of.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Known>> {
        self.of.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SeriesGate {
    pub(super) fn new(series: &Arc<Series>, database: &str) -> Self {
        Self { series: series.clone(), database: database.to_owned(), whole: false }
    }

    /// For a body that is refused whole if one point of it is, because a key stands for all of it: sent
    /// again when there is room, it would be taken for written.
    #[must_use]
    pub fn all_or_nothing(self) -> Self {
        Self { whole: true, ..self }
    }

    /// For each row whether it is let in.
    ///
    /// # Errors
    /// A tag is no text.
    pub(super) fn judge(
        &self,
        table: &TableBatch,
        brought: &mut HashSet<u64>,
    ) -> Result<Vec<bool>, ArrowError> {
        self.series.judge(&self.database, table, brought)
    }

    /// Why that row is not.
    pub(super) fn reason(&self, table: &TableBatch, row: usize) -> String {
        self.series.reason(&self.database, table, row)
    }
}

/// Counts the series of a database, if there is one of which they are not known: of all that were there
/// at the start, and of one that is full and from which retention took something since. False if there
/// was nothing to do.
///
/// A file that cannot be read is left out, so that it holds up nothing: whoever needs it says what is wrong.
pub(super) async fn count(inner: &Arc<Inner>) -> bool {
    let Some(series) = &inner.series else { return false };
    let begun = series.begin(&inner.state());
    let Some(database) = begun else { return false };
    let began = Instant::now();
    let (names, horizon) = {
        let state = inner.state();
        let names = state.schemas.tables(&database).map(Tables::names);
        (names, state.retentions.of(&database).horizon)
    };
    let names: Vec<String> = names.unwrap_or_default();
    for name in names {
        let Ok(Some(view)) = inner.state().view(&database, &name) else { continue };
        for rows in view.rows {
            let (of, floor, name) = (series.clone(), view.retention.floor_of_rows(), name.clone());
            let work = move || of.fingerprints(&name, &not_before(rows.batch(), floor)?);
            note_found(series, &database, background(move || work().map_err(unreadable)).await);
        }
        let width = width(&view.schema) + size_of::<i64>();
        for file in view.files {
            let prints = prints_of(inner, series, &file, view.retention.floor_of(&file.entry), width).await;
            note_found(series, &database, prints);
        }
    }
    if let Some(counted) = series.end(&database, began.elapsed(), horizon) {
        tracing::info!(%database, series = counted, limit = series.limit, "counted the series of a database");
    }
    true
}

fn note_found(series: &Series, database: &str, prints: Result<Vec<u64>, EngineError>) {
    match prints {
        Ok(prints) => series.found(database, prints),
        Err(error) => tracing::warn!(%database, %error, "series are counted without some of the rows"),
    }
}

/// The fingerprints in a file, each once.
async fn prints_of(
    inner: &Arc<Inner>,
    series: &Arc<Series>,
    file: &Arc<DataFile>,
    floor: i64,
    width: usize,
) -> Result<Vec<u64>, EngineError> {
    let content = match file.read_checked(&*inner.disk).await {
        Err(EngineError::Damaged(_, why)) => return Err(file.damage(&why)),
        content => content?,
    };
    let (series, table) = (series.clone(), file.entry.table.clone());
    let rows_of_file = usize::try_from(file.entry.rows).unwrap_or(usize::MAX).max(1);
    background(move || {
        let work = || -> Result<Vec<u64>, ParquetError> {
            let len = decoded_len(&content, width)?.unwrap_or(usize::MAX);
            let rows = (READ_BYTES / (len / rows_of_file).max(1)).clamp(*READ_ROWS.start(), *READ_ROWS.end());
            let mut prints = HashSet::new();
            for batch in read_tags(content, rows)? {
                prints.extend(series.fingerprints(&table, &not_before(&batch?, floor)?)?);
            }
            Ok(prints.into_iter().collect())
        };
        work().map_err(|e| EngineError::Broken(format!("the tags of a file cannot be counted: {e}")))
    })
    .await
}
