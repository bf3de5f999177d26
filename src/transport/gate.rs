//! The gate: what an accepted connection may do, before and after its hello.
//!
//! Whoever is not a member may open one stream, of kind `Join`, of at most 64 KiB, for at most
//! 10 s. Anything else closes the connection before a byte reaches a handler.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    close::{CloseCode, Closed},
    contact::Contact,
    link::Link,
    mesh::Inner,
    router::{Peer, may_open},
    stream::{NOT_SERVED, Stream, read_header},
};
use crate::protocol::{DecodeError, StreamKind, frame::MAX_JOIN};

/// For the first stream of a connection, and for the header of every stream.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a `Join` stream, from its header to the end of its handler.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// For the peer to read the answer and close, or to say hello.
const AFTER_JOIN: Duration = Duration::from_secs(5);
/// For handlers after the end of their connection.
const HANDLERS_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that lost to another one ends when unused for so long, or after so long.
const DRAIN_IDLE: Duration = Duration::from_millis(500);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// How often those who are not admitted may come.
#[derive(Debug, Default)]
pub(super) struct Doorkeeper {
    sources: Mutex<BTreeMap<IpAddr, (f64, Instant)>>,
    inside: Arc<()>,
}

impl Doorkeeper {
    const INSIDE: usize = 64;
    const SOURCES: usize = 4096;
    const BURST: f64 = 20.0;
    const PER_SECOND: f64 = 5.0;

    /// A place for one more from `source`, held until dropped; `None` if there is none.
    pub(super) fn enter(&self, source: IpAddr, now: Instant) -> Option<Arc<()>> {
        if Arc::strong_count(&self.inside) > Self::INSIDE {
            return None;
        }
        let refill = |(tokens, at): (f64, Instant)| {
            (tokens + now.duration_since(at).as_secs_f64() * Self::PER_SECOND).min(Self::BURST)
        };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= Self::SOURCES {
            sources.retain(|_, entry| refill(*entry) < Self::BURST);
        }
        let known = sources.get(&source).copied();
        if known.is_none() && sources.len() >= Self::SOURCES {
            return None;
        }
        let tokens = refill(known.unwrap_or((Self::BURST, now)));
        let enough = tokens >= 1.0;
        sources.insert(source, (if enough { tokens - 1.0 } else { tokens }, now));
        enough.then(|| self.inside.clone())
    }
}

/// Receives an accepted connection: a hello makes it a link, which is returned for serving.
pub(super) async fn receive(inner: &Inner, door: &Doorkeeper, contact: Arc<Contact>) -> Option<Arc<Link>> {
    let class = contact.class(&inner.view(), (inner.clock)());
    let _place = if class.is_member() {
        None
    } else {
        let Some(place) = door.enter(contact.remote().ip(), Instant::now()) else {
            contact.close(CloseCode::Busy);
            return None;
        };
        Some(place)
    };
    let mut patience = HEADER_TIMEOUT;
    let mut joined = false;
    loop {
        let Ok(first) = timeout(patience, first_stream(&contact)).await else {
            contact.close(if joined { CloseCode::Done } else { CloseCode::Limit });
            return None;
        };
        let (kind, mut stream) = first?;
        inner.traffic.note_accepted(kind);
        let class = contact.live_class(&inner.view(), (inner.clock)());
        match kind {
            StreamKind::Hello if class.is_member() => {
                return inner
                    .answer_hello(contact, stream)
                    .await
                    .inspect_err(|error| debug!(peer = %class.node(), %error, "no link"))
                    .ok();
            }
            StreamKind::Join if !joined => {
                joined = true;
                let Some(handler) = inner.router.get(StreamKind::Join) else {
                    contact.close(CloseCode::NotAdmitted);
                    return None;
                };
                stream.recv.limit_to(MAX_JOIN);
                let peer = Peer::new(class, None, contact.clone(), inner.view.clone());
                if timeout(JOIN_TIMEOUT, handler.handle(peer, stream)).await.is_err() {
                    contact.close(CloseCode::Limit);
                    return None;
                }
                patience = AFTER_JOIN;
            }
            kind => {
                debug!(?class, ?kind, remote = %contact.remote(), "turned away");
                contact.turn_away(class, &inner.view());
                return None;
            }
        }
    }
}

/// The next stream and its kind; `None` if there is none, or closes on rubbish.
async fn first_stream(contact: &Contact) -> Option<(StreamKind, Stream)> {
    let (send, mut recv) = contact.conn.accept_bi().await.ok()?;
    match read_header(&mut recv).await {
        Ok(header) => {
            let mut stream = contact.stream((send, recv));
            stream.send.set_lane(header.kind.lane());
            Some((header.kind, stream))
        }
        Err(_) => {
            contact.close(CloseCode::Protocol);
            None
        }
    }
}

