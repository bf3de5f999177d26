//! What a parser has read of a body, and what becomes of it: a batch for whoever looks at it, or at once the bytes of a
//! log record.

use std::{collections::HashSet, sync::Arc};

use arrow_array::{Array, RecordBatch};
use arrow_schema::ArrowError;
use arrow_select::filter::filter_record_batch;

use super::{
    super::{
        SeriesGate,
        batch::{Batch, TableBatch, encode, payload_of},
        schema::TableSchema,
    },
    BodyError, Encoded, LineError, MAX_ERROR, MAX_REPORTED, Options, Parsed,
    columns::{Settled, TableBuilder},
    cursor::shortened,
};

/// The points of a body by table, and what is wrong with others.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) tables: Vec<TableBuilder>,
    rejected: Vec<LineError>,
    rejected_total: usize,
}

impl Gathered {
    pub(super) fn reject(&mut self, line: usize, error: &str) {
        self.rejected_total += 1;
        if self.rejected.len() < MAX_REPORTED {
            self.rejected.push(LineError { line, error: shortened(error, MAX_ERROR) });
        }
    }

    /// The good points as a batch, unless there are bad ones and then none are wanted.
    pub(super) fn into_parsed(mut self, options: &Options) -> Result<Parsed, BodyError> {
        let tables = self.settled(options)?;
        let batch = self.batch_of(tables, options)?;
        let rows = batch.as_ref().map_or(0, Batch::rows);
        let Self { rejected, rejected_total, .. } = self;
        Ok(Parsed { batch, rows, rejected, rejected_total })
    }

    /// The same as the payload of a record. Arrow's columns are only made where series are to be judged.
    pub(super) fn into_encoded(mut self, options: &Options) -> Result<Encoded, BodyError> {
        let tables = self.settled(options)?;
        let mut rows = tables.iter().map(Settled::rows).sum();
        let payload = if options.series.is_some() {
            let batch = self.batch_of(tables, options)?;
            rows = batch.as_ref().map_or(0, Batch::rows);
            batch.as_ref().map(encode).transpose()
        } else {
            (!tables.is_empty()).then(|| payload_of(&options.database, &tables)).transpose()
        };
        let payload = payload.map_err(|error| BodyError::Columns(error.to_string()))?;
        let Self { rejected, rejected_total, .. } = self;
        Ok(Encoded { payload, rows, rejected, rejected_total })
    }

    /// The tables with points that are wanted.
    fn settled(&mut self, options: &Options) -> Result<Vec<Settled>, BodyError> {
        if self.rejected_total > 0 && !options.accept_partial {
            return Ok(Vec::new());
        }
        let tables = self.tables.drain(..).filter(|table| table.rows() > 0);
        tables.map(TableBuilder::settle).collect()
    }

    fn batch_of(&mut self, tables: Vec<Settled>, options: &Options) -> Result<Option<Batch>, BodyError> {
        let mut tables = tables.into_iter().map(Settled::finish).collect::<Result<Vec<_>, _>>()?;
        if let Some(gate) = &options.series {
            let before = self.rejected_total;
            self.let_in(gate, &mut tables)?;
            if self.rejected_total > before && (gate.whole || !options.accept_partial) {
                return Ok(None);
            }
        }
        let tables: Vec<_> = tables.into_iter().map(|(table, _)| table).collect();
        Ok((!tables.is_empty()).then(|| Batch { database: options.database.clone(), tables }))
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
