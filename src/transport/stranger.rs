//! The joiner's side of a connection to someone who does not know it yet.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::{
    close::{CloseCode, Closed},
    contact::Contact,
    link::{DialError, Greeting, VERSION},
    mesh::Inner,
    stream::{Stream, StreamError},
};
use crate::{
    identity::PeerClass,
    protocol::{StreamKind, frame::StreamHeader},
    types::NodeId,
};

/// How long the view may take to hold what the door has answered.
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection without hello. Dropped, it closes.
pub struct StrangerLink {
    inner: Arc<Inner>,
    pub(super) contact: Option<Arc<Contact>>,
    node: NodeId,
    /// Keeps this node's own dialer from making a second connection to the door meanwhile.
    greeting: Option<Greeting>,
}

impl std::fmt::Debug for StrangerLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StrangerLink({})", self.node)
    }
}

impl StrangerLink {
    pub(super) fn new(inner: Arc<Inner>, contact: Arc<Contact>) -> Self {
        let (node, greeting) = (contact.node(), inner.start_greeting(contact.node()));
        Self { node, inner, contact: Some(contact), greeting }
    }

    /// Who answers: the hash of the key it holds.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the current view makes of it: a stranger, as long as this node has no cluster.
    pub fn class(&self) -> PeerClass {
        match &self.contact {
            Some(contact) => contact.live_class(&self.inner.view(), (self.inner.clock)()),
            None => PeerClass::Stranger(self.node),
        }
    }

    /// Its address.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.contact.as_ref().map(|contact| contact.remote())
    }

    /// Its certificate and the root that signed it, for comparison with a token's fingerprint.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.contact.as_ref().map_or(&[], |contact| &contact.chain)
    }

    /// 32 bytes that only the two ends of this connection can know. `None` if it is gone.
    pub fn exporter(&self) -> Option<[u8; 32]> {
        self.contact.as_ref()?.exporter()
    }

    /// Opens the `Join` stream: the one stream the other end takes, once.
    pub async fn open_join(&self) -> Result<Stream, StreamError> {
        let contact = self.contact.as_ref().ok_or(StreamError::Closed(Closed::ByUs))?;
        let ends = contact.conn.open_bi().await.map_err(Closed::from)?;
        let mut stream = contact.stream(ends);
        self.inner.traffic.note_opened(StreamKind::Join);
        stream.send.set_lane(StreamKind::Join.lane());
        stream.send.write_header(StreamHeader { kind: StreamKind::Join, version: VERSION }).await?;
        Ok(stream)
    }

    /// To be called after the door has answered `Admitted`, the identity has its certificate and
    /// the view lists the door and its roots: says hello, and this connection is the link. All
    /// handles of the join stream should be dropped before.
    pub async fn admitted(mut self) -> Result<NodeId, DialError> {
        let Some(contact) = self.contact.take() else { return Err(Closed::ByUs.into()) };
        let mut view = self.inner.view.clone();
        let listed = view.wait_for(|view| contact.class(view, (self.inner.clock)()).is_member());
        if !matches!(timeout(VIEW_TIMEOUT, listed).await, Ok(Ok(_))) {
            let class = contact.class(&self.inner.view(), (self.inner.clock)());
            contact.close(CloseCode::NotYetKnown);
            return Err(DialError::NotMember(class));
        }
        let greeting = self.greeting.take().or_else(|| self.inner.start_greeting(self.node));
        match self.inner.say_hello_as(greeting, contact).await {
            Ok(link) => {
                // Without driver there is nobody to serve the link, and the process is ending.
                self.inner.adopt.send(link).map_err(|_| Closed::ByUs)?;
                Ok(self.node)
            }
            // The dialer, here or there, was faster on a connection of its own: as good.
            Err(DialError::AlreadyLinked(node)) => Ok(node),
            Err(DialError::Closed(Closed::ByPeer(CloseCode::Duplicate))) => Ok(self.node),
            Err(error) => Err(error),
        }
    }

    /// Ends the connection.
    pub fn close(self) {}
}

impl Drop for StrangerLink {
    fn drop(&mut self) {
        if let Some(contact) = &self.contact {
            contact.close(CloseCode::Done);
        }
    }
}
