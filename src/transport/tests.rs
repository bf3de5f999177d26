//! The mesh over real UDP on loopback: several nodes in one process.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{contact::Contact, *};
use crate::{
    identity::{self, ClusterCa, Identity, NodeKey, PeerClass},
    protocol::{
        DecodeError, Lane, StreamKind,
        frame::{MAX_JOIN, MAX_MESSAGE, StreamHeader},
    },
    types::{Addresses, BootId, ClusterId, ClusterView, Lsn, Member, NodeId, Recovery, Role, TimingProfile},
};

mod bad_certificates;
mod flood;
mod rotation;
mod strangers;
mod windows;

const NOW: u64 = 1_800_000_000;
const CLUSTER: ClusterId = ClusterId([9; 16]);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text(String);

/// What reached handlers, and from whom.
type Heard = Arc<Mutex<Vec<(StreamKind, PeerClass, String)>>>;

struct Node {
    mesh: Mesh,
    identity: Arc<Identity>,
    view: watch::Sender<Arc<ClusterView>>,
    boot: BootId,
    driver: JoinHandle<()>,
    heard: Heard,
    clock: Arc<AtomicU64>,
    _addresses: watch::Sender<Addresses>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.mesh.close("test over");
        self.driver.abort();
    }
}

impl Node {
    fn id(&self) -> NodeId {
        self.identity.node()
    }

    fn addr(&self) -> SocketAddr {
        self.mesh.local_addr().unwrap()
    }

    fn start(identity: Arc<Identity>, boot: u64) -> Self {
        Self::start_on(identity, boot, loopback())
    }

    fn start_on(identity: Arc<Identity>, boot: u64, socket: Socket) -> Self {
        Self::build(identity, boot, socket, |router| router)
    }

    fn start_with(identity: Arc<Identity>, boot: u64, more: impl Fn(Router) -> Router) -> Self {
        Self::build(identity, boot, loopback(), more)
    }

    /// Serves `Status` and `Join` by answering "boot: text".
    fn build(identity: Arc<Identity>, boot: u64, socket: Socket, more: impl Fn(Router) -> Router) -> Self {
        let heard = Heard::default();
        let clock = Arc::new(AtomicU64::new(NOW));
        let echo = |kind: StreamKind| -> Arc<dyn Handler> {
            let heard = heard.clone();
            Arc::new(move |peer: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
                let heard = heard.clone();
                Box::pin(async move {
                    match stream.recv.read_message::<Text>(MAX_MESSAGE).await {
                        Ok(Text(text)) => {
                            let short = text.chars().take(20).collect();
                            heard.lock().unwrap().push((kind, peer.class(), short));
                            if stream.send.write_message(&Text(format!("{boot}: {text}"))).await.is_ok() {
                                let _ = stream.send.finish();
                            }
                        }
                        Err(error) => heard.lock().unwrap().push((kind, peer.class(), error.to_string())),
                    }
                })
            })
        };
        let router = Router::new()
            .on(StreamKind::Status, echo(StreamKind::Status))
            .on(StreamKind::Join, echo(StreamKind::Join));
        let (addresses, announced) = watch::channel(Addresses::default());
        let (view, seen) = watch::channel(Arc::new(ClusterView::default()));
        let time = clock.clone();
        let config = MeshConfig {
            socket,
            timing: TimingProfile::Lan.timing(),
            addresses: announced,
            version: "test".to_owned(),
            features: 1,
            boot: BootId(boot),
            clock: Arc::new(move || time.load(Ordering::Relaxed)),
        };
        let (mesh, driver) = Mesh::bind(config, identity.clone(), seen, more(router)).unwrap();
        let here = mesh.local_addr().unwrap();
        addresses.send_replace(Addresses { mesh: vec![here], http: None });
        let driver = tokio::spawn(driver.run());
        Self { mesh, identity, view, boot: BootId(boot), driver, heard, clock, _addresses: addresses }
    }

    async fn ask(&self, peer: NodeId, text: &str) -> Result<String, CallError> {
        let within = Duration::from_secs(3);
        let answer: Text =
            self.mesh.request(peer, StreamKind::Status, &Text(text.to_owned()), within).await?;
        Ok(answer.0)
    }

    fn heard(&self) -> Vec<(StreamKind, PeerClass, String)> {
        self.heard.lock().unwrap().clone()
    }

    async fn linked(&self, peer: NodeId) -> LinkInfo {
        let mut links = self.mesh.links();
        let wait = async { links.wait_for(|l| l.contains_key(&peer)).await.unwrap()[&peer].clone() };
        timeout(Duration::from_secs(5), wait).await.expect("no link")
    }

    async fn unlinked(&self, peer: NodeId) {
        let mut links = self.mesh.links();
        let wait = async { drop(links.wait_for(|l| !l.contains_key(&peer)).await.unwrap()) };
        timeout(Duration::from_secs(2), wait).await.expect("still linked after 2 s");
    }

    /// Connects, opens a stream of `kind` and sends a text on it; how the stream then ends.
    async fn knock(&self, address: SocketAddr, kind: StreamKind, text: &str) -> (Arc<Contact>, Ended) {
        let contact = self.mesh.inner.dial(address).await.unwrap();
        let ended = knock_on(&contact, kind, text).await;
        (contact, ended)
    }
}

