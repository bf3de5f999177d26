//! One table for DataFusion: which of its files and rows a query needs, and where points may be in
//! several of them and must be merged.

use std::{collections::HashSet, sync::Arc};

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, TimestampNanosecondArray};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        ColumnStatistics, DFSchema, ScalarValue, Statistics, pruning::PruningStatistics, stats::Precision,
    },
    datasource::{
        TableType,
        listing::PartitionedFile,
        memory::{DataSourceExec, MemorySourceConfig},
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
    },
    error::{DataFusionError, Result},
    execution::{TaskContext, object_store::ObjectStoreUrl},
    logical_expr::{Expr, Operator, TableProviderFilterPushDown},
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{BinaryExpr, Column, lit},
        utils::{collect_columns, conjunction_opt},
    },
    physical_optimizer::pruning::PruningPredicateBuilder,
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use futures::StreamExt;
use tokio::time::{Duration, Instant, timeout_at};

use super::{
    overlap_exec::{Input, OverlapExec, Step},
    reader::{OURS, Readers},
};
use crate::{
    disk::Disk,
    engine::columnar::{
        data_file::DataFile,
        latest::{Digest, Digests, KEPT_BYTES},
        memtable::Rows,
        merge::{bytes, tags},
        overlap::stretches,
        retention::not_before,
        schema::TIME,
        state::TableView,
    },
};

/// How long a query makes digests of files, about: what it does not come to is read as it lies.
const MAKING_TIME: Duration = Duration::from_secs(2);
/// Bytes of digests that a scan puts in the place of parts: half of what is kept, so that one that is asked
/// again and again finds all of its own.
const DIGESTS_OF_A_QUERY: usize = KEPT_BYTES / 2;

/// A table as of the query's position.
#[derive(Debug)]
pub(super) struct SqlTable {
    disk: Arc<dyn Disk>,
    schema: SchemaRef,
    /// What it holds; not there for a table that the query only asks about.
    view: Option<TableView>,
    /// Of its files.
    digests: Arc<Digests>,
    /// Only what each series was last is asked for.
    only_newest: bool,
}

/// A file or a batch in memory: each holds a point once, by time.
#[derive(Debug, Clone)]
struct Part {
    source: Source,
    /// Rows before this time are gone.
    floor: i64,
}

#[derive(Debug, Clone)]
enum Source {
    File(Arc<DataFile>),
    Rows(Arc<Rows>),
}

impl Part {
    /// First and last time of all its rows.
    fn whole(&self) -> (i64, i64) {
        match &self.source {
            Source::File(file) => (file.entry.min_time, file.entry.max_time),
            Source::Rows(rows) => rows.range(),
        }
    }

    /// First and last time of those that are not gone.
    fn range(&self) -> (i64, i64) {
        let (first, last) = self.whole();
        (first.max(self.floor), last)
    }
}

/// What one scan was asked for.
struct Scan<'a> {
    table: &'a SqlTable,
    /// Wanted columns.
    projection: Vec<usize>,
    /// Every condition.
    all: Option<Arc<dyn PhysicalExpr>>,
    /// The conditions on time and tags alone. A part of a merge must not be thinned out by
    /// others: the row that they leave out may be the one that counts.
    identity: Option<Arc<dyn PhysicalExpr>>,
    limit: Option<usize>,
    partitions: usize,
}

impl SqlTable {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        digests: Arc<Digests>,
        schema: SchemaRef,
        view: Option<TableView>,
    ) -> Self {
        Self { disk, schema, view, digests, only_newest: false }
    }

    /// This table for a query that asks no more than what each series was last: its scans may leave
    /// out rows that are older than another of their series.
    pub(super) fn of_digests(&self) -> Self {
        let (disk, schema, view) = (self.disk.clone(), self.schema.clone(), self.view.clone());
        Self { disk, schema, view, digests: self.digests.clone(), only_newest: true }
    }
}

