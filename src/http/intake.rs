//! What takes writes in, behind every write route: the edge of a node with data, or of a gateway.

use std::{ops::Deref, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    body::Budget,
    error::{ApiError, Fault},
};
use crate::{
    config,
    engine::columnar::{
        ColumnarEngine, SeriesGate, ToldSchemas,
        schema::{SchemaError, Schemas},
    },
    node::{Gateway, Node, Receipt, SubmitError, Traffic, Write},
    telemetry::{Counter, Registry},
};

/// Takes requests in, within limits. Clones are the same.
#[derive(Clone)]
pub(super) struct Intake(Arc<Parts>);

/// Its parts.
pub(super) struct Parts {
    taker: Taker,
    pub(super) config: Arc<config::Http>,
    pub(super) now_ns: fn() -> i64,
    pub(super) bodies: Arc<Budget>,
    requests: Arc<Semaphore>,
    pub(super) rows_written: Counter,
    pub(super) lines_rejected: Counter,
}

/// Who brings a write to the writer, and what its points are judged by ahead of that.
pub(super) enum Taker {
    /// Knows the columns it has applied.
    Node(Node, Arc<ColumnarEngine>),
    /// Knows those it was told of by the writer.
    Gateway(Gateway, ToldSchemas),
}

impl Deref for Intake {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Intake {
    pub(super) fn new(
        taker: Taker,
        config: Arc<config::Http>,
        metrics: &Registry,
        now_ns: fn() -> i64,
    ) -> Self {
        let bodies = Budget::new(config.max_bodies.as_usize());
        let limit = config.max_requests.min(Semaphore::MAX_PERMITS);
        let requests = Arc::new(Semaphore::new(limit));
        let Traffic { points: rows_written, .. } = match &taker {
            Taker::Node(node, _) => node.traffic().clone(),
            Taker::Gateway(gateway, _) => gateway.traffic().clone(),
        };
        metrics.show_counter(
            "skein_http_rows_written_total",
            "Points acknowledged to clients of this edge.",
            &[],
            &rows_written,
        );
        let lines_rejected =
            metrics.counter("skein_http_lines_rejected_total", "Lines answered as bad by this edge.", &[]);
        let watched = Arc::clone(&requests);
        metrics.read_gauge("skein_http_requests_running", "Writes and queries now.", &[], move || {
            limit.saturating_sub(watched.available_permits()) as f64
        });
        let watched = Arc::clone(&bodies);
        metrics.read_gauge("skein_http_body_bytes", "Memory taken by request bodies now.", &[], move || {
            watched.used() as f64
        });
        Self(Arc::new(Parts { taker, config, now_ns, bodies, requests, rows_written, lines_rejected }))
    }
}

impl Parts {
    /// Leave to run a write or a query; held until it is answered.
    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| {
            ApiError::new(
                Fault::Busy,
                "too many writes and queries on this node (http.max_requests); ask later or another node",
            )
        })
    }

    /// The columns known here, for points to be parsed against.
    pub(super) fn schemas(&self) -> Schemas {
        match &self.taker {
            Taker::Node(_, engine) => engine.schemas(),
            Taker::Gateway(_, told) => told.schemas(),
        }
    }

    /// Judges points by their series, where this node limits them. A gateway knows none: what it brings
    /// the writer judges as a whole.
    pub(super) fn series_gate(&self, database: &str) -> Option<SeriesGate> {
        match &self.taker {
            Taker::Node(_, engine) => engine.series_gate(database),
            Taker::Gateway(..) => None,
        }
    }

    /// Takes over what the writer says of its columns.
    pub(super) fn absorb_schema(&self, bytes: &[u8]) -> Result<(), SchemaError> {
        match &self.taker {
            Taker::Node(_, engine) => engine.absorb_schema(bytes),
            Taker::Gateway(_, told) => told.absorb(bytes),
        }
    }

    /// Brings a write to the writer.
    pub(super) async fn submit(&self, write: Write) -> Result<Receipt, SubmitError> {
        match &self.taker {
            Taker::Node(node, _) => node.submit(write).await,
            Taker::Gateway(gateway, _) => gateway.submit(write).await,
        }
    }
}
