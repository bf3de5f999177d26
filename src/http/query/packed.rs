//! Arc's answer in MessagePack: one map, with the values column by column.
//!
//! A column says how many values it has ahead of them, so that nothing can be sent before the last
//! row is there: there is a limit on what is kept until then.

use std::{fmt, io};

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};
use arrow_cast::{
    CastOptions, cast_with_options,
    display::{ArrayFormatter, FormatOptions},
};
use arrow_schema::{ArrowError, DataType, SchemaRef, TimeUnit};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use rmp::encode;
use tokio::time::Instant;

use super::rows::now_text;
use crate::engine::columnar::sql::{QueryError, QueryStream};

/// Most bytes of the values of one answer.
const MAX_BYTES: usize = 64 << 20;
/// The extension type that the specification of MessagePack gives to times.
const TIMESTAMP: i8 = -1;

/// The answer in pieces; `started` is when the request came.
pub(super) fn encode(
    rows: QueryStream,
    started: Instant,
    now_ns: fn() -> i64,
) -> impl Stream<Item = Result<Bytes, QueryError>> + Send {
    let whole = async move { Ok(document(rows, started, now_ns).await?.into_iter().map(Ok)) };
    futures::stream::once(whole).flat_map(|done: Result<_, QueryError>| match done {
        Ok(pieces) => futures::stream::iter(pieces).left_stream(),
        Err(error) => futures::stream::iter([Err(error)]).right_stream(),
    })
}

async fn document(
    mut rows: QueryStream,
    started: Instant,
    now_ns: fn() -> i64,
) -> Result<Vec<Bytes>, QueryError> {
    let schema = rows.schema();
    let mut columns = vec![Vec::new(); schema.fields().len()];
    let (mut count, mut bytes) = (0, 0);
    while let Some(batch) = rows.next().await.transpose()? {
        count += batch.num_rows();
        bytes += append(&mut columns, &batch).map_err(unwritable)?;
        if bytes > MAX_BYTES {
            let most = MAX_BYTES >> 20;
            let why = format!("MessagePack takes {most} MiB; add a LIMIT or ask at /api/v1/query/arrow");
            return Err(QueryError::TooLarge(why));
        }
    }
    let mut pieces = vec![head(&schema).map_err(unwritable)?];
    for column in columns {
        pieces.extend([array(count).map_err(unwritable)?, column.into()]);
    }
    pieces.push(tail(count, started.elapsed().as_millis(), now_ns()).map_err(unwritable)?);
    Ok(pieces)
}

/// Everything ahead of the first column.
fn head(schema: &SchemaRef) -> io::Result<Bytes> {
    let mut to = Vec::new();
    let columns = array(schema.fields().len())?;
    encode::write_map_len(&mut to, 7)?;
    encode::write_str(&mut to, "success")?;
    encode::write_bool(&mut to, true)?;
    encode::write_str(&mut to, "columns")?;
    to.extend_from_slice(&columns);
    for field in schema.fields() {
        encode::write_str(&mut to, field.name())?;
    }
    encode::write_str(&mut to, "types")?;
    to.extend_from_slice(&columns);
    for field in schema.fields() {
        encode::write_str(&mut to, &type_name(field.data_type()))?;
    }
    encode::write_str(&mut to, "data")?;
    to.extend_from_slice(&columns);
    Ok(to.into())
}

/// What stands ahead of the values of an array.
fn array(len: usize) -> io::Result<Bytes> {
    let len = u32::try_from(len).map_err(|_| io::Error::other(format!("{len} values in one array")))?;
    let mut to = Vec::new();
    encode::write_array_len(&mut to, len)?;
    Ok(to.into())
}

/// Everything behind the last column.
fn tail(rows: usize, took_ms: u128, now_ns: i64) -> io::Result<Bytes> {
    let mut to = Vec::new();
    encode::write_str(&mut to, "row_count")?;
    encode::write_uint(&mut to, rows as u64)?;
    encode::write_str(&mut to, "execution_time_ms")?;
    encode::write_uint(&mut to, u64::try_from(took_ms).unwrap_or(u64::MAX))?;
    encode::write_str(&mut to, "timestamp")?;
    encode::write_str(&mut to, &now_text(now_ns).unwrap_or_default())?;
    Ok(to.into())
}

/// The word for a column in `types`: how its values are written.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Dictionary(_, values) => type_name(values),
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => "timestamp[ns]".into(),
        DataType::Null => "null".into(),
        DataType::Boolean => "bool".into(),
        number if number.is_integer() || matches!(number, DataType::Float32 | DataType::Float64) => {
            number.to_string().to_lowercase()
        }
        // Whatever else there is goes as text.
        _ => "utf8".into(),
    }
}

/// Adds the values of a batch to its columns; how many bytes that were.
fn append(columns: &mut [Vec<u8>], batch: &RecordBatch) -> Result<usize, ArrowError> {
    let mut bytes = 0;
    for (to, column) in columns.iter_mut().zip(batch.columns()) {
        let before = to.len();
        append_column(to, column)?;
        bytes += to.len() - before;
    }
    Ok(bytes)
}

