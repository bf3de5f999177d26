//! Going on without a majority, on purpose: what `skein recover` does to a node that does not run.
//!
//! [`Survivor::open`] reads what the node has, [`Survivor::survey`] asks every member that can be
//! reached where it stands, [`Survivor::carry_on`] makes the new cluster of this node alone. What
//! an operator sees of it is in docs/operations.md, "When a majority is gone".
//!
//! The log of records is not touched: everything in it is kept, also what lies behind the last
//! known commit position, because the voters that are gone may have acknowledged it. As the only
//! voter the node commits all of it with the first record of its next office.
//!
//! Order on disk: raft's files (`raft/recover.rs`), then `cluster.json`, which is what a process
//! goes by when it tells peers of which world it is. Between the two the node refuses to start.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use rand::RngCore;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{NodeError, interrupted, local::VERSION, surroundings::Surroundings, tasks::Tasks};
use crate::{
    discovery::Seed,
    identity::{ClusterCa, ClusterRecord, DataDir, Identity, SealKey, Store, recovery, seal},
    protocol::{
        StreamKind,
        status::{NodeStatus, StatusRequest},
    },
    raft::recover::{Survivor as RaftFiles, recovery_in},
    transport::{Mesh, MeshConfig, Router, Socket},
    types::{Addresses, BootId, ClusterView, Lsn, NodeId, Recovery, Role, generation},
    wal::{Recovered, Wal, WalConfig},
};

/// How long members may take to be linked, and then to say where they stand.
const REACH: Duration = Duration::from_secs(5);
const ASK: Duration = Duration::from_secs(2);
/// How long the closing of connections may take.
const FAREWELL: Duration = Duration::from_millis(200);

/// A node that does not run, and might carry on alone. It holds the lock of its directory.
#[derive(Debug)]
pub struct Survivor {
    _dir: DataDir,
    surroundings: Surroundings,
    store: Store,
    record: ClusterRecord,
    identity: Arc<Identity>,
    seal_key: SealKey,
    raft: RaftFiles,
    log: Recovered,
}

/// Where everybody stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// For people.
    pub cluster_name: String,
    /// The node that may carry on.
    pub node: NodeId,
    /// Generation of the cluster now.
    pub generation: u64,
    /// Every member, this node first.
    pub members: Vec<Surveyed>,
    /// True when the voters that were reached, this node among them, are a majority.
    pub majority: bool,
}

/// A member in the survey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Who.
    pub id: NodeId,
    /// A label for people.
    pub name: String,
    /// Voter or reader, by the membership in force.
    pub role: Role,
    /// Where it stands; `None` when it was not reached.
    pub stands: Option<Standing>,
    /// Of another world: it was met, and its generation is this.
    pub foreign: Option<u64>,
}

/// Positions of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Last record on its disk.
    pub durable: Lsn,
    /// Last record it knows to be committed.
    pub commit: Lsn,
    /// Last record in its engine; unknown for a node that does not run.
    pub applied: Option<Lsn>,
    /// Its process run, if it runs.
    pub boot: Option<BootId>,
}

impl Survey {
    /// This node.
    pub fn own(&self) -> Option<&Surveyed> {
        self.members.iter().find(|member| member.id == self.node)
    }

    /// Last record on this node's disk.
    pub fn durable(&self) -> Lsn {
        self.own().and_then(|own| own.stands).map_or(Lsn::ZERO, |stands| stands.durable)
    }

    /// Members that hold records which this node does not, the furthest first.
    pub fn ahead(&self) -> Vec<&Surveyed> {
        let durable = |member: &Surveyed| member.stands.map_or(Lsn::ZERO, |stands| stands.durable);
        let mut ahead: Vec<_> = self.members.iter().filter(|m| durable(m) > self.durable()).collect();
        ahead.sort_by_key(|member| std::cmp::Reverse(durable(member)));
        ahead
    }

