//! Values that a client binds to the parameters of a prepared statement: one row of Arrow.
//!
//! It is read here cell by cell. Arrow's own reader allocates what a compressed buffer says it will
//! be long, and panics at types that there are not; this one does neither, whatever it is sent.

use std::collections::BTreeSet;

use arrow_flight::FlightData;
use arrow_ipc::{
    Buffer, DateUnit, Field, Message, MessageHeader, Precision, RecordBatch, TimeUnit, Type, root_as_message,
};
use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::{
    engine::columnar::sql::{MAX_PARAMETERS, Parameter, Parameters},
    http::{error::ApiError, flight::status, params::shown},
};

/// A schema and one row is two; clients may add some that are empty.
const MAX_MESSAGES: usize = 8;

/// Columns and rows as they were sent.
#[derive(Default)]
pub(super) struct Given {
    schema: Bytes,
    rows: Vec<FlightData>,
}

/// Takes what is put, and the command that says what it is for.
pub(super) async fn take(mut messages: Streaming<FlightData>) -> Result<(Bytes, Given), Status> {
    let (mut command, mut given) = (None, Given::default());
    let mut count = 0;
    while let Some(mut message) = messages.message().await? {
        count += 1;
        if count > MAX_MESSAGES {
            return Err(status(ApiError::invalid("bind one row of values: a query is run once")));
        }
        if let Some(descriptor) = message.flight_descriptor.take() {
            command.get_or_insert(descriptor.cmd);
        }
        match header(&message.data_header) {
            Some(MessageHeader::Schema) => given.schema = message.data_header,
            Some(_) => given.rows.push(message),
            None => {}
        }
    }
    Ok((command.unwrap_or_default(), given))
}

fn header(message: &[u8]) -> Option<MessageHeader> {
    Some(root_as_message(message).ok()?.header_type())
}

/// The values for parameters of these names. By name if the columns have just these names, else in
/// order.
pub(super) fn values(given: &Given, names: &[String]) -> Result<Parameters, String> {
    let [row] = &given.rows[..] else {
        return Err("bind one row of values: a query is run once".to_owned());
    };
    let columns = read(&given.schema, row)?;
    let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let named = |name: &str| name.strip_prefix('$').unwrap_or(name).to_owned();
    let have: BTreeSet<String> = columns.iter().map(|(name, _)| named(name)).collect();
    let by_name = have.len() == columns.len() && have.iter().map(String::as_str).eq(wanted.iter().copied());
    if !by_name && !names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let wanted = shown(&names.join(", "));
        return Err(format!("the statement's parameters have names ({wanted}): bind values by these names"));
    }
    let mut values = Parameters::default();
    for (at, (name, value)) in columns.into_iter().enumerate() {
        values.set(if by_name { named(&name) } else { (at + 1).to_string() }, value);
    }
    Ok(values)
}

/// The columns of a batch of one row.
fn read(schema: &[u8], row: &FlightData) -> Result<Vec<(String, Parameter)>, String> {
    let damaged = || "what is bound is no Arrow that can be read".to_owned();
    let schema: Message<'_> = root_as_message(schema).map_err(|_| damaged())?;
    let fields = schema.header_as_schema().and_then(|schema| schema.fields()).ok_or_else(damaged)?;
    let batch = root_as_message(&row.data_header).map_err(|_| damaged())?;
    let batch: RecordBatch<'_> = batch.header_as_record_batch().ok_or_else(damaged)?;
    if batch.compression().is_some() {
        return Err("bound values must not be compressed".to_owned());
    }
    if batch.length() != 1 {
        return Err(format!("bind one row of values, not {}: a query is run once", batch.length()));
    }
    if fields.len() > MAX_PARAMETERS {
        return Err(format!("a statement may have {MAX_PARAMETERS} parameters"));
    }
    let nodes = batch.nodes().ok_or_else(damaged)?;
    if nodes.len() != fields.len() {
        return Err(damaged());
    }
    let buffers: Vec<&Buffer> = batch.buffers().ok_or_else(damaged)?.iter().collect();
    let mut variadic = batch.variadicBufferCounts().into_iter().flatten();
    let mut cells = Cells { buffers: buffers.into_iter(), body: &row.data_body };
    let mut columns = Vec::with_capacity(fields.len());
    for (field, node) in fields.iter().zip(nodes) {
        let name = field.name().unwrap_or_default();
        let value = cells.value(&field, node.null_count() != 0, &mut variadic);
        let value = value.map_err(|why| format!("parameter {}: {why}", shown(name)))?;
        columns.push((name.to_owned(), value));
    }
    Ok(columns)
}

/// The buffers of a batch, in order.
struct Cells<'a> {
    buffers: std::vec::IntoIter<&'a Buffer>,
    body: &'a [u8],
}

type Cell<T> = Result<T, String>;

