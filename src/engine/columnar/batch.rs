//! A batch of points in columns, and its bytes in a log record (encoding 1).
//!
//! ```text
//! payload = length of head (u32 LE), head (MessagePack), zeros up to a multiple of 8,
//!           then per table one Arrow IPC encapsulated record batch message without schema
//! ```
//! The head says everything that the writer must know to let a batch in; only `decode` reads rows.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::ArrowError;
use bytes::Bytes;

pub use encode::encode;
pub(super) use encode::{Bits, Columns, Table, payload_of};
use head::{Head, TableHead};
pub(super) use points::{Points, TablePoints, Values};

use super::schema::{SchemaError, Schemas, TableSchema, check_database_name, check_table_name};

mod decode;
mod encode;
mod head;
mod points;

/// The encoding byte of the payload that [`encode`] makes.
pub const ENCODING: u8 = 1;

/// Every part of a payload starts at a multiple of this, so that columns can be used in place.
const ALIGNMENT: usize = 8;
/// Marks the start of an encapsulated Arrow IPC message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Points for one database.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its name.
    pub database: String,
    /// At least one table, each once.
    pub tables: Vec<TableBatch>,
}

/// Points for one table.
#[derive(Debug, Clone, PartialEq)]
pub struct TableBatch {
    /// Its name.
    pub table: String,
    /// The columns that these points have: a part of the table's, in their own order.
    pub schema: Arc<TableSchema>,
    /// Fingerprint of the schema that the table had when this was parsed; 0 if it was new.
    pub assigned: u64,
    /// At least one row; the Arrow schema is `schema.to_arrow()`.
    pub rows: RecordBatch,
}

/// What a payload says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name of the database.
    pub database: String,
    /// The tables in order.
    pub tables: Vec<TableHeader>,
}

/// What a payload says about one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableHeader {
    /// Name of the table.
    pub name: String,
    /// Columns of the rows.
    pub schema: Arc<TableSchema>,
    /// Fingerprint of the schema that the table had when the rows were parsed; 0 if it was new.
    pub assigned: u64,
    /// How many rows, at least one.
    pub rows: u32,
    /// Length of the Arrow IPC message in bytes, padding included.
    pub ipc_len: u32,
}

/// A payload cannot be made or read. A retry cannot help.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Bytes are missing, too many, or not what the format asks for.
    #[error("malformed batch: {0}")]
    Malformed(String),
    /// A name or a set of columns that cannot be.
    #[error("malformed batch: {0}")]
    Schema(#[from] SchemaError),
    /// Arrow does not take or give these columns.
    #[error("malformed batch: {0}")]
    Arrow(#[from] ArrowError),
}

impl Batch {
    /// Rows of all tables.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows.num_rows()).sum()
    }
}

/// What is in a payload; cheap, rows are not looked at.
///
/// # Errors
/// The head is malformed or does not fit the payload's length.
pub fn peek(payload: &Bytes) -> Result<Header, BatchError> {
    Ok(open(payload, &Schemas::default())?.head.into())
}

/// As [`peek`]; but `None` if each table has just the columns that are known of it.
///
/// # Errors
/// As [`peek`].
pub(super) fn peek_new(payload: &Bytes, known: &Schemas) -> Result<Option<Header>, BatchError> {
    let head = open(payload, known)?.head;
    Ok((!head.all_known).then(|| head.into()))
}

/// The batch of a payload. Columns share the payload's memory where they are aligned.
///
/// # Errors
/// Anything that [`encode`] would not have made. Never panics, whatever the bytes.
pub fn decode(payload: &Bytes) -> Result<Batch, BatchError> {
    Ok(points_like(payload, &Schemas::default())?.to_batch()?)
}

/// As [`decode`], without Arrow's batches. Where a table of `known` has just these columns, its schema is taken for
/// them, with what was made of it before.
///
/// # Errors
/// As [`decode`].
pub(super) fn points_like<'a>(payload: &'a Bytes, known: &Schemas) -> Result<Points<'a>, BatchError> {
    let Opened { head, mut start } = open(payload, known)?;
    let whole = Buffer::from(payload.clone());
    let mut tables = Vec::with_capacity(head.tables.len());
    for TableHead { name, schema, assigned, rows, ipc_len } in head.tables {
        let (rows, len) = (rows as usize, ipc_len as usize);
        // `open` has checked that the lengths add up to the payload's.
        let columns = decode::columns(&whole.slice_with_length(start, len), rows, &schema)?;
        start += len;
        tables.push(TablePoints { table: name, schema, assigned, rows, columns });
    }
    Ok(Points { database: head.database, all_known: head.all_known, tables })
}

/// A payload whose head was read.
struct Opened<'a> {
    head: Head<'a>,
    /// Where the first table's message begins.
    start: usize,
}

