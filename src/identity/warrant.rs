//! The CA's word that a node is a voter.
//!
//! A node that was away may not have heard yet that another was made a voter, and must not believe
//! just any member that says so: it takes the CA key, which only voters hold, sealed.

use super::{ca::ClusterCa, cert::PeerCertificate, keys::verify};
use crate::types::{ClusterId, NodeId};

/// Signs that `voter` is one in `cluster`: an Ed25519 signature over a label, the cluster and the node.
pub fn sign(ca: &ClusterCa, cluster: ClusterId, voter: NodeId) -> [u8; 64] {
    ca.sign(&message(cluster, voter))
}

/// True when one of `roots` (DER) has signed that `voter` is one in `cluster`.
pub fn is_signed<R: AsRef<[u8]>>(warrant: &[u8], cluster: ClusterId, voter: NodeId, roots: &[R]) -> bool {
    let message = message(cluster, voter);
    roots.iter().any(|root| {
        PeerCertificate::parse(root.as_ref()).is_ok_and(|root| verify(&root.spki, &message, warrant))
    })
}

fn message(cluster: ClusterId, voter: NodeId) -> Vec<u8> {
    [b"skein voter 1\0".as_slice(), &cluster.0, &voter.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clusters_own_ca_makes_a_voter_and_no_other_of_it() {
        let (cluster, voter) = (ClusterId([1; 16]), NodeId([2; 16]));
        let ca = ClusterCa::create(cluster, &[1; 32], 1_800_000_000).unwrap();
        let other = ClusterCa::create(cluster, &[2; 32], 1_800_000_000).unwrap();
        let warrant = sign(&ca, cluster, voter);
        assert!(is_signed(&warrant, cluster, voter, &[other.certificate(), ca.certificate()]));
        assert!(!is_signed(&warrant, cluster, voter, &[other.certificate()]));
        assert!(!is_signed::<&[u8]>(&warrant, cluster, voter, &[]));
        assert!(!is_signed(&warrant, cluster, NodeId([3; 16]), &[ca.certificate()]));
        assert!(!is_signed(&warrant, ClusterId([9; 16]), voter, &[ca.certificate()]));
        assert!(!is_signed(&warrant[..63], cluster, voter, &[ca.certificate()]));
    }
}
