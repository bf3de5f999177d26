//! Signing with the cluster's CA: the key rests sealed in raft and is opened for one use.

use std::{fmt, sync::Arc};

use crate::{
    identity::{CaError, ClusterCa, Identity, Issued, SealKey},
    raft::{State, held_cas},
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
    /// The CA that signs now, if this node is a voter that holds its key. Opened each time, and wiped
    /// when it is dropped.
    pub(super) fn ca(&self, state: &State, view: &ClusterView) -> Option<(ClusterId, ClusterCa)> {
        let cluster = state.cluster?;
        if !view.is_voter(self.identity.node()) {
            return None;
        }
        let newest = state.roots.last()?;
        // While the CA is rotated a voter may have the old key only: what that signs is of no use soon.
        let ca = self.cas(state).into_iter().find(|ca| newest == ca.certificate())?;
        Some((cluster, ca))
    }

    /// Every CA whose key this node holds: one, or two while the CA is rotated, the newer one last.
    pub fn cas(&self, state: &State) -> Vec<ClusterCa> {
        held_cas(state, self.identity.node(), &self.seal_key)
    }

    /// Signs the key of a request (DER).
    pub(super) fn issue(&self, ca: &(ClusterId, ClusterCa), csr: &[u8]) -> Result<Issued, CaError> {
        ca.1.issue(csr, ca.0, (self.serials)(), (self.clock)() / 1000)
    }
}
