//! Makes one set of points out of batches that may hold the same point more than once.
//!
//! A point is (all tags, time). Written again its fields merge: each field has the value that was
//! written last, and a field that a later write leaves out keeps what it had.

use std::collections::HashMap;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, cast::AsArray, new_null_array};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use arrow_select::interleave::interleave;

use super::schema::{KIND_METADATA, TIME};

/// Rows of a batch that [`merge`] makes; also of a Parquet row group.
pub(super) const BATCH_ROWS: usize = 131_072;

/// The points of `batches`, which are given in the order in which they were written, by time and
/// each once. All batches have the columns of `schema`, which has time and every tag.
///
/// # Errors
/// The schema has no time column or a column does not have its type.
pub(super) fn merge(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, ArrowError> {
    let batches: Vec<&RecordBatch> = batches.iter().filter(|batch| batch.num_rows() > 0).collect();
    let as_they_are = || batches.iter().map(|batch| (*batch).clone()).collect();
    let times = batches.iter().map(|batch| times(batch)).collect::<Result<Vec<_>, _>>()?;
    if is_ascending(&times, |a, b| a < b) {
        // No two rows have one time, so no two are one point.
        return Ok(as_they_are());
    }
    if let Some(in_order) = super::runs::in_order(schema, &batches, &times)? {
        return Ok(in_order);
    }
    let mut points = points(&times);
    points.sort();
    if points.windows(2).any(|pair| matches!(pair, [a, b] if a.time == b.time)) {
        // Only rows of one time can be one point: tags are looked at because there are such rows.
        let series = series(schema, &batches)?;
        for tied in points.chunk_by_mut(|a, b| a.time == b.time).filter(|tied| tied.len() > 1) {
            for point in &mut *tied {
                let series = series.get(point.batch as usize);
                point.series = series.and_then(|of| of.get(point.row as usize)).copied().unwrap_or(0);
            }
            tied.sort();
        }
    }
    let same_point = |a: &Point, b: &Point| (a.time, a.series) == (b.time, b.series);
    let repeats = points.windows(2).any(|pair| matches!(pair, [a, b] if same_point(a, b)));
    if !repeats && is_ascending(&times, |a, b| a <= b) {
        return Ok(as_they_are());
    }
    // Each point is a run of rows, oldest first.
    let runs: Vec<&[Point]> = points.chunk_by(same_point).collect();
    runs.chunks(BATCH_ROWS).map(|runs| gather(schema, &batches, runs, repeats)).collect()
}

/// The rows of a batch in the columns of `schema`: what it does not have is null, what the schema
/// does not have is left out.
///
/// # Errors
/// A column has another type in the schema.
pub(super) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref().fields() == schema.fields() {
        return Ok(batch.clone());
    }
    let own: HashMap<&str, &ArrayRef> =
        batch.schema_ref().fields().iter().map(|f| f.name().as_str()).zip(batch.columns()).collect();
    // A batch may have few of many columns: one array of nulls stands for all of a type.
    let mut nulls: HashMap<&DataType, ArrayRef> = HashMap::new();
    let mut column = |name: &str, of| match own.get(name) {
        Some(column) => ArrayRef::clone(column),
        None => nulls.entry(of).or_insert_with(|| new_null_array(of, batch.num_rows())).clone(),
    };
    let columns = schema.fields().iter().map(|f| column(f.name(), f.data_type())).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &rows)
}

/// Bytes of the rows of a batch, memory that columns share counted for each.
///
/// # Errors
/// They overflow.
pub(super) fn bytes(batch: &RecordBatch) -> Result<usize, ArrowError> {
    let size = |column: &ArrayRef| column.to_data().get_slice_memory_size();
    let sizes = batch.columns().iter().map(size).collect::<Result<Vec<_>, _>>()?;
    Ok(sizes.into_iter().fold(0, usize::saturating_add))
}

/// The time column of a batch.
///
/// # Errors
/// It has none.
pub(super) fn times(batch: &RecordBatch) -> Result<&[i64], ArrowError> {
    let column = batch.column_by_name(TIME);
    let column = column.and_then(|c| c.as_primitive_opt::<arrow_array::types::TimestampNanosecondType>());
    column
        .map(|column| column.values().as_ref())
        .ok_or_else(|| ArrowError::SchemaError("a batch has no time column".into()))
}

