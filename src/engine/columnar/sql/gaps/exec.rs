//! The step that adds rows: series by series, each held as a whole.

use std::{collections::VecDeque, fmt, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampNanosecondArray, UInt32Array,
    UInt64Array,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef, SortOptions};
use arrow_select::{concat::concat_batches, take::take};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryReservation},
    },
    physical_expr::{
        Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr,
        PhysicalSortExpr, expressions::Column,
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, InputDistributionRequirements, Partitioning,
        PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;

use super::{super::guard::pieces, Fill, MAX_BINS};
use crate::engine::columnar::merge::bytes;

/// Where bins are.
#[derive(Debug, Clone)]
pub(super) struct Bins {
    /// The column of their times.
    pub(super) time: usize,
    /// The columns that tell series apart.
    pub(super) groups: Vec<usize>,
    /// Nanoseconds of one.
    pub(super) stride: i64,
    /// The first of every series, and the last; `None`: its first or last row.
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
}

/// Adds the rows of bins that are missing. Its input is by series and then by time.
#[derive(Debug)]
pub(super) struct GapsExec {
    input: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    bins: Bins,
    filled: Vec<(usize, Fill)>,
    order: LexOrdering,
    properties: Arc<PlanProperties>,
}

impl GapsExec {
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        schema: SchemaRef,
        bins: Bins,
        filled: Vec<(usize, Fill)>,
    ) -> Result<Self> {
        let columns = input.schema();
        let by = |&at: &usize| {
            let column = Column::new(columns.field(at).name(), at);
            PhysicalSortExpr::new(Arc::new(column), SortOptions { descending: false, nulls_first: true })
        };
        let order = LexOrdering::new(bins.groups.iter().chain([&bins.time]).map(by));
        let order = order.ok_or_else(|| DataFusionError::Internal("nothing to order by".into()))?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { input, schema, bins, filled, order, properties: Arc::new(properties) })
    }
}

impl DisplayAs for GapsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GapsExec: stride={} ns, filled={}", self.bins.stride, self.filled.len())
    }
}

