//! What `GET /api/v1/cluster` and `skein status --json` say: one struct for server and client.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    protocol::status::SnapshotProgress,
    types::{ClusterId, Epoch, Lsn, NodeHealth, NodeId, Office, Role, Why},
};

/// The cluster as one node sees it. Unknown is null; ids and positions are the same texts
/// everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Which cluster.
    #[serde(with = "text")]
    pub cluster_id: ClusterId,
    /// Its name, for people.
    pub cluster_name: String,
    /// The node that answers.
    #[serde(with = "text")]
    pub node_id: NodeId,
    /// The raft leader.
    #[serde(with = "optional_text")]
    pub leader: Option<NodeId>,
    /// The node that writes.
    #[serde(with = "optional_text")]
    pub writer: Option<NodeId>,
    /// Its term of office.
    pub epoch: Option<Epoch>,
    /// Last record known committed.
    #[serde(with = "optional_text")]
    pub commit: Option<Lsn>,
    /// How often the cluster was recovered from the loss of a majority.
    #[serde(default)]
    pub generation: u64,
    /// Every member, by id.
    pub nodes: Vec<NodeReport>,
    /// The last terms of office, oldest first, the present one included.
    #[serde(default)]
    pub terms: Vec<TermReport>,
    /// The cluster's certificate authority.
    #[serde(default)]
    pub ca: CaReport,
    /// Which features of this software the cluster may rely on.
    #[serde(default)]
    pub upgrade: UpgradeReport,
    /// What an operator should know, in full sentences.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How far an upgrade is, in feature bits (docs/wire.md, "Versions").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// What a node has to know to be, come or stay a member.
    pub level: u64,
    /// What every member knows: the level after `skein finalise`.
    pub known: u64,
    /// Names of the members that lack what another one knows.
    pub behind: Vec<String>,
}

impl UpgradeReport {
    /// True when every member knows what one knows, and the level does not say so yet.
    pub fn to_finalise(&self) -> bool {
        self.behind.is_empty() && self.level != self.known
    }
}

/// The cluster's certificate authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaReport {
    /// Roots that members' certificates may be of: one, or two while the CA is rotated. The last signs.
    pub roots: Vec<RootReport>,
    /// A rotation that is under way.
    pub rotation: Option<RotationReport>,
}

/// A root certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootReport {
    /// SHA-256 of it, hexadecimal.
    pub fingerprint: String,
    /// Days until it expires; negative when it has.
    pub days_left: i64,
}

/// How far a rotation of the CA is. Members are named by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// When an operator asked for it, milliseconds since 1970.
    pub asked_ms: u64,
    /// Members that show a certificate of the new root.
    pub renewed: Vec<String>,
    /// Members without which the old root is not retired.
    pub waits_for: Vec<String>,
    /// Members that an operator does not wait for.
    pub dropped: Vec<String>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Who.
    #[serde(with = "text")]
    pub id: NodeId,
    /// A label for people.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// What it wants to be.
    pub wants: Role,
    /// How it does.
    pub state: NodeHealth,
    /// Where its mesh listens.
    pub mesh_addr: Option<String>,
    /// Where its HTTP edge listens.
    pub http_addr: Option<String>,
    /// Software version.
    pub version: Option<String>,
    /// Last record on its disk.
    #[serde(with = "optional_text")]
    pub durable: Option<Lsn>,
    /// Last record in its engine.
    #[serde(with = "optional_text")]
    pub applied: Option<Lsn>,
    /// Records it has yet to apply.
    pub lag_records: Option<u64>,
    /// How old its data is, in milliseconds.
    pub lag_ms: Option<u64>,
    /// Round trip to it from the node that answers, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Days until its certificate expires; negative when it has.
    pub cert_days_left: Option<i64>,
    /// The engine snapshot it fetches.
    #[serde(default)]
    pub snapshot: Option<SnapshotReport>,
    /// When it last had read and verified everything it stores, in seconds since 1970.
    #[serde(default)]
    pub scrubbed: Option<i64>,
    /// Of a gateway: the node whose view of the cluster it follows.
    #[serde(default, with = "optional_text")]
    pub follows: Option<NodeId>,
    /// Of a gateway: how long ago it last heard that node, in milliseconds.
    #[serde(default)]
    pub view_age_ms: Option<u64>,
    /// True for the raft leader.
    pub is_leader: bool,
    /// True for the writer.
    pub is_writer: bool,
    /// For how long a member that does not answer has not been heard, in milliseconds; null if it never was
    /// since the node that answers started.
    #[serde(default)]
    pub silent_ms: Option<u64>,
    /// How far its wall clock is ahead of that of the node that answers, in milliseconds, to within half
    /// a round trip.
    #[serde(default)]
    pub clock_skew_ms: Option<i64>,
    /// Points its HTTP edge has acknowledged to clients since it started.
    #[serde(default)]
    pub points: Option<u64>,
    /// Queries its HTTP edge has answered since it started.
    #[serde(default)]
    pub queries: Option<u64>,
    /// Its links to other members; empty when it does not answer.
    #[serde(default)]
    pub links: Vec<LinkReport>,
}

