//! How a peer is judged: rustls checks that it holds its key, [`classify`] says what it is.

use std::sync::{Arc, LazyLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use super::{cert::PeerCertificate, keys::Identity};
use crate::types::{ClusterId, ClusterView, NodeId};

/// The name every node is dialled by; addresses and DNS names are never checked.
pub const SERVER_NAME: &str = "mesh.internal";

/// A TLS configuration that rustls does not take.
#[derive(Debug, thiserror::Error)]
#[error("cannot configure TLS: {0}")]
pub struct TlsError(#[from] Error);

/// What a peer is to this node at this moment, with the id that is the hash of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerClass {
    /// In the current membership, with a valid certificate of this cluster.
    Member(NodeId),
    /// In the current membership, but its certificate has expired, is not valid yet, is of a retired
    /// root or is not of this cluster's CA (yet): may renew by proof of its key.
    Lapsed(NodeId),
    /// A certificate of this cluster that has not expired, but the view does not (yet) hold the node:
    /// worth another try.
    NotYetKnown(NodeId),
    /// Was a member and was removed: this identity never comes back.
    Removed(NodeId),
    /// Shows a certificate of another cluster.
    WrongCluster(NodeId, ClusterId),
    /// Anyone else.
    Stranger(NodeId),
}

impl PeerClass {
    /// Who it is, whatever it is.
    pub const fn node(self) -> NodeId {
        match self {
            Self::Member(node)
            | Self::Lapsed(node)
            | Self::NotYetKnown(node)
            | Self::Removed(node)
            | Self::WrongCluster(node, _)
            | Self::Stranger(node) => node,
        }
    }

    /// True for a member.
    pub const fn is_member(self) -> bool {
        matches!(self, Self::Member(_))
    }
}

/// Classes the holder of `certificate`. `signer` is the root of the **current** view that signed
/// it ([`PeerCertificate::signer`]), `now` is in seconds since 1970. Possession of the key was
/// proven in the handshake.
pub fn classify(
    certificate: &PeerCertificate,
    signer: Option<&[u8]>,
    view: &ClusterView,
    now: u64,
) -> PeerClass {
    let node = certificate.node;
    let listed = view.members.contains_key(&node);
    if view.removed.contains_key(&node) {
        return PeerClass::Removed(node);
    }
    let of_this_cluster = signer.is_some_and(|root| view.roots.iter().any(|r| r.as_slice() == root))
        && certificate.claims == Some((view.cluster, node))
        && certificate.for_nodes;
    if of_this_cluster {
        return match (listed, now) {
            (true, now) if (certificate.not_before..=certificate.not_after).contains(&now) => {
                PeerClass::Member(node)
            }
            // Expired, or not valid yet: whoever signed it, or whoever judges it, has a wrong clock.
            // Either way a new one helps, and the node itself cannot tell.
            (true, _) => PeerClass::Lapsed(node),
            (false, now) if now <= certificate.not_after => PeerClass::NotYetKnown(node),
            (false, _) => PeerClass::Stranger(node),
        };
    }
    match certificate.claims {
        _ if listed => PeerClass::Lapsed(node),
        // A node without a cluster has no opinion on other clusters.
        Some((cluster, _)) if view.cluster != ClusterId::default() && cluster != view.cluster => {
            PeerClass::WrongCluster(node, cluster)
        }
        _ => PeerClass::Stranger(node),
    }
}

/// TLS for a dialer: 1.3 only, ring, no resumption, no early data, `identity` as certificate.
pub fn client_tls(identity: Arc<Identity>, alpn: &[u8]) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Possession))
        .with_client_cert_resolver(identity);
    // A resumed session would skip the certificate, and so the membership check.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// TLS for the accepting end: as [`client_tls`], and the client must show a certificate.
pub fn server_tls(identity: Arc<Identity>, alpn: &[u8]) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Possession))
        .with_cert_resolver(identity);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// The cryptography of all TLS here: ring, by name. With two providers in the tree rustls would not choose one by itself.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    PROVIDER.clone()
}

/// Accepts any Ed25519 certificate whose key the peer holds; who that is gets judged later.
#[derive(Debug)]
struct Possession;

impl Possession {
    fn readable(certificate: &CertificateDer<'_>) -> Result<(), Error> {
        PeerCertificate::parse(certificate)
            .map(drop)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }
}

