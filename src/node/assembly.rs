//! Putting a node together, bottom up: identity, mesh, raft, log, replication, write path. One
//! function tells the order, [`assemble`]; the tasks are spawned at its end.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use rand::RngCore;
use tokio::sync::watch;

use crate::{
    engine::StorageEngine,
    identity::{CaFiles, DataDir, Identity, JoinToken, Store},
    protocol::StreamKind,
    raft::{Control, ControlDriver, RaftConfig, Warrants, failover::Failover, membership::Keeper},
    replication::{
        Replica,
        catch_up::{Fetch, SnapshotSource},
        fence::Fence,
        read_index::{ReadHandler, ReadIndex},
        receiver::Receiver,
        sender::Sender,
        voter::SealHandler,
    },
    transport::{Mesh, Socket},
    types::{Balance, BootId, Lsn, NodeId, Role, Timing, TimingProfile},
    wal::{Wal, WalConfig},
    write_path::{
        Submitter,
        apply::{AppliedState, Apply},
        commit::Writer,
        serve::ForwardHandler,
    },
};

use super::{
    NodeError,
    become_member::{self, Place, Settled},
    custom::{CustomProtocols, CustomStreams},
    damage::Findings,
    footing::Footing,
    gateway::Asker,
    handle::{Inner, Node},
    heard::LastHeard,
    interrupted,
    local::{StatusHandler, ThisNode},
    maintenance,
    reads::Reads,
    restored::Restored,
    scrub::ScrubConfig,
    surroundings::Surroundings,
    tasks::Tasks,
    traffic::Traffic,
    upkeep,
    view_source::ViewSource,
};

/// What a node is told at start.
#[derive(Debug)]
pub struct NodeConfig {
    /// The locked data directory.
    pub dir: DataDir,
    /// A label for people.
    pub name: String,
    /// Role wanted; fixed when the node joins.
    pub role: Role,
    /// The join token, on an empty data directory.
    pub join: Option<JoinToken>,
    /// The cluster's CA, if this node makes the cluster; one of its own without.
    pub ca: Option<CaFiles>,
    /// Make a new cluster although one is in sight.
    pub new_cluster: bool,
    /// How many nodes start together with one token chosen up front.
    pub bootstrap_expect: Option<u32>,
    /// Cluster-wide timeouts, if this node makes the cluster.
    pub profile: TimingProfile,
    /// The mesh's UDP socket.
    pub socket: Socket,
    /// Addresses told to peers instead of those of the interfaces.
    pub advertise: Vec<SocketAddr>,
    /// Where the HTTP edge listens, for status.
    pub http: Option<SocketAddr>,
    /// `host:port` of peers.
    pub seeds: Vec<String>,
    /// Look for peers by mDNS, on which interfaces.
    pub mdns: Option<MdnsConfig>,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Bytes of the log kept behind a checkpoint, for followers that were away.
    pub keep_bytes: u64,
    /// How often what is stored is read again and verified.
    pub scrub: ScrubConfig,
}

impl NodeConfig {
    /// A voter with every default: mesh on UDP port 7400 of every address, mDNS on, and, on an empty
    /// data directory where no cluster is in sight, a new cluster.
    pub fn new(dir: DataDir) -> Self {
        Self {
            dir,
            name: String::new(),
            role: Role::Voter,
            join: None,
            ca: None,
            new_cluster: false,
            bootstrap_expect: None,
            profile: TimingProfile::Lan,
            socket: Socket::Bind(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7400))),
            advertise: Vec::new(),
            http: None,
            seeds: Vec::new(),
            mdns: Some(MdnsConfig::default()),
            segment_bytes: 64 << 20,
            keep_bytes: 1 << 30,
            scrub: ScrubConfig::default(),
        }
    }

    /// A voter that is reached from this machine only, on a free port and without mDNS: for tests and
    /// examples. It joins the cluster that `founder`, in this process, has made, or makes one.
    ///
    /// # Errors
    /// The founder's socket does not say where it is.
    pub fn on_loopback(dir: DataDir, founder: Option<&Node>) -> std::io::Result<Self> {
        let seed = founder.map(Node::mesh_addr).transpose()?;
        Ok(Self {
            socket: Socket::Bind(SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0))),
            mdns: None,
            new_cluster: founder.is_none(),
            join: founder.and_then(|node| Some(node.founded()?.token.clone())),
            seeds: seed.iter().map(ToString::to_string).collect(),
            ..Self::new(dir)
        })
    }
}

