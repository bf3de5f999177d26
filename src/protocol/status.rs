//! What a node says of itself: for the leader's triggers and for `skein status`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{Addresses, BootId, Epoch, Lsn, NodeId};

/// Asks for a [`NodeStatus`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRequest {
    /// Also asks the node to hand over leadership and office (only voters may).
    pub resign: bool,
    /// To whom, if that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
}

/// A node's positions and health at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who.
    pub node: NodeId,
    /// Process run.
    pub boot: BootId,
    /// Highest epoch it promised.
    pub promise: Epoch,
    /// Epoch of the office this process holds, and whether its start is committed.
    pub office: Option<(Epoch, bool)>,
    /// Last durable record.
    pub durable: Lsn,
    /// Last record known committed.
    pub commit: Lsn,
    /// Last applied record.
    pub applied: Lsn,
    /// Last record in a finished checkpoint.
    pub flushed: Lsn,
    /// True when the WAL's disk is full or slow: office should go elsewhere.
    pub disk_troubled: bool,
    /// Membership id of the newest committed `EpochStart` or `ConfigMark`: opens the gate for the
    /// next membership change.
    pub marked: crate::types::MembershipId,
    /// Peers this node has a link to.
    pub linked: Vec<NodeId>,
    /// Where those peers are, as this node sees it: for members that have lost each other.
    #[serde(default)]
    pub linked_at: Vec<(NodeId, Vec<SocketAddr>)>,
    /// Where it listens.
    pub addresses: Addresses,
    /// Software version.
    pub version: String,
    /// Days until its certificate expires, negative when it has.
    pub cert_days_left: i64,
    /// True while it hands over before stopping.
    pub draining: bool,
    /// Set while it fetches records that were damaged here and answers no seal: the first of them.
    #[serde(default)]
    pub repairing: Option<u64>,
    /// Bytes of its log in quarantine.
    #[serde(default)]
    pub quarantined: u64,
    /// The engine snapshot it fetches.
    #[serde(default)]
    pub fetching: Option<SnapshotProgress>,
    /// Round trips to the peers it is linked to, in microseconds.
    #[serde(default)]
    pub rtt_us: Vec<(NodeId, u64)>,
    /// Bytes of frames written to them since their links came up, by lane in the order of
    /// [`Lane::ALL`](crate::protocol::Lane::ALL).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<(NodeId, Vec<u64>)>,
    /// How old what it has applied may be, in milliseconds; unknown while it is behind or no majority has
    /// confirmed a writer.
    #[serde(default)]
    pub stale_ms: Option<u64>,
    /// Its wall clock, milliseconds since 1970; 0 if it does not say.
    #[serde(default)]
    pub unix_ms: u64,
    /// Points that its HTTP edge has acknowledged to clients since it started.
    #[serde(default)]
    pub points: u64,
    /// Queries that its HTTP edge has answered since it started.
    #[serde(default)]
    pub queries: u64,
    /// A record of its log that does not verify and has not been mended yet.
    #[serde(default)]
    pub damaged: Option<u64>,
    /// Data files that are damaged and have not been replaced yet.
    #[serde(default)]
    pub damaged_files: u64,
    /// When everything it stores was last read and verified, in seconds since 1970; none since its start.
    #[serde(default)]
    pub scrubbed: Option<i64>,
    /// To whom it hands over, if somebody is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<NodeId>,
    /// Set by a gateway, which has no positions: whose view it follows.
    #[serde(default)]
    pub follows: Option<Following>,
}

/// Where a gateway has its view of the cluster from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// The node that was heard last; none since the gateway started.
    pub node: Option<NodeId>,
    /// How long ago, in milliseconds.
    pub age_ms: Option<u64>,
}

/// How far a node is that fetches an engine snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotProgress {
    /// From whom.
    pub source: NodeId,
    /// Its last record.
    pub position: Lsn,
    /// Bytes of it that are here.
    pub done: u64,
    /// Bytes of all its files.
    pub total: u64,
}
