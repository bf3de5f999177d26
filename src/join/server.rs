//! The door: lets strangers in by token, and gives members new certificates.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde_bytes::ByteBuf;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    admission::{self, Presented},
    proof,
    signer::Signer,
};
use crate::{
    identity::Issued,
    protocol::{
        StreamKind, frame,
        join::{AdmitRequest, Admitted, JoinRequest, JoinResponse, Refusal, RelayedJoin},
    },
    raft::{Command, Control, MeshSlot, Outcome, State},
    transport::{Handler, Peer, Stream, StreamError},
    types::ClusterView,
};

/// From the first byte of a request to its answer: the transport ends strangers after ten seconds.
const ANSWER: Duration = Duration::from_secs(8);
/// Until the cluster has agreed, and until this node has applied it.
const AGREE: Duration = Duration::from_secs(3);
/// Until the transport's view has what this node has applied.
const GATE: Duration = Duration::from_millis(500);
/// For the joiner to take the answer.
const DELIVER: Duration = Duration::from_millis(1_000);
/// Requests that are worked on at a time; others queue.
const AT_A_TIME: usize = 4;

/// Answers `Join` streams: a stranger's, a lapsed member's, a member's. Clones are one door.
#[derive(Clone)]
pub struct Door {
    inner: Arc<Inner>,
}

struct Inner {
    signer: Signer,
    control: Control,
    mesh: MeshSlot,
    queue: Semaphore,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("signer", &self.inner.signer).finish_non_exhaustive()
    }
}

/// A request with what is known of the connection it came on.
struct Knock {
    request: JoinRequest,
    exporter: [u8; 32],
    spki: Vec<u8>,
    /// It came through another member, and is not passed on again.
    relayed: bool,
}

impl Door {
    /// A door of this node. The mesh may be put into its slot later; until then nothing is passed
    /// on to the leader.
    pub fn new(signer: Signer, control: Control, mesh: MeshSlot) -> Self {
        Self { inner: Arc::new(Inner { signer, control, mesh, queue: Semaphore::new(AT_A_TIME) }) }
    }

    async fn serve(self, peer: Peer, mut stream: Stream) {
        let answered = timeout(ANSWER, async {
            let request = stream.recv.read_message(frame::MAX_JOIN).await?;
            Ok::<_, StreamError>(match knock(&peer, request) {
                Ok(knock) => self.inner.answer(&knock).await,
                Err(refusal) => JoinResponse::Refused(refusal),
            })
        });
        let answer = match answered.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return tracing::debug!(peer = %peer.node(), %error, "no join request"),
            Err(_) => later("the cluster did not agree in time"),
        };
        match &answer {
            JoinResponse::Admitted(admitted) => {
                tracing::info!(node = %admitted.node, by = %peer.node(), "signed in");
            }
            // Said only by nodes of no cluster.
            JoinResponse::Met(_) => {}
            JoinResponse::Retry { reason } => tracing::info!(peer = %peer.node(), reason, "join postponed"),
            JoinResponse::Refused(refusal) => {
                tracing::warn!(peer = %peer.node(), reason = refusal.explain(), "join refused");
            }
        }
        let answer = open_gate(&peer, answer).await;
        let sent = async {
            stream.send.write_message(&answer).await?;
            stream.send.finish()?;
            stream.send.delivered().await
        };
        if let Ok(Err(error)) = timeout(DELIVER, sent).await {
            tracing::debug!(peer = %peer.node(), %error, "the answer to a join request was lost");
        }
    }
}

impl Handler for Door {
    fn handle(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        Box::pin(self.clone().serve(peer, stream))
    }
}

