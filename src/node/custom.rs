//! Protocols of an embedder's own on the mesh: [`Node::serve_protocol`] and [`Node::open_protocol`].
//!
//! They ride on the links that are there already: the peer has been authenticated, is a member with
//! data, and stops being served when it is removed. They go on the lane of catching up, which is
//! paced, so that they delay neither a heartbeat nor the log.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::timeout;

use crate::{
    protocol::{
        StreamKind,
        custom::{BadProtocolName, MAX_OPENING, Opening, ProtocolName},
    },
    transport::{Handler, OpenError, Peer, Stream, StreamError},
    types::NodeId,
};

use super::Node;

/// Protocols served at once.
const PROTOCOLS: usize = 64;
/// Streams of custom protocols that one peer may have here at once: a link has room for 1,024, and
/// raft and log must find theirs.
const STREAMS_OF_A_PEER: usize = 256;
/// For the name.
const OPENING: Duration = Duration::from_secs(10);

/// A custom protocol that cannot be served, or a stream of it that cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] BadProtocolName),
    /// It is served already.
    #[error("protocol {0} is served already: drop what the first call returned")]
    Served(ProtocolName),
    /// There are as many as there may be.
    #[error("a node serves at most {PROTOCOLS} custom protocols")]
    TooMany,
    /// No stream: the peer is down, unreachable, no member, or this node itself.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// While it lives the protocol is served.
#[derive(Debug)]
pub struct ServedProtocol {
    name: ProtocolName,
    table: Arc<CustomProtocols>,
}

impl Drop for ServedProtocol {
    fn drop(&mut self) {
        let served = self.table.lock().served.remove(&self.name);
        // Outside of the lock: this may be the last reference to much of the embedder.
        drop(served);
    }
}

/// Who serves what, and how many streams each peer has.
#[derive(Default)]
pub(super) struct CustomProtocols(Mutex<Table>);

#[derive(Default)]
struct Table {
    served: BTreeMap<ProtocolName, Arc<dyn Handler>>,
    open: BTreeMap<NodeId, usize>,
}

impl Node {
    /// Serves a protocol of your own to members with data, until the returned value is dropped; streams
    /// that are open by then run to their end. `handler` gets each stream behind the frame that named
    /// the protocol, in a task of its own, and what it reads has the limits that it gives to
    /// [`crate::transport::RecvStream::read_frame`]. A gateway is not served. A peer may have 256 such
    /// streams at once here, of all protocols together.
    ///
    /// # Errors
    /// The name is none, it is served already, or 64 others are.
    pub fn serve_protocol(
        &self,
        name: &str,
        handler: Arc<dyn Handler>,
    ) -> Result<ServedProtocol, ProtocolError> {
        let (name, table) = (name.parse::<ProtocolName>()?, self.custom());
        table.add(&name, handler)?;
        Ok(ServedProtocol { name, table })
    }

    /// Opens a stream of that protocol to another member. It does not dial: without a link it fails at
    /// once. A peer that does not serve the protocol, or no more streams of it, is known by the first
    /// read: [`crate::transport::StreamError::NotServed`].
    ///
    /// # Errors
    /// The name is none, or there is no link to `peer`.
    pub async fn open_protocol(&self, peer: NodeId, name: &str) -> Result<Stream, ProtocolError> {
        let name = name.parse::<ProtocolName>()?;
        let kind = StreamKind::Custom;
        let mut stream = self.this().mesh.open(peer, kind, kind.lane()).await?;
        let opening = Opening { protocol: name.to_string() };
        match stream.send.write_message(&opening).await {
            // Refused before it was named: its reader hears of it, as of any other refusal.
            Ok(()) | Err(StreamError::NotServed) => Ok(stream),
            Err(error) => Err(OpenError::from(error).into()),
        }
    }
}

impl CustomProtocols {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, name: &ProtocolName, handler: Arc<dyn Handler>) -> Result<(), ProtocolError> {
        let mut table = self.lock();
        if table.served.contains_key(name) {
            return Err(ProtocolError::Served(name.clone()));
        }
        if table.served.len() >= PROTOCOLS {
            return Err(ProtocolError::TooMany);
        }
        table.served.insert(name.clone(), handler);
        Ok(())
    }
}

/// Handles `Custom` streams.
pub(super) struct CustomStreams(pub(super) Arc<CustomProtocols>);

/// One stream's place among those of its peer.
struct Place(Arc<CustomProtocols>, NodeId);

impl Place {
    fn take(table: &Arc<CustomProtocols>, peer: NodeId) -> Option<Self> {
        let mut held = table.lock();
        let open = held.open.entry(peer).or_default();
        if *open >= STREAMS_OF_A_PEER {
            return None;
        }
        *open += 1;
        Some(Self(table.clone(), peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        let open = held.open.entry(self.1).or_default();
        *open = open.saturating_sub(1);
        if *open == 0 {
            held.open.remove(&self.1);
        }
    }
}

impl Handler for CustomStreams {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let table = self.0.clone();
        Box::pin(async move {
            let Some(_place) = Place::take(&table, peer.node()) else {
                tracing::debug!(peer = %peer.node(), "no more custom streams for this peer");
                return stream.refuse();
            };
            let opening = timeout(OPENING, stream.recv.read_message::<Opening>(MAX_OPENING)).await;
            let Ok(Ok(Opening { protocol })) = opening else { return stream.refuse() };
            let name = protocol.parse::<ProtocolName>().ok();
            let handler = name.and_then(|name| table.lock().served.get(&name).cloned());
            match handler {
                Some(handler) => handler.handle(peer, stream).await,
                None => stream.refuse(),
            }
        })
    }
}

impl fmt::Debug for CustomProtocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().served.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Arc<dyn Handler> {
        Arc::new(|_: Peer, stream: Stream| -> BoxFuture<'static, ()> {
            Box::pin(async move { drop(stream) })
        })
    }

    #[test]
    fn the_table_is_limited_and_a_name_is_free_again() {
        let table = Arc::new(CustomProtocols::default());
        let serve = |n: usize| {
            let name: ProtocolName = format!("p/{n}").parse().unwrap();
            table.add(&name, nobody()).map(|()| ServedProtocol { name, table: table.clone() })
        };
        let mut served: Vec<_> = (0..PROTOCOLS).map(|n| serve(n).unwrap()).collect();
        assert_eq!(serve(0).unwrap_err(), ProtocolError::Served("p/0".parse().unwrap()));
        assert_eq!(serve(PROTOCOLS).unwrap_err(), ProtocolError::TooMany);
        served.truncate(PROTOCOLS - 1);
        served.push(serve(PROTOCOLS).unwrap());
        drop(served);
        assert!(table.lock().served.is_empty());
    }

    #[test]
    fn a_peer_has_so_many_streams_and_others_have_theirs() {
        let table = Arc::new(CustomProtocols::default());
        let (one, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let places: Vec<_> = std::iter::from_fn(|| Place::take(&table, one)).take(10_000).collect();
        assert_eq!(places.len(), STREAMS_OF_A_PEER);
        assert!(Place::take(&table, other).is_some());
        drop(places);
        assert!(Place::take(&table, one).is_some());
        assert!(table.lock().open.is_empty(), "nothing is kept of who is gone");
    }
}
