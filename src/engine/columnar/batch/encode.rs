//! From columns to a payload. A column is copied once, to its place: Arrow's own writer puts a message
//! together in memory that grows, and copies it from there.

use arrow_array::{
    Array, ArrayRef,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};
use arrow_buffer::{Buffer, NullBuffer};
use arrow_ipc::{FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::{
    super::schema::TableSchema, ALIGNMENT, Batch, BatchError, CONTINUATION, TableBatch, head, length,
    malformed,
};

/// Bytes of a message before its metadata: the mark and a length.
const PREFIX: usize = 8;

/// The payload of a batch, [`ENCODING`](super::ENCODING).
///
/// # Errors
/// More than 4 GiB, or rows that do not have the columns of their schema.
pub fn encode(batch: &Batch) -> Result<Bytes, BatchError> {
    payload_of(&batch.database, &batch.tables)
}

/// Points of one table that can be put into a payload.
pub(in crate::engine::columnar) trait Table {
    fn name(&self) -> &str;
    fn schema(&self) -> &TableSchema;
    /// See [`TableBatch::assigned`].
    fn assigned(&self) -> u64;
    fn rows(&self) -> usize;
    /// The time, then the columns of the schema.
    fn columns<'a>(&'a self, to: &mut Columns<'a>) -> Result<(), BatchError>;
}

/// The payload of these tables, each of which is there once.
pub(in crate::engine::columnar) fn payload_of<T: Table>(
    database: &str,
    tables: &[T],
) -> Result<Bytes, BatchError> {
    let (mut messages, mut lengths) = (Messages::new(tables), Vec::with_capacity(tables.len()));
    for table in tables {
        lengths.push(length(messages.add(table)?)?);
    }
    let head = head::write(database, tables, &lengths)?;
    let body: usize = lengths.iter().map(|len| *len as usize).sum();
    let mut payload = Vec::with_capacity((4 + head.len()).next_multiple_of(ALIGNMENT) + body);
    payload.extend_from_slice(&length(head.len())?.to_le_bytes());
    payload.extend_from_slice(&head);
    pad(&mut payload);
    messages.write(&mut payload);
    Ok(payload.into())
}

/// The columns of tables, as they stand in messages one behind the other.
pub(in crate::engine::columnar) struct Columns<'a> {
    nodes: Vec<FieldNode>,
    buffers: Vec<Bits<'a>>,
}

/// Bytes of a buffer.
pub(in crate::engine::columnar) enum Bits<'a> {
    There(&'a [u8]),
    Made(Buffer),
}

impl<'a> Columns<'a> {
    /// A column of so many rows; its values follow.
    ///
    /// # Errors
    /// More rows than can be.
    pub(in crate::engine::columnar) fn begin(
        &mut self,
        rows: usize,
        nulls: Option<&NullBuffer>,
    ) -> Result<(), BatchError> {
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        self.nodes.push(FieldNode::new(of(rows)?, of(nulls.map_or(0, NullBuffer::null_count))?));
        self.buffers.push(nulls.map_or(Bits::There(&[]), |nulls| Bits::Made(nulls.inner().sliced())));
        Ok(())
    }

    /// A buffer of its values.
    pub(in crate::engine::columnar) fn values(&mut self, bits: Bits<'a>) {
        self.buffers.push(bits);
    }
}

impl Bits<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::There(bytes) => bytes,
            Self::Made(buffer) => buffer,
        }
    }
}

/// Encapsulated Arrow IPC messages of one record batch each. Every part of them is padded to
/// [`ALIGNMENT`]. All share what memory they need.
struct Messages<'a> {
    /// What stands before the buffers of each: prefix, metadata, padding.
    heads: Vec<u8>,
    columns: Columns<'a>,
    /// For each, how many bytes of `heads` and which of the buffers are its own.
    parts: Vec<(usize, usize)>,
    builder: FlatBufferBuilder<'static>,
    places: Vec<arrow_ipc::Buffer>,
}

impl<'a> Messages<'a> {
    fn new<T: Table>(tables: &[T]) -> Self {
        // What a head takes besides two places of 16 bytes for a column.
        const HEAD: usize = 192;
        let widths = || tables.iter().map(|table| table.schema().columns().len() + 1);
        let (widest, all) = (widths().max().unwrap_or(0), widths().sum::<usize>());
        Self {
            heads: Vec::with_capacity(tables.len() * HEAD + all * 64),
            columns: Columns { nodes: Vec::with_capacity(widest), buffers: Vec::with_capacity(all * 3) },
            parts: Vec::with_capacity(tables.len()),
            builder: FlatBufferBuilder::with_capacity(HEAD + widest * 64),
            places: Vec::with_capacity(widest * 3),
        }
    }