fn loopback() -> Socket {
    Socket::Bind("127.0.0.1:0".parse().unwrap())
}

type Ended = Result<Text, StreamError>;

async fn knock_on(contact: &Contact, kind: StreamKind, text: &str) -> Ended {
    let ends = timeout(Duration::from_secs(8), contact.conn.open_bi()).await.expect("no room to open");
    let mut stream = contact.stream(ends.map_err(Closed::from)?);
    stream.send.write_header(StreamHeader { kind, version: 1 }).await?;
    timeout(Duration::from_secs(8), stream.exchange(&Text(text.to_owned()), MAX_MESSAGE)).await.unwrap()
}

fn refused(ended: &Ended, code: CloseCode) -> bool {
    *ended == Err(StreamError::Closed(Closed::ByPeer(code)))
}

fn ca() -> ClusterCa {
    ClusterCa::create(CLUSTER, &[200; 32], NOW).unwrap()
}

fn stranger(seed: u8) -> Arc<Identity> {
    Arc::new(Identity::stranger(NodeKey::from_seed(&[seed; 32]).unwrap(), NOW).unwrap())
}

fn admit(identity: &Identity, ca: &ClusterCa, cluster: ClusterId, now: u64) {
    let issued = ca.issue(&identity.csr().unwrap(), cluster, [1; 16], now).unwrap();
    identity.set_certificate(&issued.certificate, &[ca.certificate()]).unwrap();
}

fn member(seed: u8) -> Arc<Identity> {
    let identity = stranger(seed);
    admit(&identity, &ca(), CLUSTER, NOW);
    identity
}

fn listed(identity: &Identity, address: Option<SocketAddr>) -> Member {
    Member {
        id: identity.node(),
        name: identity.node().short(),
        role: Role::Voter,
        addresses: Addresses { mesh: address.into_iter().collect(), http: None },
        spki: identity.spki().to_vec(),
        seal_key: vec![],
        seal_key_signature: vec![],
        serial: String::new(),
        not_after: identity.certificate().not_after,
        version: String::new(),
        features: 0,
    }
}

fn view_of(members: impl IntoIterator<Item = Member>) -> Arc<ClusterView> {
    let members: BTreeMap<_, _> = members.into_iter().map(|m| (m.id, m)).collect();
    let voters = vec![members.keys().copied().collect()];
    let roots = vec![ca().certificate().to_vec().into()];
    Arc::new(ClusterView { cluster: CLUSTER, members, voters, roots, ..Default::default() })
}

fn share_view(nodes: &[&Node]) -> Arc<ClusterView> {
    let view = view_of(nodes.iter().map(|n| listed(&n.identity, Some(n.addr()))));
    for node in nodes {
        node.view.send_replace(view.clone());
    }
    view
}

/// Two linked members, the one with the smaller id first.
async fn pair() -> (Node, Node) {
    let (a, b) = (Node::start(member(1), 1), Node::start(member(2), 2));
    let (a, b) = if a.id() < b.id() { (a, b) } else { (b, a) };
    share_view(&[&a, &b]);
    a.linked(b.id()).await;
    b.linked(a.id()).await;
    (a, b)
}

#[tokio::test]
async fn two_members_link_and_ask_each_other() {
    let (a, b) = pair().await;
    assert_eq!(a.ask(b.id(), "hi").await.unwrap(), format!("{}: hi", b.boot.0));
    assert_eq!(b.ask(a.id(), "ho").await.unwrap(), format!("{}: ho", a.boot.0));
    let link = a.linked(b.id()).await;
    assert_eq!((link.boot, link.remote, link.version.as_str()), (b.boot, b.addr(), "test"));
    assert_eq!(link.addresses.mesh, [b.addr()]);
    assert!(link.rtt() > Duration::ZERO);
    assert_eq!(b.heard(), [(StreamKind::Status, PeerClass::Member(a.id()), "hi".to_owned())]);
    let nobody = NodeId([77; 16]);
    assert_eq!(a.ask(nobody, "hi").await, Err(CallError::NotLinked(nobody)));
    let raft = a.mesh.request::<_, Text>(b.id(), StreamKind::Raft, &Text(String::new()), NO_HURRY).await;
    assert_eq!(raft, Err(CallError::Stream(StreamError::NotServed)));
}