/// Serves a link to its end.
pub(super) async fn serve(inner: &Arc<Inner>, link: Arc<Link>) {
    let contact = &link.contact;
    let mut handlers = JoinSet::new();
    let mut draining: Option<Draining> = None;
    let closed = loop {
        tokio::select! {
            accepted = contact.conn.accept_bi() => match accepted {
                Ok(ends) => {
                    let class = contact.live_class(&inner.view(), (inner.clock)());
                    if !class.is_member() {
                        contact.turn_away(class, &inner.view());
                        continue;
                    }
                    let peer = Peer::new(class, Some(link.hello.boot), contact.clone(), inner.view.clone());
                    handlers.spawn(serve_stream(inner.clone(), peer, contact.clone(), ends));
                }
                Err(error) => break Closed::from(error),
            },
            Some(_) = handlers.join_next() => {}
            () = link.drain.notified(), if draining.is_none() => draining = Some(Draining::new()),
            () = sleep(DRAIN_STEP), if draining.is_some() => {
                if draining.as_mut().is_some_and(|d| d.is_over(contact.in_use())) {
                    contact.close(CloseCode::Duplicate);
                }
            }
        }
    };
    inner.note_closed(contact, &closed);
    if inner.unregister(&link) {
        info!(peer = %contact.node(), remote = %contact.remote(), %closed, "link down");
    }
    // A handler may be in the middle of something that must not be cut; its stream has failed, so
    // it ends by itself.
    let rest = async { while handlers.join_next().await.is_some() {} };
    if timeout(HANDLERS_TIMEOUT, rest).await.is_err() {
        warn!(peer = %contact.node(), "stream handlers outlived their connection and were dropped");
    }
}

async fn serve_stream(
    inner: Arc<Inner>,
    peer: Peer,
    contact: Arc<Contact>,
    (mut send, mut recv): (quinn::SendStream, quinn::RecvStream),
) {
    let kind = match timeout(HEADER_TIMEOUT, read_header(&mut recv)).await {
        Ok(Ok(header)) => Some(header.kind),
        // A newer peer may know kinds that this version does not.
        Ok(Err(super::StreamError::Decode(DecodeError::UnknownKind(_)))) => None,
        _ => return,
    };
    let served = kind.filter(|kind| may_open(&inner.view(), peer.node(), *kind));
    let Some((kind, handler)) = served.and_then(|kind| Some((kind, inner.router.get(kind)?))) else {
        let _ = send.reset(NOT_SERVED);
        let _ = recv.stop(NOT_SERVED);
        return;
    };
    let mut stream = contact.stream((send, recv));
    inner.traffic.note_accepted(kind);
    stream.send.set_lane(kind.lane());
    if kind == StreamKind::Join {
        stream.recv.limit_to(MAX_JOIN);
    }
    handler.handle(peer, stream).await;
}

/// A connection on its way out.
struct Draining {
    since: Instant,
    used: Instant,
}

impl Draining {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, used: now }
    }

    fn is_over(&mut self, in_use: bool) -> bool {
        if in_use {
            self.used = Instant::now();
        }
        self.used.elapsed() >= DRAIN_IDLE || self.since.elapsed() >= DRAIN_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_door_lets_a_few_in_and_forgets() {
        let door = Doorkeeper::default();
        let source = IpAddr::from([10, 0, 0, 1]);
        let burst = (0..100).filter(|_| door.enter(source, Instant::now()).is_some()).count();
        assert_eq!(burst, 20);
        assert!(door.enter(IpAddr::from([10, 0, 0, 2]), Instant::now()).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        let next = (0..100).filter(|_| door.enter(source, Instant::now()).is_some()).count();
        assert_eq!(next, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_room_is_limited() {
        let door = Doorkeeper::default();
        let places: Vec<_> =
            (0..100).filter_map(|n| door.enter(IpAddr::from([10, 0, 0, n]), Instant::now())).collect();
        assert_eq!(places.len(), Doorkeeper::INSIDE);
        drop(places);
        assert!(door.enter(IpAddr::from([10, 0, 1, 1]), Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_sources_is_bounded() {
        let (door, now) = (Doorkeeper::default(), Instant::now());
        let remembered = || door.sources.lock().unwrap().len();
        let entered = (0..10_000_u32).filter(|n| door.enter(n.to_be_bytes().into(), now).is_some()).count();
        assert_eq!((entered, remembered()), (Doorkeeper::SOURCES, Doorkeeper::SOURCES));
        // As good as new after a second, and forgotten for the next one that comes.
        let later = now + Duration::from_secs(1);
        assert!(door.enter(IpAddr::from([10, 0, 0, 1]), later).is_some());
        assert_eq!(remembered(), 1);
    }
}
