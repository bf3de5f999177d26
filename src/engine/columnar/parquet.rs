//! Points as Parquet bytes and back.

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter, ProjectionMask,
        arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, Encoding, Type, ZstdLevel},
    errors::ParquetError,
    file::{
        FOOTER_SIZE,
        metadata::{KeyValue, ParquetMetaDataReader, RowGroupMetaData, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};

use super::{
    merge::{BATCH_ROWS, tags},
    schema::TIME,
};

/// Key of the file metadata that names the database.
const DATABASE: &str = "skein.database";
/// Key of the file metadata that names the table.
const TABLE: &str = "skein.table";

/// Rows of a page: short, so that few hold what is asked for; in tests so few that a row group has several.
const PAGE_ROWS: usize = if cfg!(test) { 64 } else { 8_192 };
/// Rows of a row group where rows are by time; in tests so few that a file has several.
const GROUP_ROWS: usize = if cfg!(test) { 1_024 } else { BATCH_ROWS };

/// A file with these points of one table, which are sorted by time.
///
/// # Errors
/// Columns of a type that Parquet does not take.
pub(super) fn encode(
    database: &str,
    table: &str,
    schema: &SchemaRef,
    points: &[RecordBatch],
) -> Result<Bytes, ParquetError> {
    let properties = properties(database, table, schema, vec![ascending(0)])?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?;
    for batch in points {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?.into())
}

/// Makes a file of windows: a row group each, its rows by tags and then by time.
pub(super) struct WindowWriter(ArrowWriter<Vec<u8>>);

impl WindowWriter {
    /// For a file of that table.
    ///
    /// # Errors
    /// Columns of a type that Parquet does not take.
    pub(super) fn new(database: &str, table: &str, schema: &SchemaRef) -> Result<Self, ParquetError> {
        let order = tags(schema).chain([0]).map(ascending).collect();
        let properties = properties(database, table, schema, order)?;
        Ok(Self(ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties))?))
    }

    /// Adds a window.
    ///
    /// # Errors
    /// Columns other than those of the table.
    pub(super) fn add(&mut self, window: &RecordBatch) -> Result<(), ParquetError> {
        self.0.write(window)?;
        self.0.flush()
    }

    /// The file.
    ///
    /// # Errors
    /// Too many windows.
    pub(super) fn finish(self) -> Result<Bytes, ParquetError> {
        Ok(self.0.into_inner()?.into())
    }
}

/// A column by which rows are sorted: tags that have no value come first, and times always have one.
fn ascending(column: usize) -> SortingColumn {
    SortingColumn {
        column_idx: i32::try_from(column).unwrap_or(i32::MAX),
        descending: false,
        nulls_first: true,
    }
}

/// The rows of a file in its order, some at a time.
///
/// # Errors
/// The bytes are not a Parquet file.
pub(super) fn read(file: Bytes, rows: usize) -> Result<ParquetRecordBatchReader, ParquetError> {
    ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(rows).build()
}

/// As [`read`], of time and tags alone.
///
/// # Errors
/// The bytes are not a Parquet file.
pub(super) fn read_tags(file: Bytes, rows: usize) -> Result<ParquetRecordBatchReader, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    // Columns have no parts, so those of the file are those of the schema.
    let wanted = tags(builder.schema()).chain([0]);
    let wanted = ProjectionMask::roots(builder.parquet_schema(), wanted.collect::<Vec<_>>());
    builder.with_projection(wanted).with_batch_size(rows).build()
}

/// All rows of a file.
///
/// # Errors
/// The bytes are not a Parquet file.
pub(super) fn decode(file: Bytes) -> Result<Vec<RecordBatch>, ParquetError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS).build()?;
    reader.map(|batch| batch.map_err(ParquetError::from)).collect()
}

/// How many bytes the rows of a file take in memory, in a table whose columns take `width` for each
/// besides their text; `None` if the file does not say how long its texts are.
///
/// # Errors
/// The bytes are not a Parquet file.
pub(super) fn decoded_len(file: &Bytes, width: usize) -> Result<Option<usize>, ParquetError> {
    let groups = decoded_groups(file, width)?;
    Ok(groups.map(|groups| groups.into_iter().fold(0, usize::saturating_add)))
}

/// As [`decoded_len`], of each row group.
///
/// # Errors
/// The bytes are not a Parquet file.
pub(super) fn decoded_groups(file: &Bytes, width: usize) -> Result<Option<Vec<usize>>, ParquetError> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(file)?;
    let len = |group: &RowGroupMetaData| {
        let rows = usize::try_from(group.num_rows()).unwrap_or(usize::MAX);
        let texts = group.columns().iter().filter(|column| column.column_type() == Type::BYTE_ARRAY);
        texts
            .map(|column| column.unencoded_byte_array_data_bytes())
            .try_fold(rows.saturating_mul(width), |len, text| {
                Some(len.saturating_add(usize::try_from(text?).unwrap_or(usize::MAX)))
            })
    };
    Ok(metadata.row_groups().iter().map(len).collect())
}