const NO_HURRY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn frames_over_their_limit_are_refused_and_the_link_lives_on() {
    let (a, b) = pair().await;
    let mut stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Bulk).await.unwrap();
    let _ = stream.send.write_message(&Text("x".repeat(MAX_MESSAGE))).await;
    let answer = stream.recv.read_message::<Text>(MAX_MESSAGE).await;
    assert!(matches!(answer, Err(StreamError::Finished | StreamError::Abandoned)), "{answer:?}");
    let Some((_, _, error)) = b.heard().pop() else { panic!("nothing arrived") };
    assert!(error.contains("limit 65536"), "{error}");
    // A paced lane carries a frame of many pieces.
    let text = "y".repeat(MAX_MESSAGE - 100);
    let mut stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Bulk).await.unwrap();
    let answer: Text = stream.exchange(&Text(text.clone()), MAX_MESSAGE).await.unwrap();
    assert!(answer.0.ends_with(&text));
    // Half a frame and then nothing.
    let mut stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Request).await.unwrap();
    stream.send.write_header(StreamHeader { kind: StreamKind::Hello, version: 0 }).await.unwrap();
    stream.send.finish().unwrap();
    assert_eq!(stream.recv.read_frame(10).await, Err(StreamError::Finished));
    assert!(b.heard().pop().unwrap().2.contains("frame of 16777216 bytes"), "{:?}", b.heard().pop());
    assert_eq!(a.ask(b.id(), "still").await.unwrap(), format!("{}: still", b.boot.0));
    let too_long = DecodeError::TooLong(40_000_000, crate::protocol::frame::MAX_RECORDS);
    let mut stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Request).await.unwrap();
    assert_eq!(stream.send.write_frame(vec![0; 40_000_000].into()).await, Err(too_long.clone().into()));
    // Behind a message too, and then nothing is sent of either.
    let halves = vec![vec![0; 20_000_000].into(); 2];
    let refused = stream.send.write_message_and_parts(&Text("nothing".to_owned()), halves).await;
    assert_eq!(refused, Err(too_long.into()));
    assert!(
        stream
            .exchange(&Text("all".to_owned()), MAX_MESSAGE)
            .await
            .is_ok_and(|answer: Text| answer.0.ends_with("all"))
    );
}

#[tokio::test]
async fn a_message_and_the_parts_behind_it_arrive_as_two_frames() {
    let back: Arc<dyn Handler> =
        Arc::new(|_: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                let Ok(Text(text)) = stream.recv.read_message(MAX_MESSAGE).await else { return };
                let Ok(frame) = stream.recv.read_frame(MAX_MESSAGE).await else { return };
                let _ = stream.send.write_message(&Text(text)).await;
                let _ = stream.send.write_frame(frame).await;
            })
        });
    let a = Node::start(member(1), 1);
    let b = Node::start_with(member(2), 2, |router| router.on(StreamKind::Raft, back.clone()));
    share_view(&[&a, &b]);
    a.linked(b.id()).await;
    for lane in [Lane::Live, Lane::Bulk] {
        for parts in [vec![], vec![&b""[..]], vec![&b"ab"[..], b"", &[7; 40_000], b"c"]] {
            let mut stream = a.mesh.open(b.id(), StreamKind::Raft, lane).await.unwrap();
            let (head, whole) = (Text("head".to_owned()), parts.concat());
            let parts = parts.into_iter().map(Bytes::copy_from_slice).collect();
            stream.send.write_message_and_parts(&head, parts).await.unwrap();
            assert_eq!(stream.recv.read_message::<Text>(MAX_MESSAGE).await.unwrap().0, "head");
            assert_eq!(stream.recv.read_frame(MAX_MESSAGE).await.unwrap(), whole, "{lane:?}");
        }
    }
}

#[tokio::test]
async fn reading_a_frame_survives_cancellation() {
    let (a, b) = pair().await;
    let mut stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Request).await.unwrap();
    stream.send.write_message(&Text("abc".to_owned())).await.unwrap();
    // Cancelled over and over until the answer is there.
    let frame = loop {
        if let Ok(frame) = timeout(Duration::from_micros(50), stream.recv.read_frame(100)).await {
            break frame.unwrap();
        }
    };
    assert!(String::from_utf8_lossy(&frame).contains("abc"));
}

