//! The edge of a gateway. Every route of the table is there: probes are answered here, writes are parsed
//! here and forwarded to the writer, and everything else is passed on to a node with data, as it is.

mod known_tokens;

use std::{fmt, future::Future, io, sync::Arc, task::Poll, time::Duration};

use axum::{
    body::Body,
    extract::{FromRef, Request, State},
    http::{Method, Version, request::Parts},
    response::Response,
};
use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use self::known_tokens::KnownTokens;
use super::{
    Answering, Route,
    auth::{Access, Gate, Lookup, Principal},
    body::{self, Taken},
    error::{self, ApiError, Fault},
    front::{handler, mount},
    health,
    intake::{Intake, Taker},
    params::{self, Params},
    relay::{as_map, passed_on},
    request_id, routes,
    serve::{Listeners, serve_site},
    ui, write,
};
use crate::{
    config,
    engine::columnar::ToldSchemas,
    node::{Answer, AskError, Errand, Gateway, Piece},
    protocol::http::HttpRequest,
    telemetry::Registry,
};

/// A stream of events lives as long at a node with data; a little more, so that it ends there first.
const EVENTS: Duration = Duration::from_secs(660);
/// A backup may be large; the node that makes it gives up when its reader stalls.
const BACKUP: Duration = Duration::from_secs(24 * 3600);
/// Longer than a query may take at a node with data, so that it ends there first.
pub(super) const MARGIN: Duration = Duration::from_secs(5);

/// What the edge of a gateway works with.
#[derive(Clone)]
pub struct GatewayState {
    /// The gateway it is the edge of.
    pub gateway: Gateway,
    /// Where it counts.
    pub metrics: Arc<Registry>,
    /// Section `http` of the configuration.
    pub config: Arc<config::Http>,
    /// The wall clock, in nanoseconds since 1970: the time of a point that has none.
    pub now_ns: fn() -> i64,
}

impl fmt::Debug for GatewayState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayState").field("config", &self.config).finish_non_exhaustive()
    }
}

/// State of a running edge.
struct Edge {
    gateway: Gateway,
    metrics: Arc<Registry>,
    intake: Intake,
}

impl FromRef<Arc<Edge>> for Intake {
    fn from_ref(edge: &Arc<Edge>) -> Self {
        edge.intake.clone()
    }
}

/// Serves a gateway's clients until `shutdown` resolves; as [`serve`](super::serve).
pub async fn serve_gateway(
    listeners: Listeners,
    state: GatewayState,
    shutdown: impl Future<Output = ()> + Send,
) {
    let config = Arc::clone(&state.config);
    serve_site(listeners, site(state), &config, shutdown).await;
}

fn site(state: GatewayState) -> Answering {
    let GatewayState { gateway, metrics, config, now_ns } = state;
    let known = Arc::new(KnownTokens::new(gateway.clone()));
    let lookup = Lookup::Elsewhere(Box::new(move |secret| {
        let known = known.clone();
        Box::pin(async move { known.look_up(&secret).await })
    }));
    let gate = Gate::new(&config, &metrics, lookup);
    let taker = Taker::Gateway(gateway.clone(), ToldSchemas::default());
    let intake = Intake::new(taker, config, &metrics, now_ns);
    let edge = Arc::new(Edge { gateway, metrics: metrics.clone(), intake });
    let table = routes().into_iter().map(handled).collect();
    mount(table, gate, &metrics, &edge)
}

/// What a gateway does at a route of the table: the access it asks for is the same.
fn handled<S>(Route { method, filter, path, access, .. }: Route<S>) -> Route<Arc<Edge>> {
    let handler = match path {
        "/" => handler(ui::page),
        "/ui/{file}" => handler(ui::part),
        "/ping" => handler(health::ping),
        "/startupz" => handler(health::startup),
        "/livez" => handler(async || health::plain("live\n")),
        "/health" => handler(healthy),
        "/ready" => {
            handler(async |State(edge): State<Arc<Edge>>| health::ready_or_not(&edge.gateway.readiness()))
        }
        "/readyz" => handler(ready),
        "/metrics" => handler(metrics),
        "/write" => handler(write::influx1),
        "/api/v2/write" => handler(write::influx2),
        "/api/v3/write_lp" => handler(write::influx3),
        "/api/v1/write/line-protocol" => handler(write::arc),
        "/api/v1/write/msgpack" => handler(write::arc_msgpack),
        _ => handler(async move |State(edge): State<Arc<Edge>>, request: Request| {
            pass_on(edge, request, access).await
        }),
    };
    Route { method, filter, path, access, handler }
}

async fn healthy(State(edge): State<Arc<Edge>>) -> Response {
    health::pass_or_fail(&edge.gateway.readiness())
}

async fn metrics(State(edge): State<Arc<Edge>>) -> Response {
    health::exposition(&edge.metrics)
}

/// `/readyz` of a gateway: a member, and its view heard within three election times.
async fn ready(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    health::must_be_ready(&edge.gateway.readiness())?;
    let params = Params::of(request.uri());
    if params.flag("sync") || params.get("max_staleness").is_some() {
        return Err(ApiError::invalid(
            "a gateway has no data of its own to be fresh: sync and max_staleness are asked of nodes with data",
        ));
    }
    if !params.flag("verbose") {
        return Ok(health::plain("ready\n"));
    }
    let (id, heard) = (edge.gateway.id(), edge.gateway.heard());
    let follows = heard.map(|(from, age)| format!("follows {from}, heard {} ms ago\n", age.as_millis()));
    Ok(health::plain(format!("ready\nnode {id}\n{}", follows.unwrap_or_default())))
}

