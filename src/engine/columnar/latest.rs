//! The newest rows of each series, and what is kept of them: enough to say what every series was last,
//! and which there are, without reading everything that is older.
//!
//! Of each series (all tags) a digest has the row of the last time, and for each field the last row
//! that has a value of it. It may have more. Whoever puts the digests of all parts of a table
//! together has, for the last time of a series, every part's row of it: a part whose own last row is
//! another one has none there, or a later one.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
};

use arrow_array::{Array, RecordBatch};
use arrow_schema::{ArrowError, SchemaRef};

use super::{
    data_file::DataFile,
    lock,
    memtable::Rows,
    merge::{bytes, conform, in_order, merge, series, tags, times},
};

/// Bytes of digests that are kept.
pub(super) const KEPT_BYTES: usize = 64 << 20;
/// A digest with a larger part of the rows than this is not worth it ...
const WORTH: usize = 4;
/// ... unless it is that small.
const SMALL_ROWS: usize = 1024;
/// Digests of single batches are put together once they have this many rows.
const PENDING_ROWS: usize = 8_192;

/// Makes the digest of one part from its rows, in any order; each point once.
#[derive(Debug)]
pub(super) struct Digest {
    schema: SchemaRef,
    /// The digest so far, and those of batches that came since.
    batches: Vec<RecordBatch>,
    /// Rows of the digest so far.
    condensed: usize,
    /// Rows behind it.
    pending: usize,
    most: usize,
}

impl Digest {
    /// For a part with so many rows, in the columns of its table.
    pub(super) fn new(schema: &SchemaRef, rows: u64) -> Self {
        let most = usize::try_from(rows).unwrap_or(usize::MAX) / WORTH;
        Self {
            schema: schema.clone(),
            batches: Vec::new(),
            condensed: 0,
            pending: 0,
            most: most.max(SMALL_ROWS),
        }
    }

    /// Takes more rows; false once there are so many series that no digest is worth it.
    ///
    /// # Errors
    /// A column does not have its type.
    pub(super) fn push(&mut self, batch: &RecordBatch) -> Result<bool, ArrowError> {
        if batch.num_rows() == 0 {
            return Ok(true);
        }
        let newest = newest(&self.schema, &[batch])?;
        self.pending += newest.num_rows();
        self.batches.push(newest);
        if self.pending >= self.condensed.max(PENDING_ROWS) {
            self.condense()?;
        }
        Ok(self.condensed <= self.most)
    }

    /// The digest, by time; `None` if it is not worth it.
    ///
    /// # Errors
    /// As [`Digest::push`].
    pub(super) fn finish(mut self) -> Result<Option<Arc<Rows>>, ArrowError> {
        self.condense()?;
        match self.batches.pop() {
            Some(batch) if batch.num_rows() <= self.most => Ok(Some(Arc::new(Rows::of_points(batch)?))),
            Some(_) => Ok(None),
            None => Ok(Some(Arc::new(Rows::of_points(RecordBatch::new_empty(self.schema))?))),
        }
    }

    fn condense(&mut self) -> Result<(), ArrowError> {
        if !self.batches.is_empty() {
            let batches = std::mem::take(&mut self.batches);
            let newest = newest(&self.schema, &batches.iter().collect::<Vec<_>>())?;
            (self.condensed, self.pending) = (newest.num_rows(), 0);
            self.batches.push(newest);
        }
        Ok(())
    }
}

