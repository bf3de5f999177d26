//! What every member stands on, with data or without: its directory, its keys, the mesh, and whoever may
//! be out there.

use std::{collections::BTreeSet, sync::Arc};

use rand::RngCore;
use tokio::sync::watch;

use crate::{
    identity::{ClusterRecord, Identity, SealKey, Store},
    protocol::StreamKind,
    transport::{Mesh, MeshConfig, MeshDriver},
    types::{Addresses, BootId, ClusterView, NodeId, Timing},
};

use super::{
    NodeConfig, NodeError,
    addresses::{self, Listen},
    late::LateHandlers,
    local::{VERSION, features},
    peers::Peers,
    recover,
    surroundings::Surroundings,
    tasks::Tasks,
};

/// A node that listens and dials, and may not be a member yet.
pub(super) struct Footing {
    pub(super) store: Store,
    pub(super) seal_key: SealKey,
    pub(super) boot: BootId,
    /// Its place in a cluster, if it has one already.
    pub(super) record: Option<ClusterRecord>,
    /// The voters as they were saved last.
    pub(super) saved_voters: BTreeSet<NodeId>,
    pub(super) identity: Arc<Identity>,
    pub(super) tasks: Tasks,
    pub(super) late: LateHandlers,
    pub(super) timing: Timing,
    /// What the mesh goes by.
    pub(super) view_out: watch::Sender<Arc<ClusterView>>,
    pub(super) addresses: watch::Receiver<Addresses>,
    pub(super) mesh: Mesh,
    pub(super) peers: Peers,
}

impl Footing {
    /// Opens the store and the mesh; streams of these `kinds` will be served.
    pub(super) async fn lay(
        config: &NodeConfig,
        surroundings: &Surroundings,
        kinds: &[StreamKind],
    ) -> Result<Self, NodeError> {
        let dir = config.dir.path().to_path_buf();
        let store = Store::new(surroundings.disk.clone(), &dir);
        store.settle().await?;
        if let Some(reason) = store.tombstone().await? {
            return Err(NodeError::Removed { reason, dir });
        }
        if let Some(recovery) = store.superseded().await? {
            return Err(NodeError::Superseded { recovery: Box::new(recovery), dir });
        }
        let (node_key, seal_key) = store.keys([surroundings.random(), surroundings.random()]).await?;
        let boot = BootId(surroundings.rng().next_u64());
        let record = store.cluster().await?;
        // Of a joining that was cut short, it says nothing about this node.
        let saved_view =
            if record.is_some() { store.view().await?.unwrap_or_default() } else { ClusterView::default() };
        // Which world this process is of: told to every peer, and never changed while it runs.
        let world = record.as_ref().and_then(|record| record.recovery.clone());
        let saved_voters =
            if saved_view.recovery == world { saved_view.all_voters() } else { BTreeSet::default() };
        recover::check(surroundings, &dir, world.as_ref()).await?;
        let identity = Arc::new(match &record {
            Some(record) => Identity::member(node_key, &record.certificate, &record.roots)?,
            None => Identity::stranger(node_key, surroundings.unix_seconds())?,
        });

        // The mesh first: a joiner needs it to ask, and its connections stay when it is let in.
        let tasks = Tasks::default();
        let (late, router) = LateHandlers::new(kinds);
        let profile = if record.is_none() { config.profile } else { saved_view.profile };
        let timing = profile.timing();
        let (view_out, mesh_view) =
            watch::channel(Arc::new(ClusterView { writer: None, recovery: world, ..saved_view }));
        let listen = Listen::new(config);
        let (own, addresses) = watch::channel(Addresses { http: config.http, ..Addresses::default() });
        let mesh_config = mesh_config(config, surroundings, timing, boot, addresses.clone());
        let (mesh, driver) = Mesh::bind(mesh_config, identity.clone(), mesh_view.clone(), router)?;
        let port = mesh.local_addr().map_err(crate::transport::MeshError::from)?.port();
        own.send_replace(listen.addresses(port)?);
        spawn_mesh(&tasks, driver);
        tasks.spawn("own-addresses", addresses::follow(listen.clone(), port, own));
        let peers =
            Peers::start(config, identity.node(), &listen, port, &mesh, &mesh_view, record.as_ref(), &tasks);
        Ok(Self {
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
        })
    }
}

fn mesh_config(
    config: &NodeConfig,
    surroundings: &Surroundings,
    timing: Timing,
    boot: BootId,
    addresses: watch::Receiver<Addresses>,
) -> MeshConfig {
    let clock = surroundings.clone();
    MeshConfig {
        socket: config.socket.clone(),
        timing,
        addresses,
        version: VERSION.to_owned(),
        features: features(),
        boot,
        clock: Arc::new(move || clock.unix_seconds()),
    }
}

fn spawn_mesh(tasks: &Tasks, driver: MeshDriver) {
    tasks.spawn("mesh", async move {
        driver.run().await;
        Ok(())
    });
}
