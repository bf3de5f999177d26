//! Reads parts of a table whose times overlap, so that each point comes once.
//!
//! Every input is sorted by time, or is by the windows of its file. A row can be given once every other input is past its time; the
//! rows up to there are merged in the order of the inputs, which is the order of writing. Memory
//! is bounded by the inputs' batches and windows, not by the stretch of time.

use std::{collections::VecDeque, fmt, sync::Arc};

use arrow_array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_buffer::BooleanBuffer;
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use tokio::time::Instant;

use super::guard::pieces;
use crate::engine::columnar::merge::{Windows, merge, times};

/// A stretch of time, both ends included, and what has rows in it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// First nanosecond.
    pub(super) from: i64,
    /// Last nanosecond.
    pub(super) to: i64,
    /// Columns of the inputs: time, what is wanted, and all tags.
    pub(super) schema: SchemaRef,
    /// In the order in which their rows were written.
    pub(super) inputs: Vec<Input>,
    /// The wanted columns among those of the inputs.
    pub(super) wanted: Vec<usize>,
}

/// Points by time, or by windows of it, each once; also outside of the stretch.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// A file.
    File {
        /// The one partition of this reads it.
        plan: Arc<dyn ExecutionPlan>,
        /// First times of its windows: within one its rows are not by time.
        windows: Vec<i64>,
        /// Its rows before this time are gone, whatever the stretch.
        floor: i64,
    },
    /// Batches in memory.
    Rows(Vec<RecordBatch>),
}

/// Runs steps, some at a time. A leaf for the optimiser, which must not take the inputs apart.
#[derive(Debug)]
pub(super) struct OverlapExec {
    schema: SchemaRef,
    /// The steps of each partition.
    partitions: Vec<Vec<Step>>,
    properties: Arc<PlanProperties>,
}

impl OverlapExec {
    /// Runs the steps in up to `partitions` partitions.
    pub(super) fn new(schema: SchemaRef, steps: Vec<Step>, partitions: usize) -> Self {
        // In turn, so that each begins with what comes first.
        let count = partitions.min(steps.len()).max(1);
        let mut partitions = vec![Vec::new(); count];
        for (at, step) in steps.into_iter().enumerate() {
            if let Some(partition) = partitions.get_mut(at % count) {
                partition.push(step);
            }
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(partitions.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { schema, partitions, properties: Arc::new(properties) }
    }
}

impl DisplayAs for OverlapExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = || self.partitions.iter().flatten();
        let merged = steps().filter(|step| step.inputs.len() > 1).count();
        let is_file = |input: &&Input| matches!(input, Input::File { .. });
        let files = steps().flat_map(|step| &step.inputs).filter(is_file).count();
        write!(f, "OverlapExec: steps={}, merged={merged}, files={files}", steps().count())
    }
}

impl ExecutionPlan for OverlapExec {
    fn name(&self) -> &'static str {
        "OverlapExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(steps) = self.partitions.get(partition) else {
            return Err(DataFusionError::Internal(format!("OverlapExec has no partition {partition}")));
        };
        let run = Run { todo: steps.clone().into(), running: None, ready: VecDeque::new(), context };
        let rows = futures::stream::try_unfold(run, |mut run| async move {
            Ok(run.next().await?.map(|batch| (batch, run)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }
}

/// The steps of one partition, one after the other.
struct Run {
    todo: VecDeque<Step>,
    running: Option<(Step, Vec<Cursor>)>,
    ready: VecDeque<RecordBatch>,
    context: Arc<TaskContext>,
}

impl Run {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let (step, cursors) = match &mut self.running {
                Some(running) => running,
                None => {
                    let Some(step) = self.todo.pop_front() else { return Ok(None) };
                    let cursors = cursors(&step, &self.context)?;
                    self.running.insert((step, cursors))
                }
            };
            let rows = complete_rows(step, cursors).await?;
            if rows.is_empty() {
                self.running = None;
                continue;
            }
            let points = merge(&step.schema, &rows)?;
            // Steps above take what they get for a batch's length.
            let rows = self.context.session_config().batch_size();
            for batch in points {
                self.ready.extend(pieces(select(&batch, &step.wanted)?, rows));
            }
        }
    }
}

/// Whether a point is in two of a step's inputs; `None` if that is not known by then.
pub(super) async fn repeats(step: Step, until: Instant, context: &Arc<TaskContext>) -> Result<Option<bool>> {
    let mut cursors = cursors(&step, context)?;
    while Instant::now() < until {
        let rows = complete_rows(&step, &mut cursors).await?;
        if rows.is_empty() {
            return Ok(Some(false));
        }
        let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        if count(&merge(&step.schema, &rows)?) < count(&rows) {
            return Ok(Some(true));
        }
        // Planning is over when nobody waits for it any more.
        tokio::task::yield_now().await;
    }
    Ok(None)
}

fn cursors(step: &Step, context: &Arc<TaskContext>) -> Result<Vec<Cursor>> {
    step.inputs.iter().map(|input| Cursor::new(input, (step.from, step.to), context)).collect()
}

