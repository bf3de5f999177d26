//! The CA's word that a cluster was made anew of one survivor.
//!
//! A node that hears it gives up its raft state, so it must not be any member's to say: it takes
//! the CA key, which only voters hold, sealed.

use super::{ca::ClusterCa, cert::PeerCertificate, keys::verify};
use crate::types::{ClusterId, Lsn, NodeId, Recovery};

/// Signs a recovery of `cluster` by `by`, whose log ends at `kept`.
pub fn sign(
    ca: &ClusterCa,
    cluster: ClusterId,
    generation: u64,
    by: NodeId,
    nonce: u64,
    kept: Lsn,
) -> Recovery {
    let unsigned = Recovery { generation, by, nonce, kept, signature: Vec::new() };
    Recovery { signature: ca.sign(&unsigned.message(cluster)).to_vec(), ..unsigned }
}

/// True when one of `roots` (DER) has signed this for `cluster`.
pub fn is_signed<R: AsRef<[u8]>>(recovery: &Recovery, cluster: ClusterId, roots: &[R]) -> bool {
    let message = recovery.message(cluster);
    roots.iter().any(|root| {
        PeerCertificate::parse(root.as_ref())
            .is_ok_and(|root| verify(&root.spki, &message, &recovery.signature))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clusters_own_ca_is_believed() {
        let (cluster, by) = (ClusterId([1; 16]), NodeId([2; 16]));
        let ca = ClusterCa::create(cluster, &[1; 32], 1_800_000_000).unwrap();
        let other = ClusterCa::create(cluster, &[2; 32], 1_800_000_000).unwrap();
        let recovery = sign(&ca, cluster, 1, by, 9, Lsn::new(1, 5));
        assert!(is_signed(&recovery, cluster, &[other.certificate(), ca.certificate()]));
        assert!(!is_signed(&recovery, cluster, &[other.certificate()]));
        assert!(!is_signed::<&[u8]>(&recovery, cluster, &[]));
        assert!(!is_signed(&recovery, ClusterId([9; 16]), &[ca.certificate()]));
        let higher = Recovery { generation: 2, ..recovery };
        assert!(!is_signed(&higher, cluster, &[ca.certificate()]));
    }
}
