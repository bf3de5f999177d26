//! Which files are worth putting together.
//!
//! Files are compared with those of the same **span**: the day that a file lies in, or the least
//! multiple of 64 days by powers that holds it whole, as flushes cut them. In a span:
//!
//! - **Open** (the table's newest point is not past its end by an hour): files in the order of writing,
//!   none of which is larger than all others together. So a byte is written again only when its file at
//!   least doubles: as often as the logarithm of the size, and as many files stay.
//! - **Closed**: also files of which the largest has up to nine tenths of all bytes; so late points cost
//!   a span's large file only once a tenth has come together. And a file that a flush made, alone,
//!   so that its rows are by tags.
//!
//! Together they may have as many bytes as there is memory for. Of what is worth it the most files go
//! first, then the fewest bytes. Points must not overtake later writes of the same points, so no file
//! that lies between in the order of writing, and overlaps in time, is left out.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use super::super::{
    data_file::{DAY, DataFile, FileEntry},
    schema::ColumnKind,
    state::TableOnDisk,
};

/// Most files at a time.
const MOST: usize = 16;
/// How far behind the end of a span the newest point is when few more are to be expected in it.
const LATE: i64 = 3_600_000_000_000;
/// Spans are days, or so many times as much, and so on.
const SPANS: i64 = 64;
/// A single file of fewer rows is not worth the while.
const ALONE_ROWS: u64 = 8_192;

/// Which span a file lies in: its length and its number.
type Span = (i64, i64);

/// The files that are most worth it, and their table.
pub(super) fn choose(tables: Vec<TableOnDisk>, most_bytes: u64) -> Option<(TableOnDisk, Vec<Arc<DataFile>>)> {
    let mut best: Option<(Worth, TableOnDisk, Vec<Arc<DataFile>>)> = None;
    for table in tables {
        let has_tags = table.schema.columns().iter().any(|(_, kind)| *kind == ColumnKind::Tag);
        let files: Vec<Candidate> = table.files.iter().map(|file| Candidate::of(file)).collect();
        let Some((worth, run)) = best_run(&files, has_tags, most_bytes) else { continue };
        if best.as_ref().is_none_or(|(other, ..)| worth > *other) {
            let run = run.into_iter().filter_map(|index| table.files.get(index).cloned()).collect();
            best = Some((worth, table, run));
        }
    }
    best.map(|(_, table, run)| (table, run))
}

/// More files are worth more; of as many, fewer bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    files: usize,
    bytes: std::cmp::Reverse<u64>,
}

/// What counts of a file.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    bytes: u64,
    rows: u64,
    range: (i64, i64),
    span: Span,
    by_tags: bool,
    free: bool,
}

impl Candidate {
    fn of(file: &DataFile) -> Self {
        let free = file.damaged.get().is_none() && !file.claimed.load(Ordering::Acquire);
        Self { free, ..Self::of_entry(&file.entry) }
    }

    fn of_entry(entry: &FileEntry) -> Self {
        let range = (entry.min_time, entry.max_time);
        let (bytes, rows, by_tags) = (entry.size, entry.rows, !entry.windows.is_empty());
        Self { bytes, rows, range, span: span(range), by_tags, free: true }
    }

    fn overlaps(&self, range: (i64, i64)) -> bool {
        self.range.0 <= range.1 && range.0 <= self.range.1
    }
}

fn span((first, last): (i64, i64)) -> Span {
    let mut len = DAY;
    while first.div_euclid(len) != last.div_euclid(len) && len < i64::MAX / SPANS {
        len *= SPANS;
    }
    (len, first.div_euclid(len))
}

/// The run of files that is most worth it, by their places.
fn best_run(files: &[Candidate], has_tags: bool, most_bytes: u64) -> Option<(Worth, Vec<usize>)> {
    let newest = files.iter().map(|file| file.range.1).max()?;
    let mut spans: BTreeMap<Span, Vec<usize>> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        spans.entry(file.span).or_default().push(index);
    }
    // Files of two days do not overlap. Those of longer spans may overlap days, and the longest there
    // are may not even hold their files whole.
    let only_days = spans.keys().all(|span| span.0 == DAY);
    let mut best: Option<(Worth, Vec<usize>)> = None;
    for ((len, number), members) in spans {
        let end = number.saturating_add(1).saturating_mul(len);
        let closed = newest >= end.saturating_add(LATE);
        for start in 0..members.len() {
            let rest = members.get(start..).unwrap_or_default();
            let (mut bytes, mut largest) = (0, 0);
            let mut range = (i64::MAX, i64::MIN);
            for (taken, &index) in rest.iter().enumerate().take(MOST) {
                let Some(file) = files.get(index).filter(|file| file.free) else { break };
                bytes += file.bytes;
                largest = largest.max(file.bytes);
                range = (range.0.min(file.range.0), range.1.max(file.range.1));
                let run = rest.get(..=taken).unwrap_or_default();
                if bytes > most_bytes || !(only_days || is_whole(files, run, range)) {
                    break;
                }
                let worth = Worth { files: run.len(), bytes: std::cmp::Reverse(bytes) };
                let is_worth = match (run.len(), closed) {
                    (1, true) => has_tags && !file.by_tags && file.rows >= ALONE_ROWS,
                    (1, false) => false,
                    (_, true) => largest * 10 <= bytes * 9,
                    (_, false) => largest * 2 <= bytes,
                };
                if is_worth && best.as_ref().is_none_or(|(other, _)| worth > *other) {
                    best = Some((worth, run.to_vec()));
                }
            }
        }
    }
    best
}

