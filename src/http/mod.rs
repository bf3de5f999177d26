//! The HTTP edge: the route table, and what all routes share.
//!
//! A route is a line in `routes`: method, path, who may use it, handler. Nothing is reachable
//! that is not there, and nothing there is without an access class.

mod accounts;
mod api_tokens;
mod auth;
mod backup;
mod body;
mod ca;
mod cluster;
mod connection;
mod databases;
mod error;
mod events;
#[cfg(feature = "sql")]
mod flight;
mod front;
mod gateway;
mod handover;
mod health;
mod influx;
mod intake;
mod openapi;
mod opening;
mod params;
mod patience;
#[cfg(feature = "sql")]
mod query;
mod refusal;
mod relay;
mod request_id;
mod serve;
mod tls;
mod tokens;
mod ui;
mod write;

use std::{fmt, sync::Arc};

use axum::{extract::FromRef, handler::Handler as Handle, http::Method, routing::MethodFilter};
#[cfg(feature = "sql")]
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use backup::ROWS;
pub use gateway::{GatewayState, serve_gateway};
pub use serve::{Listeners, bind_socket, serve};
pub use tls::{CertificateFileError, CertificateFiles, EdgeTls};

use crate::{
    config,
    engine::columnar::{ColumnarEngine, CompactionTotals},
    node::{Node, Traffic},
    telemetry::Registry,
};
#[cfg(feature = "sql")]
use crate::{engine::columnar::sql::QueryMemory, telemetry::Counter};
use auth::{Access, Gate, Lookup};
use body::Budget;
#[cfg(feature = "sql")]
use error::{ApiError, Fault};
use events::Live;
use front::{Answering, Handler, handler};
use intake::{Intake, Taker};

/// What the edge works with.
#[derive(Clone)]
pub struct AppState {
    /// The node it is the edge of.
    pub node: Node,
    /// The engine that parses writes and answers queries.
    pub engine: Arc<ColumnarEngine>,
    /// Where it counts.
    pub metrics: Arc<Registry>,
    /// Section `http` of the configuration.
    pub config: Arc<config::Http>,
    /// The wall clock, in nanoseconds since 1970: the time of a point that has none.
    pub now_ns: fn() -> i64,
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppState").field("config", &self.config).finish_non_exhaustive()
    }
}

/// State and limits of a running edge.
struct Edge {
    app: AppState,
    intake: Intake,
    bodies: Arc<Budget>,
    #[cfg(feature = "sql")]
    queries: Arc<Semaphore>,
    #[cfg(feature = "sql")]
    query_memory: QueryMemory,
    #[cfg(feature = "sql")]
    queries_answered: Counter,
    live: Arc<Live>,
}

impl Edge {
    fn new(app: AppState) -> Arc<Self> {
        let metrics = &app.metrics;
        let Traffic { queries, .. } = app.node.traffic().clone();
        metrics.show_counter(
            "skein_http_queries_answered_total",
            "Queries whose answer was begun by this edge.",
            &[],
            &queries,
        );
        let taker = Taker::Node(app.node.clone(), Arc::clone(&app.engine));
        let intake = Intake::new(taker, Arc::clone(&app.config), metrics, app.now_ns);
        let live = Arc::new(Live::default());
        let watched = Arc::clone(&live);
        metrics.read_gauge("skein_http_event_streams", "Streams of events now.", &[], move || {
            watched.streams() as f64
        });
        let engine = Arc::clone(&app.engine);
        metrics.read_gauge(
            "skein_damaged_files",
            "Data files found to be damaged since the start: queries that need one fail.",
            &[],
            move || engine.damaged_files() as f64,
        );
        compaction_gauges(metrics, &app.engine);
        series_gauge(metrics, &app.engine);
        Arc::new(Self {
            #[cfg(feature = "sql")]
            queries: Arc::new(Semaphore::new(app.config.max_queries.min(Semaphore::MAX_PERMITS))),
            #[cfg(feature = "sql")]
            query_memory: query_memory(&app),
            app,
            bodies: Arc::clone(&intake.bodies),
            intake,
            #[cfg(feature = "sql")]
            queries_answered: queries,
            live,
        })
    }

