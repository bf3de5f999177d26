//! Digests in the place of parts, for a scan that asks for no more than what each series was last.

use std::sync::Arc;

use datafusion::{error::Result, execution::TaskContext};
use futures::StreamExt;
use tokio::time::{Duration, Instant, timeout_at};

use super::{Part, Reading, Scan, Source};
use crate::engine::columnar::{
    data_file::DataFile,
    latest::{Digest, KEPT_BYTES},
    memtable::Rows,
    merge::bytes,
};

/// How long a query makes digests of files, about: what it does not come to is read as it lies.
const MAKING_TIME: Duration = Duration::from_secs(2);
/// Bytes of digests that a scan puts in the place of parts: half of what is kept, so that one that is asked
/// again and again finds all of its own.
const DIGESTS_OF_A_QUERY: usize = KEPT_BYTES / 2;

impl Scan<'_> {
    /// Puts digests in the place of parts, as many as are worth it and fit the memory of a query. Those
    /// that have to be made first are made for a while; the next query goes on.
    pub(super) async fn shrink(&self, parts: &mut [Part], context: &Arc<TaskContext>) -> Result<()> {
        let until = Instant::now() + MAKING_TIME;
        let (mut room, mut full) = (DIGESTS_OF_A_QUERY, false);
        for part in parts {
            let newest = match &part.source {
                Source::Rows(rows) => rows.newest()?,
                Source::File(file) => match self.table.digests.get(file) {
                    Some(made) => made,
                    // One that is not used would only push out others that are.
                    None if full => None,
                    None => self.digest(file, context, until).await?,
                },
            };
            let Some(newest) = newest else { continue };
            let bytes = bytes(newest.batch())?;
            full |= bytes > room;
            if bytes <= room {
                room -= bytes;
                part.source = Source::Rows(newest);
            }
        }
        Ok(())
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
