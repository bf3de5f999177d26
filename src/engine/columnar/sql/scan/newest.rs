//! Digests in the place of parts, for a scan that asks for no more than what each series was last.

use std::{path::PathBuf, sync::Arc};

use datafusion::{error::Result, execution::TaskContext};
use futures::StreamExt;
use tokio::time::{Duration, Instant, timeout_at};

use super::{Part, Reading, Scan, Source};
use crate::engine::columnar::{
    data_file::DataFile,
    latest::{Digest, KEPT_BYTES, together},
    memtable::Rows,
    merge::bytes,
};

/// How long a query makes digests of files, about: what it does not come to is read as it lies.
const MAKING_TIME: Duration = Duration::from_secs(2);
/// Digests that are put together at a time: planning can be stopped in between.
const TOGETHER: usize = 8;
/// Bytes of digests that a scan puts in the place of parts: half of what is kept, so that one that is asked
/// again and again finds all of its own.
const DIGESTS_OF_A_QUERY: usize = KEPT_BYTES / 2;

/// Files that were written one after the other and of which the same is gone.
#[derive(Debug, Default)]
struct Run {
    floor: i64,
    files: Vec<Arc<DataFile>>,
    /// Of so many of them, from the first on.
    known: Option<(usize, Arc<Rows>)>,
    /// Of each of the others.
    digests: Vec<Arc<Rows>>,
}

impl Scan<'_> {
    /// Puts digests in the place of parts, as many as are worth it and fit the memory of a query. Those
    /// that have to be made first are made for a while; the next query goes on.
    pub(super) async fn shrink(&self, parts: &[Part], context: &Arc<TaskContext>) -> Result<Vec<Part>> {
        let until = Instant::now() + MAKING_TIME;
        let (mut room, mut full) = (DIGESTS_OF_A_QUERY, false);
        let (mut shrunk, mut run) = (Vec::with_capacity(parts.len()), Run::default());
        let mut rest = parts;
        while let Some((part, behind)) = rest.split_first() {
            if run.files.is_empty()
                && let Some((begun, bytes)) = self.begun(rest)?
                && bytes <= room
            {
                room -= bytes;
                rest = rest.get(begun.files.len()..).unwrap_or_default();
                run = begun;
                continue;
            }
            rest = behind;
            let newest = match &part.source {
                Source::Rows(rows) => rows.newest()?,
                Source::File(file) => match self.table.digests.get(file) {
                    Some(made) => made,
                    // One that is not used would only push out others that are.
                    None if full => None,
                    None => self.digest(file, context, until).await?,
                },
            };
            let taken = newest.as_ref().map(|newest| bytes(newest.batch())).transpose()?;
            full |= taken.is_some_and(|bytes| bytes > room);
            let newest = newest.filter(|_| taken.is_some_and(|bytes| bytes <= room));
            room -= taken.filter(|_| newest.is_some()).unwrap_or(0);
            match (&part.source, newest) {
                (Source::File(file), Some(newest)) => {
                    if run.floor != part.floor {
                        shrunk.extend(self.together(std::mem::take(&mut run)).await?);
                    }
                    run.floor = part.floor;
                    run.files.push(file.clone());
                    run.digests.push(newest);
                }
                (Source::Rows(_), Some(newest)) => {
                    shrunk.extend(self.together(std::mem::take(&mut run)).await?);
                    shrunk.push(Part { source: Source::Rows(newest), floor: part.floor });
                }
                (_, None) => {
                    shrunk.extend(self.together(std::mem::take(&mut run)).await?);
                    shrunk.push(part.clone());
                }
            }
        }
        shrunk.extend(self.together(run).await?);
        Ok(shrunk)
    }

    /// The run that is kept and that these parts begin with, and the bytes of its digest.
    fn begun(&self, parts: &[Part]) -> Result<Option<(Run, usize)>> {
        let Some(Part { source: Source::File(first), floor }) = parts.first() else { return Ok(None) };
        let Some((paths, digest)) = self.table.digests.run(first) else { return Ok(None) };
        let same = |(part, path): (&Part, &PathBuf)| match &part.source {
            Source::File(file) if part.floor == *floor && file.path == *path => Some(file.clone()),
            _ => None,
        };
        let files: Vec<_> = parts.iter().zip(paths.iter()).map_while(same).collect();
        if files.len() < paths.len() {
            return Ok(None);
        }
        let bytes = bytes(digest.batch())?;
        let known = Some((files.len(), digest));
        Ok(Some((Run { floor: *floor, files, known, digests: Vec::new() }, bytes)))
    }

    /// One part in the place of files that were written one after the other.
    async fn together(&self, run: Run) -> Result<Option<Part>> {
        let known = run.known.as_ref().map_or(0, |(files, _)| *files);
        let mut digest = run.known.map(|(_, digest)| digest);
        for some in run.digests.chunks(TOGETHER) {
            let some: Vec<_> = digest.take().into_iter().chain(some.iter().cloned()).collect();
            digest = Some(match some.as_slice() {
                [alone] => alone.clone(),
                some => together(&self.table.schema, some)?,
            });
            // The query may be over.
            tokio::task::yield_now().await;
        }
        let Some(digest) = digest else { return Ok(None) };
        if known < run.files.len() && run.files.len() > 1 {
            self.table.digests.keep_run(&run.files, &digest)?;
        }
        Ok(Some(Part { source: Source::Rows(digest), floor: run.floor }))
    }

    /// Makes the digest of a file and keeps it; `None` if it is not worth it, or there is no time.
    async fn digest(
        &self,
        file: &Arc<DataFile>,
        context: &Arc<TaskContext>,
        until: Instant,
    ) -> Result<Option<Arc<Rows>>> {
        let digests = &self.table.digests;
        if Instant::now() >= until {
            return Ok(None);
        }
        let Ok(_making) = timeout_at(until, digests.making.lock()).await else { return Ok(None) };
        if let Some(made) = digests.get(file) {
            return Ok(made);
        }
        let schema = &self.table.schema;
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let rows = self.files(&[Reading::whole(file)], &columns, None, None, &Arc::default())?;
        let mut rows = rows.execute(0, context.clone())?;
        let mut digest = Digest::new(schema, file.entry.rows);
        let mut worth = true;
        while worth && let Some(batch) = rows.next().await.transpose()? {
            worth = digest.push(&batch)?;
            // What lies in memory never makes it wait, and the query may be over.
            tokio::task::yield_now().await;
        }
        let made = if worth { digest.finish()? } else { None };
        digests.keep(file, made.as_ref())?;
        Ok(made)
    }
}