impl ServerCertVerifier for Possession {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::readable(leaf).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::readable(leaf).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{ClusterCa, NodeKey},
        types::Member,
    };

    const NOW: u64 = 1_800_000_000;
    const CLUSTER: ClusterId = ClusterId([9; 16]);

    fn issue(ca: &ClusterCa, cluster: ClusterId, seed: u8, now: u64) -> PeerCertificate {
        let me = Identity::stranger(NodeKey::from_seed(&[seed; 32]).unwrap(), now).unwrap();
        let issued = ca.issue(&me.csr().unwrap(), cluster, [1; 16], now).unwrap();
        PeerCertificate::parse(&issued.certificate).unwrap()
    }

    fn class(certificate: &PeerCertificate, view: &ClusterView, now: u64) -> PeerClass {
        classify(certificate, certificate.signer(&view.roots), view, now)
    }

    fn list(view: &mut ClusterView, node: NodeId) {
        let member = Member {
            id: node,
            name: String::new(),
            role: Default::default(),
            addresses: Default::default(),
            spki: vec![],
            seal_key: vec![],
            seal_key_signature: vec![],
            serial: String::new(),
            not_after: 0,
            version: String::new(),
            features: 0,
        };
        view.members.insert(node, member);
    }

    #[test]
    fn every_class_is_told_from_the_others() {
        let ca = ClusterCa::create(CLUSTER, &[1; 32], NOW).unwrap();
        let mut view = ClusterView { cluster: CLUSTER, ..Default::default() };
        view.roots = vec![ca.certificate().to_vec().into()];
        let cert = issue(&ca, CLUSTER, 2, NOW);
        let node = cert.node;
        assert_eq!(class(&cert, &view, NOW), PeerClass::NotYetKnown(node));
        list(&mut view, node);
        assert_eq!(class(&cert, &view, NOW), PeerClass::Member(node));
        assert_eq!(class(&cert, &view, NOW + 31 * 86_400), PeerClass::Lapsed(node));
        assert_eq!(class(&cert, &view, NOW - 7_200), PeerClass::Lapsed(node), "not valid yet");
        let newcomer = issue(&ca, CLUSTER, 7, NOW);
        assert_eq!(class(&newcomer, &view, NOW - 7_200), PeerClass::NotYetKnown(newcomer.node));

        // The same key with a certificate nobody signed proves the key, not the membership.
        let me = Identity::stranger(NodeKey::from_seed(&[2; 32]).unwrap(), NOW).unwrap();
        assert_eq!(class(&me.certificate(), &view, NOW), PeerClass::Lapsed(node));
        let stranger = Identity::stranger(NodeKey::from_seed(&[5; 32]).unwrap(), NOW).unwrap();
        assert_eq!(class(&stranger.certificate(), &view, NOW), PeerClass::Stranger(stranger.node()));

        // A retired root.
        let next = ClusterCa::create(CLUSTER, &[6; 32], NOW).unwrap();
        view.roots = vec![next.certificate().to_vec().into()];
        assert_eq!(class(&cert, &view, NOW), PeerClass::Lapsed(node));

        view.removed.insert(node, 1);
        assert_eq!(class(&cert, &view, NOW), PeerClass::Removed(node));
    }

    #[test]
    fn another_cluster_is_wrong_even_under_the_same_root() {
        let ca = ClusterCa::create(CLUSTER, &[1; 32], NOW).unwrap();
        let mut view = ClusterView { cluster: CLUSTER, ..Default::default() };
        view.roots = vec![ca.certificate().to_vec().into()];
        let elsewhere = ClusterId([8; 16]);
        let cert = issue(&ca, elsewhere, 2, NOW);
        assert_eq!(class(&cert, &view, NOW), PeerClass::WrongCluster(cert.node, elsewhere));
        assert_eq!(class(&cert, &ClusterView::default(), NOW), PeerClass::Stranger(cert.node));
    }

    /// Even a client that wants to resume gets a whole handshake, with its certificate, each time.
    #[test]
    fn sessions_are_never_resumed() {
        let me = Arc::new(Identity::stranger(NodeKey::from_seed(&[1; 32]).unwrap(), NOW).unwrap());
        let server = Arc::new(server_tls(me.clone(), b"x").unwrap());
        let mut eager = client_tls(me, b"x").unwrap();
        eager.resumption = Resumption::in_memory_sessions(8);
        eager.enable_early_data = true;
        let eager = Arc::new(eager);
        for _ in 0..3 {
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let mut client = rustls::ClientConnection::new(eager.clone(), name).unwrap();
            assert!(client.early_data().is_none());
            let mut served = rustls::ServerConnection::new(server.clone()).unwrap();
            for _ in 0..10 {
                let mut wire = Vec::new();
                client.write_tls(&mut wire).unwrap();
                served.read_tls(&mut wire.as_slice()).unwrap();
                served.process_new_packets().unwrap();
                let mut wire = Vec::new();
                served.write_tls(&mut wire).unwrap();
                client.read_tls(&mut wire.as_slice()).unwrap();
                client.process_new_packets().unwrap();
            }
            assert_eq!(served.handshake_kind(), Some(rustls::HandshakeKind::Full));
            assert_eq!(served.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            assert!(served.peer_certificates().is_some_and(|chain| chain.len() == 1));
        }
    }

    #[test]
    fn a_leaf_cannot_sign_and_a_root_is_no_node() {
        let ca = ClusterCa::create(CLUSTER, &[1; 32], NOW).unwrap();
        let mut view = ClusterView { cluster: CLUSTER, ..Default::default() };
        // A member that signs with its own key makes no members.
        let leaf = issue(&ca, CLUSTER, 2, NOW);
        let rogue = ClusterCa::from_parts(&leaf.der, NodeKey::from_seed(&[2; 32]).unwrap().pkcs8()).unwrap();
        let child = issue(&rogue, CLUSTER, 3, NOW);
        view.roots = vec![ca.certificate().to_vec().into()];
        list(&mut view, child.node);
        assert_eq!(class(&child, &view, NOW), PeerClass::Lapsed(child.node));
        let root = PeerCertificate::parse(ca.certificate()).unwrap();
        list(&mut view, root.node);
        assert!(!class(&root, &view, NOW).is_member());
    }
}