/// The newest rows of each series in these batches, by time.
fn newest(schema: &SchemaRef, batches: &[&RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let of_rows = series(schema, batches)?;
    let times = batches.iter().map(|batch| times(batch)).collect::<Result<Vec<_>, _>>()?;
    let count = of_rows.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    // What a row is found by, and before all its time: the greatest is the newest.
    let mut kept: Vec<(i64, usize, usize)> = Vec::with_capacity(count);
    let mut keep = |valid: &dyn Fn(usize, usize) -> bool| {
        let mut last: Vec<Option<(i64, usize, usize)>> = vec![None; count];
        for (batch, (series, times)) in of_rows.iter().zip(&times).enumerate() {
            for (row, (series, &time)) in series.iter().zip(*times).enumerate() {
                let Some(last) = last.get_mut(*series as usize) else { continue };
                if last.is_none_or(|last| last < (time, batch, row)) && valid(batch, row) {
                    *last = Some((time, batch, row));
                }
            }
        }
        kept.extend(last.into_iter().flatten());
    };
    keep(&|_, _| true);
    let identity: Vec<usize> = tags(schema).chain([0]).collect();
    for column in (0..schema.fields().len()).filter(|column| !identity.contains(column)) {
        let values: Vec<_> = batches.iter().map(|batch| batch.column(column)).collect();
        if values.iter().any(|values| values.null_count() > 0) {
            keep(&|batch, row| values.get(batch).is_some_and(|values| values.is_valid(row)));
        }
    }
    kept.sort_unstable();
    kept.dedup();
    let order: Vec<_> = kept.into_iter().map(|(_, batch, row)| (batch, row)).collect();
    let batches: Vec<RecordBatch> = batches.iter().map(|batch| (*batch).clone()).collect();
    in_order(&batches, &order)
}

/// The digest of several parts, of their digests in the order in which they were written. What a digest
/// has to have is in one of theirs.
///
/// # Errors
/// A column does not have its type.
pub(super) fn together(schema: &SchemaRef, digests: &[Arc<Rows>]) -> Result<Arc<Rows>, ArrowError> {
    let batches = digests.iter().map(|digest| conform(digest.batch(), schema));
    let points = merge(schema, &batches.collect::<Result<Vec<_>, _>>()?)?;
    let newest = match points.is_empty() {
        true => RecordBatch::new_empty(schema.clone()),
        false => newest(schema, &points.iter().collect::<Vec<_>>())?,
    };
    Ok(Arc::new(Rows::of_points(newest)?))
}

/// Digests of files, which never change: what was used last stays.
#[derive(Debug, Default)]
pub(super) struct Digests {
    kept: Mutex<Kept>,
    /// Held while one is made: those who ask for the same at one time find it then.
    pub(super) making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Kept {
    of: HashMap<PathBuf, Entry>,
    bytes: usize,
    /// Counts uses.
    now: u64,
}

#[derive(Debug)]
struct Entry {
    file: Weak<DataFile>,
    /// `None`: it is not worth it.
    digest: Option<Arc<Rows>>,
    /// Of this file and some that were written behind it.
    run: Option<Run>,
    bytes: usize,
    used: u64,
}

/// Files in the order in which they were written, and the digest of them together.
#[derive(Debug)]
struct Run {
    files: Arc<[PathBuf]>,
    digest: Arc<Rows>,
    bytes: usize,
}

impl Digests {
    /// The digest of a file, if it was made; within, `None` if none is worth it.
    pub(super) fn get(&self, file: &DataFile) -> Option<Option<Arc<Rows>>> {
        let mut kept = lock(&self.kept);
        kept.now += 1;
        let now = kept.now;
        let entry = kept.of.get_mut(&file.path)?;
        entry.used = now;
        Some(entry.digest.clone())
    }

    /// Keeps a digest, if need be instead of others.
    ///
    /// # Errors
    /// Its length overflows.
    pub(super) fn keep(&self, file: &Arc<DataFile>, digest: Option<&Arc<Rows>>) -> Result<(), ArrowError> {
        // What it takes to know that there is none counts too.
        let bytes = digest.map(|rows| bytes(rows.batch())).transpose()?.unwrap_or(0) + size_of::<Entry>();
        let mut kept = lock(&self.kept);
        kept.now += 1;
        let (file_of, digest, used) = (Arc::downgrade(file), digest.cloned(), kept.now);
        let entry = Entry { file: file_of, digest, run: None, bytes, used };
        kept.bytes += bytes;
        if let Some(before) = kept.of.insert(file.path.clone(), entry) {
            kept.bytes -= before.bytes;
        }
        kept.make_room();
        Ok(())
    }

    /// The files of the run that begins with this one and was kept last, and their digest.
    pub(super) fn run(&self, first: &DataFile) -> Option<(Arc<[PathBuf]>, Arc<Rows>)> {
        let mut kept = lock(&self.kept);
        kept.now += 1;
        let now = kept.now;
        let entry = kept.of.get_mut(&first.path)?;
        let run = entry.run.as_ref()?;
        entry.used = now;
        Some((run.files.clone(), run.digest.clone()))
    }

    /// Keeps the digest of files together, with that of the first of them and as long as that, in the place
    /// of another one that begins with it.
    ///
    /// # Errors
    /// Its length overflows.
    pub(super) fn keep_run(&self, files: &[Arc<DataFile>], digest: &Arc<Rows>) -> Result<(), ArrowError> {
        let paths: Arc<[PathBuf]> = files.iter().map(|file| file.path.clone()).collect();
        let names: usize = paths.iter().map(|path| path.as_os_str().len() + size_of::<PathBuf>()).sum();
        let bytes = bytes(digest.batch())? + names;
        let mut kept = lock(&self.kept);
        kept.now += 1;
        let now = kept.now;
        let Some(entry) = files.first().and_then(|first| kept.of.get_mut(&first.path)) else { return Ok(()) };
        // Before the digests of the others, which are not needed while it is there.
        entry.used = now;
        let run = Run { files: paths, digest: digest.clone(), bytes };
        let before = entry.run.replace(run).map_or(0, |before| before.bytes);
        entry.bytes = entry.bytes + bytes - before;
        kept.bytes = kept.bytes + bytes - before;
        kept.make_room();
        Ok(())
    }
}

impl Kept {
    /// Of files that are gone first, then of those that were not used for the longest time.
    fn make_room(&mut self) {
        let gone = self.of.extract_if(|_, entry| entry.file.strong_count() == 0).map(|(_, e)| e.bytes).sum();
        self.bytes = self.bytes.saturating_sub(gone);
        while self.bytes > KEPT_BYTES {
            let oldest = self.of.iter().min_by_key(|(_, entry)| entry.used).map(|(path, _)| path.clone());
            let Some(entry) = oldest.and_then(|path| self.of.remove(&path)) else { break };
            self.bytes -= entry.bytes;
        }
    }
}
