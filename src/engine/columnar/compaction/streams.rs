//! Merges the rows of files as they are decoded, and cuts them into windows.
//!
//! Every input comes by time ([`Windows`]), some rows at a time; what every input is past is merged in
//! the order of the inputs, which is the order of writing. The result is cut into windows of time, no
//! two of which have a time in common; within a window rows are put by tags and then by time: rows of
//! a series lie together, so pages can be skipped by their tags and times grow by even steps.
//!
//! Memory: the files and the result as they lie on disk, of each input the rows that are held to
//! bring them in the order of time (a row group at most), and [`WORKING_MEMORY`].

use std::{collections::VecDeque, sync::Arc};

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};
use bytes::Bytes;
use parquet::{arrow::arrow_reader::ParquetRecordBatchReader, errors::ParquetError};

use super::super::{
    memtable::width,
    merge::{BATCH_ROWS, Windows, by_tags, bytes, conform, merge, tags, times},
    parquet::{WindowWriter, read},
    retention::not_before,
    schema::TableSchema,
};

/// A window is cut when it has so many rows; in tests so few that small files have several.
const WINDOW_ROWS: usize = if cfg!(test) { 1_024 } else { BATCH_ROWS };
/// But the first and the last window of a file that has several are short: it is at its ends that it
/// overlaps others, and what reaches into an overlap is read twice.
const END_ROWS: usize = WINDOW_ROWS / 8;
/// Or so many bytes of them.
const WINDOW_BYTES: usize = 8 << 20;
/// But points at one time stay together, up to so many windows' worth of them.
const MOST_AT_ONCE: usize = 4;
/// Rows decoded at a time, and bytes that they should not be more than.
const READ: (usize, usize) = (WINDOW_ROWS / 16, 1 << 20);
/// But so many at least.
const READ_LEAST: usize = 64;
/// What merging takes besides files and held rows, with some reserve.
pub(super) const WORKING_MEMORY: usize = (MOST_AT_ONCE + 1) * WINDOW_BYTES;

/// A file to be merged.
pub(super) struct Input {
    /// All of it.
    pub(super) content: Bytes,
    /// Rows before this time are gone.
    pub(super) floor: i64,
    /// First times of its windows, if it has any.
    pub(super) windows: Vec<i64>,
    /// How many points it has.
    pub(super) rows: u64,
}

/// A file made of others.
pub(super) struct Merged {
    /// All of it.
    pub(super) content: Bytes,
    /// How many points.
    pub(super) rows: u64,
    /// First and last time.
    pub(super) range: (i64, i64),
    /// First times of its windows; none if its rows are by time, for want of tags.
    pub(super) windows: Vec<i64>,
}

/// Why files are not merged.
#[derive(Debug)]
pub(super) enum Unfit {
    /// Too many points have one time.
    TooManyAtOnce,
    /// They do not decode, or the result does not encode.
    Parquet(ParquetError),
}

impl From<ParquetError> for Unfit {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

impl From<ArrowError> for Unfit {
    fn from(error: ArrowError) -> Self {
        Self::Parquet(error.into())
    }
}

/// One file of many, given in the order in which they were written; `None` if all points are gone.
///
/// # Errors
/// [`Unfit`].
pub(super) fn merge_files(
    database: &str,
    table: &str,
    schema: &Arc<TableSchema>,
    inputs: Vec<Input>,
) -> Result<Option<Merged>, Unfit> {
    let rows = (READ.1 / (width(schema) + 8)).clamp(READ_LEAST, READ.0);
    let schema = schema.to_arrow();
    let many = inputs.iter().map(|input| input.rows).sum::<u64>() >= 2 * WINDOW_ROWS as u64;
    let sources = inputs.into_iter().map(|input| Source::new(input, rows, &schema));
    let mut sources = sources.collect::<Result<Vec<_>, _>>()?;
    let mut out = Out::new(database, table, &schema, many)?;
    while let Some(rows) = complete_rows(&mut sources)? {
        for points in merge(&schema, &rows)? {
            out.add(&points)?;
        }
    }
    out.finish()
}

/// A file as it is read.
struct Source {
    /// `None` after its end.
    reader: Option<ParquetRecordBatchReader>,
    schema: SchemaRef,
    floor: i64,
    windows: Windows,
    /// Rows by time that were not given yet; no batch is empty.
    read: VecDeque<RecordBatch>,
}

impl Source {
    fn new(input: Input, rows: usize, schema: &SchemaRef) -> Result<Self, Unfit> {
        Ok(Self {
            reader: Some(read(input.content, rows)?),
            schema: schema.clone(),
            floor: input.floor,
            windows: Windows::new(&input.windows),
            read: VecDeque::new(),
        })
    }

