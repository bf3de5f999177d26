//! Every request has a name: the client's (`x-request-id`), or one that is made here. It is in the answer, in a line
//! of the log of each node that the request passes, and goes along where it is passed on or forwarded.

use std::{
    fmt::Write,
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use axum::{
    extract::Request,
    http::{Extensions, HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use serde_bytes::ByteBuf;

use super::{auth::Peer, error};
use crate::protocol::request_id::RequestId;

/// The name that a client gave, and of every answer.
const BY_CLIENT: &str = "x-request-id";
/// A name that a node made, on its way to another.
const MADE: &str = "x-skein-request-id";

/// Of a path, this much is told.
const PATH: usize = 100;

/// Makes names: no two edges, nor one edge after a restart, make the same.
pub(super) struct Names {
    start: u32,
    made: AtomicU64,
}

impl Names {
    pub(super) fn new() -> Self {
        // Names need not be hard to guess, only different.
        let start = RandomState::new().hash_one(std::process::id()) as u32;
        Self { start, made: AtomicU64::new(0) }
    }

    fn of(&self, headers: &HeaderMap, peer: Peer) -> Option<RequestId> {
        let said = |name: &str| headers.get(name)?.to_str().ok();
        if let Some(id) = said(BY_CLIENT).and_then(RequestId::by_client) {
            return Some(id);
        }
        let passed_on = matches!(peer, Peer::Gateway { .. }).then(|| said(MADE)).flatten();
        passed_on.and_then(RequestId::made).or_else(|| {
            let count = self.made.fetch_add(1, Ordering::Relaxed) + 1;
            RequestId::made(&made(self.start, count))
        })
    }
}

/// The header that goes along with a request that is passed on, if a node gave it its name; the one that a client
/// gave goes as it came.
pub(super) fn passed_on(extensions: &Extensions) -> Option<(String, ByteBuf)> {
    let id = extensions.get::<RequestId>().filter(|id| !id.is_by_client())?;
    Some((MADE.to_owned(), ByteBuf::from(id.as_str())))
}

fn made(start: u32, count: u64) -> String {
    let mut name = String::with_capacity(8 + 1 + 20);
    // A text takes whatever is written.
    let _ = write!(name, "{start:08x}-{count}");
    name
}

/// Names a request before anything else is done with it, and says what became of it: where the client wants to
/// find it again at level `info`, for so many in a second, else at `debug`.
pub(super) async fn name<F: Future<Output = Response>>(
    names: &Names,
    mut request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let began = Instant::now();
    let peer = Peer::of(request.extensions());
    let Some(id) = names.of(request.headers(), peer) else { return next(request).await };
    request.headers_mut().remove(MADE);
    let Ok(value) = HeaderValue::from_str(id.as_str()) else { return next(request).await };
    // The query string may hold a token.
    let told = (id.is_by_client() || tracing::enabled!(tracing::Level::DEBUG))
        .then(|| (request.method().clone(), request.uri().path().chars().take(PATH).collect::<String>()));
    request.extensions_mut().insert(id.clone());
    let mut response = next(request).await;
    response.headers_mut().insert(HeaderName::from_static(BY_CLIENT), value);
    if let Some((method, path)) = told {
        let ms = began.elapsed().as_millis();
        let status = error::number(&response);
        let said = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (at, grpc) = (said("x-skein-lsn"), said("grpc-status"));
        let elsewhere = said("x-skein-forwarded") == Some("true");
        // Whoever may not come in spends no lines.
        if !error::is_refusal(&response) && id.is_worth_a_line() {
            tracing::info!(request = %id, %method, path, status, grpc, at, elsewhere, ms, "answered");
        } else {
            tracing::debug!(request = %id, %method, path, status, grpc, at, elsewhere, ms, "answered");
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::{super::gateway::as_asked, *};

    #[test]
    fn the_client_names_a_request_and_else_the_first_node() {
        let names = Names::new();
        let tcp = Peer::Tcp([127, 0, 0, 1].into());
        let gateway = Peer::Gateway { at: [127, 0, 0, 1].into(), vouched: false };
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let given = names.of(&headers(&[(BY_CLIENT, "mine"), (MADE, "theirs")]), gateway).unwrap();
        assert_eq!((given.as_str(), given.is_by_client()), ("mine", true));
        let passed = names.of(&headers(&[(MADE, "theirs")]), gateway).unwrap();
        assert_eq!((passed.as_str(), passed.is_by_client()), ("theirs", false));
        // Neither what is no name nor what a client says of other nodes.
        for odd in [headers(&[(BY_CLIENT, "a b")]), headers(&[(MADE, "theirs")]), headers(&[])] {
            let one = names.of(&odd, tcp).unwrap();
            let other = names.of(&odd, tcp).unwrap();
            assert!(one != other && one.as_str() != "theirs" && !one.is_by_client(), "{one} {other}");
        }
    }

    #[tokio::test]
    async fn the_name_that_a_node_made_goes_along_and_no_other() {
        let names = Names::new();
        for client in [None, Some("mine")] {
            // What a client says of names that nodes make is not passed on.
            let mut request = Request::builder().uri("/query").header(MADE, "forged");
            if let Some(client) = client {
                request = request.header(BY_CLIENT, client);
            }
            let mut passed = Vec::new();
            let response = name(&names, request.body(Body::empty()).unwrap(), |request| {
                passed = as_asked(&request.into_parts().0, false).headers;
                std::future::ready(Response::new(Body::empty()))
            });
            let id = response.await.headers().get(BY_CLIENT).unwrap().clone();
            let of = |name: &str| -> Vec<_> {
                passed.iter().filter(|(known, _)| known == name).map(|(_, value)| value.to_vec()).collect()
            };
            let id = vec![id.as_bytes().to_vec()];
            let (made, given) = if client.is_some() { (vec![], id) } else { (id, vec![]) };
            assert_eq!((of(MADE), of(BY_CLIENT)), (made, given));
        }
    }
}
