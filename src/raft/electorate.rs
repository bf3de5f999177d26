//! Who speaks to this node as a voter.
//!
//! A member that is none (a reader) takes part in raft and has a certificate like everybody's. What it
//! says in its own name would count as any leader's or candidate's does: raft goes by terms, not by
//! who is a voter, because a node that was away cannot know who has become one. So a node believes
//! whom its own log knows as a voter, and everybody else only with a warrant: a signature of the
//! cluster's CA, whose key voters hold before they vote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use openraft::async_runtime::WatchReceiver;
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use super::{Raft, State, applied::Board};
use crate::{
    identity::{ClusterCa, SealKey, seal, warrant},
    types::{ClusterView, NodeId},
};

/// Warrants that one message may hold: there are two CAs while one is rotated.
const MOST: usize = 4;
/// Bytes of one.
const SIGNATURE: usize = 64;

/// What a node shows and judges warrants by.
#[derive(Debug)]
pub struct Warrants {
    /// Opens the copies of the CA's key that were sealed to this node.
    pub seal_key: Arc<SealKey>,
    /// The cluster that this node is in, and the roots it trusts: known before its log knows anything.
    pub trusted: watch::Receiver<Arc<ClusterView>>,
}

/// Who may speak as a voter; clones are the same. Without [`Warrants`] nobody but whom the log knows.
#[derive(Clone)]
pub(super) struct Electorate(Arc<Inner>);

struct Inner {
    id: NodeId,
    board: Board,
    warrants: OnceLock<Warrants>,
    /// Those who have shown one since this process began.
    shown: Mutex<BTreeMap<NodeId, Shown>>,
    /// Whose warrants, or terms, were refused: said once of each.
    refused: Mutex<BTreeSet<NodeId>>,
}

/// What a node has shown, and the roots by which it was good.
#[derive(Debug)]
struct Shown {
    warrants: Vec<ByteBuf>,
    roots: Vec<ByteBuf>,
}

/// Whether a node has shown a warrant that is good now.
pub type Warranted = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

impl Electorate {
    pub(super) fn new(id: NodeId, board: Board) -> Self {
        let (warrants, shown, refused) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { id, board, warrants, shown, refused }))
    }

    /// Once; a second time changes nothing.
    pub(super) fn equip(&self, warrants: Warrants) {
        let _ = self.0.warrants.set(warrants);
    }

    /// True when the log of `raft` knows `node` as a voter, or a warrant has been shown.
    pub(super) fn knows(&self, raft: &Raft, node: NodeId) -> bool {
        let known = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().any(|voter| voter == node)
        };
        known || self.has_shown(node)
    }

    /// True when what `node` answers of a higher term may be believed: it is a voter, holds a copy of the
    /// CA's key as who was one does, or has shown a warrant. A term that any member may make up could take
    /// office from every leader, for ever.
    pub(super) fn believes(&self, node: NodeId) -> bool {
        let applied = self.0.board.applied.borrow().clone();
        applied.membership.voter_ids().any(|voter| voter == node)
            || applied.state.sealed_ca.contains_key(&node)
            || self.has_shown(node)
    }

    /// True once of each node: whoever is refused decides how often. Members only come so far, and there
    /// are so many of them.
    pub(super) fn is_first_refusal(&self, node: NodeId) -> bool {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(node)
    }

    /// True when `node` has shown a warrant that is good by the roots trusted now: one by a root that has
    /// been retired since counts no more.
    pub(super) fn has_shown(&self, node: NodeId) -> bool {
        let Some(warrants) = self.0.warrants.get() else { return false };
        let view = warrants.trusted.borrow().clone();
        let mut all = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shown) = all.get_mut(&node) else { return false };
        if shown.roots != view.roots {
            if !is_good(node, &shown.warrants, &view) {
                all.remove(&node);
                tracing::info!(%node, "its warrant of a voter is by a root that is trusted no more");
                return false;
            }
            shown.roots.clone_from(&view.roots);
        }
        true
    }

    /// What this node can show: nothing if it holds no CA key.
    pub(super) fn own(&self) -> Vec<ByteBuf> {
        let Some(warrants) = self.0.warrants.get() else { return Vec::new() };
        let state = self.0.board.applied.borrow().state.clone();
        let Some(cluster) = state.cluster else { return Vec::new() };
        let cas = held_cas(&state, self.0.id, &warrants.seal_key);
        cas.iter().map(|ca| ByteBuf::from(warrant::sign(ca, cluster, self.0.id))).collect()
    }

    /// Judges what `node` shows; true if it is a voter by it.
    pub(super) fn judge(&self, node: NodeId, shown: &[ByteBuf]) -> bool {
        let Some(warrants) = self.0.warrants.get() else { return false };
        let view = warrants.trusted.borrow().clone();
        if !is_good(node, shown, &view) {
            if self.is_first_refusal(node) {
                tracing::warn!(%node, "refused a warrant of a voter that the cluster's CA has not signed");
            }
            return false;
        }
        // What is no signature can never become good; the rest may, by a root that comes.
        let warrants = shown.iter().filter(|warrant| warrant.len() == SIGNATURE).cloned().collect();
        let shown = Shown { warrants, roots: view.roots.clone() };
        let mut all = self.0.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if all.insert(node, shown).is_none() {
            tracing::info!(%node, "a voter that this node had not heard of has shown its warrant");
        }
        true
    }
}

/// True when one of these is by a root that is trusted.
fn is_good(node: NodeId, warrants: &[ByteBuf], view: &ClusterView) -> bool {
    let good = |warrant: &ByteBuf| warrant::is_signed(warrant, view.cluster, node, &view.roots);
    warrants.len() <= MOST && warrants.iter().any(good)
}

impl fmt::Debug for Electorate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Electorate").field("id", &self.0.id).finish_non_exhaustive()
    }
}

/// Every CA whose key `node` holds by `state`: one, or two while the CA is rotated, the newer one last.
/// Opened each time, and wiped when it is dropped.
pub fn held_cas(state: &State, node: NodeId, seal_key: &SealKey) -> Vec<ClusterCa> {
    let Some(cluster) = state.cluster else { return Vec::new() };
    let sealed = [Some(&state.sealed_ca), state.rotation.as_ref().map(|rotation| &rotation.sealed_ca)];
    let held = state.roots.iter().zip(sealed).filter_map(|(root, sealed)| Some((root, sealed?.get(&node)?)));
    let open = |(root, sealed): (&ByteBuf, &ByteBuf)| {
        let key = seal::open(sealed, seal_key, cluster, node).map_err(|error| error.to_string())?;
        ClusterCa::from_parts(root, &key).map_err(|error| error.to_string())
    };
    let usable = |opened: Result<ClusterCa, String>| match opened {
        Ok(ca) => Some(ca),
        Err(error) => {
            tracing::error!(error, "this node cannot use its copy of a CA key");
            None
        }
    };
    held.map(open).filter_map(usable).collect()
}
