//! SQL over the engine's tables, with DataFusion and within bounds: one statement that only reads,
//! only these tables, so much memory, time and rows.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::config::ConfigNonZeroUsize, execution::TaskContext, physical_plan::ExecutionPlan};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use self::{
    guard::guard,
    show::Show,
    weight::{batch_rows, check_weight},
    workers::Rows,
};
use super::{ColumnarEngine, data_file::DataFile, merge::bytes, state::State};
use crate::types::{Databases as Visible, Lsn};

mod catalog;
mod codes;
mod error;
mod expansion;
mod functions;
mod gaps;
mod guard;
mod latest;
mod logical;
mod memory;
pub mod output;
mod overlap_exec;
mod parameters;
mod prepared;
mod reader;
mod sandbox;
mod scan;
mod show;
mod table_provider;
mod tags_exec;
mod text;
mod weight;
mod workers;

#[cfg(test)]
mod tests;

pub use catalog::CATALOG;
pub use error::QueryError;
pub use memory::QueryMemory;
#[cfg(feature = "server")]
pub(crate) use parameters::GivenParameters;
pub use parameters::{MAX_PARAMETERS, Parameter, Parameters};
pub use prepared::{Prepared, parameter_names};

/// Stack of the thread that plans: deep expressions recurse, and a build without optimisation
/// needs much stack for each step.
const PLAN_STACK: usize = 64 << 20;
/// Rows of a batch, and of one in a query that joins, where each row may be copied as often.
const BATCH_ROWS: usize = 8_192;
/// See [`BATCH_ROWS`].
const JOINED_ROWS: usize = 1_024;
/// An answer is given in pieces of about this many bytes, so that writing one takes no more than a
/// few times as much.
const PIECE_BYTES: usize = 1 << 20;
/// Longest row of an answer.
const MAX_ROW_BYTES: usize = 16 << 20;
/// The schema of names without one when the request names no database. No database can have it,
/// for an empty name is none.
const NO_DATABASE: &str = "";

/// What a query may use.
#[derive(Debug, Clone)]
pub struct SqlOptions {
    /// The database of table names without one.
    pub database: Option<String>,
    /// The databases that it can see; others are not there for it. Every one by default.
    pub databases: Visible,
    /// Values for the parameters of the statement; exactly those that it has.
    pub parameters: Parameters,
    /// From the call of [`ColumnarEngine::query`] to the last row; 30 s by default.
    pub timeout: Duration,
    /// Rows of the answer; more are an error. No limit by default.
    pub max_rows: Option<usize>,
    /// Bytes that sorting, joining, grouping and making text may take; 256 MiB by default.
    pub memory_limit: usize,
    /// What all queries that have this may take together; 1 GiB for this one alone by default.
    pub memory: QueryMemory,
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self {
            database: None,
            databases: Visible::Every,
            parameters: Parameters::default(),
            timeout: Duration::from_secs(30),
            max_rows: None,
            memory_limit: 256 << 20,
            memory: QueryMemory::new(1 << 30),
        }
    }
}

/// The rows of an answer as they come. Dropping it stops the query.
pub struct QueryStream {
    schema: SchemaRef,
    applied: Lsn,
    rows: Source,
    /// The files it may read.
    files: Vec<Arc<DataFile>>,
    /// What was read and not given: pieces to be cut further, the next one last.
    ready: Vec<RecordBatch>,
    deadline: Pin<Box<Sleep>>,
    timeout: Duration,
    max_rows: Option<usize>,
    given: usize,
    ended: bool,
}