/// Passes a request on, and its answer back as it comes.
async fn pass_on(edge: Arc<Edge>, request: Request, access: Access) -> Result<Response, ApiError> {
    // Until the answer has begun; what comes after holds a connection here and a place there.
    let _permit = edge.intake.permit()?;
    let (head, body) = request.into_parts();
    let caller = Principal::of(&head.extensions)?;
    let errand = match access {
        Access::Admin if head.method != Method::GET => Errand::Change,
        Access::Admin | Access::Public | Access::Read | Access::Write | Access::Data => Errand::Query,
    };
    // Whoever owns this gateway's files owns nothing of the cluster.
    let own_word = params::credentials(&head.headers, &Params::of(&head.uri)).is_none();
    if access == Access::Admin && own_word {
        return Err(ApiError::forbidden(
            "a gateway has no say over members, tokens and policy: ask a node with data, or send an admin API token \
             (SKEIN_API_TOKEN)",
        ));
    }
    // As it came: what it holds is looked at where it is used, within the limits there.
    let Taken { bytes, share } =
        body::arrive(body, &head.headers, &edge.intake.config, &edge.intake.bodies).await?;
    // Whoever asks for what is public has not been looked at.
    let vouched = access != Access::Public && matches!(caller, Principal::Owner | Principal::Anyone);
    let asked = as_asked(&head, vouched);
    let answer = edge.gateway.ask(errand, &asked, &bytes).await.map_err(|error| unanswered(error, errand))?;
    drop(share);
    let longest = match head.uri.path() {
        "/api/v1/cluster/events" => EVENTS,
        "/api/v1/backup" => BACKUP,
        _ => edge.intake.config.query_timeout + MARGIN,
    };
    respond(answer, Instant::now() + longest)
}

/// A request as it is passed on: as it came, without what is about the connection.
pub(super) fn as_asked(head: &Parts, vouched: bool) -> HttpRequest {
    let mut headers = passed_on(&head.headers);
    headers.extend(request_id::passed_on(&head.extensions));
    HttpRequest {
        method: head.method.as_str().to_owned(),
        target: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        http2: head.version == Version::HTTP_2,
        headers,
        vouched,
    }
}

pub(super) fn unanswered(error: AskError, errand: Errand) -> ApiError {
    let fault = match (&error, errand) {
        (AskError::Nobody(_) | AskError::Unsent { .. }, _) | (AskError::Broken { .. }, Errand::Query) => {
            Fault::Unavailable
        }
        (AskError::Broken { .. }, Errand::Change) => Fault::Unknown,
    };
    ApiError::new(fault, error.to_string())
}

/// An answer from elsewhere, as it comes.
pub(super) fn respond(answer: Answer, deadline: Instant) -> Result<Response, ApiError> {
    let nonsense = || ApiError::new(Fault::Internal, format!("the answer of {} is not HTTP", answer.node));
    let status = answer.head.status;
    let mut headers = as_map(&answer.head.headers).ok_or_else(nonsense)?;
    error::set(&mut headers, "x-skein-forwarded", true);
    let response = error::as_answered(status, headers, body_of(answer, deadline));
    response.ok_or_else(|| ApiError::new(Fault::Internal, format!("{status} is no status of HTTP")))
}

/// What the body of an answer is given.
enum Given {
    Frame(Frame<Bytes>),
    /// The answer is whole.
    Whole,
    Broken(AskError),
}

/// The body of an answer. A client that does not read it loses it at the deadline, so that it holds
/// nothing at the node that gives it; an answer that is not whole does not look so.
fn body_of(mut answer: Answer, deadline: Instant) -> Body {
    let (give, mut take) = mpsc::channel(1);
    tokio::spawn(async move {
        let all = async {
            // Room first: what nobody reads is not asked for.
            while let Ok(place) = give.reserve().await {
                let next = tokio::select! {
                    next = answer.next() => next,
                    () = give.closed() => return,
                };
                let given = match next {
                    Ok(None) => Given::Whole,
                    Ok(Some(Piece::Data(bytes))) => Given::Frame(Frame::data(bytes)),
                    Ok(Some(Piece::Trailers(trailers))) => {
                        Given::Frame(Frame::trailers(as_map(&trailers).unwrap_or_default()))
                    }
                    Err(error) => {
                        tracing::info!(%error, "an answer broke off");
                        Given::Broken(error)
                    }
                };
                let last = !matches!(given, Given::Frame(_));
                place.send(given);
                if last {
                    return;
                }
            }
        };
        if timeout_at(deadline, all).await.is_err() {
            tracing::info!("an answer was not read within its time: the rest is not given");
        }
    });
    let mut ended = false;
    Body::new(StreamBody::new(stream::poll_fn(move |cx| {
        if ended {
            return Poll::Ready(None);
        }
        take.poll_recv(cx).map(|given| {
            ended = !matches!(given, Some(Given::Frame(_)));
            match given {
                Some(Given::Frame(frame)) => Some(Ok(frame)),
                Some(Given::Whole) => None,
                Some(Given::Broken(error)) => Some(Err(io::Error::other(error))),
                None => Some(Err(io::Error::other("the answer was not read within its time"))),
            }
        })
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_done_is_not_called_unavailable() {
        let broken = || AskError::Broken { node: crate::types::NodeId::default(), reason: "silent".into() };
        assert_eq!(unanswered(broken(), Errand::Query).fault(), Fault::Unavailable);
        assert_eq!(unanswered(broken(), Errand::Change).fault(), Fault::Unknown);
        assert_eq!(unanswered(AskError::Nobody("voter"), Errand::Change).fault(), Fault::Unavailable);
        let unsent = AskError::Unsent { node: crate::types::NodeId::default(), reason: "not linked".into() };
        assert_eq!(unanswered(unsent, Errand::Change).fault(), Fault::Unavailable);
    }
}
