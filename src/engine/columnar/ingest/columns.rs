//! Points of one table on their way into columns. A row is put value by value and then either kept
//! ([`TableBuilder::commit`]) or taken back ([`TableBuilder::rollback`]), columns it brought included.

mod column;
mod settled;

use std::{collections::HashMap, sync::Arc};

use self::column::{Column, Name, Values, end};
pub(super) use self::settled::Settled;
use super::{
    super::schema::{ColumnKind, FieldType, MAX_COLUMNS, SchemaError, TableSchema, check_column_name},
    BodyError, MAX_TEXT,
    budget::Budget,
};

/// Rows, columns and bytes of a column's text that memory is set aside for before they are there: 3 MiB
/// in all.
const MOST_EXPECTED: usize = 4_096;
const MOST_EXPECTED_COLUMNS: usize = 32;
const MOST_EXPECTED_TEXT: usize = 64 << 10;

/// Columns of a table that are looked through by name rather than hashed.
const FEW: usize = 16;

/// A value of a tag or field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Float(f64),
    Int(i64),
    UInt(u64),
    Bool(bool),
    /// UTF-8, which the parser has checked.
    Text(&'a [u8]),
}

/// The points of one table so far.
#[derive(Debug)]
pub(super) struct TableBuilder {
    name: String,
    /// The table's schema in the registry; None for a new table.
    assigned: Option<Arc<TableSchema>>,
    columns: Vec<Column>,
    /// Of more than [`FEW`] columns; fewer are looked through.
    by_name: HashMap<String, usize>,
    /// Columns there were when the current row began.
    settled: usize,
    /// Columns that the registry does not know.
    added: usize,
    /// Columns that the rows not kept yet have set; some more than once.
    touched: Vec<usize>,
    times: Vec<i64>,
    /// Where in the body each row comes from, for whoever asks for that.
    lines: Vec<u32>,
}