    /// Reads until there are more rows, or to the end.
    fn fill(&mut self) -> Result<(), Unfit> {
        let before = self.read.len();
        while let (Some(reader), true) = (&mut self.reader, self.read.len() == before) {
            match reader.next() {
                Some(batch) => {
                    let batch = conform(&not_before(&batch?, self.floor)?, &self.schema)?;
                    self.windows.push(batch, &mut self.read)?;
                }
                None => {
                    self.reader = None;
                    self.windows.finish(&mut self.read)?;
                }
            }
            self.read.retain(|batch| batch.num_rows() > 0);
        }
        Ok(())
    }

    /// The time up to which it may still have rows that were not read; `None` after its end.
    fn last(&self) -> Result<Option<i64>, Unfit> {
        if self.reader.is_none() {
            return Ok(None);
        }
        let last = self.read.back().map(times).transpose()?;
        Ok(last.and_then(|times| times.last().copied()))
    }

    /// Takes out the rows before a time, or all that were read.
    fn take(&mut self, before: Option<i64>, to: &mut Vec<RecordBatch>) -> Result<(), Unfit> {
        while let Some(batch) = self.read.pop_front() {
            let len = match before {
                Some(before) => times(&batch)?.partition_point(|&time| time < before),
                None => batch.num_rows(),
            };
            if len > 0 {
                to.push(batch.slice(0, len));
            }
            if len < batch.num_rows() {
                self.read.push_front(batch.slice(len, batch.num_rows() - len));
                break;
            }
        }
        Ok(())
    }
}

/// Rows of all sources, in their order, up to a time that every source is past; `None` at the end.
fn complete_rows(sources: &mut [Source]) -> Result<Option<Vec<RecordBatch>>, Unfit> {
    for source in sources.iter_mut().filter(|source| source.read.is_empty()) {
        source.fill()?;
    }
    loop {
        let lasts = sources.iter().map(Source::last).collect::<Result<Vec<_>, _>>()?;
        let before = lasts.iter().flatten().min().copied();
        let mut rows = Vec::new();
        for source in sources.iter_mut() {
            source.take(before, &mut rows)?;
        }
        if !rows.is_empty() {
            return Ok(Some(rows));
        }
        if before.is_none() {
            return Ok(None);
        }
        // Whoever holds the others up has to come with more.
        for (source, last) in sources.iter_mut().zip(lasts) {
            if last.is_some() && last == before {
                source.fill()?;
                let held: usize = source.read.iter().map(RecordBatch::num_rows).sum();
                if held > MOST_AT_ONCE * WINDOW_ROWS {
                    return Err(Unfit::TooManyAtOnce);
                }
            }
        }
    }
}

/// The file that is made.
struct Out {
    writer: WindowWriter,
    schema: SchemaRef,
    /// The window that is open: by time, no batch is empty.
    held: Vec<RecordBatch>,
    held_rows: usize,
    held_bytes: usize,
    windows: Vec<i64>,
    /// There are likely to be several.
    many: bool,
    rows: u64,
    range: (i64, i64),
}

impl Out {
    fn new(database: &str, table: &str, schema: &SchemaRef, many: bool) -> Result<Self, Unfit> {
        Ok(Self {
            many,
            writer: WindowWriter::new(database, table, schema)?,
            schema: schema.clone(),
            held: Vec::new(),
            held_rows: 0,
            held_bytes: 0,
            windows: Vec::new(),
            rows: 0,
            range: (i64::MAX, i64::MIN),
        })
    }

