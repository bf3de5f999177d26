//! Signing with the cluster's CA: the key rests sealed in raft and is opened for one use.

use std::{fmt, sync::Arc};

use crate::{
    identity::{CaError, ClusterCa, Identity, Issued, SealKey, seal},
    raft::State,
    types::{ClusterId, ClusterView},
};

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;
/// Draws the random serial number of a certificate.
pub type Serials = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;

/// What a node needs to sign certificates, if it is a voter.
#[derive(Clone)]
pub struct Signer {
    /// This node.
    pub identity: Arc<Identity>,
    /// Opens what was sealed to this node.
    pub seal_key: Arc<SealKey>,
    /// The wall clock.
    pub clock: Clock,
    /// Serial numbers.
    pub serials: Serials,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Signer {
    /// The CA, if this node is a voter that holds its key. Opened each time, and wiped when it is
    /// dropped.
    pub(super) fn ca(&self, state: &State, view: &ClusterView) -> Option<(ClusterId, ClusterCa)> {
        let me = self.identity.node();
        let cluster = state.cluster?;
        let sealed = state.sealed_ca.get(&me).filter(|_| view.is_voter(me))?;
        let key = match seal::open(sealed, &self.seal_key, cluster, me) {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(%error, "this voter cannot open its copy of the CA key");
                return None;
            }
        };
        // While the CA is rotated there are two roots: the key tells which one it is of.
        let ca = state.roots.iter().find_map(|root| ClusterCa::from_parts(root, &key).ok());
        if ca.is_none() {
            tracing::error!("the CA key of this voter belongs to none of the cluster's roots");
        }
        Some((cluster, ca?))
    }

    /// Signs the key of a request (DER).
    pub(super) fn issue(&self, ca: &(ClusterId, ClusterCa), csr: &[u8]) -> Result<Issued, CaError> {
        ca.1.issue(csr, ca.0, (self.serials)(), (self.clock)() / 1000)
    }
}