impl TableBuilder {
    pub(super) fn new(name: String, assigned: Option<Arc<TableSchema>>) -> Self {
        Self {
            name,
            assigned,
            columns: Vec::new(),
            by_name: HashMap::new(),
            settled: 0,
            added: 0,
            touched: Vec::new(),
            times: Vec::new(),
            lines: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_new(&self) -> bool {
        self.assigned.is_none()
    }

    /// Rows that were kept.
    pub(super) fn rows(&self) -> usize {
        self.times.len()
    }

    /// Index of a column for a value of this kind. A new column gets the kind that the registry
    /// has for it, else this one.
    ///
    /// # Errors
    /// The column cannot take such a value, its name is bad, or there is no room for it.
    pub(super) fn column(
        &mut self,
        name: &str,
        kind: ColumnKind,
        budget: &mut Budget<'_>,
    ) -> Result<usize, String> {
        if let Some((at, column)) = self.find(name) {
            if takes(column.kind, kind) {
                return Ok(at);
            }
            return Err(SchemaError::mismatch(&self.name, name, column.kind, kind).to_string());
        }
        let known = self.assigned.as_ref().and_then(|schema| {
            // Lines name columns in the order in which those came to be, mostly.
            let next = self.columns.len();
            let as_told = schema.columns().get(next).is_some_and(|(column, _)| column == name);
            let at = if as_told { next } else { schema.position(name)? };
            Some((Name::Assigned(at), schema.columns().get(at)?.1))
        });
        if let Some((_, assigned)) = known {
            if !takes(assigned, kind) {
                return Err(SchemaError::mismatch(&self.name, name, assigned, kind).to_string());
            }
        } else {
            check_column_name(name).map_err(|error| error.to_string())?;
            let known = self.assigned.as_ref().map_or(0, |schema| schema.columns().len());
            if known + self.added >= MAX_COLUMNS {
                return Err(format!("table {:?} would have more than {MAX_COLUMNS} columns", self.name));
            }
        }
        budget.take(self.rows())?;
        budget.take_column()?;
        let (known, kind) = known.unwrap_or_else(|| (Name::New(name.to_owned()), kind));
        self.added += usize::from(known.is_new());
        let at = self.columns.len();
        self.columns.push(Column::new(known, kind));
        if at == FEW {
            let names = self.columns.iter().map(|column| column.name.text(&self.assigned).to_owned());
            self.by_name.extend(names.zip(0..));
        } else if at > FEW {
            self.by_name.insert(name.to_owned(), at);
        }
        Ok(at)
    }

    fn find(&self, name: &str) -> Option<(usize, &Column)> {
        if self.columns.len() > FEW {
            let at = *self.by_name.get(name)?;
            return Some((at, self.columns.get(at)?));
        }
        self.columns.iter().enumerate().find(|(_, column)| column.name.text(&self.assigned) == name)
    }

    /// The type of a column, here or in the registry; `None` if there is no such column yet.
    pub(super) fn kind(&self, name: &str) -> Option<ColumnKind> {
        let own = self.find(name).map(|(_, column)| column.kind);
        own.or_else(|| self.assigned.as_ref()?.kind(name))
    }

    /// Whether the current row has a value for the column.
    #[inline]
    pub(super) fn is_set(&self, at: usize) -> bool {
        self.columns.get(at).is_some_and(|column| column.len > self.times.len())
    }

    /// Columns so far, those of the current row included; an index is below.
    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }

    /// Sets a value of the current row, in place of one that was set before.
    ///
    /// # Errors
    /// The column has another type.
    #[inline]
    pub(super) fn put(&mut self, at: usize, value: Value<'_>) -> Result<(), String> {
        let rows = self.times.len();
        if let Some(column) = self.columns.get_mut(at) {
            column.cut(rows);
        }
        self.put_at(at, rows, value)
    }

    /// Sets a value of a row that is not kept yet, for a caller that comes column by column: `row`
    /// counts from the first row of the table and grows from call to call for a column.
    ///
    /// # Errors
    /// The column has another type.
    #[inline]
    pub(super) fn put_at(&mut self, at: usize, row: usize, value: Value<'_>) -> Result<(), String> {
        let column = self.columns.get_mut(at).ok_or("there is no such column")?;
        if let Value::Text(text) = value
            && text.len() > MAX_TEXT
        {
            let len = text.len();
            return Err(format!(
                "column {:?} would hold a text of {len} bytes: {MAX_TEXT} are possible",
                column.name.text(&self.assigned)
            ));
        }
        column.pad(row);
        if self.touched.last() != Some(&at) {
            self.touched.push(at);
        }
        match (&mut column.values, value) {
            (Values::Float(values), Value::Float(value)) => values.push(value),
            (Values::Float(values), Value::Int(value)) => values.push(value as f64),
            (Values::Int(values), Value::Int(value)) => values.push(value),
            (Values::UInt(values), Value::UInt(value)) => values.push(value),
            (Values::Bool(values), Value::Bool(value)) => values.append(value),
            (Values::Text { ends, bytes }, Value::Text(text)) => {
                bytes.extend_from_slice(text);
                ends.push(end(bytes));
            }
            (_, value) => {
                let name = column.name.text(&self.assigned);
                return Err(SchemaError::mismatch(&self.name, name, column.kind, value.kind()).to_string());
            }
        }
        column.len += 1;
        Ok(())
    }

    /// As [`TableBuilder::put_at`], of this row and those behind it.
    ///
    /// # Errors
    /// The column has another type.
    pub(super) fn put_floats(
        &mut self,
        at: usize,
        row: usize,
        floats: impl ExactSizeIterator<Item = f64>,
    ) -> Result<(), String> {
        let column = self.columns.get_mut(at).ok_or("there is no such column")?;
        column.pad(row);
        if self.touched.last() != Some(&at) {
            self.touched.push(at);
        }
        let Values::Float(values) = &mut column.values else {
            let float = ColumnKind::Field(FieldType::Float);
            let name = column.name.text(&self.assigned);
            return Err(SchemaError::mismatch(&self.name, name, column.kind, float).to_string());
        };
        column.len += floats.len();
        values.extend(floats);
        Ok(())
    }

    /// Keeps the current row.
    ///
    /// # Errors
    /// The batch is full; the row is still to be taken back.
    #[inline]
    pub(super) fn commit(&mut self, time: i64, budget: &mut Budget<'_>) -> Result<(), String> {
        budget.take(self.columns.len() + 1)?;
        self.times.push(time);
        self.settled = self.columns.len();
        self.touched.clear();
        Ok(())
    }

    /// Sets memory aside for so many rows in the columns that there are, if that is not much: columns
    /// of a common body then never move.
    pub(super) fn expect_rows(&mut self, rows: usize) {
        let rows = rows.min(MOST_EXPECTED);
        if self.columns.len() > MOST_EXPECTED_COLUMNS {
            return;
        }
        self.times.reserve(rows);
        for column in &mut self.columns {
            match &mut column.values {
                Values::Float(values) => values.reserve(rows),
                Values::Int(values) => values.reserve(rows),
                Values::UInt(values) => values.reserve(rows),
                Values::Bool(values) => values.reserve(rows),
                Values::Text { ends, bytes } => {
                    ends.reserve(rows);
                    bytes.reserve(rows.saturating_mul(bytes.len()).min(MOST_EXPECTED_TEXT));
                }
            }
        }
    }

    /// Makes room for `rows` rows with the columns that there are.
    ///
    /// # Errors
    /// The batch would be full.
    pub(super) fn reserve(&self, rows: usize, budget: &mut Budget<'_>) -> Result<(), String> {
        budget.take(rows.saturating_mul(self.columns.len() + 1))
    }

    /// Keeps rows that were put column by column and that there is room for.
    pub(super) fn commit_rows(&mut self, times: Vec<i64>) {
        self.times.extend(times);
        self.settled = self.columns.len();
        self.touched.clear();
    }

    /// Says that the rows since the last call came with that line.
    pub(super) fn came_with(&mut self, line: usize) {
        self.lines.resize(self.times.len(), u32::try_from(line).unwrap_or(u32::MAX));
    }

    /// Takes the current row back.
    pub(super) fn rollback(&mut self, budget: &mut Budget<'_>) {
        let rows = self.times.len();
        for column in self.columns.drain(self.settled..) {
            self.by_name.remove(column.name.text(&self.assigned));
            self.added -= usize::from(column.name.is_new());
            budget.give(rows);
        }
        for at in self.touched.drain(..) {
            if let Some(column) = self.columns.get_mut(at) {
                column.cut(rows);
            }
        }
        if self.columns.len() <= FEW {
            self.by_name.clear();
        }
    }

    /// The kept rows, in the columns of a schema.
    ///
    /// # Errors
    /// The columns make no schema: a bug here or in the parser.
    pub(super) fn settle(mut self) -> Result<Settled, BodyError> {
        let rows = self.times.len();
        self.columns.sort_by_key(|column| column.kind != ColumnKind::Tag);
        let in_place = |(at, column): (usize, &Column)| column.name == Name::Assigned(at);
        let alike = |known: &&Arc<TableSchema>| {
            known.columns().len() == self.columns.len() && self.columns.iter().enumerate().all(in_place)
        };
        let schema = match self.assigned.as_ref().filter(alike) {
            // What was made of it once is there already.
            Some(assigned) => Arc::clone(assigned),
            None => {
                let name = |column: &Column| (column.name.text(&self.assigned).to_owned(), column.kind);
                let schema = TableSchema::new(self.columns.iter().map(name));
                Arc::new(schema.map_err(|error| BodyError::Columns(error.to_string()))?)
            }
        };
        for column in &mut self.columns {
            column.pad(rows);
        }
        Ok(Settled {
            table: self.name,
            schema,
            assigned: self.assigned.map_or(0, |schema| schema.fingerprint()),
            times: self.times,
            columns: self.columns,
            lines: self.lines,
        })
    }
}

impl Value<'_> {
    /// The kind of field that a value makes.
    pub(super) fn kind(self) -> ColumnKind {
        ColumnKind::Field(match self {
            Self::Float(_) => FieldType::Float,
            Self::Int(_) => FieldType::Int,
            Self::UInt(_) => FieldType::UInt,
            Self::Bool(_) => FieldType::Bool,
            Self::Text(_) => FieldType::String,
        })
    }
}

