//! Which handler serves which kind of stream, and what a handler knows of the peer.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::{contact::Contact, stream::Stream};
use crate::{
    identity::{PeerCertificate, PeerClass},
    protocol::StreamKind,
    types::{BootId, ClusterView, NodeId},
};

/// Serves the streams of one kind.
pub trait Handler: Send + Sync {
    /// Serves one stream to its end. Runs as a task of its own; when the connection ends the stream
    /// fails, and 30 s later the task is dropped if it still runs.
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()>;
}

impl<F> Handler for F
where
    F: Fn(Peer, Stream) -> BoxFuture<'static, ()> + Send + Sync,
{
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        self(peer, stream)
    }
}

/// The table of handlers.
#[derive(Clone, Default)]
pub struct Router {
    handlers: BTreeMap<StreamKind, Arc<dyn Handler>>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl Router {
    /// A router that serves nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves streams of `kind` with `handler`. [`StreamKind::Hello`] is the transport's own.
    #[must_use]
    pub fn on(mut self, kind: StreamKind, handler: Arc<dyn Handler>) -> Self {
        self.handlers.insert(kind, handler);
        self
    }

    pub(super) fn get(&self, kind: StreamKind) -> Option<&Arc<dyn Handler>> {
        self.handlers.get(&kind)
    }
}

/// Whether a member may open streams of that kind. A gateway has no part in agreement and holds no
/// data: raft, the log, seals, read confirmations, snapshots and what an embedder does between nodes
/// are not its business, whoever has its key. It can never become a voter, so no view, however old, is wrong about it.
pub(super) fn may_open(view: &ClusterView, member: NodeId, kind: StreamKind) -> bool {
    let gateway = view.is_gateway(member);
    match kind {
        StreamKind::Raft
        | StreamKind::Append
        | StreamKind::Snapshot
        | StreamKind::Seal
        | StreamKind::Read
        | StreamKind::Custom => !gateway,
        StreamKind::Hello
        | StreamKind::Forward
        | StreamKind::Join
        | StreamKind::View
        | StreamKind::Status
        | StreamKind::Control
        | StreamKind::Http => true,
    }
}

/// A key that the view does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node {0} is not in the current membership")]
pub struct PromoteError(
    /// Whose key it is.
    pub NodeId,
);

/// The other end of an accepted stream, as it was when the stream was opened.
#[derive(Clone)]
pub struct Peer {
    class: PeerClass,
    boot: Option<BootId>,
    contact: Arc<Contact>,
    view: watch::Receiver<Arc<ClusterView>>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({:?} at {})", self.class, self.remote())
    }
}

impl Peer {
    pub(super) fn new(
        class: PeerClass,
        boot: Option<BootId>,
        contact: Arc<Contact>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) -> Self {
        Self { class, boot, contact, view }
    }

    /// Who it is: the hash of the key it holds.
    pub fn node(&self) -> NodeId {
        self.class.node()
    }

    /// What it is. Anything but a member only ever reaches the `Join` handler.
    pub fn class(&self) -> PeerClass {
        self.class
    }

    /// Its process run; unknown before the hello, so to a `Join` handler.
    pub fn boot(&self) -> Option<BootId> {
        self.boot
    }

    /// Where its packets come from.
    pub fn remote(&self) -> SocketAddr {
        self.contact.remote()
    }

    /// True when `view` has it as voter.
    pub fn is_voter(&self, view: &ClusterView) -> bool {
        view.is_voter(self.node())
    }

    /// SubjectPublicKeyInfo (DER) of its key.
    pub fn spki(&self) -> &[u8] {
        &self.contact.certificate.spki
    }

    /// Its certificate.
    pub fn certificate(&self) -> &PeerCertificate {
        &self.contact.certificate
    }

    /// Its certificate and what it sent along.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.contact.chain
    }

    /// 32 bytes that only the two ends of this connection can know, for join proofs. `None` if the
    /// connection is gone.
    pub fn exporter(&self) -> Option<[u8; 32]> {
        self.contact.exporter()
    }

    /// To be called by the `Join` handler once the current view lists the peer, **before** it
    /// answers `Admitted`: the peer may then say hello on this connection, which becomes the link.
    pub fn promote(&self) -> Result<(), PromoteError> {
        if self.contact.promote(&self.view.borrow()) { Ok(()) } else { Err(PromoteError(self.node())) }
    }
}
