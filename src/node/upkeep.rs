//! What goes on beside the data: the view is passed on and saved, the certificate renewed, own
//! addresses told, a removal noticed, a failing disk turned into a stop.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::RngCore;
use tokio::{sync::watch, time::Instant};

use crate::{
    identity::{Identity, SealKey, Store},
    join::{Door, Renewal, Signer},
    raft::{Command, MeshSlot},
    replication::catch_up::Fetch,
    transport::{Handler, Mesh},
    types::{ClusterId, ClusterView, NodeId},
};

use super::{
    NodeError, damage, drain, heard,
    local::{ThisNode, VERSION, features},
    rotation, scrub,
    scrub::ScrubConfig,
    surroundings::Surroundings,
    tasks::Tasks,
};

/// Between two looks at whether the cluster knows this node's addresses.
const TELL: Duration = Duration::from_secs(1);
/// Between two looks at the log's disk.
const LOOK: Duration = Duration::from_millis(100);

/// Hands each applied view to the mesh and saves it, so that a restarted node knows its peers
/// before raft has spoken.
pub(super) fn spawn_view(
    tasks: &Tasks,
    mut applied: watch::Receiver<Arc<ClusterView>>,
    out: watch::Sender<Arc<ClusterView>>,
    store: Store,
) {
    tasks.spawn("view", async move {
        let mut shown = out.subscribe();
        let mut saved = shown.borrow_and_update().clone();
        loop {
            let view = applied.borrow_and_update().clone();
            // A state machine that has not been told its cluster yet knows less than what was saved;
            // neither does a restarted one whose log is still being replayed.
            out.send_if_modified(|out| {
                let newer = view.cluster != ClusterId::default() && view.applied_index >= out.applied_index;
                if newer {
                    rotation::tell(out, &view);
                    *out = view;
                }
                newer
            });
            // What a renewal has learned of new roots is shown without having been applied here.
            let now = shown.borrow_and_update().clone();
            let changed =
                saved.members != now.members || saved.roots != now.roots || saved.profile != now.profile;
            // Terms and offices change more often than members; they are not worth a save each.
            // It is a hint for a restart: a full disk is no reason to stop.
            if changed {
                if let Err(error) = store.set_view(&now).await {
                    tracing::warn!(%error, "cannot save the cluster view");
                }
                saved = now;
            }
            tokio::select! {
                more = applied.changed() => if more.is_err() { return Ok(()) },
                _ = shown.changed() => {}
            }
        }
    });
}

/// Who answers at the door.
pub(super) fn door(this: &Arc<ThisNode>) -> Arc<dyn Handler> {
    let slot = MeshSlot::default();
    // A fresh slot is empty.
    let _ = slot.set(this.mesh.clone());
    Arc::new(Door::new(this.signer(), this.control.clone(), slot))
}

/// What a node signs with, if it holds the CA key; one that does not asks with it for a certificate.
pub(super) fn signer(identity: Arc<Identity>, seal_key: Arc<SealKey>, surroundings: &Surroundings) -> Signer {
    let (clock, serials) = (surroundings.clone(), surroundings.clone());
    Signer {
        identity,
        seal_key,
        clock: Arc::new(move || clock.unix_ms()),
        serials: Arc::new(move || serials.random()),
    }
}

/// Spawns the rest.
pub(super) fn spawn(
    tasks: &Tasks,
    this: &Arc<ThisNode>,
    view: watch::Sender<Arc<ClusterView>>,
    store: &Store,
    scrubbing: ScrubConfig,
) {
    let renewal = Renewal {
        signer: this.signer(),
        control: Some(this.control.clone()),
        view,
        mesh: this.mesh.clone(),
        store: store.clone(),
        jitter: f64::from(this.surroundings.rng().next_u32()) / f64::from(u32::MAX),
    };
    tasks.spawn("renewal", async move {
        renewal.run().await;
        Ok(())
    });
    tasks.spawn("ca-rotation", rotation::carry_on(this.clone()));
    tasks.spawn("addresses", tell_addresses(this.clone()));
    tasks.spawn("version", knows_the_cluster(this.control.view()));
    let (me, mesh) = (this.identity.node(), this.mesh.clone());
    tasks.spawn("removal", notice_removal(me, mesh.clone(), this.control.view(), store.clone()));
    tasks.spawn("recovery", notice_recovery(mesh, store.clone()));
    tasks.spawn("backoff", reset_backoff(this.clone()));
    tasks.spawn("last-heard", heard::watch_links(this.clone()));
    tasks.spawn("disk", watch_disk(this.clone()));
    tasks.spawn("fail-stop", fail_stop(this.clone()));
    tasks.spawn("step-aside", drain::step_aside(this.clone()));
    tasks.spawn("mend-log", damage::mend_log(this.clone()));
    let into = Fetch::new(this.surroundings.disk.clone(), store.dir().join("mending"));
    tasks.spawn("mend-files", damage::mend_files(this.clone(), into));
    tasks.spawn("scrub", scrub::scrub(this.clone(), scrubbing));
}

