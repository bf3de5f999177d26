//! The certificates a door presents, checked against what the token pins, before anything is proven.

use crate::identity::{PeerCertificate, fingerprint, token::Fingerprint};

/// Why a door is not the cluster's, or cannot be told to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It presented a certificate of its own: no member of any cluster yet.
    #[error("it is not a member of a cluster itself yet")]
    NoMember,
    /// Its root is not the one the token pins.
    #[error(
        "it belongs to another cluster than the join token (or the CA was rotated since: make a new token)"
    )]
    OtherRoot,
    /// Its certificate is not signed by the root it shows.
    #[error("its certificate is not signed by the cluster's root: somebody pretends to be the cluster")]
    Forged,
    /// Its certificate is not valid yet, by this node's clock.
    #[error("by this node's clock its certificate is valid only in {0} s: set the clock (NTP)")]
    NotYet(u64),
    /// Its certificate has expired, by this node's clock.
    #[error(
        "by this node's clock its certificate expired {0} s ago: set the clock (NTP), or that node renews soon"
    )]
    Expired(u64),
    /// Not certificates.
    #[error("its certificates cannot be read")]
    Unreadable,
}

/// Checks that `chain` (leaf first, DER) holds the root with this fingerprint and that the leaf is
/// signed by it and valid at `now` (seconds since 1970). That the peer holds the leaf's key was
/// proven in the TLS handshake.
pub(super) fn check<'a>(
    chain: impl IntoIterator<Item = &'a [u8]>,
    pinned: &Fingerprint,
    now: u64,
) -> Result<(), ChainError> {
    let mut chain = chain.into_iter();
    let leaf = chain.next().ok_or(ChainError::Unreadable)?;
    let mut others = chain.take(4).peekable();
    if others.peek().is_none() {
        return Err(ChainError::NoMember);
    }
    let root = others.find(|der| fingerprint(der) == *pinned).ok_or(ChainError::OtherRoot)?;
    let leaf = PeerCertificate::parse(leaf).map_err(|_| ChainError::Unreadable)?;
    if !leaf.for_nodes || leaf.signer(&[root]).is_none() {
        return Err(ChainError::Forged);
    }
    match (leaf.not_before, leaf.not_after) {
        (from, _) if now < from => Err(ChainError::NotYet(from - now)),
        (_, until) if now > until => Err(ChainError::Expired(now - until)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{ClusterCa, Identity, NodeKey},
        types::ClusterId,
    };

    const NOW: u64 = 1_800_000_000;
    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn ca(seed: u8) -> ClusterCa {
        ClusterCa::create(CLUSTER, &[seed; 32], NOW).unwrap()
    }

    fn leaf(ca: &ClusterCa) -> Vec<u8> {
        let me = Identity::stranger(NodeKey::from_seed(&[9; 32]).unwrap(), NOW).unwrap();
        ca.issue(&me.csr().unwrap(), CLUSTER, [1; 16], NOW).unwrap().certificate
    }

    fn check(chain: &[&[u8]], ca: &ClusterCa, now: u64) -> Result<(), ChainError> {
        super::check(chain.iter().copied(), &ca.fingerprint(), now)
    }

    #[test]
    fn only_the_pinned_cluster_passes() {
        let (ca, evil) = (ca(1), ca(2));
        let (leaf_of_ca, leaf_of_evil) = (leaf(&ca), leaf(&evil));
        let (root, evil_root) = (ca.certificate(), evil.certificate());
        assert_eq!(check(&[&leaf_of_ca, root], &ca, NOW), Ok(()));
        assert_eq!(check(&[&leaf_of_evil, evil_root], &ca, NOW), Err(ChainError::OtherRoot));
        // The true root is public: shown beside a leaf it never signed.
        assert_eq!(check(&[&leaf_of_evil, root], &ca, NOW), Err(ChainError::Forged));
        assert_eq!(check(&[root, root], &ca, NOW), Err(ChainError::Forged));
        assert_eq!(check(&[&leaf_of_ca], &ca, NOW), Err(ChainError::NoMember));
        assert_eq!(check(&[], &ca, NOW), Err(ChainError::Unreadable));
        assert_eq!(check(&[b"junk", root], &ca, NOW), Err(ChainError::Unreadable));
    }

    #[test]
    fn a_wrong_clock_is_named_with_its_seconds() {
        let ca = ca(1);
        let (leaf, root) = (leaf(&ca), ca.certificate());
        assert_eq!(check(&[&leaf, root], &ca, NOW - 3_640), Err(ChainError::NotYet(40)));
        assert_eq!(check(&[&leaf, root], &ca, NOW + 30 * 86_400 + 50), Err(ChainError::Expired(50)));
    }
}
