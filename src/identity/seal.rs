//! Sealing: the cluster's CA key rests in raft only as ciphertext, one per voter, that only that
//! voter's X25519 key opens (HPKE, RFC 9180).
//!
//! Sealed form: format byte 1, encapsulated key (32 bytes), ciphertext. The HPKE info names the
//! cluster and the node, so a ciphertext cannot be moved to another of either.

use hpke::{
    Deserializable, OpModeR, OpModeS, Serializable, aead::ChaCha20Poly1305, kdf::HkdfSha256,
    kem::X25519HkdfSha256, single_shot_open, single_shot_seal,
};
use rand::CryptoRng;
use zeroize::Zeroizing;

use super::keys::{SealKey, node_id, verify};
use crate::types::{ClusterId, NodeId};

type Kem = X25519HkdfSha256;
type PublicKey = <Kem as hpke::Kem>::PublicKey;
type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
type Encapped = <Kem as hpke::Kem>::EncappedKey;

/// Longest CA key (PKCS#8 DER) that is sealed or opened, in bytes.
pub const MAX_SEALED: usize = 4096;
const FORMAT: u8 = 1;
const KEY_LEN: usize = 32;

/// Sealing or opening the CA key failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The public key is not an X25519 key.
    #[error("the sealing key of node {0} is not a valid X25519 key")]
    BadKey(NodeId),
    /// Too long to be a CA key.
    #[error("{0} bytes are too many for a sealed CA key")]
    TooLong(usize),
    /// Not the sealed form this version knows.
    #[error("the sealed CA key is of an unknown format")]
    Format,
    /// The cryptography said no.
    #[error(
        "the sealed CA key does not open with this node's sealing key: sealed for another node or damaged"
    )]
    NotForUs,
}

/// Seals `key` to the X25519 public key `to` of `node`.
pub fn seal(
    key: &[u8],
    to: &[u8],
    cluster: ClusterId,
    node: NodeId,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    if key.len() > MAX_SEALED {
        return Err(SealError::TooLong(key.len()));
    }
    let to = PublicKey::from_bytes(to).map_err(|_| SealError::BadKey(node))?;
    let info = info(cluster, node);
    let (encapped, ciphertext) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem, _>(
        &OpModeS::Base,
        &to,
        &info,
        key,
        b"",
        &mut *rng,
    )
    .map_err(|_| SealError::BadKey(node))?;
    let mut sealed = Vec::with_capacity(1 + KEY_LEN + ciphertext.len());
    sealed.push(FORMAT);
    sealed.extend_from_slice(&encapped.to_bytes());
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

/// Opens what was sealed to the public half of `secret`.
pub fn open(
    sealed: &[u8],
    secret: &SealKey,
    cluster: ClusterId,
    node: NodeId,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.len() > MAX_SEALED + 1 + KEY_LEN + 16 {
        return Err(SealError::TooLong(sealed.len()));
    }
    let (format, rest) = sealed.split_first().ok_or(SealError::Format)?;
    let (encapped, ciphertext) = rest.split_at_checked(KEY_LEN).ok_or(SealError::Format)?;
    if *format != FORMAT {
        return Err(SealError::Format);
    }
    let secret = PrivateKey::from_bytes(secret.bytes()).map_err(|_| SealError::BadKey(node))?;
    let encapped = Encapped::from_bytes(encapped).map_err(|_| SealError::Format)?;
    let info = info(cluster, node);
    single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeR::Base,
        &secret,
        &encapped,
        &info,
        ciphertext,
        b"",
    )
    .map(Zeroizing::new)
    .map_err(|_| SealError::NotForUs)
}

/// The public half of a sealing key, 32 bytes.
pub fn seal_key_public(secret: &SealKey) -> Result<Vec<u8>, SealError> {
    let secret = PrivateKey::from_bytes(secret.bytes()).map_err(|_| SealError::Format)?;
    Ok(<Kem as hpke::Kem>::sk_to_pk(&secret).to_bytes().to_vec())
}