/// Ends this node once the cluster has done what this version does not know. What says so may be in the log,
/// or still to come from the others.
pub(super) async fn knows_the_cluster(mut view: watch::Receiver<Arc<ClusterView>>) -> Result<(), NodeError> {
    // The guard that it returns must not live across the wait below.
    let seen = view.wait_for(|view| NodeError::if_older(view).is_err()).await.map(|view| view.clone());
    match seen {
        Ok(view) => NodeError::if_older(&view),
        // Whoever showed it has stopped, and says why himself.
        Err(_) => std::future::pending().await,
    }
}

/// Keeps the member record true: addresses, version, features.
async fn tell_addresses(this: Arc<ThisNode>) -> Result<(), NodeError> {
    loop {
        let view = this.control.view().borrow().clone();
        let own = this.addresses.borrow().clone();
        let known = view.members.get(&this.identity.node());
        let differs = known.is_some_and(|member| {
            member.addresses != own || member.version != VERSION || member.features != features()
        });
        if differs && view.leader.is_some() {
            let update = Command::Update {
                node: this.identity.node(),
                addresses: own,
                certificate: None,
                version: VERSION.to_owned(),
                features: features(),
            };
            if let Err(error) = this.control.propose(update, Duration::from_secs(5)).await {
                tracing::debug!(%error, "the cluster has not been told this node's addresses yet");
            }
        }
        tokio::time::sleep(TELL).await;
    }
}

/// A node that learns of its own removal leaves a tombstone and stops for good.
pub(super) async fn notice_removal(
    me: NodeId,
    mesh: Mesh,
    view: watch::Receiver<Arc<ClusterView>>,
    store: Store,
) -> Result<(), NodeError> {
    let by = tokio::select! {
        told = until(mesh.removed_notice(), Option::is_some) => match told.flatten() {
            Some(by) => format!(" (said node {by})"),
            None => return std::future::pending().await,
        },
        seen = until(view, |view| view.removed.contains_key(&me)) => match seen {
            Some(_) => String::new(),
            None => return std::future::pending().await,
        },
    };
    let reason = format!("an operator removed node {me}{by}");
    store.set_tombstone(&reason).await?;
    let dir = store.dir().to_path_buf();
    Err(NodeError::Removed { reason, dir })
}

/// A node that was left out of a recovery stops acknowledging anything as soon as it hears of it:
/// what it acknowledged would be given up. It comes back at its next start.
pub(super) async fn notice_recovery(mesh: Mesh, store: Store) -> Result<(), NodeError> {
    let Some(recovery) = until(mesh.superseded(), Option::is_some).await.flatten() else {
        return std::future::pending().await;
    };
    store.set_superseded(&recovery).await?;
    Err(NodeError::Superseded { recovery: Box::new(recovery), dir: store.dir().to_path_buf() })
}

/// A peer that is linked again need not wait for raft's backoff.
async fn reset_backoff(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let mut links = this.mesh.links();
    let mut known = std::collections::BTreeSet::new();
    loop {
        let now: std::collections::BTreeSet<_> = links.borrow_and_update().keys().copied().collect();
        for peer in now.difference(&known) {
            this.control.reset_backoff(*peer);
        }
        known = now;
        if links.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A disk that keeps a record waiting for its fsync for three times the lease is slow: the leader
/// moves office away from a writer that has one.
async fn watch_disk(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let patience = this.replica.lease_term * 3;
    let (mut durable, mut moved) = (this.replica.wal.durable(), Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = this.replica.wal.durable();
        if now != durable || now == this.replica.wal.end() {
            (durable, moved) = (now, Instant::now());
        }
        let slow = moved.elapsed() > patience;
        if this.disk_is_slow.swap(slow, Ordering::AcqRel) != slow {
            tracing::warn!(slow, at = %now, "the log's disk is slow, or no longer");
        }
    }
}

/// A failed write or fsync ends the process: the page cache may have lost what a second fsync
/// would claim.
async fn fail_stop(this: Arc<ThisNode>) -> Result<(), NodeError> {
    let (what, reason) = tokio::select! {
        Some(reason) = until(this.replica.wal.failed(), Option::is_some) => ("the log", reason),
        Some(reason) = until(this.control.failed(), Option::is_some) => ("the raft log", reason),
        else => return std::future::pending().await,
    };
    Err(NodeError::FailStop { what, reason: reason.unwrap_or_default(), node: this.identity.node() })
}

/// The first value that fits; `None` when the sender is gone.
async fn until<T: Clone>(mut values: watch::Receiver<T>, fits: impl FnMut(&T) -> bool) -> Option<T> {
    values.wait_for(fits).await.ok().map(|value| value.clone())
}