fn open<'a>(payload: &'a Bytes, known: &Schemas) -> Result<Opened<'a>, BatchError> {
    let (head_len, rest) = payload.split_first_chunk::<4>().ok_or_else(|| malformed("it has no head"))?;
    let head_len = u32::from_le_bytes(*head_len) as usize;
    let head = rest.get(..head_len).ok_or_else(|| malformed("its head is cut off"))?;
    let head = head::read(head, known)?;
    let start = (4 + head_len).next_multiple_of(ALIGNMENT);
    let body: u64 = head.tables.iter().map(|table| u64::from(table.ipc_len)).sum();
    if head.tables.is_empty() || start as u64 + body != payload.len() as u64 {
        return Err(malformed("it has no tables or another length than its head says"));
    }
    Ok(Opened { head, start })
}

fn length(len: usize) -> Result<u32, BatchError> {
    u32::try_from(len).map_err(|_| malformed("a part is longer than 4 GiB"))
}

fn malformed(reason: impl Into<String>) -> BatchError {
    BatchError::Malformed(reason.into())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray, UInt64Array,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::engine::columnar::schema::ColumnKind;

    pub(in crate::engine::columnar) fn sample() -> Batch {
        let schema =
            TableSchema::new((0..=5).map(|code| (format!("c{code}"), ColumnKind::try_from(code).unwrap())));
        let schema = schema.unwrap();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from(vec![1, 2, i64::MIN])),
            Arc::new(StringArray::from(vec![Some("a"), None, Some("größe")])),
            Arc::new(Float64Array::from(vec![Some(0.5), None, Some(-1.0)])),
            Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3)])),
            Arc::new(UInt64Array::from(vec![None, None, Some(u64::MAX)])),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(StringArray::from(vec![None, Some(""), Some("text")])),
        ];
        let rows = RecordBatch::try_new(schema.to_arrow(), columns).unwrap();
        let one = TableBatch { table: "cpu".into(), schema: schema.into(), assigned: 7, rows };
        let two = TableBatch { table: "mem, or ory".into(), rows: one.rows.slice(1, 2), ..one.clone() };
        Batch { database: "home".into(), tables: vec![one, two] }
    }

    #[test]
    fn a_batch_comes_back_whatever_its_alignment() {
        let batch = sample();
        let payload = encode(&batch).unwrap();
        let header = peek(&payload).unwrap();
        assert_eq!(header.database, "home");
        assert_eq!(header.tables.iter().map(|table| table.rows).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(header.tables[0].schema, batch.tables[0].schema);
        assert_eq!(header.tables[1].assigned, 7);
        assert_eq!(batch.rows(), 5);
        for shift in 0..9 {
            let mut moved = vec![0; shift];
            moved.extend_from_slice(&payload);
            assert_eq!(decode(&Bytes::from(moved).slice(shift..)).unwrap(), batch);
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_survived() {
        let payload = encode(&sample()).unwrap();
        for end in 0..payload.len() {
            assert!(decode(&payload.slice(..end)).is_err(), "cut at {end}");
        }
        for at in 0..payload.len() * 8 {
            let mut bytes = payload.to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            // A flipped value bit is still a batch; what counts is that nothing panics.
            let _ = decode(&bytes.into());
        }
    }

    #[test]
    fn rows_that_do_not_match_the_head_are_refused() {
        let mut batch = sample();
        batch.tables[0].rows = batch.tables[0].rows.project(&[0, 1]).unwrap();
        assert!(encode(&batch).is_err());
        let mut batch = sample();
        batch.tables[1].table = "cpu".into();
        assert!(decode(&encode(&batch).unwrap()).is_err());
        batch.tables.clear();
        assert!(decode(&encode(&batch).unwrap()).is_err());
        let mut batch = sample();
        batch.database = "no/name".into();
        assert!(peek(&encode(&batch).unwrap()).is_err());
    }

    #[test]
    fn a_null_time_is_refused() {
        let schema = TableSchema::default();
        let field = schema.to_arrow().field(0).clone().with_nullable(true);
        let time: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![Some(1), None]));
        let rows =
            RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(vec![field])), vec![time]).unwrap();
        let table = TableBatch { table: "t".into(), schema: schema.into(), assigned: 0, rows };
        let payload = encode(&Batch { database: "home".into(), tables: vec![table] }).unwrap();
        assert!(decode(&payload).unwrap_err().to_string().contains("without a time"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            at in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 1..24),
        ) {
            let mut payload = encode(&sample()).unwrap().to_vec();
            let at = at.index(payload.len());
            for (slot, byte) in payload[at..].iter_mut().zip(bytes) {
                *slot = byte;
            }
            let _ = decode(&payload.into());
        }
    }
}