#[async_trait]
impl TableProvider for SqlTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // They only leave out parts and pages; every row is judged again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(view) = &self.view else {
            return Err(DataFusionError::Internal("a table is read that the statement does not name".into()));
        };
        let columns = DFSchema::try_from(self.schema.clone())?;
        let filters = filters.iter().map(|filter| state.create_physical_expr(filter.clone(), &columns));
        let filters = filters.collect::<Result<Vec<_>>>()?;
        let identity: HashSet<usize> = tags(&self.schema).chain([0]).collect();
        let on_identity = |filter: &&Arc<dyn PhysicalExpr>| {
            collect_columns(filter).iter().all(|column| identity.contains(&column.index()))
        };
        let scan = Scan {
            table: self,
            projection: projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect()),
            identity: conjunction_opt(filters.iter().filter(on_identity).cloned()),
            all: conjunction_opt(filters),
            limit,
            partitions: state.config().target_partitions().max(1),
        };
        let keeps = &view.retention;
        let file = |file: &Arc<DataFile>| Part {
            source: Source::File(file.clone()),
            floor: keeps.floor_of(&file.entry),
        };
        let rows =
            |rows: &Arc<Rows>| Part { source: Source::Rows(rows.clone()), floor: keeps.floor_of_rows() };
        let parts: Vec<Part> = view.files.iter().map(file).chain(view.rows.iter().map(rows)).collect();
        let mut needed = scan.needed(parts);
        if self.only_newest {
            scan.shrink(&mut needed, &state.task_ctx()).await?;
            needed = scan.needed(needed);
        }
        scan.plan(&needed)
    }
}