/// An integer in a float column becomes a float.
fn takes(column: ColumnKind, value: ColumnKind) -> bool {
    column == value
        || (column == ColumnKind::Field(FieldType::Float) && value == ColumnKind::Field(FieldType::Int))
}

#[cfg(test)]
mod tests {
    use arrow_array::{Array, cast::AsArray, types::Float64Type};

    use super::{super::MAX_VALUES, *};

    #[test]
    fn a_row_that_is_taken_back_leaves_nothing() {
        let mut room = |_| true;
        let mut budget = Budget::new(0, &mut room).unwrap();
        let mut table = TableBuilder::new("t".into(), None);
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            let text = table.column("s", ColumnKind::Field(FieldType::String), &mut budget).unwrap();
            table.put(text, Value::Text(name.as_bytes())).unwrap();
            let column = table.column(name, ColumnKind::Field(FieldType::Float), &mut budget).unwrap();
            table.put(column, Value::Int(at as i64)).unwrap();
            if name == "b" {
                table.rollback(&mut budget);
            } else {
                table.commit(at as i64, &mut budget).unwrap();
            }
        }
        let (before, _) = budget.left();
        let _ = table.column("d", ColumnKind::Tag, &mut budget).unwrap();
        table.rollback(&mut budget);
        assert_eq!(budget.left().0, before);
        // Two rows: time, s, a; then c for both and a for the second row.
        assert_eq!(MAX_VALUES - before, 3 + 1 + 4);
        let batch = table.settle().unwrap().finish().unwrap();
        let names: Vec<_> = batch.0.schema.columns().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["s", "a", "c"]);
        assert_eq!(
            batch.0.rows.column(1).as_string::<i32>().iter().flatten().collect::<Vec<_>>(),
            ["a", "c"]
        );
        let last = batch.0.rows.column(3).as_primitive::<Float64Type>();
        assert!(last.is_null(0) && last.value(1) == 2.0);
    }

    #[test]
    fn a_text_is_bounded() {
        let mut room = |_| true;
        let mut budget = Budget::of(10, &mut room);
        let mut table = TableBuilder::new("t".into(), None);
        let one = table.column("a", ColumnKind::Tag, &mut budget).unwrap();
        let long = vec![b'x'; MAX_TEXT + 1];
        assert!(table.put(one, Value::Text(&long)).unwrap_err().contains("1048576"));
        table.put(one, Value::Text(&long[1..])).unwrap();
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut room = |_| true;
        let mut budget = Budget::of(10, &mut room);
        let mut table = TableBuilder::new("t".into(), None);
        let one = table.column("a", ColumnKind::Tag, &mut budget).unwrap();
        for time in 0..5 {
            table.put(one, Value::Text(b"x")).unwrap();
            table.commit(time, &mut budget).unwrap();
        }
        table.put(one, Value::Text(b"x")).unwrap();
        assert!(table.commit(5, &mut budget).is_err());
        table.rollback(&mut budget);
        assert!(table.column("b", ColumnKind::Tag, &mut budget).is_err());
        assert_eq!(table.settle().unwrap().finish().unwrap().0.rows.num_rows(), 5);
    }

    #[test]
    fn columns_are_found_on_both_sides_of_the_few() {
        let float = ColumnKind::Field(FieldType::Float);
        let name = |at: usize| format!("c{at}");
        // Every other column is one that the registry knows, at another place.
        let known = TableSchema::new((0..FEW + 8).rev().step_by(2).map(|at| (name(at), float))).unwrap();
        let mut room = |_| true;
        let mut budget = Budget::new(0, &mut room).unwrap();
        let mut table = TableBuilder::new("t".into(), Some(Arc::new(known)));
        let mut put = |table: &mut TableBuilder, count: usize| {
            for at in 0..count {
                assert_eq!(table.column(&name(at), float, &mut budget).unwrap(), at, "{count}");
                table.put(at, Value::Float(at as f64)).unwrap();
            }
            assert_eq!(table.width(), count);
            assert!(table.find(&name(count)).is_none() && table.find(&name(count - 1)).is_some());
        };
        put(&mut table, FEW - 1);
        table.commit(1, &mut Budget::new(0, &mut |_| true).unwrap()).unwrap();
        for count in [FEW, FEW + 1, FEW + 2, FEW, FEW + 8] {
            put(&mut table, count);
            table.rollback(&mut Budget::new(0, &mut |_| true).unwrap());
            assert_eq!((table.width(), table.by_name.len()), (FEW - 1, 0));
        }
        put(&mut table, FEW + 8);
        table.commit(2, &mut Budget::new(0, &mut |_| true).unwrap()).unwrap();
        put(&mut table, FEW + 8);
        table.rollback(&mut Budget::new(0, &mut |_| true).unwrap());
        assert_eq!(table.by_name.len(), FEW + 8);
        let (batch, _) = table.settle().unwrap().finish().unwrap();
        for at in 0..FEW + 8 {
            let column = batch.rows.column_by_name(&name(at)).unwrap().as_primitive::<Float64Type>();
            assert_eq!((column.value(1), column.is_null(0)), (at as f64, at >= FEW - 1));
        }
    }
}
