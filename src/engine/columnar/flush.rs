//! A checkpoint: what is in memory becomes Parquet files, then a manifest names them.

use std::sync::{Arc, atomic::Ordering};

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};
use bytes::Bytes;
use parquet::errors::ParquetError;

use super::{
    Inner,
    background::background,
    data_file::{DAY, DataFile, FileEntry, sync_names},
    manifest::{self, Manifest},
    memtable::{Rows, width},
    merge::{bytes, conform, merge, times},
    parquet::{decode, decoded_len, encode},
    retention::not_before,
    state::{Change, Frozen, Part, TableView},
};
use crate::{engine::EngineError, types::Lsn};

/// A flush that touches more days than this in one table makes files of so many days each, and if
/// those are still too many, of so many times so many.
const MAX_PIECES: usize = 64;
/// Files are put together up to this many rows.
const MAX_ROLLUP_ROWS: u64 = 1 << 20;
/// And up to this many bytes of rows in memory, all columns of the table counted.
const MAX_ROLLUP_BYTES: usize = 128 << 20;
/// So many bytes of rows in memory become files at once.
const GROUP_BYTES: usize = 64 << 20;

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
    let mut changes = Vec::with_capacity(frozen.parts.len());
    for part in &frozen.parts {
        changes.push(write_part(inner, part, written).await?);
    }
    sync_names(&*inner.disk, &inner.dir, written).await?;
    // From the look at the files that there are to the manifest that names them, no compaction
    // replaces any.
    let _committing = inner.committing.lock().await;
    let files = inner.state().files_after(&frozen.parts, changes);
    let manifest = Manifest {
        position: frozen.position,
        sidecar: sidecar.to_vec(),
        schemas: frozen.schemas,
        retention: frozen.retentions,
        files: files.iter().flatten().map(|file| file.entry.clone()).collect(),
    };
    manifest.write(&*inner.disk, &inner.dir.join(manifest::NAME)).await?;
    inner.state().thaw(frozen.parts, files, manifest);
    Ok(frozen.position)
}

/// Writes the rows in memory of one table; returns the files that are new and those that they replace.
async fn write_part(
    inner: &Inner,
    part: &Part,
    written: &mut Vec<Arc<DataFile>>,
) -> Result<Change, EngineError> {
    let mut files = part.view.files.clone();
    let mut change = Change::default();
    let schema = part.view.schema.to_arrow();
    for group in groups(&part.view)? {
        let of = schema.clone();
        let (span, pieces) = background(move || pieces(&of, &group)).await?;
        for piece in pieces {
            let mut entry = entry(part, &piece)?;
            let (taken, mut points) = older(inner, part, &files, span, &mut entry, &piece).await?;
            points.extend(piece);
            let (database, table, schema) = (part.database.clone(), part.table.clone(), schema.clone());
            let (points, bytes) = background(move || {
                let points = merge(&schema, &points).map_err(unmergeable)?;
                let bytes = encode(&database, &table, &schema, &points).map_err(unencodable)?;
                Ok((points, bytes))
            })
            .await?;
            // Of what was taken some may be gone: queries answer from these numbers.
            entry.rows = points.iter().map(|batch| batch.num_rows() as u64).sum();
            (entry.min_time, entry.max_time) = range(&points)?;
            drop(points);
            let file = Arc::new(DataFile::write(&*inner.disk, &inner.dir, entry, bytes).await?);
            written.push(file.clone());
            let mut index = 0;
            files.retain(|other| {
                index += 1;
                // Of two files with one content only the later place counts.
                let stays = !taken.contains(&(index - 1)) && other.path != file.path;
                if !stays {
                    change.taken.push(other.clone());
                }
                stays
            });
            files.push(file.clone());
            change.new.push(file);
        }
    }
    change.new.retain(|new| !change.taken.iter().any(|taken| Arc::ptr_eq(taken, new)));
    Ok(change)
}