/// Indices of the tag columns.
pub(super) fn tags(schema: &Schema) -> impl Iterator<Item = usize> {
    let is_tag =
        |field: &arrow_schema::Field| field.metadata().get(KIND_METADATA).is_some_and(|kind| kind == "tag");
    schema.fields().iter().enumerate().filter(move |(_, field)| is_tag(field)).map(|(index, _)| index)
}

/// The rows of one part of a file, which hold each point once, as one batch by time.
///
/// # Errors
/// They have no time column.
fn by_time(batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut order = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (index, batch) in batches.iter().enumerate() {
        order.extend(times(batch)?.iter().enumerate().map(|(row, &time)| (time, index, row)));
    }
    order.sort_unstable();
    let order: Vec<_> = order.into_iter().map(|(_, batch, row)| (batch, row)).collect();
    in_order(batches, &order)
}

/// Points by time, as one batch by tags and then by time, what has no value first.
///
/// # Errors
/// A column does not have its type.
pub(super) fn by_tags(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let borrowed: Vec<&RecordBatch> = batches.iter().collect();
    let series = series(schema, &borrowed)?;
    let count = series.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    // How many rows each series has, and where one of them is.
    let mut of_series = vec![(0_usize, (0, 0)); count];
    for (index, series) in series.iter().enumerate() {
        for (row, series) in series.iter().enumerate() {
            if let Some(known) = of_series.get_mut(*series as usize) {
                *known = (known.0 + 1, (index, row));
            }
        }
    }
    let names = tags(schema)
        .map(|column| {
            batches.iter().map(|b| b.column(column).as_string_opt::<i32>()).collect::<Option<Vec<_>>>()
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| ArrowError::SchemaError("a tag column does not hold strings".into()))?;
    let name = |(batch, row): (usize, usize)| {
        names.iter().map(move |column| column.get(batch).filter(|c| c.is_valid(row)).map(|c| c.value(row)))
    };
    let mut sorted: Vec<usize> = (0..count).collect();
    let place = |series: &usize| of_series.get(*series).map_or((0, 0), |known| known.1);
    sorted.sort_by(|a, b| name(place(a)).cmp(name(place(b))));
    // Counted, so that rows of a series stay by time and nothing is compared twice.
    let mut starts = vec![0; count];
    let mut start = 0;
    for series in sorted {
        if let (Some(at), Some((rows, _))) = (starts.get_mut(series), of_series.get(series)) {
            *at = start;
            start += rows;
        }
    }
    let mut order = vec![(0, 0); start];
    for (index, series) in series.iter().enumerate() {
        for (row, series) in series.iter().enumerate() {
            let Some(start) = starts.get_mut(*series as usize) else { continue };
            if let Some(place) = order.get_mut(*start) {
                *place = (index, row);
            }
            *start += 1;
        }
    }
    in_order(batches, &order)
}

/// These rows (batch, row) as one batch.
///
/// # Errors
/// There is no batch, or their columns differ.
pub(super) fn in_order(batches: &[RecordBatch], order: &[(usize, usize)]) -> Result<RecordBatch, ArrowError> {
    let Some(first) = batches.first() else {
        return Err(ArrowError::InvalidArgumentError("no batch to put in order".into()));
    };
    let column = |column: usize| {
        let values: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        interleave(&values, order)
    };
    let columns = (0..first.num_columns()).map(column).collect::<Result<Vec<_>, _>>()?;
    let rows = RecordBatchOptions::new().with_row_count(Some(order.len()));
    RecordBatch::try_new_with_options(first.schema(), columns, &rows)
}

/// Puts the rows of a file back in the order of time, as they are read. In a file that was compacted
/// time is cut into windows, one row group each, and within a window rows are by tags; a window at a
/// time is held.
#[derive(Debug)]
pub(super) struct Windows {
    /// First times of the windows that have not begun.
    starts: std::collections::VecDeque<i64>,
    held: Vec<RecordBatch>,
    in_order: bool,
}

impl Windows {
    /// For a file with windows that begin at these times; none: it is by time all along.
    pub(super) fn new(starts: &[i64]) -> Self {
        let in_order = starts.is_empty();
        Self { starts: starts.iter().skip(1).copied().collect(), held: Vec::new(), in_order }
    }

    /// Takes the next rows of the file; adds those to `to` that nothing can come before any more.
    ///
    /// # Errors
    /// They have no time column.
    pub(super) fn push(
        &mut self,
        mut batch: RecordBatch,
        to: &mut impl Extend<RecordBatch>,
    ) -> Result<(), ArrowError> {
        if self.in_order {
            to.extend(Some(batch));
            return Ok(());
        }
        while let Some(&next) = self.starts.front() {
            let times = times(&batch)?;
            let Some((end, &time)) = times.iter().enumerate().find(|(_, time)| **time >= next) else { break };
            let rest = batch.slice(end, batch.num_rows() - end);
            self.held.push(batch.slice(0, end));
            self.finish(to)?;
            // A window may have been left out by whoever reads.
            while self.starts.front().is_some_and(|start| *start <= time) {
                self.starts.pop_front();
            }
            batch = rest;
        }
        self.held.push(batch);
        Ok(())
    }

    /// The file has ended: adds what is left.
    ///
    /// # Errors
    /// As [`Windows::push`].
    pub(super) fn finish(&mut self, to: &mut impl Extend<RecordBatch>) -> Result<(), ArrowError> {
        self.held.retain(|batch| batch.num_rows() > 0);
        if !self.held.is_empty() {
            to.extend(Some(by_time(&std::mem::take(&mut self.held))?));
        }
        Ok(())
    }
}

/// A row, ordered by point and then by when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    time: i64,
    series: u32,
    batch: u32,
    row: u32,
}

