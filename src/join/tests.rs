//! Joining over real connections on loopback: a founder, joiners, a relay, renewal.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::*;
use crate::{
    disk::RealDisk,
    identity::{ClusterCa, Identity, JoinToken, NodeKey, PeerCertificate, SealKey, Store, seal, succession},
    protocol::{
        StreamKind, frame,
        join::{AdmitRequest, Admitted, JoinRequest, JoinResponse, Refusal, RelayedJoin},
    },
    raft::{ApiToken, Command, Control, MeshSlot, Outcome, RaftConfig, Warrants},
    transport::{Mesh, MeshConfig, Router, Socket},
    types::{Addresses, BootId, ClusterId, ClusterView, Member, NodeId, Role, TimingProfile, TokenId},
};

mod hostile;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const SOON: Duration = Duration::from_secs(5);

/// A node: mesh and keys always, raft and a door once `serve`d.
struct Node {
    identity: Arc<Identity>,
    seal_key: Arc<SealKey>,
    clock: Arc<AtomicU64>,
    control: Control,
    mesh: Mesh,
    view: watch::Sender<Arc<ClusterView>>,
    store: Store,
    _tasks: JoinSet<()>,
    said: Mutex<Vec<Waiting>>,
}

impl Node {
    async fn new(dir: &Path, n: u8) -> Self {
        let identity = Arc::new(Identity::stranger(NodeKey::from_seed(&[n; 32]).unwrap(), NOW).unwrap());
        let dir = dir.join(identity.node().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let slot = MeshSlot::default();
        let timing = TimingProfile::Lan.timing();
        let raft = RaftConfig { id: identity.node(), dir: dir.join("raft"), timing, seed: n.into() };
        let (control, driver) = Control::start(raft, Arc::new(RealDisk), slot.clone()).await.unwrap();
        let view = watch::Sender::new(Arc::new(ClusterView::default()));
        let clock = Arc::new(AtomicU64::new(NOW));
        let now = clock.clone();
        let seal_key = Arc::new(SealKey::from_bytes([n; 32]));
        control.bear_warrants(Warrants { seal_key: seal_key.clone(), trusted: view.subscribe() });
        let door = Door::new(signer(&identity, &seal_key, &clock), control.clone(), slot.clone());
        let router = Router::new()
            .on(StreamKind::Raft, control.rpc_handler())
            .on(StreamKind::Control, control.control_handler())
            .on(StreamKind::Join, Arc::new(door));
        let config = MeshConfig {
            socket: Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0))),
            timing,
            addresses: watch::channel(Addresses::default()).1,
            version: "0".into(),
            features: crate::raft::OPERATOR_COMMANDS,
            boot: BootId(n.into()),
            clock: Arc::new(move || now.load(Ordering::Relaxed)),
        };
        let (mesh, mesh_driver) = Mesh::bind(config, identity.clone(), view.subscribe(), router).unwrap();
        assert!(slot.set(mesh.clone()).is_ok());
        let mut tasks = JoinSet::new();
        tasks.spawn(mesh_driver.run());
        tasks.spawn(driver.run());
        // What raft has applied is the view, as soon as it knows a cluster.
        let (mut applied, to) = (control.view(), view.clone());
        tasks.spawn(async move {
            while applied.changed().await.is_ok() {
                let now = applied.borrow_and_update().clone();
                if now.cluster != ClusterId::default() {
                    to.send_replace(now);
                }
            }
        });
        let store = Store::new(Arc::new(RealDisk), &dir);
        let said = Mutex::default();
        Self { identity, seal_key, clock, control, mesh, view, store, _tasks: tasks, said }
    }

    fn id(&self) -> NodeId {
        self.identity.node()
    }

    fn address(&self) -> SocketAddr {
        self.mesh.local_addr().unwrap()
    }

    /// Makes this node the first of a cluster that knows `token`.
    async fn found(&self, cluster: ClusterId, ca: &ClusterCa, token: &JoinToken, uses: u32) {
        let issued = ca.issue(&self.identity.csr().unwrap(), cluster, [1; 16], NOW).unwrap();
        self.identity.set_certificate(&issued.certificate, &[ca.certificate()]).unwrap();
        self.control.initialize().await.unwrap();
        let seal_key = seal::seal_key_public(&self.seal_key).unwrap();
        let rng = &mut StdRng::seed_from_u64(1);
        let sealed = seal::seal(ca.private_key(), &seal_key, cluster, self.id(), rng).unwrap();
        let message = seal::seal_key_message(Some(cluster), self.id(), &seal_key);
        let limits = TokenLimits { expires_ms: Some((NOW + DAY) * 1000), uses: Some(uses), created_ms: 1 };
        let member = Member {
            id: self.id(),
            name: "first".into(),
            role: Role::Voter,
            addresses: Addresses { mesh: vec![self.address()], http: None },
            spki: self.identity.spki().to_vec(),
            seal_key,
            seal_key_signature: self.identity.sign(&message).to_vec(),
            serial: issued.serial,
            not_after: issued.not_after,
            version: "0".into(),
            features: crate::raft::OPERATOR_COMMANDS,
        };
        let found = Command::Found {
            cluster,
            name: "test".into(),
            root: ca.certificate().to_vec().into(),
            member,
            sealed_ca: sealed.into(),
            profile: TimingProfile::Lan,
            token: token_record(token, token.verifier().unwrap(), limits),
            api_token: ApiToken {
                name: "admin".into(),
                hash: vec![0; 32],
                admin: true,
                created_ms: 1,
                ..ApiToken::default()
            },
            after: 0,
            level: 0,
        };
        assert_eq!(self.control.propose(found, SOON).await, Ok(Outcome::Done));
        self.sees(|view| view.is_voter(self.id())).await;
    }

    fn applicant(&self, token: &JoinToken) -> Applicant {
        Applicant {
            name: "joiner".into(),
            role: token.role(),
            addresses: Addresses { mesh: vec![self.address()], http: None },
            version: "0".into(),
            features: crate::raft::OPERATOR_COMMANDS,
        }
    }

    /// As one of two that start together.
    async fn gather(&self, token: &JoinToken, doors: &[SocketAddr]) -> Result<Gathered, JoinError> {
        let joiner = Joiner {
            mesh: &self.mesh,
            identity: &self.identity,
            seal_key: &self.seal_key,
            clock: &|| self.clock.load(Ordering::Relaxed),
            jitter: &|| 0.0,
            report: &|waiting| self.said.lock().unwrap().push(waiting.clone()),
        };
        let meeting = Meeting::open(&self.store, self.id(), token, 2, self.applicant(token)).await?;
        super::gather(&joiner, token, sources(doors), &meeting, &self.store).await
    }

    async fn join(&self, token: &JoinToken, doors: &[SocketAddr]) -> Result<Joined, JoinError> {
        self.join_within(2 * SOON, token, doors).await
    }

    async fn join_within(
        &self,
        patience: Duration,
        token: &JoinToken,
        doors: &[SocketAddr],
    ) -> Result<Joined, JoinError> {
        let joiner = Joiner {
            mesh: &self.mesh,
            identity: &self.identity,
            seal_key: &self.seal_key,
            clock: &|| self.clock.load(Ordering::Relaxed),
            jitter: &|| 0.0,
            report: &|waiting| self.said.lock().unwrap().push(waiting.clone()),
        };
        let (applicant, sources) = (self.applicant(token), sources(doors));
        timeout(patience, super::join(&joiner, token, &applicant, sources)).await.expect("never let in")
    }

    /// Does what a node does with its admission.
    async fn enter(&self, joined: Joined) -> NodeId {
        let record = joined.record();
        self.store.set_cluster(&record).await.unwrap();
        self.identity.set_certificate(&record.certificate, &record.roots).unwrap();
        self.view.send_replace(Arc::new(joined.first_view()));
        joined.link.admitted().await.unwrap()
    }

    async fn sees(&self, test: impl Fn(&ClusterView) -> bool) {
        let mut view = self.view.subscribe();
        let seen = timeout(SOON, view.wait_for(|view| test(view))).await;
        assert!(seen.is_ok(), "{:?}", *self.view.borrow());
    }

    /// Ends the connection that the other one joined on, as a restart of it would: the next one is judged by
    /// the certificate it shows.
    async fn cut(&self, other: &Self) {
        let whole = self.view.borrow().clone();
        let mut without = (*whole).clone();
        without.members.remove(&other.id());
        self.view.send_replace(Arc::new(without));
        let mut links = self.mesh.links();
        let gone = links.wait_for(|links| !links.contains_key(&other.id()));
        assert!(timeout(SOON, gone).await.is_ok(), "still linked");
        self.view.send_replace(whole);
    }

    /// What the door at `door` answers to a request made for the exporter of that connection.
    async fn knock(&self, door: SocketAddr, request: impl FnOnce([u8; 32]) -> JoinRequest) -> JoinResponse {
        let link = self.mesh.dial_stranger(door).await.unwrap();
        let request = request(link.exporter().unwrap());
        link.open_join().await.unwrap().exchange(&request, frame::MAX_MESSAGE).await.unwrap()
    }

    fn request(&self, token: &JoinToken, exporter: [u8; 32]) -> AdmitRequest {
        let csr = self.identity.csr().unwrap();
        let seal_key = seal::seal_key_public(&self.seal_key).unwrap();
        let message = seal::seal_key_message(None, self.id(), &seal_key);
        let said = proof::transcript(&exporter, &csr, token.role(), token.id());
        AdmitRequest {
            token: token.id(),
            cluster: ClusterId::default(),
            proof: proof::joiner_proof(&token.keys().unwrap(), &said),
            csr,
            role: token.role(),
            name: "by hand".into(),
            addresses: Addresses::default(),
            seal_key,
            seal_key_signature: self.identity.sign(&message).to_vec(),
            version: "0".into(),
            features: crate::raft::OPERATOR_COMMANDS,
            clock: NOW,
        }
    }
}