/// Interfaces for mDNS; `*` at the end of a name stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MdnsConfig {
    /// Only these; empty for the built-in choice.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
}

const KINDS: [StreamKind; 12] = [
    StreamKind::Raft,
    StreamKind::Control,
    StreamKind::Append,
    StreamKind::Forward,
    StreamKind::Join,
    StreamKind::Snapshot,
    StreamKind::Status,
    StreamKind::Seal,
    StreamKind::Read,
    StreamKind::View,
    StreamKind::Http,
    StreamKind::Custom,
];

/// Parts that exist once the node knows its cluster.
struct DataPlane {
    wal: Wal,
    replica: Arc<Replica>,
    apply: Arc<Apply>,
    writer: Arc<Writer>,
    flushed: watch::Receiver<Lsn>,
}

/// Starts a node: rejoins, joins or founds a cluster, and returns when its parts run. It is a
/// member then, but need not have caught up: see [`Node::readiness`].
pub(super) async fn assemble(
    config: NodeConfig,
    surroundings: Surroundings,
    engine: Arc<dyn StorageEngine>,
) -> Result<Node, NodeError> {
    let dir = config.dir.path().to_path_buf();
    let store = Store::new(surroundings.disk.clone(), config.dir.path());
    let restored = Restored::check(&*surroundings.disk, &config, &store).await?;
    let Footing {
        store,
        seal_key,
        boot,
        record,
        saved_voters,
        identity,
        tasks,
        late,
        timing,
        view_out,
        addresses,
        mesh,
        peers,
    } = Footing::lay(&config, &surroundings, &KINDS).await?;

    let seal_key = Arc::new(seal_key);
    let warrants = || Warrants { seal_key: seal_key.clone(), trusted: view_out.subscribe() };

    // Who this node is.
    let place = become_member::decide(&config, record, &peers).await?;
    if place.is_gateway() {
        let says = "this is a gateway's data directory or join token: a node with data has its own";
        return Err(NodeError::Usage(says.to_owned()));
    }
    if !matches!(place, Place::Member(_)) {
        clear_unfinished(&surroundings, &dir).await?;
    }
    let newcomer = become_member::Newcomer {
        config: &config,
        store: &store,
        identity: &identity,
        seal_key: &seal_key,
        surroundings: &surroundings,
        addresses: &addresses,
        mesh: &mesh,
        peers: &peers,
        view: &view_out,
    };
    let (record, timing, control, founded) = match newcomer.settle(place, &late).await? {
        Settled::Member(record) => {
            let control =
                start_raft(&dir, &identity, timing, &surroundings, &mesh, &tasks, warrants()).await?;
            (record, timing, control, None)
        }
        Settled::Joined(record) => {
            let timing = view_out.borrow().profile.timing();
            let control =
                start_raft(&dir, &identity, timing, &surroundings, &mesh, &tasks, warrants()).await?;
            (record, timing, control, None)
        }
        Settled::Founder(chosen) => {
            let timing = config.profile.timing();
            let founding = newcomer.prepare_founding()?;
            let control =
                start_raft(&dir, &identity, timing, &surroundings, &mesh, &tasks, warrants()).await?;
            let (record, founded) =
                newcomer.found(founding, chosen, Restored::after(restored.as_ref()), &control).await?;
            (record, timing, control, founded)
        }
    };
    upkeep::spawn_view(&tasks, control.view(), view_out.clone(), store.clone());

    // The data plane.
    let data = open_data(
        &dir,
        &config,
        &surroundings,
        &identity,
        boot,
        record.cluster,
        timing,
        &control,
        &saved_voters,
        restored,
        engine.clone(),
        &tasks,
    )
    .await?;
    let applier = Arc::new(AppliedState(data.apply.clone()));
    let index = Arc::new(ReadIndex::new(data.replica.clone(), mesh.clone(), timing.election_min * 2));
    let this = Arc::new(ThisNode {
        control: control.clone(),
        mesh: mesh.clone(),
        replica: data.replica.clone(),
        apply: data.apply.clone(),
        writer: data.writer.clone(),
        engine,
        identity: identity.clone(),
        seal_key,
        addresses: addresses.clone(),
        flushed: data.flushed.clone(),
        surroundings: surroundings.clone(),
        findings: Findings::default(),
        disk_is_slow: AtomicBool::new(false),
        resigning: AtomicBool::new(false),
        successor: Mutex::default(),
        heard: LastHeard::default(),
        traffic: Traffic::default(),
    });
    let door = upkeep::door(&this);
    late.fill(StreamKind::Raft, control.rpc_handler());
    late.fill(StreamKind::Control, control.control_handler());
    late.fill(StreamKind::Join, door);
    late.fill(StreamKind::Status, Arc::new(StatusHandler(this.clone())));
    late.fill(
        StreamKind::Seal,
        Arc::new(SealHandler { replica: data.replica.clone(), warranted: control.warranted() }),
    );
    late.fill(StreamKind::Append, Arc::new(Sender::new(data.replica.clone(), applier.clone())));
    late.fill(StreamKind::Read, Arc::new(ReadHandler(index.clone())));
    late.fill(
        StreamKind::Snapshot,
        Arc::new(SnapshotSource {
            replica: data.replica.clone(),
            applier: applier.clone(),
            disk: surroundings.disk.clone(),
        }),
    );
    late.fill(
        StreamKind::Forward,
        Arc::new(ForwardHandler { writer: data.writer.clone(), replica: data.replica.clone() }),
    );

    let fetch = Fetch::new(surroundings.disk.clone(), dir.join("incoming"));
    let receiver = Receiver::new(data.replica.clone(), applier, mesh.clone(), fetch);
    tasks.spawn("receiver", async move { Ok(receiver.run().await?) });
    let (writer, heartbeat) = (data.writer.clone(), timing.heartbeat);
    tasks.spawn("office", async move { Ok(writer.hold_office(heartbeat).await?) });
    let failover = Failover::new(control.clone(), mesh.clone(), this.clone(), identity.node(), timing);
    let statuses = failover.statuses();
    let keeper = Keeper::new(control.clone(), this.clone(), identity.node(), statuses);
    tasks.spawn("failover", async move {
        failover.run().await;
        Ok(())
    });
    tasks.spawn("membership", async move {
        keeper.run().await;
        Ok(())
    });
    upkeep::spawn(&tasks, &this, view_out, &store, config.scrub);

    let (stopping_out, stopping) = watch::channel(false);
    let source = ViewSource { this: this.clone(), stopping: stopping.clone(), timing };
    late.fill(StreamKind::View, Arc::new(source));
    let custom = Arc::new(CustomProtocols::default());
    late.fill(StreamKind::Custom, Arc::new(CustomStreams(custom.clone())));
    let submitter = Submitter::new(data.replica.clone(), data.writer, mesh.clone(), stopping);
    let asker = Asker::new(mesh, control.view(), Balance::RoundRobin);
    let reads = Reads { replica: data.replica, apply: data.apply, index };
    Ok(Node::new(Inner {
        dir: config.dir,
        this,
        submitter,
        asker,
        reads,
        tasks,
        stopping: stopping_out,
        founded,
        timing,
        peers,
        late,
        custom,
        _wal: data.wal,
    }))
}