    /// Voters whose last word is not known.
    pub fn missing(&self) -> Vec<&Surveyed> {
        self.members.iter().filter(|m| m.role == Role::Voter && m.stands.is_none()).collect()
    }

    /// A member that has come through a recovery which this node has not.
    pub fn newer(&self) -> Option<&Surveyed> {
        self.members.iter().find(|member| member.foreign.is_some_and(|other| other > self.generation))
    }

    /// The highest position anybody reached knows to be committed.
    pub fn commit(&self) -> Lsn {
        let stands = self.members.iter().filter_map(|member| member.stands);
        stands.map(|stands| stands.commit).max().unwrap_or(Lsn::ZERO)
    }
}

impl Survivor {
    /// Reads a node's directory. The log is opened as at a start of the node: a torn end is cut, and a
    /// snapshot whose installation was cut short is finished or given up, by `checkpoint`, the last
    /// position that is in a checkpoint of the node's engine. Fails if the node cannot be a cluster by
    /// itself.
    pub async fn open(dir: DataDir, surroundings: Surroundings, checkpoint: Lsn) -> Result<Self, NodeError> {
        let segment_bytes = WalConfig::new("").segment_bytes;
        Self::open_with(dir, surroundings, checkpoint, segment_bytes).await
    }

    async fn open_with(
        dir: DataDir,
        surroundings: Surroundings,
        checkpoint: Lsn,
        segment_bytes: u64,
    ) -> Result<Self, NodeError> {
        let path = dir.path().to_path_buf();
        let store = Store::new(surroundings.disk.clone(), &path);
        store.settle().await?;
        if let Some(reason) = store.tombstone().await? {
            return Err(NodeError::Removed { reason, dir: path });
        }
        if let Some(recovery) = store.superseded().await? {
            return Err(NodeError::Superseded { recovery: Box::new(recovery), dir: path });
        }
        let Some(record) = store.cluster().await? else {
            return Err(NodeError::Usage(format!("{} holds no member of a cluster", path.display())));
        };
        let (node_key, seal_key) = store.keys([surroundings.random(), surroundings.random()]).await?;
        let identity = Arc::new(Identity::member(node_key, &record.certificate, &record.roots)?);
        let raft = RaftFiles::open(surroundings.disk.clone(), path.join("raft")).await?;
        let mut nonces = surroundings.rng();
        let draw = Box::new(move || nonces.next_u64());
        let config = WalConfig { segment_bytes, ..WalConfig::new(path.join("wal")) };
        let opened = Wal::open(surroundings.disk.clone(), config, record.cluster, draw).await?;
        let log = interrupted::finish_alone(opened, checkpoint).await?;
        if let Some(debt) = log.debt {
            return Err(NodeError::Usage(format!(
                "records from {} on were damaged on this node and not fetched again: recover on another voter, or                  give them up with `skein inspect wal --repair --accept-loss` and come back",
                debt.lost_from
            )));
        }
        if checkpoint.seq > log.durable.seq {
            return Err(NodeError::Usage(format!(
                "the engine of this node holds records up to {checkpoint}, and its log ends at {}: what it wrote \
                 at the positions between would be lost. Recover on another voter",
                log.durable
            )));
        }
        let survivor = Self { _dir: dir, surroundings, store, record, identity, seal_key, raft, log };
        // It must be able to let others in again.
        survivor
            .ca()
            .map_err(|reason| NodeError::Usage(format!("this node cannot carry on alone: {reason}")))?;
        Ok(survivor)
    }

    /// The cluster's name.
    pub fn cluster_name(&self) -> &str {
        &self.record.name
    }

    /// True when an earlier run of [`Survivor::carry_on`] has decided and was cut short: it only has
    /// to be run again.
    pub fn is_half_done(&self) -> bool {
        self.raft.state().recovery != self.record.recovery
    }

