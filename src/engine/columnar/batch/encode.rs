//! From columns to a payload. A column is copied once, to its place: Arrow's own writer puts a message
//! together in memory that grows, and copies it from there.

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};
use arrow_buffer::Buffer;
use arrow_ipc::{FieldNode, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;
use flatbuffers::FlatBufferBuilder;

use super::{ALIGNMENT, Batch, BatchError, CONTINUATION, head, length, malformed};

/// Bytes of a message before its metadata: the mark and a length.
const PREFIX: usize = 8;

/// The payload of a batch, [`ENCODING`](super::ENCODING).
///
/// # Errors
/// More than 4 GiB, or rows that do not have the columns of their schema.
pub fn encode(batch: &Batch) -> Result<Bytes, BatchError> {
    let (mut messages, mut lengths) = (Messages::new(batch), Vec::with_capacity(batch.tables.len()));
    for table in &batch.tables {
        if table.rows.num_columns() != table.schema.columns().len() + 1 {
            return Err(malformed("rows and schema differ in their columns"));
        }
        lengths.push(length(messages.add(&table.rows)?)?);
    }
    let head = head::write(batch, &lengths)?;
    let body: usize = lengths.iter().map(|len| *len as usize).sum();
    let mut payload = Vec::with_capacity((4 + head.len()).next_multiple_of(ALIGNMENT) + body);
    payload.extend_from_slice(&length(head.len())?.to_le_bytes());
    payload.extend_from_slice(&head);
    pad(&mut payload);
    messages.write(&mut payload);
    Ok(payload.into())
}

/// Encapsulated Arrow IPC messages of one record batch each. Every part of them is padded to
/// [`ALIGNMENT`]. All share what memory they need.
struct Messages {
    /// What stands before the buffers of each: prefix, metadata, padding.
    heads: Vec<u8>,
    buffers: Vec<Buffer>,
    /// For each, how many bytes of `heads` and which of `buffers` are its own.
    parts: Vec<(usize, usize)>,
    builder: FlatBufferBuilder<'static>,
    nodes: Vec<FieldNode>,
    places: Vec<arrow_ipc::Buffer>,
}

impl Messages {
    fn new(batch: &Batch) -> Self {
        // What a head takes besides two places of 16 bytes for a column.
        const HEAD: usize = 192;
        let widths = || batch.tables.iter().map(|table| table.rows.num_columns());
        let (widest, all) = (widths().max().unwrap_or(0), widths().sum::<usize>());
        Self {
            heads: Vec::with_capacity(batch.tables.len() * HEAD + all * 64),
            buffers: Vec::with_capacity(all * 3),
            parts: Vec::with_capacity(batch.tables.len()),
            builder: FlatBufferBuilder::with_capacity(HEAD + widest * 64),
            nodes: Vec::with_capacity(widest),
            places: Vec::with_capacity(widest * 3),
        }
    }

    /// Adds a message, and says how long it is.
    fn add(&mut self, rows: &RecordBatch) -> Result<usize, BatchError> {
        let (buffers, nodes, places) = (&mut self.buffers, &mut self.nodes, &mut self.places);
        nodes.clear();
        places.clear();
        let first = buffers.len();
        for column in rows.columns() {
            let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
            nodes.push(FieldNode::new(of(column.len())?, of(column.null_count())?));
            buffers.push(nulls.map(|nulls| nulls.inner().sliced()).unwrap_or_default());
            values(column, buffers)?;
        }
        let mut body = 0;
        for buffer in buffers.iter().skip(first) {
            places.push(arrow_ipc::Buffer::new(of(body)?, of(buffer.len())?));
            body += buffer.len().next_multiple_of(ALIGNMENT);
        }
        let builder = &mut self.builder;
        builder.reset();
        let places = builder.create_vector(places);
        let nodes = builder.create_vector(nodes);
        let mut batch = RecordBatchBuilder::new(builder);
        batch.add_length(of(rows.num_rows())?);
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
        let (mut heads, mut buffers) = (self.heads.as_slice(), self.buffers.iter());
        for (head, count) in &self.parts {
            let (own, rest) = heads.split_at_checked(*head).unwrap_or_default();
            payload.extend_from_slice(own);
            for buffer in buffers.by_ref().take(*count) {
                payload.extend_from_slice(buffer);
                pad(payload);
            }
            heads = rest;
        }
    }
}

/// The buffers of a column's values, which begin with its first row.
fn values(column: &ArrayRef, buffers: &mut Vec<Buffer>) -> Result<(), BatchError> {
    let wrong = || malformed(format!("a column of type {}, which no table has", column.data_type()));
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, None) => {
            let times = column.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(wrong)?;
            buffers.push(times.values().inner().clone());
        }
        DataType::Float64 => {
            let floats = column.as_primitive_opt::<Float64Type>().ok_or_else(wrong)?;
            buffers.push(floats.values().inner().clone());
        }
        DataType::Int64 => {
            let ints = column.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
            buffers.push(ints.values().inner().clone());
        }
        DataType::UInt64 => {
            let ints = column.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
            buffers.push(ints.values().inner().clone());
        }
        DataType::Boolean => {
            buffers.push(column.as_boolean_opt().ok_or_else(wrong)?.values().sliced());
        }
        DataType::Utf8 => {
            let texts = column.as_string_opt::<i32>().ok_or_else(wrong)?;
            let offsets = texts.offsets();
            let (first, last) = offsets.first().zip(offsets.last()).ok_or_else(wrong)?;
            let (start, end) = (*first as usize, *last as usize);
            buffers.push(if start == 0 {
                offsets.inner().inner().clone()
            } else {
                offsets.iter().map(|offset| offset - first).collect()
            });
            buffers.push(texts.values().slice_with_length(start, end - start));
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
        let whole = sample().tables.remove(0).rows;
        for offset in 0..whole.num_rows() {
            for len in 1..=whole.num_rows() - offset {
                let rows = whole.slice(offset, len);
                let mut messages = Messages::new(&sample());
                let lengths = [&rows, &whole].map(|rows| messages.add(rows).unwrap());
                let mut bytes = Vec::new();
                messages.write(&mut bytes);
                let (one, two) = bytes.split_at(lengths[0]);
                assert_eq!(two.len(), lengths[1]);
                assert_eq!(one, by_arrow(&rows), "{len} rows from {offset}");
                assert_eq!(two, by_arrow(&whole), "behind {len} rows from {offset}");
            }
        }
    }
}
