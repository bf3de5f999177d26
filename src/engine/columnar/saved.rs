//! A checkpoint outside of its engine: what a backup takes of it, and how its rows come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow_array::RecordBatch;
use bytes::Bytes;

use super::{
    batch::{self, Batch, BatchError, TableBatch},
    data_file::FileEntry,
    manifest::Manifest,
    merge::conform,
    parquet,
    retention::not_before,
    schema::{TableSchema, check_database_name},
};
use crate::{engine::EngineError, types::Lsn};

/// Rows that are brought back at once.
const ROWS: usize = 8_192;
/// Bytes of a payload that holds more than one row.
const PAYLOAD: usize = 4 << 20;

/// What a manifest says, read and checked.
#[derive(Debug, Clone)]
pub struct Saved {
    manifest: Manifest,
}

/// A database in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedDatabase {
    /// Its name.
    pub name: String,
    /// Age from which on points are gone, ns; `None` for ever.
    pub keep_ns: Option<i64>,
    /// How many tables.
    pub tables: u64,
    /// Rows in its files.
    pub rows: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A data file in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    /// Under the engine's directory, `/` between parts.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 of the content.
    pub hash: [u8; 32],
    /// Whose it is.
    pub database: String,
    /// Rows in it.
    pub rows: u64,
}

impl Saved {
    /// From the bytes of a manifest.
    ///
    /// # Errors
    /// They do not verify.
    pub fn read(manifest: &[u8]) -> Result<Self, EngineError> {
        let manifest = Manifest::decode(manifest)
            .map_err(|why| EngineError::Damaged(super::manifest::NAME.to_owned(), why))?;
        Ok(Self { manifest })
    }

    /// Of these databases only (of all if none is named), with that sidecar.
    #[must_use]
    pub fn pick(&self, databases: Option<&BTreeSet<String>>, sidecar: Bytes) -> Self {
        let mut manifest = self.manifest.clone();
        manifest.sidecar = sidecar.to_vec();
        let Some(wanted) = databases else { return Self { manifest } };
        for SavedDatabase { name, .. } in self.databases() {
            if !wanted.contains(&name) {
                manifest.schemas.remove_database(&name);
                manifest.retention.remove(&name);
            }
        }
        manifest.files.retain(|file| wanted.contains(&file.database));
        Self { manifest }
    }

    /// Bytes that [`Self::read`] takes, and an engine too.
    ///
    /// # Errors
    /// None that is known: what was read can be written.
    pub fn to_bytes(&self) -> Result<Bytes, EngineError> {
        self.manifest.encode()
    }

    /// Everything up to this record is in it.
    pub fn position(&self) -> Lsn {
        self.manifest.position
    }

    /// The databases by name, also those that were only told what to keep.
    pub fn databases(&self) -> Vec<SavedDatabase> {
        let manifest = &self.manifest;
        let told = manifest.retention.iter().map(|(name, _)| name);
        let names: BTreeSet<&str> = manifest.schemas.databases().map(|(name, _)| name).chain(told).collect();
        let mut found: BTreeMap<&str, SavedDatabase> = BTreeMap::new();
        for name in names {
            let database = SavedDatabase {
                name: name.to_owned(),
                keep_ns: manifest.retention.of(name).keep_ns,
                tables: manifest.schemas.tables(name).map_or(0, |tables| tables.len() as u64),
                rows: 0,
                bytes: 0,
            };
            found.insert(name, database);
        }
        for file in &manifest.files {
            if let Some(database) = found.get_mut(file.database.as_str()) {
                database.rows += file.rows;
                database.bytes += file.size;
            }
        }
        found.into_values().collect()
    }

    /// Its data files; those of one table in the order in which their rows were written.
    pub fn files(&self) -> Vec<SavedFile> {
        let file = |entry: &FileEntry| SavedFile {
            name: entry.name(),
            bytes: entry.size,
            hash: entry.hash,
            database: entry.database.clone(),
            rows: entry.rows,
        };
        self.manifest.files.iter().map(file).collect()
    }

    /// The rows of a data file that are not gone, as payloads of writes into `database`. Written in the
    /// order of [`Self::files`] they make the points that the checkpoint had; written again they change
    /// nothing.
    ///
    /// # Errors
    /// No such file, a name that no database has, or content that is not what the manifest says.
    pub fn payloads(
        &self,
        name: &str,
        content: Bytes,
        database: &str,
    ) -> Result<impl Iterator<Item = Result<Bytes, EngineError>> + use<>, EngineError> {
        let damaged = |why: String| EngineError::Damaged(name.to_owned(), why);
        check_database_name(database).map_err(|e| EngineError::Broken(e.to_string()))?;
        let entry = self.manifest.files.iter().find(|entry| entry.name() == name);
        let entry = entry.ok_or_else(|| damaged("the manifest does not name it".into()))?;
        let schema = self.manifest.schemas.get(&entry.database, &entry.table).cloned();
        let schema = schema.ok_or_else(|| damaged("its table has no columns".into()))?;
        let floor = self.manifest.retention.of(&entry.database).floor_of(entry);
        let (table, arrow) = (entry.table.clone(), schema.to_arrow());
        let rows = parquet::read(content, ROWS).map_err(|e| damaged(e.to_string()))?;
        let (name, database) = (name.to_owned(), database.to_owned());
        Ok(rows.flat_map(move |rows| {
            let damaged = |why: String| EngineError::Damaged(name.clone(), why);
            let made = rows
                .and_then(|rows| conform(&rows, &arrow))
                .and_then(|rows| not_before(&rows, floor))
                .map_err(|e| damaged(e.to_string()))
                .and_then(|rows| {
                    let mut made = Vec::new();
                    encode(&database, &table, &schema, rows, &mut made)
                        .map_err(|e| damaged(e.to_string()))?;
                    Ok(made)
                });
            match made {
                Ok(payloads) => payloads.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        }))
    }
}

/// Payloads of these rows, in halves as long as one is too large.
fn encode(
    database: &str,
    table: &str,
    schema: &Arc<TableSchema>,
    rows: RecordBatch,
    made: &mut Vec<Bytes>,
) -> Result<(), BatchError> {
    let count = rows.num_rows();
    if count == 0 {
        return Ok(());
    }
    let part = |rows| TableBatch { table: table.to_owned(), schema: schema.clone(), assigned: 0, rows };
    let payload = batch::encode(&Batch { database: database.to_owned(), tables: vec![part(rows.clone())] })?;
    if payload.len() <= PAYLOAD || count == 1 {
        made.push(payload);
        return Ok(());
    }
    let half = count / 2;
    encode(database, table, schema, rows.slice(0, half), made)?;
    encode(database, table, schema, rows.slice(half, count - half), made)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        disk::RealDisk,
        engine::{
            Operation, StorageEngine,
            columnar::{
                ColumnarEngine,
                tests::{Row, batch, open, table_batch},
            },
        },
    };

