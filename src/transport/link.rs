//! A link: a connection past its hello. And the hello itself, both ends of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    close::{CloseCode, Closed},
    contact::Contact,
    endpoint::widen,
    mesh::Inner,
    pool::{Key, Offer},
    stream::{SendStream, Stream, StreamError},
    traffic::LaneBytes,
};
use crate::{
    identity::{PeerClass, SERVER_NAME},
    protocol::{
        Lane, StreamKind,
        frame::{MAX_MESSAGE, StreamHeader},
        hello::Hello,
    },
    types::{Addresses, BootId, NodeId},
};

/// Version of the messages on every kind of stream.
pub(super) const VERSION: u8 = 1;
/// For a handshake with one address: the next address or attempt is better than waiting longer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a hello that are remembered.
const MAX_ADDRESSES: usize = 16;

/// Why there is no link to a peer (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The address cannot be dialled at all.
    #[error("cannot dial {address}: {reason}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// No answer in time. Trying again may help.
    #[error("{0} does not answer")]
    TimedOut(SocketAddr),
    /// The connection was made and ended again.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Who answers is no member of this cluster, as far as this node knows.
    #[error("{0:?} is not a member of this cluster")]
    NotMember(PeerClass),
    /// Another node than expected answers there.
    #[error("node {0} answers at that address")]
    OtherNode(NodeId),
    /// There is a link to this node, or one is being made.
    #[error("already linked with {0}")]
    AlreadyLinked(NodeId),
    /// The peer did not say hello as it should.
    #[error("bad hello: {0}")]
    Hello(String),
}

/// A connection past its hello.
pub(super) struct Link {
    pub(super) contact: Arc<Contact>,
    pub(super) hello: Hello,
    pub(super) number: u64,
    pub(super) since: Instant,
    /// Another connection is the link now: end when the streams have.
    pub(super) drain: Notify,
}

/// A live link, for status and for dialling again.
#[derive(Clone)]
pub struct LinkInfo {
    /// The peer's process run.
    pub boot: BootId,
    /// Where its packets come from.
    pub remote: SocketAddr,
    /// Where it says it can be reached.
    pub addresses: Addresses,
    /// Its software version.
    pub version: String,
    /// Its feature bits.
    pub features: u64,
    /// When the link came up.
    pub since: Instant,
    contact: Arc<Contact>,
}

impl LinkInfo {
    /// Where its packets come from, and where it says it can be reached.
    pub fn reached_at(&self) -> Vec<SocketAddr> {
        let mut addresses = vec![self.remote];
        addresses.extend(self.addresses.mesh.iter().filter(|address| **address != self.remote));
        addresses
    }

    /// Bytes of frames written on it since it came up.
    pub fn sent(&self) -> &LaneBytes {
        let [of_link, _of_mesh] = &self.contact.sent;
        of_link
    }

    /// Smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.contact.conn.rtt()
    }
}

impl fmt::Debug for LinkInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkInfo({} at {}, boot {})", self.contact.node(), self.remote, self.boot)
    }
}

impl Inner {
    /// A connection to whoever answers at `address`.
    pub(super) async fn dial(&self, address: SocketAddr) -> Result<Arc<Contact>, DialError> {
        // One that is renewed meanwhile makes this look older than it is, which costs a connection.
        let shown = self.identity.certificate();
        let connecting = self.endpoint.connect_with(self.client.clone(), address, SERVER_NAME);
        let connecting = connecting.map_err(|e| DialError::Address { address, reason: e.to_string() })?;
        match timeout(DIAL_TIMEOUT, connecting).await {
            Ok(Ok(conn)) => Contact::new(conn, shown, &self.traffic.sent)
                .map(Arc::new)
                .ok_or_else(|| DialError::Hello("no certificate".to_owned())),
            Ok(Err(error)) => Err(Closed::from(error).into()),
            Err(_) => Err(DialError::TimedOut(address)),
        }
    }

    /// The dialer's hello on a connection to a member; on success the connection is the link.
    pub(super) async fn say_hello(self: &Arc<Self>, contact: Arc<Contact>) -> Result<Arc<Link>, DialError> {
        let greeting = self.start_greeting(contact.node());
        self.say_hello_as(greeting, contact).await
    }

