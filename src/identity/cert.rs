//! Certificates: what one says, the self-signed one of a stranger, and signing requests.

use rcgen::{CertificateParams, DnType, IsCa, PublicKeyData, SerialNumber};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::WebPkiClientVerifier,
};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::{
    keys::{IdentityError, NodeKey, node_id},
    verifier::{SERVER_NAME, provider},
};
use crate::types::{ClusterId, NodeId};

/// Longest certificate that is looked at; ours are about 600 bytes.
const MAX_CERTIFICATE: usize = 16 * 1024;
/// Head of the URI that names cluster and node in a node certificate.
pub(super) const URI_SCHEME: &str = "skein://";
/// How far certificates are backdated, for clocks that are behind.
pub(super) const BACKDATE: u64 = 3_600;

/// A certificate that says nothing usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509, or over the size limit.
    #[error("not a readable X.509 certificate")]
    Unreadable,
    /// Not an Ed25519 key.
    #[error("the certificate's key is not Ed25519")]
    OtherAlgorithm,
}

/// SHA-256 of a certificate (DER): what a join token pins.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let hash = ring::digest::digest(&ring::digest::SHA256, certificate);
    for (to, from) in out.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    out
}

/// What a node's certificate says. Parsing judges nothing: see [`super::classify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// Hash of the key: who holds it, whatever the names in it say.
    pub node: NodeId,
    /// SubjectPublicKeyInfo (DER).
    pub spki: Vec<u8>,
    /// Cluster and node its URI name claims; worth something only if a root signed it.
    pub claims: Option<(ClusterId, NodeId)>,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// True when issuer and subject are one.
    pub self_signed: bool,
    /// True when it may be used for both ends of a connection and is not a CA.
    pub for_nodes: bool,
}

impl PeerCertificate {
    /// Reads a certificate (DER).
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::Unreadable);
        }
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| CertificateError::Unreadable)?;
        if !rest.is_empty() {
            return Err(CertificateError::Unreadable);
        }
        let spki = x509.public_key().raw.to_vec();
        if x509.public_key().algorithm.algorithm != x509_parser::oid_registry::OID_SIG_ED25519 {
            return Err(CertificateError::OtherAlgorithm);
        }
        let (mut claims, mut both_ends) = (None, false);
        for extension in x509.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    claims = names.general_names.iter().find_map(|name| match name {
                        GeneralName::URI(uri) => parse_uri(uri),
                        _ => None,
                    });
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    both_ends = usage.client_auth && usage.server_auth;
                }
                _ => {}
            }
        }
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            node: node_id(&spki),
            claims,
            not_before: seconds(x509.validity().not_before),
            not_after: seconds(x509.validity().not_after),
            serial: data_encoding::HEXLOWER.encode(x509.raw_serial()),
            self_signed: x509.issuer() == x509.subject(),
            for_nodes: both_ends && !x509.is_ca(),
            spki,
        })
    }

    /// The root (DER) among `roots` that signed this certificate. Validity in time is judged
    /// apart, because an expired member is lapsed, not a stranger.
    pub fn signer<'r, R: AsRef<[u8]>>(&self, roots: &'r [R]) -> Option<&'r [u8]> {
        let within = UnixTime::since_unix_epoch(Duration::from_secs(self.not_before));
        roots.iter().map(AsRef::as_ref).find(|root| {
            let mut store = RootCertStore::empty();
            store.add(CertificateDer::from(root.to_vec())).is_ok()
                && WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
                    .build()
                    .is_ok_and(|v| v.verify_client_cert(&self.der, &[], within).is_ok())
        })
    }
}

fn parse_uri(uri: &str) -> Option<(ClusterId, NodeId)> {
    let (cluster, node) = uri.strip_prefix(URI_SCHEME)?.split_once('/')?;
    Some((cluster.parse().ok()?, node.parse().ok()?))
}

/// The certificate a node shows before a cluster has given it one. Nobody checks its validity.
pub(super) fn self_signed(key: &NodeKey, now: u64) -> Result<Vec<u8>, IdentityError> {
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, key.id().to_string());
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = instant(now.saturating_sub(BACKDATE));
    params.not_after = instant(now.saturating_add(10 * 365 * 86_400));
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    Ok(params.self_signed(&key.rcgen()?)?.der().to_vec())
}

/// A request to sign the node's key; the signer replaces everything else in it.
pub(super) fn signing_request(key: &NodeKey) -> Result<Vec<u8>, IdentityError> {
    Ok(CertificateParams::default().serialize_request(&key.rcgen()?)?.der().to_vec())
}

/// Seconds since 1970 as rcgen wants them; far-off values become the epoch.
pub(super) fn instant(seconds: u64) -> OffsetDateTime {
    i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The SubjectPublicKeyInfo of the Ed25519 key in a request, `None` for another kind of key.
pub(super) fn request_spki(key: &rcgen::PublicKey) -> Option<Vec<u8>> {
    (key.der_bytes().len() == 32 && PublicKeyData::algorithm(key) == &rcgen::PKCS_ED25519)
        .then(|| super::keys::spki_of(key.der_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_certificate_claims_nothing() {
        let key = NodeKey::from_seed(&[3; 32]).unwrap();
        let der = self_signed(&key, 1_800_000_000).unwrap();
        let cert = PeerCertificate::parse(&der).unwrap();
        assert_eq!((cert.node, cert.claims, cert.self_signed), (key.id(), None, true));
        assert_eq!(cert.not_before, 1_800_000_000 - BACKDATE);
        assert_eq!(cert.spki, key.spki());
    }

    #[test]
    fn rubbish_is_refused_not_trusted() {
        let key = NodeKey::from_seed(&[3; 32]).unwrap();
        let mut der = self_signed(&key, 1_800_000_000).unwrap();
        assert!(PeerCertificate::parse(&[]).is_err());
        assert!(PeerCertificate::parse(&der[..der.len() - 1]).is_err());
        der.push(0);
        assert!(PeerCertificate::parse(&der).is_err());
    }
}
