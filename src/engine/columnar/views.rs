//! What of the state a query, a checkpoint or a compaction is given, as it is at that moment.

use std::sync::Arc;

use super::{
    data_file::DataFile,
    memtable::Rows,
    retention::{Retention, Retentions},
    schema::{Schemas, TableSchema},
};
use crate::types::Lsn;

/// One table as a query or a checkpoint sees it.
#[derive(Debug, Clone)]
pub(super) struct TableView {
    /// Its columns.
    pub(super) schema: Arc<TableSchema>,
    /// Its files that are not all gone, in the order in which their rows were written.
    pub(super) files: Vec<Arc<DataFile>>,
    /// Its rows in memory, all written after those in files.
    pub(super) rows: Vec<Arc<Rows>>,
    /// Which rows of both are gone: whoever reads leaves them out.
    pub(super) retention: Retention,
}

/// One table as a compaction sees it, all as of the manifest.
#[derive(Debug, Clone)]
pub(super) struct TableOnDisk {
    pub(super) database: String,
    pub(super) table: String,
    pub(super) schema: Arc<TableSchema>,
    /// In the order in which their rows were written.
    pub(super) files: Vec<Arc<DataFile>>,
    pub(super) retention: Retention,
}

/// Everything a checkpoint has to make durable.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) position: Lsn,
    pub(super) schemas: Schemas,
    pub(super) retentions: Retentions,
    pub(super) parts: Vec<Part>,
}

/// One table of a checkpoint.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) database: String,
    pub(super) table: String,
    pub(super) view: TableView,
    /// See `Table::since`.
    pub(super) since: Lsn,
    /// First and last record with rows in memory.
    pub(super) records: (Lsn, Lsn),
}

/// What a checkpoint makes of the files of a table.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// New ones, in the order of their rows; all written after those in older files.
    pub(super) new: Vec<Arc<DataFile>>,
    /// Those whose rows are in new ones.
    pub(super) taken: Vec<Arc<DataFile>>,
}
