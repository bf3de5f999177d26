//! Which files that overlap in time have no point in common: what such a file holds it holds alone.
//!
//! Several writers interlace their times, so that each file begins a little before the one ahead of it ends,
//! and yet no point is written twice. Files never change, so whether two of them share a point is found out
//! once, by the first query that needs to know, and remembered as long as both are there.

use std::sync::{Arc, OnceLock};

use datafusion::{error::Result, execution::TaskContext};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::time::{Duration, Instant};

use super::{LOOKS, Part, Scan, Source, groups::rows_between};
use crate::engine::columnar::{data_file::DataFile, overlap::Stretch, sql::overlap_exec::repeats};

/// How long a query compares files, about: those that it does not come to are merged as if they shared points.
const COMPARING_TIME: Duration = Duration::from_secs(2);
/// Most rows of two files between the same times that are compared: of those that overlap more, as when old data
/// are written again, most do share points, and to find that out costs as much as to merge them.
const COMPARED_ROWS: u64 = 1 << 18;
/// Most files of a stretch: each is compared with each.
const COMPARED_FILES: usize = 8;

/// Two files, and the times between which both have rows.
struct Pair<'a> {
    one: &'a Arc<DataFile>,
    other: &'a Arc<DataFile>,
    from: i64,
    to: i64,
    /// What this query found out.
    found: OnceLock<bool>,
}

impl Pair<'_> {
    /// Whether they have no point in common, if that is known.
    fn apart(&self) -> Option<bool> {
        self.found.get().copied().or_else(|| self.one.apart_from(self.other))
    }

    /// Whether what both say of their pages is known: to read whole files only to compare them is not worth it.
    fn can_be_compared(&self) -> bool {
        let is_known = |file: &DataFile| file.metadata.get().is_some() || !file.entry.windows.is_empty();
        is_known(self.one) && is_known(self.other)
    }
}

impl Scan<'_> {
    /// Those of the stretches with several parts in which points have to be merged.
    pub(super) async fn merged(
        &self,
        parts: &[Part],
        shared: Vec<Stretch>,
        context: &Arc<TaskContext>,
    ) -> Result<Vec<Stretch>> {
        let until = Instant::now() + COMPARING_TIME;
        let pairs: Vec<Option<Vec<Pair>>> = shared.iter().map(|stretch| pairs(parts, stretch)).collect();
        let unknown = || {
            let each = pairs.iter().flatten().flatten();
            each.filter(|pair| pair.apart().is_none() && pair.can_be_compared())
        };
        // One query at a time, and nobody waits for it: to merge once more is cheaper.
        if unknown().next().is_some()
            && let Ok(_comparing) = self.table.digests.making.try_lock()
        {
            let comparisons: Vec<BoxFuture<'_, Result<()>>> =
                unknown().map(|pair| self.compare(pair, until, context).boxed()).collect();
            let mut comparisons = futures::stream::iter(comparisons).buffer_unordered(LOOKS);
            while let Some(compared) = comparisons.next().await {
                compared?;
            }
        }
        let are_apart =
            |pairs: &Option<Vec<Pair>>| pairs.iter().flatten().all(|pair| pair.apart() == Some(true));
        let stretches = shared.into_iter().zip(&pairs);
        let merged = stretches.filter(|(_, pairs)| pairs.is_none() || !are_apart(pairs));
        Ok(merged.map(|(stretch, _)| stretch).collect())
    }

    /// Finds out whether two files share a point, if it is not too much to read.
    async fn compare(&self, pair: &Pair<'_>, until: Instant, context: &Arc<TaskContext>) -> Result<()> {
        if Instant::now() >= until {
            return Ok(());
        }
        let mut rows = 0;
        for file in [pair.one, pair.other] {
            rows += rows_between(&self.table.disk, file, pair.from, pair.to).await?;
        }
        let repeats = if rows > COMPARED_ROWS {
            Some(true)
        } else {
            // Nothing but what makes a point, and all of it.
            let scan = Scan { projection: Vec::new(), all: None, identity: None, limit: None, ..*self };
            let part = |file: &Arc<DataFile>| Part { source: Source::File(file.clone()), floor: i64::MIN };
            let (one, other) = (part(pair.one), part(pair.other));
            repeats(scan.step(pair.from, pair.to, &[&one, &other])?, until, context).await?
        };
        if let Some(repeats) = repeats {
            pair.one.note_apart(pair.other, !repeats);
            // Somebody else cannot have been faster.
            let _ = pair.found.set(!repeats);
        }
        Ok(())
    }
}

/// The files of a stretch that have rows between the same times; `None` if they cannot all be compared.
fn pairs<'a>(parts: &'a [Part], stretch: &Stretch) -> Option<Vec<Pair<'a>>> {
    if stretch.parts.len() > COMPARED_FILES {
        return None;
    }
    let file = |&at: &usize| match &parts.get(at)?.source {
        Source::File(file) => Some(file),
        Source::Rows(_) => None,
    };
    let files = stretch.parts.iter().map(file).collect::<Option<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for (at, one) in files.iter().enumerate() {
        for other in files.iter().skip(at + 1) {
            let from = one.entry.min_time.max(other.entry.min_time);
            let to = one.entry.max_time.min(other.entry.max_time);
            if from <= to {
                pairs.push(Pair { one, other, from, to, found: OnceLock::new() });
            }
        }
    }
    Some(pairs)
}