/// Whether nothing that lies between these files in the order of writing overlaps them in time.
fn is_whole(files: &[Candidate], run: &[usize], range: (i64, i64)) -> bool {
    let (Some(&first), Some(&last)) = (run.first(), run.last()) else { return false };
    (first..last).all(|index| run.contains(&index) || files.get(index).is_some_and(|f| !f.overlaps(range)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(day: i64, bytes: u64) -> Candidate {
        let range = (day * DAY, (day + 1) * DAY - 1);
        Candidate { bytes, rows: bytes, range, span: span(range), by_tags: false, free: true }
    }

    const NONE: [usize; 0] = [];

    fn chosen(files: &[Candidate]) -> Vec<usize> {
        best_run(files, true, 1_000_000).map(|(_, run)| run).unwrap_or_default()
    }

    #[test]
    fn spans_are_those_that_flushes_cut() {
        assert_eq!(span((0, DAY - 1)), (DAY, 0));
        assert_eq!(span((-1, -1)), (DAY, -1));
        assert_eq!(span((0, DAY)), (64 * DAY, 0));
        assert_eq!(span((i64::MIN, i64::MAX)).0, 64 * 64 * DAY, "no longer ones");
    }

    #[test]
    fn an_open_day_is_rewritten_only_when_it_doubles() {
        assert_eq!(chosen(&[file(0, 100), file(0, 40), file(0, 20)]), NONE);
        assert_eq!(chosen(&[file(0, 100), file(0, 60), file(0, 41)]), [0, 1, 2]);
        assert_eq!(chosen(&[file(0, 100), file(0, 10), file(0, 10)]), [1, 2]);
        assert_eq!(chosen(&[file(0, 600_000), file(0, 600_000)]), NONE, "more than there is memory for");
        let many: Vec<_> = (0..40).map(|_| file(0, 1)).collect();
        assert_eq!(chosen(&many).len(), MOST);
    }

    #[test]
    fn a_closed_day_becomes_one_file() {
        let later = file(3, 1);
        assert_eq!(chosen(&[file(0, 100), file(0, 40), file(0, 20), later]), [0, 1, 2]);
        assert_eq!(chosen(&[file(0, 1_000), file(0, 9), file(0, 3), later]), [1, 2], "late points wait");
        assert_eq!(chosen(&[file(0, 10_000), later]), [0], "to be sorted by tags");
        let sorted = Candidate { by_tags: true, ..file(0, 10_000) };
        assert_eq!(chosen(&[sorted, later]), NONE);
        assert_eq!(best_run(&[file(0, 10_000), later], false, 1_000_000), None, "no tags");
    }

    #[test]
    fn nothing_overtakes_what_lies_between() {
        let wide = Candidate { range: (0, 10 * DAY), span: span((0, 10 * DAY)), ..file(0, 5) };
        assert_eq!(chosen(&[file(0, 10), file(0, 10), wide]), [0, 1]);
        assert_eq!(chosen(&[file(0, 10), wide, file(0, 10)]), NONE);
        let elsewhere = Candidate { range: (5 * DAY, 10 * DAY), ..wide };
        assert_eq!(chosen(&[file(0, 10), elsewhere, file(0, 10)]), [0, 2]);
        let claimed = Candidate { free: false, ..file(0, 10) };
        assert_eq!(chosen(&[file(0, 10), claimed, file(0, 10)]), NONE);
        assert_eq!(chosen(&[claimed, file(0, 10), file(0, 10)]), [1, 2]);
    }

    #[test]
    fn the_number_of_files_grows_with_the_logarithm_of_what_is_written() {
        let (mut files, mut rewritten, mut seed) = (Vec::new(), 0, 7_u64);
        for flush in 0..4_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            files.push(file(0, 1 + (seed >> 33) % 20));
            while let Some((worth, run)) = best_run(&files, true, 1_000_000) {
                rewritten += worth.bytes.0;
                let merged = file(0, worth.bytes.0);
                files[*run.last().unwrap()] = merged;
                let mut index = 0;
                files.retain(|_| {
                    index += 1;
                    index - 1 == *run.last().unwrap() || !run.contains(&(index - 1))
                });
            }
            assert!(files.len() <= 32, "{} files after {flush} flushes", files.len());
        }
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        assert!(rewritten < bytes * 20, "{rewritten} bytes written again for {bytes}");
    }
}
