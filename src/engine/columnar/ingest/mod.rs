//! What a client sends becomes a [`Batch`]: one parser per wire format, and what they share.

mod budget;
mod columns;
mod cursor;
pub mod line_protocol;
pub mod msgpack;
mod number;
mod precision;
mod unpack;

pub use precision::Precision;

use std::{collections::HashSet, sync::Arc};

use arrow_array::{Array, RecordBatch};
use arrow_schema::ArrowError;
use arrow_select::filter::filter_record_batch;
use serde::Serialize;

use self::columns::TableBuilder;
pub(super) use self::cursor::shortened;
use super::{
    SeriesGate,
    batch::{Batch, TableBatch},
    schema::{SchemaError, TableSchema},
};

/// Bad lines that are reported one by one; the others are only counted.
pub const MAX_REPORTED: usize = 100;
/// Length of the text about one bad line, in characters.
pub const MAX_ERROR: usize = 1_024;
/// Values of one batch, nulls included: rows times columns, over all tables. A body that is small
/// but sparse cannot take more memory than this many values do.
pub const MAX_VALUES: usize = 16 * 1024 * 1024;

/// Longest text of a tag or field, in bytes. A query holds thousands of rows at once.
pub const MAX_TEXT: usize = 1 << 20;
/// Longest body: offsets into its texts are 31 bits.
const MAX_BODY: usize = i32::MAX as usize;

/// Makes room for so many more bytes of points, before they are there; false if there is none. What
/// was asked for is needed until the record of the points is made.
pub type Room<'a> = &'a mut dyn FnMut(usize) -> bool;

/// How to read a body.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the points go.
    pub database: String,
    /// What a timestamp counts.
    pub precision: Precision,
    /// Time of points that carry none: nanoseconds since 1970.
    pub now_ns: i64,
    /// Whether good points of a body with bad ones are taken.
    pub accept_partial: bool,
    /// Judges points by their series; `None` where those are not limited.
    pub series: Option<SeriesGate>,
}

/// What became of a body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// The good points; None if there are none, or if one was bad and partial writes are off.
    pub batch: Option<Batch>,
    /// Points in `batch`.
    pub rows: usize,
    /// The first [`MAX_REPORTED`] bad points, in order.
    pub rejected: Vec<LineError>,
    /// How many points were bad.
    pub rejected_total: usize,
}

impl Parsed {
    fn reject(&mut self, line: usize, error: &str) {
        self.rejected_total += 1;
        if self.rejected.len() < MAX_REPORTED {
            self.rejected.push(LineError { line, error: shortened(error, MAX_ERROR) });
        }
    }

    /// Takes out the rows whose series are more than there may be, table by table. Their lines are reported in order, with
    /// those that were bad for another reason; of lines that there is no room to report, whichever.
    fn let_in(
        &mut self,
        gate: &SeriesGate,
        tables: &mut Vec<(TableBatch, Vec<u32>)>,
    ) -> Result<(), BodyError> {
        let broken = |error: ArrowError| BodyError::Columns(error.to_string());
        let mut brought = HashSet::new();
        let mut left = Vec::with_capacity(tables.len());
        for (table, lines) in tables.drain(..) {
            let wanted = gate.judge(&table, &mut brought).map_err(broken)?;
            if wanted.iter().all(|wanted| *wanted) {
                left.push((table, lines));
                continue;
            }
            for (row, _) in wanted.iter().enumerate().filter(|(_, wanted)| !**wanted) {
                if self.rejected.len() < MAX_REPORTED {
                    let line = lines.get(row).map_or(0, |line| *line as usize);
                    self.reject(line, &gate.reason(&table, row));
                } else {
                    self.rejected_total += 1;
                }
            }
            left.extend(only(&table, wanted)?.map(|table| (table, lines)));
        }
        self.rejected.sort_by_key(|bad| bad.line);
        *tables = left;
        Ok(())
    }

    /// Takes the good points, unless there are bad ones and then none are wanted.
    fn keep(
        &mut self,
        tables: impl Iterator<Item = TableBuilder>,
        options: &Options,
    ) -> Result<(), BodyError> {
        if self.rejected_total > 0 && !options.accept_partial {
            return Ok(());
        }
        let tables = tables.filter(|table| table.rows() > 0).map(TableBuilder::finish);
        let mut tables = tables.collect::<Result<Vec<_>, _>>()?;
        if let Some(gate) = &options.series {
            let before = self.rejected_total;
            self.let_in(gate, &mut tables)?;
            if self.rejected_total > before && (gate.whole || !options.accept_partial) {
                return Ok(());
            }
        }
        let tables: Vec<_> = tables.into_iter().map(|(table, _)| table).collect();
        if !tables.is_empty() {
            let batch = Batch { database: options.database.clone(), tables };
            self.rows = batch.rows();
            self.batch = Some(batch);
        }
        Ok(())
    }
}

/// A table without the rows that are not wanted, and without the columns that only those brought; `None`
/// if none is left.
fn only(table: &TableBatch, wanted: Vec<bool>) -> Result<Option<TableBatch>, BodyError> {
    let broken = |error: &dyn std::fmt::Display| BodyError::Columns(error.to_string());
    let rows = filter_record_batch(&table.rows, &wanted.into()).map_err(|e| broken(&e))?;
    if rows.num_rows() == 0 {
        return Ok(None);
    }
    let has_values = |at: &usize| rows.column(*at + 1).null_count() < rows.num_rows();
    let columns = table.schema.columns();
    let kept: Vec<usize> = (0..columns.len()).filter(has_values).collect();
    if kept.len() == columns.len() {
        return Ok(Some(TableBatch { rows, ..table.clone() }));
    }
    let named = kept.iter().filter_map(|at| columns.get(*at).cloned());
    let schema = Arc::new(TableSchema::new(named).map_err(|e| broken(&e))?);
    let arrays = [0].into_iter().chain(kept.into_iter().map(|at| at + 1));
    let arrays = arrays.map(|at| rows.column(at).clone()).collect();
    let rows = RecordBatch::try_new(schema.to_arrow(), arrays).map_err(|e| broken(&e))?;
    Ok(Some(TableBatch { table: table.table.clone(), schema, assigned: table.assigned, rows }))
}

/// A point that cannot be taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// The line, from 1, on which the point begins; a line break in a string counts. In a body of
    /// MessagePack, the number of the item.
    pub line: usize,
    /// Why, in at most [`MAX_ERROR`] characters.
    pub error: String,
}

/// A body of which no point can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The database's name is bad, or there are too many databases.
    #[error(transparent)]
    Database(#[from] SchemaError),
    /// Send it in parts.
    #[error("the body has {len} bytes, more than {limit}: send it in parts")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// What is possible.
        limit: usize,
    },
    /// It is not in its format, so nothing of it can be believed.
    #[error("{0}")]
    Malformed(String),
    /// Its points have no place in memory now.
    #[error("there is no room in memory for the points of this body")]
    NoRoom,
    /// The parser made columns that Arrow does not take: a bug in it.
    #[error("the points could not be put into columns: {0}")]
    Columns(String),
}