/// Without their series.
fn points(times: &[&[i64]]) -> Vec<Point> {
    let mut points = Vec::with_capacity(times.iter().map(|times| times.len()).sum());
    for (batch, times) in (0..).zip(times) {
        points.extend((0..).zip(*times).map(|(row, &time)| Point { time, series: 0, batch, row }));
    }
    points
}

/// A number per row that two rows share exactly if all their tags are equal.
///
/// # Errors
/// A tag column does not hold strings.
pub(super) fn series(schema: &Schema, batches: &[&RecordBatch]) -> Result<Vec<Vec<u32>>, ArrowError> {
    let mut codes: Vec<Vec<u32>> = batches.iter().map(|batch| vec![0; batch.num_rows()]).collect();
    for column in tags(schema) {
        // One per row is looked up: the standard library's hash would be half of the work. This one is seeded
        // anew in each process, which whoever writes the tags does not see.
        let mut known: hashbrown::HashMap<(u32, Option<&str>), u32> = hashbrown::HashMap::new();
        for (batch, codes) in batches.iter().zip(&mut codes) {
            let values = batch.columns().get(column).and_then(|values| values.as_string_opt::<i32>());
            let Some(values) = values else {
                return Err(ArrowError::SchemaError("a tag column does not hold strings".into()));
            };
            for (code, value) in codes.iter_mut().zip(values.iter()) {
                let next = known.len() as u32;
                *code = *known.entry((*code, value)).or_insert(next);
            }
        }
    }
    Ok(codes)
}

/// One batch with a row per run.
fn gather(
    schema: &SchemaRef,
    batches: &[&RecordBatch],
    runs: &[&[Point]],
    repeats: bool,
) -> Result<RecordBatch, ArrowError> {
    let place = |point: &Point| (point.batch as usize, point.row as usize);
    let newest: Vec<_> = runs.iter().filter_map(|run| run.last()).map(place).collect();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for column in 0..schema.fields().len() {
        let values: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        if !repeats || values.iter().all(|values| values.null_count() == 0) {
            columns.push(interleave(&values, &newest)?);
            continue;
        }
        let written = |point: &&Point| {
            values.get(point.batch as usize).is_some_and(|values| values.is_valid(point.row as usize))
        };
        let last_written: Vec<_> = runs
            .iter()
            .filter_map(|run| run.iter().rev().find(written).or_else(|| run.last()))
            .map(place)
            .collect();
        columns.push(interleave(&values, &last_written)?);
    }
    RecordBatch::try_new(schema.clone(), columns)
}