/// Lets the joiner through the gate before the answer is on its way: it may use the link as soon as
/// it has read it. The transport's view is a moment behind the one the door has looked at.
async fn open_gate(peer: &Peer, answer: JoinResponse) -> JoinResponse {
    if !matches!(&answer, JoinResponse::Admitted(admitted) if admitted.node == peer.node()) {
        return answer;
    }
    let opened = timeout(GATE, async {
        while peer.promote().is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    match opened.await {
        Ok(()) => answer,
        Err(_) => later("admitted, but the node asked does not know it yet"),
    }
}

/// What a request is, by who brings it.
fn knock(peer: &Peer, request: JoinRequest) -> Result<Knock, Refusal> {
    if let JoinRequest::Relayed(relayed) = request {
        let RelayedJoin { request, exporter, spki } = *relayed;
        let nested = matches!(request, JoinRequest::Relayed(_));
        return match <[u8; 32]>::try_from(exporter) {
            Ok(exporter) if peer.class().is_member() && !nested => {
                Ok(Knock { request, exporter, spki, relayed: true })
            }
            _ => Err(Refusal::Malformed),
        };
    }
    let exporter = peer.exporter().ok_or(Refusal::Malformed)?;
    Ok(Knock { request, exporter, spki: peer.spki().to_vec(), relayed: false })
}

impl Inner {
    async fn answer(&self, knock: &Knock) -> JoinResponse {
        let Ok(Ok(_turn)) = timeout(AGREE, self.queue.acquire()).await else {
            return later("many nodes are joining at once");
        };
        let mut decided = self.decide(knock).await;
        let doubtful = matches!(&decided, Err(Undecided::Answer(answer)) if !is_last_word(answer));
        if doubtful && self.control.confirm_state(AGREE).await {
            // By a state as new as the question this time: nobody knows better.
            decided = self.decide(knock).await.map_err(Undecided::decided);
        }
        match decided {
            Ok(admitted) => self.once_seen(Box::new(admitted)).await,
            Err(Undecided::Final(answer)) => answer,
            Err(Undecided::Answer(answer)) if is_last_word(&answer) => answer,
            Err(Undecided::Answer(_) | Undecided::NoKey) if !knock.relayed => self.relay(knock).await,
            Err(Undecided::NoKey) => later("the node asked holds no CA key (yet)"),
            Err(Undecided::Answer(JoinResponse::Refused(_))) => {
                later("the cluster has no leader at the moment")
            }
            Err(Undecided::Answer(answer)) => answer,
        }
    }

    /// What this node says by its own state.
    async fn decide(&self, knock: &Knock) -> Result<Admitted, Undecided> {
        match &knock.request {
            JoinRequest::Admit(request) => self.admit(request, knock).await,
            JoinRequest::Renew { csr } => self.renew(csr, knock).await,
            JoinRequest::Relayed(_) => Err(Undecided::Answer(JoinResponse::Refused(Refusal::Malformed))),
            // It shook hands with a node of no cluster, which has become a member meanwhile.
            JoinRequest::Meet(_) => Err(Undecided::Final(later("it is a member by now: ask to be let in"))),
        }
    }

    async fn admit(&self, request: &AdmitRequest, knock: &Knock) -> Result<Admitted, Undecided> {
        let state = self.control.state();
        let at_ms = (self.signer.clock)();
        let presented = Presented { exporter: &knock.exporter, spki: &knock.spki };
        let mut member = admission::admission(&state, request, presented, at_ms)?;
        let issued = self.issue(&state, &request.csr, &knock.spki)?;
        let certificate = (issued.serial.clone(), issued.not_after);
        (member.serial, member.not_after) = certificate.clone();
        let now = Command::Update {
            node: member.id,
            addresses: member.addresses.clone(),
            certificate: Some(certificate),
            version: member.version.clone(),
            features: member.features,
        };
        let mac_key = state.tokens.get(&request.token).and_then(|record| record.mac_key.clone());
        // Signed, but handed out only once the cluster has agreed.
        self.agree(Command::Admit { member, token: request.token, at_ms }).await?;
        if state.members.contains_key(&issued.node) {
            // It was in already and its answer got lost: admitting again has changed nothing.
            self.agree(now).await?;
        }
        let mut admitted = admitted(&self.control.state(), issued);
        if let Some(key) = mac_key {
            let said = proof::transcript(&knock.exporter, &request.csr, request.role, request.token);
            admitted.server_proof = proof::server_proof(&key, &said, roots(&admitted.roots));
        }
        Ok(admitted)
    }

    async fn renew(&self, csr: &[u8], knock: &Knock) -> Result<Admitted, Undecided> {
        let state = self.control.state();
        let member = admission::renewal(&state, &knock.spki)?;
        let issued = self.issue(&state, csr, &knock.spki)?;
        let update = Command::Update {
            node: member.id,
            addresses: member.addresses.clone(),
            certificate: Some((issued.serial.clone(), issued.not_after)),
            version: member.version.clone(),
            features: member.features,
        };
        self.agree(update).await?;
        Ok(admitted(&self.control.state(), issued))
    }

    /// Signs the request's key, which must be the one of the connection.
    fn issue(&self, state: &State, csr: &[u8], spki: &[u8]) -> Result<Issued, Undecided> {
        let view = self.control.view().borrow().clone();
        let ca = self.signer.ca(state, &view).ok_or(Undecided::NoKey)?;
        match self.signer.issue(&ca, csr) {
            Ok(issued) if issued.spki == spki => Ok(issued),
            Ok(_) => Err(Undecided::Answer(JoinResponse::Refused(Refusal::Malformed))),
            Err(error) => {
                tracing::warn!(%error, "cannot sign a join request");
                Err(Undecided::Answer(JoinResponse::Refused(Refusal::Malformed)))
            }
        }
    }

    async fn agree(&self, command: Command) -> Result<(), Undecided> {
        let answer = match self.control.propose(command, AGREE).await {
            Ok(Outcome::Done) => return Ok(()),
            Ok(Outcome::Refused(refusal)) => JoinResponse::Refused(refusal),
            Ok(other) => later(&other.to_string()),
            Err(error) => later(&error.to_string()),
        };
        Err(Undecided::Final(answer))
    }

    /// Holds the answer back until this node's own view has the member: only then does its gate
    /// let it through.
    async fn once_seen(&self, mut admitted: Box<Admitted>) -> JoinResponse {
        let mut view = self.control.view();
        let seen = view.wait_for(|view| view.members.contains_key(&admitted.node));
        match timeout(AGREE, seen).await {
            Ok(Ok(view)) => {
                admitted.members = view.members.values().map(|m| (m.id, m.addresses.clone())).collect();
                admitted.applied_index = view.applied_index;
                JoinResponse::Admitted(admitted)
            }
            _ => later("admitted, but the node asked has not heard of it yet"),
        }
    }

    async fn relay(&self, knock: &Knock) -> JoinResponse {
        let view: Arc<ClusterView> = self.control.view().borrow().clone();
        let (Some(leader), Some(mesh)) = (view.leader, self.mesh.get()) else {
            return later("the cluster has no leader at the moment");
        };
        if leader == self.signer.identity.node() {
            return later("the leader has no copy of the CA key yet");
        }
        let relayed = JoinRequest::Relayed(Box::new(RelayedJoin {
            request: knock.request.clone(),
            exporter: knock.exporter.to_vec(),
            spki: knock.spki.clone(),
        }));
        match mesh.request(leader, StreamKind::Join, &relayed, ANSWER).await {
            Ok(JoinResponse::Admitted(admitted)) => self.once_seen(admitted).await,
            Ok(answer) => answer,
            Err(error) => later(&format!("the leader cannot be asked: {error}")),
        }
    }
}

/// Why a request was not granted here.
enum Undecided {
    /// By this node's state.
    Answer(JoinResponse),
    /// By the cluster: nobody knows better.
    Final(JoinResponse),
    /// This node cannot sign.
    NoKey,
}

impl Undecided {
    /// The same, by a state that is known to be the cluster's.
    fn decided(self) -> Self {
        match self {
            Self::Answer(answer) => Self::Final(answer),
            other => other,
        }
    }
}

/// True for what any node may say by itself. Another refusal from a state that lags would be wrong, for
/// example of a token made a moment ago; a leader that was cut off does not know that it lags.
fn is_last_word(answer: &JoinResponse) -> bool {
    use Refusal::{Malformed, OtherCluster, WrongSecret};
    matches!(answer, JoinResponse::Refused(Malformed | OtherCluster | WrongSecret))
}

impl From<JoinResponse> for Undecided {
    fn from(answer: JoinResponse) -> Self {
        Self::Answer(answer)
    }
}

fn later(reason: &str) -> JoinResponse {
    JoinResponse::Retry { reason: reason.to_owned() }
}

fn admitted(state: &State, issued: Issued) -> Admitted {
    Admitted {
        node: issued.node,
        cluster: state.cluster.unwrap_or_default(),
        cluster_name: state.name.clone(),
        certificate: issued.certificate,
        roots: state.roots.clone(),
        successions: state.successions.clone(),
        profile: state.profile,
        members: state.members.values().map(|m| (m.id, m.addresses.clone())).collect(),
        applied_index: 0,
        recovery: state.recovery.clone(),
        server_proof: Vec::new(),
    }
}

fn roots(roots: &[ByteBuf]) -> impl Iterator<Item = &[u8]> {
    roots.iter().map(|root| root.as_slice())
}
