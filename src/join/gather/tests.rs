//! Nodes of no cluster that meet over real connections on loopback.

use std::sync::{Arc, Mutex};

use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::*;
use crate::{
    disk::RealDisk,
    identity::{Identity, NodeKey, SealKey},
    join::{
        Applicant,
        proof::{self, End},
    },
    protocol::{
        StreamKind,
        frame::MAX_JOIN,
        join::{Carrier, JoinRequest, JoinResponse},
    },
    transport::{Handler, Mesh, MeshConfig, Peer, Router, Socket, Stream},
    types::{Addresses, BootId, ClusterView, Role, TimingProfile},
};

const NOW: u64 = 1_800_000_000;
const SOON: Duration = Duration::from_secs(20);

struct Node {
    identity: Arc<Identity>,
    mesh: Mesh,
    meeting: Meeting,
    store: Store,
    said: Mutex<Vec<String>>,
    _dir: TempDir,
    _tasks: JoinSet<()>,
}

impl Node {
    async fn new(n: u8, token: &JoinToken, expect: u32) -> Self {
        Self::pledged(n, token, expect, None).await
    }

    /// One that was pledged before it was started.
    async fn pledged(n: u8, token: &JoinToken, expect: u32, to: Option<NodeId>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Arc::new(RealDisk), dir.path());
        if let Some(to) = to {
            store.set_pledge(token.id(), to).await.unwrap();
        }
        let identity = Arc::new(Identity::stranger(NodeKey::from_seed(&[n; 32]).unwrap(), NOW).unwrap());
        let applicant = Applicant {
            name: format!("n{n}"),
            role: token.role(),
            addresses: Addresses::default(),
            version: "0".into(),
            features: 0,
        };
        let meeting = Meeting::open(&store, identity.node(), token, expect, applicant).await.unwrap();
        let (mesh, tasks) = mesh(&identity, Arc::new(meeting.clone()));
        Self { identity, mesh, meeting, store, said: Mutex::default(), _dir: dir, _tasks: tasks }
    }

    fn id(&self) -> NodeId {
        self.identity.node()
    }

    fn address(&self) -> SocketAddr {
        self.mesh.local_addr().unwrap()
    }

    async fn gather(&self, token: &JoinToken, seeds: &[SocketAddr], now: u64) -> Result<Gathered, JoinError> {
        let joiner = Joiner {
            mesh: &self.mesh,
            identity: &self.identity,
            seal_key: &SealKey::from_bytes([1; 32]),
            clock: &move || now,
            jitter: &|| 0.0,
            report: &|waiting| self.said.lock().unwrap().push(waiting.to_string()),
        };
        let seeds = seeds.iter().map(|seed| seed.to_string().parse().unwrap()).collect();
        let sources = Sources { seeds, ..Sources::default() };
        gather(&joiner, token, sources, &self.meeting, &self.store).await
    }

    fn has_said(&self, words: &str) -> bool {
        self.said.lock().unwrap().iter().any(|said| said.contains(words))
    }

    async fn pledge(&self, token: &JoinToken) -> Option<NodeId> {
        self.store.pledge(token.id()).await.unwrap()
    }
}

fn mesh(identity: &Arc<Identity>, at_the_door: Arc<dyn Handler>) -> (Mesh, JoinSet<()>) {
    let config = MeshConfig {
        socket: Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0))),
        timing: TimingProfile::Lan.timing(),
        addresses: watch::channel(Addresses::default()).1,
        version: "0".into(),
        features: 0,
        boot: BootId(1),
        clock: Arc::new(|| NOW),
    };
    let view = watch::channel(Arc::new(ClusterView::default())).1;
    let router = Router::new().on(StreamKind::Join, at_the_door);
    let (mesh, driver) = Mesh::bind(config, identity.clone(), view, router).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run());
    (mesh, tasks)
}

