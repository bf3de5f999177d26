//! From the message of a table to its columns, which share the payload's memory. Arrow's own reader makes
//! some ten allocations per column, and panics on offsets outside of the body.

use arrow_array::{
    BooleanArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray, UInt64Array,
};
use arrow_buffer::{ArrowNativeType, BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_ipc::{FieldNode, MetadataVersion};

use super::{
    super::schema::{ColumnKind, FieldType, TIME, TableSchema},
    ALIGNMENT, BatchError, CONTINUATION, Values, malformed,
};

/// The columns of one encapsulated message, time first. All that Arrow asserts of memory is checked before.
pub(super) fn columns(
    message: &Buffer,
    rows: usize,
    schema: &TableSchema,
) -> Result<Vec<Values>, BatchError> {
    let cut = || malformed("an Arrow message is cut off");
    let (prefix, rest) = message.split_first_chunk::<8>().ok_or_else(cut)?;
    let [mark @ .., l0, l1, l2, l3] = *prefix;
    let metadata_len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if mark != CONTINUATION {
        return Err(malformed("an Arrow message does not start with its mark"));
    }
    let metadata = rest.get(..metadata_len).ok_or_else(cut)?;
    let envelope = arrow_ipc::root_as_message(metadata).map_err(|error| malformed(error.to_string()))?;
    let batch =
        envelope.header_as_record_batch().ok_or_else(|| malformed("an Arrow message of another type"))?;
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return Err(malformed("an Arrow message without columns"));
    };
    let plain = batch.compression().is_none()
        && batch.variadicBufferCounts().is_none_or(|counts| counts.is_empty())
        && envelope.version() == MetadataVersion::V5;
    let width = schema.columns().len() + 1;
    if !plain || usize::try_from(batch.length()) != Ok(rows) || nodes.len() != width {
        return Err(malformed("rows, columns or coding of an Arrow message differ from the head"));
    }
    let mut parts =
        Parts { body: in_place(message.slice(8 + metadata_len)), buffers: buffers.iter(), behind: 0, rows };
    let kinds = std::iter::once(None).chain(schema.columns().iter().map(Some));
    let mut columns = Vec::with_capacity(width);
    for (column, node) in kinds.zip(nodes) {
        let read = parts.column(column.map(|(_, kind)| *kind), node);
        let name = column.map_or(TIME, |(name, _)| name.as_str());
        columns.push(read.map_err(|why| malformed(format!("column {name:?} {why}")))?);
    }
    if parts.buffers.next().is_some() {
        return Err(malformed("an Arrow message with more buffers than columns have"));
    }
    Ok(columns)
}

/// The same bytes where columns can be used in place.
fn in_place(body: Buffer) -> Buffer {
    if body.as_ptr().align_offset(ALIGNMENT) == 0 { body } else { Buffer::from(body.as_slice()) }
}

/// The buffers of a message that were not taken yet.
struct Parts<'a, B: Iterator<Item = &'a arrow_ipc::Buffer>> {
    body: Buffer,
    buffers: B,
    /// Where the last one ended.
    behind: usize,
    rows: usize,
}

