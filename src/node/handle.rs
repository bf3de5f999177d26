//! What an embedder holds: [`Node`].

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    disk::Disk,
    engine::StorageEngine,
    identity::{DataDir, JoinToken},
    join::{TokenLimits, token_record},
    protocol::{StreamKind, http::HttpRequest, status::NodeStatus},
    raft::{Command, Outcome, ProposeError, TokenRecord, failover::Local},
    transport::Handler,
    types::{ClusterView, NodeId, Role, Timing, TokenId},
    wal::Wal,
    write_path::{Receipt, SubmitError, Submitter, Write},
};

use super::{
    NodeConfig, NodeError,
    assembly::assemble,
    become_member::Founded,
    custom::CustomProtocols,
    gateway::{Answer, AskError, Asker, Errand},
    late::LateHandlers,
    local::ThisNode,
    peers::Peers,
    readiness::{self, Readiness},
    reads::{Consistency, ReadError, ReadPoint, Reads},
    status,
    status_report::ClusterStatus,
    surroundings::Surroundings,
    tasks::Tasks,
};

/// Bound of a change of cluster state.
pub(super) const PROPOSAL: Duration = Duration::from_secs(10);
/// How long a graceful stop waits for office and leadership to move.
const HAND_OVER: Duration = Duration::from_secs(5);
const HAND_OVER_LOOK: Duration = Duration::from_millis(50);
/// How long the closing of connections may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// A running node; clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) dir: DataDir,
    pub(super) this: Arc<ThisNode>,
    pub(super) submitter: Arc<Submitter>,
    /// Asks a voter for what this node may not propose.
    pub(super) asker: Asker,
    pub(super) reads: Reads,
    pub(super) tasks: Tasks,
    pub(super) stopping: watch::Sender<bool>,
    pub(super) founded: Option<Founded>,
    pub(super) timing: Timing,
    pub(super) peers: Peers,
    pub(super) late: LateHandlers,
    pub(super) custom: Arc<CustomProtocols>,
    pub(super) _wal: Wal,
}

/// Why a change of cluster state was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlFailure {
    /// No leader was found.
    #[error("the cluster has no leader: a majority of voters is needed; see `skein status`")]
    NoLeader,
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense now.
    #[error("{0}")]
    Rejected(String),
    /// The disk of the raft leader is full.
    #[error("{}", ProposeError::Full)]
    Full,
    /// It may have been made.
    #[error("no answer in time, outcome: unknown; look before you try again")]
    Unknown,
    /// This node may not propose it.
    #[error("this node is no voter, and the leader takes this only from one; nothing was changed")]
    NotVoter,
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// While it lives a node answers gateways.
#[derive(Debug)]
pub struct AnsweringGateways(Node);

impl Drop for AnsweringGateways {
    fn drop(&mut self) {
        self.0.inner.late.empty(StreamKind::Http);
    }
}

impl Node {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Starts a node over an engine that has been opened on its data. Returns when it is a member
    /// and its parts run; a joiner that nobody lets in waits here, and says what for in the log.
    pub async fn start(
        config: NodeConfig,
        surroundings: Surroundings,
        engine: Arc<dyn StorageEngine>,
    ) -> Result<Self, NodeError> {
        assemble(config, surroundings, engine).await
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.inner.this.identity.node()
    }

    /// Where its data lies.
    pub fn data_dir(&self) -> &std::path::Path {
        self.inner.dir.path()
    }

