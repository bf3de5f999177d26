//! What stands in front of every route, in the order in which a request comes to it.
//!
//! None of it is a layer of axum's: each of those copies everything behind it, for each request.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request,
    handler,
    http::Method,
    response::{IntoResponse, Response},
    routing::on,
};
use futures::{FutureExt, future::BoxFuture};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::time::Instant;

#[cfg(feature = "sql")]
use super::flight;
use super::{
    Route,
    auth::{Access, Gate, Peer},
    error::{self, ApiError, Fault},
    refusal,
    request_id::{self, Names},
};
use crate::telemetry::{Counter, Histogram, Registry};

/// Answers a request that says in its extensions how it came ([`Peer`]).
pub(super) type Answering = Arc<dyn Fn(Request) -> BoxFuture<'static, Response> + Send + Sync>;

/// The handler of a route, with the state of its edge.
pub(super) type Handler<S> = Arc<dyn Fn(Request, S) -> BoxFuture<'static, Response> + Send + Sync>;

/// A function with extractors, as axum takes it.
pub(super) fn handler<H, T, S>(of: H) -> Handler<S>
where
    H: handler::Handler<T, S> + Sync,
{
    Arc::new(move |request, state| of.clone().call(request, state).boxed())
}

/// Puts gate and counters in front of every route of a table.
pub(super) fn mount<S>(table: Vec<Route<S>>, gate: Gate, metrics: &Registry, state: &S) -> Answering
where
    S: Clone + Send + Sync + 'static,
{
    let gate = Arc::new(gate);
    let (mut router, mut fixed) = (Router::new(), Fixed::new());
    for Route { method, filter, path, access, handler } in table {
        let counts = Counts::new(metrics, &method, path);
        let (door, state) =
            (Arc::new(Door { gate: Arc::clone(&gate), access, counts, handler }), state.clone());
        if !path.contains('{') {
            fixed.entry(path).or_default().push((method, Arc::clone(&door)));
        }
        let enter = move |request: Request| {
            let (door, state) = (Arc::clone(&door), state.clone());
            async move { door.enter(request, state).await }
        };
        router = router.route(path, on(filter, enter));
    }
    let router = router
        .fallback(|| async { ApiError::new(Fault::NotFound, "there is no such path here") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(Fault::Method, "this path does not take this method")
        });
    // With its state a router makes what it calls once, not for each request.
    let router = answering(router.with_state(()));
    let front = Arc::new(Front { gate, names: Names::new(), fixed, state: state.clone(), router });
    Arc::new(move |request| {
        let front = Arc::clone(&front);
        async move { front.pass(request).await }.boxed()
    })
}

/// A router as it is.
pub(super) fn answering(router: Router) -> Answering {
    let router = TowerToHyperService::new(router);
    Arc::new(move |request| {
        router.call(request).map(|answer| answer.unwrap_or_else(|never| match never {})).boxed()
    })
}

/// The routes whose path is one text, by that. They need no router, which notes in each request what it found
/// and boxes what it calls; it has them all the same, for HEAD, and to say what is wrong with a request.
type Fixed<S> = HashMap<&'static str, Vec<(Method, Arc<Door<S>>)>>;

/// What every request passes before its route is known.
struct Front<S> {
    gate: Arc<Gate>,
    names: Names,
    fixed: Fixed<S>,
    state: S,
    router: Answering,
}

impl<S: Clone> Front<S> {
    async fn pass(&self, request: Request) -> Response {
        let to_head = request.method() == Method::HEAD;
        let checked = |request: Request| async move {
            let peer = Peer::of(request.extensions());
            match self.gate.check_source(peer, request.method(), request.uri(), request.headers()) {
                Ok(()) => match self.fixed(&request) {
                    Some(door) => door.enter(request, self.state.clone()).await,
                    None => (self.router)(request).await,
                },
                Err(error) => error.into_response(),
            }
        };
        #[cfg(feature = "sql")]
        let checked = |request| flight::answer_in_grpc(request, checked);
        let named = |request| request_id::name(&self.names, request, checked);
        let response = refusal::after_its_body(request, named).await;
        // The router has done so with its own answers; over HTTP/2 nobody else does.
        let response = if to_head { response.map(|_| Body::empty()) } else { response };
        error::without_length_of_nothing(response)
    }

    fn fixed(&self, request: &Request) -> Option<&Door<S>> {
        let doors = self.fixed.get(request.uri().path())?;
        doors.iter().find(|(method, _)| method == request.method()).map(|(_, door)| &**door)
    }
}

/// What stands in front of one route.
struct Door<S> {
    gate: Arc<Gate>,
    access: Access,
    counts: Counts,
    handler: Handler<S>,
}

impl<S> Door<S> {
    async fn enter(&self, mut request: Request, state: S) -> Response {
        let started = Instant::now();
        let peer = Peer::of(request.extensions());
        let allowed = self.gate.authorize(peer, request.uri(), request.headers(), self.access, None).await;
        let allowed = allowed
            .and_then(|who| self.gate.not_too_often(peer, request.uri(), self.access, &who).map(|()| who));
        let response = match allowed {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                (self.handler)(request, state).await
            }
            Err(error) => error.into_response(),
        };
        self.counts.note(&response, started);
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
