//! What the engine knows at one moment, under one lock: the tables, their files and what of them
//! is in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_schema::ArrowError;
use tokio::time::Instant;

pub(super) use super::views::{Change, Frozen, Part, TableOnDisk, TableView};
use super::{
    batch::{Points, TablePoints},
    data_file::{DataFile, FileEntry},
    manifest::Manifest,
    memtable::{Memtable, Rows},
    retention::{Retention, Retentions},
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
    /// What databases were told to keep.
    pub(super) retentions: Retentions,
    databases: BTreeMap<String, Tables>,
    /// Bytes of all their live rows: asked for after each record, and there may be many tables.
    live_bytes: usize,
    /// Of those handed to checkpoints, none of which has finished.
    frozen_bytes: usize,
    /// The manifest on disk.
    pub(super) manifest: Arc<Manifest>,
    /// The files it names.
    pub(super) committed: Vec<Arc<DataFile>>,
    /// Counts manifests: two of one position may name different files.
    pub(super) version: u64,
    /// Files that no manifest names any more, to be removed once nothing holds them.
    pub(super) removable: Vec<Arc<DataFile>>,
    /// Copies of manifests that were handed out, removed likewise.
    pub(super) exports: Vec<Arc<PathBuf>>,
    /// When files were last read again because somebody asked for a checkpoint again.
    pub(super) reverified: Option<Instant>,
    /// When the first record was applied that no checkpoint was asked to hold.
    pub(super) oldest: Option<Instant>,
    /// Something was dropped that takes space until the next checkpoint.
    pub(super) dropped: bool,
    /// A checkpoint was begun and has not finished: when another try is worth it.
    pub(super) retry_at: Option<Instant>,
}

/// By a hash: each table of a batch is looked up, and there may be ten thousand.
type Tables = HashMap<String, Table>;

#[derive(Debug, Default)]
struct Table {
    /// The columns of its rows in memory as they were last: the registry's, which is asked only if a batch has others.
    schema: Arc<TableSchema>,
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

impl Table {
    /// The files that are not all gone.
    fn there(&self, retention: &Retention) -> Vec<Arc<DataFile>> {
        let there = |file: &&Arc<DataFile>| file.entry.max_time >= retention.floor_of(&file.entry);
        self.files.iter().filter(there).cloned().collect()
    }
}

/// These files with `output` in the place of the last of `inputs`.
fn replaced(
    files: &[Arc<DataFile>],
    inputs: &[Arc<DataFile>],
    output: Option<&Arc<DataFile>>,
) -> Vec<Arc<DataFile>> {
    let is_input = |file: &Arc<DataFile>| inputs.iter().any(|input| Arc::ptr_eq(file, input));
    let last = files.iter().rposition(is_input);
    let mut after = Vec::with_capacity(files.len());
    for (index, file) in files.iter().enumerate() {
        if !is_input(file) {
            after.push(file.clone());
        } else if Some(index) == last {
            after.extend(output.cloned());
        }
    }
    after
}

impl State {
    /// The state that a manifest describes.
    pub(super) fn of(dir: &Path, manifest: Manifest) -> Self {
        let mut state = Self {
            applied: manifest.position,
            schemas: manifest.schemas.clone(),
            retentions: manifest.retention.clone(),
            ..Self::default()
        };
        for entry in &manifest.files {
            let file = Arc::new(DataFile::new(dir, entry.clone()));
            state.committed.push(file.clone());
            let tables = state.databases.entry(entry.database.clone()).or_default();
            let table = tables.entry(entry.table.clone()).or_default();
            table.files.push(file);
        }
        state.manifest = Arc::new(manifest);
        state
    }

    /// Adds the points of a record, and says whether it brought a table or column.
    ///
    /// # Errors
    /// A column has another type than in its table. Such a batch is never let in.
    pub(super) fn append(&mut self, at: Lsn, points: &Points<'_>) -> Result<bool, EngineError> {
        let database = points.database;
        let refused = |part: &TablePoints<'_>, why: &dyn Display| {
            EngineError::Broken(format!("record {at}, table {:?}: {why}", part.table))
        };
        // A record is applied whole or not at all.
        let parts: &[_] = if points.all_known { &[] } else { &points.tables };
        let mut brought = false;
        for part in parts {
            let brings = self.schemas.brings(database, part.table, &part.schema);
            brought |= brings.map_err(|e| refused(part, &e))?;
        }
        for part in parts.iter().filter(|_| brought) {
            self.schemas.merge(database, part.table, &part.schema).map_err(|e| refused(part, &e))?;
        }
        let tables = match self.databases.get_mut(database) {
            Some(tables) => tables,
            None => self.databases.entry(database.to_owned()).or_default(),
        };
        for part in &points.tables {
            let table = match tables.get_mut(part.table) {
                Some(table) => table,
                None => tables
                    .entry(part.table.to_owned())
                    .or_insert_with(|| Table { since: at, ..Table::default() }),
            };
            if !Arc::ptr_eq(&table.schema, &part.schema) {
                let schema = self.schemas.get(database, part.table);
                table.schema = schema.ok_or_else(|| refused(part, &"it has no schema"))?.clone();
            }
            let before = table.live.bytes();
            table.live.append(&table.schema, part).map_err(|e| refused(part, &e))?;
            let more = table.live.bytes() - before;
            table.live_from.get_or_insert(at);
            table.records = Some((table.records.map_or(at, |(first, _)| first), at));
            self.live_bytes += more;
        }
        Ok(brought)
    }

