//! The cluster CA: a root made by the first node, and the certificates it signs.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    cert::{
        BACKDATE, CertificateError, PeerCertificate, URI_SCHEME, fingerprint, instant, request_spki,
        signing_request,
    },
    keys::{IdentityError, NodeKey, node_id},
    verifier::SERVER_NAME,
};
use crate::types::{ClusterId, NodeId};

/// Life of the root: ten years.
const ROOT_LIFE: u64 = 3_650 * 86_400;
/// Life of a node certificate: thirty days.
const NODE_LIFE: u64 = 30 * 86_400;
/// Longest request that is looked at; ours are about 200 bytes.
const MAX_REQUEST: usize = 8 * 1024;

/// A CA that cannot be made or loaded, or a request that cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Not a request, its own signature does not verify, or over the size limit.
    #[error("not a valid certificate signing request")]
    Request,
    /// Not an Ed25519 key.
    #[error("the request's key is not Ed25519")]
    OtherAlgorithm,
    /// Certificate and key are not of each other.
    #[error("the CA key does not belong to the CA certificate")]
    Mismatch,
    /// The key cannot be read.
    #[error("cannot use the CA key: {0}")]
    Key(#[from] IdentityError),
    /// The certificate cannot be read.
    #[error("cannot use the CA certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// Encoding failed.
    #[error("cannot encode the certificate: {0}")]
    Encode(#[from] rcgen::Error),
}

/// The cluster's certificate authority. Its key is a secret that leaves memory only sealed.
pub struct ClusterCa {
    certificate: Vec<u8>,
    key: NodeKey,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({})", data_encoding::HEXLOWER.encode(&self.fingerprint()))
    }
}

/// A certificate just signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate (DER).
    pub certificate: Vec<u8>,
    /// Whose it is.
    pub node: NodeId,
    /// SubjectPublicKeyInfo (DER) of its key.
    pub spki: Vec<u8>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
}