    /// Its mesh address, as bound.
    pub fn mesh_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.inner.this.mesh.local_addr()
    }

    /// Set when this start founded a cluster and made a token for the next nodes.
    pub fn founded(&self) -> Option<&Founded> {
        self.inner.founded.as_ref()
    }

    /// The cluster as the applied raft state has it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.inner.this.control.view()
    }

    /// Brings a write to the writer, wherever it is. See [`Submitter::submit`].
    pub async fn submit(&self, write: Write) -> Result<Receipt, SubmitError> {
        self.inner.submitter.submit(write).await
    }

    /// Waits until a query on this node may be answered as asked.
    pub async fn read_point(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<ReadPoint, ReadError> {
        self.inner.reads.point(consistency, timeout).await
    }

    /// The whole cluster, asked now.
    pub async fn status(&self) -> ClusterStatus {
        status::gather(&self.inner.this).await
    }

    /// Makes a join token, once the cluster has agreed on it. It carries `seeds`, each as `host:port`: where
    /// a joiner finds the cluster that it does not see on its LAN.
    ///
    /// # Errors
    /// A seed is none, there are too many, or there is no leader.
    pub async fn create_token(
        &self,
        role: Role,
        ttl: Option<Duration>,
        uses: Option<u32>,
        seeds: Vec<String>,
    ) -> Result<String, ControlFailure> {
        let this = &self.inner.this;
        let state = this.control.state();
        let (Some(cluster), Some(root)) = (state.cluster, state.roots.last()) else {
            return Err(ControlFailure::NoLeader);
        };
        let rejected =
            |e: &dyn fmt::Display| ControlFailure::Rejected(format!("cannot make a join token: {e}"));
        let token = JoinToken::for_cluster(role, cluster, root, seeds, &mut this.surroundings.rng())
            .map_err(|e| rejected(&e))?;
        let verifier = token.verifier().map_err(|e| rejected(&e))?;
        let created_ms = this.surroundings.unix_ms();
        let life = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let limits =
            TokenLimits { expires_ms: life.map(|ms| created_ms.saturating_add(ms)), uses, created_ms };
        self.propose(Command::CreateToken(token_record(&token, verifier, limits))).await?;
        Ok(token.reveal().to_string())
    }

    /// The join tokens there are. Nothing in them lets anybody join.
    pub fn tokens(&self) -> Vec<TokenRecord> {
        self.inner.this.control.state().tokens.values().cloned().collect()
    }

    /// Takes a join token back.
    pub async fn revoke_token(&self, token: TokenId) -> Result<(), ControlFailure> {
        self.take_back(Command::RevokeToken { token }, || format!("there is no join token {token}")).await
    }

    /// Whether this node should get requests: a member, a leader known, and applied within 10,000
    /// records of the commit position.
    pub fn readiness(&self) -> Readiness {
        readiness::of_node(&self.inner.this, *self.inner.stopping.borrow(), self.inner.timing)
    }

    /// Hands what gateways ask over HTTP to this handler, until the value is dropped.
    pub fn answer_gateways(&self, handler: Arc<dyn Handler>) -> AnsweringGateways {
        self.inner.late.fill(StreamKind::Http, handler);
        AnsweringGateways(self.clone())
    }

    /// False once the node cannot go on.
    pub fn live(&self) -> bool {
        self.inner.this.replica.wal.failed().borrow().is_none()
    }

    /// Runs until the node cannot go on, and says why. Cancel-safe: stop it with
    /// [`Self::shutdown`].
    pub async fn run(&self) -> NodeError {
        self.inner.tasks.first_end().await
    }

    /// Hands office and leadership to other voters, if any is there and means to stay. Returns when
    /// they have moved, or after a few seconds: then the others notice by silence.
    pub async fn hand_over(&self) {
        let this = &self.inner.this;
        // Whoever stops gracefully has done it before: what did not work then will not now.
        if this.resigning.swap(true, Ordering::AcqRel) {
            return;
        }
        let deadline = Instant::now() + HAND_OVER;
        while Instant::now() < deadline {
            let willing = this.willing().await;
            let (writes, leads) = (this.replica.tenure().is_some(), this.control.is_leader());
            let (Some(to), true) = (willing.first(), writes || leads) else { return };
            if writes {
                // The leader, this node or another, sees it in the status and names a voter that is level.
                this.writer.drain();
            } else if let Err(error) = this.control.transfer_leader(*to).await {
                tracing::debug!(%error, "leadership was not handed over yet");
            }
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
        tracing::warn!(
            "office or leadership was not handed over in time; the others take it when they miss it"
        );
    }

    /// Stops gracefully: hands over, takes no more writes, makes everything applied durable, closes
    /// the mesh.
    pub async fn shutdown(&self) {
        let this = &self.inner.this;
        self.hand_over().await;
        self.inner.stopping.send_replace(true);
        if let Err(error) = this.apply.checkpoint_now().await {
            // What is not in a checkpoint is in the log.
            tracing::warn!(%error, "no checkpoint at shutdown");
        }
        if let Err(error) = this.replica.wal.settle().await {
            tracing::warn!(%error, "the log did not settle");
        }
        this.control.shutdown().await;
        this.mesh.close("stopping");
        // What is closed is closed; peers that miss it find out by their own timeout.
        let _ = timeout(FAREWELL, this.mesh.closed()).await;
        self.inner.tasks.abort_all();
    }

    pub(super) async fn propose(&self, command: Command) -> Result<(), ControlFailure> {
        became(self.inner.this.control.propose(command, PROPOSAL).await)
    }

    /// Has something taken back, which is refused only if there is no such thing. That is not for this
    /// node to say: it may not have heard yet of what another has just made.
    pub(super) async fn take_back(
        &self,
        command: Command,
        none: impl FnOnce() -> String,
    ) -> Result<(), ControlFailure> {
        match self.inner.this.control.propose(command, PROPOSAL).await {
            Ok(Outcome::Rejected(_)) => Err(ControlFailure::NotFound(none())),
            other => became(other),
        }
    }

    /// True when it votes, by what it has heard.
    pub fn is_voter(&self) -> bool {
        self.view().borrow().is_voter(self.id())
    }

    /// Passes a request of a client on to a voter, which judges it by the API token that it brings.
    /// Dropping the future, or the answer, ends the work on it; what it changes may be done all the same.
    ///
    /// # Errors
    /// Nobody answered.
    pub async fn ask_a_voter(&self, request: &HttpRequest, body: &Bytes) -> Result<Answer, AskError> {
        self.inner.asker.ask(Errand::Change, request, body).await
    }

    pub(super) fn this(&self) -> &ThisNode {
        &self.inner.this
    }

    pub(super) fn timing(&self) -> Timing {
        self.inner.timing
    }

    pub(super) fn custom(&self) -> Arc<CustomProtocols> {
        self.inner.custom.clone()
    }

    /// Where its files are.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.this().surroundings.disk
    }

    /// What this node says of itself.
    pub fn own_status(&self) -> NodeStatus {
        self.inner.this.status()
    }

    /// True when peers are looked for by mDNS.
    pub fn looks_around(&self) -> bool {
        self.inner.peers.sightings.is_some()
    }
}

/// What a proposal came to.
fn became(outcome: Result<Outcome, ProposeError>) -> Result<(), ControlFailure> {
    match outcome {
        Ok(Outcome::Done) => Ok(()),
        Ok(other) => Err(ControlFailure::Rejected(other.to_string())),
        Err(ProposeError::NoLeader) => Err(ControlFailure::NoLeader),
        Err(ProposeError::Full) => Err(ControlFailure::Full),
        Err(ProposeError::NotAllowed) => Err(ControlFailure::NotVoter),
        Err(ProposeError::Stopped(_)) => Err(ControlFailure::Stopping),
        Err(error) if error.outcome_unknown() => Err(ControlFailure::Unknown),
        Err(error) => Err(ControlFailure::Rejected(error.to_string())),
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
