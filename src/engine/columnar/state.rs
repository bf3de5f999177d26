//! What the engine knows at one moment, under one lock: the tables, their files and what of them
//! is in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_schema::ArrowError;
use tokio::time::Instant;

use super::{
    batch::Batch,
    data_file::DataFile,
    manifest::Manifest,
    memtable::{Memtable, Rows},
    schema::{Schemas, TableSchema},
};
use crate::{engine::EngineError, types::Lsn};

/// All tables, and the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Last applied record.
    pub(super) applied: Lsn,
    /// Queries have been answered up to here: none is while less is applied.
    pub(super) floor: Lsn,
    /// The columns of every table at that record.
    pub(super) schemas: Schemas,
    databases: BTreeMap<String, BTreeMap<String, Table>>,
    /// The manifest on disk.
    pub(super) manifest: Arc<Manifest>,
    /// The files it names.
    pub(super) committed: Vec<Arc<DataFile>>,
    /// Files that no manifest names any more, to be removed once nothing holds them.
    pub(super) removable: Vec<Arc<DataFile>>,
    /// Copies of manifests that were handed out, removed likewise.
    pub(super) exports: Vec<Arc<PathBuf>>,
    /// When files were last read again because somebody asked for a checkpoint again.
    pub(super) reverified: Option<Instant>,
    /// When the first record was applied that no checkpoint was asked to hold.
    pub(super) oldest: Option<Instant>,
    /// A checkpoint was begun and has not finished: when another try is worth it.
    pub(super) retry_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Table {
    /// The record that made it: tells it from a table of the same name that was dropped.
    since: Lsn,
    /// In the order in which their rows were written, all before `frozen`.
    files: Vec<Arc<DataFile>>,
    /// Handed to a checkpoint that has not finished.
    frozen: Vec<Arc<Rows>>,
    live: Memtable,
    /// First and last record in `frozen` and `live`.
    records: Option<(Lsn, Lsn)>,
    /// First record in `live`.
    live_from: Option<Lsn>,
}

/// One table as a query or a checkpoint sees it.
#[derive(Debug, Clone)]
pub(super) struct TableView {
    /// Its columns.
    pub(super) schema: Arc<TableSchema>,
    /// Its files, in the order in which their rows were written.
    pub(super) files: Vec<Arc<DataFile>>,
    /// Its rows in memory, all written after those in files.
    pub(super) rows: Vec<Arc<Rows>>,
}

/// Everything a checkpoint has to make durable.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) position: Lsn,
    pub(super) schemas: Schemas,
    pub(super) parts: Vec<Part>,
}

/// One table of a checkpoint.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) database: String,
    pub(super) table: String,
    pub(super) view: TableView,
    since: Lsn,
    /// First and last record with rows in memory.
    pub(super) records: (Lsn, Lsn),
}

impl State {
    /// The state that a manifest describes.
    pub(super) fn of(dir: &Path, manifest: Manifest) -> Self {
        let mut state =
            Self { applied: manifest.position, schemas: manifest.schemas.clone(), ..Self::default() };
        for entry in &manifest.files {
            let file = Arc::new(DataFile::new(dir, entry.clone()));
            state.committed.push(file.clone());
            state.table(&entry.database, &entry.table, Lsn::ZERO).files.push(file);
        }
        state.manifest = Arc::new(manifest);
        state
    }

    /// Adds the rows of a batch.
    ///
    /// # Errors
    /// A column has another type than in its table. Such a batch is never let in.
    pub(super) fn append(&mut self, at: Lsn, batch: &Batch) -> Result<(), EngineError> {
        let database = &batch.database;
        for part in &batch.tables {
            let refused =
                |why: String| EngineError::Broken(format!("record {at}, table {:?}: {why}", part.table));
            self.schemas.merge(database, &part.table, &part.schema).map_err(|e| refused(e.to_string()))?;
        }
        for part in &batch.tables {
            let refused =
                |why: String| EngineError::Broken(format!("record {at}, table {:?}: {why}", part.table));
            let Some(schema) = self.schemas.get(database, &part.table).cloned() else {
                return Err(refused("it has no schema".into()));
            };
            let table = self.table(database, &part.table, at);
            table.live.append(&schema, part).map_err(|e| refused(e.to_string()))?;
            table.live_from.get_or_insert(at);
            table.records = Some((table.records.map_or(at, |(first, _)| first), at));
        }
        Ok(())
    }

