//! Values of a body as columns take them.

use super::{
    super::{
        super::schema::{ColumnKind, FieldType},
        columns::Value,
        unpack::{Item, Run, Unpacker, eight},
    },
    broken,
};

/// Which kinds of values a column of an item has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Holds {
    text: bool,
    float: bool,
    int: bool,
    negative: bool,
    large: bool,
    bool: bool,
}

impl Holds {
    /// Of the next so many values, which it passes over.
    pub(super) fn of(values: &mut Unpacker<'_>, len: usize) -> Result<Self, String> {
        let (mut holds, mut left) = (Self::default(), len);
        while left > 0 {
            match values.run(left) {
                Some(run @ Run::Floats(floats)) => {
                    holds.float = true;
                    if let Some(odd) = floats.iter().find(|float| !is_finite(float)) {
                        return Err(not_finite(f64::from_be_bytes(eight(odd))));
                    }
                    left -= run.len();
                }
                Some(run @ Run::Ints(ints)) => {
                    holds.int = true;
                    holds.negative |= ints.iter().any(|int| i64::from_be_bytes(eight(int)) < 0);
                    left -= run.len();
                }
                None => {
                    holds.see(values.next().map_err(broken)?)?;
                    left -= 1;
                }
            }
        }
        Ok(holds)
    }

    pub(super) fn see(&mut self, item: Item<'_>) -> Result<(), String> {
        match item {
            Item::Nil => {}
            Item::Bool(_) => self.bool = true,
            Item::Int(value) => {
                self.int = true;
                self.negative |= value < 0;
            }
            Item::UInt(_) => self.large = true,
            Item::Float(value) if !value.is_finite() => return Err(not_finite(value)),
            Item::Float(_) => self.float = true,
            Item::Text(text) => {
                if std::str::from_utf8(text).is_err() {
                    return Err("has a string that is not valid UTF-8".into());
                }
                self.text = true;
            }
            Item::Bytes => {
                return Err("has bytes or an extension: only numbers, strings and booleans are taken".into());
            }
            Item::Array(_) | Item::Map(_) => {
                return Err("has a list or map: only numbers, strings and booleans are taken".into());
            }
        }
        Ok(())
    }

    /// Strings, and nothing else but nil.
    pub(super) fn only_text(self) -> bool {
        self.text && !(self.bool || self.int || self.float || self.large)
    }

    /// The kind of column for these values where one of kind `known` is there; `None` if all are nil.
    pub(super) fn kind(self, tag: bool, known: Option<ColumnKind>) -> Result<Option<ColumnKind>, String> {
        use FieldType::{Bool, Float, Int, String as Text, UInt};
        let number = self.int || self.float || self.large;
        let of = match (self.text, self.bool, number) {
            (false, false, false) => return Ok(None),
            _ if tag => return Ok(Some(ColumnKind::Tag)),
            (true, false, false) => Text,
            (false, true, false) => Bool,
            (false, false, true) if self.float => Float,
            // A client sends an unsigned number that is small as any other number.
            (false, false, true) if known == Some(ColumnKind::Field(UInt)) && !self.negative => UInt,
            (false, false, true) if known == Some(ColumnKind::Field(Float)) => Float,
            (false, false, true) if self.large && self.negative => {
                return Err("has integers below 0 and above 9223372036854775807".into());
            }
            (false, false, true) if self.large => UInt,
            (false, false, true) => Int,
            _ => return Err("has values of several types".into()),
        };
        Ok(Some(ColumnKind::Field(of)))
    }
}

/// By its exponent alone: this looks at every float that is written.
#[inline]
fn is_finite([_mark, high, low, ..]: &[u8; 9]) -> bool {
    high & 0x7f != 0x7f || low & 0xf0 != 0xf0
}

fn not_finite(value: f64) -> String {
    format!("has {value}, which cannot be stored: a float must be finite")
}

