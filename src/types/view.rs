//! What a node knows of the cluster: one value, made from the applied raft state and the raft
//! metrics, carried to every other part on a watch channel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{BootId, CaRotation, ClusterId, Epoch, NodeId, Recovery, Role};

/// Log id of the membership entry that is in force, as (term, index) of the raft log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MembershipId {
    /// Raft term of the entry.
    pub term: u64,
    /// Raft log index of the entry.
    pub index: u64,
}

impl fmt::Display for MembershipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}

/// Where a node may be reached. Hints only: identity is the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// UDP addresses of the mesh endpoint.
    pub mesh: Vec<SocketAddr>,
    /// Address of the HTTP edge.
    pub http: Option<SocketAddr>,
}

/// A member as raft knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Hash of the public key.
    pub id: NodeId,
    /// A label for people.
    pub name: String,
    /// The role the node wants; what it *is* follows from the voters and learners of the view.
    pub role: Role,
    /// Last known addresses.
    pub addresses: Addresses,
    /// SubjectPublicKeyInfo (DER) of the node's Ed25519 TLS key.
    #[serde(with = "serde_bytes")]
    pub spki: Vec<u8>,
    /// Public half of the X25519 sealing key.
    #[serde(with = "serde_bytes")]
    pub seal_key: Vec<u8>,
    /// Ed25519 signature of the node key over the sealing key and the cluster id.
    #[serde(with = "serde_bytes")]
    pub seal_key_signature: Vec<u8>,
    /// Serial number of the newest certificate, hexadecimal.
    pub serial: String,
    /// When that certificate expires, seconds since 1970.
    pub not_after: u64,
    /// Software version.
    pub version: String,
    /// Feature bits the node can do.
    pub features: u64,
}

/// The register: which process of which node writes in which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Office {
    /// The epoch of this term of office.
    pub epoch: Epoch,
    /// The node that writes.
    pub node: NodeId,
    /// The process run that writes: another boot of the same node holds no office.
    pub boot: BootId,
    /// The membership under which the majority was counted.
    pub membership: MembershipId,
    /// When it was named, by the clock of the leader that named it (milliseconds since 1970); 0 if that
    /// was not noted. For people: nothing is decided by it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub at_ms: u64,
    /// Why another writer was needed.
    #[serde(default, skip_serializing_if = "Why::is_unknown")]
    pub why: Why,
}

/// Left out, so that the bytes are those of before it was noted.
const fn is_zero(at_ms: &u64) -> bool {
    *at_ms == 0
}

impl Why {
    const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }
}

/// Why an epoch began, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Not noted.
    #[default]
    Unknown,
    /// Nobody had ever written.
    First,
    /// The writer was not heard any more.
    Silent,
    /// The writer's process had been started again.
    Restarted,
    /// The writer did not take office.
    NotInOffice,
    /// A voter had promised a higher epoch, so that the writer might have been unable to commit.
    PromisedAbove,
    /// The writer handed over.
    HandedOver,
    /// The writer's disk was full or slow.
    Disk,
    /// The writer was no voter any more.
    NotVoter,
    /// The cluster was recovered from the loss of a majority.
    Recovered,
}

/// Named sets of timeouts, cluster-wide, chosen at bootstrap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimingProfile {
    /// Heartbeat 100 ms, election 300 to 400 ms.
    #[default]
    Lan,
    /// Heartbeat 50 ms, election 150 to 200 ms: dedicated machines on one switch.
    Fast,
    /// Heartbeat 300 ms, election 1500 to 2000 ms.
    Wan,
}

/// The timeouts of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between raft heartbeats, and between empty appends of an idle writer.
    pub heartbeat: Duration,
    /// Shortest election timeout; also L, the silence after which a writer is replaced.
    pub election_min: Duration,
    /// Longest election timeout.
    pub election_max: Duration,
    /// QUIC idle timeout.
    pub idle: Duration,
    /// QUIC keep-alive interval.
    pub keep_alive: Duration,
}

impl Timing {
    /// For so long a gateway may hear nothing of the view before it counts as not ready: three election
    /// times.
    pub fn view_silence(&self) -> Duration {
        3 * self.election_max
    }
}

impl TimingProfile {
    /// The timeouts this profile stands for.
    pub const fn timing(self) -> Timing {
        let (heartbeat, min, max, idle, keep_alive) = match self {
            Self::Lan => (100, 300, 400, 5_000, 1_000),
            Self::Fast => (50, 150, 200, 3_000, 500),
            Self::Wan => (300, 1_500, 2_000, 15_000, 3_000),
        };
        Timing {
            heartbeat: Duration::from_millis(heartbeat),
            election_min: Duration::from_millis(min),
            election_max: Duration::from_millis(max),
            idle: Duration::from_millis(idle),
            keep_alive: Duration::from_millis(keep_alive),
        }
    }
}

