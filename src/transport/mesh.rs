//! The handle of the mesh: open a stream to a peer, ask it something, see who is linked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    close::{CloseCode, Closed},
    driver::MeshDriver,
    endpoint::{self, Clock, MeshError, Socket},
    generation::Foreign,
    handshakes::Handshakes,
    link::{DialError, Link, LinkInfo, VERSION},
    pool::Pool,
    router::Router,
    stranger::StrangerLink,
    stream::{Stream, StreamError},
    traffic::MeshTraffic,
};
use crate::{
    identity::Identity,
    protocol::{
        Lane, StreamKind,
        frame::{MAX_CHUNK, MAX_MESSAGE, MAX_RAFT, MAX_RECORDS, StreamHeader},
    },
    types::{Addresses, BootId, ClusterView, NodeId, Recovery, Timing},
};

/// Candidate addresses kept, and dialled in turn, at once.
pub const MAX_CANDIDATES: usize = 64;

/// What a mesh endpoint is made of.
#[derive(Clone)]
pub struct MeshConfig {
    /// Where to send and receive.
    pub socket: Socket,
    /// Idle timeout and keep-alive.
    pub timing: Timing,
    /// What the hello announces; the newest value counts at each hello.
    pub addresses: watch::Receiver<Addresses>,
    /// Software version, for the hello.
    pub version: String,
    /// Feature bits, for the hello.
    pub features: u64,
    /// This process run; also the seed of the dialer's jitter.
    pub boot: BootId,
    /// Seconds since 1970, to judge certificates by.
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshConfig").field("socket", &self.socket).field("boot", &self.boot).finish()
    }
}

/// A stream that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No link: the peer is down, unreachable or no member. The dialer keeps trying by itself.
    #[error("no link to node {0}")]
    NotLinked(NodeId),
    /// The link ended just now.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A request without answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No link: nothing was sent.
    #[error("no link to node {0}")]
    NotLinked(NodeId),
    /// No answer in time: the peer may or may not have acted.
    #[error("node {0} did not answer in time")]
    TimedOut(NodeId),
    /// The stream failed: the peer may or may not have acted.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// One node's end of the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Mesh {
    pub(super) inner: Arc<Inner>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mesh({})", self.inner.identity.node())
    }
}

/// What handle, driver and connections share.
pub(super) struct Inner {
    pub(super) endpoint: quinn::Endpoint,
    pub(super) client: quinn::ClientConfig,
    pub(super) identity: Arc<Identity>,
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    pub(super) router: Router,
    pub(super) addresses: watch::Receiver<Addresses>,
    pub(super) version: String,
    pub(super) features: u64,
    pub(super) boot: BootId,
    pub(super) clock: Clock,
    pub(super) links: watch::Sender<Arc<BTreeMap<NodeId, LinkInfo>>>,
    pub(super) removed: watch::Sender<Option<NodeId>>,
    pub(super) foreign: watch::Sender<Foreign>,
    pub(super) superseded: watch::Sender<Option<Recovery>>,
    pub(super) candidates: watch::Sender<Vec<SocketAddr>>,
    pub(super) lapses: watch::Sender<u64>,
    /// Members whose certificates are not good by this node's clock.
    pub(super) doubted: watch::Sender<BTreeSet<NodeId>>,
    /// Links made outside the driver, for it to serve.
    pub(super) adopt: mpsc::UnboundedSender<Arc<Link>>,
    pub(super) next_number: AtomicU64,
    /// Incoming ones that run.
    pub(super) handshakes: Handshakes,
    pub(super) traffic: Arc<MeshTraffic>,
    pool: Mutex<Pool<Arc<Link>>>,
}