    /// Adds points by time, none before those added earlier.
    fn add(&mut self, points: &RecordBatch) -> Result<(), Unfit> {
        let mut start = 0;
        while start < points.num_rows() {
            let len = READ.0.min(points.num_rows() - start);
            let part = points.slice(start, len);
            start += len;
            let most = if self.many && self.windows.is_empty() { END_ROWS } else { WINDOW_ROWS };
            let full = self.held_rows >= most || self.held_bytes >= WINDOW_BYTES;
            if !full {
                self.hold(part)?;
                continue;
            }
            // The window ends where time goes on.
            let times = times(&part)?;
            let same = times.partition_point(|&time| time <= self.range.1);
            self.hold(part.slice(0, same))?;
            if same < part.num_rows() {
                self.close()?;
                self.hold(part.slice(same, part.num_rows() - same))?;
            } else if self.held_rows > MOST_AT_ONCE * WINDOW_ROWS
                || self.held_bytes > MOST_AT_ONCE * WINDOW_BYTES
            {
                return Err(Unfit::TooManyAtOnce);
            }
        }
        Ok(())
    }

    fn hold(&mut self, part: RecordBatch) -> Result<(), Unfit> {
        let times = times(&part)?;
        let (Some(&first), Some(&last)) = (times.first(), times.last()) else { return Ok(()) };
        self.range = (self.range.0.min(first), self.range.1.max(last));
        self.held_rows += part.num_rows();
        self.held_bytes += bytes(&part)?;
        self.held.push(part);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Unfit> {
        let held = std::mem::take(&mut self.held);
        let Some(&start) = held.first().map(times).transpose()?.and_then(<[i64]>::first) else {
            return Ok(());
        };
        self.writer.add(&by_tags(&self.schema, &held)?)?;
        self.windows.push(start);
        self.rows += self.held_rows as u64;
        (self.held_rows, self.held_bytes) = (0, 0);
        Ok(())
    }

    /// Takes the last rows out of the window that is open, for one of their own.
    fn take_end(&mut self) -> Result<Vec<RecordBatch>, Unfit> {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        let mut behind = self.held_rows;
        let mut cut = None;
        for batch in self.held.iter().rev() {
            let times = times(batch)?;
            behind -= times.len();
            // Time goes on where one window ends and the next begins.
            if cut.is_none() && self.held_rows - behind >= END_ROWS {
                cut = times.get(self.held_rows - END_ROWS - behind).copied();
            }
            let at = cut.map_or(0, |cut| times.partition_point(|&time| time < cut));
            start.push(batch.slice(0, at));
            end.push(batch.slice(at, batch.num_rows() - at));
        }
        start.retain(|batch| batch.num_rows() > 0);
        end.retain(|batch| batch.num_rows() > 0);
        start.reverse();
        end.reverse();
        self.held_rows = start.iter().map(RecordBatch::num_rows).sum();
        self.held = start;
        Ok(end)
    }

    fn finish(mut self) -> Result<Option<Merged>, Unfit> {
        if self.many && self.held_rows > 2 * END_ROWS {
            let end = self.take_end()?;
            self.close()?;
            self.held_rows = end.iter().map(RecordBatch::num_rows).sum();
            self.held = end;
        }
        self.close()?;
        if self.rows == 0 {
            return Ok(None);
        }
        let windows = if tags(&self.schema).next().is_some() { self.windows } else { Vec::new() };
        let content = self.writer.finish()?;
        Ok(Some(Merged { content, rows: self.rows, range: self.range, windows }))
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Float64Array, StringArray, TimestampNanosecondArray, cast::AsArray};

    use super::*;
    use crate::engine::columnar::{
        parquet::{decode, encode},
        retention::BEGINNING,
        schema::{ColumnKind, FieldType},
    };

    fn schema() -> Arc<TableSchema> {
        let columns = [("host", ColumnKind::Tag), ("v", ColumnKind::Field(FieldType::Float))];
        Arc::new(TableSchema::new(columns.map(|(name, kind)| (name.to_owned(), kind))).unwrap())
    }

    /// A file as a flush makes it: so many points a step apart, of hosts in turn.
    fn file(count: i64, step: i64, hosts: i64) -> Input {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from_iter_values((0..count).map(|n| n * step))),
            Arc::new(StringArray::from_iter((0..count).map(|n| match n % hosts {
                0 => None,
                host => Some(format!("h{host}")),
            }))),
            Arc::new(Float64Array::from_iter_values((0..count).map(|n| n as f64))),
        ];
        let rows = RecordBatch::try_new(schema().to_arrow(), columns).unwrap();
        let content = encode("db", "t", &schema().to_arrow(), &[rows]).unwrap();
        Input { content, floor: BEGINNING, windows: Vec::new(), rows: count as u64 }
    }

