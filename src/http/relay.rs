//! What gateways pass on: a request that comes over the mesh goes through the same routes, and the same
//! gate, as one that comes over TCP.

use std::{io, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version},
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use http_body_util::BodyExt;
use serde_bytes::ByteBuf;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{Answering, auth::Peer, events::Stopping};
use crate::{
    node::Node,
    protocol::http::{Headers, HttpRequest, HttpResponse, MAX_BODY_FRAME, MAX_HEAD, MAX_PIECE, Part},
    transport::{Handler, Peer as MeshPeer, RecvStream, SendStream, Stream, StreamError},
};

/// How often a gateway is told that its request is worked on.
const BEAT: Duration = Duration::from_millis(250);
/// For a request to come in whole.
const ARRIVE: Duration = Duration::from_secs(10);
/// Headers that are about one connection (RFC 9110, 7.6.1), and the length of a body, which the frames say.
const OF_ONE_CONNECTION: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "trailer",
];

/// The headers that go along with a request of a client.
pub(super) fn passed_on(headers: &HeaderMap) -> Headers {
    let stays = |name: &&HeaderName| !OF_ONE_CONNECTION.contains(&name.as_str());
    let one = |(name, value): (&HeaderName, &HeaderValue)| {
        stays(&name).then(|| (name.as_str().to_owned(), ByteBuf::from(value.as_bytes())))
    };
    headers.iter().filter_map(one).collect()
}

/// As a map; `None` if some are no headers.
pub(super) fn as_map(headers: &Headers) -> Option<HeaderMap> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        map.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    Some(map)
}

/// Handles `Http` streams.
pub(super) struct Relay {
    site: Answering,
    node: Node,
    stopped: watch::Receiver<bool>,
}

impl Relay {
    pub(super) fn new(site: Answering, node: Node, stopped: watch::Receiver<bool>) -> Self {
        Self { site, node, stopped }
    }
}

impl Handler for Relay {
    fn handle(&self, peer: MeshPeer, stream: Stream) -> BoxFuture<'static, ()> {
        let by_gateway = {
            let view = self.node.view();
            let view = view.borrow();
            // A voter has an edge of its own.
            if view.is_voter(peer.node()) {
                tracing::warn!(peer = %peer.node(), "refused a request over HTTP: it is a voter, and can answer it");
                stream.refuse();
                return Box::pin(std::future::ready(()));
            }
            view.is_gateway(peer.node())
        };
        let Stream { mut send, recv } = stream;
        let (site, stopping) = (self.site.clone(), Stopping(self.stopped.clone()));
        Box::pin(async move {
            // What answers is dropped with the request when whoever passed it on goes.
            if let Err(error) = serve(&site, (&peer, by_gateway), stopping, recv, &mut send).await {
                tracing::debug!(peer = %peer.node(), %error, "a request that was passed on ended early");
                send.abandon();
            }
        })
    }
}

async fn serve(
    site: &Answering,
    (peer, by_gateway): (&MeshPeer, bool),
    stopping: Stopping,
    mut recv: RecvStream,
    send: &mut SendStream,
) -> Result<(), StreamError> {
    let arrived = timeout(ARRIVE, async {
        let head = recv.read_message::<HttpRequest>(MAX_HEAD).await?;
        Ok::<_, StreamError>((head, recv.read_frame(MAX_BODY_FRAME).await?))
    });
    let Ok(arrived) = arrived.await else { return Err(StreamError::Truncated) };
    let (head, first) = arrived?;
    // Only a gateway's word that its edge is open counts.
    let from = Peer::Gateway { at: peer.remote().ip(), vouched: by_gateway && head.vouched };
    let Some(mut request) = request(&head, body_of(first, recv)) else {
        let bad = HttpResponse { status: 400, headers: Vec::new() };
        send.write_message(&Part::Head(bad)).await?;
        send.write_message(&Part::End).await?;
        return send.finish();
    };
    request.extensions_mut().insert(from);
    request.extensions_mut().insert(stopping);
    let mut answer = site(request);
    // The first one tells the gateway that its request is here.
    send.write_message(&Part::Beat).await?;
    let answer: Response<Body> = loop {
        match timeout(BEAT, answer.as_mut()).await {
            Ok(answered) => break answered,
            Err(_) => send.write_message(&Part::Beat).await?,
        }
    };
    give(answer, send).await
}

/// What comes after the first frame is read as the handler asks for it, within its own limits on length,
/// time and memory; until then it waits at the gateway. Dropping the body tells the gateway to stop.
fn body_of(first: Bytes, recv: RecvStream) -> Body {
    let rest = stream::try_unfold(recv, |mut recv| async move {
        match recv.read_frame(MAX_BODY_FRAME).await {
            Ok(piece) => Ok(Some((piece, recv))),
            Err(StreamError::Finished) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    });
    Body::from_stream(stream::once(std::future::ready(Ok(first))).chain(rest))
}

/// The request as the routes take it; `None` if it is none.
fn request(head: &HttpRequest, body: Body) -> Option<Request<Body>> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = head.target.parse::<Uri>().ok()?;
    *request.version_mut() = if head.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *request.headers_mut() = as_map(&head.headers)?;
    Some(request)
}

/// Sends an answer as it comes.
async fn give(answer: Response<Body>, send: &mut SendStream) -> Result<(), StreamError> {
    let (head, mut body) = answer.into_parts();
    let head = HttpResponse { status: head.status.as_u16(), headers: passed_on(&head.headers) };
    send.write_message(&Part::Head(head)).await?;
    let mut beat_at = Instant::now() + BEAT;
    loop {
        let Ok(frame) = timeout_at(beat_at, body.frame()).await else {
            send.write_message(&Part::Beat).await?;
            beat_at = Instant::now() + BEAT;
            continue;
        };
        match frame {
            None => break,
            Some(Err(error)) => {
                // What came so far must not look like the answer.
                tracing::debug!(%error, "an answer to a gateway broke off");
                return Err(StreamError::Truncated);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(mut data) => {
                    while !data.is_empty() {
                        let piece = data.split_to(data.len().min(MAX_PIECE));
                        send.write_message(&Part::Data).await?;
                        send.write_frame(piece).await?;
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        send.write_message(&Part::Trailers(passed_on(&trailers))).await?;
                    }
                }
            },
        }
        beat_at = Instant::now() + BEAT;
    }
    send.write_message(&Part::End).await?;
    send.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_one_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer t"),
            ("connection", "close"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-arc-database", "a"),
            ("x-arc-database", "b"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let kept = passed_on(&headers);
        let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["authorization", "te", "x-arc-database", "x-arc-database"]);
        let map = as_map(&kept).unwrap();
        assert_eq!(map.get_all("x-arc-database").iter().count(), 2);
        assert_eq!(as_map(&vec![("a b".to_owned(), ByteBuf::new())]), None);
    }

    #[test]
    fn a_request_that_is_none_is_no_request() {
        let head = |method: &str, target: &str| HttpRequest {
            method: method.to_owned(),
            target: target.to_owned(),
            http2: false,
            headers: vec![],
            vouched: false,
        };
        assert!(request(&head("GET", "/x?y=z"), Body::empty()).is_some());
        for (method, target) in [("", "/"), ("G T", "/"), ("GET", "a b"), ("GET", "")] {
            assert!(request(&head(method, target), Body::empty()).is_none(), "{method} {target}");
        }
    }
}
