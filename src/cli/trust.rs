//! Whom a command trusts over TLS: nodes of a cluster by its CA, everybody else by name as well.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    version::TLS13,
};
use tokio_rustls::TlsConnector;

use crate::identity::{SERVER_NAME, provider};

/// A connector that trusts the roots in a PEM file and nobody else.
pub(super) fn connector(ca: &Path) -> Result<TlsConnector, String> {
    let wrong = |why: String| format!("{}: {why}", ca.display());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).map_err(|e| wrong(e.to_string()))? {
        let root = root.map_err(|e| wrong(format!("not a list of certificates (PEM): {e}")))?;
        roots.add(root).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it (PEM)".to_owned()));
    }
    let by_name = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| wrong(e.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NameOrNode { by_name }))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// As a browser does it; but the certificate of a node, which has no name but the one that all nodes
/// have, need not name the host. No public CA may sign that name, so that it only counts with a
/// cluster's own.
#[derive(Debug)]
struct NameOrNode {
    by_name: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for NameOrNode {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.by_name.verify_server_cert(leaf, between, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let node = ServerName::try_from(SERVER_NAME)
                    .map_err(|_| Error::General("the name of nodes is no DNS name".to_owned()))?;
                self.by_name.verify_server_cert(leaf, between, &node, ocsp, now)
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_name.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_name.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_name.supported_verify_schemes()
    }
}
