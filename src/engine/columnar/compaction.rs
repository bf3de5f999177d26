//! Compaction: files of one table and one span of time become one file, in the background.
//!
//! Local to a replica: what queries return is the same before and after, and so is the position of
//! the checkpoint. Which files, and when: [`tier`]. How, and in how much memory: [`streams`].
//!
//! The files are claimed, read and verified, merged, and the result is written as a flush writes its
//! files (beside, fsync, footer, rename, directory); then a manifest of the same position names it
//! instead of them. Until then they are in force, and a crash leaves them in force; afterwards they
//! are removed once no query and no export holds them. Flushes go on all the while: they leave
//! claimed files alone. If something else took the files away meanwhile (a drop, an install, an
//! expiry), the result is thrown away.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;

use self::streams::{Input, Merged, Unfit, merge_files};
use super::{
    Inner,
    background::background,
    data_file::{DataFile, FileEntry, sync_names},
    flush::unencodable,
    lock, manifest,
    memtable::width,
    parquet::decoded_groups,
    state::TableOnDisk,
};
use crate::engine::EngineError;

mod streams;
#[cfg(test)]
mod tests;
mod tier;

/// Part of the memory that the files to be merged may take as they lie on disk. As much again goes
/// into the file that is made of them, the rest into rows.
const SHARE_OF_FILES: usize = 4;

/// Compacts the files of one table and span, if there are some that are worth it.
///
/// # Errors
/// The disk fails. Nothing has changed then, or everything.
pub(super) async fn compact(inner: &Arc<Inner>) -> Result<bool, EngineError> {
    let memory = inner.config.compaction_memory;
    let tables = inner.state().tables_on_disk();
    let Some((table, chosen)) = tier::choose(tables, (memory / SHARE_OF_FILES) as u64) else {
        return Ok(false);
    };
    let Some(claim) = Claim::take(inner, chosen) else { return Ok(false) };
    let mut written = None;
    let committed = run(inner, &table, claim, memory, &mut written).await;
    if matches!(committed, Ok(true)) {
        drop(table);
        inner.remove_unheld().await;
    } else {
        // Named by no manifest, or by one that may have reached the disk after all: it goes once a
        // later one is committed, and not before.
        inner.state().retire(written.into_iter().collect());
    }
    // Also without result there was work: perhaps there are other files.
    committed.map(|_| true)
}

async fn run(
    inner: &Arc<Inner>,
    table: &TableOnDisk,
    mut claim: Claim,
    memory: usize,
    written: &mut Option<Arc<DataFile>>,
) -> Result<bool, EngineError> {
    let contents = load(inner, table, &mut claim, memory).await?;
    if contents.is_empty() {
        return Ok(false);
    }
    let inputs: Vec<Input> = std::iter::zip(&claim.files, contents)
        .map(|(file, content)| Input {
            content,
            floor: table.retention.floor_of(&file.entry),
            windows: file.entry.windows.clone(),
            rows: file.entry.rows,
        })
        .collect();
    let (database, name, schema) = (table.database.clone(), table.table.clone(), table.schema.clone());
    let merged = match background(move || Ok(merge_files(&database, &name, &schema, inputs))).await? {
        Ok(merged) => merged,
        Err(Unfit::TooManyAtOnce) => {
            tracing::info!(table = %table.table, "more points at one time than are put together at once");
            claim.keep();
            return Ok(false);
        }
        Err(Unfit::Parquet(error)) => return Err(unencodable(error)),
    };
    if let Some(merged) = merged {
        *written = Some(write(inner, table, &claim.files, merged).await?);
    }
    let committed = commit(inner, table, &claim.files, written.as_ref()).await?;
    if committed {
        // A flush that began before must not take them either.
        claim.keep();
    }
    Ok(committed)
}

