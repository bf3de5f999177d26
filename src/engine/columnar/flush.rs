//! A checkpoint: what is in memory becomes Parquet files, then a manifest names them.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};
use bytes::Bytes;

use super::{
    Inner,
    data_file::{DAY, DataFile, FileEntry, sync_names},
    manifest::{self, Manifest},
    merge::{conform, merge, times},
    parquet::{decode, encode},
    state::{Frozen, Part, TableView},
};
use crate::{engine::EngineError, types::Lsn};

/// A flush that touches more days than this in one table makes files of several days.
const MAX_PIECES: usize = 64;
/// Files are put together up to this many rows.
const MAX_ROLLUP_ROWS: u64 = 1 << 20;

/// Makes `frozen` durable with the caller's `sidecar`. If that fails, what was frozen stays in
/// memory and queryable, and the next checkpoint holds it.
pub(super) async fn checkpoint(inner: &Inner, frozen: Frozen, sidecar: Bytes) -> Result<Lsn, EngineError> {
    let mut written = Vec::new();
    let result = commit(inner, frozen, sidecar, &mut written).await;
    if result.is_err() {
        // A manifest that may have reached the disk after all names these files; they go only
        // once a later manifest is committed.
        inner.state().retire(written);
    } else {
        inner.remove_unheld().await;
    }
    result
}

async fn commit(
    inner: &Inner,
    frozen: Frozen,
    sidecar: Bytes,
    written: &mut Vec<Arc<DataFile>>,
) -> Result<Lsn, EngineError> {
    let mut files = Vec::with_capacity(frozen.parts.len());
    for part in &frozen.parts {
        files.push(write_part(inner, part, written).await?);
    }
    sync_names(&*inner.disk, &inner.dir, written).await?;
    let manifest = Manifest {
        position: frozen.position,
        sidecar: sidecar.to_vec(),
        schemas: frozen.schemas,
        files: files.iter().flatten().map(|file| file.entry.clone()).collect(),
    };
    manifest.write(&*inner.disk, &inner.dir.join(manifest::NAME)).await?;
    inner.state().thaw(frozen.parts, files, manifest);
    Ok(frozen.position)
}

/// Writes the rows in memory of one table; returns all its files, old and new.
async fn write_part(
    inner: &Inner,
    part: &Part,
    written: &mut Vec<Arc<DataFile>>,
) -> Result<Vec<Arc<DataFile>>, EngineError> {
    let mut files = part.view.files.clone();
    if part.view.rows.is_empty() {
        return Ok(files);
    }
    let view = part.view.clone();
    let pieces = blocking(move || pieces(&view)).await?;
    for piece in pieces {
        let (mut entry, taken) = plan(part, &files, &piece)?;
        let mut older = Vec::with_capacity(taken.len());
        for file in taken.iter().filter_map(|&index| files.get(index)) {
            older.push(file.read(&*inner.disk).await?);
        }
        let (database, table, schema) =
            (part.database.clone(), part.table.clone(), part.view.schema.to_arrow());
        let (rows, bytes) = blocking(move || {
            let points = roll_up(&schema, older, piece)?;
            let rows = points.iter().map(|batch| batch.num_rows() as u64).sum();
            Ok((rows, encode(&database, &table, &schema, &points).map_err(unencodable)?))
        })
        .await?;
        entry.rows = rows;
        let file = Arc::new(DataFile::write(&*inner.disk, &inner.dir, entry, bytes).await?);
        written.push(file.clone());
        let mut index = 0;
        files.retain(|_| {
            index += 1;
            !taken.contains(&(index - 1))
        });
        files.push(file);
    }
    Ok(files)
}