#[tokio::test]
async fn a_stranger_may_join_and_nothing_else() {
    let (a, _b) = pair().await;
    let c = Node::start(stranger(3), 3);
    let class = PeerClass::Stranger(c.id());
    for kind in [StreamKind::Status, StreamKind::Raft, StreamKind::Hello, StreamKind::Append] {
        let (_, ended) = c.knock(a.addr(), kind, "let me").await;
        assert!(refused(&ended, CloseCode::NotAdmitted), "{kind:?}: {ended:?}");
    }
    assert_eq!(a.heard(), []);
    let (contact, ended) = c.knock(a.addr(), StreamKind::Join, "please").await;
    assert_eq!(ended, Ok(Text(format!("{}: please", a.boot.0))));
    assert_eq!(a.heard(), [(StreamKind::Join, class, "please".to_owned())]);
    // Once only, and no other kind after it.
    let ended = knock_on(&contact, StreamKind::Join, "again").await;
    assert!(refused(&ended, CloseCode::NotAdmitted), "{ended:?}");
    let (contact, _) = c.knock(a.addr(), StreamKind::Join, "please").await;
    let ended = knock_on(&contact, StreamKind::Status, "so now").await;
    assert!(refused(&ended, CloseCode::NotAdmitted), "{ended:?}");
    // Two at once do not go: the second stream cannot even be opened.
    let contact = c.mesh.inner.dial(a.addr()).await.unwrap();
    let mut first = contact.stream(contact.conn.open_bi().await.unwrap());
    first.send.write_header(StreamHeader { kind: StreamKind::Join, version: 1 }).await.unwrap();
    assert!(timeout(Duration::from_millis(200), contact.conn.open_bi()).await.is_err());
    assert!(timeout(Duration::from_millis(200), contact.conn.open_uni()).await.is_err());
    assert_eq!(a.heard().iter().filter(|(kind, ..)| *kind != StreamKind::Join).count(), 0);
}

#[tokio::test]
async fn a_stranger_cannot_send_much() {
    let greedy = |router: Router| {
        let handler = |_: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                // A handler that reads for ever, with limits that forbid nothing.
                let mut sum = 0;
                let error = loop {
                    match stream.recv.read_frame(usize::MAX).await {
                        Ok(frame) => sum += frame.len(),
                        Err(error) => break error,
                    }
                };
                let _ = stream.send.write_message(&Text(format!("{sum} {error}"))).await;
            })
        };
        router.on(StreamKind::Join, Arc::new(handler))
    };
    let a = Node::start_with(member(1), 1, greedy);
    share_view(&[&a]);
    let c = Node::start(stranger(3), 3);
    let contact = c.mesh.inner.dial(a.addr()).await.unwrap();
    let mut stream = contact.stream(contact.conn.open_bi().await.unwrap());
    stream.send.write_header(StreamHeader { kind: StreamKind::Join, version: 1 }).await.unwrap();
    let flood = async { while stream.send.write_frame(vec![0; 1000].into()).await.is_ok() {} };
    let (_, answer) = tokio::join!(
        timeout(Duration::from_secs(2), flood),
        timeout(Duration::from_secs(2), stream.recv.read_message::<Text>(MAX_MESSAGE))
    );
    let Text(answer) = answer.unwrap().unwrap();
    let sum: usize = answer.split(' ').next().unwrap().parse().unwrap();
    assert!(sum <= MAX_JOIN && answer.contains("limit 65536"), "{answer}");
}

#[tokio::test]
async fn another_cluster_is_turned_away() {
    let (a, _b) = pair().await;
    let other = ClusterId([8; 16]);
    let theirs = ClusterCa::create(other, &[201; 32], NOW).unwrap();
    let identity = stranger(3);
    admit(&identity, &theirs, other, NOW);
    let c = Node::start(identity, 3);
    let (_, ended) = c.knock(a.addr(), StreamKind::Hello, "hi").await;
    assert!(refused(&ended, CloseCode::WrongCluster), "{ended:?}");
    // It, in turn, does not take this cluster's members for its own.
    let mut view = ClusterView { cluster: other, ..Default::default() };
    view.roots = vec![theirs.certificate().to_vec().into()];
    view.members.insert(c.id(), listed(&c.identity, None));
    view.members.insert(a.id(), listed(&a.identity, Some(a.addr())));
    c.view.send_replace(Arc::new(view));
    let contact = c.mesh.inner.dial(a.addr()).await.unwrap();
    let said = c.mesh.inner.say_hello(contact).await.err();
    assert_eq!(said, Some(DialError::NotMember(PeerClass::Lapsed(a.id()))));
}

#[tokio::test]
async fn a_name_in_a_self_made_certificate_is_worth_nothing() {
    let (a, b) = pair().await;
    let key = NodeKey::from_seed(&[66; 32]).unwrap();
    let signer = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(key.pkcs8()),
        &rcgen::PKCS_ED25519,
    );
    let mut params = rcgen::CertificateParams::new(vec!["mesh.internal".to_owned()]).unwrap();
    let uri = format!("skein://{CLUSTER}/{}", b.id());
    params.subject_alt_names.push(rcgen::SanType::URI(uri.as_str().try_into().unwrap()));
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.self_signed(&signer.unwrap()).unwrap();
    let identity = Identity::member(key, leaf.der(), &[ca().certificate()]).unwrap();
    assert_eq!(identity.certificate().claims, Some((CLUSTER, b.id())));
    let c = Node::start(Arc::new(identity), 3);
    let (_, ended) = c.knock(a.addr(), StreamKind::Hello, "I am b").await;
    assert!(refused(&ended, CloseCode::NotAdmitted), "{ended:?}");
    let (_, _) = c.knock(a.addr(), StreamKind::Join, "I am b").await;
    assert_eq!(a.heard()[0].1, PeerClass::Stranger(c.id()));
}