/// The rows in memory in the order in which they were written, cut where they would take too much
/// with all columns of the table: a batch is held with those that it came with.
fn groups(view: &TableView) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
    let width = width(&view.schema);
    let there = |rows: &Arc<Rows>| not_before(rows.batch(), view.retention.floor_of_rows());
    let mut left = view.rows.iter().rev().map(there).collect::<Result<Vec<_>, _>>().map_err(unmergeable)?;
    left.retain(|batch| batch.num_rows() > 0);
    let mut groups: Vec<Vec<RecordBatch>> = Vec::new();
    let mut room = 0;
    while let Some(batch) = left.pop() {
        let rows = batch.num_rows();
        let bytes = bytes(&batch).map_err(unmergeable)?.saturating_add(rows.saturating_mul(width));
        if bytes > GROUP_BYTES && rows > 1 {
            left.push(batch.slice(rows / 2, rows - rows / 2));
            left.push(batch.slice(0, rows / 2));
            continue;
        }
        match groups.last_mut() {
            Some(group) if bytes <= room => group.push(batch),
            _ => {
                groups.push(vec![batch]);
                room = GROUP_BYTES;
            }
        }
        room = room.saturating_sub(bytes);
    }
    Ok(groups)
}

/// The points of rows, by time and each once, cut at the ends of spans of time, and how long those
/// are in nanoseconds: a day, or more if there would be too many pieces.
fn pieces(schema: &SchemaRef, rows: &[RecordBatch]) -> Result<(i64, Vec<Vec<RecordBatch>>), EngineError> {
    let rows = rows.iter().map(|rows| conform(rows, schema)).collect::<Result<Vec<_>, _>>();
    let points = merge(schema, &rows.map_err(unmergeable)?).map_err(unmergeable)?;
    let mut span = DAY;
    loop {
        let pieces = cut(&points, span)?;
        // All of time has no more pieces than that at the third step.
        if pieces.len() <= MAX_PIECES {
            return Ok((span, pieces));
        }
        span = span.saturating_mul(MAX_PIECES as i64);
    }
}

fn cut(points: &[RecordBatch], span: i64) -> Result<Vec<Vec<RecordBatch>>, EngineError> {
    let mut pieces: Vec<(i64, Vec<RecordBatch>)> = Vec::new();
    for batch in points {
        let times = times(batch).map_err(unmergeable)?;
        let mut start = 0;
        while let Some(at) = times.get(start).map(|time| time.div_euclid(span)) {
            let rest = times.get(start..).unwrap_or_default();
            let len = rest.partition_point(|time| time.div_euclid(span) == at);
            let slice = batch.slice(start, len);
            match pieces.last_mut() {
                Some((last, piece)) if *last == at => piece.push(slice),
                _ => pieces.push((at, vec![slice])),
            }
            start += len;
        }
    }
    Ok(pieces.into_iter().map(|(_, piece)| piece).collect())
}

/// What the manifest will say of a piece's file.
fn entry(part: &Part, piece: &[RecordBatch]) -> Result<FileEntry, EngineError> {
    let range = range(piece)?;
    Ok(FileEntry {
        database: part.database.clone(),
        table: part.table.clone(),
        rows: piece.iter().map(|batch| batch.num_rows() as u64).sum(),
        min_time: range.0,
        max_time: range.1,
        min_lsn: part.records.0,
        max_lsn: part.records.1,
        size: 0,
        hash: [0; 32],
        windows: Vec::new(),
    })
}

/// First and last time of points by time.
fn range(points: &[RecordBatch]) -> Result<(i64, i64), EngineError> {
    let mut range = (i64::MAX, i64::MIN);
    for batch in points {
        let times = times(batch).map_err(unmergeable)?;
        if let (Some(&first), Some(&last)) = (times.first(), times.last()) {
            range = (range.0.min(first), range.1.max(last));
        }
    }
    Ok(range)
}

