//! What an engine holds, for whoever looks at all of it: databases, tables, counts, and every point.

use std::time::Duration;

use arrow_array::RecordBatch;

use super::{
    ColumnarEngine, CompactionTotals, data_file::FileEntry, lock, merge, parquet, retention, unreadable,
};
use crate::{
    engine::{EngineError, StorageEngine},
    types::Lsn,
};

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

impl ColumnarEngine {
    /// The databases by name.
    pub fn databases(&self) -> Vec<String> {
        self.inner.state().schemas.databases().map(|(name, _)| name.to_owned()).collect()
    }

    /// The databases by name with what they keep and hold; also those that were only told what to
    /// keep.
    pub fn survey_databases(&self) -> Vec<DatabaseSurvey> {
        let state = self.inner.state();
        let one =
            |(name, retention, files): (String, retention::Retention, Vec<&FileEntry>)| DatabaseSurvey {
                tables: state.schemas.tables(&name).map_or(0, |tables| tables.len()),
                keep: retention.keep_ns.map(|ns| Duration::from_nanos(ns.unsigned_abs())),
                horizon_ns: retention.horizon,
                files: files.len() as u64,
                bytes: files.iter().map(|file| file.size).sum(),
                name,
            };
        state.databases().into_iter().map(one).collect()
    }

    /// The tables of a database by name; `None` if there is no such database.
    pub fn tables(&self, database: &str) -> Option<Vec<String>> {
        Some(self.inner.state().schemas.tables(database)?.names())
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

    /// How many series each database has; none are counted without a limit.
    pub fn series(&self) -> Vec<(String, usize)> {
        self.inner.series.as_ref().map(|series| series.counts()).unwrap_or_default()
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