impl ColumnarEngine {
    /// Runs one statement over what was applied by now; later records are not seen by it.
    /// Cancel-safe: dropping the future or the stream stops the query.
    ///
    /// # Errors
    /// The statement is wrong, not allowed, names what is not there, or planning takes too long.
    pub async fn query(self: &Arc<Self>, sql: &str, options: SqlOptions) -> Result<QueryStream, QueryError> {
        let timeout = options.timeout;
        let deadline = Instant::now() + timeout;
        let max_rows = options.max_rows;
        let planned = self.planned(sql, options, deadline).await?;
        let (schema, rows) = match planned.answer {
            Answer::Plan(plan, context) => (plan.schema(), Source::Work(Rows::of(plan, context)?)),
            Answer::Rows(batch) => (batch.schema(), Source::Ready(Some(batch))),
        };
        Ok(QueryStream {
            schema,
            applied: planned.applied,
            rows,
            files: planned.files,
            ready: Vec::new(),
            deadline: Box::pin(sleep_until(deadline)),
            timeout,
            max_rows,
            given: 0,
            ended: false,
        })
    }

    /// The columns that the answer of one statement would have. Cancel-safe.
    ///
    /// # Errors
    /// As [`ColumnarEngine::query`].
    pub async fn describe(self: &Arc<Self>, sql: &str, options: SqlOptions) -> Result<SchemaRef, QueryError> {
        let deadline = Instant::now() + options.timeout;
        Ok(match self.planned(sql, options, deadline).await?.answer {
            Answer::Plan(plan, _) => plan.schema(),
            Answer::Rows(batch) => batch.schema(),
        })
    }

    async fn planned(
        self: &Arc<Self>,
        sql: &str,
        options: SqlOptions,
        deadline: Instant,
    ) -> Result<Planned, QueryError> {
        let timeout = options.timeout;
        let planned = on_large_stack(plan(self.clone(), sql.to_owned(), options));
        timeout_at(deadline, planned).await.map_err(|_| QueryError::TimedOut(timeout))?
    }
}

impl QueryStream {
    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The last record that the answer takes into account.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// All rows.
    ///
    /// # Errors
    /// As the stream's.
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

impl std::fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // The deadline first: a plan that always has a row ready must end too.
        let next = if self.deadline.as_mut().poll(cx).is_ready() {
            Some(Err(QueryError::TimedOut(self.timeout)))
        } else if let Some(piece) = self.next_piece() {
            Some(piece)
        } else {
            match self.rows.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(batch))) => {
                    self.ready.push(batch);
                    self.next_piece()
                }
                Poll::Ready(next) => next.map(|batch| batch.map_err(|error| blame(&self.files, error))),
            }
        };
        let next = match (next, self.max_rows) {
            (Some(Ok(batch)), Some(most)) if self.given + batch.num_rows() > most => {
                Some(Err(QueryError::TooLarge(format!("the answer has more than {most} rows"))))
            }
            (next, _) => next,
        };
        match &next {
            Some(Ok(batch)) => self.given += batch.num_rows(),
            Some(Err(_)) | None => self.ended = true,
        }
        Poll::Ready(next)
    }
}

impl QueryStream {
    /// The first part of what was read that is short enough to be written at once. A batch may have
    /// one column many times, which takes no memory until it is written.
    fn next_piece(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        loop {
            let batch = self.ready.pop()?;
            let (rows, bytes) = match bytes(&batch) {
                Ok(bytes) => (batch.num_rows(), bytes),
                Err(error) => return Some(Err(QueryError::Internal(error.to_string()))),
            };
            if rows <= 1 && bytes > MAX_ROW_BYTES {
                let why = format!("a row of the answer has {bytes} bytes, {MAX_ROW_BYTES} are possible");
                return Some(Err(QueryError::TooLarge(why)));
            }
            if rows <= 1 || bytes <= PIECE_BYTES {
                return Some(Ok(batch));
            }
            self.ready.push(batch.slice(rows / 2, rows - rows / 2));
            self.ready.push(batch.slice(0, rows / 2));
        }
    }
}

/// Errors lose their kind on their way through the readers of Parquet; which file is damaged, and
/// named by the error, is known all the same.
fn blame(files: &[Arc<DataFile>], error: QueryError) -> QueryError {
    let text = error.to_string();
    let damaged = files.iter().filter(|file| file.damaged.get().is_some());
    let mut named = damaged.map(|file| file.entry.name()).filter(|name| text.contains(name.as_str()));
    named.next().map_or(error, |file| QueryError::Damaged { file })
}