/// A founding that did not come to its end leaves a raft log, and nothing that was acknowledged to
/// anybody. A WAL without the record of its cluster is something else: this node has promised, and
/// must not come back without its promises.
pub(super) async fn clear_unfinished(surroundings: &Surroundings, dir: &Path) -> Result<(), NodeError> {
    let disk = &*surroundings.disk;
    let failed = |source| NodeError::Task(format!("cannot look into {}: {source}", dir.display()));
    match disk.list(&dir.join("wal")).await {
        Ok(names) if !names.is_empty() => return Err(NodeError::LostRecord { dir: dir.to_path_buf() }),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    crate::disk::remove_files_below(disk, &dir.join("raft")).await.map_err(failed)
}

async fn start_raft(
    dir: &Path,
    identity: &Identity,
    timing: Timing,
    surroundings: &Surroundings,
    mesh: &Mesh,
    tasks: &Tasks,
    warrants: Warrants,
) -> Result<Control, NodeError> {
    let slot = crate::raft::MeshSlot::default();
    // A fresh slot is empty.
    let _ = slot.set(mesh.clone());
    let config = RaftConfig {
        id: identity.node(),
        dir: dir.join("raft"),
        timing,
        seed: surroundings.rng().next_u64(),
    };
    let (control, driver): (Control, ControlDriver) =
        Control::start(config, surroundings.disk.clone(), slot).await?;
    NodeError::if_older(&control.view().borrow())?;
    control.bear_warrants(warrants);
    tasks.spawn("raft", async move {
        driver.run().await;
        Ok(())
    });
    Ok(control)
}

#[allow(clippy::too_many_arguments)]
async fn open_data(
    dir: &Path,
    config: &NodeConfig,
    surroundings: &Surroundings,
    identity: &Identity,
    boot: BootId,
    cluster: crate::types::ClusterId,
    timing: Timing,
    control: &Control,
    saved_voters: &BTreeSet<NodeId>,
    restored: Option<Restored>,
    engine: Arc<dyn StorageEngine>,
    tasks: &Tasks,
) -> Result<DataPlane, NodeError> {
    // Damage is repaired from a writer; a voter that is alone can only be that itself. Raft's snapshot
    // may know fewer voters than there are, and what was saved may be behind a snapshot.
    let voters = control.view().borrow().all_voters();
    let quarantine = voters.union(saved_voters).any(|voter| *voter != identity.node());
    let wal_config =
        WalConfig { segment_bytes: config.segment_bytes, quarantine, ..WalConfig::new(dir.join("wal")) };
    let mut nonces = surroundings.rng();
    let (wal, driver, recovered) =
        Wal::open(surroundings.disk.clone(), wal_config, cluster, Box::new(move || nonces.next_u64()))
            .await?;
    tasks.spawn("log", async move { Ok(driver.run().await?) });
    tracing::info!(end = %recovered.end, commit = %recovered.commit, promise = recovered.promise, "log recovered");
    interrupted::finish(&wal, engine.recovered().0).await?;
    let commit = match restored {
        Some(restored) => restored.begin_log(&*surroundings.disk, dir, &wal, &*engine).await?,
        None => wal.commit(),
    };
    let (apply, checkpointer) = Apply::new(engine.clone())?;
    // A restarted voter may have granted a lease in its former life.
    let hold_off = (!recovered.empty || wal.end() > Lsn::ZERO).then_some(timing.election_min);
    let fence = Fence::new(wal.clone(), identity.node(), boot, hold_off);
    let replica = Replica::new(
        fence,
        wal.clone(),
        (identity.node(), boot),
        commit,
        control.view(),
        timing.election_min,
    );
    tasks.spawn("maintenance", maintenance::run(engine.clone()));
    let writer = Writer::new(replica.clone(), apply.clone(), engine, surroundings.clock.clone());
    let flushed = checkpointer.watch();
    let (applying, behind, keep) = (replica.clone(), replica.clone(), config.keep_bytes);
    let apply_task = apply.clone();
    tasks.spawn("apply", async move { Ok(apply_task.run(applying).await?) });
    tasks.spawn("checkpoints", async move {
        checkpointer.run(behind, keep).await;
        Ok(())
    });
    Ok(DataPlane { wal, replica, apply, writer, flushed })
}
