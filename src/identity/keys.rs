//! A node's keys, and the identity it shows in every handshake.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use ring::{
    digest,
    signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey},
};
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::cert::{self, CertificateError, PeerCertificate};
use crate::types::NodeId;

/// PKCS#8 (version 1) of an Ed25519 key is this, then the 32-byte seed.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// SubjectPublicKeyInfo of an Ed25519 key is this, then the 32-byte public key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Keys or certificates that do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key bytes are not an Ed25519 key in PKCS#8.
    #[error("not an Ed25519 private key in PKCS#8 form")]
    Key,
    /// A certificate for another key.
    #[error("the certificate belongs to node {found}, not to this node ({own})")]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who this is.
        own: NodeId,
    },
    /// A certificate that cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// rcgen could not make what was asked for.
    #[error("cannot encode the certificate or request: {0}")]
    Encode(#[from] rcgen::Error),
}

/// The id of the node with this public key: the first 128 bits of the SHA-256 of its
/// SubjectPublicKeyInfo (DER).
pub fn node_id(spki: &[u8]) -> NodeId {
    let hash = digest::digest(&digest::SHA256, spki);
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    NodeId(id)
}

/// Checks a signature made with [`NodeKey::sign`] against a SubjectPublicKeyInfo (DER).
pub fn verify(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    spki.strip_prefix(&SPKI_PREFIX)
        .is_some_and(|raw| UnparsedPublicKey::new(&ED25519, raw).verify(message, signature).is_ok())
}

/// The SubjectPublicKeyInfo (DER) of a raw Ed25519 public key.
pub(super) fn spki_of(raw: &[u8]) -> Vec<u8> {
    [&SPKI_PREFIX, raw].concat()
}

/// A node's Ed25519 key: its identity. Never printed.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Ed25519KeyPair,
    spki: Vec<u8>,
    id: NodeId,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id)
    }
}

impl NodeKey {
    /// The key that grows from 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        Self::from_pkcs8(&Zeroizing::new([&PKCS8_PREFIX[..], &seed[..]].concat()))
    }

    /// A key from the bytes of its file.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, IdentityError> {
        use ring::signature::KeyPair as _;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map_err(|_| IdentityError::Key)?;
        let spki = spki_of(pair.public_key().as_ref());
        Ok(Self { pkcs8: Zeroizing::new(bytes.to_vec()), id: node_id(&spki), pair, spki })
    }

    /// The bytes of its file. A secret.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Whose key it is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Ed25519 signature over `message`; callers put a label of their own in front of it.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        for (to, from) in out.iter_mut().zip(self.pair.sign(message).as_ref()) {
            *to = *from;
        }
        out
    }

    /// The key in the form rcgen wants.
    pub(super) fn rcgen(&self) -> Result<rcgen::KeyPair, IdentityError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8());
        Ok(rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?)
    }
}

/// Private half of a node's X25519 sealing key. Never printed.
pub struct SealKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey")
    }
}

impl SealKey {
    /// A key from 32 random (or stored) bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A node's key with the certificate it currently shows: self-signed before admission, signed by
/// the cluster afterwards. Shared by all connections; a new certificate serves the next handshake.
pub struct Identity {
    key: NodeKey,
    current: RwLock<Current>,
}

struct Current {
    certified: Arc<CertifiedKey>,
    parsed: Arc<PeerCertificate>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.key.id())
    }
}

impl Identity {
    /// An identity that no cluster has admitted yet: a self-signed certificate, made at `now`
    /// (seconds since 1970).
    pub fn stranger(key: NodeKey, now: u64) -> Result<Self, IdentityError> {
        let leaf = cert::self_signed(&key, now)?;
        let current = Self::current(&key, &leaf, &[])?;
        Ok(Self { key, current: RwLock::new(current) })
    }

    /// An identity with a certificate of a cluster, and the roots it may be signed by.
    pub fn member<R: AsRef<[u8]>>(key: NodeKey, leaf: &[u8], roots: &[R]) -> Result<Self, IdentityError> {
        let current = Self::current(&key, leaf, &as_slices(roots))?;
        Ok(Self { key, current: RwLock::new(current) })
    }

