//! The step that adds rows: series by series, each held as a whole.

use std::{fmt, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, UInt32Array, UInt64Array,
    cast::AsArray,
    types::{Float64Type, Int64Type, UInt64Type},
};
use arrow_cast::cast;
use arrow_schema::{DataType, SchemaRef, SortOptions, TimeUnit};
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

use super::{super::guard::widest, Fill, MAX_BINS};
use crate::engine::columnar::merge::bytes;

/// The bin of what is not there, behind all others.
const NOWHERE: usize = usize::MAX;
/// Bytes of a piece of rows, about.
const PIECE_BYTES: usize = 8 << 20;

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
            read: None,
            held: Vec::new(),
            made: None,
            share: MemoryConsumer::new("gaps").register(context.memory_pool()),
            schema: self.schema.clone(),
            bins: self.bins.clone(),
            filled: self.filled.clone(),
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
    /// What was read last, and where the rows begin that were not taken.
    read: Option<(RecordBatch, usize)>,
    /// Rows of the series that has not ended.
    held: Vec<RecordBatch>,
    /// The series that is given now.
    made: Option<Series>,
    /// For the rows of one series.
    share: MemoryReservation,
    schema: SchemaRef,
    bins: Bins,
    filled: Vec<(usize, Fill)>,
    rows: usize,
}

