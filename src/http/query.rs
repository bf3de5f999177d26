//! SQL queries: at the consistency asked for, answered from this node's own data as rows come.

mod consistency;
mod estimate;
mod packed;
mod question;
mod rows;
pub(super) mod stream;

use std::{sync::Arc, time::Duration};

use arrow_schema::SchemaRef;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, request},
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use self::{
    question::Question,
    stream::{Bounds, Pieces},
};
use super::{
    Edge, Permits,
    auth::Principal,
    body::{self, Share, Taken},
    error::{self, ApiError, Fault},
    params::{self, Params},
};
use crate::{
    engine::columnar::sql::{Parameters, Prepared, QueryError, QueryStream, SqlOptions, output},
    node::{Consistency, ReadPoint},
    types::{Databases, Scope},
};

/// `GET` and `POST /api/v3/query_sql` of InfluxDB 3.
pub(super) async fn influx3(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (head, question, share) = question(&edge, request).await?;
    let params = &question.params;
    let format = params.get("format").unwrap_or("json");
    let format: output::Format =
        format.parse().map_err(|e: output::FormatParseError| ApiError::invalid(e.to_string()))?;
    let sql = statement(params, "q")?;
    let caller = Principal::of(&head.extensions)?;
    let asked = Asked::of(&edge, &caller, &head.headers, params, (params.get("db"), None))?;
    let asked = asked.with(question.values()?);
    drop(share);
    let (rows, head) = asked.run(&edge, sql).await?;
    respond(&edge, format.content_type(), head, output::encode(rows, format)).await
}

/// `POST /api/v1/query` of Arc.
pub(super) async fn arc(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (rows, head, started) = run_arc(&edge, request).await?;
    respond(&edge, "application/json", head, rows::encode(rows, started, edge.app.now_ns)).await
}

/// `POST /api/v1/query/arrow` of Arc.
pub(super) async fn arc_arrow(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (rows, head, _) = run_arc(&edge, request).await?;
    let format = output::Format::Arrow;
    respond(&edge, format.content_type(), head, output::encode(rows, format)).await
}

/// `POST /api/v1/query/msgpack` of Arc.
pub(super) async fn arc_msgpack(
    State(edge): State<Arc<Edge>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (rows, head, started) = run_arc(&edge, request).await?;
    respond(&edge, "application/msgpack", head, packed::encode(rows, started, edge.app.now_ns)).await
}

/// `POST /api/v1/query/estimate` of Arc: how many rows the statement would give.
pub(super) async fn arc_estimate(
    State(edge): State<Arc<Edge>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (asked, sql) = ask_arc(&edge, request).await?;
    let (count, head) = estimate::count(&edge, &asked, &sql).await?;
    Ok(error::ok("application/json", head.headers, estimate::answer(count, asked.started.elapsed()).into()))
}

async fn run_arc(edge: &Edge, request: Request) -> Result<(QueryStream, Head, Instant), ApiError> {
    let (asked, sql) = ask_arc(edge, request).await?;
    let (rows, head) = asked.run(edge, &sql).await?;
    Ok((rows, head, asked.started))
}

async fn ask_arc(edge: &Edge, request: Request) -> Result<(Asked, String), ApiError> {
    let (head, question, _share) = question(edge, request).await?;
    let params = &question.params;
    let database = params::text_header(&head.headers, "x-arc-database")?;
    let caller = Principal::of(&head.extensions)?;
    let asked = Asked::of(edge, &caller, &head.headers, params, (database, Some("default")))?;
    Ok((asked.with(question.values()?), statement(params, "sql")?.to_owned()))
}

fn statement<'a>(params: &'a Params, name: &str) -> Result<&'a str, ApiError> {
    params.get(name).ok_or_else(|| ApiError::invalid(format!("a query is required: {name}=SELECT ...")))
}

