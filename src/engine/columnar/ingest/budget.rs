//! What one body may take: values of a batch, and room in memory before it is used.

use super::{BodyError, MAX_VALUES, Room};

/// What a value takes: in a column up to twice its eight bytes while that grows, and in the record.
const VALUE_BYTES: usize = 24;
/// What a column takes before its first value, its name included.
const COLUMN_BYTES: usize = 512;
/// Room is asked for in steps of this many bytes.
const ROOM_STEP: usize = 16 << 10;

/// What the batch may still take; shared by its tables.
pub(super) struct Budget<'a> {
    /// How many more values, nulls included.
    values: usize,
    /// Bytes that there is room for already.
    paid: usize,
    room: Room<'a>,
    /// There was no room.
    exhausted: bool,
}

impl<'a> Budget<'a> {
    /// For a body whose texts have `texts` bytes in all.
    pub(super) fn new(texts: usize, room: Room<'a>) -> Result<Self, BodyError> {
        let mut budget = Self { values: MAX_VALUES, paid: 0, room, exhausted: false };
        // Once in a column, once in the record.
        budget.pay(texts.saturating_mul(2)).map_err(|_| BodyError::NoRoom)?;
        Ok(budget)
    }

    /// True once there was no room: whatever follows will find none either.
    pub(super) fn exhausted(&self) -> bool {
        self.exhausted
    }

    /// For that many more values, nulls included.
    ///
    /// # Errors
    /// They are too many for a batch, or there is no room.
    #[inline]
    pub(super) fn take(&mut self, values: usize) -> Result<(), String> {
        let left = self.values.checked_sub(values).ok_or_else(|| {
            format!(
                "the body makes more than {MAX_VALUES} values, counting rows times columns: send it in parts"
            )
        })?;
        self.pay(values.saturating_mul(VALUE_BYTES))?;
        self.values = left;
        Ok(())
    }

    /// For a column without values.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn take_column(&mut self) -> Result<(), String> {
        self.pay(COLUMN_BYTES)
    }

    /// For text that is not in the body as it will be in a column.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn take_text(&mut self, bytes: usize) -> Result<(), String> {
        // In a column twice while that grows, once in the record.
        self.pay(bytes.saturating_mul(3))
    }

    #[inline]
    fn pay(&mut self, bytes: usize) -> Result<(), String> {
        if let Some(missing) = bytes.checked_sub(self.paid).filter(|missing| *missing > 0) {
            let step = missing.max(ROOM_STEP);
            if !(self.room)(step) {
                self.exhausted = true;
                return Err(BodyError::NoRoom.to_string());
            }
            self.paid += step;
        }
        self.paid -= bytes;
        Ok(())
    }

    /// Takes back a column with that many rows.
    pub(super) fn give(&mut self, rows: usize) {
        self.values += rows;
        self.paid += rows * VALUE_BYTES + COLUMN_BYTES;
    }

    #[cfg(test)]
    pub(super) fn of(values: usize, room: Room<'a>) -> Self {
        Self { values, paid: 0, room, exhausted: false }
    }

    /// Values, and bytes that are paid for.
    #[cfg(test)]
    pub(super) fn left(&self) -> (usize, usize) {
        (self.values, self.paid)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::schema::ColumnKind,
            columns::{TableBuilder, Value},
        },
        *,
    };

    #[test]
    fn there_is_room_before_there_is_anything() {
        let mut asked = 0;
        let mut room = |bytes| {
            asked += bytes;
            asked <= 100_000
        };
        let mut budget = Budget::new(1_000, &mut room).unwrap();
        let mut table = TableBuilder::new("t".into(), None);
        let columns: Vec<_> =
            (0..10).map(|n| table.column(&format!("c{n}"), ColumnKind::Tag, &mut budget).unwrap()).collect();
        let mut time = 0;
        loop {
            table.put(columns[0], Value::Text(b"x")).unwrap();
            if table.commit(time, &mut budget).is_err() {
                break;
            }
            time += 1;
        }
        assert!(budget.exhausted());
        // 2,000 for texts, 512 for each column, 11 values of 24 bytes for each row.
        assert_eq!(time, (16 * 1024 * 6 - 2_000 - 5_120) / 264);
    }
}
