//! Threads of their own for what each query computes. A step of a plan may take long before it gives
//! way. On the node's other threads writes, heartbeats and every other request would wait behind it, on
//! threads that queries share the others' queries. These the kernel interrupts: it divides what there
//! is among queries, and prefers everything else to them.

use std::{
    sync::Arc,
    task::{Context, Poll},
    thread::available_parallelism,
};

use arrow_array::RecordBatch;
use datafusion::{
    error::DataFusionError,
    execution::TaskContext,
    physical_plan::{ExecutionPlan, execute_stream},
};
use futures::StreamExt;
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
};

use super::{super::background::yield_to_others, error::QueryError};

/// Most threads of one query.
const MOST_THREADS: usize = 8;

/// Rows as these threads find them, at most one batch ahead of who takes them. Dropping it ends the
/// work.
#[derive(Debug)]
pub(super) struct Rows {
    take: mpsc::Receiver<Given>,
    /// There until it is dropped.
    threads: Option<Runtime>,
}

enum Given {
    Batch(RecordBatch),
    Failed(DataFusionError),
    End,
}

impl Drop for Rows {
    fn drop(&mut self) {
        // The work ends at its next step, and its threads with it; nobody has to wait for that.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

impl Rows {
    /// Starts a plan.
    pub(super) fn of(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<Self, QueryError> {
        let (give, take) = mpsc::channel(1);
        let threads = threads()?;
        threads.spawn(run(plan, context, give));
        Ok(Self { take, threads: Some(threads) })
    }

    /// The next batch; `None` when all were given.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RecordBatch, QueryError>>> {
        self.take.poll_recv(cx).map(|given| match given {
            Some(Given::Batch(batch)) => Some(Ok(batch)),
            Some(Given::Failed(error)) => Some(Err(error.into())),
            Some(Given::End) => None,
            // It must not look whole.
            None => Some(Err(QueryError::Internal("its work ended early".into()))),
        })
    }
}

async fn run(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>, give: mpsc::Sender<Given>) {
    let mut rows = match execute_stream(plan, context) {
        Ok(rows) => rows,
        Err(error) => return drop(give.send(Given::Failed(error)).await),
    };
    // Room first: what nobody takes is not made.
    while let Ok(place) = give.reserve().await {
        match rows.next().await {
            Some(Ok(batch)) => place.send(Given::Batch(batch)),
            Some(Err(error)) => return place.send(Given::Failed(error)),
            None => return place.send(Given::End),
        }
    }
}

fn threads() -> Result<Runtime, QueryError> {
    let threads = available_parallelism().map_or(2, usize::from).min(MOST_THREADS);
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name("skein-query").on_thread_start(yield_to_others);
    builder.enable_time().build().map_err(|e| QueryError::Internal(format!("no threads for the query: {e}")))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        future::poll_fn,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        time::Duration,
    };

    use arrow_array::Int64Array;
    use arrow_schema::{DataType, Field, Schema, SchemaRef};
    use datafusion::{
        execution::SendableRecordBatchStream,
        physical_plan::{
            stream::RecordBatchStreamAdapter,
            streaming::{PartitionStream, StreamingTableExec},
        },
    };

    use super::*;

    /// A plan without end that notes where it is asked, and ends badly after so many batches.
    #[derive(Debug)]
    struct Endless {
        schema: SchemaRef,
        made: Arc<AtomicUsize>,
        threads: Arc<Mutex<BTreeSet<String>>>,
        panics_after: usize,
    }

    impl PartitionStream for Endless {
        fn schema(&self) -> &SchemaRef {
            &self.schema
        }

        fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
            let (schema, made, threads) = (self.schema.clone(), self.made.clone(), self.threads.clone());
            let panics_after = self.panics_after;
            let batches = futures::stream::repeat_with(move || {
                let name = std::thread::current().name().unwrap_or_default().to_owned();
                threads.lock().unwrap().insert(name);
                assert!(made.fetch_add(1, SeqCst) < panics_after, "planted");
                Ok(RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(vec![1]))])?)
            });
            Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches))
        }
    }

    type Seen = (Rows, Arc<AtomicUsize>, Arc<Mutex<BTreeSet<String>>>);

    fn endless(panics_after: usize) -> Seen {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let (made, threads) = (Arc::default(), Arc::default());
        let source = Endless {
            schema: schema.clone(),
            made: Arc::clone(&made),
            threads: Arc::clone(&threads),
            panics_after,
        };
        let plan = StreamingTableExec::try_new(schema, vec![Arc::new(source)], None, vec![], true, None);
        (Rows::of(Arc::new(plan.unwrap()), Arc::new(TaskContext::default())).unwrap(), made, threads)
    }

    async fn next(rows: &mut Rows) -> Option<Result<RecordBatch, QueryError>> {
        poll_fn(|cx| rows.poll_next(cx)).await
    }

    #[tokio::test]
    async fn a_query_computes_elsewhere_no_more_than_is_taken_and_ends_when_nobody_takes() {
        let (mut rows, made, threads) = endless(usize::MAX);
        for taken in 1..100 {
            assert_eq!(next(&mut rows).await.unwrap().unwrap().num_rows(), 1);
            assert!(made.load(SeqCst) <= taken + 1, "what nobody takes is not made");
        }
        assert_eq!(*threads.lock().unwrap(), BTreeSet::from(["skein-query".to_owned()]));
        drop(rows);
        // The plan is dropped: nothing else counts with it.
        while Arc::strong_count(&made) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_ends_badly_does_not_look_whole() {
        let (mut rows, ..) = endless(1);
        assert!(next(&mut rows).await.unwrap().is_ok());
        assert!(matches!(next(&mut rows).await, Some(Err(QueryError::Internal(_)))));
    }
}
