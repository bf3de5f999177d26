//! Lets DataFusion read our Parquet files through the disk seam, and nothing else.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use datafusion::{
    datasource::{listing::PartitionedFile, physical_plan::parquet::ParquetFileReaderFactory},
    error::DataFusionError,
    execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl},
    object_store::memory::InMemory,
    physical_plan::metrics::ExecutionPlanMetricsSet,
};
use futures::future::BoxFuture;
use parquet::{
    arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    errors::ParquetError,
    file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
};

use crate::{
    disk::{Create, Disk, DiskFile},
    engine::columnar::data_file::DataFile,
};

/// The URL that stands for our files. Nothing is ever read from it.
pub(super) const OURS: &str = "skein://files/";
/// Read from a file's end at once: enough for the metadata of most files.
const TAIL: usize = 64 << 10;

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
        Ok(Box::new(Reader { disk: self.disk.clone(), file: ours.clone(), open: None }))
    }
}

/// The Parquet metadata of a file, read once.
pub(super) async fn metadata(
    disk: &Arc<dyn Disk>,
    file: &Arc<DataFile>,
) -> Result<Arc<ParquetMetaData>, DataFusionError> {
    Ok(Reader { disk: disk.clone(), file: file.clone(), open: None }.get_metadata(None).await?)
}

/// Reads one file; holds it against removal.
struct Reader {
    disk: Arc<dyn Disk>,
    file: Arc<DataFile>,
    open: Option<Arc<dyn DiskFile>>,
}

impl Reader {
    async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let open = match &self.open {
            Some(open) => open.clone(),
            None => match self.disk.open(&self.file.path, Create::No).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ParquetError::External(Box::new(self.file.damage("it is not there"))));
                }
                open => self.open.insert(open?).clone(),
            },
        };
        let read = self.file.read_range(&*self.disk, &*open, range).await;
        read.map_err(|error| ParquetError::External(Box::new(error)))
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        Box::pin(self.read(range))
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        Box::pin(async move {
            let file = self.file.clone();
            let load = || async {
                let reader = ParquetMetaDataReader::new()
                    .with_page_index_policy(PageIndexPolicy::Optional)
                    .with_prefetch_hint(Some(TAIL));
                reader.load_and_finish(self, file.entry.size).await.map(Arc::new)
            };
            file.metadata.get_or_try_init(load).await.cloned()
        })
    }
}