    /// As [`Inner::say_hello`], with the right to do so taken earlier.
    pub(super) async fn say_hello_as(
        &self,
        greeting: Option<Greeting>,
        contact: Arc<Contact>,
    ) -> Result<Arc<Link>, DialError> {
        let peer = contact.node();
        let class = contact.live_class(&self.view(), (self.clock)());
        if !class.is_member() {
            self.note_lapse_by(&contact);
            contact.turn_away(class, &self.view());
            return Err(DialError::NotMember(class));
        }
        let Some(_greeting) = greeting.filter(|_| peer != self.identity.node()) else {
            contact.close(CloseCode::Duplicate);
            return Err(DialError::AlreadyLinked(peer));
        };
        let reply = match timeout(HELLO_TIMEOUT, self.exchange_hello(&contact, false)).await {
            Ok(Ok(reply)) => reply,
            failed => {
                // The reason of the close says more than what the stream saw of it.
                // Looked at before this end closes, too: then that would be the reason.
                if let Some(closed) = contact.conn.close_reason().map(Closed::from) {
                    self.note_closed(&contact, &closed);
                    return Err(closed.into());
                }
                contact.close(CloseCode::Protocol);
                let reason = failed.map_or("no answer".to_owned(), |r| {
                    r.err().map_or_else(String::new, |error| error.to_string())
                });
                return Err(DialError::Hello(reason));
            }
        };
        let own = self.identity.node();
        self.register(contact, reply, own, false, None).map_err(|code| match code {
            CloseCode::Duplicate => DialError::AlreadyLinked(peer),
            code => DialError::Hello(code.to_string()),
        })
    }

    /// `None` while there is a link to `peer`, or another outgoing connection has the right.
    pub(super) fn start_greeting(self: &Arc<Self>, peer: NodeId) -> Option<Greeting> {
        let started = self.pool().start_hello(peer);
        started.then(|| Greeting { inner: self.clone(), peer })
    }

    pub(super) async fn exchange_hello(&self, contact: &Contact, renews: bool) -> Result<Hello, StreamError> {
        let ends = contact.conn.open_bi().await.map_err(Closed::from)?;
        let mut stream = contact.stream(ends);
        self.traffic.note_opened(StreamKind::Hello);
        stream.send.set_lane(Lane::Consensus);
        stream.send.write_header(StreamHeader { kind: StreamKind::Hello, version: VERSION }).await?;
        stream.exchange(&Hello { renews, ..self.hello() }, MAX_MESSAGE).await
    }

    /// The acceptor's side of the hello; closes the connection on failure.
    pub(super) async fn answer_hello(&self, contact: Arc<Contact>, stream: Stream) -> io::Result<Arc<Link>> {
        let refuse = |code: CloseCode| {
            contact.close(code);
            io::Error::other(code.to_string())
        };
        let mut stream = stream;
        let theirs: Hello = match timeout(HELLO_TIMEOUT, stream.recv.read_message(MAX_MESSAGE)).await {
            Ok(Ok(hello)) => hello,
            _ => return Err(refuse(CloseCode::Protocol)),
        };
        // Whoever is of another world must hear of this one, or it would never give way: it is told,
        // and closes when it has read it. If it does not, it asks again.
        let known = theirs.node == contact.node() && theirs.cluster == self.view().cluster;
        if known && !self.same_world(&theirs) {
            let told = async {
                if stream.send.write_message(&self.hello()).await.is_ok() && stream.send.finish().is_ok() {
                    contact.conn.closed().await;
                }
            };
            let _ = timeout(HELLO_TIMEOUT, told).await;
            return Err(refuse(CloseCode::OtherGeneration));
        }
        let renews = theirs.renews;
        let answer = Some(&mut stream.send);
        self.register(contact.clone(), theirs, contact.node(), renews, answer)
            .map_err(|code| io::Error::other(code.to_string()))
    }

    fn hello(&self) -> Hello {
        Hello {
            node: self.identity.node(),
            boot: self.boot,
            cluster: self.view().cluster,
            addresses: self.addresses.borrow().clone(),
            version: self.version.clone(),
            features: self.features,
            recovery: self.view().recovery.clone(),
            renews: false,
        }
    }

