//! What this node has applied, as one value, and the view of the cluster made from it.

use std::{collections::BTreeSet, sync::Arc};

use openraft::type_config::alias;
use tokio::sync::watch;

use super::{
    type_config::{LogId, StoredMembership, TypeConfig, membership_id},
    types::State,
};
use crate::types::{ClusterView, NodeId};

/// State, position and membership after some entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Applied {
    pub(super) state: Arc<State>,
    pub(super) last: Option<LogId>,
    pub(super) membership: StoredMembership,
}

impl Applied {
    /// The view: everything from this one value but leader and term.
    pub(super) fn view(&self, leader: Option<NodeId>, term: alias::TermOf<TypeConfig>) -> ClusterView {
        let state = &*self.state;
        let membership = self.membership.membership();
        ClusterView {
            cluster: state.cluster.unwrap_or_default(),
            name: state.name.clone(),
            members: state.members.clone(),
            removed: state.removed.clone(),
            drained: state.drained.clone(),
            voters: membership.get_joint_config().clone(),
            learners: membership.learner_ids().collect::<BTreeSet<_>>(),
            membership: membership_id(&self.membership),
            writer: state.writer,
            terms: state.terms.clone(),
            leader,
            term,
            roots: state.roots.clone(),
            rotation: state.rotation.as_ref().map(|rotation| rotation.progress.clone()),
            profile: state.profile,
            feature_level: state.feature_level,
            applied_index: self.last.as_ref().map_or(0, |id| id.index),
            recovery: state.recovery.clone(),
        }
    }
}

/// Where the applied value and the view are published. The view is out before a proposer hears
/// that its command was applied.
#[derive(Debug, Clone)]
pub(super) struct Board {
    pub(super) applied: watch::Sender<Arc<Applied>>,
    pub(super) view: watch::Sender<Arc<ClusterView>>,
}

impl Board {
    pub(super) fn new(applied: Applied) -> Self {
        let view = applied.view(None, 0);
        Self { applied: watch::Sender::new(Arc::new(applied)), view: watch::Sender::new(Arc::new(view)) }
    }

    /// Called by the state machine alone.
    pub(super) fn publish_applied(&self, applied: Applied) {
        let applied = Arc::new(applied);
        self.applied.send_replace(applied.clone());
        self.view.send_modify(|view| *view = Arc::new(applied.view(view.leader, view.term)));
    }

    /// Called by the driver alone.
    pub(super) fn publish_leader(&self, leader: Option<NodeId>, term: u64) {
        self.view.send_if_modified(|view| {
            let changed = (view.leader, view.term) != (leader, term);
            if changed {
                *view = Arc::new(ClusterView { leader, term, ..(**view).clone() });
            }
            changed
        });
    }
}
