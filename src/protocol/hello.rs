//! The hello round trip: a dialer counts a peer as up only after it, because TLS 1.3 lets a
//! client finish before the server has judged its certificate.

use serde::{Deserialize, Serialize};

use crate::types::{Addresses, BootId, ClusterId, NodeId, Recovery};

/// What both ends say first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender; must equal the identity of its certificate.
    pub node: NodeId,
    /// The sender's process run.
    pub boot: BootId,
    /// The cluster both must be of.
    pub cluster: ClusterId,
    /// Where the sender may be dialled.
    pub addresses: Addresses,
    /// Software version.
    pub version: String,
    /// Feature bits.
    pub features: u64,
    /// The recovery both must have come through, if there was one: see [`Recovery`].
    #[serde(default)]
    pub recovery: Option<Recovery>,
    /// The dialer's: this connection is to take the place of the link there is between these two
    /// processes, because both have newer certificates.
    #[serde(default)]
    pub renews: bool,
}