impl Scan<'_> {
    /// The parts that can have rows at the times asked for.
    fn needed(&self, parts: Vec<Part>) -> Vec<Part> {
        let Some(predicate) = &self.identity else { return parts };
        let ranges: Vec<_> = parts.iter().map(Part::range).collect();
        let kept = PruningPredicateBuilder::new()
            .with_file_schema(self.table.schema.clone())
            .try_build(predicate.clone())
            .and_then(|predicate| predicate.prune(&Times(&ranges)));
        match kept {
            Ok(kept) => parts.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(part, _)| part).collect(),
            // A condition that says nothing about ranges.
            Err(_) => parts,
        }
    }

    fn plan(&self, parts: &[Part]) -> Result<Arc<dyn ExecutionPlan>> {
        let ranges: Vec<_> = parts.iter().map(Part::range).collect();
        let (mut files, mut rows, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for stretch in stretches(&ranges) {
            let here: Vec<&Part> = stretch.parts.iter().filter_map(|&part| parts.get(part)).collect();
            match here.as_slice() {
                // Alone for all of its time: read as it is.
                [part] if part.whole() == (stretch.from, stretch.to) => match &part.source {
                    Source::File(file) => files.push(file.clone()),
                    Source::Rows(part) => rows.push(part.points(&self.table.schema)?),
                },
                here => steps.push(self.step(stretch.from, stretch.to, here)?),
            }
        }
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !files.is_empty() {
            plans.push(self.files(&files, &self.projection, self.all.as_ref(), self.limit)?);
        }
        if !rows.is_empty() {
            let projection = Some(self.projection.clone());
            let source = MemorySourceConfig::try_new(&rows, self.table.schema.clone(), projection)?;
            plans.push(DataSourceExec::from_data_source(source.with_limit(self.limit)));
        }
        if !steps.is_empty() {
            let schema = Arc::new(self.table.schema.project(&self.projection)?);
            plans.push(Arc::new(OverlapExec::new(schema, steps, self.partitions)));
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(self.table.schema.project(&self.projection)?)))),
            1 => Ok(plans.swap_remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }

    /// Puts digests in the place of parts, as many as are worth it and fit the memory of a query. Those
    /// that have to be made first are made for a while; the next query goes on.
    async fn shrink(&self, parts: &mut [Part], context: &Arc<TaskContext>) -> Result<()> {
        let until = Instant::now() + MAKING_TIME;
        let (mut room, mut full) = (DIGESTS_OF_A_QUERY, false);
        for part in parts {
            let newest = match &part.source {
                Source::Rows(rows) => rows.newest()?,
                Source::File(file) => match self.table.digests.get(file) {
                    Some(made) => made,
                    // One that is not used would only push out others that are.
                    None if full => None,
                    None => self.digest(file, context, until).await?,
                },
            };
            let Some(newest) = newest else { continue };
            let bytes = bytes(newest.batch())?;
            full |= bytes > room;
            if bytes <= room {
                room -= bytes;
                part.source = Source::Rows(newest);
            }
        }
        Ok(())
    }

    /// Makes the digest of a file and keeps it; `None` if it is not worth it, or there is no time.
    async fn digest(
        &self,
        file: &Arc<DataFile>,
        context: &Arc<TaskContext>,
        until: Instant,
    ) -> Result<Option<Arc<Rows>>> {
        let digests = &self.table.digests;
        if Instant::now() >= until {
            return Ok(None);
        }
        let Ok(_making) = timeout_at(until, digests.making.lock()).await else { return Ok(None) };
        if let Some(made) = digests.get(file) {
            return Ok(made);
        }
        let schema = &self.table.schema;
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let rows = self.files(std::slice::from_ref(file), &columns, None, None)?;
        let mut rows = rows.execute(0, context.clone())?;
        let mut digest = Digest::new(schema, file.entry.rows);
        let mut worth = true;
        while worth && let Some(batch) = rows.next().await.transpose()? {
            worth = digest.push(&batch)?;
        }
        let made = if worth { digest.finish()? } else { None };
        digests.keep(file, made.as_ref())?;
        Ok(made)
    }

    /// Reads the parts between two times and merges them, if there are several.
    fn step(&self, from: i64, to: i64, parts: &[&Part]) -> Result<Step> {
        let schema = &self.table.schema;
        // Time is needed to cut the part, tags to find the same point in another.
        let mut columns: Vec<usize> = self.projection.iter().copied().chain([0]).collect();
        if parts.len() > 1 {
            columns.extend(tags(schema));
        }
        columns.sort_unstable();
        columns.dedup();
        let time: Arc<dyn PhysicalExpr> = Arc::new(Column::new(TIME, 0));
        let compare = |op, with: i64| -> Arc<dyn PhysicalExpr> {
            let bound = lit(ScalarValue::TimestampNanosecond(Some(with), None));
            Arc::new(BinaryExpr::new(time.clone(), op, bound))
        };
        let between = [compare(Operator::GtEq, from), compare(Operator::LtEq, to)];
        let predicate = conjunction(self.identity.iter().cloned().chain(between));
        let mut inputs = Vec::with_capacity(parts.len());
        for part in parts {
            inputs.push(match &part.source {
                Source::File(file) => {
                    let plan = self.files(std::slice::from_ref(file), &columns, Some(&predicate), None)?;
                    Input::File { plan, windows: file.entry.windows.clone(), floor: part.floor }
                }
                Source::Rows(rows) => {
                    let points = rows.points(schema)?.into_iter();
                    let there = points.map(|batch| not_before(&batch, part.floor)?.project(&columns));
                    Input::Rows(there.collect::<Result<Vec<RecordBatch>, _>>()?)
                }
            });
        }
        let wanted = self.projection.iter().filter_map(|column| columns.binary_search(column).ok()).collect();
        Ok(Step { from, to, schema: Arc::new(schema.project(&columns)?), inputs, wanted })
    }

    /// Reads whole files. The predicate only leaves out row groups and pages.
    fn files(
        &self,
        files: &[Arc<DataFile>],
        columns: &[usize],
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.table.schema.clone();
        let mut source = ParquetSource::new(schema)
            .with_parquet_file_reader_factory(Arc::new(Readers { disk: self.table.disk.clone() }));
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate.clone());
        }
        let listed = files.iter().map(|file| {
            PartitionedFile::new(file.entry.name(), file.entry.size)
                .with_extension(file.clone())
                .with_statistics(Arc::new(self.statistics(std::slice::from_ref(file))))
        });
        let groups = FileGroup::new(listed.collect()).split_files(self.partitions);
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OURS)?, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .with_statistics(self.statistics(files))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Rows and times, which the manifest knows; enough to answer `count(*)` without reading.
    fn statistics(&self, files: &[Arc<DataFile>]) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.table.schema);
        let rows: u64 = files.iter().map(|file| file.entry.rows).sum();
        statistics.num_rows = usize::try_from(rows).map_or(Precision::Absent, Precision::Exact);
        let time = |time: Option<i64>| match time {
            Some(time) => Precision::Exact(ScalarValue::TimestampNanosecond(Some(time), None)),
            None => Precision::Absent,
        };
        if let Some(column) = statistics.column_statistics.first_mut() {
            *column = ColumnStatistics {
                null_count: Precision::Exact(0),
                min_value: time(files.iter().map(|file| file.entry.min_time).min()),
                max_value: time(files.iter().map(|file| file.entry.max_time).max()),
                ..ColumnStatistics::new_unknown()
            };
        }
        statistics
    }
}

/// First and last time of each part.
struct Times<'a>(&'a [(i64, i64)]);

impl Times<'_> {
    fn values(&self, column: &datafusion::common::Column, of: fn(&(i64, i64)) -> i64) -> Option<ArrayRef> {
        let values = || TimestampNanosecondArray::from_iter_values(self.0.iter().map(of));
        (column.name == TIME).then(|| Arc::new(values()) as ArrayRef)
    }
}

impl PruningStatistics for Times<'_> {
    fn min_values(&self, column: &datafusion::common::Column) -> Option<ArrayRef> {
        self.values(column, |range| range.0)
    }

    fn max_values(&self, column: &datafusion::common::Column) -> Option<ArrayRef> {
        self.values(column, |range| range.1)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, _column: &datafusion::common::Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(
        &self,
        _column: &datafusion::common::Column,
        _values: &HashSet<ScalarValue>,
    ) -> Option<BooleanArray> {
        None
    }
}