impl ExecutionPlan for GapsExec {
    fn name(&self) -> &'static str {
        "GapsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        InputDistributionRequirements::new(vec![Distribution::SinglePartition])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![Some(OrderingRequirements::from(self.order.clone()))]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Ok(Arc::new(Self::new(input, self.schema.clone(), self.bins.clone(), self.filled.clone())?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let run = Run {
            input: Some(self.input.execute(partition, context.clone())?),
            schema: self.schema.clone(),
            bins: self.bins.clone(),
            filled: self.filled.clone(),
            held: Vec::new(),
            share: MemoryConsumer::new("gaps").register(context.memory_pool()),
            ready: VecDeque::new(),
            rows: context.session_config().batch_size(),
        };
        let rows = futures::stream::try_unfold(run, |mut run| async move {
            Ok(run.next().await?.map(|batch| (batch, run)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }
}

struct Run {
    /// `None` after its end.
    input: Option<SendableRecordBatchStream>,
    schema: SchemaRef,
    bins: Bins,
    filled: Vec<(usize, Fill)>,
    /// Rows of the series that has not ended.
    held: Vec<RecordBatch>,
    share: MemoryReservation,
    ready: VecDeque<RecordBatch>,
    rows: usize,
}

impl Run {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some(input) = &mut self.input else { return Ok(None) };
            match input.next().await.transpose()? {
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => self.take(&batch)?,
                None => {
                    self.input = None;
                    self.finish()?;
                }
            }
        }
    }

    /// Takes rows in; those of series that have ended are ready then.
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut start = 0;
        for end in 1..=batch.num_rows() {
            if end < batch.num_rows() && self.is_one_series((batch, end - 1), (batch, end))? {
                continue;
            }
            let begins = match self.held.last() {
                Some(held) if start == 0 => !self.is_one_series((held, held.num_rows() - 1), (batch, 0))?,
                _ => start > 0,
            };
            if begins {
                self.finish()?;
            }
            let rows = batch.slice(start, end - start);
            // Twice: they are put together in the end.
            self.share.try_grow(bytes(&rows)?.saturating_mul(2))?;
            self.held.push(rows);
            start = end;
        }
        Ok(())
    }

    fn is_one_series(&self, a: (&RecordBatch, usize), b: (&RecordBatch, usize)) -> Result<bool> {
        for &group in &self.bins.groups {
            let (left, right) = (a.0.column(group).slice(a.1, 1), b.0.column(group).slice(b.1, 1));
            if left.to_data() != right.to_data() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The series has ended: its rows with those that are missing.
    fn finish(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        if let Some(first) = held.first() {
            let rows = concat_batches(first.schema_ref(), &held)?;
            let filled = fill(&rows, &self.schema, &self.bins, &self.filled)?;
            self.ready.extend(pieces(filled, self.rows));
        }
        self.share.free();
        Ok(())
    }
}

/// The rows of one series with those of the bins that are missing.
fn fill(
    rows: &RecordBatch,
    schema: &SchemaRef,
    bins: &Bins,
    filled: &[(usize, Fill)],
) -> Result<RecordBatch> {
    let wrong = || DataFusionError::Internal("bins have no times".into());
    let times =
        rows.column(bins.time).as_primitive_opt::<TimestampNanosecondType>().ok_or_else(wrong)?.values();
    let (Some(&own_first), Some(&own_last)) = (times.first(), times.last()) else {
        return Ok(RecordBatch::new_empty(schema.clone()));
    };
    let (first, last) =
        (bins.first.unwrap_or(own_first).min(own_first), bins.last.unwrap_or(own_last).max(own_last));
    let count = last.abs_diff(first) / bins.stride.unsigned_abs() + 1;
    if count > MAX_BINS {
        return Err(DataFusionError::Plan(format!(
            "date_bin_gapfill: {count} bins of each series, {MAX_BINS} are possible: ask for less time or longer bins"
        )));
    }
    // For each bin its time and its row, if there is one.
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let (mut at, mut row_of) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut row = 0;
    for bin in (0..count as i64).map(|bin| first + bin * bins.stride) {
        let here = times.get(row) == Some(&bin);
        at.push(bin);
        row_of.push(here.then_some(row as u32));
        row += usize::from(here);
    }
    if row < times.len() {
        return Err(DataFusionError::Internal("a row is in no bin".into()));
    }
    let there = UInt32Array::from(row_of.clone());
    let everywhere = UInt32Array::from(vec![0; count]);
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (index, column) in rows.columns().iter().enumerate() {
        columns.push(if index == bins.time {
            Arc::new(TimestampNanosecondArray::from(at.clone()))
        } else if bins.groups.contains(&index) {
            take(column, &everywhere, None)?
        } else {
            take(column, &there, None)?
        });
    }
    for (of, fill) in filled {
        let column = rows.column(*of);
        columns.push(match fill {
            Fill::Last => take(column, &carried(column, &row_of), None)?,
            Fill::Between => between(column, &row_of)?,
        });
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}

/// For each bin the last row up to it that has a value.
fn carried(column: &ArrayRef, row_of: &[Option<u32>]) -> UInt32Array {
    let mut last = None;
    let carried = row_of.iter().map(|row| {
        last = row.filter(|&row| column.is_valid(row as usize)).or(last);
        last
    });
    carried.collect()
}

/// For each bin its value, or what lies on the line between the bins before and behind that have one.
fn between(column: &ArrayRef, row_of: &[Option<u32>]) -> Result<ArrayRef> {
    let valid = |row: &Option<u32>| row.filter(|&row| column.is_valid(row as usize)).map(|row| row as usize);
    // For each bin the bin and row of the value at or before it, and at or behind it.
    let mut before = Vec::with_capacity(row_of.len());
    let mut last = None;
    for (bin, row) in row_of.iter().enumerate() {
        last = valid(row).map(|row| (bin, row)).or(last);
        before.push(last);
    }
    let mut behind = vec![None; row_of.len()];
    let mut next = None;
    for ((bin, row), behind) in row_of.iter().enumerate().zip(&mut behind).rev() {
        next = valid(row).map(|row| (bin, row)).or(next);
        *behind = next;
    }
    let places = || {
        before.iter().zip(&behind).enumerate().map(|(bin, (before, behind))| {
            let ((from, a), (to, b)) = before.zip(*behind)?;
            Some((a, b, bin - from, (to - from).max(1)))
        })
    };
    let whole = |a: i128, b: i128, part: usize, of: usize| a + (b - a) * part as i128 / of as i128;
    Ok(match column.data_type() {
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            let one = |(a, b, part, of)| {
                i64::try_from(whole(values.value(a).into(), values.value(b).into(), part, of))
            };
            Arc::new(places().map(|place| one(place?).ok()).collect::<Int64Array>())
        }
        DataType::UInt64 => {
            let values = column.as_primitive::<UInt64Type>();
            let one = |(a, b, part, of)| {
                u64::try_from(whole(values.value(a).into(), values.value(b).into(), part, of))
            };
            Arc::new(places().map(|place| one(place?).ok()).collect::<UInt64Array>())
        }
        kind => {
            let values = cast(column, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            let one = |(a, b, part, of): (usize, usize, usize, usize)| {
                let (a, b) = (values.value(a), values.value(b));
                a + (b - a) * (part as f64 / of as f64)
            };
            let made: ArrayRef = Arc::new(places().map(|place| place.map(one)).collect::<Float64Array>());
            cast(&made, kind)?
        }
    })
}
