//! A connection past its handshake: whoever it is holds the key of the certificate it showed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::pki_types::CertificateDer;
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::{close::CloseCode, generation::removal_reason, lanes::Pacer, stream::Stream, traffic::LaneBytes};
use crate::{
    identity::{PeerCertificate, PeerClass, classify},
    types::{ClusterView, NodeId},
};

/// Label of the TLS exporter that join proofs sign.
const EXPORTER: &[u8] = b"EXPORTER-skein-join";

/// A connection and the certificate of its other end.
pub(super) struct Contact {
    pub(super) conn: quinn::Connection,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) certificate: PeerCertificate,
    /// What this end showed.
    shown: Arc<PeerCertificate>,
    /// The cluster admitted the key while this connection was up: its certificate is still the
    /// self-signed one, so membership of the key is what counts.
    promoted: AtomicBool,
    /// Which root signed the certificate, for the roots it was last looked up among.
    signer: Mutex<(Vec<ByteBuf>, Option<ByteBuf>)>,
    pacer: Arc<Pacer>,
    /// Frames written on it, and of the mesh that it is of.
    pub(super) sent: [LaneBytes; 2],
    /// Counts live stream handles (and this one).
    used: Arc<()>,
}

impl Contact {
    /// `None` for a peer without readable certificate; TLS lets none through.
    pub(super) fn new(
        conn: quinn::Connection,
        shown: Arc<PeerCertificate>,
        mesh: &LaneBytes,
    ) -> Option<Self> {
        let chain = *conn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let certificate = PeerCertificate::parse(chain.first()?).ok()?;
        Some(Self {
            conn,
            chain,
            certificate,
            shown,
            promoted: AtomicBool::new(false),
            signer: Mutex::default(),
            pacer: Arc::new(Pacer::new(Instant::now())),
            sent: [LaneBytes::default(), mesh.clone()],
            used: Arc::new(()),
        })
    }

    pub(super) fn node(&self) -> NodeId {
        self.certificate.node
    }

    /// The peer's address; IPv4 as IPv4, whatever the socket is.
    pub(super) fn remote(&self) -> SocketAddr {
        let address = self.conn.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    /// What the certificate makes of the peer now.
    pub(super) fn class(&self, view: &ClusterView, now: u64) -> PeerClass {
        let mut signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner);
        if signer.0 != view.roots {
            let found = self.certificate.signer(&view.roots).map(|root| ByteBuf::from(root.to_vec()));
            *signer = (view.roots.clone(), found);
        }
        classify(&self.certificate, signer.1.as_ref().map(|root| root.as_slice()), view, now)
    }

    /// What the peer of a live connection is now: the certificate of its handshake may meanwhile
    /// have been renewed, or only been made after it.
    pub(super) fn live_class(&self, view: &ClusterView, now: u64) -> PeerClass {
        let class = self.class(view, now);
        let (PeerClass::Lapsed(node), Some(member)) = (class, view.members.get(&self.node())) else {
            return class;
        };
        let signed = self.signer.lock().unwrap_or_else(PoisonError::into_inner).1.is_some();
        let promoted = self.promoted.load(Ordering::Acquire);
        // One that is not valid yet was not renewed, whatever the record says.
        let signed = signed && now >= self.certificate.not_before;
        // Zero: a joiner's first view names the members before it knows their certificates.
        let current = now <= member.not_after || (promoted && member.not_after == 0);
        if (promoted || signed) && current { PeerClass::Member(node) } else { class }
    }

    /// True for a listed member with a certificate that names this cluster and is valid in time, of a
    /// root that this node does not know: the CA may have been rotated while it was away.
    pub(super) fn is_of_unknown_root(&self, view: &ClusterView, now: u64) -> bool {
        let certificate = &self.certificate;
        matches!(self.class(view, now), PeerClass::Lapsed(_))
            && self.signer.lock().unwrap_or_else(PoisonError::into_inner).1.is_none()
            && certificate.claims == Some((view.cluster, certificate.node))
            && (certificate.not_before..=certificate.not_after).contains(&now)
    }

    /// Of a listed member with a certificate of this cluster: how it is wrong in time, if it is.
    pub(super) fn is_untimely(&self, view: &ClusterView, now: u64) -> Option<String> {
        let PeerClass::Lapsed(_) = self.class(view, now) else { return None };
        self.signer.lock().unwrap_or_else(PoisonError::into_inner).1.as_ref()?;
        match (self.certificate.not_before, self.certificate.not_after) {
            (from, _) if now < from => Some(format!("is valid only in {} s", from - now)),
            (_, until) if now > until => Some(format!("expired {} s ago", now - until)),
            _ => None,
        }
    }

    /// True when both ends showed certificates of the root that signs now when this connection was made.
    pub(super) fn is_of_newest_root(&self, view: &ClusterView, now: u64) -> bool {
        self.class(view, now);
        let signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        let newest = view.roots.last();
        signer.as_ref() == newest && newest.is_some_and(|root| self.shown.signer(&[root]).is_some())
    }

    /// Lets the key's membership count from now on. False unless the view lists the key.
    pub(super) fn promote(&self, view: &ClusterView) -> bool {
        let node = self.node();
        let listed = view.members.contains_key(&node) && !view.removed.contains_key(&node);
        if listed {
            self.promoted.store(true, Ordering::Release);
        }
        listed
    }

    pub(super) fn exporter(&self) -> Option<[u8; 32]> {
        let mut out = [0; 32];
        self.conn.export_keying_material(&mut out, EXPORTER, b"").ok().map(|()| out)
    }

    pub(super) fn stream(&self, ends: (quinn::SendStream, quinn::RecvStream)) -> Stream {
        Stream::new(ends, &self.conn, &self.pacer, &self.sent, &self.used)
    }

    /// True while some handle to one of its streams lives.
    pub(super) fn in_use(&self) -> bool {
        Arc::strong_count(&self.used) > 1
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.conn.close(code.wire(), code.to_string().as_bytes());
    }

    /// Closes it for what the peer is by `view`.
    pub(super) fn turn_away(&self, class: PeerClass, view: &ClusterView) {
        match turned_away(class) {
            CloseCode::Removed => {
                self.conn.close(CloseCode::Removed.wire(), removal_reason(view.recovery.as_ref()).as_bytes());
            }
            code => self.close(code),
        }
    }
}

/// The code a peer that is no member is turned away with.
const fn turned_away(class: PeerClass) -> CloseCode {
    match class {
        PeerClass::Member(_) => CloseCode::Protocol,
        PeerClass::Lapsed(_) => CloseCode::Lapsed,
        PeerClass::NotYetKnown(_) => CloseCode::NotYetKnown,
        PeerClass::Removed(_) => CloseCode::Removed,
        PeerClass::WrongCluster(..) => CloseCode::WrongCluster,
        PeerClass::Stranger(_) => CloseCode::NotAdmitted,
    }
}