#[tokio::test]
async fn a_valid_member_the_view_does_not_hold_yet_may_try_again() {
    let a = Node::start(member(1), 1);
    share_view(&[&a]);
    let c = Node::start(member(3), 3);
    let (_, ended) = c.knock(a.addr(), StreamKind::Hello, "hi").await;
    assert!(refused(&ended, CloseCode::NotYetKnown), "{ended:?}");
    share_view(&[&a, &c]);
    a.linked(c.id()).await;
}

#[tokio::test]
async fn an_expired_member_is_cut_off_until_it_renews() {
    let (a, b) = pair().await;
    let later = NOW + 31 * 86_400;
    // a's own certificate is renewed, b's is not; a's clock moves on.
    admit(&a.identity, &ca(), CLUSTER, later);
    a.clock.store(later, Ordering::Relaxed);
    a.unlinked(b.id()).await;
    assert_eq!(a.ask(b.id(), "hi").await, Err(CallError::NotLinked(b.id())));
    let (_, ended) = b.knock(a.addr(), StreamKind::Hello, "hi").await;
    assert!(refused(&ended, CloseCode::Lapsed), "{ended:?}");
    let (_, ended) = b.knock(a.addr(), StreamKind::Join, "renew").await;
    assert_eq!(ended, Ok(Text(format!("{}: renew", a.boot.0))));
    assert_eq!(a.heard().pop().unwrap().1, PeerClass::Lapsed(b.id()));
    // Hot swap: same endpoint, same key, new certificate.
    b.clock.store(later, Ordering::Relaxed);
    admit(&b.identity, &ca(), CLUSTER, later);
    a.linked(b.id()).await;
    b.linked(a.id()).await;
    assert!(b.ask(a.id(), "hi").await.is_ok());
}

#[tokio::test]
async fn a_live_link_survives_the_expiry_of_a_certificate_that_was_renewed() {
    let (a, b) = pair().await;
    let later = NOW + 31 * 86_400;
    let since = a.linked(b.id()).await.since;
    for node in [&a, &b] {
        admit(&node.identity, &ca(), CLUSTER, later - 86_400);
    }
    share_view(&[&a, &b]);
    for node in [&a, &b] {
        node.clock.store(later, Ordering::Relaxed);
    }
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(a.linked(b.id()).await.since, since);
    assert!(b.ask(a.id(), "hi").await.is_ok());
}

#[tokio::test]
async fn a_removed_member_is_cut_off_refused_and_told() {
    let (a, b) = pair().await;
    let mut view = (**a.view.borrow()).clone();
    view.members.remove(&b.id());
    view.removed.insert(b.id(), 1);
    let mut told = b.mesh.removed_notice();
    let stream = a.mesh.open(b.id(), StreamKind::Status, Lane::Request).await.unwrap();
    let at = Instant::now();
    a.view.send_replace(Arc::new(view));
    a.unlinked(b.id()).await;
    let notice = timeout(Duration::from_secs(2), told.wait_for(Option::is_some)).await;
    assert_eq!(*notice.expect("not told").unwrap(), Some(a.id()));
    assert!(at.elapsed() < Duration::from_secs(2));
    drop(stream);
    b.unlinked(a.id()).await;
    // It still believes it is a member, dials, and is refused every time.
    let (_, ended) = b.knock(a.addr(), StreamKind::Hello, "hi").await;
    assert!(refused(&ended, CloseCode::Removed), "{ended:?}");
    sleep(Duration::from_millis(500)).await;
    assert!(a.mesh.links().borrow().is_empty());
    let (_, ended) = b.knock(a.addr(), StreamKind::Join, "again?").await;
    assert!(ended.is_ok());
    assert_eq!(a.heard().pop().unwrap().1, PeerClass::Removed(b.id()));
}

#[tokio::test]
async fn only_a_member_can_tell_a_node_that_it_was_removed() {
    let (_a, b) = pair().await;
    let c = Node::start(stranger(3), 3);
    let contact = b.mesh.inner.dial(c.addr()).await.unwrap();
    b.mesh.inner.note_closed(&contact, &Closed::ByPeer(CloseCode::Removed));
    assert_eq!(*b.mesh.removed_notice().borrow(), None);
}