/// The rows of the table's newest files of the piece's span that go into its file with it, and which
/// those are: enough that every file is larger than those after it put together, so the number of
/// files grows with the logarithm of the number of flushes.
async fn older(
    inner: &Inner,
    part: &Part,
    files: &[Arc<DataFile>],
    span: i64,
    entry: &mut FileEntry,
    piece: &[RecordBatch],
) -> Result<(Vec<usize>, Vec<RecordBatch>), EngineError> {
    let mut room = MAX_ROLLUP_BYTES;
    for batch in piece {
        room = room.saturating_sub(bytes(batch).map_err(unmergeable)?);
    }
    let at = entry.min_time.div_euclid(span);
    let (mut taken, mut loaded) = (Vec::new(), Vec::new());
    for (index, file) in files.iter().enumerate().rev() {
        let other = &file.entry;
        let (first, last) = (other.min_time.div_euclid(span), other.max_time.div_euclid(span));
        if last < at || first > at {
            continue;
        }
        // Whatever overlaps this span and is not taken ends the run: points must not overtake
        // later writes of the same points.
        let inside = first == at && last == at;
        let claimed = file.claimed.load(Ordering::Acquire);
        if !inside || claimed || other.rows > entry.rows * 2 || other.rows + entry.rows > MAX_ROLLUP_ROWS {
            break;
        }
        let Some((batches, bytes)) = load(inner, part, file, room).await else { break };
        room = room.saturating_sub(bytes);
        taken.push(index);
        loaded.push(batches);
        entry.rows += other.rows;
        entry.min_time = entry.min_time.min(other.min_time);
        entry.max_time = entry.max_time.max(other.max_time);
        entry.min_lsn = entry.min_lsn.min(other.min_lsn);
    }
    Ok((taken, loaded.into_iter().rev().flatten().collect()))
}

/// The rows of a file in the columns of its table, and how many bytes they take; `None` if that is
/// more than there is room for, or if they cannot be had. Damage is reported and the file left as it
/// is: queries that need it fail, and what others write does not wait for it.
async fn load(
    inner: &Inner,
    part: &Part,
    file: &Arc<DataFile>,
    room: usize,
) -> Option<(Vec<RecordBatch>, usize)> {
    if file.damaged.get().is_some() || file.entry.size > room as u64 {
        return None;
    }
    let path = file.path.display().to_string();
    let (schema, table) = (part.view.schema.to_arrow(), part.view.schema.clone());
    let floor = part.view.retention.floor_of(&file.entry);
    let loaded = async {
        let content = file.read_checked(&*inner.disk).await?;
        background(move || {
            let damaged = |e: ParquetError| EngineError::Damaged(path.clone(), e.to_string());
            let bytes = decoded_len(&content, width(&table)).map_err(damaged)?;
            let Some(bytes) = bytes.filter(|bytes| *bytes <= room) else { return Ok(None) };
            let batches = decode(content).map_err(damaged)?;
            let there = |batch: &RecordBatch| conform(&not_before(batch, floor)?, &schema);
            let batches = batches.iter().map(there).collect::<Result<Vec<_>, _>>();
            Ok(Some((batches.map_err(unmergeable)?, bytes)))
        })
        .await
    };
    match loaded.await {
        Ok(loaded) => loaded,
        Err(error) => {
            if matches!(error, EngineError::Damaged(..)) {
                let _ = file.damaged.set(());
            }
            tracing::error!(
                file = %file.path.display(),
                %error,
                "a data file cannot be read: it is left out of the checkpoint's tidying, and queries that need it fail"
            );
            None
        }
    }
}

pub(super) fn unmergeable(error: ArrowError) -> EngineError {
    EngineError::Broken(format!("rows cannot be merged: {error}"))
}

pub(super) fn unencodable(error: ParquetError) -> EngineError {
    EngineError::Broken(format!("rows cannot be written as Parquet: {error}"))
}

#[cfg(test)]
mod tests;