impl Run {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(series) = &mut self.made {
                // Many bins come of few rows: whoever waits for an end can stop this between two pieces.
                tokio::task::yield_now().await;
                if let Some(piece) = series.next(&self.schema)? {
                    return Ok(Some(piece));
                }
                self.made = None;
                self.share.free();
            }
            if let Some((batch, from)) = self.read.take() {
                self.take(&batch, from)?;
                continue;
            }
            let Some(input) = &mut self.input else { return Ok(None) };
            match input.next().await.transpose()? {
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => self.read = Some((batch, 0)),
                None => {
                    self.input = None;
                    self.end_of_series()?;
                }
            }
        }
    }

    /// Takes the rows that follow, up to the end of their series.
    fn take(&mut self, batch: &RecordBatch, from: usize) -> Result<()> {
        if let Some(held) = self.held.last()
            && !self.is_one_series((held, held.num_rows() - 1), (batch, from))?
        {
            self.read = Some((batch.clone(), from));
            return self.end_of_series();
        }
        let mut to = from + 1;
        while to < batch.num_rows() && self.is_one_series((batch, to - 1), (batch, to))? {
            to += 1;
        }
        let rows = batch.slice(from, to - from);
        // Twice: they are put together in the end.
        self.share.try_grow(bytes(&rows)?.saturating_mul(2))?;
        self.held.push(rows);
        if to < batch.num_rows() {
            self.read = Some((batch.clone(), to));
            return self.end_of_series();
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

    fn end_of_series(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        if let Some(first) = held.first() {
            let rows = concat_batches(first.schema_ref(), &held)?;
            self.made = Some(Series::new(rows, &self.bins, &self.filled, self.rows)?);
        }
        Ok(())
    }
}

/// The rows of one series, of which those with the bins between are made piece by piece.
struct Series {
    rows: RecordBatch,
    bins: Bins,
    /// Nanoseconds of the rows that have a time; those without come first, and are given as they are.
    times: Vec<i64>,
    without_time: usize,
    first: i64,
    count: usize,
    /// The next bin, and the first row that is not before it.
    bin: usize,
    row: usize,
    filled: Vec<Filling>,
    piece: usize,
}

/// A column that is filled, and how far.
struct Filling {
    of: usize,
    fill: Fill,
    /// Bin and row of the last value, and of the next.
    last: Option<(usize, usize)>,
    next: Option<(usize, usize)>,
}

/// Where a filled value comes from: the rows before and behind, and how far it is from one to the other.
type Between = Option<(usize, usize, usize, usize)>;

impl Series {
    fn new(rows: RecordBatch, bins: &Bins, filled: &[(usize, Fill)], most: usize) -> Result<Self> {
        let column = rows.column(bins.time);
        let unit = nanos_of(column.data_type())?;
        let without_time = column.null_count();
        let raw = cast(column, &DataType::Int64)?;
        let raw = raw.as_primitive::<Int64Type>().values();
        let times: Vec<i64> = raw.iter().skip(without_time).map(|time| time.saturating_mul(unit)).collect();
        let (first, count) = match (times.first(), times.last()) {
            (Some(&own_first), Some(&own_last)) => {
                let first = bins.first.unwrap_or(own_first).min(own_first);
                let last = bins.last.unwrap_or(own_last).max(own_last);
                (first, last.abs_diff(first) / bins.stride.unsigned_abs() + 1)
            }
            _ => (0, 0),
        };
        if count > MAX_BINS {
            return Err(DataFusionError::Plan(format!(
                "date_bin_gapfill: {count} bins of each series, {MAX_BINS} are possible: ask for less time or \
                 longer bins"
            )));
        }
        // What series are told apart by is copied into every row.
        let width = rows.columns().iter().map(widest).fold(8 * rows.num_columns(), usize::saturating_add);
        let piece = (PIECE_BYTES / width.max(1)).clamp(1, most.max(1));
        let filling = |&(of, fill): &(usize, Fill)| Filling { of, fill, last: None, next: None };
        let filled = filled.iter().map(filling).collect();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let bins = bins.clone();
        Ok(Self { rows, bins, times, without_time, first, count, bin: 0, row: 0, filled, piece })
    }

    /// The rows of the next bins.
    fn next(&mut self, schema: &SchemaRef) -> Result<Option<RecordBatch>> {
        if self.without_time > 0 {
            let rows = self.rows.slice(0, self.without_time);
            self.rows = self.rows.slice(self.without_time, self.times.len());
            self.without_time = 0;
            let filled = self.filled.iter().map(|filling| rows.column(filling.of).clone());
            let columns = rows.columns().iter().cloned().chain(filled).collect();
            return Ok(Some(RecordBatch::try_new(schema.clone(), columns)?));
        }
        let to = self.count.min(self.bin + self.piece);
        if self.bin == to {
            return match self.row < self.times.len() {
                true => Err(DataFusionError::Internal("a row is in no bin".into())),
                false => Ok(None),
            };
        }
        let (mut at, mut row_of) = (Vec::with_capacity(to - self.bin), Vec::with_capacity(to - self.bin));
        let mut between: Vec<Vec<Between>> = self.filled.iter().map(|_| Vec::new()).collect();
        for bin in self.bin..to {
            let time = self.time_of(bin);
            let here = self.times.get(self.row) == Some(&time);
            at.push(time);
            row_of.push(here.then_some(self.row as u32));
            let (row, from) = (here.then_some(self.row), self.row);
            for (filling, between) in self.filled.iter_mut().zip(&mut between) {
                let column = self.rows.column(filling.of);
                if let Some(row) = row.filter(|row| column.is_valid(*row)) {
                    filling.last = Some((bin, row));
                }
                if filling.fill == Fill::Between && filling.next.is_none_or(|(next, _)| next < bin) {
                    let next = (from..self.times.len()).find(|row| column.is_valid(*row));
                    let bin_of = |row: usize| {
                        let behind =
                            self.times.get(row)?.abs_diff(self.first) / self.bins.stride.unsigned_abs();
                        usize::try_from(behind).ok()
                    };
                    // Where there is none it is looked for once.
                    let next = next.and_then(|row| Some((bin_of(row)?, row)));
                    filling.next = Some(next.unwrap_or((NOWHERE, 0)));
                }
                between.push(filling.between(bin));
            }
            self.row += usize::from(here);
        }
        self.bin = to;
        self.columns(schema, at, row_of, &between).map(Some)
    }

    fn time_of(&self, bin: usize) -> i64 {
        // It is not behind the last one, so what wraps on the way wraps back.
        self.first.wrapping_add((bin as i64).wrapping_mul(self.bins.stride))
    }

    fn columns(
        &self,
        schema: &SchemaRef,
        at: Vec<i64>,
        row_of: Vec<Option<u32>>,
        between: &[Vec<Between>],
    ) -> Result<RecordBatch> {
        let everywhere = UInt32Array::from(vec![0; at.len()]);
        let there = UInt32Array::from(row_of);
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
        for (index, column) in self.rows.columns().iter().enumerate() {
            columns.push(if index == self.bins.time {
                let unit = nanos_of(column.data_type())?;
                let raw = Int64Array::from_iter_values(at.iter().map(|time| time / unit));
                cast(&(Arc::new(raw) as ArrayRef), column.data_type())?
            } else if self.bins.groups.contains(&index) {
                take(column, &everywhere, None)?
            } else {
                take(column, &there, None)?
            });
        }
        for (filling, between) in self.filled.iter().zip(between) {
            let column = self.rows.column(filling.of);
            columns.push(match filling.fill {
                Fill::Last => {
                    let last = between.iter().map(|between| between.map(|(row, ..)| row as u32));
                    take(column, &last.collect::<UInt32Array>(), None)?
                }
                Fill::Between => interpolated(column, between)?,
            });
        }
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

impl Filling {
    /// What a bin is filled from.
    fn between(&self, bin: usize) -> Between {
        let (from, before) = self.last?;
        match self.fill {
            Fill::Last => Some((before, before, 0, 1)),
            Fill::Between => {
                let (to, behind) = self.next.filter(|(next, _)| *next != NOWHERE)?;
                Some((before, behind, bin - from, (to - from).max(1)))
            }
        }
    }
}

/// Nanoseconds of what a time counts.
pub(super) fn nanos_of(kind: &DataType) -> Result<i64> {
    match kind {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Ok(1),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Ok(1_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => Ok(1_000_000),
        DataType::Timestamp(TimeUnit::Second, _) => Ok(1_000_000_000),
        other => Err(DataFusionError::Internal(format!("bins of {other}"))),
    }
}

/// What lies on the lines between values.
fn interpolated(column: &ArrayRef, between: &[Between]) -> Result<ArrayRef> {
    let whole = |a: i128, b: i128, part: usize, of: usize| a + (b - a) * part as i128 / of as i128;
    Ok(match column.data_type() {
        DataType::Int64 => {
            let values = column.as_primitive::<Int64Type>();
            let one = |(a, b, part, of): (usize, usize, usize, usize)| {
                i64::try_from(whole(values.value(a).into(), values.value(b).into(), part, of)).ok()
            };
            Arc::new(between.iter().map(|between| between.and_then(one)).collect::<Int64Array>())
        }
        DataType::UInt64 => {
            let values = column.as_primitive::<UInt64Type>();
            let one = |(a, b, part, of): (usize, usize, usize, usize)| {
                u64::try_from(whole(values.value(a).into(), values.value(b).into(), part, of)).ok()
            };
            Arc::new(between.iter().map(|between| between.and_then(one)).collect::<UInt64Array>())
        }
        kind => {
            let values = cast(column, &DataType::Float64)?;
            let values = values.as_primitive::<Float64Type>();
            let one = |(a, b, part, of): (usize, usize, usize, usize)| {
                let (a, b) = (values.value(a), values.value(b));
                // What is infinite lies on no line.
                if part == 0 {
                    return a;
                }
                a + (b - a) * (part as f64 / of as f64)
            };
            let made = between.iter().map(|between| between.map(one)).collect::<Float64Array>();
            cast(&(Arc::new(made) as ArrayRef), kind)?
        }
    })
}
