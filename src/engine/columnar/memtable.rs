//! The part of a table that is in memory: one open chunk of growing columns, and batches that are
//! full and never change again.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    builder::{
        BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, TimestampNanosecondBuilder,
        UInt64Builder,
    },
    cast::AsArray,
};
use arrow_schema::{ArrowError, SchemaRef};

use super::{
    batch::{TablePoints, Values},
    merge::times,
    schema::{ColumnKind, FieldType, TableSchema},
};

/// An open chunk with this many rows is closed.
const CHUNK_ROWS: usize = 65_536;
/// As is one with this many bytes.
const CHUNK_BYTES: usize = 32 << 20;
/// A batch with this many rows is not copied into the open chunk but kept as it is.
const LARGE_BATCH: usize = 16_384;

/// About what an empty column of a chunk costs.
const COLUMN_BYTES: usize = 256;

/// Least bytes of a row in these columns, all of them null; without its time.
pub(super) fn width(schema: &TableSchema) -> usize {
    let of = |kind: &ColumnKind| match kind {
        ColumnKind::Field(FieldType::Bool) => 1,
        ColumnKind::Tag | ColumnKind::Field(FieldType::String) => 4,
        ColumnKind::Field(_) => 8,
    };
    schema.columns().iter().map(|(_, kind)| of(kind)).sum()
}

/// Rows of one table in the order in which they were written.
#[derive(Debug, Default)]
pub(super) struct Memtable {
    full: Vec<Arc<Rows>>,
    open: Option<Chunk>,
    bytes: usize,
}

/// A batch in memory.
#[derive(Debug)]
pub(super) struct Rows {
    batch: RecordBatch,
    /// First and last time.
    range: (i64, i64),
    /// Sorted by time, each point once; made when first asked for.
    #[cfg(feature = "sql")]
    points: std::sync::OnceLock<Vec<RecordBatch>>,
    /// The newest of each series, likewise; within, `None` if that is not worth it.
    #[cfg(feature = "sql")]
    newest: std::sync::OnceLock<Option<Arc<Rows>>>,
}

impl Memtable {
    /// Adds points. `schema` is the table's, which has every column of them.
    pub(super) fn append(
        &mut self,
        schema: &Arc<TableSchema>,
        points: &TablePoints<'_>,
    ) -> Result<(), ArrowError> {
        let own = points.columns.iter().map(Values::size).sum::<usize>();
        let alike = Arc::ptr_eq(&points.schema, schema);
        // Columns of the table that the points do not have are filled with nulls in an open chunk.
        let absent = if alike { 0 } else { width(schema).saturating_sub(width(&points.schema)) };
        let bytes = own + points.rows * absent;
        if points.rows >= LARGE_BATCH || bytes >= CHUNK_BYTES {
            self.bytes += own;
            self.close()?;
            self.full.push(Arc::new(Rows::new(points.to_rows()?)?));
            return Ok(());
        }
        let fits = self.open.as_ref().is_some_and(|open| {
            let same = Arc::ptr_eq(&open.schema, schema) || open.schema == *schema;
            same && open.rows < CHUNK_ROWS && open.bytes + bytes <= CHUNK_BYTES
        });
        if !fits {
            self.close()?;
        }
        let held = &mut self.bytes;
        let open = self.open.get_or_insert_with(|| {
            *held += schema.columns().len() * COLUMN_BYTES;
            Chunk::new(schema, self.full.last().map(|rows| rows.batch()))
        });
        *held += bytes;
        open.append(points, bytes)
    }

    /// Bytes of the rows held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All rows so far; the open chunk is copied, once until it grows again.
    pub(super) fn snapshot(&mut self) -> Result<Vec<Arc<Rows>>, ArrowError> {
        let open = self.open.as_mut().map(Chunk::snapshot).transpose()?;
        Ok(self.full.iter().cloned().chain(open).collect())
    }

    /// Takes all rows out.
    pub(super) fn take(&mut self) -> Result<Vec<Arc<Rows>>, ArrowError> {
        self.close()?;
        self.bytes = 0;
        Ok(std::mem::take(&mut self.full))
    }

