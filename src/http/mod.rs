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

use axum::{
    Router,
    extract::{FromRef, Request},
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
#[cfg(feature = "sql")]
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub(crate) use backup::ROWS;
pub use gateway::{GatewayState, serve_gateway};
pub use serve::{Listeners, bind_socket, serve};
pub use tls::{CertificateFileError, CertificateFiles, EdgeTls};

#[cfg(feature = "sql")]
use crate::engine::columnar::sql::QueryMemory;
use crate::{
    config,
    engine::columnar::{ColumnarEngine, CompactionTotals},
    node::{Node, Traffic},
    telemetry::{Counter, Histogram, Registry},
};
use auth::{Access, Gate, Lookup, Peer};
use body::Budget;
use error::{ApiError, Fault};
use events::Live;
use intake::{Intake, Taker};
use request_id::Names;

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
struct Route<H> {
    method: Method,
    path: &'static str,
    access: Access,
    handler: H,
}

/// A handler bound to its method.
type Handler = MethodRouter<Arc<Edge>>;

/// The route table.
fn routes() -> Vec<Route<Handler>> {
    use Access::{Admin, Data, Public, Read, Write};

    let get = |path, access, handler| Route { method: Method::GET, path, access, handler };
    let post = |path, access, handler| Route { method: Method::POST, path, access, handler };
    let put = |path, access, handler| Route { method: Method::PUT, path, access, handler };
    let delete = |path, access, handler| Route { method: Method::DELETE, path, access, handler };
    #[rustfmt::skip]
    let table = vec![
        get("/", Public, on(MethodFilter::GET, ui::page)),
        get("/ui/{file}", Public, on(MethodFilter::GET, ui::part)),
        post("/write", Write, on(MethodFilter::POST, write::influx1)),
        post("/api/v2/write", Write, on(MethodFilter::POST, write::influx2)),
        post("/api/v3/write_lp", Write, on(MethodFilter::POST, write::influx3)),
        post("/api/v1/write/line-protocol", Write, on(MethodFilter::POST, write::arc)),
        post("/api/v1/write/msgpack", Write, on(MethodFilter::POST, write::arc_msgpack)),
        get("/api/v1/databases", Read, on(MethodFilter::GET, databases::list)),
        delete("/api/v1/databases/{name}", Admin, on(MethodFilter::DELETE, databases::drop)),
        put("/api/v1/databases/{name}/retention", Admin, on(MethodFilter::PUT, databases::retention)),
        post("/api/v1/databases/{name}/rows", Admin, on(MethodFilter::POST, backup::import)),
        get("/api/v1/backup", Admin, on(MethodFilter::GET, backup::take)),
        get("/api/v1/measurements", Read, on(MethodFilter::GET, databases::measurements)),
        get("/query", Data, on(MethodFilter::GET, influx::query)),
        post("/query", Data, on(MethodFilter::POST, influx::query)),
        get("/ping", Public, on(MethodFilter::GET, health::ping)),
        get("/health", Public, on(MethodFilter::GET, health::health)),
        get("/ready", Public, on(MethodFilter::GET, health::influx_ready)),
        get("/livez", Public, on(MethodFilter::GET, health::live)),
        get("/readyz", Public, on(MethodFilter::GET, health::ready)),
        get("/startupz", Public, on(MethodFilter::GET, health::startup)),
        get("/api/v1/openapi.json", Public, on(MethodFilter::GET, openapi::document)),
        get("/metrics", Read, on(MethodFilter::GET, health::metrics)),
        get("/api/v1/cluster", Read, on(MethodFilter::GET, cluster::status)),
        get("/api/v1/cluster/events", Read, on(MethodFilter::GET, events::stream)),
        post("/api/v1/cluster/finalise", Admin, on(MethodFilter::POST, cluster::finalise)),
        get("/api/v1/nodes", Read, on(MethodFilter::GET, cluster::nodes)),
        post("/api/v1/nodes/{id}/demote", Admin, on(MethodFilter::POST, cluster::demote)),
        post("/api/v1/nodes/{id}/promote", Admin, on(MethodFilter::POST, cluster::promote)),
        post("/api/v1/nodes/{id}/transfer", Admin, on(MethodFilter::POST, cluster::transfer)),
        post("/api/v1/nodes/{id}/drain", Admin, on(MethodFilter::POST, cluster::drain)),
        delete("/api/v1/nodes/{id}/drain", Admin, on(MethodFilter::DELETE, cluster::undrain)),
        get("/api/v1/nodes/{id}", Read, on(MethodFilter::GET, cluster::node)),
        delete("/api/v1/nodes/{id}", Admin, on(MethodFilter::DELETE, cluster::remove)),
        post("/api/v1/ca/rotate", Admin, on(MethodFilter::POST, ca::rotate)),
        get("/api/v1/tokens", Admin, on(MethodFilter::GET, tokens::list)),
        post("/api/v1/tokens", Admin, on(MethodFilter::POST, tokens::create)),
        delete("/api/v1/tokens/{id}", Admin, on(MethodFilter::DELETE, tokens::revoke)),
        get("/api/v1/auth/self", Data, on(MethodFilter::GET, api_tokens::own)),
        get("/api/v1/auth/tokens", Admin, on(MethodFilter::GET, api_tokens::list)),
        post("/api/v1/auth/tokens", Admin, on(MethodFilter::POST, api_tokens::create)),
        delete("/api/v1/auth/tokens/{id}", Admin, on(MethodFilter::DELETE, api_tokens::revoke)),
    ];
    #[cfg(feature = "sql")]
    let table = {
        let mut table = table;
        table.extend([
            get("/api/v3/query_sql", Read, on(MethodFilter::GET, query::influx3)),
            post("/api/v3/query_sql", Read, on(MethodFilter::POST, query::influx3)),
            post("/api/v1/query", Read, on(MethodFilter::POST, query::arc)),
            post("/api/v1/query/arrow", Read, on(MethodFilter::POST, query::arc_arrow)),
            post("/api/v1/query/msgpack", Read, on(MethodFilter::POST, query::arc_msgpack)),
            post("/api/v1/query/estimate", Read, on(MethodFilter::POST, query::arc_estimate)),
            post(flight::SERVICE, Read, on(MethodFilter::POST, flight::call)),
        ]);
        table
    };
    table
}

/// The router over the table, behind the gate.
fn router(app: AppState) -> Router {
    let node = app.node.clone();
    let metrics = Arc::clone(&app.metrics);
    let gate = Gate::new(&app.config, &metrics, Lookup::here(move |secret| node.check_api_token(secret)));
    let edge = Edge::new(app);
    let handed_over = |route: Route<MethodRouter<Arc<Edge>>>| {
        if !handover::is_for_voters(&route.method, route.path) {
            return route;
        }
        let layer = middleware::from_fn_with_state(Arc::clone(&edge), handover::hand_over);
        Route { handler: route.handler.layer(layer), ..route }
    };
    mount(routes().into_iter().map(handed_over).collect(), gate, &metrics).with_state(edge)
}

/// Puts gate and counters in front of every route of a table.
fn mount<S: Clone + Send + Sync + 'static>(
    table: Vec<Route<MethodRouter<S>>>,
    gate: Gate,
    metrics: &Registry,
) -> Router<S> {
    let gate = Arc::new(gate);
    let mut router = Router::new();
    for route in table {
        let door = Door {
            gate: Arc::clone(&gate),
            access: route.access,
            counts: Counts::new(metrics, &route.method, route.path),
        };
        let guarded = route.handler.layer(middleware::from_fn_with_state(Arc::new(door), Door::pass));
        router = router.route(route.path, guarded);
    }
    let router = router
        .fallback(|| async { ApiError::new(Fault::NotFound, "there is no such path here") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Fault::Method, "this path does not take this method")
        });
    let front = Arc::new(Front { gate, names: Names::new() });
    router.layer(middleware::from_fn_with_state(front, Front::pass))
}

