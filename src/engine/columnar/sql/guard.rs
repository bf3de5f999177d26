//! Guards in a physical plan, around steps that take memory past the query's limit or cannot be
//! stopped, and the length of batches for steps that do not ask for it. A join makes batches of so many
//! rows however wide they are, and does not give way while none comes of it; a window keeps all rows of
//! its frame.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray};
use arrow_schema::DataType;
use datafusion::{
    common::tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    error::{DataFusionError, Result},
    execution::{
        SendableRecordBatchStream, TaskContext,
        memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
    },
    physical_expr::PhysicalExpr,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
        execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions},
        filter::FilterExec,
        joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec},
        stream::RecordBatchStreamAdapter,
        windows::{BoundedWindowAggExec, WindowAggExec},
    },
};
use futures::{StreamExt, TryStreamExt};

use crate::engine::columnar::merge::bytes;

/// Bytes of the rows that a join may put into one batch from one side.
const JOINED_BATCH: usize = 64 << 20;

/// A guard has the properties of what it guards.
const SAME: ReplaceChildrenOptions = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);

/// The plan with its guards. To be done last: the optimizer does not know them.
pub(super) fn guard(
    plan: Arc<dyn ExecutionPlan>,
    pool: &Arc<dyn MemoryPool>,
    batch_rows: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let guarded = plan.transform_up(|step| {
        let is_join = step.is::<HashJoinExec>()
            || step.is::<NestedLoopJoinExec>()
            || step.is::<SortMergeJoinExec>()
            || step.is::<CrossJoinExec>();
        if is_join {
            let sides = step.children().into_iter().map(|side| Guard::new(side, Duty::Narrow)).collect();
            return Ok(Transformed::yes(step.replace_children(sides, SAME)?));
        }
        // It puts batches together up to a length of its own, if nobody tells it another.
        if let Some(filter) = step.downcast_ref::<FilterExec>() {
            return Ok(Transformed::yes(Arc::new(filter.with_batch_size(batch_rows)?)));
        }
        if step.is::<WindowAggExec>() || step.is::<BoundedWindowAggExec>() {
            let kept = Arc::new(Mutex::new(Kept {
                share: MemoryConsumer::new("window").register(pool),
                rows: 0,
                bytes: 0,
            }));
            let input = step.children().into_iter().map(|input| Guard::new(input, Duty::In(kept.clone())));
            let input = input.collect();
            return Ok(Transformed::yes(Guard::new(&step.replace_children(input, SAME)?, Duty::Out(kept))));
        }
        Ok(Transformed::no(step))
    });
    Ok(guarded?.data)
}

/// Passes the batches of one step on, in pieces no longer than a batch should be.
#[derive(Debug)]
struct Guard {
    of: Arc<dyn ExecutionPlan>,
    duty: Duty,
}

#[derive(Debug, Clone)]
enum Duty {
    /// Rows that go into a join: each of them may be copied as often as a batch is long.
    Narrow,
    /// Rows that go into a window.
    In(Arc<Mutex<Kept>>),
    /// Rows that come out of it.
    Out(Arc<Mutex<Kept>>),
}

/// What is inside of a window.
#[derive(Debug)]
struct Kept {
    share: MemoryReservation,
    rows: usize,
    bytes: usize,
}

impl Guard {
    #[allow(clippy::new_ret_no_self, reason = "a plan is made of shared steps")]
    fn new(of: &Arc<dyn ExecutionPlan>, duty: Duty) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { of: of.clone(), duty })
    }
}