    /// Removes the rows before a time. What they took counts as held until all rows are taken out.
    pub(super) fn keep_from(&mut self, floor: i64) -> Result<(), ArrowError> {
        self.close()?;
        for rows in &mut self.full {
            *rows = rows.not_before(floor)?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ArrowError> {
        if let Some(chunk) = self.open.take() {
            self.full.push(chunk.finish()?);
        }
        Ok(())
    }
}

impl Rows {
    fn new(batch: RecordBatch) -> Result<Self, ArrowError> {
        let times = times(&batch)?;
        Ok(Self {
            range: times.iter().fold((i64::MAX, i64::MIN), |(a, b), &time| (a.min(time), b.max(time))),
            #[cfg(feature = "sql")]
            points: std::sync::OnceLock::new(),
            #[cfg(feature = "sql")]
            newest: std::sync::OnceLock::new(),
            batch,
        })
    }

    /// Of rows that are by time and have each point once.
    #[cfg(feature = "sql")]
    pub(super) fn of_points(batch: RecordBatch) -> Result<Self, ArrowError> {
        let rows = Self::new(batch)?;
        Ok(Self { points: vec![rows.batch.clone()].into(), ..rows })
    }

    /// First and last time.
    pub(super) fn range(&self) -> (i64, i64) {
        self.range
    }

    /// These rows without those before a time.
    pub(super) fn not_before(self: &Arc<Self>, floor: i64) -> Result<Arc<Self>, ArrowError> {
        if self.range.0 >= floor {
            return Ok(self.clone());
        }
        Ok(Arc::new(Self::new(super::retention::not_before(&self.batch, floor)?)?))
    }

    /// The rows as they were written.
    pub(super) fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    #[cfg(feature = "sql")]
    /// The points in the columns of the table's schema: by time, each once. Sorts on first use.
    pub(super) fn points(&self, schema: &SchemaRef) -> Result<Vec<RecordBatch>, ArrowError> {
        let points = match self.points.get() {
            Some(points) => points,
            None => {
                let points = super::merge::merge(self.batch.schema_ref(), std::slice::from_ref(&self.batch))?;
                self.points.get_or_init(|| points)
            }
        };
        points.iter().map(|batch| super::merge::conform(batch, schema)).collect()
    }

    /// The newest rows of each series; `None` if there are so many series that all rows serve as
    /// well. Made on first use.
    #[cfg(feature = "sql")]
    pub(super) fn newest(&self) -> Result<Option<Arc<Self>>, ArrowError> {
        if let Some(newest) = self.newest.get() {
            return Ok(newest.clone());
        }
        let schema = self.batch.schema();
        let mut digest = super::latest::Digest::new(&schema, self.batch.num_rows() as u64);
        let mut worth = true;
        for batch in self.points(&schema)? {
            worth = worth && digest.push(&batch)?;
        }
        let newest = if worth { digest.finish()? } else { None };
        Ok(self.newest.get_or_init(|| newest).clone())
    }
}

/// Columns that grow.
#[derive(Debug)]
struct Chunk {
    schema: Arc<TableSchema>,
    arrow: SchemaRef,
    time: TimestampNanosecondBuilder,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
    copy: Option<Arc<Rows>>,
}

#[derive(Debug)]
enum Column {
    Float(Float64Builder),
    Int(Int64Builder),
    UInt(UInt64Builder),
    Bool(BooleanBuilder),
    Text(StringBuilder),
}

impl Chunk {
    /// Likely to grow as large as the one before it, if there was one: then nothing is moved as it
    /// grows. Memory that is not written yet is not there yet.
    fn new(schema: &Arc<TableSchema>, before: Option<&RecordBatch>) -> Self {
        let full = CHUNK_ROWS..CHUNK_ROWS + LARGE_BATCH;
        let alike = |rows: &&RecordBatch| {
            full.contains(&rows.num_rows()) && rows.num_columns() == schema.columns().len() + 1
        };
        let before = before.filter(alike);
        let of = |at: usize, kind| Column::new(kind, before.and_then(|rows| rows.columns().get(at + 1)));
        let columns = schema.columns().iter().enumerate().map(|(at, (_, kind))| of(at, *kind));
        Self {
            schema: schema.clone(),
            arrow: schema.to_arrow(),
            time: TimestampNanosecondBuilder::with_capacity(before.map_or(0, RecordBatch::num_rows)),
            columns: columns.collect(),
            rows: 0,
            bytes: 0,
            copy: None,
        }
    }

    fn append(&mut self, points: &TablePoints<'_>, bytes: usize) -> Result<(), ArrowError> {
        let wrong = || ArrowError::SchemaError("points do not have the types of their table".into());
        let Some((Values::Time(time), given)) = points.columns.split_first() else { return Err(wrong()) };
        let names = self.schema.columns().iter().map(|(name, _)| name);
        let alike = Arc::ptr_eq(&points.schema, &self.schema);
        let of = |(at, name): (usize, &String)| {
            given.get(if alike { at } else { points.schema.position(name).unwrap_or(usize::MAX) })
        };
        let given = names.enumerate().map(of);
        // Every type is looked at before anything is added: columns of unequal length would be past repair.
        let fits = |(column, values): (&Column, Option<&Values>)| values.is_none_or(|v| column.takes(v));
        if !self.columns.iter().zip(given.clone()).all(fits) {
            return Err(wrong());
        }
        for (column, values) in self.columns.iter_mut().zip(given) {
            column.append(values, points.rows)?;
        }
        self.time.append_slice(time.values());
        self.rows += points.rows;
        self.bytes += bytes;
        self.copy = None;
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Arc<Rows>, ArrowError> {
        if let Some(copy) = &self.copy {
            return Ok(copy.clone());
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        columns.push(Arc::new(self.time.finish_cloned()));
        columns.extend(self.columns.iter().map(Column::copy));
        let rows = Arc::new(Rows::new(RecordBatch::try_new(self.arrow.clone(), columns)?)?);
        self.copy = Some(rows.clone());
        Ok(rows)
    }

    fn finish(mut self) -> Result<Arc<Rows>, ArrowError> {
        if let Some(copy) = self.copy {
            return Ok(copy);
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        columns.push(Arc::new(self.time.finish()));
        columns.extend(self.columns.iter_mut().map(Column::finish));
        Ok(Arc::new(Rows::new(RecordBatch::try_new(self.arrow, columns)?)?))
    }
}

impl Column {
    fn new(kind: ColumnKind, before: Option<&ArrayRef>) -> Self {
        let rows = before.map_or(0, |values| values.len());
        match kind {
            ColumnKind::Tag | ColumnKind::Field(FieldType::String) => {
                let texts = before.and_then(|values| values.as_string_opt::<i32>());
                let bytes = texts.map_or(0, |texts| texts.value_data().len());
                Self::Text(StringBuilder::with_capacity(rows, bytes))
            }
            ColumnKind::Field(FieldType::Float) => Self::Float(Float64Builder::with_capacity(rows)),
            ColumnKind::Field(FieldType::Int) => Self::Int(Int64Builder::with_capacity(rows)),
            ColumnKind::Field(FieldType::UInt) => Self::UInt(UInt64Builder::with_capacity(rows)),
            ColumnKind::Field(FieldType::Bool) => Self::Bool(BooleanBuilder::with_capacity(rows)),
        }
    }

    fn takes(&self, values: &Values) -> bool {
        matches!(
            (self, values),
            (Self::Float(_), Values::Float(_))
                | (Self::Int(_), Values::Int(_))
                | (Self::UInt(_), Values::UInt(_))
                | (Self::Bool(_), Values::Bool(_))
                | (Self::Text(_), Values::Text(_))
        )
    }

    /// Adds these values, or as many nulls if there are none or not of a type that it takes.
    fn append(&mut self, values: Option<&Values>, rows: usize) -> Result<(), ArrowError> {
        match (self, values) {
            (Self::Float(to), Some(Values::Float(from))) => to.append_array(from),
            (Self::Int(to), Some(Values::Int(from))) => to.append_array(from),
            (Self::UInt(to), Some(Values::UInt(from))) => to.append_array(from),
            (Self::Bool(to), Some(Values::Bool(from))) => to.append_array(from),
            (Self::Text(to), Some(Values::Text(from))) => return to.append_array(from),
            (Self::Float(to), _) => to.append_nulls(rows),
            (Self::Int(to), _) => to.append_nulls(rows),
            (Self::UInt(to), _) => to.append_nulls(rows),
            (Self::Bool(to), _) => to.append_nulls(rows),
            (Self::Text(to), _) => to.append_nulls(rows),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Float(column) => Arc::new(column.finish()),
            Self::Int(column) => Arc::new(column.finish()),
            Self::UInt(column) => Arc::new(column.finish()),
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
        }
    }

    fn copy(&self) -> ArrayRef {
        match self {
            Self::Float(column) => Arc::new(column.finish_cloned()),
            Self::Int(column) => Arc::new(column.finish_cloned()),
            Self::UInt(column) => Arc::new(column.finish_cloned()),
            Self::Bool(column) => Arc::new(column.finish_cloned()),
            Self::Text(column) => Arc::new(column.finish_cloned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use arrow_array::{StringArray, TimestampNanosecondArray};

    use super::*;

    /// With the same text in every column.
    fn points(columns: &[(&str, ColumnKind)], time: &[i64]) -> TablePoints<'static> {
        let schema = TableSchema::new(columns.iter().map(|(n, k)| ((*n).to_owned(), *k))).unwrap();
        let text = || Values::Text(StringArray::from(vec!["x"; time.len()]));
        let time = Values::Time(TimestampNanosecondArray::from(time.to_vec()));
        TablePoints::of("t", schema.into(), iter::once(time).chain(columns.iter().map(|_| text())).collect())
    }

    #[test]
    fn what_a_narrow_row_costs_in_a_wide_table_is_counted() {
        let names: Vec<String> = (0..999).map(|n| format!("c{n}")).collect();
        let wide = TableSchema::new(names.iter().map(|n| (n.clone(), ColumnKind::Field(FieldType::Float))));
        let mut schema = wide.unwrap();
        schema.add("s", ColumnKind::Field(FieldType::String)).unwrap();
        let one = points(&[("s", ColumnKind::Field(FieldType::String))], &[1, 2, 3]);
        let mut table = Memtable::default();
        table.append(&Arc::new(schema.clone()), &one).unwrap();
        // Almost a thousand nulls of eight bytes each, three times.
        let first = table.bytes();
        assert!(first >= 3 * 999 * 8, "{first}");
        table.append(&Arc::new(schema), &one).unwrap();
        assert!(table.bytes() - first >= 3 * 999 * 8);
    }

    #[test]
    #[cfg(feature = "sql")]
    fn columns_come_later_and_snapshots_do_not_change() {
        let mut table = Memtable::default();
        let one = points(&[("host", ColumnKind::Tag)], &[3, 1]);
        table.append(&one.schema, &one).unwrap();
        let before = table.snapshot().unwrap();
        assert!(Arc::ptr_eq(&before[0], &table.snapshot().unwrap()[0]), "not copied twice");
        let two = points(&[("host", ColumnKind::Tag), ("s", ColumnKind::Field(FieldType::String))], &[9]);
        table.append(&two.schema, &two).unwrap();
        // A batch without the new column fits the wider chunk.
        table.append(&two.schema, &one).unwrap();
        assert_eq!(before[0].batch().num_rows(), 2);
        assert_eq!(before[0].range(), (1, 3));
        let now = table.snapshot().unwrap();
        assert_eq!(now.iter().map(|rows| rows.batch().num_rows()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(now[1].batch().column(2).null_count(), 2);
        let wide = two.schema.to_arrow();
        let points = now[0].points(&wide).unwrap();
        assert_eq!((times(&points[0]).unwrap(), points[0].num_columns()), (&[1, 3][..], 3));
        assert!(table.bytes() > 0);
        assert_eq!(table.take().unwrap().len(), 2);
        assert_eq!((table.bytes(), table.snapshot().unwrap().len()), (0, 0));
    }

    #[test]
    fn a_batch_of_wrong_types_changes_nothing() {
        let mut table = Memtable::default();
        let text = points(&[("v", ColumnKind::Field(FieldType::String))], &[1]);
        let float =
            Arc::new(TableSchema::new([("v".to_owned(), ColumnKind::Field(FieldType::Float))]).unwrap());
        assert!(table.append(&float, &text).is_err());
        assert!(table.take().unwrap().iter().all(|rows| rows.batch().num_rows() == 0));
    }

    #[test]
    fn large_batches_and_full_chunks_are_not_copied() {
        let mut table = Memtable::default();
        let large = points(&[("host", ColumnKind::Tag)], &vec![5; LARGE_BATCH]);
        table.append(&large.schema, &large).unwrap();
        let Values::Text(texts) = &large.columns[1] else { panic!("texts") };
        let held = table.snapshot().unwrap()[0].batch().column(1).as_string::<i32>().values().as_ptr();
        assert_eq!(held, texts.values().as_ptr());
        let small = points(&[("host", ColumnKind::Tag)], &vec![5; 10_000]);
        for _ in 0..8 {
            table.append(&small.schema, &small).unwrap();
        }
        let sizes: Vec<_> = table.take().unwrap().iter().map(|rows| rows.batch().num_rows()).collect();
        assert_eq!(sizes, [LARGE_BATCH, 70_000, 10_000]);
    }
}
