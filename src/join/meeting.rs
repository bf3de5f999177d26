//! Two nodes of no cluster that wait for others meet: what each says, and what it takes for proven.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    admission::is_label,
    client::Applicant,
    pledge::{Gathering, Sighting},
    proof::{self, End},
    waiting::{JoinError, Waiting, said_by_peer},
};
use crate::{
    identity::{JoinToken, Store, token::TokenKeys},
    protocol::{
        frame::MAX_JOIN,
        join::{Carrier, JoinRequest, JoinResponse},
    },
    transport::{Handler, Peer, StrangerLink, Stream},
    types::{NodeId, TokenId},
};

/// Until another node that waits has answered.
const ANSWER: Duration = Duration::from_secs(4);
/// Nodes, and addresses of one, that a message may name.
const MAX_NAMED: usize = 16;

/// A node's side of all meetings. Serves `Join` streams as long as the node is of no cluster; clones
/// are one.
#[derive(Debug, Clone)]
pub struct Meeting {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: NodeId,
    token: TokenId,
    keys: TokenKeys,
    expect: u32,
    /// What this node says of itself.
    applicant: Applicant,
    gathering: Mutex<Gathering>,
    news: Notify,
}

impl Meeting {
    /// Of a node that waits for `expect` nodes, itself included, with this token. Takes up a pledge
    /// that it gave before.
    pub async fn open(
        store: &Store,
        me: NodeId,
        token: &JoinToken,
        expect: u32,
        applicant: Applicant,
    ) -> Result<Self, JoinError> {
        let pledge = store.pledge(token.id()).await?;
        let gathering = Mutex::new(Gathering::new(me, applicant.name.clone(), expect, pledge));
        let (token, keys) = (token.id(), token.keys()?);
        let inner = Inner { me, token, keys, expect, applicant, gathering, news: Notify::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn me(&self) -> NodeId {
        self.inner.me
    }

    pub(super) fn nodes(&self) -> u32 {
        self.inner.expect
    }

    pub(super) fn applicant(&self) -> &Applicant {
        &self.inner.applicant
    }

    pub(super) fn gathering(&self) -> MutexGuard<'_, Gathering> {
        self.inner.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when a meeting, whoever began it, has brought something new. Cancel-safe.
    pub(super) async fn news(&self) {
        self.inner.news.notified().await;
    }

    /// Meets whoever is at the other end of a connection that this node has made.
    pub(super) async fn meet(&self, link: &StrangerLink, address: SocketAddr) -> Result<(), Waiting> {
        let later = |reason: String| Waiting::Later { address, reason };
        let exporter = link.exporter().ok_or_else(|| later("the connection ended".into()))?;
        let request = JoinRequest::Meet(Box::new(self.carrier(&exporter, End::Dialer)));
        let asked = async {
            let mut stream = link.open_join().await.map_err(|error| error.to_string())?;
            stream.exchange(&request, MAX_JOIN).await.map_err(|error| error.to_string())
        };
        let answer: Result<JoinResponse, String> =
            timeout(ANSWER, asked).await.unwrap_or_else(|_| Err("no answer in time".into()));
        match answer.map_err(later)? {
            JoinResponse::Met(carrier) => {
                if !self.proves(&carrier, &exporter, End::Answerer) {
                    return Err(Waiting::Unproven { address });
                }
                self.note(link.node(), *carrier, address);
                Ok(())
            }
            JoinResponse::Retry { reason } => Err(later(said_by_peer(&reason))),
            JoinResponse::Refused(refusal) => Err(Waiting::RefusedHere { address, refusal }),
            JoinResponse::Admitted(_) => Err(later("it answers what was not asked".into())),
        }
    }

    /// Answers whoever has made a connection to this node.
    fn answer(&self, peer: &Peer, request: JoinRequest) -> JoinResponse {
        let later = |reason: String| JoinResponse::Retry { reason };
        let JoinRequest::Meet(carrier) = request else {
            let state = self.gathering().state(Instant::now());
            return later(format!("it is of no cluster yet; {state}"));
        };
        let Some(exporter) = peer.exporter() else { return later("the connection ended".into()) };
        if carrier.token != self.inner.token {
            return later("it waits for nodes with another join token".into());
        }
        if !self.proves(&carrier, &exporter, End::Dialer) {
            return later("the join token's secret is wrong; copy the whole token again".into());
        }
        self.note(peer.node(), *carrier, peer.remote());
        JoinResponse::Met(Box::new(self.carrier(&exporter, End::Answerer)))
    }

    fn proves(&self, carrier: &Carrier, exporter: &[u8; 32], speaks: End) -> bool {
        let said = proof::meeting(exporter, self.inner.token, speaks);
        carrier.token == self.inner.token
            && is_label(&carrier.name)
            && proof::verify_joiner(&self.inner.keys.public_key(), &said, &carrier.proof)
    }

    /// Notes what a node has said that has proved the secret.
    fn note(&self, node: NodeId, carrier: Carrier, at: SocketAddr) {
        let at = canonical(at);
        let mut addresses = carrier.addresses;
        addresses.retain(|address| *address != at);
        addresses.insert(0, at);
        addresses.truncate(MAX_NAMED);
        let few = |(id, mut addresses): (NodeId, Vec<SocketAddr>)| {
            addresses.truncate(MAX_NAMED);
            (id, addresses)
        };
        let sighting = Sighting {
            name: carrier.name,
            expect: carrier.expect,
            pledge: carrier.pledge,
            addresses,
            others: carrier.others.into_iter().take(MAX_NAMED).map(few).collect(),
            at: Instant::now(),
        };
        if self.gathering().note(node, sighting) {
            self.inner.news.notify_one();
        }
    }

    /// What this node says to another. The pledge in it is on disk.
    fn carrier(&self, exporter: &[u8; 32], speaks: End) -> Carrier {
        let Inner { token, keys, expect, applicant, .. } = &*self.inner;
        let gathering = self.gathering();
        let known = |(id, seen): (NodeId, &Sighting)| {
            (id, seen.addresses.iter().filter(|at| is_the_same_elsewhere(at)).copied().collect())
        };
        Carrier {
            token: *token,
            proof: proof::joiner_proof(keys, &proof::meeting(exporter, *token, speaks)),
            name: applicant.name.clone(),
            expect: *expect,
            pledge: gathering.pledge(),
            addresses: applicant.addresses.mesh.clone(),
            others: gathering.others(Instant::now()).map(known).collect(),
        }
    }
}

impl Handler for Meeting {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let this = self.clone();
        // The gate ends a stranger's stream after ten seconds.
        Box::pin(async move {
            let served = async {
                let request = stream.recv.read_message(MAX_JOIN).await?;
                stream.send.write_message(&this.answer(&peer, request)).await?;
                stream.send.finish()?;
                stream.send.delivered().await
            };
            if let Err(error) = served.await {
                tracing::debug!(peer = %peer.node(), %error, "a meeting broke off");
            }
        })
    }
}

/// An IPv4 address as such, also where it came over a socket for both.
fn canonical(at: SocketAddr) -> SocketAddr {
    match at.ip().to_canonical() {
        ip if ip == at.ip() => at,
        ip => SocketAddr::new(ip, at.port()),
    }
}

/// Link-local addresses mean something only on their link.
fn is_the_same_elsewhere(at: &SocketAddr) -> bool {
    !matches!(at, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local())
}