impl Inner {
    pub(super) fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    pub(super) fn pool(&self) -> MutexGuard<'_, Pool<Arc<Link>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mesh {
    /// Opens the endpoint. Nothing is accepted or dialled until [`MeshDriver::run`] is polled. Must
    /// be called within a tokio runtime.
    pub fn bind(
        config: MeshConfig,
        identity: Arc<Identity>,
        view: watch::Receiver<Arc<ClusterView>>,
        router: Router,
    ) -> Result<(Self, MeshDriver), MeshError> {
        let (endpoint, client) = endpoint::open(config.socket, &identity, config.timing, &config.clock)?;
        let (adopt, adopted) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            endpoint,
            client,
            identity,
            view,
            router,
            addresses: config.addresses,
            version: config.version,
            features: config.features,
            boot: config.boot,
            clock: config.clock,
            links: watch::Sender::default(),
            removed: watch::Sender::default(),
            foreign: watch::Sender::default(),
            superseded: watch::Sender::default(),
            candidates: watch::Sender::default(),
            lapses: watch::Sender::default(),
            doubted: watch::Sender::default(),
            adopt,
            next_number: AtomicU64::new(1),
            handshakes: Handshakes::default(),
            traffic: Arc::default(),
            pool: Mutex::default(),
        });
        Ok((Self { inner: inner.clone() }, MeshDriver::new(inner, adopted)))
    }

    /// What went over it since it was bound.
    pub fn traffic(&self) -> &Arc<MeshTraffic> {
        &self.inner.traffic
    }

    /// The UDP address the endpoint listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Opens a stream on the link to `peer` and writes its header. Does not dial: without a link
    /// it fails at once. Waits while the peer has no room for another stream.
    pub async fn open(&self, peer: NodeId, kind: StreamKind, lane: Lane) -> Result<Stream, OpenError> {
        let link = self.inner.pool().get(peer).cloned().ok_or(OpenError::NotLinked(peer))?;
        let contact = &link.contact;
        if !contact.live_class(&self.inner.view(), (self.inner.clock)()).is_member() {
            return Err(OpenError::NotLinked(peer));
        }
        let ends = contact.conn.open_bi().await.map_err(|e| StreamError::from(Closed::from(e)))?;
        let mut stream = contact.stream(ends);
        self.inner.traffic.note_opened(kind);
        stream.send.set_lane(lane);
        stream.send.write_header(StreamHeader { kind, version: VERSION }).await?;
        Ok(stream)
    }

    /// Sends one message on a stream of its own and waits for one message back. Cancel-safe in
    /// that the stream is abandoned; the peer may have acted all the same.
    pub async fn request<Q, A>(
        &self,
        peer: NodeId,
        kind: StreamKind,
        message: &Q,
        within: Duration,
    ) -> Result<A, CallError>
    where
        Q: Serialize,
        A: DeserializeOwned,
    {
        let call = async {
            let mut stream = self.open(peer, kind, kind.lane()).await.map_err(|error| match error {
                OpenError::NotLinked(peer) => CallError::NotLinked(peer),
                OpenError::Stream(error) => CallError::Stream(error),
            })?;
            Ok(stream.exchange(message, answer_limit(kind)).await?)
        };
        timeout(within, call).await.unwrap_or(Err(CallError::TimedOut(peer)))
    }

    /// The live links, by peer.
    pub fn links(&self) -> watch::Receiver<Arc<BTreeMap<NodeId, LinkInfo>>> {
        self.inner.links.subscribe()
    }

    /// Set to the member that said so when this node has been removed from the cluster.
    pub fn removed_notice(&self) -> watch::Receiver<Option<NodeId>> {
        self.inner.removed.subscribe()
    }

    /// Members that were met and are of another world: the cluster was recovered without them, or
    /// without this node.
    pub fn foreign(&self) -> watch::Receiver<Foreign> {
        self.inner.foreign.subscribe()
    }

    /// Set to the recovery, signed by the cluster's CA, that this node was left out of, once it has
    /// met a member that came through it.
    pub fn superseded(&self) -> watch::Receiver<Option<Recovery>> {
        self.inner.superseded.subscribe()
    }

    /// How often a listed member has not taken this node's certificate, or has shown one of a root that
    /// this node does not know: signs that a new certificate is needed, whatever this node's clock says.
    pub fn lapses(&self) -> watch::Receiver<u64> {
        self.inner.lapses.subscribe()
    }

    /// Addresses where members may be (seeds, mDNS): dialled while some member has no link. The
    /// first [`MAX_CANDIDATES`] count; they replace the ones given before.
    pub fn set_candidates(&self, addresses: Vec<SocketAddr>) {
        let mut seen = BTreeSet::new();
        let new = addresses.into_iter().filter(|address| seen.insert(*address));
        let addresses: Vec<SocketAddr> = new.take(MAX_CANDIDATES).collect();
        self.inner.candidates.send_if_modified(|old| {
            let changed = *old != addresses;
            *old = addresses;
            changed
        });
    }

    /// Connects to whoever answers at `address`, to ask to be let in.
    pub async fn dial_stranger(&self, address: SocketAddr) -> Result<StrangerLink, DialError> {
        Ok(StrangerLink::new(self.inner.clone(), self.inner.dial(address).await?))
    }

    /// Closes every connection and the endpoint; the driver ends. Peers see it at once, if the
    /// process lives a moment longer: await [`Mesh::closed`].
    pub fn close(&self, reason: &str) {
        self.inner.endpoint.close(CloseCode::Done.wire(), reason.as_bytes());
    }

    /// Resolves when all connections have ended after [`Mesh::close`].
    pub async fn closed(&self) {
        self.inner.endpoint.wait_idle().await;
    }
}

/// Longest answer to a request on a stream of this kind.
const fn answer_limit(kind: StreamKind) -> usize {
    match kind {
        StreamKind::Raft | StreamKind::View | StreamKind::Control | StreamKind::Seal => MAX_RAFT,
        StreamKind::Append => MAX_RECORDS,
        StreamKind::Snapshot => MAX_CHUNK,
        _ => MAX_MESSAGE,
    }
}
