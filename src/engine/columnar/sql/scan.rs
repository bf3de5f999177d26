//! What a scan of a table reads, and how: parts that hold their points alone as they lie, and stretches of
//! time in which a point may be in several parts through [`OverlapExec`]. Files that overlap and are known
//! to have no point in common hold theirs alone too.
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
    common::{ScalarValue, pruning::PruningStatistics},
    datasource::{
        memory::{DataSourceExec, MemorySourceConfig},
        physical_plan::parquet::ParquetAccessPlan,
    },
    error::Result,
    execution::TaskContext,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr, conjunction,
        expressions::{BinaryExpr, Column, lit},
    },
    physical_optimizer::pruning::PruningPredicateBuilder,
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};

use self::zones::Zones;
use super::{
    overlap_exec::{Input, OverlapExec, Step},
    table_provider::SqlTable,
    tags_exec::TagsExec,
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

mod apart;
mod files;
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
            needed = self.needed(self.shrink(&needed, context).await?);
        }
        self.plan(&needed, context).await
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

    async fn plan(&self, parts: &[Part], context: &Arc<TaskContext>) -> Result<Arc<dyn ExecutionPlan>> {
        let ranges: Vec<_> = parts.iter().map(Part::range).collect();
        let (shared, alone): (Vec<_>, Vec<_>) =
            stretches(&ranges).into_iter().partition(|stretch| stretch.parts.len() > 1);
        let merged = self.merged(parts, shared, context).await?;
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
        let given = Arc::new(self.table.given().project(&self.projection)?);
        let mut plans: Vec<_> = plans
            .into_iter()
            .map(|plan| TagsExec::giving(&given, plan, &self.projection, self.table))
            .collect();
        match plans.len() {
            0 => Ok(Arc::new(EmptyExec::new(given))),
            1 => Ok(plans.swap_remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }

    /// Reads everything outside of zones as it lies. `alone` are the stretches that one part has to itself.
    async fn alone(
        &self,
        parts: &[Part],
        alone: &[Stretch],
        zones: &Arc<Zones>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let (mut files, mut cut, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            if let Source::File(file) = &part.source {
                let (first, last) = part.whole();
                if part.floor <= first && !zones.touch(first, last) {
                    files.push(Reading::whole(file));
                } else if !zones.cover(first.max(part.floor), last) {
                    cut.push((file, part.floor));
                }
            }
        }
        self.look_into(cut.iter().map(|(file, _)| *file).filter(|file| file.entry.windows.is_empty()))
            .await?;
        // Rows that reach into zones, by the time before which they are gone.
        let mut edges: BTreeMap<i64, Vec<Reading>> = BTreeMap::new();
        for (file, floor) in cut {
            let split = self.split(file, floor, zones).await?;
            files.extend(split.inner);
            edges.entry(floor).or_default().extend(split.edge);
        }
        for stretch in alone {
            let part = stretch.parts.first().and_then(|&at| parts.get(at));
            if let Some(Part { source: Source::Rows(memory), .. }) = part {
                for points in memory.points(&self.table.schema)? {
                    let points = between(&points, stretch.from, stretch.to)?;
                    if points.num_rows() > 0 {
                        rows.push(points);
                    }
                }
            }
        }
        let mut plans = self.narrowed(files, &self.projection, self.limit).await?;
        for (floor, edge) in edges {
            plans.extend(self.edge(edge, zones, floor).await?);
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
                    let (file_alone, texts) = ([Reading::whole(file)], Arc::default());
                    let plan = self.files(&file_alone, &columns, Some(&predicate), None, &texts)?;
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