    /// Judges a hello and lets the pool decide; the connection is closed unless it is the link. The acceptor
    /// gives the stream to `answer` on.
    pub(super) fn register(
        &self,
        contact: Arc<Contact>,
        hello: Hello,
        dialer: NodeId,
        renews: bool,
        answer: Option<&mut SendStream>,
    ) -> Result<Arc<Link>, CloseCode> {
        let peer = contact.node();
        let refuse = |code: CloseCode| {
            contact.close(code);
            Err(code)
        };
        if hello.node != peer {
            warn!(peer = %peer, claimed = %hello.node, "hello names another node than the certificate");
            return refuse(CloseCode::Protocol);
        }
        if hello.cluster != self.view().cluster {
            return refuse(CloseCode::WrongCluster);
        }
        if !self.same_world(&hello) {
            return refuse(CloseCode::OtherGeneration);
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let mut hello = hello;
        hello.addresses.mesh.truncate(MAX_ADDRESSES);
        let key = Key { number, boot: hello.boot, dialer, remote: contact.remote(), renews };
        widen(&contact.conn);
        let now = Instant::now();
        let link =
            Arc::new(Link { contact: contact.clone(), hello, number, since: now, drain: Notify::new() });
        let own = self.hello();
        let (offer, answered) = {
            let mut pool = self.pool();
            let offer = pool.offer(peer, key, link.clone(), now);
            // The link is in the pool before the dialer can know that it is: the dialer then never holds a link
            // that its peer has not. And nobody opens a stream on it before the answer is written: until the
            // dialer has read it, it gives a connection little room, which what goes first could take.
            let is_link = matches!(offer, Offer::Up | Offer::UpDrain(_) | Offer::UpReplace(_));
            let answered = !is_link || answer.is_none_or(|stream| answer_at_once(stream, &own).is_ok());
            (offer, answered)
        };
        match offer {
            Offer::Up => {}
            Offer::UpDrain(loser) => loser.drain.notify_one(),
            Offer::UpReplace(old) => old.contact.close(CloseCode::Replaced),
            Offer::Duplicate => return refuse(CloseCode::Duplicate),
            Offer::StillCloned => return refuse(CloseCode::Cloned),
            Offer::Cloned(old, [one, other]) => {
                error!(
                    peer = %peer, %one, %other,
                    "two processes use one identity, both are refused: \
                     was a data directory or a machine image copied? Stop one of them and empty its data directory"
                );
                if let Some(old) = old {
                    old.contact.close(CloseCode::Cloned);
                }
                self.publish();
                return refuse(CloseCode::Cloned);
            }
        }
        if !answered {
            self.unregister(&link);
            return refuse(CloseCode::Protocol);
        }
        self.doubted.send_if_modified(|doubted| doubted.remove(&peer));
        info!(peer = %peer, remote = %key.remote, boot = %key.boot, dialed = dialer != peer, "link up");
        self.publish();
        Ok(link)
    }

    /// Takes a connection that ended out of the pool.
    pub(super) fn unregister(&self, link: &Link) -> bool {
        let was = self.pool().remove(link.contact.node(), link.number);
        if was {
            self.publish();
        }
        was
    }

    /// Tells everyone what the links are now.
    fn publish(&self) {
        let info = |link: &Arc<Link>| LinkInfo {
            boot: link.hello.boot,
            remote: link.contact.remote(),
            addresses: link.hello.addresses.clone(),
            version: link.hello.version.clone(),
            features: link.hello.features,
            since: link.since,
            contact: link.contact.clone(),
        };
        // The value is made under the watch's own lock, so that the newest state is sent last.
        self.links.send_modify(|links| {
            let now: BTreeMap<_, _> = self.pool().iter().map(|(peer, link)| (peer, info(link))).collect();
            *links = Arc::new(now);
        });
    }

    /// Notes a member whose certificate is not taken for what this node may be wrong about: its roots,
    /// or its clock.
    pub(super) fn note_lapse_by(&self, contact: &Contact) {
        let (view, now, peer) = (self.view(), (self.clock)(), contact.node());
        if contact.is_of_unknown_root(&view, now) {
            debug!(%peer, "shows a certificate of an unknown root");
            self.lapses.send_modify(|lapses| *lapses += 1);
        }
        let news = |doubted: &mut BTreeSet<NodeId>| doubted.insert(peer);
        if let Some(why) = contact.is_untimely(&view, now)
            && self.doubted.send_if_modified(news)
        {
            warn!(
                %peer,
                "by this node's clock the certificate of {peer} {why}: set the clock (NTP), here or there, or it \
                 renews soon"
            );
        }
    }

    /// Looks at why a connection ended, for what this node must know.
    pub(super) fn note_closed(&self, contact: &Contact, closed: &Closed) {
        let peer = contact.node();
        match closed {
            // Believed only from a member: anyone can close a connection with any code.
            Closed::ByPeer(CloseCode::Removed)
                if contact.live_class(&self.view(), (self.clock)()).is_member()
                    && self.removal_counts(contact) =>
            {
                warn!(peer = %peer, "a member says that this node was removed from the cluster");
                self.removed.send_replace(Some(peer));
            }
            Closed::ByPeer(CloseCode::Cloned) => {
                error!(peer = %peer, "refused: another process uses this node's identity");
            }
            Closed::ByPeer(CloseCode::Lapsed) => {
                warn!(
                    peer = %peer,
                    "refused: to that node this one's certificate has expired, is not valid yet or is of a retired root"
                );
                // Anyone can close a connection with any code; a member's key was proven.
                if self.view().members.contains_key(&peer) {
                    self.lapses.send_modify(|lapses| *lapses += 1);
                }
            }
            closed => debug!(peer = %peer, %closed, "connection ended"),
        }
    }
}

/// The right to say hello to a peer: one outgoing connection at a time, until dropped.
pub(super) struct Greeting {
    inner: Arc<Inner>,
    peer: NodeId,
}

impl Greeting {
    /// Of a hello that the pool has allowed.
    pub(super) fn new(inner: Arc<Inner>, peer: NodeId) -> Self {
        Self { inner, peer }
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.inner.pool().end_hello(self.peer);
    }
}

/// Writes a hello without waiting: on a connection that carried nothing yet there is room for it.
fn answer_at_once(stream: &mut SendStream, hello: &Hello) -> Result<(), StreamError> {
    stream.write_message(hello).now_or_never().unwrap_or(Err(StreamError::Abandoned))?;
    stream.finish()
}