/// How many bytes at the end of a file hold its metadata, footer included, judged by its last
/// [`FOOTER_SIZE`] bytes.
///
/// # Errors
/// They are not a footer.
pub(super) fn tail_len(footer: &[u8]) -> Result<u64, ParquetError> {
    let footer: [u8; FOOTER_SIZE] =
        footer.try_into().map_err(|_| ParquetError::General("the file has no footer".into()))?;
    let [l0, l1, l2, l3, magic @ ..] = footer;
    if magic != *b"PAR1" {
        return Err(ParquetError::General("the file does not end with PAR1".into()));
    }
    Ok(u64::from(u32::from_le_bytes([l0, l1, l2, l3])) + FOOTER_SIZE as u64)
}

/// Rows of a file, judged by its tail as [`tail_len`] measures it.
///
/// # Errors
/// The metadata does not decode.
pub(super) fn tail_rows(tail: &[u8]) -> Result<u64, ParquetError> {
    let metadata = tail.len().checked_sub(FOOTER_SIZE).and_then(|len| tail.get(..len)).unwrap_or_default();
    let metadata = ParquetMetaDataReader::decode_metadata(metadata)?;
    u64::try_from(metadata.file_metadata().num_rows()).map_err(|e| ParquetError::External(Box::new(e)))
}

fn properties(
    database: &str,
    table: &str,
    schema: &SchemaRef,
    order: Vec<SortingColumn>,
) -> Result<WriterProperties, ParquetError> {
    let by_tags = order.len() > 1;
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    // Names go into the file so that files of two tables never have the same bytes.
    let names =
        [(DATABASE, database), (TABLE, table)].map(|(key, name)| KeyValue::new(key.into(), name.to_owned()));
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("skein ", env!("CARGO_PKG_VERSION")).into())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        // What is by tags comes window by window.
        .set_max_row_group_row_count((!by_tags).then_some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS.min(1_024))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(names.to_vec()))
        .set_sorting_columns(Some(order));
    for field in schema.fields() {
        let column = path(field.name());
        builder = match field.data_type() {
            DataType::Utf8 => builder.set_column_dictionary_enabled(column, true),
            DataType::Float64 => builder.set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT),
            DataType::Int64 | DataType::UInt64 | DataType::Timestamp(..) => {
                builder.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
            }
            _ => builder,
        };
    }
    let tags = tags(schema).filter_map(|index| schema.fields().get(index));
    for name in tags.map(|field| field.name().as_str()).chain([TIME]) {
        builder = builder.set_column_statistics_enabled(path(name), EnabledStatistics::Page);
    }
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray, UInt64Array,
    };

    use super::*;
    use crate::engine::columnar::schema::{ColumnKind, TableSchema};

    #[test]
    fn every_type_comes_back() {
        let schema =
            TableSchema::new((0..=5).map(|code| (format!("c.{code}"), ColumnKind::try_from(code).unwrap())));
        let schema = schema.unwrap().to_arrow();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from(vec![i64::MIN, 1, i64::MAX])),
            Arc::new(StringArray::from(vec![Some("a"), None, Some("größe")])),
            Arc::new(Float64Array::from(vec![Some(0.5), None, Some(-1.0)])),
            Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(2), Some(i64::MAX)])),
            Arc::new(UInt64Array::from(vec![None, None, Some(u64::MAX)])),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(StringArray::from(vec![None, Some(""), Some("text")])),
        ];
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let file = encode("db", "t", &schema, std::slice::from_ref(&batch)).unwrap();
        assert_eq!(decode(file.clone()).unwrap(), std::slice::from_ref(&batch));
        assert_ne!(file, encode("db", "T", &schema, &[batch]).unwrap());

        // Its texts: a, größe (7 bytes), an empty one and text.
        assert_eq!(decoded_len(&file, 100).unwrap(), Some(300 + 1 + 7 + 4));
        let tail = tail_len(&file[file.len() - 8..]).unwrap() as usize;
        assert_eq!(tail_rows(&file[file.len() - tail..]).unwrap(), 3);
        assert!(tail_len(&file[..8]).is_err());
        assert!(tail_rows(&file[file.len() - 9..]).is_err());

        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let chunks = reader.metadata().row_group(0).columns();
        let coding = |n: usize| chunks[n].encodings().collect::<Vec<_>>();
        assert!(coding(0).contains(&Encoding::DELTA_BINARY_PACKED));
        assert!(coding(1).contains(&Encoding::RLE_DICTIONARY));
        assert!(coding(2).contains(&Encoding::BYTE_STREAM_SPLIT));
    }
}