    /// Leave to run a query: there are places for few at once, others wait up to `longest`.
    #[cfg(feature = "sql")]
    async fn query_permits(&self, longest: std::time::Duration) -> Result<Permits, ApiError> {
        let request = self.intake.permit()?;
        let place = Arc::clone(&self.queries).acquire_owned();
        match tokio::time::timeout(longest, place).await {
            Ok(Ok(query)) => Ok(Permits { _request: request, _query: query }),
            _ => Err(ApiError::new(
                Fault::Busy,
                "other queries hold all places on this node (http.max_queries); ask later or another node",
            )),
        }
    }
}

impl FromRef<Arc<Edge>> for Intake {
    fn from_ref(edge: &Arc<Edge>) -> Self {
        edge.intake.clone()
    }
}

/// What the queries of this edge share.
#[cfg(feature = "sql")]
fn query_memory(app: &AppState) -> QueryMemory {
    let memory = QueryMemory::new(app.config.queries_memory.as_usize());
    let watched = memory.clone();
    app.metrics.read_gauge(
        "skein_http_query_bytes",
        "Memory that queries take to sort, join and group now.",
        &[],
        move || watched.taken() as f64,
    );
    memory
}

/// What compactions have done since the start.
fn compaction_gauges(metrics: &Registry, engine: &Arc<ColumnarEngine>) {
    let gauge = |name: &'static str, help: &'static str, of: fn(CompactionTotals) -> u64| {
        let engine = Arc::clone(engine);
        metrics.read_gauge(name, help, &[], move || of(engine.compactions()) as f64);
    };
    gauge("skein_compactions", "Compactions of data files since the start.", |done| done.runs);
    gauge("skein_compacted_files", "Data files that compactions replaced.", |done| done.files);
    gauge("skein_compaction_read_bytes", "Bytes of those files.", |done| done.bytes_read);
    gauge("skein_compaction_written_bytes", "Bytes of the files made of them.", |done| done.bytes_written);
}

/// How near to the limit on series this node is.
fn series_gauge(metrics: &Registry, engine: &Arc<ColumnarEngine>) {
    let engine = Arc::clone(engine);
    metrics.read_gauge(
        "skein_series",
        "Series of the database that has most; 0 without storage.max_series.",
        &[],
        move || engine.series().iter().map(|(_, series)| *series).max().unwrap_or(0) as f64,
    );
}

/// Leave to run a query.
#[cfg(feature = "sql")]
struct Permits {
    _request: OwnedSemaphorePermit,
    _query: OwnedSemaphorePermit,
}

/// A line of the route table.
struct Route<S> {
    method: Method,
    filter: MethodFilter,
    path: &'static str,
    access: Access,
    handler: Handler<S>,
}

fn get<T: 'static, H: Handle<T, Arc<Edge>> + Sync>(
    path: &'static str,
    access: Access,
    of: H,
) -> Route<Arc<Edge>> {
    Route { method: Method::GET, filter: MethodFilter::GET, path, access, handler: handler(of) }
}

fn post<T: 'static, H: Handle<T, Arc<Edge>> + Sync>(
    path: &'static str,
    access: Access,
    of: H,
) -> Route<Arc<Edge>> {
    Route { method: Method::POST, filter: MethodFilter::POST, path, access, handler: handler(of) }
}

fn put<T: 'static, H: Handle<T, Arc<Edge>> + Sync>(
    path: &'static str,
    access: Access,
    of: H,
) -> Route<Arc<Edge>> {
    Route { method: Method::PUT, filter: MethodFilter::PUT, path, access, handler: handler(of) }
}

fn delete<T: 'static, H: Handle<T, Arc<Edge>> + Sync>(
    path: &'static str,
    access: Access,
    of: H,
) -> Route<Arc<Edge>> {
    Route { method: Method::DELETE, filter: MethodFilter::DELETE, path, access, handler: handler(of) }
}