fn is_ascending(times: &[&[i64]], in_order: fn(&i64, &i64) -> bool) -> bool {
    let ends = times.windows(2).all(|pair| match pair {
        [a, b] => a.last().zip(b.first()).is_none_or(|(a, b)| in_order(a, b)),
        _ => true,
    });
    ends && times.iter().all(|times| times.is_sorted_by(in_order))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float64Array, StringArray, TimestampNanosecondArray, types::Float64Type};

    use super::*;
    use crate::engine::columnar::schema::{ColumnKind, FieldType, TableSchema};

    type Row = (i64, Option<&'static str>, Option<f64>, Option<f64>);

    fn schema() -> SchemaRef {
        let float = ColumnKind::Field(FieldType::Float);
        let columns = [("host", ColumnKind::Tag), ("a", float), ("b", float)];
        TableSchema::new(columns.map(|(name, kind)| (name.to_owned(), kind))).unwrap().to_arrow()
    }

    fn batch(rows: &[Row]) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.0))),
            Arc::new(rows.iter().map(|r| r.1).collect::<StringArray>()),
            Arc::new(rows.iter().map(|r| r.2).collect::<Float64Array>()),
            Arc::new(rows.iter().map(|r| r.3).collect::<Float64Array>()),
        ];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    type Held = (i64, Option<String>, Option<f64>, Option<f64>);

    fn rows(batches: &[RecordBatch]) -> Vec<Held> {
        let mut all = Vec::new();
        for batch in batches {
            let hosts = batch.column(1).as_string::<i32>();
            let float = |c: usize| batch.column(c).as_primitive::<Float64Type>().iter();
            for (i, ((host, a), b)) in hosts.iter().zip(float(2)).zip(float(3)).enumerate() {
                all.push((times(batch).unwrap()[i], host.map(str::to_owned), a, b));
            }
        }
        all.sort_by(|x, y| (x.0, &x.1).cmp(&(y.0, &y.1)));
        all
    }

    #[test]
    fn the_last_written_value_of_each_field_wins() {
        let old = batch(&[(2, Some("x"), Some(1.0), Some(1.0)), (1, Some("x"), Some(9.0), None)]);
        let new = batch(&[
            (2, Some("x"), None, Some(2.0)),
            (2, Some("y"), Some(5.0), None),
            (2, None, Some(6.0), None),
            (2, Some("x"), Some(3.0), None),
        ]);
        let merged = merge(&schema(), &[old, new]).unwrap();
        let host = |name: &str| Some(name.to_owned());
        assert_eq!(
            rows(&merged),
            [
                (1, host("x"), Some(9.0), None),
                (2, None, Some(6.0), None),
                (2, host("x"), Some(3.0), Some(2.0)),
                (2, host("y"), Some(5.0), None),
            ]
        );
        assert!(merged.iter().all(|b| times(b).unwrap().is_sorted()));
    }

    #[test]
    fn disjoint_batches_are_not_copied() {
        let one = batch(&[(1, Some("x"), Some(1.0), None), (1, Some("y"), Some(1.0), None)]);
        let two = batch(&[(2, Some("x"), Some(1.0), None)]);
        let merged = merge(&schema(), &[one.clone(), two.clone()]).unwrap();
        assert_eq!(merged.len(), 2);
        for (merged, given) in merged.iter().zip([one, two]) {
            assert!(Arc::ptr_eq(merged.column(2), given.column(2)));
        }
    }

    #[test]
    fn agrees_with_a_map_of_points() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..50 {
            let mut wanted = std::collections::BTreeMap::new();
            let mut batches = Vec::new();
            for _ in 0..rng.random_range(1..5) {
                let mut given = Vec::new();
                for _ in 0..rng.random_range(0..40) {
                    let row: Row = (
                        rng.random_range(0..10),
                        [None, Some("a"), Some("b")][rng.random_range(0..3)],
                        rng.random_bool(0.6).then(|| rng.random()),
                        rng.random_bool(0.6).then(|| rng.random()),
                    );
                    let point = wanted.entry((row.0, row.1.map(str::to_owned))).or_insert((None, None));
                    *point = (row.2.or(point.0), row.3.or(point.1));
                    given.push(row);
                }
                batches.push(batch(&given));
            }
            let wanted: Vec<_> = wanted.into_iter().map(|((t, h), (a, b))| (t, h, a, b)).collect();
            assert_eq!(rows(&merge(&schema(), &batches).unwrap()), wanted);
        }
    }

    #[test]
    fn missing_columns_become_null() {
        let full = batch(&[(1, Some("x"), Some(1.0), Some(2.0))]);
        let narrow = full.project(&[0, 2]).unwrap();
        let wide = conform(&narrow, &schema()).unwrap();
        assert_eq!(rows(&[wide]), [(1, None, Some(1.0), None)]);
    }
}