fn token(seed: u64) -> JoinToken {
    JoinToken::generate(Role::Voter, vec![], &mut StdRng::seed_from_u64(seed)).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let held = timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(held.await.is_ok(), "still not: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_that_know_one_of_them_settle_on_the_smallest() {
    let token = token(1);
    let (a, b, c) =
        (Node::new(1, &token, 3).await, Node::new(2, &token, 3).await, Node::new(3, &token, 3).await);
    // The first finds itself among its seeds, and nobody else by them.
    let seeds = [a.address()];
    let settled = async {
        tokio::select! {
            end = a.gather(&token, &seeds, NOW) => (a.id(), end),
            end = b.gather(&token, &seeds, NOW) => (b.id(), end),
            end = async {
                until("two have met", || a.has_said("2 of 3 nodes seen") || b.has_said("2 of 3 nodes seen")).await;
                c.gather(&token, &seeds, NOW).await
            } => (c.id(), end),
        }
    };
    let (founder, end) = timeout(SOON, settled).await.expect("no founder");
    assert!(matches!(end, Ok(Gathered::Founder)), "{end:?}");
    assert_eq!(founder, a.id().min(b.id()).min(c.id()));
    for node in [&a, &b, &c] {
        assert_eq!(node.pledge(&token).await, Some(founder));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pledge_from_before_binds_and_is_told() {
    let token = token(2);
    let lost = NodeId([0; 16]);
    let (a, b) = (Node::pledged(1, &token, 2, Some(lost)).await, Node::new(2, &token, 2).await);
    let seeds = [b.address()];
    tokio::select! {
        end = a.gather(&token, &seeds, NOW) => panic!("{end:?}"),
        end = b.gather(&token, &[], NOW) => panic!("{end:?}"),
        () = until("both say who is missing", || {
            a.has_said("pledged to aaaaaa, which is not in sight")
                && b.has_said("n1 (") && b.has_said("is pledged to aaaaaa, which is not in sight")
        }) => {}
    }
    assert_eq!((a.pledge(&token).await, b.pledge(&token).await), (Some(lost), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_alone_founds_unless_its_token_has_ended() {
    let token = token(3);
    let alone = Node::new(1, &token, 1).await;
    let end = timeout(SOON, alone.gather(&token, &[alone.address()], NOW)).await.unwrap();
    assert!(matches!(end, Ok(Gathered::Founder)), "{end:?}");
    let ended = token.limited(Some(NOW), None);
    let end = timeout(SOON, alone.gather(&ended, &[], NOW)).await.unwrap();
    assert!(matches!(end, Err(JoinError::Expired)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_secret_proven_on_this_connection_counts() {
    let (token, other) = (token(4), token(5));
    let node = Node::new(1, &token, 3).await;
    let stranger = Node::new(2, &token, 3).await;
    let knock = |with: &JoinToken, speaks: End, bend: u8| {
        let (keys, id) = (with.keys().unwrap(), with.id());
        let (stranger, door) = (&stranger, node.address());
        async move {
            let link = stranger.mesh.dial_stranger(door).await.unwrap();
            let mut exporter = link.exporter().unwrap();
            exporter[0] ^= bend;
            let carrier = Carrier {
                token: id,
                proof: proof::joiner_proof(&keys, &proof::meeting(&exporter, id, speaks)),
                name: "stranger".into(),
                expect: 3,
                pledge: None,
                addresses: vec![],
                others: vec![],
            };
            let request = JoinRequest::Meet(Box::new(carrier));
            link.open_join().await.unwrap().exchange(&request, MAX_JOIN).await.unwrap()
        }
    };
    for (with, speaks, bend) in
        [(&token, End::Dialer, 1), (&token, End::Answerer, 0), (&other, End::Dialer, 0)]
    {
        let answer = knock(with, speaks, bend).await;
        assert!(matches!(answer, JoinResponse::Retry { .. }), "{answer:?}");
    }
    assert_eq!(node.meeting.gathering().others(Instant::now()).count(), 0);
    let answer = knock(&token, End::Dialer, 0).await;
    assert!(matches!(answer, JoinResponse::Met(_)), "{answer:?}");
    let met: Vec<_> = node.meeting.gathering().others(Instant::now()).map(|(id, _)| id).collect();
    assert_eq!(met, [stranger.id()]);

    // Whoever asks to be let in hears what for it is too early.
    let link = stranger.mesh.dial_stranger(node.address()).await.unwrap();
    let request = JoinRequest::Renew { csr: vec![] };
    let answer = link.open_join().await.unwrap().exchange(&request, MAX_JOIN).await.unwrap();
    let JoinResponse::Retry { reason } = &answer else { panic!("{answer:?}") };
    assert!(reason.contains("of no cluster yet") && reason.contains("2 of 3 nodes seen"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_without_the_secret_counts_for_nothing() {
    let token = token(6);
    let node = Node::new(1, &token, 2).await;
    // It sends back what it was sent.
    let echo = |_: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let Ok(JoinRequest::Meet(carrier)) = stream.recv.read_message(MAX_JOIN).await else { return };
            let _ = stream.send.write_message(&JoinResponse::Met(carrier)).await;
            let _ = stream.send.finish();
            let _ = stream.send.delivered().await;
        })
    };
    let identity = Arc::new(Identity::stranger(NodeKey::from_seed(&[9; 32]).unwrap(), NOW).unwrap());
    let (mirror, _tasks) = mesh(&identity, Arc::new(echo));
    let seeds = [mirror.local_addr().unwrap()];
    tokio::select! {
        end = node.gather(&token, &seeds, NOW) => panic!("{end:?}"),
        () = until("it is found out", || node.has_said("cannot prove that it knows this join token")) => {}
    }
    assert!(node.has_said("1 of 2 nodes seen") && node.pledge(&token).await.is_none());
}
