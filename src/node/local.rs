//! What the leader's watch needs of the node it runs on, and what every node says of itself.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::{BoxFuture, join_all};
use serde_bytes::ByteBuf;

use crate::{
    engine::StorageEngine,
    identity::{ClusterCa, Identity, SealKey, seal},
    join::Signer,
    protocol::{
        StreamKind,
        frame::MAX_MESSAGE,
        replication::{Seal, Sealed},
        status::{NodeStatus, StatusRequest},
    },
    raft::{Control, failover::Local},
    replication::Replica,
    transport::{Handler, Mesh, Peer, Stream},
    types::{Addresses, ClusterId, Epoch, Lsn, Member, NodeId},
    write_path::{apply::Apply, commit::Writer},
};
use tokio::{sync::watch, time::Instant};

use super::{
    damage::Findings, heard::LastHeard, reads::staleness, surroundings::Surroundings, traffic::Traffic,
    upkeep,
};

/// Software version, as in hello and status.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Feature bits of this software. For tests of clusters of several versions, the feature `testing` leaves out
/// those that the environment variable `SKEIN_WITHOUT_FEATURES` has.
pub(super) fn features() -> u64 {
    let all = crate::protocol::forward::KEYS_BY_DATABASE
        | crate::raft::OPERATOR_COMMANDS
        | crate::protocol::http::LONG_BODIES
        | crate::raft::FINALISE;
    #[cfg(feature = "testing")]
    let all = {
        static WITHOUT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let read = || std::env::var("SKEIN_WITHOUT_FEATURES").ok()?.parse().ok();
        all & !*WITHOUT.get_or_init(|| read().unwrap_or(0))
    };
    all
}

/// How long another voter may take to say whether it stays.
const WILLING: Duration = Duration::from_millis(300);
/// For so long only the one that is meant may take over; afterwards anybody who is level.
const MEANT: Duration = Duration::from_secs(2);

/// This node, for itself.
#[derive(Debug)]
pub(super) struct ThisNode {
    pub(super) control: Control,
    pub(super) mesh: Mesh,
    pub(super) replica: Arc<Replica>,
    pub(super) apply: Arc<Apply>,
    pub(super) writer: Arc<Writer>,
    pub(super) engine: Arc<dyn StorageEngine>,
    pub(super) identity: Arc<Identity>,
    pub(super) seal_key: Arc<SealKey>,
    pub(super) addresses: watch::Receiver<Addresses>,
    pub(super) flushed: watch::Receiver<Lsn>,
    pub(super) surroundings: Surroundings,
    pub(super) findings: Findings,
    /// True while a record has waited too long for its fsync.
    pub(super) disk_is_slow: AtomicBool,
    /// Turns true when the node is asked to hand over.
    pub(super) resigning: AtomicBool,
    /// To whom it hands over, if somebody is meant, and until when others must not.
    pub(super) successor: Mutex<Option<(NodeId, Instant)>>,
    /// When its peers were last heard.
    pub(super) heard: LastHeard,
    /// What clients do at its HTTP edge.
    pub(super) traffic: Traffic,
}

impl ThisNode {
    /// Signs with this node's keys, and with the CA's if it is a voter.
    pub(super) fn signer(&self) -> Signer {
        upkeep::signer(self.identity.clone(), self.seal_key.clone(), &self.surroundings)
    }

    /// The key of a CA sealed to a member whose sealing key is its own.
    pub(super) fn seal_to(
        &self,
        member: &Member,
        ca: &ClusterCa,
        cluster: ClusterId,
    ) -> Result<ByteBuf, String> {
        if !seal::verify_seal_key(&member.spki, cluster, &member.seal_key, &member.seal_key_signature) {
            return Err(format!("the sealing key of {} is not signed by its node key", member.id));
        }
        seal::seal(ca.private_key(), &member.seal_key, cluster, member.id, &mut self.surroundings.rng())
            .map(ByteBuf::from)
            .map_err(|error| error.to_string())
    }