/// What a request asks, and the share of the memory for what is made of it, to be kept until it is.
async fn question(
    edge: &Edge,
    request: Request,
) -> Result<(request::Parts, Question, Option<Share>), ApiError> {
    let (head, body) = request.into_parts();
    let mut question = Question::of(&head.uri);
    if head.method != Method::POST {
        return Ok((head, question, None));
    }
    let Taken { bytes, share } =
        body::take_words(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    question.extend(&head.headers, &bytes)?;
    Ok((head, question, Some(share)))
}

/// What a query asks for besides its statement.
pub(super) struct Asked {
    database: Option<String>,
    /// What it may see.
    databases: Databases,
    /// For the parameters of its statement.
    values: Parameters,
    consistency: Consistency,
    started: Instant,
    timeout: Duration,
}

/// What is known of an answer ahead of its rows.
pub(super) struct Head {
    pub(super) headers: HeaderMap,
    pub(super) permits: Permits,
    deadline: Instant,
    timeout: Duration,
}

impl Head {
    pub(super) fn bounds(&self, edge: &Edge) -> Bounds {
        let bytes = edge.app.config.query_bytes.as_usize();
        Bounds { deadline: self.deadline, timeout: self.timeout, bytes }
    }
}

impl Asked {
    pub(super) fn of(
        edge: &Edge,
        caller: &Principal,
        headers: &HeaderMap,
        params: &Params,
        (database, default): (Option<&str>, Option<&str>),
    ) -> Result<Self, ApiError> {
        // The one that nobody named matters only to a statement that needs it.
        caller.check(Scope::Read, database)?;
        let longest = edge.app.config.query_timeout;
        Ok(Self {
            database: database.or(default).map(str::to_owned),
            databases: caller.databases(),
            values: Parameters::default(),
            consistency: consistency::asked(params, headers)?,
            started: Instant::now(),
            timeout: params::timeout(params, headers, longest, longest)?,
        })
    }

    /// The same with these values for the parameters of the statement.
    pub(super) fn with(self, values: Parameters) -> Self {
        Self { values, ..self }
    }

    /// Waits for a place and for the read point, then starts.
    pub(super) async fn run(&self, edge: &Edge, sql: &str) -> Result<(QueryStream, Head), ApiError> {
        let mut head = self.enter(edge).await?;
        let rows = edge.app.engine.query(sql, self.options(edge)).await;
        let rows = rows.map_err(|error| explain(edge, error))?;
        edge.queries_answered.add(1);
        error::set(&mut head.headers, "x-skein-lsn", rows.applied());
        Ok((rows, head))
    }

    /// As [`Self::run`], but only as far as the columns of the answer.
    pub(super) async fn describe(&self, edge: &Edge, sql: &str) -> Result<(SchemaRef, Head), ApiError> {
        let head = self.enter(edge).await?;
        let columns = edge.app.engine.describe(sql, self.options(edge)).await;
        Ok((columns.map_err(|error| explain(edge, error))?, head))
    }

    /// What a statement with parameters is, before they have values.
    pub(super) async fn prepare(&self, edge: &Edge, sql: &str) -> Result<(Prepared, Head), ApiError> {
        let head = self.enter(edge).await?;
        let prepared = edge.app.engine.prepare(sql, self.options(edge)).await;
        Ok((prepared.map_err(|error| explain(edge, error))?, head))
    }

    /// Waits for a place and for the read point.
    pub(super) async fn enter(&self, edge: &Edge) -> Result<Head, ApiError> {
        let permits = edge.query_permits(self.left()).await?;
        let node = &edge.app.node;
        let ReadPoint { applied, staleness } = node.read_point(self.consistency, self.left()).await?;
        let mut headers = HeaderMap::new();
        error::set(&mut headers, "x-skein-lsn", applied);
        error::set(&mut headers, "x-skein-node", node.id());
        if let Some(writer) = node.view().borrow().writer {
            error::set(&mut headers, "x-skein-writer", writer.node);
        }
        if let Some(age) = staleness {
            error::set(&mut headers, "x-skein-staleness-ms", age.as_millis());
        }
        Ok(Head { headers, permits, deadline: self.started + self.timeout, timeout: self.timeout })
    }

    fn options(&self, edge: &Edge) -> SqlOptions {
        SqlOptions {
            database: self.database.clone(),
            databases: self.databases.clone(),
            parameters: self.values.clone(),
            timeout: self.left(),
            max_rows: Some(edge.app.config.query_rows),
            memory_limit: edge.app.config.query_memory.as_usize(),
            memory: edge.query_memory.clone(),
        }
    }

    /// Time that is left for it.
    fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }
}

/// Sends an answer as it comes. The first piece is awaited, so that what fails at once still has a
/// status; what fails later cuts the connection, and the client sees that the answer is not whole.
async fn respond(
    edge: &Edge,
    content_type: &'static str,
    answer: Head,
    pieces: impl Stream<Item = Result<Bytes, QueryError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut pieces: Pieces<Bytes> = Box::pin(pieces);
    let first = pieces.next().await.transpose().map_err(|error| explain(edge, error))?.unwrap_or_default();
    let bounds = answer.bounds(edge);
    Ok(error::ok(content_type, answer.headers, stream::body(first, pieces, bounds, answer.permits)))
}

/// Says also where the damage is, and what becomes of it.
pub(super) fn explain(edge: &Edge, error: QueryError) -> ApiError {
    let QueryError::Damaged { .. } = error else { return error.into() };
    let node = edge.app.node.id();
    if edge.app.node.view().borrow().members.len() > 1 {
        return ApiError::new(
            Fault::Unavailable,
            format!("{error} ({node}): it is replaced from another node; ask that one meanwhile"),
        );
    }
    ApiError::new(
        Fault::Internal,
        format!(
            "{error} ({node}), and there is no other node to replace it from: stop the node and restore the file \
             from a copy; what does not need it can still be queried"
        ),
    )
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let fault = match &error {
            QueryError::Invalid(_) | QueryError::NotAllowed(_) => Fault::Invalid,
            QueryError::TimedOut(_) => Fault::Slow,
            QueryError::TooLarge(_) => Fault::Limit,
            QueryError::Busy(_) => Fault::Busy,
            QueryError::Forbidden(_) => Fault::Forbidden,
            QueryError::UnknownDatabase(_) | QueryError::UnknownTable { .. } => Fault::NotFound,
            QueryError::Damaged { .. } | QueryError::Mending { .. } => Fault::Unavailable,
            QueryError::Internal(_) => Fault::Internal,
        };
        Self::new(fault, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_at_fault() {
        let fault = |error: QueryError| ApiError::from(error).fault();
        assert_eq!(fault(QueryError::Invalid("x".into())), Fault::Invalid);
        assert_eq!(fault(QueryError::NotAllowed("x".into())), Fault::Invalid);
        assert_eq!(fault(QueryError::TimedOut(Duration::from_secs(1))), Fault::Slow);
        assert_eq!(fault(QueryError::TooLarge("x".into())), Fault::Limit);
        assert_eq!(fault(QueryError::Busy("x".into())), Fault::Busy);
        assert_eq!(fault(QueryError::UnknownDatabase("x".into())), Fault::NotFound);
        assert_eq!(fault(QueryError::Forbidden("x".into())), Fault::Forbidden);
        assert_eq!(fault(QueryError::Damaged { file: "x".into() }), Fault::Unavailable);
        assert_eq!(fault(QueryError::Internal("x".into())), Fault::Internal);
    }
}