    /// Forgets a database.
    pub(super) fn drop_database(&mut self, database: &str) {
        self.schemas.remove_database(database);
        self.retentions.remove(database);
        if let Some(tables) = self.databases.remove(database) {
            self.dropped = true;
            let gone: usize = tables.values().map(|table| table.live.bytes()).sum();
            self.live_bytes = self.live_bytes.saturating_sub(gone);
        }
    }

    /// Sets what a database keeps.
    ///
    /// # Errors
    /// Rows in memory cannot be read.
    pub(super) fn set_retention(
        &mut self,
        at: Lsn,
        database: &str,
        keep_ns: Option<i64>,
    ) -> Result<(), ArrowError> {
        let cut = self.retentions.change(database, |retention| retention.set(at, keep_ns));
        let Some(before) = cut else { return Ok(()) };
        for table in self.databases.get_mut(database).into_iter().flat_map(HashMap::values_mut) {
            table.live.keep_from(before)?;
            for rows in &mut table.frozen {
                *rows = rows.not_before(before)?;
            }
        }
        Ok(())
    }

    /// It is so late: what is too old is gone from here on.
    pub(super) fn expire(&mut self, now: i64) {
        self.retentions.change_all(|_, retention| retention.expire(now));
    }

    /// Whether something that is there would be gone at that time. What is in memory counts as if it
    /// were old: it is in a file before long.
    pub(super) fn expiry_due(&self, now: i64) -> bool {
        self.retentions.iter().any(|(database, retention)| {
            let Some(horizon) = retention.next_horizon(now) else { return false };
            self.databases.get(database).into_iter().flat_map(HashMap::values).any(|table| {
                let old = |file: &Arc<DataFile>| {
                    let entry = &file.entry;
                    entry.min_time < horizon && entry.max_time >= retention.floor_of(entry)
                };
                table.records.is_some() || table.files.iter().any(old)
            })
        })
    }

    /// Bytes of rows that no checkpoint was asked to hold.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Bytes of rows that one was asked to hold and does not yet.
    pub(super) fn frozen_bytes(&self) -> usize {
        self.frozen_bytes
    }

    /// A table as it is now, or `None` if there is no such table.
    pub(super) fn view(&mut self, database: &str, name: &str) -> Result<Option<TableView>, ArrowError> {
        let Some(schema) = self.schemas.get(database, name).cloned() else { return Ok(None) };
        let retention = self.retentions.of(database);
        let table = self.databases.get_mut(database).and_then(|tables| tables.get_mut(name));
        let (files, mut rows) = match table {
            Some(table) => {
                let live = table.live.snapshot()?;
                (table.there(&retention), table.frozen.iter().cloned().chain(live).collect())
            }
            None => (Vec::new(), Vec::new()),
        };
        rows.retain(|rows: &Arc<Rows>| rows.range().1 >= retention.floor_of_rows());
        Ok(Some(TableView { schema, files, rows, retention }))
    }

    /// Fixes what a checkpoint holds. What an earlier one that failed was to hold is in it too.
    pub(super) fn freeze(&mut self, retry_at: Instant) -> Result<Frozen, ArrowError> {
        let mut parts = Vec::new();
        for (database, tables) in &mut self.databases {
            let retention = self.retentions.of(database);
            // In order, and so what is made of them.
            let tables: BTreeMap<_, _> = tables.iter_mut().collect();
            for (name, table) in tables {
                table.frozen.extend(table.live.take()?);
                let Some(schema) = self.schemas.get(database, name).cloned() else { continue };
                parts.push(Part {
                    database: database.clone(),
                    table: name.clone(),
                    view: TableView {
                        schema,
                        files: table.there(&retention),
                        rows: table.frozen.clone(),
                        retention: retention.clone(),
                    },
                    since: table.since,
                    records: table.records.unwrap_or_default(),
                });
                table.live_from = None;
            }
        }
        let databases = &self.databases;
        self.retentions.change_all(|database, retention| {
            let tables = databases.get(database).into_iter().flat_map(HashMap::values);
            retention.forget_idle_cuts(tables.flat_map(|table| &table.files).map(|file| &file.entry));
        });
        (self.oldest, self.dropped) = (None, false);
        self.frozen_bytes += std::mem::take(&mut self.live_bytes);
        self.retry_at = Some(retry_at);
        let (schemas, retentions) = (self.schemas.clone(), self.retentions.clone());
        Ok(Frozen { position: self.applied, schemas, retentions, parts })
    }

