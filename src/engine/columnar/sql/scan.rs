//! What a scan of a table reads, and how: parts that hold their points alone as they lie, and stretches of
//! time in which a point may be in several parts through [`OverlapExec`].
//!
//! Of a file that overlaps others only the pages that reach into such a stretch (row groups, where rows are
//! by tags) are read with care: their rows outside of it come through a filter, those inside from the
//! merge. Everything else is read like a file that overlaps nothing, so that whatever DataFusion knows of
//! Parquet counts.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, TimestampNanosecondArray};
use datafusion::{
    common::{ColumnStatistics, ScalarValue, Statistics, pruning::PruningStatistics, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        memory::{DataSourceExec, MemorySourceConfig},
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::ParquetAccessPlan},
    },
    error::Result,
    execution::{TaskContext, object_store::ObjectStoreUrl},
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{BinaryExpr, Column, lit},
    },
    physical_optimizer::pruning::PruningPredicateBuilder,
    physical_plan::{ExecutionPlan, empty::EmptyExec, filter::FilterExecBuilder, union::UnionExec},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};

use self::zones::{Outside, Zones};
use super::{
    overlap_exec::{Input, OverlapExec, Step},
    reader::{OURS, Readers, metadata},
    table_provider::SqlTable,
};
use crate::engine::columnar::{
    data_file::DataFile,
    memtable::Rows,
    merge::{tags, times},
    overlap::{Stretch, stretches},
    retention::not_before,
    schema::TIME,
    state::TableView,
};

mod groups;
mod newest;
mod zones;

/// Files that are looked into at a time while a query is planned.
const LOOKS: usize = 8;

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
pub(super) struct Scan<'a> {
    pub(super) table: &'a SqlTable,
    /// Wanted columns.
    pub(super) projection: Vec<usize>,
    /// Every condition.
    pub(super) all: Option<Arc<dyn PhysicalExpr>>,
    /// The conditions on time and tags alone. A part of a merge must not be thinned out by
    /// others: the row that they leave out may be the one that counts.
    pub(super) identity: Option<Arc<dyn PhysicalExpr>>,
    pub(super) limit: Option<usize>,
    pub(super) partitions: usize,
}

/// A file, or some row groups and pages of it.
#[derive(Debug, Clone)]
struct Reading {
    file: Arc<DataFile>,
    /// All of them if it does not say.
    groups: Option<ParquetAccessPlan>,
    /// About how many rows.
    rows: u64,
    /// No row has a time outside of this.
    range: (i64, i64),
}

impl Reading {
    fn whole(file: &Arc<DataFile>) -> Self {
        let entry = &file.entry;
        Self { file: file.clone(), groups: None, rows: entry.rows, range: (entry.min_time, entry.max_time) }
    }
}