/// By a view in which the other one was removed, in a world of its own.
async fn removed_in(theirs: Option<u64>, ours: Option<u64>) -> bool {
    let (a, b) = (Node::start(member(1), 1), Node::start(member(2), 2));
    let world = |n: u64| recovery(n / 10, &a, n, &ca());
    let view = view_of([listed(&a.identity, None), listed(&b.identity, Some(b.addr()))]);
    b.view.send_replace(Arc::new(ClusterView { recovery: ours.map(world), ..(*view).clone() }));
    let mut without = ClusterView { recovery: theirs.map(world), ..(*view).clone() };
    without.members.remove(&b.id());
    without.removed.insert(b.id(), 1);
    a.view.send_replace(Arc::new(without));
    let contact = b.mesh.inner.dial(a.addr()).await.unwrap();
    let refused = b.mesh.inner.say_hello(Arc::clone(&contact)).await.map(drop);
    assert_eq!(refused, Err(DialError::Closed(Closed::ByPeer(CloseCode::Removed))));
    b.mesh.removed_notice().borrow().is_some()
}

#[tokio::test]
async fn a_removal_counts_in_its_own_world_and_in_older_ones() {
    for (theirs, ours, counts) in [
        (None, None, true),
        (Some(11), Some(11), true),
        (Some(11), None, true),
        (None, Some(11), false),
        (Some(11), Some(12), false),
        (Some(11), Some(21), false),
        (Some(21), Some(11), true),
    ] {
        assert_eq!(removed_in(theirs, ours).await, counts, "{theirs:?} {ours:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_end_in_one_link_and_no_request_fails() {
    for round in 0..4 {
        let (a, b) = (Node::start(member(1), 10 + round), Node::start(member(2), 20 + round));
        // Without addresses the dialers do nothing: both connections are made here.
        let view = view_of([listed(&a.identity, None), listed(&b.identity, None)]);
        for node in [&a, &b] {
            node.view.send_replace(view.clone());
        }
        let (ab, ba) = tokio::join!(a.mesh.inner.dial(b.addr()), b.mesh.inner.dial(a.addr()));
        let (ab, ba) = (ab.unwrap(), ba.unwrap());
        let adopt = |node: &Node, link: Result<_, DialError>| {
            if let Ok(link) = link {
                node.mesh.inner.adopt.send(link).unwrap();
            }
        };
        let (ab, ba) = if round % 2 == 0 {
            tokio::join!(a.mesh.inner.say_hello(ab), b.mesh.inner.say_hello(ba))
        } else {
            let late = async {
                sleep(Duration::from_millis(3)).await;
                b.mesh.inner.say_hello(ba).await
            };
            tokio::join!(a.mesh.inner.say_hello(ab), late)
        };
        assert!(ab.is_ok() || ba.is_ok());
        adopt(&a, ab);
        adopt(&b, ba);
        let until = Instant::now() + Duration::from_millis(1_200);
        let mut asked = 0;
        while Instant::now() < until {
            let (one, other) = tokio::join!(a.ask(b.id(), "x"), b.ask(a.id(), "y"));
            assert!(one.is_ok() && other.is_ok(), "round {round}, after {asked}: {one:?} {other:?}");
            asked += 1;
        }
        assert_eq!(
            (a.mesh.inner.endpoint.open_connections(), b.mesh.inner.endpoint.open_connections()),
            (1, 1)
        );
        assert_eq!(a.linked(b.id()).await.remote, b.addr());
    }
}

#[tokio::test]
async fn a_new_boot_takes_the_place_of_the_old_one_at_once() {
    let (a, b) = pair().await;
    let reborn = Node::start(b.identity.clone(), 77);
    // Killed, not closed: its packets just stop being served.
    b.driver.abort();
    let at = Instant::now();
    reborn.view.send_replace(a.view.borrow().clone());
    let mut links = a.mesh.links();
    let replaced = links.wait_for(|l| l.get(&b.id()).is_some_and(|l| l.boot == BootId(77)));
    timeout(Duration::from_secs(3), replaced).await.expect("old boot stays").unwrap();
    assert!(at.elapsed() < Duration::from_secs(2));
    assert_eq!(a.ask(b.id(), "who").await.unwrap(), "77: who");
}

#[tokio::test]
async fn a_cloned_identity_is_refused_both_times() {
    let (a, b) = pair().await;
    let clone = Node::start(b.identity.clone(), 77);
    clone.view.send_replace(a.view.borrow().clone());
    // b and its clone both dial a, and replace each other, once.
    let mut links = a.mesh.links();
    let gone = links.wait_for(|l| !l.contains_key(&b.id()));
    timeout(Duration::from_secs(5), gone).await.expect("still served").unwrap();
    sleep(Duration::from_secs(1)).await;
    let still = a.mesh.links().borrow().clone();
    assert!(still.is_empty(), "{still:?}");
    assert!(b.ask(a.id(), "x").await.is_err() && clone.ask(a.id(), "x").await.is_err());
}

#[tokio::test]
async fn a_joiner_is_linked_on_the_connection_it_joined_on() {
    type Door = (watch::Sender<Arc<ClusterView>>, [u8; 32]);
    let shared: Arc<Mutex<Option<Door>>> = Arc::default();
    let at_door = shared.clone();
    let door = move |router: Router| {
        let shared = at_door.clone();
        let handler = move |peer: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
            let shared = shared.clone();
            Box::pin(async move {
                let _: Text = stream.recv.read_message(MAX_MESSAGE).await.unwrap();
                assert_eq!(peer.promote(), Err(PromoteError(peer.node())));
                let view = {
                    let mut shared = shared.lock().unwrap();
                    let (view, exporter) = shared.as_mut().unwrap();
                    *exporter = peer.exporter().unwrap();
                    view.clone()
                };
                view.send_modify(|view| {
                    let view = Arc::make_mut(view);
                    let mut member = view.members.values().next().unwrap().clone();
                    member.id = peer.node();
                    member.addresses = Addresses::default();
                    view.members.insert(peer.node(), member);
                });
                peer.promote().unwrap();
                stream.send.write_message(&Text("in".to_owned())).await.unwrap();
                stream.send.finish().unwrap();
            })
        };
        router.on(StreamKind::Join, Arc::new(handler))
    };
    let a = Node::start_with(member(1), 1, door);
    share_view(&[&a]);
    *shared.lock().unwrap() = Some((a.view.clone(), [0; 32]));

    let c = Node::start(stranger(3), 3);
    let link = c.mesh.dial_stranger(a.addr()).await.unwrap();
    assert_eq!((link.node(), link.class()), (a.id(), PeerClass::Stranger(a.id())));
    let root = link.peer_certificates().last().unwrap();
    assert_eq!(crate::identity::fingerprint(root), ca().fingerprint());
    let exporter = link.exporter().unwrap();
    let connection = link.contact.as_ref().unwrap().conn.stable_id();
    let mut stream = link.open_join().await.unwrap();
    let Text(answer) = stream.exchange(&Text("let me in".to_owned()), MAX_MESSAGE).await.unwrap();
    assert_eq!(answer, "in");
    drop(stream);
    assert_eq!(shared.lock().unwrap().as_ref().unwrap().1, exporter);
    admit(&c.identity, &ca(), CLUSTER, NOW);
    c.view.send_replace(a.view.borrow().clone());
    assert_eq!(link.admitted().await.unwrap(), a.id());
    assert_eq!(c.ask(a.id(), "x").await.unwrap(), "1: x");
    a.linked(c.id()).await;
    assert_eq!(a.ask(c.id(), "y").await.unwrap(), "3: y");
    sleep(Duration::from_millis(300)).await;
    let link = c.mesh.inner.pool().get(a.id()).unwrap().contact.conn.stable_id();
    assert_eq!(link, connection);
}

#[tokio::test]
async fn the_first_candidates_count_and_no_more_than_are_dialled_in_turn() {
    let a = Node::start(member(1), 1);
    let at = |n: u32| SocketAddr::from((n.to_be_bytes(), 7400));
    let mut all: Vec<_> = (0..10_000_u32).rev().map(|n| at(0x7f01_0000 + n)).collect();
    all.insert(1, all[0]);
    a.mesh.set_candidates(all.clone());
    let kept = a.mesh.inner.candidates.borrow().clone();
    all.remove(1);
    assert_eq!(kept, all[..MAX_CANDIDATES]);
}

#[tokio::test]
async fn members_that_all_moved_find_each_other_by_candidates() {
    let (a, b) = (Node::start(member(1), 1), Node::start(member(2), 2));
    let dead = Some("127.0.0.1:9".parse().unwrap());
    let view = view_of([listed(&a.identity, dead), listed(&b.identity, dead)]);
    for node in [&a, &b] {
        node.view.send_replace(view.clone());
    }
    sleep(Duration::from_millis(200)).await;
    assert!(a.mesh.links().borrow().is_empty());
    // A stranger and the node itself are among the candidates too.
    let c = Node::start(stranger(3), 3);
    a.mesh.set_candidates(vec![c.addr(), a.addr(), b.addr()]);
    a.linked(b.id()).await;
    b.linked(a.id()).await;
    assert!(b.ask(a.id(), "x").await.is_ok());
}

#[tokio::test]
async fn a_link_that_ends_comes_back() {
    let (a, b) = pair().await;
    let since = a.linked(b.id()).await.since;
    a.mesh.inner.pool().get(b.id()).unwrap().contact.close(CloseCode::Done);
    let mut links = a.mesh.links();
    let again = links.wait_for(|l| l.get(&b.id()).is_some_and(|l| l.since > since));
    timeout(Duration::from_secs(3), again).await.expect("does not come back").unwrap();
    b.linked(a.id()).await;
    assert!(b.ask(a.id(), "x").await.is_ok());
    // A graceful close is seen at once, long before the idle timeout.
    b.mesh.close("stopping");
    a.unlinked(b.id()).await;
}

#[tokio::test]
async fn one_socket_of_either_kind_serves_both_families() {
    use quinn::Runtime;
    let dual = Node::start_on(member(1), 1, Socket::Bind("[::]:0".parse().unwrap()));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket).unwrap();
    let given = Node::start_on(member(2), 2, Socket::Abstract { socket, runtime, rng_seed: [3; 32] });
    let reach = SocketAddr::from(([127, 0, 0, 1], dual.addr().port()));
    let view = view_of([listed(&dual.identity, Some(reach)), listed(&given.identity, Some(given.addr()))]);
    for node in [&dual, &given] {
        node.view.send_replace(view.clone());
    }
    // IPv4 is shown as IPv4, whatever the socket.
    assert_eq!(dual.linked(given.id()).await.remote, given.addr());
    assert_eq!(given.linked(dual.id()).await.remote, reach);
    assert!(dual.ask(given.id(), "x").await.is_ok());
}