impl Duty {
    fn see(&self, batch: &RecordBatch, batch_rows: usize) -> Result<()> {
        match self {
            Self::Narrow => {
                let most = JOINED_BATCH / batch_rows.max(1);
                let widest: usize = batch.columns().iter().map(widest).sum();
                if widest > most {
                    return Err(DataFusionError::ResourcesExhausted(format!(
                        "a row of {widest} bytes is joined, {most} are possible: leave long columns out"
                    )));
                }
                Ok(())
            }
            Self::In(kept) => {
                let bytes = bytes(batch)?;
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                // Twice: in the end they are put together into one.
                kept.share.try_grow(bytes.saturating_mul(2))?;
                kept.bytes += bytes.saturating_mul(2);
                kept.rows += batch.num_rows();
                Ok(())
            }
            Self::Out(kept) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let rows = kept.rows.saturating_sub(batch.num_rows());
                // As if all rows were equally long; a product of two counts of bytes fits 128 bits.
                let left = kept.bytes as u128 * rows as u128 / kept.rows.max(1) as u128;
                let left = usize::try_from(left).unwrap_or(kept.bytes);
                kept.share.shrink(kept.bytes - left);
                (kept.rows, kept.bytes) = (rows, left);
                Ok(())
            }
        }
    }
}

impl DisplayAs for Guard {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard")
    }
}

impl ExecutionPlan for Guard {
    fn name(&self) -> &'static str {
        "Guard"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.of.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.of]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let of = children.first().unwrap_or(&self.of);
        Ok(Self::new(of, self.duty.clone()))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch_rows = context.session_config().batch_size();
        let batches = self.of.execute(partition, context)?;
        let duty = self.duty.clone();
        let into_a_join = matches!(duty, Duty::Narrow);
        let schema = batches.schema();
        let passed = batches
            .map_ok(move |batch| {
                futures::stream::iter(pieces(batch, batch_rows)).map(Ok::<_, DataFusionError>)
            })
            .try_flatten()
            .and_then(move |piece| {
                let seen = duty.see(&piece, batch_rows).map(|()| piece);
                async move {
                    // A join of which nothing comes asks for rows within one step, for hours if there are
                    // many. It can be stopped between two steps only, so each batch begins another one.
                    if into_a_join {
                        tokio::task::yield_now().await;
                    }
                    seen
                }
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, passed)))
    }
}

/// A batch in slices of at most `rows` rows.
pub(super) fn pieces(batch: RecordBatch, rows: usize) -> impl Iterator<Item = RecordBatch> + Send {
    let (len, rows) = (batch.num_rows(), rows.max(1));
    (0..len).step_by(rows).map(move |start| batch.slice(start, rows.min(len - start)))
}

/// Bytes of the longest value of a column; small ones count for nothing.
pub(super) fn widest(column: &ArrayRef) -> usize {
    let of_offsets = |offsets: &[i32]| {
        let lengths = offsets.windows(2).map(|pair| match pair {
            [from, to] => to - from,
            _ => 0,
        });
        lengths.max().map_or(0, |len| usize::try_from(len).unwrap_or(0))
    };
    match column.data_type() {
        DataType::Utf8 => of_offsets(column.as_string::<i32>().value_offsets()),
        DataType::Binary => of_offsets(column.as_binary::<i32>().value_offsets()),
        kind if kind.is_primitive() || kind.is_null() || *kind == DataType::Boolean => 0,
        // Views are joined without their text; what is rare is judged as a whole.
        DataType::Utf8View | DataType::BinaryView => 0,
        _ => column.to_data().get_slice_memory_size().unwrap_or(usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::Schema;
    use datafusion::{
        execution::memory_pool::UnboundedMemoryPool,
        physical_expr::expressions::lit,
        physical_plan::{empty::EmptyExec, union::UnionExec},
    };

    use super::*;

    #[test]
    fn a_filter_makes_no_longer_batches_than_the_query_may_have() {
        let empty = || Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
        let filter = Arc::new(FilterExec::try_new(lit(true), empty()).unwrap());
        let plan = UnionExec::try_new(vec![filter, empty()]).unwrap();
        let pool: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let plan = guard(plan, &pool, 32).unwrap();
        let filter = plan.children()[0].downcast_ref::<FilterExec>().unwrap();
        assert_eq!(filter.batch_size(), 32);
    }
}
