//! Changing who is in raft: one voter at a time, from the membership that was looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openraft::{
    ChangeMembers, EmptyNode, Precondition,
    async_runtime::WatchReceiver,
    errors::{ClientWriteError, RaftError},
};

use super::{
    control::{Control, ControlError},
    type_config::{StoredMembership, membership_id},
};
use crate::types::{MembershipId, NodeId};

impl Control {
    /// Adds a node as learner; nothing happens if it is in raft already. Leader only.
    pub async fn add_learner(&self, id: NodeId) -> Result<(), ControlError> {
        let newest = self.settled()?;
        if newest.get_node(&id).is_some() {
            return Ok(());
        }
        self.change(newest, ChangeMembers::AddNodes(BTreeMap::from([(id, EmptyNode {})])), true).await
    }

    /// Makes one learner a voter: a joint membership, then the uniform one. Nothing happens if it
    /// is one. Leader only. When it is dropped or fails half way the membership may stay joint:
    /// see [`Control::finish_change`].
    pub async fn promote(&self, id: NodeId) -> Result<(), ControlError> {
        let newest = self.settled()?;
        if newest.voter_ids().any(|voter| voter == id) {
            return Ok(());
        }
        self.change(newest, ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
    }

    /// Makes one voter a learner; nothing happens if it is none. Leader only; like
    /// [`Control::promote`].
    pub async fn demote(&self, id: NodeId) -> Result<(), ControlError> {
        let newest = self.settled()?;
        if !newest.voter_ids().any(|voter| voter == id) {
            return Ok(());
        }
        self.change(newest, ChangeMembers::RemoveVoters(BTreeSet::from([id])), true).await
    }

    /// Takes one node out of raft, voter or learner; nothing happens if it is not in it. Leader
    /// only; like [`Control::promote`].
    pub async fn remove(&self, id: NodeId) -> Result<(), ControlError> {
        let newest = self.settled()?;
        if newest.voter_ids().any(|voter| voter == id) {
            self.change(newest, ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
        } else if newest.get_node(&id).is_some() {
            self.change(newest, ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await
        } else {
            Ok(())
        }
    }

    /// Completes a change that an earlier leader, or a dropped future, left joint; nothing
    /// happens if the newest membership is uniform. A voter that was on its way out stays as
    /// learner. Leader only.
    pub async fn finish_change(&self) -> Result<(), ControlError> {
        let newest = self.newest();
        if newest.get_joint_config().len() <= 1 {
            return Ok(());
        }
        self.change(newest, ChangeMembers::AddVoterIds(BTreeSet::new()), true).await
    }

    /// True when the newest membership entry in this node's log is joint.
    pub fn is_joint(&self) -> bool {
        self.newest().get_joint_config().len() > 1
    }

    /// The newest membership entry in this node's log, applied or not.
    pub fn newest_membership(&self) -> MembershipId {
        membership_id(&self.newest())
    }

    fn newest(&self) -> Arc<StoredMembership> {
        self.inner.raft.metrics().borrow_watched().membership_config.clone()
    }

    /// The newest membership, from which a leader may start a change.
    fn settled(&self) -> Result<Arc<StoredMembership>, ControlError> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        if !metrics.state.is_leader() {
            return Err(ControlError::NotLeader(metrics.current_leader));
        }
        if metrics.membership_config.get_joint_config().len() > 1 {
            return Err(ControlError::Membership("an earlier change is not finished".into()));
        }
        Ok(metrics.membership_config.clone())
    }

    /// Changes exactly the membership that was looked at: two changes at once could otherwise
    /// make one step of two voters.
    async fn change(
        &self,
        newest: Arc<StoredMembership>,
        change: ChangeMembers<NodeId, EmptyNode>,
        retain: bool,
    ) -> Result<(), ControlError> {
        // Model: one_voter_per_change
        let same = Precondition::LastMembershipLogId { last_membership_log_id: *newest.log_id() };
        match self.inner.raft.change_membership_if(change, retain, [same]).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ControlError::NotLeader(forward.leader_id))
            }
            Err(RaftError::APIError(error)) => Err(ControlError::Membership(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(ControlError::Stopped(fatal.to_string())),
        }
    }
}