    /// Adds a message, and says how long it is.
    fn add(&mut self, table: &'a impl Table) -> Result<usize, BatchError> {
        let places = &mut self.places;
        self.columns.nodes.clear();
        places.clear();
        let first = self.columns.buffers.len();
        table.columns(&mut self.columns)?;
        let Columns { nodes, buffers } = &self.columns;
        if nodes.len() != table.schema().columns().len() + 1 {
            return Err(malformed("rows and schema differ in their columns"));
        }
        let mut body = 0;
        for buffer in buffers.iter().skip(first) {
            let len = buffer.bytes().len();
            places.push(arrow_ipc::Buffer::new(of(body)?, of(len)?));
            body += len.next_multiple_of(ALIGNMENT);
        }
        let builder = &mut self.builder;
        builder.reset();
        let places = builder.create_vector(places);
        let nodes = builder.create_vector(nodes);
        let mut batch = RecordBatchBuilder::new(builder);
        batch.add_length(of(table.rows())?);
        batch.add_nodes(nodes);
        batch.add_buffers(places);
        let batch = batch.finish().as_union_value();
        let mut message = MessageBuilder::new(builder);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(MessageHeader::RecordBatch);
        message.add_bodyLength(of(body)?);
        message.add_header(batch);
        let message = message.finish();
        builder.finish(message, None);
        let metadata = builder.finished_data();
        let head = (PREFIX + metadata.len()).next_multiple_of(ALIGNMENT);
        self.heads.extend_from_slice(&CONTINUATION);
        self.heads.extend_from_slice(&length(head - PREFIX)?.to_le_bytes());
        self.heads.extend_from_slice(metadata);
        // All before it are padded too.
        pad(&mut self.heads);
        self.parts.push((head, buffers.len() - first));
        Ok(head + body)
    }

    /// Behind what is a multiple of [`ALIGNMENT`] long.
    fn write(&self, payload: &mut Vec<u8>) {
        let (mut heads, mut buffers) = (self.heads.as_slice(), self.columns.buffers.iter());
        for (head, count) in &self.parts {
            let (own, rest) = heads.split_at_checked(*head).unwrap_or_default();
            payload.extend_from_slice(own);
            for buffer in buffers.by_ref().take(*count) {
                payload.extend_from_slice(buffer.bytes());
                pad(payload);
            }
            heads = rest;
        }
    }
}

impl Table for TableBatch {
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
        self.rows.num_rows()
    }

    fn columns<'a>(&'a self, to: &mut Columns<'a>) -> Result<(), BatchError> {
        for column in self.rows.columns() {
            to.begin(column.len(), column.nulls())?;
            values(column, to)?;
        }
        Ok(())
    }
}

/// The buffers of a column's values, which begin with its first row.
fn values<'a>(column: &'a ArrayRef, to: &mut Columns<'a>) -> Result<(), BatchError> {
    let wrong = || malformed(format!("a column of type {}, which no table has", column.data_type()));
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, None) => {
            let times = column.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(wrong)?;
            to.values(Bits::There(times.values().inner()));
        }
        DataType::Float64 => {
            let floats = column.as_primitive_opt::<Float64Type>().ok_or_else(wrong)?;
            to.values(Bits::There(floats.values().inner()));
        }
        DataType::Int64 => {
            let ints = column.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
            to.values(Bits::There(ints.values().inner()));
        }
        DataType::UInt64 => {
            let ints = column.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
            to.values(Bits::There(ints.values().inner()));
        }
        DataType::Boolean => {
            to.values(Bits::Made(column.as_boolean_opt().ok_or_else(wrong)?.values().sliced()));
        }
        DataType::Utf8 => {
            let texts = column.as_string_opt::<i32>().ok_or_else(wrong)?;
            let offsets = texts.offsets();
            let (first, last) = offsets.first().zip(offsets.last()).ok_or_else(wrong)?;
            let (start, end) = (*first as usize, *last as usize);
            to.values(if start == 0 {
                Bits::There(offsets.inner().inner())
            } else {
                Bits::Made(offsets.iter().map(|offset| offset - first).collect())
            });
            to.values(Bits::There(texts.values().get(start..end).ok_or_else(wrong)?));
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn pad(payload: &mut Vec<u8>) {
    payload.resize(payload.len().next_multiple_of(ALIGNMENT), 0);
}

fn of(len: usize) -> Result<i64, BatchError> {
    i64::try_from(len).map_err(|_| malformed("a part is longer than 4 GiB"))
}

#[cfg(test)]
mod tests {
    use arrow_array::RecordBatch;
    use arrow_ipc::writer::{
        DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message,
    };

    use super::{super::tests::sample, *};

    /// As Arrow's own writer does it.
    fn by_arrow(rows: &RecordBatch) -> Vec<u8> {
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5).unwrap();
        let (mut dictionaries, mut context) = (DictionaryTracker::new(true), IpcWriteContext::default());
        let (_, message) =
            IpcDataGenerator::default().encode(rows, &mut dictionaries, &options, &mut context).unwrap();
        let mut bytes = Vec::new();
        write_message(&mut bytes, message, &options).unwrap();
        bytes
    }

    #[test]
    fn messages_are_those_of_arrow_byte_by_byte() {
        let whole = sample().tables.remove(0);
        for offset in 0..whole.rows() {
            for len in 1..=whole.rows() - offset {
                let tables =
                    [TableBatch { rows: whole.rows.slice(offset, len), ..whole.clone() }, whole.clone()];
                let mut messages = Messages::new(&tables);
                let lengths: Vec<_> = tables.iter().map(|table| messages.add(table).unwrap()).collect();
                let mut bytes = Vec::new();
                messages.write(&mut bytes);
                let (one, two) = bytes.split_at(lengths[0]);
                assert_eq!(two.len(), lengths[1]);
                assert_eq!(one, by_arrow(&tables[0].rows), "{len} rows from {offset}");
                assert_eq!(two, by_arrow(&whole.rows), "behind {len} rows from {offset}");
            }
        }
    }
}