/// A value as its column takes it; `None` for nil, and for an empty tag, which is no tag.
pub(super) fn value<'a>(
    item: Item<'a>,
    kind: ColumnKind,
    spelled: &'a mut Vec<u8>,
) -> Result<Option<Value<'a>>, String> {
    use std::io::Write;
    let number = |spelled: &'a mut Vec<u8>, number: std::fmt::Arguments<'_>| {
        spelled.clear();
        // Writing into memory does not fail.
        let _ = spelled.write_fmt(number);
        Value::Text(spelled)
    };
    let is = |of| kind == ColumnKind::Field(of);
    Ok(Some(match item {
        Item::Nil => return Ok(None),
        Item::Text(b"") if kind == ColumnKind::Tag => return Ok(None),
        Item::Text(text) => match std::str::from_utf8(text) {
            Ok(_) => Value::Text(text),
            Err(_) => return Err("has a string that is not valid UTF-8".into()),
        },
        Item::Int(n) if kind == ColumnKind::Tag => number(spelled, format_args!("{n}")),
        Item::UInt(n) if kind == ColumnKind::Tag => number(spelled, format_args!("{n}")),
        Item::Float(n) if kind == ColumnKind::Tag => number(spelled, format_args!("{n}")),
        Item::Bool(is) if kind == ColumnKind::Tag => Value::Text(if is { b"true" } else { b"false" }),
        Item::Int(n) if is(FieldType::UInt) => {
            Value::UInt(u64::try_from(n).map_err(|_| "has an integer below 0")?)
        }
        Item::Int(n) => Value::Int(n),
        Item::UInt(n) if is(FieldType::Float) => Value::Float(n as f64),
        Item::UInt(n) => Value::UInt(n),
        Item::Float(n) => Value::Float(n),
        Item::Bool(is) => Value::Bool(is),
        Item::Bytes | Item::Array(_) | Item::Map(_) => return Err("has a list, a map or bytes".into()),
    }))
}

/// So many times in nanoseconds, in the unit that the first says; all of them now if there are none.
pub(super) fn times(values: Option<Unpacker<'_>>, len: usize, now_ns: i64) -> Result<Vec<i64>, String> {
    let Some(mut values) = values else { return Ok(vec![now_ns; len]) };
    let mut unit = None;
    let mut times = Vec::with_capacity(len);
    while times.len() < len {
        let left = len - times.len();
        if let Some(Run::Ints(run)) = { values }.run(left) {
            let _ = values.run(left);
            let mut run = run.iter().map(|int| i64::from_be_bytes(eight(int)));
            let first = run.clone().next().unwrap_or(0);
            let unit = *unit.get_or_insert_with(|| unit_of(first));
            let fits = run.try_for_each(|time| time.checked_mul(unit).map(|time| times.push(time)));
            fits.ok_or_else(|| out_of_range(unit))?;
            continue;
        }
        let time = match values.next().map_err(broken)? {
            Item::Int(time) => time,
            Item::UInt(time) => return Err(format!("the time {time} does not fit 64 bits")),
            // As far as it says; what is behind the point is lost in Arc too.
            Item::Float(time) if time.abs() < i64::MAX as f64 => time as i64,
            _ => return Err("a time is not a number".into()),
        };
        let unit = *unit.get_or_insert_with(|| unit_of(time));
        times.push(time.checked_mul(unit).ok_or_else(|| out_of_range(unit))?);
    }
    Ok(times)
}

fn out_of_range(unit: i64) -> String {
    format!("a time is out of range: counted in {unit} ns, as the first")
}

/// Nanoseconds that a time of this magnitude counts in: Arc's thresholds.
fn unit_of(time: i64) -> i64 {
    match time.unsigned_abs() {
        0..10_000_000_000 => 1_000_000_000,
        10_000_000_000..10_000_000_000_000 => 1_000_000,
        10_000_000_000_000..10_000_000_000_000_000 => 1_000,
        _ => 1,
    }
}