    #[test]
    fn windows_have_no_time_in_common_and_are_by_tags() {
        let merged = merge_files("db", "t", &schema(), vec![file(4_000, 7, 10), file(10, 3, 2)]);
        let merged = merged.unwrap().unwrap();
        // Time 0 without a host is in both, and times 3*7k of the second that the first has too, if
        // their hosts are the same.
        assert_eq!((merged.range, merged.windows.len()), ((0, 3_999 * 7), 6));
        let read =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(merged.content.clone());
        let metadata = read.unwrap().metadata().clone();
        let rows: Vec<i64> = metadata.row_groups().iter().map(|group| group.num_rows()).collect();
        let [first, inner @ .., last] = &rows[..] else { panic!("{rows:?}") };
        let short = END_ROWS as i64..2 * END_ROWS as i64;
        assert!(short.contains(first) && short.contains(last) && inner.len() == 4, "{rows:?}");
        let order = metadata.row_group(0).sorting_columns().unwrap();
        assert_eq!(order.iter().map(|column| column.column_idx).collect::<Vec<_>>(), [1, 0]);

        let mut windows = Windows::new(&merged.windows);
        let (mut by_time, mut series_changes) = (Vec::new(), 0);
        for batch in decode(merged.content).unwrap() {
            let hosts = batch.column(1).as_string::<i32>();
            let rows: Vec<_> = hosts.iter().zip(times(&batch).unwrap()).collect();
            series_changes += rows.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
            windows.push(batch, &mut by_time).unwrap();
        }
        windows.finish(&mut by_time).unwrap();
        assert!(series_changes < 6 * 12, "{series_changes}: rows of a host lie together");
        let times: Vec<i64> = by_time.iter().flat_map(|batch| times(batch).unwrap().to_vec()).collect();
        assert!(times.is_sorted());
        assert_eq!(times.len() as u64, merged.rows);
    }

    #[test]
    fn what_is_gone_is_left_out_and_may_be_everything() {
        let gone = |floor| Input { floor, ..file(10, 1, 2) };
        let merged = merge_files("db", "t", &schema(), vec![gone(4), gone(8)]).unwrap().unwrap();
        assert_eq!((merged.rows, merged.range), (6, (4, 9)));
        assert!(merge_files("db", "t", &schema(), vec![gone(10), gone(11)]).unwrap().is_none());
    }

    #[test]
    fn points_of_one_time_stay_together_up_to_a_bound() {
        let hosts = WINDOW_ROWS as i64 + 500;
        let merged = merge_files("db", "t", &schema(), vec![file(hosts, 0, hosts)]).unwrap().unwrap();
        assert_eq!((merged.windows.len(), merged.rows), (1, hosts as u64));
        let hosts = (MOST_AT_ONCE * WINDOW_ROWS) as i64 + 500;
        let merged = merge_files("db", "t", &schema(), vec![file(hosts, 0, hosts)]);
        assert!(matches!(merged, Err(Unfit::TooManyAtOnce)));
    }
}