/// What a node knows of the cluster at one moment. `voters`, `membership` and `writer` come from
/// one applied state and may be used together; `leader` and `term` come from the raft metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster, once known.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// Every member by id.
    pub members: BTreeMap<NodeId, Member>,
    /// Members that were removed, and when (milliseconds since 1970).
    pub removed: BTreeMap<NodeId, u64>,
    /// Members that an operator has drained: they hold neither office nor leadership, and no query should
    /// be brought to them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<NodeId>,
    /// The voter sets that each need a majority: one, or two while membership is joint.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Raft learners.
    pub learners: BTreeSet<NodeId>,
    /// Which membership entry `voters` is from.
    pub membership: MembershipId,
    /// Who writes.
    pub writer: Option<Office>,
    /// The last terms of office, oldest first, the present one included.
    #[serde(default)]
    pub terms: Vec<Office>,
    /// The raft leader, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Newest raft term seen.
    pub term: u64,
    /// Root certificates (DER) that members' certificates may be of: one, or two while the CA is
    /// rotated. The last one signs.
    pub roots: Vec<serde_bytes::ByteBuf>,
    /// How far a rotation of the CA is, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<CaRotation>,
    /// Cluster-wide timeouts.
    pub profile: TimingProfile,
    /// Feature bits that whoever joins has to have.
    pub feature_level: u64,
    /// The newest recovery from the loss of a majority, if there ever was one. Peers of another one,
    /// or of none, are of another world.
    #[serde(default)]
    pub recovery: Option<Recovery>,
    /// Raft log index applied to make this view.
    pub applied_index: u64,
}

impl ClusterView {
    /// True when `id` is in any voter set.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.iter().any(|set| set.contains(&id))
    }

    /// True when every member says that it has these features.
    pub fn all_have(&self, features: u64) -> bool {
        !self.members.is_empty() && self.members.values().all(|member| member.features & features == features)
    }

    /// What a member is: a voter by the voter sets, a gateway because it joined as one, else a reader.
    pub fn role(&self, member: &Member) -> Role {
        match member.role {
            Role::Gateway => Role::Gateway,
            _ if self.is_voter(member.id) => Role::Voter,
            _ => Role::Reader,
        }
    }

    /// True when `id` is a member of role gateway.
    pub fn is_gateway(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.role == Role::Gateway)
    }

    /// Every voter of every set.
    pub fn all_voters(&self) -> BTreeSet<NodeId> {
        self.voters.iter().flatten().copied().collect()
    }

    /// True if there are two voters or more, whichever sets they are in.
    pub fn has_several_voters(&self) -> bool {
        let mut all = self.voters.iter().flatten();
        let first = all.next();
        all.any(|voter| Some(voter) != first)
    }

    /// True when `have` holds a majority of **each** voter set (and there is one).
    pub fn is_quorum(&self, have: &BTreeSet<NodeId>) -> bool {
        // Model: both_sets_while_joint
        !self.voters.is_empty()
            && self.voters.iter().all(|set| is_majority(set.intersection(have).count(), set.len()))
    }
}

/// True when `have` of `all` is more than half.
pub const fn is_majority(have: usize, all: usize) -> bool {
    have > all / 2
}

/// Whether a peer answers, for status and readiness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeHealth {
    /// Linked and past its hello.
    Up,
    /// No link.
    #[default]
    Down,
    /// A member that is not yet what it wants to be.
    Joining,
    /// Handing over before it stops.
    Draining,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joint_membership_needs_both_majorities() {
        let id = |n: u8| NodeId([n; 16]);
        let set = |ids: &[u8]| ids.iter().map(|n| id(*n)).collect::<BTreeSet<_>>();
        let mut view = ClusterView { voters: vec![set(&[1, 2, 3])], ..Default::default() };
        assert!(view.is_quorum(&set(&[1, 2])));
        assert!(!view.is_quorum(&set(&[1, 9])));
        view.voters.push(set(&[1, 2, 3, 4]));
        assert!(!view.is_quorum(&set(&[1, 2])));
        assert!(view.is_quorum(&set(&[1, 2, 4])));
        assert!(!ClusterView::default().is_quorum(&set(&[1])));
    }

    #[test]
    fn a_voter_of_two_sets_is_one_voter() {
        let set = |ids: &[u8]| ids.iter().map(|n| NodeId([*n; 16])).collect::<BTreeSet<_>>();
        for (voters, several) in [
            (vec![], false),
            (vec![set(&[1])], false),
            (vec![set(&[1]), set(&[1])], false),
            (vec![set(&[1]), set(&[2])], true),
            (vec![set(&[1, 2, 3])], true),
        ] {
            let view = ClusterView { voters, ..Default::default() };
            assert_eq!(view.has_several_voters(), several, "{:?}", view.voters);
            assert_eq!(view.all_voters().len() > 1, several);
        }
    }
}
