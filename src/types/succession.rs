//! How trust passes from one root of the cluster to the next: [`Succession`], and the time in which
//! both count: [`CaRotation`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ClusterId, Member, NodeId};

/// A root vouches for the one that follows it. A node that was away while the CA was rotated
/// believes the new root by nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The new root certificate (DER).
    #[serde(with = "serde_bytes")]
    pub root: Vec<u8>,
    /// SHA-256 of the root certificate before it.
    #[serde(with = "serde_bytes")]
    pub after: Vec<u8>,
    /// Ed25519 signature by the key of the root before it over [`Succession::message`].
    #[serde(with = "serde_bytes")]
    pub signature: Vec<u8>,
}

impl Succession {
    /// The bytes that are signed.
    pub fn message(&self, cluster: ClusterId) -> Vec<u8> {
        let mut message = b"skein succession 1\0".to_vec();
        message.extend_from_slice(&cluster.0);
        for part in [&self.after, &self.root] {
            message.extend_from_slice(&(part.len() as u64).to_be_bytes());
            message.extend_from_slice(part);
        }
        message
    }
}

/// A rotation of the cluster's CA that is under way. Until the new root is made there is one root;
/// then there are two, of which the last signs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// When an operator asked for it, milliseconds since 1970.
    pub asked_ms: u64,
    /// Members that show a certificate of the new root, as they have said themselves.
    #[serde(default)]
    pub renewed: BTreeSet<NodeId>,
    /// Members that an operator does not wait for: they come home as lapsed ones.
    #[serde(default)]
    pub dropped: BTreeSet<NodeId>,
}

impl CaRotation {
    /// Members without which the old root is not retired.
    pub fn waits_for(&self, members: &BTreeMap<NodeId, Member>) -> BTreeSet<NodeId> {
        let done = |id: &&NodeId| self.renewed.contains(*id) || self.dropped.contains(*id);
        members.keys().filter(|id| !done(id)).copied().collect()
    }
}