    /// The CA, which only a voter can open.
    fn ca(&self) -> Result<ClusterCa, String> {
        let (state, me) = (self.raft.state(), self.identity.node());
        let member = state.members.get(&me).ok_or("its raft state does not list it as a member")?;
        if member.role != Role::Voter {
            return Err(format!("it is a {}, and only a voter holds the cluster's CA key", member.role));
        }
        let sealed = state.sealed_ca.get(&me).ok_or(
            "it was never a voter, so it does not hold the cluster's CA key: nobody could be let in by it",
        )?;
        let key = seal::open(sealed, &self.seal_key, self.record.cluster, me)
            .map_err(|e| format!("it cannot open its copy of the cluster's CA key: {e}"))?;
        let ca = state.roots.iter().find_map(|root| ClusterCa::from_parts(root, &key).ok());
        ca.ok_or_else(|| "its CA key belongs to none of the cluster's roots".into())
    }

    /// Asks every member where it stands; changes nothing anywhere. `seeds` are addresses to try
    /// beside the known ones. Takes a few seconds when somebody does not answer.
    pub async fn survey(&self, seeds: &[Seed]) -> Result<Survey, NodeError> {
        let (me, view) = (self.identity.node(), Arc::new(self.raft.view()));
        let tasks = Tasks::default();
        let mesh = self.mesh(view.clone(), &tasks)?;
        mesh.set_candidates(self.addresses(seeds).await);
        let others: BTreeSet<NodeId> = view.members.keys().copied().filter(|id| *id != me).collect();
        let foreign = meet(&mesh, &others).await;
        let ask = StatusRequest::default();
        let asked = others.iter().map(|id| {
            let (mesh, ask) = (&mesh, &ask);
            async move {
                let answer = mesh.request::<_, NodeStatus>(*id, StreamKind::Status, ask, ASK).await.ok()?;
                (answer.node == *id).then_some((*id, answer))
            }
        });
        let heard: BTreeMap<NodeId, NodeStatus> = join_all(asked).await.into_iter().flatten().collect();
        mesh.close("survey done");
        // So that peers know at once, rather than after their idle timeout.
        let _ = timeout(FAREWELL, mesh.closed()).await;
        tasks.abort_all();
        Ok(self.judge(&view, &heard, &foreign))
    }

    fn judge(
        &self,
        view: &ClusterView,
        heard: &BTreeMap<NodeId, NodeStatus>,
        foreign: &BTreeMap<NodeId, u64>,
    ) -> Survey {
        let me = self.identity.node();
        let own = Standing { durable: self.log.durable, commit: self.log.commit, applied: None, boot: None };
        let surveyed = |id: NodeId, name: &str, stands| Surveyed {
            id,
            name: name.to_owned(),
            role: view.members.get(&id).map_or(Role::Reader, |member| view.role(member)),
            stands,
            foreign: foreign.get(&id).copied(),
        };
        let mut members: Vec<Surveyed> = Vec::new();
        for member in view.members.values() {
            let stands = heard.get(&member.id).map(|status| Standing {
                durable: status.durable,
                commit: status.commit,
                applied: Some(status.applied),
                boot: Some(status.boot),
            });
            let stands = if member.id == me { Some(own) } else { stands };
            members.push(surveyed(member.id, &member.name, stands));
        }
        members.sort_by_key(|member| member.id != me);
        let reached: BTreeSet<NodeId> =
            members.iter().filter(|member| member.stands.is_some()).map(|member| member.id).collect();
        Survey {
            cluster_name: self.record.name.clone(),
            node: me,
            generation: generation(self.record.recovery.as_ref()),
            majority: view.is_quorum(&reached),
            members,
        }
    }

