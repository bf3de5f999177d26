//! The handle of raft: what the rest of the crate sees of it.

use std::{collections::BTreeMap, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use openraft::{
    Config, EmptyNode, ReadPolicy, SnapshotPolicy,
    async_runtime::WatchReceiver,
    errors::{Fatal, InitializeError, RaftError},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    LogError, Raft,
    applied::Board,
    electorate::{Electorate, Warranted, Warrants},
    features,
    log_store::LogStore,
    network::{MAX_ENTRIES, MeshSlot, Network},
    propose::{self, ControlHandler, Miss, ProposeError},
    room::Room,
    rpc,
    runtime::seeded,
    snapshot::Snapshots,
    state_machine::StateMachine,
    types::{Command, Outcome, State},
};
use crate::{
    disk::Disk,
    telemetry::Histogram,
    transport::Handler,
    types::{ClusterView, NodeId, Timing},
};

/// Between attempts to find a leader that takes a command.
const RETRY: Duration = Duration::from_millis(5);

/// What raft needs to know.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// This node.
    pub id: NodeId,
    /// Directory for log, vote and snapshot; made if it is not there.
    pub dir: PathBuf,
    /// Heartbeat and election timeouts.
    pub timing: Timing,
    /// Seed of the election timeouts: drawn at random by the process, fixed in a simulation.
    /// Nodes must not share it.
    pub seed: u64,
}

/// Why raft could not start or do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshot cannot be read.
    #[error("cannot read the raft snapshot: {0}")]
    Snapshot(#[source] io::Error),
    /// The timing does not make a raft configuration.
    #[error("bad raft timing: {0}")]
    Timing(String),
    /// `initialize` on a node that is or was in a cluster.
    #[error("raft is initialized already")]
    Initialized,
    /// Only the leader does this.
    #[error("this node is not the raft leader")]
    NotLeader(Option<NodeId>),
    /// Another change is not finished, or this one makes no sense now; the state tells.
    #[error("raft membership was not changed: {0}")]
    Membership(String),
    /// Leadership did not move in time; it may still.
    #[error("the raft leadership did not move to node {0} in time")]
    NotTransferred(NodeId),
    /// Raft has stopped: after `shutdown`, or because storage failed.
    #[error("raft has stopped: {0}")]
    Stopped(String),
}

/// The handle; clones are the same raft.
#[derive(Clone)]
pub struct Control {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) id: NodeId,
    timing: Timing,
    pub(super) raft: Raft,
    board: Board,
    electorate: Electorate,
    mesh: MeshSlot,
    room: watch::Receiver<Room>,
    log_seconds: Histogram,
    failed: watch::Sender<Option<String>>,
    reachable: mpsc::UnboundedSender<NodeId>,
}

/// What keeps raft going; the node runs it as long as it lives.
#[must_use = "raft does nothing durable until its driver runs"]
pub struct ControlDriver {
    writer: BoxFuture<'static, ()>,
    raft: Raft,
    board: Board,
    failed: watch::Sender<Option<String>>,
    reachable: mpsc::UnboundedReceiver<NodeId>,
}

impl Control {
    /// Opens log, vote and snapshot and starts raft. The mesh may be put into its slot later;
    /// until then no peer is reachable.
    pub async fn start(
        config: RaftConfig,
        disk: Arc<dyn Disk>,
        mesh: MeshSlot,
    ) -> Result<(Self, ControlDriver), ControlError> {
        let failed = watch::Sender::new(None);
        let (log, writer) = LogStore::open(disk.clone(), &config.dir, failed.clone()).await?;
        let (room, log_seconds) = (log.room(), log.group_seconds());
        let snapshot = config.dir.join("snapshot");
        let (snapshots, applied) = Snapshots::open(disk, snapshot).await.map_err(ControlError::Snapshot)?;
        log.check_snapshot(applied.last.as_ref())
            .map_err(|reason| ControlError::Log(LogError::Damaged { dir: config.dir.clone(), reason }))?;
        let board = Board::new(applied.clone());
        let machine = StateMachine::new(applied, board.clone(), snapshots);
        let settings = Arc::new(raft_config(&config.timing)?);
        let electorate = Electorate::new(config.id, board.clone());
        let (patience, voters) = (config.timing.election_min, electorate.clone());
        let network = Network { mesh: mesh.clone(), electorate: voters, patience };
        let mut writer: BoxFuture<'static, ()> = Box::pin(writer.run());
        // Recovery may purge, so the writer must run meanwhile.
        let raft = tokio::select! {
            raft = seeded(config.seed, Raft::new(config.id, settings, network, log, machine)) => {
                raft.map_err(|e| ControlError::Stopped(e.to_string()))?
            }
            () = &mut writer => return Err(ControlError::Stopped("its log writer ended".into())),
        };
        let (reachable, peers) = mpsc::unbounded_channel();
        let driver = ControlDriver {
            writer,
            raft: raft.clone(),
            board: board.clone(),
            failed: failed.clone(),
            reachable: peers,
        };
        let (id, timing) = (config.id, config.timing);
        let inner = Inner { id, timing, raft, board, electorate, mesh, room, log_seconds, failed, reachable };
        Ok((Self { inner: Arc::new(inner) }, driver))
    }