/// The route table.
fn routes() -> Vec<Route<Arc<Edge>>> {
    use Access::{Admin, Data, Public, Read, Write};

    #[rustfmt::skip]
    let table = vec![
        get("/", Public, ui::page),
        get("/ui/{file}", Public, ui::part),
        post("/write", Write, write::influx1),
        post("/api/v2/write", Write, write::influx2),
        post("/api/v3/write_lp", Write, write::influx3),
        post("/api/v1/write/line-protocol", Write, write::arc),
        post("/api/v1/write/msgpack", Write, write::arc_msgpack),
        get("/api/v1/databases", Read, databases::list),
        delete("/api/v1/databases/{name}", Admin, databases::drop),
        put("/api/v1/databases/{name}/retention", Admin, databases::retention),
        post("/api/v1/databases/{name}/rows", Admin, backup::import),
        get("/api/v1/backup", Admin, backup::take),
        get("/api/v1/measurements", Read, databases::measurements),
        get("/query", Data, influx::query),
        post("/query", Data, influx::query),
        get("/ping", Public, health::ping),
        get("/health", Public, health::health),
        get("/ready", Public, health::influx_ready),
        get("/livez", Public, health::live),
        get("/readyz", Public, health::ready),
        get("/startupz", Public, health::startup),
        get("/api/v1/openapi.json", Public, openapi::document),
        get("/metrics", Read, health::metrics),
        get("/api/v1/cluster", Read, cluster::status),
        get("/api/v1/cluster/events", Read, events::stream),
        post("/api/v1/cluster/finalise", Admin, cluster::finalise),
        get("/api/v1/nodes", Read, cluster::nodes),
        post("/api/v1/nodes/{id}/demote", Admin, cluster::demote),
        post("/api/v1/nodes/{id}/promote", Admin, cluster::promote),
        post("/api/v1/nodes/{id}/transfer", Admin, cluster::transfer),
        post("/api/v1/nodes/{id}/drain", Admin, cluster::drain),
        delete("/api/v1/nodes/{id}/drain", Admin, cluster::undrain),
        get("/api/v1/nodes/{id}", Read, cluster::node),
        delete("/api/v1/nodes/{id}", Admin, cluster::remove),
        post("/api/v1/ca/rotate", Admin, ca::rotate),
        get("/api/v1/tokens", Admin, tokens::list),
        post("/api/v1/tokens", Admin, tokens::create),
        delete("/api/v1/tokens/{id}", Admin, tokens::revoke),
        get("/api/v1/auth/self", Data, api_tokens::own),
        get("/api/v1/auth/tokens", Admin, api_tokens::list),
        post("/api/v1/auth/tokens", Admin, api_tokens::create),
        delete("/api/v1/auth/tokens/{id}", Admin, api_tokens::revoke),
    ];
    #[cfg(feature = "sql")]
    let table = {
        let mut table = table;
        table.extend([
            get("/api/v3/query_sql", Read, query::influx3),
            post("/api/v3/query_sql", Read, query::influx3),
            post("/api/v1/query", Read, query::arc),
            post("/api/v1/query/arrow", Read, query::arc_arrow),
            post("/api/v1/query/msgpack", Read, query::arc_msgpack),
            post("/api/v1/query/estimate", Read, query::arc_estimate),
            post(flight::SERVICE, Read, flight::call),
        ]);
        table
    };
    table
}

/// What answers at a node with data: the table, behind the gate.
fn site(app: AppState) -> Answering {
    let node = app.node.clone();
    let metrics = Arc::clone(&app.metrics);
    let gate = Gate::new(&app.config, &metrics, Lookup::here(move |secret| node.check_api_token(secret)));
    let edge = Edge::new(app);
    let table = routes().into_iter().map(handover::handed_over).collect();
    front::mount(table, gate, &metrics, &edge)
}

#[cfg(test)]
mod tests;