/// The points in memory, by time and each once, cut at the days' ends.
fn pieces(view: &TableView) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
    let schema = view.schema.to_arrow();
    let rows = view.rows.iter().map(|rows| conform(rows.batch(), &schema));
    let points =
        merge(&schema, &rows.collect::<Result<Vec<_>, _>>().map_err(unmergeable)?).map_err(unmergeable)?;
    let total: usize = points.iter().map(RecordBatch::num_rows).sum();
    let mut pieces: Vec<(i64, Vec<RecordBatch>)> = Vec::new();
    for batch in points {
        let times = times(&batch).map_err(unmergeable)?;
        let mut start = 0;
        while let Some(day) = times.get(start).map(|time| time.div_euclid(DAY)) {
            let len = times.iter().skip(start).take_while(|time| time.div_euclid(DAY) == day).count();
            let slice = batch.slice(start, len);
            match pieces.last_mut() {
                Some((last, piece)) if *last == day => piece.push(slice),
                _ => pieces.push((day, vec![slice])),
            }
            start += len;
        }
    }
    if pieces.len() <= MAX_PIECES {
        return Ok(pieces.into_iter().map(|(_, piece)| piece).collect());
    }
    let mut wide: Vec<Vec<RecordBatch>> = vec![Vec::new()];
    let mut rows = 0;
    for (_, piece) in pieces {
        if rows * MAX_PIECES >= total {
            wide.push(Vec::new());
            rows = 0;
        }
        rows += piece.iter().map(RecordBatch::num_rows).sum::<usize>();
        if let Some(last) = wide.last_mut() {
            last.extend(piece);
        }
    }
    Ok(wide)
}

/// What the manifest will say of a piece's file (its rows come later), and which of the table's
/// newest files of the same day go into it: enough that every file is larger than those after it
/// put together, so the number of files grows with the logarithm of the number of flushes.
fn plan(
    part: &Part,
    files: &[Arc<DataFile>],
    piece: &[RecordBatch],
) -> Result<(FileEntry, Vec<usize>), EngineError> {
    let mut range = (i64::MAX, i64::MIN);
    for batch in piece {
        let times = times(batch).map_err(unmergeable)?;
        if let (Some(&first), Some(&last)) = (times.first(), times.last()) {
            range = (range.0.min(first), range.1.max(last));
        }
    }
    let mut entry = FileEntry {
        database: part.database.clone(),
        table: part.table.clone(),
        rows: piece.iter().map(|batch| batch.num_rows() as u64).sum(),
        min_time: range.0,
        max_time: range.1,
        min_lsn: part.records.0,
        max_lsn: part.records.1,
        size: 0,
        hash: [0; 32],
    };
    let mut taken = Vec::new();
    let day = entry.min_time.div_euclid(DAY);
    if !entry.is_one_day() {
        return Ok((entry, taken));
    }
    for (index, file) in files.iter().enumerate().rev() {
        let other = &file.entry;
        if other.max_time.div_euclid(DAY) < day || other.min_time.div_euclid(DAY) > day {
            continue;
        }
        // Whatever overlaps this day and is not taken ends the run: points must not overtake
        // later writes of the same points.
        if !other.is_one_day() || other.rows > entry.rows * 2 || other.rows + entry.rows > MAX_ROLLUP_ROWS {
            break;
        }
        taken.push(index);
        entry.rows += other.rows;
        entry.min_time = entry.min_time.min(other.min_time);
        entry.max_time = entry.max_time.max(other.max_time);
        entry.min_lsn = entry.min_lsn.min(other.min_lsn);
    }
    taken.reverse();
    Ok((entry, taken))
}

/// The points of older files and of a newer piece.
fn roll_up(
    schema: &SchemaRef,
    older: Vec<Bytes>,
    newer: Vec<RecordBatch>,
) -> Result<Vec<RecordBatch>, EngineError> {
    if older.is_empty() {
        return Ok(newer);
    }
    let mut all = Vec::new();
    for file in older {
        let batches =
            decode(file).map_err(|e| EngineError::Damaged("a Parquet file".into(), e.to_string()))?;
        for batch in batches {
            all.push(conform(&batch, schema).map_err(unmergeable)?);
        }
    }
    all.extend(newer);
    merge(schema, &all).map_err(unmergeable)
}

/// Runs CPU-heavy work on a thread of its own where the runtime has threads, so that it does not
/// hold up others; inline where there is only one (simulation).
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let threads =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if !threads {
        return work();
    }
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|e| EngineError::Broken(format!("a flush thread ended early: {e}")))?
}

fn unmergeable(error: ArrowError) -> EngineError {
    EngineError::Broken(format!("rows cannot be merged: {error}"))
}

fn unencodable(error: parquet::errors::ParquetError) -> EngineError {
    EngineError::Broken(format!("rows cannot be written as Parquet: {error}"))
}
