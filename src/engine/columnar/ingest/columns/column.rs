//! One column of a table on its way, and where its name is.

use std::{ops::Range, sync::Arc};

use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow_buffer::{BooleanBufferBuilder, Buffer, NullBuffer, OffsetBuffer};

use super::super::super::schema::{ColumnKind, FieldType, TableSchema};

/// A column that is padded with nulls only when its next value comes: it may be shorter than the
/// table, and is longer by one if the current row has set it.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: Name,
    pub(super) kind: ColumnKind,
    pub(super) values: Values,
    /// Values and nulls so far.
    pub(super) len: usize,
    /// Where nulls are; in order, below the table's rows.
    gaps: Vec<Range<usize>>,
}

/// The name of a column: at its place in the registry's schema, or here if that does not have it.
#[derive(Debug, PartialEq)]
pub(super) enum Name {
    Assigned(usize),
    New(String),
}

#[derive(Debug)]
pub(super) enum Values {
    Float(Vec<f64>),
    Int(Vec<i64>),
    UInt(Vec<u64>),
    Bool(BooleanBufferBuilder),
    Text { ends: Vec<i32>, bytes: Vec<u8> },
}

impl Name {
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Self::New(_))
    }

    pub(super) fn text<'a>(&'a self, assigned: &'a Option<Arc<TableSchema>>) -> &'a str {
        match self {
            Self::New(name) => name,
            Self::Assigned(at) => {
                let columns = assigned.as_ref().map_or(&[][..], |schema| schema.columns());
                columns.get(*at).map_or("", |(name, _)| name)
            }
        }
    }
}

impl Column {
    pub(super) fn new(name: Name, kind: ColumnKind) -> Self {
        let values = match kind {
            ColumnKind::Tag | ColumnKind::Field(FieldType::String) => {
                // Most tables of a body that names many have a row or two.
                let mut ends = Vec::with_capacity(4);
                ends.push(0);
                Values::Text { ends, bytes: Vec::new() }
            }
            ColumnKind::Field(FieldType::Float) => Values::Float(Vec::new()),
            ColumnKind::Field(FieldType::Int) => Values::Int(Vec::new()),
            ColumnKind::Field(FieldType::UInt) => Values::UInt(Vec::new()),
            ColumnKind::Field(FieldType::Bool) => Values::Bool(BooleanBufferBuilder::new(0)),
        };
        Self { name, kind, values, len: 0, gaps: Vec::new() }
    }

    /// Appends nulls up to `rows`.
    #[inline]
    pub(super) fn pad(&mut self, rows: usize) {
        if self.len >= rows {
            return;
        }
        match &mut self.values {
            Values::Float(values) => values.resize(rows, 0.0),
            Values::Int(values) => values.resize(rows, 0),
            Values::UInt(values) => values.resize(rows, 0),
            Values::Bool(values) => values.append_n(rows - self.len, false),
            Values::Text { ends, bytes } => ends.resize(rows + 1, end(bytes)),
        }
        self.gaps.push(self.len..rows);
        self.len = rows;
    }

    /// Removes what is beyond `rows`.
    #[inline]
    pub(super) fn cut(&mut self, rows: usize) {
        if self.len <= rows {
            return;
        }
        match &mut self.values {
            Values::Float(values) => values.truncate(rows),
            Values::Int(values) => values.truncate(rows),
            Values::UInt(values) => values.truncate(rows),
            Values::Bool(values) => values.truncate(rows),
            Values::Text { ends, bytes } => {
                ends.truncate(rows + 1);
                bytes.truncate(ends.last().map_or(0, |&end| end as usize));
            }
        }
        while let Some(last) = self.gaps.pop_if(|gap| gap.end > rows) {
            if last.start < rows {
                self.gaps.push(last.start..rows);
            }
        }
        self.len = rows;
    }

    /// Where nulls are, if there are any.
    pub(super) fn nulls(&self) -> Option<NullBuffer> {
        (!self.gaps.is_empty()).then(|| {
            let mut valid = BooleanBufferBuilder::new(self.len);
            for gap in &self.gaps {
                valid.append_n(gap.start - valid.len(), true);
                valid.append_n(gap.len(), false);
            }
            valid.append_n(self.len - valid.len(), true);
            NullBuffer::new(valid.finish())
        })
    }

    /// Whether it has so many rows, and texts that are texts.
    pub(super) fn is_whole(&self, rows: usize) -> bool {
        let values = match &self.values {
            Values::Float(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::UInt(values) => values.len(),
            Values::Bool(values) => values.len(),
            Values::Text { ends, bytes } if are_texts(ends, bytes) => ends.len() - 1,
            Values::Text { .. } => return false,
        };
        self.len == rows && values == rows && self.gaps.last().is_none_or(|gap| gap.end <= rows)
    }

    pub(super) fn finish(self) -> Result<ArrayRef, arrow_schema::ArrowError> {
        let nulls = self.nulls();
        Ok(match self.values {
            Values::Float(values) => Arc::new(Float64Array::new(values.into(), nulls)),
            Values::Int(values) => Arc::new(Int64Array::new(values.into(), nulls)),
            Values::UInt(values) => Arc::new(UInt64Array::new(values.into(), nulls)),
            Values::Bool(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Text { ends, bytes } => Arc::new(StringArray::try_new(
                OffsetBuffer::new(ends.into()),
                Buffer::from_vec(bytes),
                nulls,
            )?),
        })
    }
}

/// Texts of a column are cut out of a body whose length fits (see `line_protocol::parse`).
pub(super) fn end(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap_or(i32::MAX)
}

/// Whether these ends, the first of which is where the first text begins, cut UTF-8 into pieces that are UTF-8.
fn are_texts(ends: &[i32], bytes: &[u8]) -> bool {
    let whole = ends.first() == Some(&0) && ends.last() == Some(&end(bytes)) && ends.is_sorted();
    let cuts =
        |text: &str| ends.iter().all(|&end| usize::try_from(end).is_ok_and(|end| text.is_char_boundary(end)));
    whole && (bytes.is_ascii() || std::str::from_utf8(bytes).is_ok_and(cuts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        let text = "größe".as_bytes();
        assert!(are_texts(&[0, 2, 4, 7], text));
        assert!(!are_texts(&[0, 3, 7], text), "within a character");
        assert!(!are_texts(&[0, 2, 8], text), "beyond the end");
        assert!(!are_texts(&[0, 2], text), "not all of it");
        assert!(!are_texts(&[0, 4, 2, 7], text), "backwards");
        assert!(!are_texts(&[2, 7], text) && !are_texts(&[], b""));
        assert!(!are_texts(&[0, 3], &text[..3]), "half a character");
        assert!(!are_texts(&[0, 1], &[0xff]));
        assert!(are_texts(&[0, 3], b"abc") && are_texts(&[0], b"") && are_texts(&[0, 0, 0], b""));
    }

    #[test]
    fn a_column_that_lacks_a_row_is_not_whole() {
        let mut column = Column::new(Name::New("v".into()), ColumnKind::Field(FieldType::Float));
        column.pad(2);
        assert!(column.is_whole(2) && !column.is_whole(3) && !column.is_whole(1));
        column.len = 3;
        assert!(!column.is_whole(3), "a value is missing");
    }
}