impl ClusterCa {
    /// Makes the CA of a cluster from 32 random bytes; valid for ten years from `now` (seconds
    /// since 1970).
    pub fn create(cluster: ClusterId, seed: &[u8; 32], now: u64) -> Result<Self, CaError> {
        let key = NodeKey::from_seed(seed)?;
        let mut params = CertificateParams::new(vec![])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("skein {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = instant(now.saturating_sub(BACKDATE));
        params.not_after = instant(now.saturating_add(ROOT_LIFE));
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        let certificate = params.self_signed(&key.rcgen()?)?.der().to_vec();
        Ok(Self { certificate, key })
    }

    /// The CA from its certificate (DER) and its key (PKCS#8), which must belong together.
    pub fn from_parts(certificate: &[u8], pkcs8: &[u8]) -> Result<Self, CaError> {
        let key = NodeKey::from_pkcs8(pkcs8)?;
        if PeerCertificate::parse(certificate)?.spki != key.spki() {
            return Err(CaError::Mismatch);
        }
        Ok(Self { certificate: certificate.to_vec(), key })
    }

    /// The root certificate (DER).
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The key (PKCS#8). A secret: only to be sealed.
    pub fn private_key(&self) -> &[u8] {
        self.key.pkcs8()
    }

    /// SHA-256 of the root certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// True when the certificate says that it is a CA's.
    pub(super) fn may_sign(&self) -> bool {
        let Ok((_, x509)) = X509Certificate::from_der(&self.certificate) else { return false };
        let usage = x509.key_usage().ok().flatten();
        x509.is_ca() && usage.is_none_or(|usage| usage.value.key_cert_sign())
    }

    /// True when a certificate that it signs for a node is one to those who trust it.
    pub(super) fn signs_nodes(&self, cluster: ClusterId, now: u64) -> Result<bool, CaError> {
        let request = signing_request(&self.key)?;
        let issued = self.issue(&request, cluster, [1; 16], now)?;
        Ok(PeerCertificate::parse(&issued.certificate)?.signer(&[&self.certificate]).is_some())
    }

    /// Ed25519 signature over `message`; callers put a label of their own in front of it, which no
    /// certificate begins with.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message)
    }

    /// Signs the key of a request (DER) for `cluster`. Nothing but the key is taken from it, and
    /// only after its own signature has shown that the requester holds the key. `serial` are
    /// random bytes, `now` is in seconds since 1970.
    pub fn issue(
        &self,
        request: &[u8],
        cluster: ClusterId,
        serial: [u8; 16],
        now: u64,
    ) -> Result<Issued, CaError> {
        if request.len() > MAX_REQUEST {
            return Err(CaError::Request);
        }
        let der = CertificateSigningRequestDer::from(request);
        let mut csr = CertificateSigningRequestParams::from_der(&der).map_err(|_| CaError::Request)?;
        let spki = request_spki(&csr.public_key).ok_or(CaError::OtherAlgorithm)?;
        let node = node_id(&spki);
        csr.params = node_params(cluster, node, serial, now)?;
        let root = CertificateDer::from(self.certificate.as_slice());
        let issuer = Issuer::from_ca_cert_der(&root, self.key.rcgen()?)?;
        let certificate = csr.signed_by(&issuer)?.der().to_vec();
        // Read back what was signed, so that the member record can never differ from it.
        let parsed = PeerCertificate::parse(&certificate)?;
        Ok(Issued { certificate, node, spki, serial: parsed.serial, not_after: parsed.not_after })
    }
}

fn node_params(
    cluster: ClusterId,
    node: NodeId,
    mut serial: [u8; 16],
    now: u64,
) -> Result<CertificateParams, CaError> {
    // A serial is a positive integer without leading zero byte.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    let uri = format!("{URI_SCHEME}{cluster}/{node}");
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node.to_string());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = instant(now.saturating_sub(BACKDATE));
    params.not_after = instant(now.saturating_add(NODE_LIFE));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn signs_the_key_and_nothing_else_of_a_request() {
        let cluster = ClusterId([9; 16]);
        let ca = ClusterCa::create(cluster, &[1; 32], NOW).unwrap();
        let key = NodeKey::from_seed(&[2; 32]).unwrap();
        let mut wants = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        wants.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let uri = format!("{URI_SCHEME}{cluster}/{}", NodeId([0; 16]));
        wants.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        let request = wants.serialize_request(&key.rcgen().unwrap()).unwrap();
        let issued = ca.issue(request.der(), cluster, [0xff; 16], NOW).unwrap();
        let cert = PeerCertificate::parse(&issued.certificate).unwrap();
        assert_eq!(cert.claims, Some((cluster, key.id())));
        assert!(cert.for_nodes && !cert.self_signed);
        assert_eq!((cert.not_before, cert.not_after), (NOW - 3_600, NOW + 30 * 86_400));
        assert_eq!((issued.node, &issued.spki[..]), (key.id(), key.spki()));
        assert!(!String::from_utf8_lossy(&issued.certificate).contains("evil"));
        assert_eq!(cert.signer(&[ca.certificate()]), Some(ca.certificate()));
        let other = ClusterCa::create(cluster, &[3; 32], NOW).unwrap();
        assert_eq!(cert.signer(&[other.certificate()]), None);
        assert_eq!(cert.signer(&[other.certificate(), ca.certificate()]), Some(ca.certificate()));
    }

    #[test]
    fn a_request_must_prove_its_key() {
        let ca = ClusterCa::create(ClusterId([9; 16]), &[1; 32], NOW).unwrap();
        let key = NodeKey::from_seed(&[2; 32]).unwrap();
        let mut request = super::super::cert::signing_request(&key).unwrap();
        assert!(ca.issue(&request, ClusterId([9; 16]), [1; 16], NOW).is_ok());
        let at = request.len() - 1;
        request[at] ^= 1;
        assert!(matches!(ca.issue(&request, ClusterId([9; 16]), [1; 16], NOW), Err(CaError::Request)));
        assert!(ca.issue(&vec![0; 9_000], ClusterId([9; 16]), [1; 16], NOW).is_err());
    }

    #[test]
    fn the_ca_survives_its_parts_and_refuses_a_wrong_key() {
        let ca = ClusterCa::create(ClusterId([9; 16]), &[1; 32], NOW).unwrap();
        let again = ClusterCa::from_parts(ca.certificate(), ca.private_key()).unwrap();
        assert_eq!(again.fingerprint(), ca.fingerprint());
        let wrong = NodeKey::from_seed(&[4; 32]).unwrap();
        assert!(matches!(ClusterCa::from_parts(ca.certificate(), wrong.pkcs8()), Err(CaError::Mismatch)));
        assert!(!format!("{ca:?}").contains("private"));
    }
}
