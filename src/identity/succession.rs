//! Which roots follow from those a node knows.
//!
//! It takes the key of the root before, which only voters hold, sealed: a member alone cannot make a
//! node that was away believe in a root of its own.

use super::{
    ca::ClusterCa,
    cert::{PeerCertificate, fingerprint},
    keys::verify,
};
use crate::types::{ClusterId, Succession};

/// Lets `before` vouch for the root certificate (DER) of the CA that follows it.
pub fn sign(before: &ClusterCa, cluster: ClusterId, root: &[u8]) -> Succession {
    let unsigned =
        Succession { root: root.to_vec(), after: before.fingerprint().to_vec(), signature: Vec::new() };
    Succession { signature: before.sign(&unsigned.message(cluster)).to_vec(), ..unsigned }
}

/// True when the root certificate `before` (DER) vouches for the one in `succession`.
pub fn follows(succession: &Succession, cluster: ClusterId, before: &[u8]) -> bool {
    succession.after == fingerprint(before)
        && PeerCertificate::parse(before)
            .is_ok_and(|root| verify(&root.spki, &succession.message(cluster), &succession.signature))
}

/// `known` roots (DER), and every one that follows from them by `successions`, which are in the order
/// in which they were made.
pub fn trusted<R: AsRef<[u8]>>(known: &[R], cluster: ClusterId, successions: &[Succession]) -> Vec<Vec<u8>> {
    let mut trusted: Vec<Vec<u8>> = known.iter().map(|root| root.as_ref().to_vec()).collect();
    for succession in successions {
        let vouched = trusted.iter().any(|before| follows(succession, cluster, before));
        if vouched && !trusted.contains(&succession.root) {
            trusted.push(succession.root.clone());
        }
    }
    trusted
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn ca(seed: u8) -> ClusterCa {
        ClusterCa::create(CLUSTER, &[seed; 32], 1_800_000_000).unwrap()
    }

    fn roots(cas: &[&ClusterCa]) -> Vec<Vec<u8>> {
        cas.iter().map(|ca| ca.certificate().to_vec()).collect()
    }

    #[test]
    fn trust_goes_from_root_to_root_and_no_other_way() {
        let (first, second, third, evil) = (ca(1), ca(2), ca(3), ca(9));
        let steps =
            [sign(&first, CLUSTER, second.certificate()), sign(&second, CLUSTER, third.certificate())];
        let from = |known: &[&ClusterCa], steps: &[Succession]| trusted(&roots(known), CLUSTER, steps);
        assert_eq!(from(&[&first], &steps), roots(&[&first, &second, &third]));
        assert_eq!(from(&[&second], &steps), roots(&[&second, &third]), "not backwards");
        assert_eq!(from(&[&first], &steps[1..]), roots(&[&first]), "no step may be missing");
        assert_eq!(from(&[&evil], &steps), roots(&[&evil]));

        let by_evil = sign(&evil, CLUSTER, evil.certificate());
        assert_eq!(from(&[&first], &[by_evil]), roots(&[&first]));
        let elsewhere = sign(&first, ClusterId([2; 16]), second.certificate());
        assert_eq!(from(&[&first], &[elsewhere]), roots(&[&first]), "of another cluster");
        let exchanged = Succession { root: evil.certificate().to_vec(), ..steps[0].clone() };
        assert_eq!(from(&[&first], &[exchanged]), roots(&[&first]));
        for at in 0..64 {
            let mut bent = steps[0].clone();
            bent.signature[at] ^= 1;
            assert!(!follows(&bent, CLUSTER, first.certificate()), "byte {at}");
        }
    }
}