    /// The files of each part after its change: as they are now, for a compaction may have replaced
    /// some since they were frozen; without those that are all gone.
    pub(super) fn files_after(&self, parts: &[Part], changes: Vec<Change>) -> Vec<Vec<Arc<DataFile>>> {
        let of_part = |(part, change): (&Part, Change)| {
            let table = self.databases.get(&part.database).and_then(|tables| tables.get(&part.table));
            // Of a table that was dropped since, what it had when it was frozen.
            let now = table.filter(|table| table.since == part.since).map(|table| &table.files);
            let stays = |file: &&Arc<DataFile>| {
                let gone = file.entry.max_time < part.view.retention.floor_of(&file.entry);
                let replaced = change.taken.iter().chain(&change.new).any(|other| other.path == file.path);
                !gone && !replaced
            };
            let files = now.unwrap_or(&part.view.files).iter().filter(stays).cloned();
            files.chain(change.new.iter().cloned()).collect()
        };
        parts.iter().zip(changes).map(of_part).collect()
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
        self.version += 1;
        let before = std::mem::replace(&mut self.committed, committed);
        self.retire(before);
        (self.retry_at, self.frozen_bytes) = (None, 0);
    }

    /// Every table with the files of it that are not all gone, and its columns, all as of the manifest.
    pub(super) fn tables_on_disk(&self) -> Vec<TableOnDisk> {
        let mut found = Vec::new();
        for (database, tables) in &self.databases {
            let retention = self.manifest.retention.of(database);
            for (name, table) in tables.iter().collect::<BTreeMap<_, _>>() {
                let Some(schema) = self.manifest.schemas.get(database, name) else { continue };
                found.push(TableOnDisk {
                    database: database.clone(),
                    table: name.clone(),
                    schema: schema.clone(),
                    files: table.there(&retention),
                    retention: retention.clone(),
                });
            }
        }
        found
    }

    /// The manifest with these files of a table replaced by one, or by none if they were all gone;
    /// `None` if they are not all there any more, for example after a drop.
    pub(super) fn manifest_with(
        &self,
        table: &TableOnDisk,
        inputs: &[Arc<DataFile>],
        output: Option<&Arc<DataFile>>,
    ) -> Option<Manifest> {
        let now = self.databases.get(&table.database)?.get(&table.table)?;
        let there = |files: &[Arc<DataFile>]| {
            inputs.iter().all(|input| files.iter().any(|file| Arc::ptr_eq(file, input)))
        };
        if !there(&now.files) || !there(&self.committed) {
            return None;
        }
        let mut manifest = Manifest::clone(&self.manifest);
        manifest.files = replaced(&self.committed, inputs, output).iter().map(|f| f.entry.clone()).collect();
        Some(manifest)
    }

    /// A compaction is committed; what [`State::manifest_with`] made is on disk.
    pub(super) fn replace(
        &mut self,
        table: &TableOnDisk,
        inputs: &[Arc<DataFile>],
        output: Option<&Arc<DataFile>>,
        manifest: Manifest,
    ) {
        // The table may have been dropped just now, or be another; then it has none of the inputs.
        let now = self.databases.get_mut(&table.database).and_then(|tables| tables.get_mut(&table.table));
        if let Some(now) = now
            && inputs.iter().all(|input| now.files.iter().any(|file| Arc::ptr_eq(file, input)))
        {
            now.files = replaced(&now.files, inputs, output);
        }
        let committed = replaced(&self.committed, inputs, output);
        self.manifest = Arc::new(manifest);
        self.version += 1;
        let before = std::mem::replace(&mut self.committed, committed);
        self.retire(before);
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

    /// Every database by name with what it keeps and the files of its tables: also one that was only
    /// told what to keep.
    pub(super) fn databases(&self) -> Vec<(String, Retention, Vec<&FileEntry>)> {
        let with_tables = self.schemas.databases().map(|(name, _)| name);
        let names: BTreeSet<&str> = with_tables.chain(self.retentions.iter().map(|(name, _)| name)).collect();
        let files = |retention: &Retention, name: &str| {
            let tables = self.databases.get(name).into_iter().flat_map(HashMap::values);
            let there = tables.flat_map(|table| &table.files).map(|file| &file.entry);
            there.filter(|entry| entry.max_time >= retention.floor_of(entry)).collect()
        };
        names
            .into_iter()
            .map(|name| {
                let retention = self.retentions.of(name);
                let files = files(&retention, name);
                (name.to_owned(), retention, files)
            })
            .collect()
    }
}
