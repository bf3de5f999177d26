//! What an answer is made of. A task of its own makes the pieces and holds the query's places: it
//! ends with the answer, with the client or with the query's time, whichever is first. A client that
//! stops reading keeps a connection for a while (`http.answer_timeout`), not a place.

use std::{io, pin::Pin, task::Poll, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::engine::columnar::sql::QueryError;

/// Pieces of an answer as they come.
pub(in crate::http) type Pieces<T> = Pin<Box<dyn Stream<Item = Result<T, QueryError>> + Send>>;

/// What is sent at once.
pub(in crate::http) trait Piece: Send + 'static {
    /// Bytes of it.
    fn bytes(&self) -> usize;
}

impl Piece for Bytes {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// When and how much at most.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct Bounds {
    /// What is not read by then is not given.
    pub(super) deadline: Instant,
    /// How long the query had until then.
    pub(super) timeout: Duration,
    /// Bytes of the answer.
    pub(super) bytes: usize,
}

/// A body of these pieces; `held` is dropped when the last is given, or none will be any more.
pub(super) fn body(first: Bytes, rest: Pieces<Bytes>, bounds: Bounds, held: impl Send + 'static) -> Body {
    let all = Box::pin(futures::stream::iter([Ok(first)]).chain(rest));
    Body::from_stream(bounded(all, bounds, held).map_err(io::Error::other))
}

/// These pieces within bounds; `held` is dropped when the last is given, or none will be any more. An
/// error is the last item, and says that the answer is not whole.
pub(in crate::http) fn bounded<T: Piece>(
    pieces: Pieces<T>,
    bounds: Bounds,
    held: impl Send + 'static,
) -> impl Stream<Item = Result<T, QueryError>> + Send {
    // One piece waits while the one before it is sent.
    let (give, mut take) = mpsc::channel(1);
    tokio::spawn(produce(pieces, give, bounds, held));
    let mut ended = false;
    futures::stream::poll_fn(move |cx| {
        if ended {
            return Poll::Ready(None);
        }
        take.poll_recv(cx).map(|piece| match piece {
            Some(Given::Piece(piece)) => Some(Ok(piece)),
            Some(Given::End) => None,
            Some(Given::Cut(error)) => {
                ended = true;
                Some(Err(error))
            }
            // The task has ended, but not the answer.
            None => {
                ended = true;
                Some(Err(QueryError::TimedOut(bounds.timeout)))
            }
        })
    })
}

enum Given<T> {
    Piece(T),
    /// The answer is whole.
    End,
    /// The answer is not whole.
    Cut(QueryError),
}

async fn produce<T: Piece>(
    mut pieces: Pieces<T>,
    give: mpsc::Sender<Given<T>>,
    bounds: Bounds,
    held: impl Send,
) {
    let all = async {
        let mut given = 0;
        // Room first: what nobody reads is not made.
        while let Ok(place) = give.reserve().await {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                () = give.closed() => return,
            };
            let piece = match piece {
                None => Given::End,
                Some(Err(error)) => Given::Cut(error),
                Some(Ok(piece)) => {
                    given += piece.bytes();
                    if given > bounds.bytes {
                        let limit = bounds.bytes;
                        Given::Cut(QueryError::TooLarge(format!("the answer has more than {limit} bytes")))
                    } else {
                        Given::Piece(piece)
                    }
                }
            };
            if let Given::Cut(error) = &piece {
                tracing::info!(%error, "a query ended within its answer");
            }
            let last = !matches!(piece, Given::Piece(_));
            place.send(piece);
            if last {
                return;
            }
        }
    };
    if timeout_at(bounds.deadline, all).await.is_err() {
        tracing::info!("a query's answer was not read within its time: the rest is not given");
    }
    // The query first, then its places.
    drop(pieces);
    drop(held);
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn bounds(bytes: usize) -> Bounds {
        Bounds { deadline: Instant::now() + TIMEOUT, timeout: TIMEOUT, bytes }
    }

    /// A place that is held, and an answer without end that counts its pieces.
    fn endless() -> (Arc<Semaphore>, Arc<AtomicUsize>, Pieces<Bytes>) {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let pieces = futures::stream::repeat_with(move || {
            counted.fetch_add(1, SeqCst);
            Ok(Bytes::from_static(b"row\n"))
        });
        (Arc::new(Semaphore::new(1)), made, Box::pin(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_loses_its_place_at_the_deadline() {
        let (places, made, pieces) = endless();
        let held = places.clone().try_acquire_owned().unwrap();
        let mut body = body(Bytes::from_static(b"head\n"), pieces, bounds(1 << 20), held);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "head\n");
        tokio::time::sleep(TIMEOUT - Duration::from_millis(1)).await;
        assert_eq!(places.available_permits(), 0);
        assert!(made.load(SeqCst) <= 2, "what nobody reads is not made");
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(places.available_permits(), 1);
        // What it reads later does not look whole.
        let error = loop {
            match body.frame().await.expect("an end that looks like one") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("longer than"), "{error}");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_frees_its_place_at_once() {
        let (places, _, _) = endless();
        let held = places.clone().try_acquire_owned().unwrap();
        let never: Pieces<Bytes> = Box::pin(futures::stream::pending());
        let body = body(Bytes::from_static(b"head\n"), never, bounds(1 << 20), held);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(places.available_permits(), 0);
        drop(body);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whole_answers_end_and_others_do_not() {
        let (places, _, pieces) = endless();
        let held = places.clone().try_acquire_owned().unwrap();
        let some: Pieces<Bytes> = Box::pin(pieces.take(3));
        let whole = body(Bytes::from_static(b"head\n"), some, bounds(17), held);
        assert_eq!(whole.collect().await.unwrap().to_bytes(), "head\nrow\nrow\nrow\n");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(places.available_permits(), 1);
        let (_, _, pieces) = endless();
        assert!(body(Bytes::new(), Box::pin(pieces.take(3)), bounds(11), ()).collect().await.is_err());
        let failing: Pieces<Bytes> = Box::pin(futures::stream::iter([Err(QueryError::Invalid("x".into()))]));
        assert!(body(Bytes::new(), failing, bounds(11), ()).collect().await.is_err());
    }
}