/// The contents of the claimed files, verified, as many of them as there is memory for; none if that
/// is not even enough for what is worth it.
async fn load(
    inner: &Inner,
    table: &TableOnDisk,
    claim: &mut Claim,
    memory: usize,
) -> Result<Vec<Bytes>, EngineError> {
    let mut room = memory.saturating_sub(streams::WORKING_MEMORY);
    let wanted = claim.files.len();
    let mut contents = Vec::with_capacity(wanted);
    for file in &claim.files {
        let content = match file.read_checked(&*inner.disk).await {
            Err(error @ EngineError::Damaged(..)) => {
                let _ = file.damaged.set(());
                tracing::error!(%error, "a data file is damaged: it is not compacted, and queries that need it fail");
                return Ok(Vec::new());
            }
            content => content?,
        };
        let groups = decoded_groups(&content, width(&table.schema)).map_err(unencodable)?;
        let rows = groups.and_then(|groups| groups.into_iter().max());
        let cost = rows.and_then(|rows| rows.checked_add(content.len() * 2)).filter(|cost| *cost <= room);
        let Some(cost) = cost else { break };
        room -= cost;
        contents.push(content);
    }
    if contents.len() < wanted.min(2) {
        claim.keep();
        return Ok(Vec::new());
    }
    claim.shrink(contents.len());
    Ok(contents)
}

async fn write(
    inner: &Inner,
    table: &TableOnDisk,
    inputs: &[Arc<DataFile>],
    merged: Merged,
) -> Result<Arc<DataFile>, EngineError> {
    let entries = || inputs.iter().map(|file| &file.entry);
    let entry = FileEntry {
        database: table.database.clone(),
        table: table.table.clone(),
        rows: merged.rows,
        min_time: merged.range.0,
        max_time: merged.range.1,
        min_lsn: entries().map(|entry| entry.min_lsn).min().unwrap_or_default(),
        max_lsn: entries().map(|entry| entry.max_lsn).max().unwrap_or_default(),
        size: 0,
        hash: [0; 32],
        windows: merged.windows,
    };
    let file = Arc::new(DataFile::write(&*inner.disk, &inner.dir, entry, merged.content).await?);
    sync_names(&*inner.disk, &inner.dir, std::slice::from_ref(&file)).await?;
    Ok(file)
}

/// Replaces the inputs by the output; false if they are not all there any more.
async fn commit(
    inner: &Inner,
    table: &TableOnDisk,
    inputs: &[Arc<DataFile>],
    output: Option<&Arc<DataFile>>,
) -> Result<bool, EngineError> {
    let _committing = inner.committing.lock().await;
    let Some(manifest) = inner.state().manifest_with(table, inputs, output) else { return Ok(false) };
    manifest.write(&*inner.disk, &inner.dir.join(manifest::NAME)).await?;
    inner.state().replace(table, inputs, output, manifest);
    let read: u64 = inputs.iter().map(|file| file.entry.size).sum();
    let made = output.map_or(0, |file| file.entry.size);
    let mut totals = lock(&inner.compacted);
    totals.runs += 1;
    totals.files += inputs.len() as u64;
    totals.bytes_read += read;
    totals.bytes_written += made;
    tracing::info!(
        database = %table.database, table = %table.table, files = inputs.len(), bytes = read, into = made,
        "compacted"
    );
    Ok(true)
}

/// Files that flushes and other compactions leave alone while this lives.
struct Claim {
    files: Vec<Arc<DataFile>>,
}

impl Claim {
    /// Claims files, unless a checkpoint is under way, which may have taken them already. One that
    /// begins later sees the claim.
    fn take(inner: &Inner, files: Vec<Arc<DataFile>>) -> Option<Self> {
        // A checkpoint says that it is under way before it looks at files under this lock.
        let _state = inner.state();
        if inner.busy.load(Ordering::Acquire) || files.iter().any(|file| file.claimed.load(Ordering::Acquire))
        {
            return None;
        }
        files.iter().for_each(|file| file.claimed.store(true, Ordering::Release));
        Some(Self { files })
    }

    /// Gives back all but the first `len`.
    fn shrink(&mut self, len: usize) {
        for file in self.files.drain(len.min(self.files.len())..) {
            file.claimed.store(false, Ordering::Release);
        }
    }

    /// Leaves the files claimed for as long as the process runs: they cannot be put together.
    fn keep(&mut self) {
        self.files.clear();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shrink(0);
    }
}
