//! An answer as bytes: JSON, lines of JSON, CSV, a table for people, an Arrow stream, Parquet.

use std::{
    fmt,
    io::{self, Write},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_json::writer::{JsonArray, LineDelimited};
use arrow_schema::{ArrowError, SchemaRef};
use bytes::Bytes;
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;
use futures::{Stream, StreamExt};
use parquet::{arrow::ArrowWriter, errors::ParquetError};

use super::{QueryError, QueryStream};
use crate::engine::columnar::merge;

/// Most rows of [`Format::Pretty`], which has to see all of them before it can write the first.
const MAX_PRETTY_ROWS: usize = 100_000;
/// Most bytes of its rows, likewise.
const MAX_PRETTY_BYTES: usize = 64 << 20;
/// A row group of [`Format::Parquet`] is closed at this many bytes, which it holds until then.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// How an answer is written. Times are RFC 3339 without zone (`2024-01-01T00:00:00.123`), in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// One array of objects; nulls are written.
    #[default]
    Json,
    /// One object per line.
    Jsonl,
    /// RFC 4180 with a header.
    Csv,
    /// A table with borders.
    Pretty,
    /// Arrow IPC stream.
    Arrow,
    /// One Parquet file.
    Parquet,
}

impl Format {
    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Jsonl => "application/jsonl",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Pretty => "text/plain; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// A text that names no [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a format (json, jsonl, csv, pretty, arrow, parquet): {0:?}")]
pub struct FormatParseError(String);

impl FromStr for Format {
    type Err = FormatParseError;

    fn from_str(text: &str) -> Result<Self, FormatParseError> {
        match text {
            "json" => Ok(Self::Json),
            "jsonl" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "pretty" | "table" => Ok(Self::Pretty),
            "arrow" => Ok(Self::Arrow),
            "parquet" => Ok(Self::Parquet),
            _ => Err(FormatParseError(text.chars().take(64).collect())),
        }
    }
}

/// Turns an answer into bytes as its rows come. An error is the last item; what came before it is
/// then not a whole document.
pub fn encode(rows: QueryStream, format: Format) -> impl Stream<Item = Result<Bytes, QueryError>> + Send {
    let encoder = Encoder::new(format, rows.schema());
    futures::stream::try_unfold((rows, Some(encoder)), |(mut rows, encoder)| async move {
        let Some(encoder) = encoder else { return Ok(None) };
        let mut encoder = encoder?;
        loop {
            let Some(batch) = rows.next().await.transpose()? else {
                return Ok(Some((encoder.finish()?, (rows, None))));
            };
            let bytes = encoder.batch(&batch)?;
            if !bytes.is_empty() {
                return Ok(Some((bytes, (rows, Some(Ok(encoder))))));
            }
        }
    })
}

/// Writes batches of one schema in one format.
pub struct Encoder {
    writer: Writer,
    sink: Sink,
}

enum Writer {
    Json(arrow_json::Writer<Sink, JsonArray>),
    Jsonl(arrow_json::Writer<Sink, LineDelimited>),
    Csv { writer: Box<arrow_csv::Writer<Sink>>, schema: SchemaRef, empty: bool },
    Pretty { schema: SchemaRef, batches: Vec<RecordBatch>, rows: usize, bytes: usize },
    Arrow(Box<StreamWriter<Sink>>),
    Parquet(Box<ArrowWriter<Sink>>),
}

impl Encoder {
    /// A document that has begun.
    ///
    /// # Errors
    /// The format has no form for a column's type.
    pub fn new(format: Format, schema: SchemaRef) -> Result<Self, QueryError> {
        let sink = Sink::default();
        let to = sink.clone();
        let json = || arrow_json::WriterBuilder::new().with_explicit_nulls(true);
        let writer = match format {
            Format::Json => Writer::Json(json().build(to)),
            Format::Jsonl => Writer::Jsonl(json().build(to)),
            Format::Csv => {
                let writer = arrow_csv::WriterBuilder::new().with_header(true).build(to);
                Writer::Csv { writer: Box::new(writer), schema, empty: true }
            }
            Format::Pretty => Writer::Pretty { schema, batches: Vec::new(), rows: 0, bytes: 0 },
            Format::Arrow => Writer::Arrow(Box::new(StreamWriter::try_new(to, &schema).map_err(unwritable)?)),
            Format::Parquet => {
                Writer::Parquet(Box::new(ArrowWriter::try_new(to, schema, None).map_err(no_parquet)?))
            }
        };
        Ok(Self { writer, sink })
    }

    /// The bytes that come with these rows; may be none.
    ///
    /// # Errors
    /// A value has no form in the format, or there are too many rows for it.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        match &mut self.writer {
            Writer::Json(writer) => writer.write(batch).map_err(unwritable)?,
            Writer::Jsonl(writer) => writer.write(batch).map_err(unwritable)?,
            Writer::Csv { writer, empty, .. } => {
                *empty = false;
                writer.write(batch).map_err(unwritable)?;
            }
            Writer::Pretty { batches, rows, bytes, .. } => {
                *rows += batch.num_rows();
                *bytes += merge::bytes(batch).map_err(unwritable)?;
                if *rows > MAX_PRETTY_ROWS || *bytes > MAX_PRETTY_BYTES {
                    let most = format!("{MAX_PRETTY_ROWS} rows and {} MiB", MAX_PRETTY_BYTES >> 20);
                    let why = format!("format pretty takes {most}; add a LIMIT or use csv");
                    return Err(QueryError::TooLarge(why));
                }
                batches.push(batch.clone());
            }
            Writer::Arrow(writer) => writer.write(batch).map_err(unwritable)?,
            Writer::Parquet(writer) => {
                writer.write(batch).map_err(no_parquet)?;
                if writer.memory_size() > ROW_GROUP_BYTES {
                    writer.flush().map_err(no_parquet)?;
                }
            }
        }
        Ok(self.sink.take())
    }

    /// The last bytes.
    ///
    /// # Errors
    /// As [`Encoder::batch`].
    pub fn finish(self) -> Result<Bytes, QueryError> {
        match self.writer {
            Writer::Json(mut writer) => writer.finish().map_err(unwritable)?,
            Writer::Jsonl(mut writer) => writer.finish().map_err(unwritable)?,
            // The header comes with the first batch.
            Writer::Csv { mut writer, schema, empty: true } => {
                writer.write(&RecordBatch::new_empty(schema)).map_err(unwritable)?;
            }
            Writer::Csv { .. } => {}
            Writer::Pretty { schema, batches, .. } => {
                let table = pretty_format_batches_with_schema(schema, &batches).map_err(unwritable)?;
                return Ok(format!("{table}\n").into());
            }
            Writer::Arrow(mut writer) => writer.finish().map_err(unwritable)?,
            Writer::Parquet(writer) => {
                writer.close().map_err(no_parquet)?;
            }
        }
        Ok(self.sink.take())
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

/// Where the writers write, so that it can be taken out while they go on.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unwritable(error: ArrowError) -> QueryError {
    QueryError::Invalid(format!("the answer cannot be written in this format: {error}"))
}

fn no_parquet(error: ParquetError) -> QueryError {
    QueryError::Invalid(format!("the answer cannot be written as Parquet: {error}"))
}