    fn at(seq: u64) -> Lsn {
        Lsn::new(1, seq)
    }

    /// Two tables in two databases; points that were written twice, in parts, and a point that is gone.
    async fn filled(dir: &Path) -> std::sync::Arc<ColumnarEngine> {
        let engine = open(std::sync::Arc::new(RealDisk), dir).await;
        let first: [Row; 3] =
            [(10, "a", Some(1.0), None), (20, "a", Some(2.0), Some(3.0)), (5, "b", None, Some(9.0))];
        engine.apply(at(1), &batch("home", &first)).unwrap();
        engine.apply(at(2), &table_batch("away", "mem", &first)).unwrap();
        engine.checkpoint(Bytes::new()).await.unwrap();
        engine
            .apply(at(3), &batch("home", &[(10, "a", None, Some(7.0)), (20, "a", Some(4.0), None)]))
            .unwrap();
        // Nothing is written after it: the file keeps the row that is gone.
        engine.checkpoint(Bytes::new()).await.unwrap();
        engine
            .apply(at(4), &Operation::SetRetention { database: "home".into(), keep_ns: Some(1_000_000_000) })
            .unwrap();
        engine.apply(at(5), &Operation::Expire { now_ns: 1_000_000_006 }).unwrap();
        engine.checkpoint(Bytes::from_static(b"keys")).await.unwrap();
        engine
    }

    async fn saved(engine: &ColumnarEngine) -> (Saved, crate::engine::Export) {
        let export = engine.export().await.unwrap();
        (Saved::read(&std::fs::read(&export.files[0].path).unwrap()).unwrap(), export)
    }

    #[tokio::test]
    async fn one_database_is_picked_and_the_others_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let engine = filled(dir.path()).await;
        let (all, export) = saved(&engine).await;
        assert_eq!(all.files().len() + 1, export.files.len());
        let names: Vec<_> = all.databases().into_iter().map(|db| (db.name, db.keep_ns, db.tables)).collect();
        assert_eq!(names, [("away".to_owned(), None, 1), ("home".to_owned(), Some(1_000_000_000), 1)]);
        let one = all.pick(Some(&BTreeSet::from(["away".to_owned()])), Bytes::from_static(b"other"));
        let bytes = one.to_bytes().unwrap();
        for word in ["home", "cpu", "keys"] {
            assert!(!bytes.windows(4).any(|w| w == word.as_bytes()), "{word} is still in it");
        }
        let again = Saved::read(&bytes).unwrap();
        assert_eq!((again.position(), again.files().len(), again.databases().len()), (at(5), 1, 1));
        assert!(Saved::read(&bytes[..bytes.len() - 1]).is_err());
    }

    #[tokio::test]
    async fn rows_written_again_make_the_same_points_and_twice_no_more() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let engine = filled(from.path()).await;
        let (saved, export) = saved(&engine).await;
        let other = open(std::sync::Arc::new(RealDisk), to.path()).await;
        let mut seq = 0;
        for _ in 0..2 {
            for (file, there) in saved.files().into_iter().zip(&export.files[1..]) {
                assert_eq!((&file.name, file.hash), (&there.name, there.hash));
                let content: Bytes = std::fs::read(&there.path).unwrap().into();
                let database = if file.database == "home" { "again" } else { &file.database };
                for payload in saved.payloads(&file.name, content, database).unwrap() {
                    let (encoding, payload) = (batch::ENCODING, payload.unwrap());
                    other.validate(encoding, &payload).unwrap();
                    other.admit(encoding, &payload).unwrap();
                    seq += 1;
                    other.apply(at(seq), &Operation::Batch { encoding, payload }).unwrap();
                }
            }
        }
        for (database, table, other_name) in [("home", "cpu", "again"), ("away", "mem", "away")] {
            let (_, want) = engine.scan(database, table).await.unwrap().unwrap();
            let (_, have) = other.scan(other_name, table).await.unwrap().unwrap();
            assert_eq!(want, have, "{database}");
        }
        // The point before the horizon is not among them.
        let (_, points) = other.scan("again", "cpu").await.unwrap().unwrap();
        assert_eq!(points.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
        assert!(saved.payloads("data/no", Bytes::new(), "x").is_err());
    }
}
