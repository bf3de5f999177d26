//! Every kind of bad certificate, shown by the end that dials and by the end that answers. The key is a
//! member's in each case (or was), so that nothing but the certificate, or the view, is at fault.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::*;
use crate::identity::PeerCertificate;

/// What the two ends make of a peer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// TLS does not come about.
    NoHandshake,
    /// The connection stands, `Join` is all there is, and anything else closes it with this code.
    OnlyJoin(CloseCode),
}
use Verdict::{NoHandshake, OnlyJoin};

const DAY: u64 = 86_400;
const BAD: u8 = 66;

struct Kind {
    name: &'static str,
    /// Certificates, leaf first.
    chain: Vec<Vec<u8>>,
    view: fn(&mut ClusterView, NodeId),
    verdict: Verdict,
}

fn pair_of(pkcs8: &[u8]) -> KeyPair {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &rcgen::PKCS_ED25519).unwrap()
}

fn bad_key() -> NodeKey {
    NodeKey::from_seed(&[BAD; 32]).unwrap()
}

fn at(seconds: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

/// What the cluster would sign for the key, but for one change.
fn params(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["mesh.internal".to_owned()]).unwrap();
    name(&mut params, CLUSTER, bad_key().id());
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "a node");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (at(NOW - 3_600), at(NOW + 30 * DAY));
    change(&mut params);
    params
}

/// Replaces the URI.
fn name(params: &mut CertificateParams, cluster: ClusterId, node: NodeId) {
    params.subject_alt_names.retain(|name| !matches!(name, SanType::URI(_)));
    let uri = format!("skein://{cluster}/{node}");
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
}

fn signed(by: &ClusterCa, params: &CertificateParams) -> Vec<u8> {
    let root = CertificateDer::from(by.certificate());
    let issuer = Issuer::from_ca_cert_der(&root, pair_of(by.private_key())).unwrap();
    params.signed_by(&pair_of(bad_key().pkcs8()), &issuer).unwrap().der().to_vec()
}

fn kinds() -> Vec<Kind> {
    let (right, other) = (ca(), ClusterCa::create(CLUSTER, &[201; 32], NOW).unwrap());
    let lapsed = OnlyJoin(CloseCode::Lapsed);
    let kind = |name, leaf: Vec<u8>, verdict| Kind {
        name,
        chain: vec![leaf, ca().certificate().to_vec()],
        view: |_, _| {},
        verdict,
    };
    let changed = |change: &dyn Fn(&mut CertificateParams)| signed(&right, &params(change));
    let good = changed(&|_| {});
    let self_made = params(|_| {}).self_signed(&pair_of(bad_key().pkcs8())).unwrap().der().to_vec();
    let mut bent = good.clone();
    *bent.last_mut().unwrap() ^= 1;
    // A member that signs for others with its own key.
    let member_key = NodeKey::from_seed(&[77; 32]).unwrap();
    let issued = right
        .issue(&Identity::stranger(member_key, NOW).unwrap().csr().unwrap(), CLUSTER, [1; 16], NOW)
        .unwrap();
    let member_key = NodeKey::from_seed(&[77; 32]).unwrap();
    let rogue = ClusterCa::from_parts(&issued.certificate, member_key.pkcs8()).unwrap();
    let below_a_leaf = signed(&rogue, &params(|_| {}));
    let mut chained = kind("below another node's certificate", below_a_leaf, lapsed);
    chained.chain.insert(1, issued.certificate);
    let mut looped =
        kind("of another CA, in a chain that goes in circles", signed(&other, &params(|_| {})), lapsed);
    for _ in 0..8 {
        let round = [other.certificate().to_vec(), right.certificate().to_vec()];
        looped.chain.extend(round);
    }
    let unlisted = |view: &mut ClusterView, id| drop(view.members.remove(&id));
    let removed = |view: &mut ClusterView, id| {
        view.members.remove(&id);
        view.removed.insert(id, 1);
    };
    let retired = |view: &mut ClusterView, _| {
        let next = ClusterCa::create(CLUSTER, &[202; 32], NOW).unwrap();
        view.roots = vec![next.certificate().to_vec().into()];
    };
    vec![
        kind("of another CA", signed(&other, &params(|_| {})), lapsed),
        kind("self-signed, with a member's name", self_made, lapsed),
        kind(
            "expired",
            changed(&|p| (p.not_before, p.not_after) = (at(NOW - 31 * DAY), at(NOW - 1))),
            lapsed,
        ),
        kind("not valid yet", changed(&|p| p.not_before = at(NOW + 60)), lapsed),
        kind("for servers only", changed(&|p| drop(p.extended_key_usages.pop())), lapsed),
        kind("for clients only", changed(&|p| drop(p.extended_key_usages.remove(0))), lapsed),
        kind("of another cluster by name", changed(&|p| name(p, ClusterId([8; 16]), bad_key().id())), lapsed),
        kind("of another node by name", changed(&|p| name(p, CLUSTER, NodeId([1; 16]))), lapsed),
        kind("without a name", changed(&|p| p.subject_alt_names.clear()), lapsed),
        kind("a CA as a leaf", changed(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), lapsed),
        kind(
            "with a critical extension that nobody knows",
            changed(&|p| {
                let mut extension =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
                extension.set_criticality(true);
                p.custom_extensions.push(extension);
            }),
            NoHandshake,
        ),
        kind("with a bent signature", bent, lapsed),
        chained,
        looped,
        kind(
            "of 20 KiB",
            changed(&|p| {
                let names =
                    (0..900).map(|n| SanType::DnsName(format!("name-{n}.example").try_into().unwrap()));
                p.subject_alt_names.extend(names);
            }),
            NoHandshake,
        ),
        kind("not a certificate", b"rubbish".to_vec(), NoHandshake),
        kind(
            "of another key",
            Identity::stranger(NodeKey::from_seed(&[5; 32]).unwrap(), NOW)
                .unwrap()
                .certificate()
                .der
                .to_vec(),
            NoHandshake,
        ),
        Kind {
            view: unlisted,
            ..kind("good, of no member (yet)", good.clone(), OnlyJoin(CloseCode::NotYetKnown))
        },
        Kind {
            view: removed,
            ..kind("good, of a member that was removed", good.clone(), OnlyJoin(CloseCode::Removed))
        },
        Kind { view: retired, ..kind("of a retired root", good, lapsed) },
    ]
}