/// One input, and what of it was read and not given.
struct Cursor {
    /// `None` after its end.
    rest: Option<SendableRecordBatchStream>,
    /// First and last time of the rows that are asked for and not gone.
    within: (i64, i64),
    /// What is in a window of which not everything was read.
    windows: Windows,
    /// No batch is empty.
    read: VecDeque<RecordBatch>,
}

impl Cursor {
    fn new(input: &Input, (from, to): (i64, i64), context: &Arc<TaskContext>) -> Result<Self> {
        match input {
            Input::File { plan, windows, floor } => Ok(Self {
                rest: Some(plan.execute(0, context.clone())?),
                within: (from.max(*floor), to),
                windows: Windows::new(windows),
                read: VecDeque::new(),
            }),
            Input::Rows(rows) => Ok(Self {
                rest: None,
                within: (from, to),
                windows: Windows::new(&[]),
                read: rows.iter().filter(|batch| batch.num_rows() > 0).cloned().collect(),
            }),
        }
    }

    /// Reads one more batch, if there is one.
    async fn read(&mut self) -> Result<()> {
        if let Some(rest) = &mut self.rest {
            match rest.next().await.transpose()? {
                // What is left out here no window is held for, nor sorted.
                Some(batch) => self.windows.push(within(&batch, self.within)?, &mut self.read)?,
                None => {
                    self.rest = None;
                    self.windows.finish(&mut self.read)?;
                }
            }
            // The last one says how far this input is, so it must have rows.
            self.read.retain(|batch| batch.num_rows() > 0);
        }
        Ok(())
    }

    /// The time up to which it may still have rows that were not read; `None` after its end.
    fn last(&self) -> Result<Option<i64>> {
        if self.rest.is_none() {
            return Ok(None);
        }
        let last = self.read.back().map(times).transpose()?;
        Ok(last.and_then(|times| times.last().copied()))
    }

    /// Takes out the rows before a time, or all that were read.
    fn take(&mut self, before: Option<i64>, to: &mut Vec<RecordBatch>) -> Result<()> {
        while let Some(batch) = self.read.pop_front() {
            let len = match before {
                Some(before) => times(&batch)?.partition_point(|&time| time < before),
                None => batch.num_rows(),
            };
            if len > 0 {
                to.push(batch.slice(0, len));
            }
            if len < batch.num_rows() {
                self.read.push_front(batch.slice(len, batch.num_rows() - len));
                break;
            }
        }
        Ok(())
    }
}

/// Rows of all inputs, in their order, up to a time that every input is past; within the stretch.
/// Empty at the end.
async fn complete_rows(step: &Step, cursors: &mut [Cursor]) -> Result<Vec<RecordBatch>> {
    loop {
        for cursor in cursors.iter_mut() {
            while cursor.read.is_empty() && cursor.rest.is_some() {
                cursor.read().await?;
            }
        }
        let lasts = cursors.iter().map(Cursor::last).collect::<Result<Vec<_>>>()?;
        let before = lasts.iter().flatten().min().copied();
        let mut rows = Vec::new();
        for cursor in cursors.iter_mut() {
            cursor.take(before, &mut rows)?;
        }
        let nothing_more = rows.is_empty() && before.is_none();
        let clipped = rows.iter().map(|batch| clip(batch, step.from, step.to));
        let mut rows = clipped.collect::<Result<Vec<_>>>()?;
        rows.retain(|batch| batch.num_rows() > 0);
        if !rows.is_empty() || nothing_more || before.is_some_and(|before| before > step.to) {
            return Ok(rows);
        }
        // Whoever holds the others up has to come with more.
        for (cursor, last) in cursors.iter_mut().zip(lasts) {
            if last.is_some() && last == before {
                cursor.read().await?;
            }
        }
    }
}

/// The rows of a batch, in whatever order, between two times, ends included.
fn within(batch: &RecordBatch, (from, to): (i64, i64)) -> Result<RecordBatch> {
    let times = times(batch)?;
    let here = BooleanBuffer::collect_bool(times.len(), |row| {
        times.get(row).is_some_and(|time| (from..=to).contains(time))
    });
    if here.count_set_bits() == times.len() {
        return Ok(batch.clone());
    }
    Ok(filter_record_batch(batch, &BooleanArray::new(here, None))?)
}

/// The rows between two times, ends included.
fn clip(batch: &RecordBatch, from: i64, to: i64) -> Result<RecordBatch> {
    let times = times(batch)?;
    let start = times.partition_point(|&time| time < from);
    let end = times.partition_point(|&time| time <= to);
    Ok(batch.slice(start, end.saturating_sub(start)))
}

/// These columns of a batch, also if there are none.
fn select(batch: &RecordBatch, columns: &[usize]) -> Result<RecordBatch> {
    let schema = Arc::new(batch.schema_ref().project(columns)?);
    let arrays = columns.iter().map(|&column| batch.column(column).clone()).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema, arrays, &rows)?)
}