/// Where rows come from.
enum Source {
    Ready(Option<RecordBatch>),
    Work(Rows),
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch, QueryError>>> {
        match self {
            Self::Ready(batch) => Poll::Ready(batch.take().map(Ok)),
            Self::Work(rows) => rows.poll_next(cx),
        }
    }
}

struct Planned {
    applied: Lsn,
    files: Vec<Arc<DataFile>>,
    answer: Answer,
}

enum Answer {
    Plan(Arc<dyn ExecutionPlan>, Arc<TaskContext>),
    Rows(RecordBatch),
}

/// From text to a plan that may run.
async fn plan(engine: Arc<ColumnarEngine>, sql: String, options: SqlOptions) -> Result<Planned, QueryError> {
    let (statement, wanted) = sandbox::parse(&sql)?;
    options.parameters.check(&wanted)?;
    if let Some(show) = Show::recognize(&statement)? {
        let (applied, schemas) = {
            let state = engine.inner.state();
            check_mended(&state)?;
            (state.applied, state.schemas.clone())
        };
        if let Some(database) = show.database(options.database.as_deref()) {
            check_visible(&options.databases, database)?;
        }
        let rows = show.rows(&schemas.only(&options.databases), options.database.as_deref())?;
        return Ok(Planned { applied, files: Vec::new(), answer: Answer::Rows(rows) });
    }
    let logical::Logical { plan, mut state, pool, applied, files } =
        logical::plan(&engine, statement, &options).await?;
    let plan = if wanted.is_empty() { plan } else { options.parameters.bind(plan)? };
    // Twice: before the optimizer may make it grow, and with what it has made of it.
    sandbox::check_plan(&plan)?;
    check_weight(&plan)?;
    let plan = state.optimize(&plan)?;
    sandbox::check_plan(&plan)?;
    sandbox::check_patterns(&plan)?;
    let plan = codes::use_codes(latest::use_digests(plan)?, &pool)?;
    let rows = if sandbox::joins(&plan)? { JOINED_ROWS } else { BATCH_ROWS };
    let rows = batch_rows(&plan, rows)?;
    state.config_mut().options_mut().execution.batch_size = ConfigNonZeroUsize::try_new(rows)?;
    let plan = state.query_planner().create_physical_plan(&plan, &state).await;
    let plan = plan.map_err(|error| blame(&files, error.into()))?;
    Ok(Planned { applied, files, answer: Answer::Plan(guard(plan, &pool, rows)?, state.task_ctx()) })
}

/// Refuses while less is applied than was shown, because damaged data is being replaced.
fn check_mended(state: &State) -> Result<(), QueryError> {
    if state.applied.seq < state.floor.seq {
        return Err(QueryError::Mending { applied: state.applied, shown: state.floor });
    }
    Ok(())
}

/// Refuses a database that the query may not see, whether it is there or not.
fn check_visible(visible: &Visible, database: &str) -> Result<(), QueryError> {
    if visible.contains(database) { Ok(()) } else { Err(QueryError::Forbidden(database.to_owned())) }
}

/// Runs planning on a thread that has the stack for it and may take its time. If nobody waits for it any
/// more, the thread ends where planning next waits for the disk, at the latest with it.
async fn on_large_stack<T: Send + 'static>(
    work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
) -> Result<T, QueryError> {
    let runtime = tokio::runtime::Handle::current();
    let (mut done, result) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("skein-plan".into()).stack_size(PLAN_STACK);
    let started = thread.spawn(move || {
        super::background::yield_to_others();
        let planned = runtime.block_on(async {
            tokio::select! {
                planned = work => Some(planned),
                () = done.closed() => None,
            }
        });
        if let Some(planned) = planned {
            let _ = done.send(planned);
        }
    });
    started.map_err(|e| QueryError::Internal(format!("no thread to plan on: {e}")))?;
    result.await.map_err(|_| QueryError::Internal("planning ended early".into()))?
}