/// A node that shows this, to one that judges by the kind's view. It holds everyone for a member itself.
fn at_odds(kind: &Kind) -> (Node, Node) {
    let chain = kind.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let bad = Node::start(Arc::new(Identity::showing(bad_key(), chain, NOW).unwrap()), 66);
    let good = Node::start(member(1), 1);
    // As of a member that was never renewed.
    let members = || [listed(&good.identity, None), Member { not_after: 0, ..listed(&bad.identity, None) }];
    bad.view.send_replace(view_of(members()));
    let mut view = (*view_of(members())).clone();
    (kind.view)(&mut view, bad.id());
    good.view.send_replace(Arc::new(view));
    (bad, good)
}

#[tokio::test]
async fn every_kind_of_bad_certificate_is_refused_when_its_holder_dials() {
    for kind in kinds() {
        let (bad, good) = at_odds(&kind);
        match kind.verdict {
            NoHandshake => {
                // TLS 1.3: the dialer may be done before the other end has judged its certificate.
                if let Ok(contact) = bad.mesh.inner.dial(good.addr()).await {
                    let closed = timeout(Duration::from_secs(2), contact.conn.closed()).await;
                    assert!(closed.is_ok(), "{}", kind.name);
                }
            }
            OnlyJoin(code) => {
                for stream in [StreamKind::Hello, StreamKind::Status, StreamKind::Raft] {
                    let (_, ended) = bad.knock(good.addr(), stream, "let me in").await;
                    assert!(refused(&ended, code), "{}, {stream:?}: {ended:?}", kind.name);
                }
                let (_, answered) = bad.knock(good.addr(), StreamKind::Join, "please").await;
                assert!(answered.is_ok(), "{}: {answered:?}", kind.name);
            }
        }
        let heard = good.heard();
        assert!(
            heard.iter().all(|(stream, class, _)| *stream == StreamKind::Join && !class.is_member()),
            "{}: {heard:?}",
            kind.name
        );
        assert!(good.mesh.links().borrow().is_empty(), "{}", kind.name);
    }
}

#[tokio::test]
async fn every_kind_of_bad_certificate_is_refused_when_its_holder_answers() {
    for kind in kinds() {
        let (bad, good) = at_odds(&kind);
        match (good.mesh.inner.dial(bad.addr()).await, kind.verdict) {
            (Err(_), NoHandshake) => {}
            (Ok(contact), OnlyJoin(code)) => {
                let said = good.mesh.inner.say_hello(contact).await.err();
                let Some(DialError::NotMember(class)) = said else { panic!("{}: {said:?}", kind.name) };
                assert!(!class.is_member(), "{}", kind.name);
                let expected = match code {
                    CloseCode::Removed => PeerClass::Removed(bad.id()),
                    CloseCode::NotYetKnown => PeerClass::NotYetKnown(bad.id()),
                    _ => PeerClass::Lapsed(bad.id()),
                };
                assert_eq!(class, expected, "{}", kind.name);
            }
            (dialled, verdict) => {
                panic!("{}: {:?}, not {verdict:?}", kind.name, dialled.map(|_| "connected"))
            }
        }
        assert!(
            bad.heard().is_empty() && good.mesh.links().borrow().is_empty(),
            "{}: something was said",
            kind.name
        );
    }
}

/// The same certificate without the change is good: it is the change that each refusal is for.
#[tokio::test]
async fn the_certificate_that_the_bad_ones_are_made_of_is_good() {
    let good = signed(&ca(), &params(|_| {}));
    assert!(PeerCertificate::parse(&good).is_ok());
    let kind = Kind {
        name: "good",
        chain: vec![good, ca().certificate().to_vec()],
        view: |_, _| {},
        verdict: NoHandshake,
    };
    let (bad, good) = at_odds(&kind);
    let contact = bad.mesh.inner.dial(good.addr()).await.unwrap();
    assert!(bad.mesh.inner.say_hello(contact).await.is_ok());
    good.linked(bad.id()).await;
}