    /// An identity that shows whatever a test wants, with its own key.
    #[cfg(test)]
    pub(crate) fn showing(
        key: NodeKey,
        chain: Vec<CertificateDer<'static>>,
        now: u64,
    ) -> Result<Self, IdentityError> {
        let me = Self::stranger(key, now)?;
        let mut current = me.current.write().unwrap_or_else(PoisonError::into_inner);
        let shown = CertifiedKey::new(chain, current.certified.key.clone());
        current.certified = Arc::new(shown);
        drop(current);
        Ok(me)
    }

    /// Shows this certificate from the next handshake on. It must be for this node's key.
    pub fn set_certificate<R: AsRef<[u8]>>(&self, leaf: &[u8], roots: &[R]) -> Result<(), IdentityError> {
        let current = Self::current(&self.key, leaf, &as_slices(roots))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// Who this is.
    pub fn node(&self) -> NodeId {
        self.key.id()
    }

    /// SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        self.key.spki()
    }

    /// Ed25519 signature with the node key; callers put a label of their own in front.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }

    /// A certificate signing request (DER) for the node key.
    pub fn csr(&self) -> Result<Vec<u8>, IdentityError> {
        cert::signing_request(&self.key)
    }

    /// The certificate shown at present.
    pub fn certificate(&self) -> Arc<PeerCertificate> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).parsed.clone()
    }

    fn current(key: &NodeKey, leaf: &[u8], roots: &[&[u8]]) -> Result<Current, IdentityError> {
        let parsed = PeerCertificate::parse(leaf)?;
        if parsed.node != key.id() {
            return Err(IdentityError::OtherNode { found: parsed.node, own: key.id() });
        }
        // The root travels along so that a joiner can compare it with its token's fingerprint.
        let mut chain = vec![CertificateDer::from(leaf.to_vec())];
        if let Some(root) = parsed.signer(roots) {
            chain.push(CertificateDer::from(root.to_vec()));
        }
        let der = PrivatePkcs8KeyDer::from(key.pkcs8());
        let signing = rustls::crypto::ring::sign::any_eddsa_type(&der).map_err(|_| IdentityError::Key)?;
        Ok(Current { certified: Arc::new(CertifiedKey::new(chain, signing)), parsed: Arc::new(parsed) })
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).certified.clone()
    }
}

fn as_slices<R: AsRef<[u8]>>(roots: &[R]) -> Vec<&[u8]> {
    roots.iter().map(AsRef::as_ref).collect()
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_signs() {
        let key = NodeKey::from_seed(&[7; 32]).unwrap();
        let again = NodeKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!((key.id(), key.spki()), (again.id(), again.spki()));
        let signature = again.sign(b"x");
        assert!(verify(key.spki(), b"x", &signature));
        assert!(!verify(key.spki(), b"y", &signature));
        assert!(!verify(&key.spki()[1..], b"x", &signature));
        assert!(NodeKey::from_pkcs8(&key.pkcs8()[1..]).is_err());
    }

    #[test]
    fn no_secret_is_printed() {
        let key = NodeKey::from_seed(&[7; 32]).unwrap();
        let shown = format!("{key:?} {:?}", SealKey::from_bytes([7; 32]));
        assert!(!shown.contains("7, 7") && !shown.contains("0707"), "{shown}");
    }

    #[test]
    fn an_identity_takes_only_its_own_certificate() {
        let me = Identity::stranger(NodeKey::from_seed(&[1; 32]).unwrap(), 1_000_000).unwrap();
        let other = Identity::stranger(NodeKey::from_seed(&[2; 32]).unwrap(), 1_000_000).unwrap();
        let leaf = other.certificate().der.to_vec();
        let refused = me.set_certificate::<Vec<u8>>(&leaf, &[]);
        assert!(matches!(refused, Err(IdentityError::OtherNode { .. })), "{refused:?}");
    }
}