/// What every request passes before its route is known. One layer: each one more clones all behind it, for
/// each request.
struct Front {
    gate: Arc<Gate>,
    names: Names,
}

impl Front {
    async fn pass(
        axum::extract::State(front): axum::extract::State<Arc<Self>>,
        request: Request,
        next: Next,
    ) -> Response {
        let gate = &front.gate;
        let checked = |request: Request| async move {
            let peer = Peer::of(request.extensions());
            match gate.check_source(peer, request.method(), request.uri(), request.headers()) {
                Ok(()) => next.run(request).await,
                Err(error) => error.into_response(),
            }
        };
        #[cfg(feature = "sql")]
        let checked = |request| flight::answer_in_grpc(request, checked);
        let named = |request| request_id::name(&front.names, request, checked);
        refusal::after_its_body(request, named).await
    }
}

/// What stands in front of one route.
struct Door {
    gate: Arc<Gate>,
    access: Access,
    counts: Counts,
}

impl Door {
    async fn pass(
        axum::extract::State(door): axum::extract::State<Arc<Self>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        let started = Instant::now();
        let peer = Peer::of(request.extensions());
        let allowed = door.gate.authorize(peer, request.uri(), request.headers(), door.access, None).await;
        let allowed = allowed
            .and_then(|who| door.gate.not_too_often(peer, request.uri(), door.access, &who).map(|()| who));
        let response = match allowed {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                next.run(request).await
            }
            Err(error) => error.into_response(),
        };
        door.counts.note(&response, started);
        response
    }
}

/// Counters of one route.
struct Counts {
    by_class: Vec<(&'static str, Counter)>,
    seconds: Histogram,
}

impl Counts {
    fn new(metrics: &Registry, method: &Method, path: &str) -> Self {
        let labels = [("method", method.as_str()), ("path", path)];
        let counter = |class: &'static str| {
            let labels = [labels[0], labels[1], ("status", class)];
            (
                class,
                metrics.counter(
                    "skein_http_requests_total",
                    "Requests answered, by class of status.",
                    &labels,
                ),
            )
        };
        let seconds = metrics.histogram(
            "skein_http_request_seconds",
            "Time from the head of a request to the head of its answer.",
            Histogram::SECONDS,
            &labels,
        );
        Self { by_class: ["2xx", "4xx", "5xx"].map(counter).into(), seconds }
    }

    fn note(&self, response: &Response, started: Instant) {
        let class = error::class(response);
        if let Some((_, counter)) = self.by_class.iter().find(|(have, _)| *have == class) {
            counter.add(1);
        }
        self.seconds.observe_duration(started.elapsed());
    }
}

#[cfg(test)]
mod tests;