    /// An endpoint that serves nothing, with this node's own certificate.
    fn mesh(&self, view: Arc<ClusterView>, tasks: &Tasks) -> Result<Mesh, NodeError> {
        let now = self.surroundings.unix_seconds();
        if now >= self.identity.certificate().not_after {
            // A cluster that lost its majority long ago: good for this survey, and kept by nobody.
            let ca = self.ca().map_err(NodeError::Usage)?;
            let (csr, serial) = (self.identity.csr()?, self.surroundings.random());
            let issued = ca.issue(&csr, self.record.cluster, serial, now)?;
            self.identity.set_certificate(&issued.certificate, &self.record.roots)?;
        }
        let clock = self.surroundings.clone();
        let (addresses_out, addresses) = watch::channel(Addresses::default());
        let config = MeshConfig {
            socket: Socket::Bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into()),
            timing: view.profile.timing(),
            addresses,
            version: VERSION.to_owned(),
            features: 0,
            boot: BootId(self.surroundings.rng().next_u64()),
            clock: Arc::new(move || clock.unix_seconds()),
        };
        let (view_out, view) = watch::channel(view);
        let (mesh, driver) = Mesh::bind(config, self.identity.clone(), view, Router::new())?;
        tasks.spawn("mesh", async move {
            // Neither ever changes, but a closed channel would wake whoever waits for it.
            let _open = (view_out, addresses_out);
            driver.run().await;
            Ok(())
        });
        Ok(mesh)
    }

    async fn addresses(&self, seeds: &[Seed]) -> Vec<std::net::SocketAddr> {
        let mut addresses = self.record.peers.clone();
        for seed in seeds {
            match seed.resolve().await {
                Ok(found) => addresses.extend(found),
                Err(error) => tracing::warn!(%seed, %error, "seed does not resolve"),
            }
        }
        addresses
    }

    /// Makes the new cluster of this node alone, durably. What only the missing voters hold is given
    /// up with it. Run again after a kill at any point it ends in the same state.
    pub async fn carry_on(self) -> Result<Recovery, NodeError> {
        let me = self.identity.node();
        let recovery = match self.raft.state().recovery.clone().filter(|_| self.is_half_done()) {
            Some(decided) => decided,
            None => {
                let next = Recovery::next_generation(self.record.recovery.as_ref())
                    .ok_or_else(|| NodeError::Usage("this cluster was recovered too often".into()))?;
                let ca = self.ca().map_err(NodeError::Usage)?;
                let nonce = self.surroundings.rng().next_u64();
                recovery::sign(&ca, self.record.cluster, next, me, nonce, self.log.durable)
            }
        };
        self.raft.carry_on_alone(me, &recovery).await?;
        let record = ClusterRecord { recovery: Some(recovery.clone()), ..self.record };
        self.store.set_cluster(&record).await?;
        Ok(recovery)
    }
}

/// Raft's files and the record must be of one world: between the two steps of [`Survivor::carry_on`]
/// they are not, and a node that started then would tell its peers the wrong one.
pub(super) async fn check(
    surroundings: &Surroundings,
    dir: &Path,
    world: Option<&Recovery>,
) -> Result<(), NodeError> {
    match recovery_in(surroundings.disk.clone(), dir.join("raft")).await? {
        Some(recovery) if recovery.as_ref() != world => {
            Err(NodeError::HalfRecovered { dir: dir.to_path_buf() })
        }
        _ => Ok(()),
    }
}

/// Waits until every one of `others` is linked or known to be of another world, for a while; who is
/// of another world.
async fn meet(mesh: &Mesh, others: &BTreeSet<NodeId>) -> BTreeMap<NodeId, u64> {
    let (mut links, mut foreign) = (mesh.links(), mesh.foreign());
    let deadline = Instant::now() + REACH;
    loop {
        let met: BTreeSet<NodeId> = {
            let (links, foreign) = (links.borrow_and_update(), foreign.borrow_and_update());
            links.keys().chain(foreign.keys()).copied().collect()
        };
        if others.is_subset(&met) {
            break;
        }
        let news = async {
            tokio::select! {
                _ = links.changed() => {}
                _ = foreign.changed() => {}
            }
        };
        if timeout_at(deadline, news).await.is_err() {
            break;
        }
    }
    let foreign = foreign.borrow().clone();
    foreign.iter().filter(|(id, _)| others.contains(id)).map(|(id, other)| (*id, *other)).collect()
}

#[cfg(all(test, feature = "testing"))]
mod tests;