impl<'a, B: Iterator<Item = &'a arrow_ipc::Buffer>> Parts<'a, B> {
    /// The next column: of this kind, or the time.
    fn column(&mut self, kind: Option<ColumnKind>, node: &FieldNode) -> Result<Values, &'static str> {
        if usize::try_from(node.length()) != Ok(self.rows) {
            return Err("does not have the rows it should");
        }
        let nulls = self.nulls(node)?;
        Ok(match kind {
            None if nulls.is_some() => return Err("has a point without a time"),
            None => Values::Time(TimestampNanosecondArray::new(self.numbers()?, nulls)),
            Some(ColumnKind::Field(FieldType::Float)) => {
                Values::Float(Float64Array::new(self.numbers()?, nulls))
            }
            Some(ColumnKind::Field(FieldType::Int)) => Values::Int(Int64Array::new(self.numbers()?, nulls)),
            Some(ColumnKind::Field(FieldType::UInt)) => {
                Values::UInt(UInt64Array::new(self.numbers()?, nulls))
            }
            Some(ColumnKind::Field(FieldType::Bool)) => Values::Bool(BooleanArray::new(self.bits()?, nulls)),
            Some(ColumnKind::Tag | ColumnKind::Field(FieldType::String)) => {
                let (offsets, values) = (self.offsets()?, self.buffer()?);
                let texts = StringArray::try_new(offsets, values, nulls);
                Values::Text(texts.map_err(|_| "has text that is cut off or not UTF-8")?)
            }
        })
    }

    fn nulls(&mut self, node: &FieldNode) -> Result<Option<NullBuffer>, &'static str> {
        let valid = self.buffer()?;
        if node.null_count() == 0 {
            return Ok(None);
        }
        let nulls = NullBuffer::new(self.bits_of(valid)?);
        if usize::try_from(node.null_count()) != Ok(nulls.null_count()) {
            return Err("has another number of nulls than it says");
        }
        Ok(Some(nulls))
    }

    fn numbers<T: ArrowNativeType>(&mut self) -> Result<ScalarBuffer<T>, &'static str> {
        let values = self.buffer()?;
        if values.len() < self.rows * size_of::<T>() {
            return Err("does not have the values it should");
        }
        Ok(ScalarBuffer::new(values, 0, self.rows))
    }

    fn bits(&mut self) -> Result<BooleanBuffer, &'static str> {
        let bits = self.buffer()?;
        self.bits_of(bits)
    }

    fn bits_of(&self, bits: Buffer) -> Result<BooleanBuffer, &'static str> {
        if bits.len() < self.rows.div_ceil(8) {
            return Err("does not have the bits it should");
        }
        Ok(BooleanBuffer::new(bits, 0, self.rows))
    }

    fn offsets(&mut self) -> Result<OffsetBuffer<i32>, &'static str> {
        let offsets = self.buffer()?;
        if offsets.len() != (self.rows + 1) * size_of::<i32>() {
            return Err("does not have the texts it should");
        }
        let offsets = ScalarBuffer::<i32>::new(offsets, 0, self.rows + 1);
        if offsets.first().is_none_or(|first| *first < 0) || !offsets.is_sorted() {
            return Err("has texts that end before they begin");
        }
        Ok(OffsetBuffer::new(offsets))
    }

    /// The next buffer. It lies in the body behind the one before, at a multiple of [`ALIGNMENT`]: columns that
    /// share bytes would be many times what the message is.
    fn buffer(&mut self) -> Result<Buffer, &'static str> {
        let place = self.buffers.next().ok_or("is not there")?;
        let place = usize::try_from(place.offset()).ok().zip(usize::try_from(place.length()).ok());
        match place {
            Some((offset, len))
                if offset >= self.behind
                    && offset.is_multiple_of(ALIGNMENT)
                    && offset.checked_add(len).is_some_and(|end| end <= self.body.len()) =>
            {
                self.behind = offset + len;
                Ok(self.body.slice_with_length(offset, len))
            }
            _ => Err("lies outside of its message"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::{BatchError, decode, encode, tests::sample},
        *,
    };

    /// The sample's first table alone, with the entry of that buffer changed in its message.
    fn changed(buffer: usize, change: impl FnOnce(&mut i64, &mut i64)) -> Result<(), BatchError> {
        let mut batch = sample();
        batch.tables.truncate(1);
        let mut payload = encode(&batch).unwrap().to_vec();
        let places: Vec<[u8; 16]> = {
            let at = payload.windows(4).position(|mark| mark == CONTINUATION).unwrap() + 8;
            let message = arrow_ipc::root_as_message(&payload[at..]).unwrap();
            let buffers = message.header_as_record_batch().unwrap().buffers().unwrap();
            buffers.iter().map(|place| place.0).collect()
        };
        let all = places.concat();
        let start = payload.windows(all.len()).position(|bytes| bytes == all).unwrap() + buffer * 16;
        let number = |at: usize| i64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
        let (mut offset, mut len) = (number(start), number(start + 8));
        change(&mut offset, &mut len);
        payload[start..start + 8].copy_from_slice(&offset.to_le_bytes());
        payload[start + 8..start + 16].copy_from_slice(&len.to_le_bytes());
        decode(&Bytes::from(payload)).map(drop)
    }

    #[test]
    fn buffers_lie_one_behind_the_other_where_they_can_be_used() {
        changed(1, |_, _| {}).unwrap();
        // Of the time: no nulls, then 24 bytes. Behind it the nulls of a tag, offsets and text.
        for why in [
            changed(3, |offset, _| *offset = 0),
            changed(1, |offset, _| *offset += 4),
            changed(1, |offset, _| *offset = -8),
            changed(1, |_, len| *len = i64::MAX),
            changed(1, |_, len| *len -= 8),
            changed(2, |_, len| *len = 0),
            changed(3, |_, len| *len -= 4),
            changed(4, |_, len| *len -= 1),
        ] {
            assert!(matches!(why, Err(BatchError::Malformed(_))), "{why:?}");
        }
    }
}
