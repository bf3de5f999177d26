//! A CA that the operator brings: read once, by the node that makes the cluster.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::{
    ca::{CaError, ClusterCa},
    cert::PeerCertificate,
};
use crate::types::ClusterId;

/// Shortest rest of its life, in seconds: a node certificate's life.
const SHORTEST: u64 = 30 * 86_400;

/// Where the CA's certificate and key lie, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate that nodes are to trust: a root, or an intermediate of an authority of yours.
    pub certificate: PathBuf,
    /// Its key: Ed25519, PKCS#8, not encrypted. Only the first start needs it.
    pub key: PathBuf,
}

/// Files that make no cluster CA.
#[derive(Debug, thiserror::Error)]
pub enum GivenCaError {
    /// Not there, not readable or not PEM.
    #[error("cannot read {}: {reason}", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Others can read the key.
    #[error("{} has mode {mode:o}: others can get at the key; run `chmod 600 {}`", .path.display(), .path.display())]
    TooOpen {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Certificate and key do not fit, or are of a kind that is not used here.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The certificate may not do what a cluster's CA must.
    #[error("{}: {reason}", .path.display())]
    Unfit {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
}

impl CaFiles {
    /// The CA in these files, if it can be one of a cluster at `now` (seconds since 1970). Nodes judge by
    /// trying: what a certificate of it would be good for is tried here.
    pub fn load(&self, now: u64) -> Result<ClusterCa, GivenCaError> {
        let unreadable = |path: &Path, reason: String| GivenCaError::Unreadable { path: path.into(), reason };
        let mode =
            fs::metadata(&self.key).map_err(|e| unreadable(&self.key, e.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(GivenCaError::TooOpen { path: self.key.clone(), mode: mode & 0o777 });
        }
        let certificate = CertificateDer::from_pem_file(&self.certificate)
            .map_err(|e| unreadable(&self.certificate, e.to_string()))?;
        let key =
            PrivatePkcs8KeyDer::from_pem_file(&self.key).map_err(|e| unreadable(&self.key, e.to_string()))?;
        let ca = ClusterCa::from_parts(&certificate, key.secret_pkcs8_der())?;
        let unfit = |reason| Err(GivenCaError::Unfit { path: self.certificate.clone(), reason });
        let parsed = PeerCertificate::parse(&certificate).map_err(CaError::from)?;
        if !ca.may_sign() {
            return unfit(
                "it is no CA: it wants basicConstraints CA:TRUE and, if there is a key usage, keyCertSign",
            );
        }
        if now < parsed.not_before {
            return unfit("it is not valid yet, by this machine's clock");
        }
        if parsed.not_after.saturating_sub(now) < SHORTEST {
            return unfit("it is valid for less than 30 days, the life of the certificates it is to sign");
        }
        // A name constraint, for example, would show only here.
        if !ca.signs_nodes(ClusterId([1; 16]), now)? {
            return unfit(
                "node certificates that it signs would not be accepted; does it carry name constraints?",
            );
        }
        Ok(ca)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    fn at(seconds: u64) -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (at(NOW - DAY), at(NOW + 3650 * DAY));
        params
    }

    fn load(params: &CertificateParams, key: &KeyPair, mode: u32) -> Result<ClusterCa, GivenCaError> {
        let dir = tempfile::tempdir().unwrap();
        let files = CaFiles { certificate: dir.path().join("ca.crt"), key: dir.path().join("ca.key") };
        let own = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let signer = if key.algorithm() == &rcgen::PKCS_ED25519 { key } else { &own };
        fs::write(&files.certificate, params.self_signed(signer).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        files.load(NOW)
    }

    fn refused(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = params();
        change(&mut params);
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        load(&params, &key, 0o600).unwrap_err().to_string()
    }

    #[test]
    fn a_fit_ca_is_taken_and_each_unfit_one_is_named() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(load(&params(), &key, 0o600).is_ok());
        assert!(matches!(load(&params(), &key, 0o640), Err(GivenCaError::TooOpen { mode: 0o640, .. })));
        let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        assert!(load(&params(), &p256, 0o600).unwrap_err().to_string().contains("Ed25519"));
        assert!(refused(|p| p.is_ca = IsCa::ExplicitNoCa).contains("CA:TRUE"));
        assert!(refused(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]).contains("keyCertSign"));
        assert!(refused(|p| p.not_before = at(NOW + 60)).contains("not valid yet"));
        assert!(refused(|p| p.not_after = at(NOW + 29 * DAY)).contains("30 days"));
        let constrained = refused(|p| {
            p.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".into())],
                excluded_subtrees: vec![],
            });
        });
        assert!(constrained.contains("name constraints"), "{constrained}");
        let missing = CaFiles { certificate: "/nowhere/ca.crt".into(), key: "/nowhere/ca.key".into() };
        assert!(missing.load(NOW).unwrap_err().to_string().contains("/nowhere/ca.key"));
    }
}
