//! Probes and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    Edge,
    error::{self, ApiError, Fault},
    params::Params,
};
use crate::{
    config::parse_duration,
    node::{Consistency, Readiness},
    telemetry::Registry,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longest that a probe with a read point waits.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// `/ping`, InfluxDB's: the edge answers.
pub(super) async fn ping() -> Response {
    let mut headers = HeaderMap::new();
    error::set(&mut headers, "x-influxdb-version", format_args!("skein-{VERSION}"));
    error::set(&mut headers, "x-influxdb-build", "skein");
    error::no_content(headers)
}

/// `/health`, InfluxDB's and Arc's: passes when the node is ready.
pub(super) async fn health(State(edge): State<Arc<Edge>>) -> Response {
    pass_or_fail(&edge.app.node.readiness())
}

pub(super) fn pass_or_fail(readiness: &Readiness) -> Response {
    let (status, message) = if readiness.ready {
        ("pass", "ready for queries and writes".to_owned())
    } else {
        ("fail", readiness.reasons.join("; "))
    };
    let body = json!({ "name": "skein", "status": status, "message": message, "version": VERSION });
    error::health(readiness.ready, body)
}

/// `/ready`, InfluxDB's and Arc's: the same in their other form.
pub(super) async fn influx_ready(State(edge): State<Arc<Edge>>) -> Response {
    ready_or_not(&edge.app.node.readiness())
}

pub(super) fn ready_or_not(readiness: &Readiness) -> Response {
    let body = if readiness.ready {
        json!({ "status": "ready" })
    } else {
        json!({ "status": "not ready", "message": readiness.reasons.join("; ") })
    };
    error::health(readiness.ready, body)
}

/// `/livez`: failing means that a restart may help.
pub(super) async fn live(State(edge): State<Arc<Edge>>) -> Result<Response, ApiError> {
    if edge.app.node.live() {
        Ok(plain("live\n"))
    } else {
        Err(ApiError::new(Fault::Unavailable, "a part of this node has stopped for good: restart it"))
    }
}

/// `/startupz`: the edge listens only after the node has recovered, so answering is the answer.
pub(super) async fn startup() -> Response {
    plain("started\n")
}

/// `/readyz`: whether to send requests here. `sync` asks for a linearizable read point too,
/// `max_staleness` for data no older than that, `verbose` for words when it is ready.
pub(super) async fn ready(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let params = Params::of(request.uri());
    let node = &edge.app.node;
    must_be_ready(&node.readiness())?;
    if let Some(age) = params.get("max_staleness") {
        let age = parse_duration(age).map_err(|e| ApiError::invalid(format!("max_staleness: {e}")))?;
        node.read_point(Consistency::MaxStaleness(age), PROBE_WAIT).await?;
    }
    if params.flag("sync") {
        node.read_point(Consistency::Linearizable, PROBE_WAIT).await?;
    }
    if !params.flag("verbose") {
        return Ok(plain("ready\n"));
    }
    let at = node.read_point(Consistency::Local, PROBE_WAIT).await?;
    Ok(plain(format!("ready\nnode {}\napplied {}\n", node.id(), at.applied)))
}

pub(super) fn must_be_ready(readiness: &Readiness) -> Result<(), ApiError> {
    match readiness.ready {
        true => Ok(()),
        false => {
            let says = format!("not ready: {}", readiness.reasons.join("; "));
            Err(ApiError::new(Fault::Unavailable, says))
        }
    }
}

/// `/metrics` in the Prometheus text format.
pub(super) async fn metrics(State(edge): State<Arc<Edge>>) -> Response {
    exposition(&edge.app.metrics)
}

pub(super) fn exposition(metrics: &Registry) -> Response {
    let text = metrics.render();
    error::ok("text/plain; version=0.0.4; charset=utf-8", HeaderMap::new(), Body::from(text))
}

pub(super) fn plain(text: impl Into<Body>) -> Response {
    error::ok("text/plain; charset=utf-8", HeaderMap::new(), text.into()).into_response()
}