impl<'a> Cells<'a> {
    fn next(&mut self) -> Cell<&'a [u8]> {
        let buffer = self.buffers.next().ok_or_else(cut)?;
        let start = usize::try_from(buffer.offset()).map_err(|_| cut())?;
        let end = usize::try_from(buffer.length()).ok().and_then(|len| start.checked_add(len));
        end.and_then(|end| self.body.get(start..end)).ok_or_else(cut)
    }

    /// The first value of a column.
    fn value(
        &mut self,
        field: &Field<'_>,
        has_null: bool,
        variadic: &mut impl Iterator<Item = i64>,
    ) -> Cell<Parameter> {
        if field.dictionary().is_some() {
            return Err("dictionaries cannot be bound".to_owned());
        }
        if field.type_type() == Type::Null {
            return Ok(Parameter::Null);
        }
        let validity = self.next()?;
        let values = self.next()?;
        let value = match field.type_type() {
            Type::Bool => first::<1>(values).map(|[byte]| Parameter::Bool(byte & 1 == 1)),
            Type::Int => integer(field, values),
            Type::FloatingPoint => float(field, values),
            Type::Utf8 => {
                let text = self.next()?;
                let at = |at: usize| Some(i32::from_le_bytes(*values.get(at * 4..)?.first_chunk()?));
                span(text, at(0).map(i64::from), at(1).map(i64::from))
            }
            Type::LargeUtf8 => {
                let text = self.next()?;
                let at = |at: usize| Some(i64::from_le_bytes(*values.get(at * 8..)?.first_chunk()?));
                span(text, at(0), at(1))
            }
            Type::Utf8View => {
                let count = variadic.next().and_then(|count| usize::try_from(count).ok()).ok_or_else(cut)?;
                let texts =
                    (0..count.min(self.buffers.len() + 1)).map(|_| self.next()).collect::<Cell<Vec<_>>>()?;
                view(values, &texts)
            }
            Type::Timestamp => timestamp(field, values),
            Type::Date => date(field, values),
            other => {
                Err(format!("values of type {} cannot be bound", other.variant_name().unwrap_or("unknown")))
            }
        };
        // An unread null would leave its bytes to the next column, so what it stands for is read first.
        if has_null && validity.first().is_none_or(|bits| bits & 1 == 0) {
            Ok(Parameter::Null)
        } else {
            value
        }
    }
}

fn cut() -> String {
    "its bytes are not there".to_owned()
}

fn first<const N: usize>(values: &[u8]) -> Cell<[u8; N]> {
    values.first_chunk().copied().ok_or_else(cut)
}

fn integer(field: &Field<'_>, values: &[u8]) -> Cell<Parameter> {
    let int = field.type_as_int().ok_or_else(cut)?;
    Ok(match (int.bitWidth(), int.is_signed()) {
        (8, true) => Parameter::Int(i8::from_le_bytes(first(values)?).into()),
        (16, true) => Parameter::Int(i16::from_le_bytes(first(values)?).into()),
        (32, true) => Parameter::Int(i32::from_le_bytes(first(values)?).into()),
        (64, true) => Parameter::Int(i64::from_le_bytes(first(values)?)),
        (8, false) => Parameter::Int(u8::from_le_bytes(first(values)?).into()),
        (16, false) => Parameter::Int(u16::from_le_bytes(first(values)?).into()),
        (32, false) => Parameter::Int(u32::from_le_bytes(first(values)?).into()),
        (64, false) => {
            let value = u64::from_le_bytes(first(values)?);
            i64::try_from(value).map_or(Parameter::UInt(value), Parameter::Int)
        }
        (bits, _) => return Err(format!("integers of {bits} bits cannot be bound")),
    })
}

fn float(field: &Field<'_>, values: &[u8]) -> Cell<Parameter> {
    let value = match field.type_as_floating_point().ok_or_else(cut)?.precision() {
        Precision::SINGLE => f32::from_le_bytes(first(values)?).into(),
        Precision::DOUBLE => f64::from_le_bytes(first(values)?),
        _ => return Err("floats of half precision cannot be bound".to_owned()),
    };
    if value.is_finite() { Ok(Parameter::Float(value)) } else { Err("a float must be finite".to_owned()) }
}

fn span(text: &[u8], start: Option<i64>, end: Option<i64>) -> Cell<Parameter> {
    let at = |at: Option<i64>| at.and_then(|at| usize::try_from(at).ok()).ok_or_else(cut);
    let bytes = text.get(at(start)?..at(end)?).ok_or_else(cut)?;
    let text = std::str::from_utf8(bytes).map_err(|_| "its text is not UTF-8".to_owned())?;
    Ok(Parameter::Text(text.to_owned()))
}

/// Up to twelve bytes stand in the view, more in one of the buffers behind it.
fn view(values: &[u8], texts: &[&[u8]]) -> Cell<Parameter> {
    let view: [u8; 16] = first(values)?;
    let [l0, l1, l2, l3, inline @ ..] = view;
    let len = i64::from(i32::from_le_bytes([l0, l1, l2, l3]));
    if len <= 12 {
        return span(&inline, Some(0), Some(len));
    }
    let [_, _, _, _, b0, b1, b2, b3, o0, o1, o2, o3] = inline;
    let buffer = usize::try_from(i32::from_le_bytes([b0, b1, b2, b3])).map_err(|_| cut())?;
    let start = i64::from(i32::from_le_bytes([o0, o1, o2, o3]));
    span(texts.get(buffer).copied().ok_or_else(cut)?, Some(start), Some(start + len))
}

fn timestamp(field: &Field<'_>, values: &[u8]) -> Cell<Parameter> {
    let unit = match field.type_as_timestamp().ok_or_else(cut)?.unit() {
        TimeUnit::SECOND => 1_000_000_000,
        TimeUnit::MILLISECOND => 1_000_000,
        TimeUnit::MICROSECOND => 1_000,
        TimeUnit::NANOSECOND => 1,
        _ => return Err("the unit of the time is not known".to_owned()),
    };
    time(i64::from_le_bytes(first(values)?), unit)
}

fn date(field: &Field<'_>, values: &[u8]) -> Cell<Parameter> {
    match field.type_as_date().ok_or_else(cut)?.unit() {
        DateUnit::DAY => time(i32::from_le_bytes(first(values)?).into(), 86_400_000_000_000),
        _ => time(i64::from_le_bytes(first(values)?), 1_000_000),
    }
}

fn time(count: i64, unit: i64) -> Cell<Parameter> {
    let ns = count.checked_mul(unit);
    ns.map(Parameter::Time).ok_or_else(|| "the time is not between the years 1677 and 2262".to_owned())
}

#[cfg(test)]
mod tests;