    /// The view of the cluster, from one applied state; published anew on every change, and
    /// before the proposer of that change hears of it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.inner.board.view.subscribe()
    }

    /// The whole applied state.
    pub fn state(&self) -> Arc<State> {
        self.inner.board.applied.borrow().state.clone()
    }

    /// Makes a cluster of this node alone. Once, on the first node of a cluster.
    pub async fn initialize(&self) -> Result<(), ControlError> {
        let alone = BTreeMap::from([(self.inner.id, EmptyNode {})]);
        self.inner.raft.initialize(alone).await.map_err(|e| match e {
            RaftError::APIError(InitializeError::NotAllowed(_)) => ControlError::Initialized,
            other => ControlError::Stopped(other.to_string()),
        })
    }

    /// Gets a command committed and applied, wherever the leader is; looks for a leader until
    /// `timeout` is over. A leader whose disk is full refuses what [can wait](Command::can_wait). Dropping
    /// the future leaves the outcome unknown.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        propose::check_length(&command)?;
        // Before a leader of an older version is sent what it cannot read.
        if let Some(why) =
            features::barred(&self.view().borrow(), &features::running(self.inner.mesh.get()), &command)
        {
            return Ok(Outcome::Rejected(why));
        }
        let deadline = Instant::now() + timeout;
        loop {
            let missed = match self.leader()? {
                Some(leader) if leader == self.inner.id => {
                    propose::propose_here(&self.inner.raft, &self.inner.room, command.clone(), deadline).await
                }
                Some(leader) => match self.inner.mesh.get() {
                    Some(mesh) => propose::propose_at(mesh, leader, command.clone(), deadline).await,
                    None => Err(Miss::NotLeader),
                },
                None => Err(Miss::NotLeader),
            };
            match missed {
                Ok(outcome) => return Ok(outcome),
                Err(Miss::Full) => return Err(ProposeError::Full),
                Err(Miss::Final(error)) => return Err(error),
                Err(Miss::NotLeader) if Instant::now() + RETRY >= deadline => {
                    return Err(ProposeError::NoLeader);
                }
                // A new leader refuses for a moment, and an election takes its time.
                Err(Miss::NotLeader) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    fn leader(&self) -> Result<Option<NodeId>, ProposeError> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        match &metrics.running_state {
            Ok(()) => Ok(metrics.current_leader),
            Err(fatal) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// True when this node believes to be the leader.
    pub fn is_leader(&self) -> bool {
        self.inner.raft.is_leader()
    }

    /// True when this node leads, and its state holds everything that was committed before it did: an entry
    /// of its own term is applied. No entry of that term is older than its office, for no process leads in
    /// the term of another one (see `raft_config`).
    pub async fn leader_ready(&self) -> bool {
        let term = {
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            if !metrics.state.is_leader() {
                return false;
            }
            metrics.current_term
        };
        self.inner.board.applied.borrow().last.is_some_and(|last| last.leader_id.term == term)
    }

    /// True once a majority has said, after this was called, that this node leads, and its state holds
    /// everything committed before; false if that does not come about within `timeout`.
    pub async fn confirm_state(&self, timeout: Duration) -> bool {
        if !self.is_leader() {
            return false;
        }
        let confirmed = async {
            self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.ok()?;
            let mut applied = self.inner.board.applied.subscribe();
            while !self.leader_ready().await {
                applied.changed().await.ok()?;
            }
            Some(())
        };
        matches!(tokio::time::timeout(timeout, confirmed).await, Ok(Some(())))
    }

    /// Hands leadership to a voter and waits until this node sees it there, for two election
    /// timeouts at most. Leader only.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ControlError> {
        let raft = &self.inner.raft;
        if !raft.is_leader() {
            return Err(ControlError::NotLeader(raft.current_leader().await));
        }
        if to == self.inner.id {
            return Ok(());
        }
        raft.trigger().transfer_leader(to).await.map_err(|e| ControlError::Stopped(e.to_string()))?;
        raft.wait(Some(2 * self.inner.timing.election_max))
            .metrics(|metrics| metrics.current_leader == Some(to), "leadership moved")
            .await
            .map(drop)
            .map_err(|_| ControlError::NotTransferred(to))
    }

    /// Stops raft. The driver ends when everything queued is written.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
    }

    /// Serves `Raft` streams.
    pub fn rpc_handler(&self) -> Arc<dyn Handler> {
        rpc::handler(self.inner.raft.clone(), self.inner.electorate.clone(), self.inner.room.clone())
    }

    /// Gives this node what it shows and judges warrants of voters by, once. Before, it believes only
    /// whom its log knows as voters.
    pub fn bear_warrants(&self, warrants: Warrants) {
        self.inner.electorate.equip(warrants);
    }

    /// Judges who is a voter by a warrant that it has shown since this node began.
    pub fn warranted(&self) -> Warranted {
        let electorate = self.inner.electorate.clone();
        Arc::new(move |node| electorate.has_shown(node))
    }

    /// How long writing and syncing a group of raft's log takes.
    pub fn log_seconds(&self) -> &Histogram {
        &self.inner.log_seconds
    }

    /// Serves `Control` streams.
    pub fn control_handler(&self) -> Arc<dyn Handler> {
        let (raft, room) = (self.inner.raft.clone(), self.inner.room.clone());
        Arc::new(ControlHandler { raft, room, view: self.view(), mesh: self.inner.mesh.clone() })
    }

    /// Tells raft that a peer is linked again, so that it does not wait before it tries.
    pub fn reset_backoff(&self, peer: NodeId) {
        // Without a driver there is nobody to tell, and nothing to hurry.
        let _ = self.inner.reachable.send(peer);
    }

    /// Becomes `Some` when storage has failed for good: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.subscribe()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for ControlDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlDriver").finish_non_exhaustive()
    }
}