    /// Forgets a database.
    pub(super) fn drop_database(&mut self, database: &str) {
        self.schemas.remove_database(database);
        self.databases.remove(database);
    }

    /// Bytes of rows that no checkpoint was asked to hold.
    pub(super) fn live_bytes(&self) -> usize {
        self.databases.values().flat_map(BTreeMap::values).map(|table| table.live.bytes()).sum()
    }

    /// A table as it is now, or `None` if there is no such table.
    pub(super) fn view(&mut self, database: &str, name: &str) -> Result<Option<TableView>, ArrowError> {
        let Some(schema) = self.schemas.get(database, name).cloned() else { return Ok(None) };
        let table = self.databases.get_mut(database).and_then(|tables| tables.get_mut(name));
        let (files, rows) = match table {
            Some(table) => {
                let live = table.live.snapshot()?;
                (table.files.clone(), table.frozen.iter().cloned().chain(live).collect())
            }
            None => (Vec::new(), Vec::new()),
        };
        Ok(Some(TableView { schema, files, rows }))
    }

    /// Fixes what a checkpoint holds. What an earlier one that failed was to hold is in it too.
    pub(super) fn freeze(&mut self, retry_at: Instant) -> Result<Frozen, ArrowError> {
        let mut parts = Vec::new();
        for (database, tables) in &mut self.databases {
            for (name, table) in tables {
                table.frozen.extend(table.live.take()?);
                let Some(schema) = self.schemas.get(database, name).cloned() else { continue };
                parts.push(Part {
                    database: database.clone(),
                    table: name.clone(),
                    view: TableView { schema, files: table.files.clone(), rows: table.frozen.clone() },
                    since: table.since,
                    records: table.records.unwrap_or_default(),
                });
                table.live_from = None;
            }
        }
        self.oldest = None;
        self.retry_at = Some(retry_at);
        Ok(Frozen { position: self.applied, schemas: self.schemas.clone(), parts })
    }

    /// A checkpoint is committed: `files` has the files of each of its parts. Only now do queries
    /// see them, and the rows in memory that they hold no more.
    pub(super) fn thaw(&mut self, parts: Vec<Part>, files: Vec<Vec<Arc<DataFile>>>, manifest: Manifest) {
        let committed: Vec<_> = files.iter().flatten().cloned().collect();
        for (part, files) in parts.into_iter().zip(files) {
            let table = self.databases.get_mut(&part.database).and_then(|tables| tables.get_mut(&part.table));
            // Dropped meanwhile, and perhaps made anew: the files belong to nothing that can be seen.
            if let Some(table) = table.filter(|table| table.since == part.since) {
                table.files = files;
                table.frozen.clear();
                table.records = table.live_from.zip(table.records.map(|(_, last)| last));
            }
        }
        self.manifest = Arc::new(manifest);
        let before = std::mem::replace(&mut self.committed, committed);
        self.retire(before);
        self.retry_at = None;
    }

    /// Queues files for removal, but for those that the manifest names.
    pub(super) fn retire(&mut self, files: Vec<Arc<DataFile>>) {
        self.removable.extend(files);
        let named: BTreeSet<&Path> = self.committed.iter().map(|file| file.path.as_path()).collect();
        self.removable.retain(|file| !named.contains(file.path.as_path()));
    }

    /// Takes out the paths that may be removed now.
    pub(super) fn unheld(&mut self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self
            .removable
            .extract_if(.., |file| Arc::strong_count(file) == 1)
            .map(|file| file.path.clone())
            .collect();
        let copies = self.exports.extract_if(.., |copy| Arc::strong_count(copy) == 1);
        paths.extend(copies.map(|copy| copy.as_path().to_owned()));
        paths
    }

    fn table(&mut self, database: &str, name: &str, since: Lsn) -> &mut Table {
        let tables = self.databases.entry(database.to_owned()).or_default();
        tables.entry(name.to_owned()).or_insert_with(|| Table { since, ..Table::default() })
    }
}