    /// Voters that answer, are not about to stop themselves and are not drained.
    pub(super) async fn willing(&self) -> Vec<NodeId> {
        let ask = StatusRequest::default();
        let linked = self.mesh.links().borrow().clone();
        let view = self.control.view().borrow().clone();
        let me = self.identity.node();
        let fit = |id: &NodeId| *id != me && linked.contains_key(id) && !view.drained.contains(id);
        let asked = view.all_voters().into_iter().filter(fit).map(|voter| {
            let ask = &ask;
            async move {
                let status: Result<NodeStatus, _> =
                    self.mesh.request(voter, StreamKind::Status, ask, WILLING).await;
                status.ok().filter(|status| !status.draining).map(|_| voter)
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Lets the office of writer go, to `to` if somebody is meant.
    pub(super) fn let_go(&self, to: Option<NodeId>) {
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) =
            to.map(|to| (to, Instant::now() + MEANT));
        self.writer.drain();
    }

    fn successor(&self) -> Option<NodeId> {
        let meant = *self.successor.lock().unwrap_or_else(PoisonError::into_inner);
        meant.filter(|(_, until)| Instant::now() < *until).map(|(to, _)| to)
    }

    /// Lets the office of writer go, or, without it, raft's leadership, to the voter that is meant or else to
    /// the one that asks.
    async fn resign(&self, asker: NodeId, to: Option<NodeId>) {
        if self.replica.tenure().is_some() || !self.control.is_leader() {
            tracing::info!(asked_by = %asker, "asked to hand over the office of writer");
            self.let_go(to);
        } else if let Err(error) = self.control.transfer_leader(to.unwrap_or(asker)).await {
            tracing::info!(asked_by = %asker, %error, "leadership was not handed over");
        }
    }
}

impl Local for ThisNode {
    fn seal(&self, seal: Seal) -> BoxFuture<'_, Result<Sealed, String>> {
        Box::pin(
            async move { self.replica.seal(self.identity.node(), seal).await.map_err(|e| e.to_string()) },
        )
    }

    fn status(&self) -> NodeStatus {
        let tenure = self.replica.tenure();
        let commit = self.replica.commit();
        // Looked up here: the values below that are borrowed stay so until all of them are read.
        let (debt, fetching) = (self.replica.wal.debt(), self.replica.meter.progress());
        let stale = staleness(&self.replica, &self.apply);
        let damaged_files = self.engine.damaged().len() as u64;
        let damaged = self.replica.wal.watch_damage().borrow().as_ref().map(|found| found.seq);
        let links = self.mesh.links().borrow().clone();
        let now = i64::try_from(self.surroundings.unix_seconds()).unwrap_or(i64::MAX);
        let not_after = i64::try_from(self.identity.certificate().not_after).unwrap_or(i64::MAX);
        NodeStatus {
            node: self.identity.node(),
            boot: self.replica.boot,
            promise: self.replica.fence.promised(),
            office: tenure.map(|held| (held.epoch, commit.epoch == held.epoch)),
            durable: self.replica.wal.durable(),
            commit,
            applied: *self.apply.watch().borrow(),
            flushed: *self.flushed.borrow(),
            disk_troubled: *self.replica.wal.watch_full().borrow()
                || self.disk_is_slow.load(Ordering::Acquire),
            marked: self.apply.marked(),
            linked: links.keys().copied().collect(),
            linked_at: links.iter().map(|(peer, link)| (*peer, link.reached_at())).collect(),
            addresses: self.addresses.borrow().clone(),
            version: VERSION.to_owned(),
            cert_days_left: (not_after - now).div_euclid(86_400),
            draining: self.resigning.load(Ordering::Acquire) || self.writer.is_draining(),
            repairing: debt.map(|debt| debt.lost_from),
            quarantined: self.replica.wal.quarantined(),
            rtt_us: links.iter().map(|(peer, link)| (*peer, micros(link.rtt()))).collect(),
            sent: links.iter().map(|(peer, link)| (*peer, link.sent().all())).collect(),
            stale_ms: stale.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            unix_ms: self.surroundings.unix_ms(),
            points: self.traffic.points.get(),
            queries: self.traffic.queries.get(),
            fetching,
            damaged,
            damaged_files,
            scrubbed: self.findings.scrub.finished(),
            follows: None,
            successor: self.successor(),
        }
    }

    fn heard_writer(&self, epoch: Epoch) -> Option<Instant> {
        let contact = *self.replica.watch_contact().borrow();
        contact.filter(|contact| contact.epoch == epoch).map(|contact| contact.heard)
    }

    fn holds(&self, at: Lsn) -> bool {
        self.replica.wal.epochs().holds(at, self.replica.wal.end().seq)
    }

    fn unix_ms(&self) -> u64 {
        self.surroundings.unix_ms()
    }

    fn seal_ca_for(&self, member: &Member) -> Result<Vec<(ByteBuf, ByteBuf)>, String> {
        let state = self.control.state();
        let cluster = state.cluster.ok_or("this node does not know its cluster yet")?;
        let cas = self.signer().cas(&state);
        if cas.is_empty() {
            return Err("this node does not hold the CA key".to_owned());
        }
        let sealed =
            |ca: &ClusterCa| Ok((ByteBuf::from(ca.fingerprint()), self.seal_to(member, ca, cluster)?));
        cas.iter().map(sealed).collect()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Handles `Status` streams.
#[derive(Debug, Clone)]
pub(super) struct StatusHandler(pub(super) Arc<ThisNode>);

impl Handler for StatusHandler {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let this = self.0.clone();
        Box::pin(async move {
            let Ok(request) = stream.recv.read_message::<StatusRequest>(MAX_MESSAGE).await else { return };
            if request.resign && this.replica.view.borrow().is_voter(peer.node()) {
                let to = request.to.filter(|to| this.replica.view.borrow().is_voter(*to));
                this.resign(peer.node(), to).await;
            }
            if stream.send.write_message(&this.status()).await.is_ok() {
                let _ = stream.send.finish();
            }
        })
    }
}
