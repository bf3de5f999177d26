//! Lets DataFusion read our Parquet files through the disk seam, and nothing else.

use std::{collections::HashSet, ops::Range, sync::Arc};

use arrow_schema::{Field, Schema};
use bytes::Bytes;
use datafusion::{
    datasource::{listing::PartitionedFile, physical_plan::parquet::ParquetFileReaderFactory},
    error::DataFusionError,
    execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl},
    object_store::memory::InMemory,
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use futures::future::{BoxFuture, try_join_all};
use parquet::{
    arrow::{
        ARROW_SCHEMA_META_KEY, arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader,
        encode_arrow_schema, parquet_to_arrow_schema,
    },
    basic::Encoding,
    errors::ParquetError,
    file::metadata::{
        FileMetaData, KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder,
        ParquetMetaDataReader,
    },
};

use super::tags_exec::encoded;
use crate::{
    disk::{Create, Disk, DiskFile},
    engine::columnar::{data_file::DataFile, verify::BLOCK},
};

/// The URL that stands for our files. Nothing is ever read from it.
pub(super) const OURS: &str = "skein://files/";
/// Read from a file's end at once: enough for the metadata of most files.
const TAIL: usize = 64 << 10;
/// What lies between two ranges is read with them up to so many bytes: files are read by blocks anyway.
const GAP: u64 = BLOCK as u64;
/// Most bytes that are read at once for several ranges.
const SPAN: u64 = 4 << 20;

/// The registry of places that queries may read from: ours, which stays empty although DataFusion
/// wants to see it (our readers do not use it), and no other; the local file system least of all.
pub(super) fn only_ours() -> Result<Arc<dyn ObjectStoreRegistry>, DataFusionError> {
    let registry = DefaultObjectStoreRegistry::new();
    registry.deregister_store(ObjectStoreUrl::local_filesystem().as_ref())?;
    registry.register_store(ObjectStoreUrl::parse(OURS)?.as_ref(), Arc::new(InMemory::new()));
    Ok(Arc::new(registry))
}

/// Makes readers for files that carry their [`DataFile`].
#[derive(Debug)]
pub(super) struct Readers {
    /// Where the files lie.
    pub(super) disk: Arc<dyn Disk>,
    /// Columns that are to come in codes.
    pub(super) in_codes: Arc<HashSet<String>>,
}

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        _partition: usize,
        file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        _metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>, DataFusionError> {
        let Some(ours) = file.extension::<Arc<DataFile>>() else {
            return Err(DataFusionError::Internal("a file that is not of this engine".into()));
        };
        let (disk, file, in_codes) = (self.disk.clone(), ours.clone(), self.in_codes.clone());
        Ok(Box::new(Reader { disk, file, in_codes, open: None }))
    }
}

/// The Parquet metadata of a file, read once.
pub(super) async fn metadata(
    disk: &Arc<dyn Disk>,
    file: &Arc<DataFile>,
) -> Result<Arc<ParquetMetaData>, DataFusionError> {
    let (disk, file, in_codes) = (disk.clone(), file.clone(), Arc::default());
    Ok(Reader { disk, file, in_codes, open: None }.get_metadata(None).await?)
}

/// Whether these columns of a file are in codes throughout: a writer gives up when there are too many texts,
/// and then codes would have to be made.
pub(super) fn are_in_codes(metadata: &ParquetMetaData, columns: &HashSet<String>) -> bool {
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let mut wanted = chunks.filter(|chunk| columns.contains(chunk.column_descr().name()));
    wanted.all(|chunk| {
        let pages = chunk.page_encoding_stats_mask();
        chunk.dictionary_page_offset().is_some()
            && pages.is_some_and(|pages| pages.is_only(Encoding::RLE_DICTIONARY))
    })
}

/// The metadata of a file that has these columns in codes, saying so: without it the reader would make text.
fn saying_codes(
    metadata: &ParquetMetaData,
    in_codes: &HashSet<String>,
) -> Result<ParquetMetaData, ParquetError> {
    let file = metadata.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), None)?;
    let field = |field: &Arc<Field>| match in_codes.contains(field.name()) {
        true => Arc::new(encoded(field)),
        false => field.clone(),
    };
    let schema = Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>());
    let said = KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), encode_arrow_schema(&schema));
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        Some(vec![said]),
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    let builder = ParquetMetaDataBuilder::new(file).set_row_groups(metadata.row_groups().to_vec());
    let indexes = builder.set_column_index(metadata.column_index().cloned());
    Ok(indexes.set_offset_index(metadata.offset_index().cloned()).build())
}

/// Reads one file; holds it against removal.
struct Reader {
    disk: Arc<dyn Disk>,
    file: Arc<DataFile>,
    in_codes: Arc<HashSet<String>>,
    open: Option<Arc<dyn DiskFile>>,
}

impl Reader {
    async fn open(&mut self) -> Result<Arc<dyn DiskFile>, ParquetError> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        match self.disk.open(&self.file.path, Create::No).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ParquetError::External(Box::new(self.file.damage("it is not there"))))
            }
            open => Ok(self.open.insert(open?).clone()),
        }
    }

    async fn read_of(&self, open: Arc<dyn DiskFile>, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let read = self.file.read_range(&*self.disk, &*open, range).await;
        read.map_err(|error| ParquetError::External(Box::new(error)))
    }
}

/// What to read for some ranges: in order, and one for those between which there is little else.
fn spans(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut spans: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match spans.last_mut() {
            Some(last)
                if range.start < last.end
                    || range.start - last.end <= GAP && range.end.saturating_sub(last.start) <= SPAN =>
            {
                last.end = last.end.max(range.end);
            }
            _ => spans.push(range),
        }
    }
    spans
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        Box::pin(async move {
            let open = self.open().await?;
            self.read_of(open, range).await
        })
    }

    /// Ranges that lie close to each other at once, as those of the columns and pages of a row group do, and
    /// all of them at the same time.
    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        Box::pin(async move {
            let spans = spans(&ranges);
            let open = self.open().await?;
            let read = |span: &Range<u64>| self.read_of(open.clone(), span.clone());
            let bytes = try_join_all(spans.iter().map(read)).await?;
            let part = |range: &Range<u64>| {
                let at = spans.partition_point(|span| span.end < range.end);
                let (span, bytes) = (spans.get(at)?, bytes.get(at)?);
                let from = usize::try_from(range.start.checked_sub(span.start)?).ok()?;
                let to = usize::try_from(range.end.checked_sub(span.start)?).ok()?;
                (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
            };
            let parts = ranges.iter().map(part).collect::<Option<Vec<_>>>();
            parts.ok_or_else(|| ParquetError::General(format!("no ranges of a file: {ranges:?}")))
        })
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        Box::pin(async move {
            let (file, in_codes) = (self.file.clone(), self.in_codes.clone());
            let load = || async {
                let reader = ParquetMetaDataReader::new()
                    .with_page_index_policy(PageIndexPolicy::Optional)
                    .with_prefetch_hint(Some(TAIL));
                reader.load_and_finish(self, file.entry.size).await.map(Arc::new)
            };
            let metadata = file.metadata.get_or_try_init(load).await?.clone();
            if in_codes.is_empty() {
                return Ok(metadata);
            }
            Ok(Arc::new(saying_codes(&metadata, &in_codes)?))
        })
    }
}
