//! The points of one table that a body brought: into Arrow's columns, or straight into a payload.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, TimestampNanosecondArray};
use arrow_buffer::ToByteSlice;

use super::{
    super::{
        super::{
            batch::{BatchError, Bits, Columns, Table, TableBatch},
            schema::TableSchema,
        },
        BodyError,
    },
    Column, Values,
};

/// Points in the columns of a schema.
pub(in super::super) struct Settled {
    pub(super) table: String,
    pub(super) schema: Arc<TableSchema>,
    /// See [`TableBatch::assigned`].
    pub(super) assigned: u64,
    pub(super) times: Vec<i64>,
    /// Those of `schema`, each as long as `times`.
    pub(super) columns: Vec<Column>,
    /// Where in the body each row comes from, if anybody asked for that.
    pub(super) lines: Vec<u32>,
}

impl Settled {
    /// At least one.
    pub(in super::super) fn rows(&self) -> usize {
        self.times.len()
    }

    /// As Arrow has them, and with which lines they came.
    ///
    /// # Errors
    /// Arrow does not take the columns: a bug here or in the parser.
    pub(in super::super) fn finish(self) -> Result<(TableBatch, Vec<u32>), BodyError> {
        let broken = |error: arrow_schema::ArrowError| BodyError::Columns(error.to_string());
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len() + 1);
        arrays.push(Arc::new(TimestampNanosecondArray::from(self.times)));
        for column in self.columns {
            arrays.push(column.finish().map_err(broken)?);
        }
        let rows = RecordBatch::try_new(self.schema.to_arrow(), arrays).map_err(broken)?;
        let Self { table, schema, assigned, lines, .. } = self;
        Ok((TableBatch { table, schema, assigned, rows }, lines))
    }
}

impl Table for Settled {
    fn name(&self) -> &str {
        &self.table
    }

    fn schema(&self) -> &TableSchema {
        &self.schema
    }

    fn assigned(&self) -> u64 {
        self.assigned
    }

    fn rows(&self) -> usize {
        self.times.len()
    }

    fn columns<'a>(&'a self, to: &mut Columns<'a>) -> Result<(), BatchError> {
        to.begin(self.times.len(), None)?;
        to.values(Bits::There(self.times.to_byte_slice()));
        for column in &self.columns {
            // What is not as it has to be would be refused only where the record is applied, and that ends nodes.
            if !column.is_whole(self.times.len()) {
                return Err(BatchError::Malformed("a parser made a column that is none".into()));
            }
            to.begin(column.len, column.nulls().as_ref())?;
            match &column.values {
                Values::Float(values) => to.values(Bits::There(values.to_byte_slice())),
                Values::Int(values) => to.values(Bits::There(values.to_byte_slice())),
                Values::UInt(values) => to.values(Bits::There(values.to_byte_slice())),
                Values::Bool(values) => to.values(Bits::There(values.as_slice())),
                Values::Text { ends, bytes } => {
                    to.values(Bits::There(ends.to_byte_slice()));
                    to.values(Bits::There(bytes));
                }
            }
        }
        Ok(())
    }
}