impl Scan<'_> {
    /// The plan that reads what there is.
    pub(super) async fn run(
        &self,
        view: &TableView,
        only_newest: bool,
        context: &Arc<TaskContext>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let keeps = &view.retention;
        let file = |file: &Arc<DataFile>| Part {
            source: Source::File(file.clone()),
            floor: keeps.floor_of(&file.entry),
        };
        let rows =
            |rows: &Arc<Rows>| Part { source: Source::Rows(rows.clone()), floor: keeps.floor_of_rows() };
        let parts: Vec<Part> = view.files.iter().map(file).chain(view.rows.iter().map(rows)).collect();
        let mut needed = self.needed(parts);
        if only_newest {
            self.shrink(&mut needed, context).await?;
            needed = self.needed(needed);
        }
        self.plan(&needed).await
    }

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

    async fn plan(&self, parts: &[Part]) -> Result<Arc<dyn ExecutionPlan>> {
        let ranges: Vec<_> = parts.iter().map(Part::range).collect();
        let (merged, alone): (Vec<_>, Vec<_>) =
            stretches(&ranges).into_iter().partition(|stretch| stretch.parts.len() > 1);
        let zones = Arc::new(Zones::new(merged.iter().map(|zone| (zone.from, zone.to)).collect()));
        let mut plans = self.alone(parts, &alone, &zones).await?;
        if !merged.is_empty() {
            let steps = merged.iter().rev().map(|zone| {
                let here: Vec<&Part> = zone.parts.iter().filter_map(|&part| parts.get(part)).collect();
                self.step(zone.from, zone.to, &here)
            });
            let steps = steps.collect::<Result<Vec<_>>>()?;
            let schema = Arc::new(self.table.schema.project(&self.projection)?);
            plans.push(Arc::new(OverlapExec::new(schema, steps, self.partitions)));
        }
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(Arc::new(self.table.schema.project(&self.projection)?)))),
            1 => Ok(plans.swap_remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }

    /// Reads the stretches that one part has to itself.
    async fn alone(
        &self,
        parts: &[Part],
        alone: &[Stretch],
        zones: &Arc<Zones>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let mut looks = futures::stream::iter(self.looks(parts, alone)).buffer_unordered(LOOKS);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        let (mut files, mut rows, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        // Rows that reach into zones, by the time before which they are gone.
        let mut edges: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for stretch in alone {
            let Some((at, part)) = stretch.parts.first().and_then(|&at| Some((at, parts.get(at)?))) else {
                continue;
            };
            let whole = part.whole() == (stretch.from, stretch.to);
            match &part.source {
                Source::Rows(memory) => {
                    for points in memory.points(&self.table.schema)? {
                        let points = between(&points, stretch.from, stretch.to)?;
                        if points.num_rows() > 0 {
                            rows.push(points);
                        }
                    }
                }
                Source::File(file) if whole => files.push(Reading::whole(file)),
                // All stretches of a file at once.
                Source::File(file) if seen.insert(at) => {
                    let split = self.split(file, part.floor, zones).await?;
                    files.extend(split.inner);
                    edges.entry(part.floor).or_default().extend(split.edge);
                }
                Source::File(_) => {}
            }
        }
        let mut plans = Vec::new();
        if !files.is_empty() {
            plans.push(self.files(&files, &self.projection, self.all.as_ref(), self.limit)?);
        }
        for (floor, edge) in edges.into_iter().filter(|(_, edge)| !edge.is_empty()) {
            plans.push(self.edge(&edge, zones, floor)?);
        }
        if !rows.is_empty() {
            let projection = Some(self.projection.clone());
            let each = rows.len().div_ceil(self.partitions);
            let rows: Vec<Vec<RecordBatch>> = rows.chunks(each).map(<[RecordBatch]>::to_vec).collect();
            let source = MemorySourceConfig::try_new(&rows, self.table.schema.clone(), projection)?;
            plans.push(DataSourceExec::from_data_source(source.with_limit(self.limit)));
        }
        Ok(plans)
    }

    /// Reads what files say of themselves that are about to be split, some at a time: for the first query
    /// after a start all of a file has to be read, to know that it is whole.
    fn looks(&self, parts: &[Part], alone: &[Stretch]) -> Vec<BoxFuture<'static, Result<()>>> {
        let mut looks = Vec::new();
        for stretch in alone {
            let Some(part) = stretch.parts.first().and_then(|&at| parts.get(at)) else { continue };
            if let Source::File(file) = &part.source
                && part.whole() != (stretch.from, stretch.to)
                && file.entry.windows.is_empty()
                && file.metadata.get().is_none()
            {
                let (disk, file) = (self.table.disk.clone(), file.clone());
                looks.push(async move { metadata(&disk, &file).await.map(drop) }.boxed());
            }
        }
        looks
    }

    /// Reads what reaches into zones, and leaves out what is in them.
    fn edge(&self, edge: &[Reading], zones: &Arc<Zones>, floor: i64) -> Result<Arc<dyn ExecutionPlan>> {
        let (columns, wanted) = self.with_time([]);
        let rows = self.files(edge, &columns, self.all.as_ref(), None)?;
        let outside = Outside { time: Arc::new(Column::new(TIME, 0)), zones: zones.clone(), floor };
        let filter = FilterExecBuilder::new(Arc::new(outside), rows);
        Ok(Arc::new(filter.apply_projection(Some(wanted))?.build()?))
    }

    /// Reads the parts between two times and merges them.
    fn step(&self, from: i64, to: i64, parts: &[&Part]) -> Result<Step> {
        let schema = &self.table.schema;
        // Time is needed to cut the part, tags to find the same point in another.
        let (columns, wanted) = self.with_time(tags(schema));
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
                    let plan = self.files(&[Reading::whole(file)], &columns, Some(&predicate), None)?;
                    Input::File { plan, windows: file.entry.windows.clone(), floor: part.floor }
                }
                Source::Rows(rows) => {
                    let points = rows.points(schema)?.into_iter();
                    let there = points.map(|batch| not_before(&batch, part.floor)?.project(&columns));
                    Input::Rows(there.collect::<Result<Vec<RecordBatch>, _>>()?)
                }
            });
        }
        Ok(Step { from, to, schema: Arc::new(schema.project(&columns)?), inputs, wanted })
    }

    /// The wanted columns with time and others, in the table's order, and where the wanted ones are among them.
    fn with_time(&self, others: impl IntoIterator<Item = usize>) -> (Vec<usize>, Vec<usize>) {
        let mut columns: Vec<usize> = self.projection.iter().copied().chain([0]).chain(others).collect();
        columns.sort_unstable();
        columns.dedup();
        let wanted = self.projection.iter().filter_map(|column| columns.binary_search(column).ok()).collect();
        (columns, wanted)
    }

    /// Reads files, the newest first: it is those that are asked for most, and who looks for the last few
    /// rows need not read the others then. The predicate only leaves out row groups and pages.
    fn files(
        &self,
        files: &[Reading],
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
        let mut newest_first: Vec<&Reading> = files.iter().collect();
        newest_first.sort_by_key(|reading| std::cmp::Reverse(reading.range.1));
        let mut listed_files = Vec::with_capacity(files.len());
        for reading in newest_first {
            let entry = &reading.file.entry;
            let mut listed = PartitionedFile::new(entry.name(), entry.size)
                .with_extension(reading.file.clone())
                .with_statistics(Arc::new(self.statistics(std::slice::from_ref(reading))));
            if let Some(some) = &reading.groups {
                listed = listed.with_extension(some.clone());
            }
            listed_files.push(listed);
        }
        // Partitions take files from one queue, which is made of these in their order.
        let each = listed_files.len().div_ceil(self.partitions).max(1);
        let groups = listed_files.chunks(each).map(|files| FileGroup::new(files.to_vec())).collect();
        let mut statistics = self.statistics(files);
        if files.iter().any(|reading| reading.groups.is_some()) {
            statistics = statistics.to_inexact();
        }
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OURS)?, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .with_statistics(statistics)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Rows and times, which the manifest knows; enough to answer `count(*)` without reading. Of row groups
    /// rows are guessed and times bounded.
    fn statistics(&self, files: &[Reading]) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.table.schema);
        let rows: u64 = files.iter().map(|reading| reading.rows).sum();
        let guessed = files.iter().any(|reading| reading.groups.is_some());
        statistics.num_rows = match usize::try_from(rows) {
            Ok(rows) if guessed => Precision::Inexact(rows),
            Ok(rows) => Precision::Exact(rows),
            Err(_) => Precision::Absent,
        };
        let time = |time: Option<i64>| match time {
            // Exact also where it is a bound: whoever leaves out a file by it asks for no more.
            Some(time) => Precision::Exact(ScalarValue::TimestampNanosecond(Some(time), None)),
            None => Precision::Absent,
        };
        if let Some(column) = statistics.column_statistics.first_mut() {
            *column = ColumnStatistics {
                null_count: Precision::Exact(0),
                min_value: time(files.iter().map(|reading| reading.range.0).min()),
                max_value: time(files.iter().map(|reading| reading.range.1).max()),
                ..ColumnStatistics::new_unknown()
            };
        }
        statistics
    }
}

/// The rows of a batch by time between two times, ends included.
fn between(batch: &RecordBatch, from: i64, to: i64) -> Result<RecordBatch> {
    let times = times(batch)?;
    let start = times.partition_point(|&time| time < from);
    let end = times.partition_point(|&time| time <= to);
    Ok(batch.slice(start, end.saturating_sub(start)))
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
