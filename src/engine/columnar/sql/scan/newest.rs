//! Digests in the place of parts, for a scan that asks for no more than what each series was last.

use std::sync::Arc;

use datafusion::{
    error::Result,
    execution::{TaskContext, memory_pool::MemoryConsumer},
};
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
/// Bytes of digests that a scan puts in the place of parts: a third of what is kept, so that one that is asked
/// again and again finds all of its own, and what they are together.
const DIGESTS_OF_A_QUERY: usize = KEPT_BYTES / 3;
/// Putting digests together takes so many times their bytes: the result, and what is made on the way.
const MAKING_BYTES: usize = 4;

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
            let goes_on = matches!(part.source, Source::File(_)) && part.floor == run.floor;
            if !run.files.is_empty() && !goes_on {
                shrunk.extend(self.together(std::mem::take(&mut run), context, until).await?);
            }
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
                    run.floor = part.floor;
                    run.files.push(file.clone());
                    run.digests.push(newest);
                }
                (Source::Rows(_), Some(newest)) => {
                    shrunk.push(Part { source: Source::Rows(newest), floor: part.floor });
                }
                (_, None) => {
                    shrunk.extend(self.together(std::mem::take(&mut run), context, until).await?);
                    shrunk.push(part.clone());
                }
            }
        }
        shrunk.extend(self.together(run, context, until).await?);
        Ok(shrunk)
    }

    /// The run that is kept and that these parts begin with, and the bytes of its digest.
    fn begun(&self, parts: &[Part]) -> Result<Option<(Run, usize)>> {
        let Some(floor) = parts.first().map(|part| part.floor) else { return Ok(None) };
        let files = parts.iter().map_while(|part| match &part.source {
            Source::File(file) if part.floor == floor => Some(file),
            _ => None,
        });
        let Some((known, digest)) = self.kept_run(files.clone()) else { return Ok(None) };
        let bytes = bytes(digest.batch())?;
        let files = files.take(known).cloned().collect();
        Ok(Some((Run { floor, files, known: Some((known, digest)), digests: Vec::new() }, bytes)))
    }

    /// Of how many of these files, from the first on, a digest is kept.
    fn kept_run<'a>(
        &self,
        mut files: impl Iterator<Item = &'a Arc<DataFile>> + Clone,
    ) -> Option<(usize, Arc<Rows>)> {
        let (paths, digest) = self.table.digests.run(files.clone().next()?)?;
        let same = paths.iter().all(|path| files.next().is_some_and(|file| file.path == *path));
        same.then_some((paths.len(), digest))
    }

    /// As few parts as there is time and memory for, in the place of files that were written one after the
    /// other.
    async fn together(&self, mut run: Run, context: &Arc<TaskContext>, until: Instant) -> Result<Vec<Part>> {
        let floor = run.floor;
        let parts = |of: Vec<Arc<Rows>>| {
            of.into_iter().map(|rows| Part { source: Source::Rows(rows), floor }).collect::<Vec<_>>()
        };
        let digests = &self.table.digests;
        // Those who ask for the same at one time find it then.
        let making = match run.digests.is_empty() {
            true => None,
            false => timeout_at(until, digests.making.lock()).await.ok(),
        };
        let known = run.known.as_ref().map_or(0, |(known, _)| *known);
        if making.is_some()
            && let Some((more, digest)) = self.kept_run(run.files.iter())
            && more > known
        {
            run.digests.drain(..more - known);
            run.known = Some((more, digest));
        }
        let mut left: Vec<_> = run.known.map(|(_, digest)| digest).into_iter().chain(run.digests).collect();
        let sizes = left.iter().map(|digest| bytes(digest.batch()));
        let bytes = sizes.sum::<Result<usize, _>>()?;
        let share = MemoryConsumer::new("digests").register(context.memory_pool());
        if left.len() < 2 || making.is_none() || share.try_grow(bytes.saturating_mul(MAKING_BYTES)).is_err() {
            return Ok(parts(left));
        }
        while left.len() > 1 {
            let mut fewer = Vec::with_capacity(left.len().div_ceil(TOGETHER));
            for some in left.chunks(TOGETHER) {
                fewer.push(match some {
                    [alone] => alone.clone(),
                    some => together(&self.table.schema, some)?,
                });
                // The query may be over.
                tokio::task::yield_now().await;
            }
            left = fewer;
            if left.len() > 1 && Instant::now() >= until {
                return Ok(parts(left));
            }
        }
        if let [digest] = left.as_slice() {
            digests.keep_run(&run.files, digest)?;
        }
        Ok(parts(left))
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
