//! The points of a record on their way into memory: as [`Batch`](super::Batch), without what only a query needs of
//! Arrow's columns. A record may be of a thousand tables with a point each, and then that is most of what it costs.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray, UInt64Array,
};
use arrow_schema::ArrowError;

use super::{super::schema::TableSchema, Batch, TableBatch};

/// Points for one database.
#[derive(Debug)]
pub(in crate::engine::columnar) struct Points<'a> {
    /// Its name.
    pub(in crate::engine::columnar) database: &'a str,
    /// Every table has the columns that the registry has of it.
    pub(in crate::engine::columnar) all_known: bool,
    /// At least one table, each once.
    pub(in crate::engine::columnar) tables: Vec<TablePoints<'a>>,
}

/// Points for one table, see [`TableBatch`].
#[derive(Debug)]
pub(in crate::engine::columnar) struct TablePoints<'a> {
    pub(in crate::engine::columnar) table: &'a str,
    pub(in crate::engine::columnar) schema: Arc<TableSchema>,
    pub(super) assigned: u64,
    /// At least one.
    pub(in crate::engine::columnar) rows: usize,
    /// The time, then the columns of `schema`. They share the payload's memory where they are aligned.
    pub(in crate::engine::columnar) columns: Vec<Values>,
}

/// A column.
#[derive(Debug, Clone)]
pub(in crate::engine::columnar) enum Values {
    Time(TimestampNanosecondArray),
    Float(Float64Array),
    Int(Int64Array),
    UInt(UInt64Array),
    Bool(BooleanArray),
    Text(StringArray),
}

impl Points<'_> {
    /// As Arrow has them; no value is copied.
    pub(in crate::engine::columnar) fn to_batch(&self) -> Result<Batch, ArrowError> {
        let tables = self.tables.iter().map(|points| {
            Ok(TableBatch {
                table: points.table.to_owned(),
                schema: points.schema.clone(),
                assigned: points.assigned,
                rows: points.to_rows()?,
            })
        });
        let tables = tables.collect::<Result<_, ArrowError>>()?;
        Ok(Batch { database: self.database.to_owned(), tables })
    }
}

impl<'a> TablePoints<'a> {
    /// These columns, time first, for a table that is new.
    #[cfg(test)]
    pub(in crate::engine::columnar) fn of(
        table: &'a str,
        schema: Arc<TableSchema>,
        columns: Vec<Values>,
    ) -> Self {
        let rows = columns.first().map_or(0, |time| time.to_array().len());
        Self { table, schema, assigned: 0, rows, columns }
    }

    /// As Arrow has them; no value is copied.
    pub(in crate::engine::columnar) fn to_rows(&self) -> Result<RecordBatch, ArrowError> {
        let columns = self.columns.iter().map(Values::to_array).collect();
        RecordBatch::try_new(self.schema.to_arrow(), columns)
    }
}

impl Values {
    /// Bytes of the values and nulls.
    pub(in crate::engine::columnar) fn size(&self) -> usize {
        let (rows, nulls, values) = match self {
            Self::Time(values) => (values.len(), values.nulls(), 8 * values.len()),
            Self::Float(values) => (values.len(), values.nulls(), 8 * values.len()),
            Self::Int(values) => (values.len(), values.nulls(), 8 * values.len()),
            Self::UInt(values) => (values.len(), values.nulls(), 8 * values.len()),
            Self::Bool(values) => (values.len(), values.nulls(), values.len().div_ceil(8)),
            Self::Text(texts) => {
                let offsets = texts.offsets();
                let ends = offsets.first().zip(offsets.last());
                let text = ends.map_or(0, |(start, end)| (end - start) as usize);
                (texts.len(), texts.nulls(), 4 * offsets.len() + text)
            }
        };
        values + nulls.filter(|nulls| nulls.null_count() > 0).map_or(0, |_| rows.div_ceil(8))
    }

    fn to_array(&self) -> ArrayRef {
        match self.clone() {
            Self::Time(values) => Arc::new(values),
            Self::Float(values) => Arc::new(values),
            Self::Int(values) => Arc::new(values),
            Self::UInt(values) => Arc::new(values),
            Self::Bool(values) => Arc::new(values),
            Self::Text(values) => Arc::new(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::columnar::{
        batch::{encode, points_like, tests::sample},
        schema::Schemas,
    };

    #[test]
    fn sizes_are_those_of_arrow() {
        let whole = sample();
        for (offset, len) in [(0, 3), (0, 1), (1, 2), (2, 1)] {
            let mut batch = whole.clone();
            batch.tables.truncate(1);
            batch.tables[0].rows = whole.tables[0].rows.slice(offset, len);
            let payload = encode(&batch).unwrap();
            let points = points_like(&payload, &Schemas::default()).unwrap();
            assert_eq!(points.to_batch().unwrap(), batch);
            for (values, column) in points.tables[0].columns.iter().zip(batch.tables[0].rows.columns()) {
                let by_arrow = column.to_data().get_slice_memory_size().unwrap();
                assert_eq!(values.size(), by_arrow, "{:?} {offset} {len}", column.data_type());
            }
        }
    }
}