fn sources(doors: &[SocketAddr]) -> Sources {
    let seeds = doors.iter().map(|door| door.to_string().parse().unwrap()).collect();
    Sources { seeds, ..Sources::default() }
}

fn signer(identity: &Arc<Identity>, seal_key: &Arc<SealKey>, clock: &Arc<AtomicU64>) -> Signer {
    let (now, serial) = (clock.clone(), AtomicU64::new(100));
    Signer {
        identity: identity.clone(),
        seal_key: seal_key.clone(),
        clock: Arc::new(move || now.load(Ordering::Relaxed) * 1000),
        serials: Arc::new(move || u128::from(serial.fetch_add(1, Ordering::Relaxed)).to_be_bytes()),
    }
}

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn ca(n: u8, cluster: ClusterId) -> ClusterCa {
    ClusterCa::create(cluster, &[n; 32], NOW).unwrap()
}

fn pinned(role: Role, ca: &ClusterCa) -> JoinToken {
    JoinToken::for_cluster(role, CLUSTER, ca.certificate(), vec![], &mut StdRng::seed_from_u64(3)).unwrap()
}

fn refused(answer: JoinResponse) -> Refusal {
    match answer {
        JoinResponse::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_token_lets_in_and_the_connection_becomes_the_link() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) =
        (Node::new(dir.path(), 1).await, Node::new(dir.path(), 2).await, Node::new(dir.path(), 3).await);
    let (right, other) = (ca(1, CLUSTER), ca(2, CLUSTER));
    let token = pinned(Role::Voter, &right);
    first.found(CLUSTER, &right, &token, 1).await;
    let evil = Node::new(dir.path(), 4).await;
    evil.found(CLUSTER, &other, &token, 9).await;

    // A cluster that only pretends gets no proof; the search goes on.
    let joined = second.join(&token, &[evil.address(), third.address(), first.address()]).await.unwrap();
    assert!(!evil.control.state().members.contains_key(&second.id()));
    assert_eq!((joined.admitted.node, joined.door), (second.id(), first.address()));
    assert!(joined.admitted.server_proof.is_empty());
    // The answer is lost: asking again costs no second use.
    drop(joined);
    let joined = second.join(&token, &[first.address()]).await.unwrap();
    // Views of entries before its admission, which raft still has to send, must not replace this.
    let view = joined.first_view();
    assert!(view.members.contains_key(&first.id()) && view.members.contains_key(&second.id()));
    assert_eq!(view.applied_index, first.control.view().borrow().applied_index);
    assert_eq!(second.enter(joined).await, first.id());
    let mut links = first.mesh.links();
    assert!(timeout(SOON, links.wait_for(|links| links.contains_key(&second.id()))).await.is_ok());
    let state = first.control.state();
    let member = &state.members[&second.id()];
    let shown = second.identity.certificate();
    assert_eq!((&member.serial, member.not_after), (&shown.serial, shown.not_after));
    assert_eq!((member.role, &member.addresses.mesh[..]), (Role::Voter, &[second.address()][..]));

    // Spent is the cluster's last word.
    let refused = third.join(&token, &[first.address()]).await;
    assert!(matches!(refused, Err(JoinError::Refused(Refusal::Spent))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chosen_token_makes_the_cluster_prove_itself() {
    let dir = tempfile::tempdir().unwrap();
    let rng = &mut StdRng::seed_from_u64(5);
    let (token, unknown) = (
        JoinToken::generate(Role::Reader, vec![], rng).unwrap(),
        JoinToken::generate(Role::Reader, vec![], rng).unwrap(),
    );
    let (first, second, stranger) =
        (Node::new(dir.path(), 11).await, Node::new(dir.path(), 12).await, Node::new(dir.path(), 13).await);
    first.found(CLUSTER, &ca(1, CLUSTER), &token, 4).await;
    let other_cluster = ClusterId([8; 16]);
    stranger.found(other_cluster, &ca(2, other_cluster), &unknown, 4).await;

    // Another cluster in sight that does not know the token is no reason to give up.
    let joined = second.join(&token, &[stranger.address(), first.address()]).await.unwrap();
    assert_eq!((joined.admitted.cluster, joined.admitted.server_proof.len()), (CLUSTER, 32));
    let refused = second.join(&token, &[stranger.address()]).await;
    assert!(matches!(refused, Err(JoinError::Refused(Refusal::UnknownToken))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_waits_for_others_joins_a_member_that_knows_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let rng = &mut StdRng::seed_from_u64(8);
    let (token, unknown) = (
        JoinToken::generate(Role::Voter, vec![], rng).unwrap(),
        JoinToken::generate(Role::Voter, vec![], rng).unwrap(),
    );
    let (first, second, stranger) =
        (Node::new(dir.path(), 51).await, Node::new(dir.path(), 52).await, Node::new(dir.path(), 53).await);
    first.found(CLUSTER, &ca(1, CLUSTER), &token, 4).await;
    let other_cluster = ClusterId([8; 16]);
    stranger.found(other_cluster, &ca(2, other_cluster), &unknown, 4).await;

    // Another cluster in sight is no reason to give up, nor to go ahead.
    let waits = timeout(SOON, second.gather(&token, &[stranger.address()])).await;
    assert!(waits.is_err(), "{waits:?}");
    let joined = timeout(SOON, second.gather(&token, &[stranger.address(), first.address()])).await.unwrap();
    let Ok(Gathered::Joined(joined)) = joined else { panic!("{joined:?}") };
    assert_eq!(second.enter(*joined).await, first.id());

    let revoke = Command::RevokeToken { token: token.id() };
    assert_eq!(first.control.propose(revoke, SOON).await, Ok(Outcome::Done));
    let third = Node::new(dir.path(), 54).await;
    let refused = timeout(SOON, third.gather(&token, &[first.address()])).await.unwrap();
    assert!(matches!(refused, Err(JoinError::Refused(Refusal::Revoked))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_and_requests_cannot_be_bent() {
    let dir = tempfile::tempdir().unwrap();
    let token = JoinToken::generate(Role::Reader, vec![], &mut StdRng::seed_from_u64(6)).unwrap();
    let (first, joiner) = (Node::new(dir.path(), 21).await, Node::new(dir.path(), 22).await);
    first.found(CLUSTER, &ca(1, CLUSTER), &token, 4).await;
    let door = first.address();
    let knock = |request: fn(&Node, &JoinToken, [u8; 32]) -> JoinRequest| {
        let (joiner, token) = (&joiner, &token);
        async move { joiner.knock(door, |exporter| request(joiner, token, exporter)).await }
    };
    // The exporter of another connection, as a relaying third party would have.
    let relayed = knock(|me, token, mut exporter| {
        exporter[0] ^= 1;
        JoinRequest::Admit(Box::new(me.request(token, exporter)))
    });
    assert_eq!(refused(relayed.await), Refusal::WrongSecret);
    let dressed_up = knock(|me, token, exporter| {
        let request = JoinRequest::Admit(Box::new(me.request(token, exporter)));
        let (exporter, spki) = (exporter.to_vec(), me.identity.spki().to_vec());
        JoinRequest::Relayed(Box::new(RelayedJoin { request, exporter, spki }))
    });
    assert_eq!(refused(dressed_up.await), Refusal::Malformed, "only members relay");
    let other_key = knock(|me, token, exporter| {
        let key = NodeKey::from_seed(&[99; 32]).unwrap();
        let mut request = me.request(token, exporter);
        request.csr = Identity::stranger(key, NOW).unwrap().csr().unwrap();
        let said = proof::transcript(&exporter, &request.csr, token.role(), token.id());
        request.proof = proof::joiner_proof(&token.keys().unwrap(), &said);
        JoinRequest::Admit(Box::new(request))
    });
    assert_eq!(refused(other_key.await), Refusal::Malformed, "a certificate only for the key shown");
    let other_role = knock(|me, token, exporter| {
        let mut request = me.request(token, exporter);
        request.role = Role::Voter;
        let said = proof::transcript(&exporter, &request.csr, Role::Voter, token.id());
        request.proof = proof::joiner_proof(&token.keys().unwrap(), &said);
        JoinRequest::Admit(Box::new(request))
    });
    assert_eq!(refused(other_role.await), Refusal::OtherRole);
    let other_cluster = knock(|me, token, exporter| {
        JoinRequest::Admit(Box::new(AdmitRequest {
            cluster: ClusterId([1; 16]),
            ..me.request(token, exporter)
        }))
    });
    assert_eq!(refused(other_cluster.await), Refusal::OtherCluster);
    let sealing = knock(|me, token, exporter| {
        JoinRequest::Admit(Box::new(AdmitRequest { seal_key: vec![1; 32], ..me.request(token, exporter) }))
    });
    assert_eq!(refused(sealing.await), Refusal::Malformed, "an exchanged sealing key");
    let late = knock(|me, token, exporter| {
        JoinRequest::Admit(Box::new(AdmitRequest { clock: NOW - 7_200, ..me.request(token, exporter) }))
    });
    let answer = late.await;
    assert!(
        matches!(&answer, JoinResponse::Retry { reason } if reason.contains("7200 s behind")),
        "{answer:?}"
    );
    let unlisted = knock(|me, _, _| JoinRequest::Renew { csr: me.identity.csr().unwrap() });
    assert!(matches!(unlisted.await, JoinResponse::Retry { .. }));
    let state = first.control.state();
    assert_eq!((state.members.len(), state.tokens[&token.id()].uses_left), (1, Some(4)), "nothing was spent");

    assert_eq!(
        first.control.propose(Command::RevokeToken { token: token.id() }, SOON).await,
        Ok(Outcome::Done)
    );
    let revoked = knock(|me, token, exporter| JoinRequest::Admit(Box::new(me.request(token, exporter))));
    assert_eq!(refused(revoked.await), Refusal::Revoked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_ca_key_relays_and_gets_its_own_certificate_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let (first, reader, third) =
        (Node::new(dir.path(), 31).await, Node::new(dir.path(), 32).await, Node::new(dir.path(), 33).await);
    let root = ca(1, CLUSTER);
    let token = pinned(Role::Reader, &root);
    first.found(CLUSTER, &root, &token, 2).await;
    let joined = reader.join(&token, &[first.address()]).await.unwrap();
    reader.enter(joined).await;
    first.control.add_learner(reader.id()).await.unwrap();
    reader.sees(|view| view.learners.contains(&reader.id()) && view.leader == Some(first.id())).await;

    // The third knows only the reader's door.
    let joined = third.join(&token, &[reader.address()]).await.unwrap();
    assert_eq!(third.enter(joined).await, reader.id());
    assert!(first.control.state().members.contains_key(&third.id()));
    // A refusal by way of the relay is final as well, a lagging reader's own would not be.
    let fourth = Node::new(dir.path(), 34).await;
    let spent = fourth.join(&token, &[reader.address()]).await;
    assert!(matches!(spent, Err(JoinError::Refused(Refusal::Spent))), "{spent:?}");
    let unknown = JoinToken::for_cluster(
        Role::Reader,
        CLUSTER,
        root.certificate(),
        vec![],
        &mut StdRng::seed_from_u64(77),
    )
    .unwrap();
    let refused = fourth.join(&unknown, &[reader.address()]).await;
    assert!(matches!(refused, Err(JoinError::Refused(Refusal::UnknownToken))), "{refused:?}");

    // Half of its life is over: the reader asks a voter.
    for node in [&first, &reader] {
        node.clock.store(NOW + 20 * DAY, Ordering::Relaxed);
    }
    let before = reader.identity.certificate().not_after;
    let renewal = renewal(&reader);
    let renewed = async {
        while reader.identity.certificate().not_after == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = renewal.run() => panic!("renewal goes on for ever"),
        done = timeout(SOON, renewed) => assert!(done.is_ok(), "not renewed"),
    }
    let shown = reader.identity.certificate();
    assert_eq!(shown.not_after, NOW + 50 * DAY);
    assert_eq!(first.control.state().members[&reader.id()].serial, shown.serial);
    let stored = reader.store.cluster().await.unwrap().unwrap();
    assert_eq!(PeerCertificate::parse(&stored.certificate).unwrap().serial, shown.serial);
}

fn renewal(node: &Node) -> Renewal {
    Renewal {
        signer: signer(&node.identity, &node.seal_key, &node.clock),
        control: Some(node.control.clone()),
        view: node.view.clone(),
        mesh: node.mesh.clone(),
        store: node.store.clone(),
        jitter: 0.5,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_slept_for_a_year_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Node::new(dir.path(), 41).await, Node::new(dir.path(), 42).await);
    let root = ca(1, CLUSTER);
    let token = pinned(Role::Gateway, &root);
    first.found(CLUSTER, &root, &token, 1).await;
    let joined = second.join(&token, &[first.address()]).await.unwrap();
    second.enter(joined).await;
    for node in [&first, &second] {
        node.clock.store(NOW + 365 * DAY, Ordering::Relaxed);
    }
    let (own, asked) = (renewal(&first), Renewal { control: None, ..renewal(&second) });
    let fresh = |node: &Node| node.identity.certificate().not_after == NOW + 395 * DAY;
    let told =
        |node: &Node| first.control.state().members[&node.id()].serial == node.identity.certificate().serial;
    let both = async {
        while ![&first, &second].into_iter().all(|node| fresh(node) && told(node)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asked = async {
        // The second asks again until the first has signed itself a certificate.
        while !fresh(&first) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        asked.run().await;
    };
    tokio::select! {
        () = own.run() => panic!("renewal goes on for ever"),
        () = asked => panic!("nobody stops asking"),
        done = timeout(2 * SOON, both) => assert!(done.is_ok(), "no new certificates"),
    }
    assert!(first.control.state().tokens[&token.id()].uses_left == Some(0) && token.id() != TokenId(0));
}

/// The founder goes through a whole rotation while `away` hears of nothing.
async fn rotate_without(first: &Node, away: &Node, old: &ClusterCa, new: &ClusterCa) {
    let agree = async |command| assert_eq!(first.control.propose(command, SOON).await, Ok(Outcome::Done));
    agree(Command::RotateCa { at_ms: 1 }).await;
    let seal_key = seal::seal_key_public(&first.seal_key).unwrap();
    let rng = &mut StdRng::seed_from_u64(1);
    let sealed = seal::seal(new.private_key(), &seal_key, CLUSTER, first.id(), rng).unwrap();
    let succession = succession::sign(old, CLUSTER, new.certificate());
    agree(Command::AddRoot { succession, sealed: [(first.id(), sealed.into())].into() }).await;
    let issued = new.issue(&first.identity.csr().unwrap(), CLUSTER, [2; 16], NOW).unwrap();
    first.identity.set_certificate(&issued.certificate, &[new.certificate()]).unwrap();
    let root = new.fingerprint().to_vec().into();
    agree(Command::ShowsRoot { node: first.id(), root }).await;
    agree(Command::DropFromRotation { nodes: [away.id()].into() }).await;
    agree(Command::RetireRoot { root: old.fingerprint().to_vec().into() }).await;
    first.sees(|view| view.roots == [new.certificate()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_while_the_ca_was_rotated_comes_home_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Node::new(dir.path(), 61).await, Node::new(dir.path(), 62).await);
    let (old, new, evil) = (ca(1, CLUSTER), ca(2, CLUSTER), ca(9, CLUSTER));
    let token = pinned(Role::Gateway, &old);
    first.found(CLUSTER, &old, &token, 1).await;
    let joined = second.join(&token, &[first.address()]).await.unwrap();
    second.enter(joined).await;
    rotate_without(&first, &second, &old, &new).await;
    first.cut(&second).await;

    // A root that the old one has not signed is believed of nobody.
    let asked = || Renewal { control: None, ..renewal(&second) };
    let by = |ca: &ClusterCa| ca.issue(&second.identity.csr().unwrap(), CLUSTER, [3; 16], NOW).unwrap();
    let answer = |ca: &ClusterCa, successions| Admitted {
        node: second.id(),
        cluster: CLUSTER,
        cluster_name: "test".into(),
        certificate: by(ca).certificate,
        roots: vec![ca.certificate().to_vec().into()],
        successions,
        profile: TimingProfile::Lan,
        members: vec![],
        applied_index: 1_000,
        recovery: None,
        server_proof: vec![],
    };
    for successions in [vec![], vec![succession::sign(&evil, CLUSTER, evil.certificate())]] {
        let refused = asked().take(&answer(&evil, successions)).await.unwrap_err();
        assert!(refused.contains("vouches"), "{refused}");
    }
    let before = second.identity.certificate().serial.clone();

    let home = async {
        loop {
            let shown = second.identity.certificate();
            if shown.serial != before && second.mesh.links().borrow().contains_key(&first.id()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = asked().run() => panic!("renewal goes on for ever"),
        done = timeout(6 * SOON, home) => assert!(done.is_ok(), "not back"),
    }
    assert!(second.identity.certificate().signer(&[new.certificate()]).is_some());
    assert_eq!(second.view.borrow().roots, [new.certificate()]);
    let stored = second.store.cluster().await.unwrap().unwrap();
    assert_eq!(stored.roots, [new.certificate()]);
}

/// Its own clock and that of the door were wrong when it joined, so its certificate is not valid yet for
/// the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_valid_yet_is_renewed_when_the_others_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Node::new(dir.path(), 71).await, Node::new(dir.path(), 72).await);
    let root = ca(1, CLUSTER);
    let token = pinned(Role::Gateway, &root);
    for node in [&first, &second] {
        node.clock.store(NOW + 3 * 3_600, Ordering::Relaxed);
    }
    first.found(CLUSTER, &root, &token, 1).await;
    let joined = second.join(&token, &[first.address()]).await.unwrap();
    second.enter(joined).await;
    // The door's is set; the other one goes on with its own.
    first.clock.store(NOW, Ordering::Relaxed);
    first.cut(&second).await;
    assert!(second.identity.certificate().not_before > NOW);
    let (asked, mut links) = (Renewal { control: None, ..renewal(&second) }, first.mesh.links());
    let back = async {
        while second.identity.certificate().not_before > NOW {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        links.wait_for(|links| links.contains_key(&second.id())).await.unwrap();
    };
    tokio::select! {
        () = asked.run() => panic!("renewal goes on for ever"),
        done = timeout(6 * SOON, back) => assert!(done.is_ok(), "not back"),
    }
}

/// Twenty at once by one token of twenty uses all get in; of thirty-two that race for a single use, by
/// way of two doors, exactly one. With `--nocapture` it says how long they took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_admits_as_many_as_it_says_however_they_race() {
    let dir = tempfile::tempdir().unwrap();
    let (first, reader) = (Node::new(dir.path(), 41).await, Node::new(dir.path(), 42).await);
    let root = ca(1, CLUSTER);
    let token = pinned(Role::Reader, &root);
    first.found(CLUSTER, &root, &token, 1).await;
    let joined = reader.join(&token, &[first.address()]).await.unwrap();
    reader.enter(joined).await;
    first.control.add_learner(reader.id()).await.unwrap();
    reader.sees(|view| view.learners.contains(&reader.id()) && view.leader == Some(first.id())).await;
    let doors = [first.address(), reader.address()];

    for (n, uses, racers) in [(50_u8, 20_u32, 20_u8), (100, 1, 32)] {
        let rng = &mut StdRng::seed_from_u64(n.into());
        // No learners: that is what raft would have to do next, and not what is raced for.
        let certificate = root.certificate();
        let token = JoinToken::for_cluster(Role::Gateway, CLUSTER, certificate, vec![], rng).unwrap();
        let limits = TokenLimits { expires_ms: None, uses: Some(uses), created_ms: 1 };
        let create = Command::CreateToken(token_record(&token, token.verifier().unwrap(), limits));
        assert_eq!(first.control.propose(create, SOON).await, Ok(Outcome::Done));
        let mut nodes = Vec::new();
        for racer in 0..racers {
            nodes.push(Node::new(dir.path(), n + racer).await);
        }
        let began = std::time::Instant::now();
        let race = nodes.iter().zip(doors.iter().cycle()).map(|(node, door)| {
            let (token, door) = (&token, [*door]);
            async move { (node.join_within(12 * SOON, token, &door).await, began.elapsed()) }
        });
        let ended = futures::future::join_all(race).await;
        let of = |test: &dyn Fn(&Result<Joined, JoinError>) -> bool| {
            ended.iter().filter(|(outcome, _)| test(outcome)).count()
        };
        let admitted = of(&|outcome| outcome.is_ok());
        let spent = of(&|outcome| matches!(outcome, Err(JoinError::Refused(Refusal::Spent))));
        assert_eq!((admitted, spent), (uses as usize, usize::from(racers) - uses as usize));
        let state = first.control.state();
        assert_eq!(state.tokens[&token.id()].uses_left, Some(0));
        assert_eq!(state.admitted_by.values().filter(|by| **by == token.id()).count(), uses as usize);

        let mut took: Vec<_> = ended.iter().map(|(_, took)| *took).collect();
        took.sort();
        let at = |percent: usize| took[(took.len() * percent).div_ceil(100) - 1];
        println!(
            "{racers} at once, {uses} uses: p50 {:.0?}, p99 {:.0?}; all had their answer after {:.0?}",
            at(50),
            at(99),
            began.elapsed()
        );
    }
}