impl ControlDriver {
    /// Writes the log, publishes leader and term, and passes on reset backoffs, until raft is
    /// shut down. Dropping it stops everything durable: raft fails at its next write.
    pub async fn run(self) {
        let Self { writer, raft, board, failed, mut reachable } = self;
        let metrics = async {
            let mut metrics = raft.metrics();
            loop {
                {
                    let now = metrics.borrow_watched();
                    board.publish_leader(now.current_leader, now.current_term);
                    match &now.running_state {
                        Err(Fatal::Stopped) | Ok(()) => {}
                        Err(fatal) => {
                            failed.send_if_modified(|failed| {
                                let first = failed.is_none();
                                failed.get_or_insert_with(|| format!("raft failed: {fatal}"));
                                first
                            });
                        }
                    }
                }
                tokio::select! {
                    changed = metrics.changed() => if changed.is_err() { break },
                    Some(peer) = reachable.recv() => {
                        if raft.trigger().reset_backoff([peer]).await.is_err() {
                            break;
                        }
                    }
                }
            }
        };
        tokio::join!(writer, metrics);
    }
}

/// openraft's settings. The leader's lease is `election_timeout_max`, so a failover takes about
/// maximum plus minimum.
///
/// A leader that restarts is elected anew, in a new term. It sends entries while it writes them: a power cut
/// may leave it without one that a follower has. In its old term it would make another one for the same
/// place, and that follower would believe to have it, for raft compares term and index alone. openraft lets
/// a leader go on in its old term unless told otherwise.
fn raft_config(timing: &Timing) -> Result<Config, ControlError> {
    let millis = |duration: Duration| duration.as_millis() as u64;
    let config = Config {
        cluster_name: "skein".into(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(rpc::PATIENCE),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5_000),
        max_in_snapshot_log_to_keep: 1_000,
        max_payload_entries: MAX_ENTRIES as u64,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        backoff: "50ms".into(),
        ..Config::default()
    };
    #[cfg(feature = "testing")]
    let config = Config {
        enable_leader_restore: Some(crate::types::planted::is("leader_goes_on_in_its_term")),
        ..config
    };
    config.validate().map_err(|e| ControlError::Timing(e.to_string()))
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::found;
