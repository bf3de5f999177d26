//! The types that openraft is used with.

use openraft::{EmptyNode, impls::leader_id_std, type_config::alias};

use super::{
    runtime::Runtime,
    types::{Command, Outcome},
};
use crate::types::MembershipId;

openraft::declare_raft_types!(
    /// Standard leader ids: one leader per term. A node needs no address here: the mesh knows
    /// how to reach an id.
    pub(super) TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = crate::types::NodeId,
        Node = EmptyNode,
        LeaderId = leader_id_std::LeaderId<u64, crate::types::NodeId>,
        AsyncRuntime = Runtime,
);

pub(super) type Entry = alias::EntryOf<TypeConfig>;
pub(super) type LogId = alias::LogIdOf<TypeConfig>;
pub(super) type Vote = alias::VoteOf<TypeConfig>;
pub(super) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = alias::SnapshotOf<TypeConfig, bytes::Bytes>;

/// The id of a membership entry in the words of the rest of the crate.
pub(super) fn membership_id(membership: &StoredMembership) -> MembershipId {
    membership
        .log_id()
        .as_ref()
        .map(|id| MembershipId { term: id.leader_id.term, index: id.index })
        .unwrap_or_default()
}
