//! Refusals over HTTP/2 that come before the body was read.
//!
//! The answer then ends a stream whose other half is open, and the server resets that half. By RFC 9113
//! (8.1) the client keeps the answer; curl before 8 throws it away and reports a stream error instead. A
//! body that is short enough to be there already is read first, so that nothing is left to reset.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{Version, header},
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

/// So much of a body is read for nothing: what fits the window that a client has without asking.
const MOST: usize = 64 << 10;
/// And for so long.
const LONGEST: Duration = Duration::from_secs(1);

/// Reads what a refused request left of its body, if that is little.
pub(super) async fn after_its_body<F: Future<Output = Response>>(
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response {
    let called = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    let streams = called.is_some_and(|kind| kind.starts_with(b"application/grpc"));
    // Whoever waits to be told to send has not sent, and is not waited for.
    let waits = request.headers().contains_key(header::EXPECT);
    if request.version() != Version::HTTP_2 || streams || waits || request.body().is_end_stream() {
        return next(request).await;
    }
    let (head, body) = request.into_parts();
    let body = Lent(Arc::new(Mutex::new(body)));
    let response = next(Request::from_parts(head, Body::new(body.clone()))).await;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let _ = tokio::time::timeout(LONGEST, drain(body)).await;
    }
    response
}

async fn drain(mut body: Lent) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MOST {
            break;
        }
    }
}

/// A body of which the rest can be read after a handler has dropped it.
#[derive(Debug, Clone)]
struct Lent(Arc<Mutex<Body>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use axum::{
        Router,
        http::StatusCode,
        middleware::{self, Next},
        routing::post,
    };
    use futures::{StreamExt, stream};
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    /// How many of a body's pieces are read by a route that gives this answer without reading any.
    async fn read(status: StatusCode, version: Version, pieces: usize, kind: &str) -> usize {
        let route = post(move || async move { status });
        let router = Router::new().route("/", route).layer(middleware::from_fn(|request, next: Next| {
            after_its_body(request, |request| next.run(request))
        }));
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = taken.clone();
        let pieces = stream::iter(0..pieces).map(move |_| {
            counted.fetch_add(1, Relaxed);
            Ok::<_, std::io::Error>(vec![0; 1024])
        });
        let request = Request::post("/").version(version).header(header::CONTENT_TYPE, kind);
        let response =
            TowerToHyperService::new(router).call(request.body(Body::from_stream(pieces)).unwrap());
        let response = response.await.unwrap();
        assert_eq!(response.status(), status);
        taken.load(Relaxed)
    }

    #[tokio::test]
    async fn what_is_short_is_read_before_a_refusal_and_nothing_else_is() {
        let plain = "text/plain";
        assert_eq!(read(StatusCode::FORBIDDEN, Version::HTTP_2, 3, plain).await, 3);
        assert_eq!(read(StatusCode::FORBIDDEN, Version::HTTP_2, 5000, plain).await, MOST / 1024 + 1);
        assert_eq!(read(StatusCode::NO_CONTENT, Version::HTTP_2, 3, plain).await, 0);
        assert_eq!(read(StatusCode::FORBIDDEN, Version::HTTP_11, 3, plain).await, 0);
        assert_eq!(read(StatusCode::FORBIDDEN, Version::HTTP_2, 3, "application/grpc").await, 0);
    }
}