/// What a node signs with its Ed25519 key so that nobody can exchange its sealing key. A joiner
/// whose token names no cluster signs for "no cluster yet".
pub fn seal_key_message(cluster: Option<ClusterId>, node: NodeId, seal_key: &[u8]) -> Vec<u8> {
    let mut message = b"skein sealing key 1\0".to_vec();
    message.extend_from_slice(&cluster.unwrap_or_default().0);
    message.extend_from_slice(&node.0);
    message.extend_from_slice(seal_key);
    message
}

/// True when `signature` is the node's own over its sealing key, for this cluster or for "no
/// cluster yet". `spki` (DER) is the node's key, and so says which node.
pub fn verify_seal_key(spki: &[u8], cluster: ClusterId, seal_key: &[u8], signature: &[u8]) -> bool {
    let signed = |cluster| verify(spki, &seal_key_message(cluster, node_id(spki), seal_key), signature);
    seal_key.len() == KEY_LEN && (signed(Some(cluster)) || signed(None))
}

fn info(cluster: ClusterId, node: NodeId) -> Vec<u8> {
    let mut info = b"skein CA key 1\0".to_vec();
    info.extend_from_slice(&cluster.0);
    info.extend_from_slice(&node.0);
    info
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::identity::NodeKey;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const NODE: NodeId = NodeId([2; 16]);

    fn key(n: u8) -> (SealKey, Vec<u8>) {
        let key = SealKey::from_bytes([n; 32]);
        let public = seal_key_public(&key).unwrap();
        (key, public)
    }

    #[test]
    fn opens_only_for_its_node_in_its_cluster() {
        let rng = &mut StdRng::seed_from_u64(1);
        let ((secret, public), (other, _)) = (key(7), key(8));
        let sealed = seal(b"the CA key", &public, CLUSTER, NODE, rng).unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"CA key"));
        assert_eq!(open(&sealed, &secret, CLUSTER, NODE).unwrap().as_slice(), b"the CA key");
        assert_eq!(open(&sealed, &other, CLUSTER, NODE), Err(SealError::NotForUs));
        assert_eq!(open(&sealed, &secret, ClusterId([9; 16]), NODE), Err(SealError::NotForUs));
        assert_eq!(open(&sealed, &secret, CLUSTER, NodeId([9; 16])), Err(SealError::NotForUs));
        assert_ne!(seal(b"the CA key", &public, CLUSTER, NODE, rng).unwrap(), sealed, "fresh key each time");
    }

    #[test]
    fn damage_and_nonsense_are_errors() {
        let rng = &mut StdRng::seed_from_u64(2);
        let (secret, public) = key(7);
        let sealed = seal(b"key", &public, CLUSTER, NODE, rng).unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(open(&bad, &secret, CLUSTER, NODE).is_err(), "bit at {at}");
            assert!(open(&sealed[..at], &secret, CLUSTER, NODE).is_err());
        }
        assert!(seal(b"key", b"short", CLUSTER, NODE, rng).is_err());
        assert!(seal(&[0; MAX_SEALED + 1], &public, CLUSTER, NODE, rng).is_err());
        assert!(open(&vec![1; 9999], &secret, CLUSTER, NODE).is_err());
    }

    #[test]
    fn a_sealing_key_cannot_be_exchanged() {
        let node = NodeKey::from_seed(&[5; 32]).unwrap();
        let other = NodeKey::from_seed(&[6; 32]).unwrap();
        for cluster in [Some(CLUSTER), None] {
            let signature = node.sign(&seal_key_message(cluster, node.id(), &[7; 32]));
            let holds = |spki, seal_key: &[u8]| verify_seal_key(spki, CLUSTER, seal_key, &signature);
            assert!(holds(node.spki(), &[7; 32]));
            assert!(!holds(node.spki(), &[8; 32]));
            assert!(!holds(other.spki(), &[7; 32]));
            assert!(
                !verify_seal_key(node.spki(), ClusterId([4; 16]), &[7; 32], &signature) || cluster.is_none()
            );
        }
    }
}
