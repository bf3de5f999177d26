//! What `GET /api/v1/cluster` and `skein status --json` say: one struct for server and client.

use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, Epoch, Lsn, NodeHealth, NodeId, Role};

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
    /// What an operator should know, in full sentences.
    #[serde(default)]
    pub warnings: Vec<String>,
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
    /// When it last had read and verified everything it stores, in seconds since 1970.
    #[serde(default)]
    pub scrubbed: Option<i64>,
    /// True for the raft leader.
    pub is_leader: bool,
    /// True for the writer.
    pub is_writer: bool,
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
                scrubbed: None,
                is_leader: true,
                is_writer: false,
            }],
            warnings: vec![],
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["leader"], node.to_string());
        assert!(json["writer"].is_null());
        assert_eq!(json["commit"], "3.42");
        assert_eq!(json["nodes"][0]["state"], "joining");
        assert_eq!(json["nodes"][0]["wants"], "voter");
        assert!(json["nodes"][0]["applied"].is_null());
        assert_eq!(serde_json::from_value::<ClusterStatus>(json).unwrap(), status);
    }
}