/// A link, as one of its ends sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The other end.
    #[serde(with = "text")]
    pub to: NodeId,
    /// Smoothed round trip, in milliseconds.
    pub rtt_ms: f64,
    /// Bytes of frames that this end has written since the link came up, by lane.
    #[serde(default)]
    pub sent_bytes: BTreeMap<String, u64>,
}

/// A term of office: who wrote in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermReport {
    /// The epoch.
    pub epoch: Epoch,
    /// Who wrote.
    #[serde(with = "text")]
    pub node: NodeId,
    /// When it was named, milliseconds since 1970 by the clock of the leader that named it.
    pub at_ms: Option<u64>,
    /// Why another writer was needed.
    pub why: Why,
}

impl From<&Office> for TermReport {
    fn from(office: &Office) -> Self {
        Self {
            epoch: office.epoch,
            node: office.node,
            at_ms: Some(office.at_ms).filter(|at| *at > 0),
            why: office.why,
        }
    }
}

/// How far a node is that fetches an engine snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// From whom.
    #[serde(with = "text")]
    pub source: NodeId,
    /// Its last record.
    #[serde(with = "text")]
    pub position: Lsn,
    /// Bytes of it that are on the node's disk.
    pub bytes_done: u64,
    /// Bytes of all its files.
    pub bytes_total: u64,
}

impl From<SnapshotProgress> for SnapshotReport {
    fn from(progress: SnapshotProgress) -> Self {
        let SnapshotProgress { source, position, done, total } = progress;
        Self { source, position, bytes_done: done, bytes_total: total }
    }
}

/// `#[serde(with)]`: a value as its text form.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// `#[serde(with)]`: a value as its text form, or null.
mod optional_text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_texts_and_nulls() {
        let node = NodeId([7; 16]);
        let status = ClusterStatus {
            cluster_id: ClusterId([1; 16]),
            cluster_name: "home".into(),
            node_id: node,
            leader: Some(node),
            writer: None,
            epoch: Some(3),
            commit: Some(Lsn::new(3, 42)),
            generation: 0,
            nodes: vec![NodeReport {
                id: node,
                name: "a".into(),
                role: Role::Reader,
                wants: Role::Voter,
                state: NodeHealth::Joining,
                mesh_addr: None,
                http_addr: None,
                version: None,
                durable: Some(Lsn::new(3, 41)),
                applied: None,
                lag_records: None,
                lag_ms: None,
                rtt_ms: None,
                cert_days_left: Some(-1),
                snapshot: Some(SnapshotReport {
                    source: node,
                    position: Lsn::new(2, 7),
                    bytes_done: 1,
                    bytes_total: 4,
                }),
                scrubbed: None,
                follows: None,
                view_age_ms: None,
                is_leader: true,
                is_writer: false,
                silent_ms: None,
                clock_skew_ms: None,
                points: None,
                queries: None,
                links: vec![],
            }],
            terms: vec![],
            ca: CaReport::default(),
            upgrade: UpgradeReport::default(),
            warnings: vec![],
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["leader"], node.to_string());
        assert!(json["writer"].is_null());
        assert_eq!(json["commit"], "3.42");
        assert_eq!(json["nodes"][0]["state"], "joining");
        assert_eq!(json["nodes"][0]["wants"], "voter");
        assert!(json["nodes"][0]["applied"].is_null());
        assert_eq!(json["nodes"][0]["snapshot"]["position"], "2.7");
        assert_eq!(serde_json::from_value::<ClusterStatus>(json).unwrap(), status);
    }
}