fn append_column(to: &mut Vec<u8>, column: &ArrayRef) -> Result<(), ArrowError> {
    let data_type = match column.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        plain => plain,
    };
    match data_type {
        DataType::Null => each(to, (0..column.len()).map(|_| None::<()>), |_, ()| Ok(())),
        DataType::Boolean => {
            let column = cast(column, &DataType::Boolean)?;
            each(to, column.as_boolean().iter(), encode::write_bool)
        }
        number if number.is_unsigned_integer() => {
            let column = cast(column, &DataType::UInt64)?;
            each(to, column.as_primitive::<UInt64Type>().iter(), |to, n| {
                Ok(encode::write_uint(to, n).map(drop)?)
            })
        }
        number if number.is_integer() => {
            let column = cast(column, &DataType::Int64)?;
            each(to, column.as_primitive::<Int64Type>().iter(), |to, n| {
                Ok(encode::write_sint(to, n).map(drop)?)
            })
        }
        DataType::Float32 | DataType::Float64 => {
            let column = cast(column, &DataType::Float64)?;
            each(to, column.as_primitive::<Float64Type>().iter(), |to, n| Ok(encode::write_f64(to, n)?))
        }
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            let column = cast(column, &DataType::Timestamp(TimeUnit::Nanosecond, None))?;
            each(to, column.as_primitive::<TimestampNanosecondType>().iter(), write_time)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let column = cast(column, &DataType::Utf8)?;
            each(to, column.as_string::<i32>().iter(), |to, text| Ok(encode::write_str(to, text)?))
        }
        _ => {
            let text = ArrayFormatter::try_new(column, &FormatOptions::default())?;
            let values = (0..column.len()).map(|at| column.is_valid(at).then(|| text.value(at).to_string()));
            each(to, values, |to, text| Ok(encode::write_str(to, &text)?))
        }
    }
    .map_err(ArrowError::from)
}

fn each<T>(
    to: &mut Vec<u8>,
    values: impl Iterator<Item = Option<T>>,
    write: impl Fn(&mut Vec<u8>, T) -> io::Result<()>,
) -> io::Result<()> {
    for value in values {
        match value {
            None => encode::write_nil(to)?,
            Some(value) => write(to, value)?,
        }
    }
    Ok(())
}

/// The shortest form of a time: the specification of MessagePack has three.
fn write_time(to: &mut Vec<u8>, at: i64) -> io::Result<()> {
    let (seconds, nanoseconds) = (at.div_euclid(1_000_000_000), at.rem_euclid(1_000_000_000) as u32);
    match (u32::try_from(seconds), u64::try_from(seconds)) {
        (Ok(seconds), _) if nanoseconds == 0 => {
            encode::write_ext_meta(to, 4, TIMESTAMP)?;
            to.extend_from_slice(&seconds.to_be_bytes());
        }
        // 30 bits of nanoseconds and 34 of seconds: an i64 of nanoseconds has fewer.
        (_, Ok(seconds)) => {
            encode::write_ext_meta(to, 8, TIMESTAMP)?;
            to.extend_from_slice(&(u64::from(nanoseconds) << 34 | seconds).to_be_bytes());
        }
        (_, Err(_)) => {
            encode::write_ext_meta(to, 12, TIMESTAMP)?;
            to.extend_from_slice(&nanoseconds.to_be_bytes());
            to.extend_from_slice(&seconds.to_be_bytes());
        }
    }
    Ok(())
}

/// A value that the other type cannot hold is an error, never a null.
fn cast(column: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(column, to, &CastOptions { safe: false, ..CastOptions::default() })
}

fn unwritable(error: impl fmt::Display) -> QueryError {
    QueryError::Invalid(format!("the answer cannot be written as MessagePack: {error}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Date32Array, ListArray, NullArray, TimestampSecondArray, UInt8Array};

    use super::*;

    fn packed(column: ArrayRef) -> Result<Vec<u8>, ArrowError> {
        let mut to = Vec::new();
        append_column(&mut to, &column).map(|()| to)
    }

    /// Bytes as the specification has them.
    #[test]
    fn times_have_three_forms() {
        let time = |at: i64| {
            let mut to = Vec::new();
            write_time(&mut to, at).unwrap();
            to
        };
        assert_eq!(time(0), [0xd6, 0xff, 0, 0, 0, 0]);
        assert_eq!(time(1), [0xd7, 0xff, 0, 0, 0, 4, 0, 0, 0, 0]);
        assert_eq!(time(-1), [[0xc7, 12, 0xff].as_slice(), &[0x3b, 0x9a, 0xc9, 0xff], &[0xff; 8]].concat());
        let year_2106 = 4_294_967_296_000_000_000;
        assert_eq!(time(year_2106), [0xd7, 0xff, 0, 0, 0, 1, 0, 0, 0, 0]);
        for end in [i64::MIN, i64::MAX] {
            assert!(time(end).len() <= 15);
        }
    }

    #[test]
    fn other_types_become_one_of_these_or_text() {
        assert_eq!(packed(Arc::new(UInt8Array::from(vec![Some(200), None]))).unwrap(), [0xcc, 200, 0xc0]);
        assert_eq!(packed(Arc::new(NullArray::new(2))).unwrap(), [0xc0, 0xc0]);
        assert_eq!(packed(Arc::new(Date32Array::from(vec![1]))).unwrap(), [0xd6, 0xff, 0, 1, 0x51, 0x80]);
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), Some(2)])]);
        assert_eq!(packed(Arc::new(list)).unwrap(), b"\xa6[1, 2]");
        // No time of that year has so many nanoseconds.
        assert!(packed(Arc::new(TimestampSecondArray::from(vec![i64::MAX]))).is_err());
    }
}