/// A recovery as the CA signs it, or as anybody else would.
fn recovery(generation: u64, by: &Node, nonce: u64, ca: &ClusterCa) -> Recovery {
    identity::recovery::sign(ca, CLUSTER, generation, by.id(), nonce, Lsn::new(1, 7))
}

/// Nodes that know each other, each of a world of its own.
async fn in_worlds(worlds: &[(&Node, Option<Recovery>)]) {
    let view = share_view(&worlds.iter().map(|(node, _)| *node).collect::<Vec<_>>());
    for (node, recovery) in worlds {
        let own = ClusterView { recovery: recovery.clone(), ..(*view).clone() };
        node.view.send_replace(Arc::new(own));
    }
}

async fn met(node: &Node, other: &Node) -> u64 {
    let mut foreign = node.mesh.foreign();
    let met = foreign.wait_for(|met| met.contains_key(&other.id()));
    let met = timeout(Duration::from_secs(5), met).await.expect("they have not met").unwrap();
    met[&other.id()]
}

fn told(node: &Node) -> Option<Recovery> {
    node.mesh.superseded().borrow().clone()
}

#[tokio::test]
async fn worlds_before_and_after_a_recovery_never_link_and_the_older_is_told() {
    // Whoever dials, both sides hear of the other: the views come one after the other.
    for older_first in [true, false] {
        let (old, new) = (Node::start(member(1), 1), Node::start(member(2), 2));
        let first = recovery(1, &new, 1, &ca());
        let before = view_of([&old, &new].map(|n| listed(&n.identity, Some(n.addr()))));
        let after = Arc::new(ClusterView { recovery: Some(first.clone()), ..(*before).clone() });
        if older_first {
            old.view.send_replace(before);
            new.view.send_replace(after);
        } else {
            new.view.send_replace(after);
            old.view.send_replace(before);
        }
        assert_eq!((met(&old, &new).await, met(&new, &old).await), (1, 0));
        let mut superseded = old.mesh.superseded();
        let heard = timeout(Duration::from_secs(5), superseded.wait_for(Option::is_some)).await;
        assert_eq!(*heard.expect("not told").unwrap(), Some(first));
        assert_eq!(told(&new), None);
        assert_eq!(old.ask(new.id(), "hi").await, Err(CallError::NotLinked(new.id())));
        assert_eq!(new.ask(old.id(), "hi").await, Err(CallError::NotLinked(old.id())));
        assert!(old.mesh.links().borrow().is_empty() && new.mesh.links().borrow().is_empty());
        assert_eq!((old.heard(), new.heard()), (vec![], vec![]));

        // It comes back as one of them, in another process run.
        let view = new.view.borrow().clone();
        drop(old);
        let back = Node::start(member(1), 3);
        back.view.send_replace(view);
        back.linked(new.id()).await;
        new.linked(back.id()).await;
        assert!(new.mesh.foreign().borrow().is_empty());
    }
}

#[tokio::test]
async fn nobody_gives_way_to_a_recovery_that_is_not_the_cas_or_no_higher() {
    let (a, b, c) = (Node::start(member(1), 1), Node::start(member(2), 2), Node::start(member(3), 3));
    let other = ClusterCa::create(CLUSTER, &[201; 32], NOW).unwrap();
    // Two operators made generation 1 of two survivors; a third node claims more than it can show.
    in_worlds(&[
        (&a, Some(recovery(1, &a, 1, &ca()))),
        (&b, Some(recovery(1, &b, 2, &ca()))),
        (&c, Some(recovery(2, &c, 3, &other))),
    ])
    .await;
    assert_eq!((met(&a, &b).await, met(&b, &a).await), (1, 1));
    assert_eq!((met(&a, &c).await, met(&b, &c).await, met(&c, &a).await), (2, 2, 1));
    assert_eq!((told(&a), told(&b), told(&c)), (None, None, None));
    for node in [&a, &b, &c] {
        assert!(node.mesh.links().borrow().is_empty());
        assert_eq!(node.heard(), []);
    }
}
