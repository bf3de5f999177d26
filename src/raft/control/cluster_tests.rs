//! Three nodes over real meshes on loopback.

use std::{net::SocketAddr, path::Path};

use rand::{SeedableRng, rngs::StdRng};
use serde_bytes::ByteBuf;
use tokio::task::JoinHandle;

use super::{
    tests::{SOON, found, token},
    *,
};
use crate::{
    disk::{Disk, RealDisk},
    identity::{ClusterCa, Identity, NodeKey, SealKey, seal, warrant},
    protocol::StreamKind,
    testing::{DiskLatency, SimDisk},
    transport::{Mesh, MeshConfig, Router, Socket},
    types::{Addresses, BootId, ClusterId, Member, Role, TimingProfile, TokenId},
};

const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Seconds since 1970, for certificates.
const NOW: u64 = 1_800_000_000;

struct Node {
    control: Control,
    seal_key: Arc<SealKey>,
    mesh: Mesh,
    /// What all of them trust.
    trusted: watch::Sender<Arc<ClusterView>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    fn id(&self) -> NodeId {
        self.control.inner.id
    }

    async fn sees(&self, what: &str, test: impl Fn(&ClusterView) -> bool) {
        let mut view = self.control.view();
        let seen = tokio::time::timeout(4 * SOON, view.wait_for(|view| test(view))).await;
        assert!(seen.is_ok(), "{} never saw {what}: {:?}", self.id().short(), *self.control.view().borrow());
    }

    async fn stop(self) {
        self.control.shutdown().await;
        self.mesh.close("test");
        for task in self.tasks {
            task.abort();
        }
    }
}

fn ca(seed: u8) -> ClusterCa {
    ClusterCa::create(CLUSTER, &[seed; 32], NOW).unwrap()
}

/// The founding by this node, which holds the key of the CA.
fn founded_by(node: &Node) -> Command {
    let Command::Found { cluster, name, member, profile, token, api_token, after, level, .. } = found()
    else {
        panic!("a founding");
    };
    let (ca, public) = (ca(9), seal::seal_key_public(&node.seal_key).unwrap());
    let sealed = seal::seal(ca.private_key(), &public, cluster, node.id(), &mut StdRng::seed_from_u64(1));
    let (root, sealed_ca) = (ca.certificate().to_vec().into(), sealed.unwrap().into());
    let member = Member { id: node.id(), seal_key: public, ..member };
    Command::Found { cluster, name, root, member, sealed_ca, profile, token, api_token, after, level }
}

/// What nodes trust and know of each other; nobody is a member yet.
fn nobody() -> watch::Sender<Arc<ClusterView>> {
    let roots = vec![ByteBuf::from(ca(9).certificate().to_vec())];
    watch::Sender::new(Arc::new(ClusterView { cluster: CLUSTER, roots, ..Default::default() }))
}

/// Starts node `n` from its disk; the view learns where it is now.
async fn start(
    n: u8,
    boot: u64,
    dir: &Path,
    disk: Arc<dyn Disk>,
    view: &watch::Sender<Arc<ClusterView>>,
) -> Node {
    let ca = ca(9);
    let key = || NodeKey::from_seed(&[n; 32]).unwrap();
    let csr = Identity::stranger(key(), NOW).unwrap().csr().unwrap();
    let issued = ca.issue(&csr, CLUSTER, [n; 16], NOW).unwrap();
    let identity = Arc::new(Identity::member(key(), &issued.certificate, &[ca.certificate()]).unwrap());
    let id = identity.node();
    let slot = MeshSlot::default();
    let timing = TimingProfile::Lan.timing();
    let config = RaftConfig { id, dir: dir.join(n.to_string()), timing, seed: n.into() };
    let (control, driver) = Control::start(config, disk, slot.clone()).await.unwrap();
    let seal_key = Arc::new(SealKey::from_bytes([n; 32]));
    control.bear_warrants(Warrants { seal_key: seal_key.clone(), trusted: view.subscribe() });
    let router = Router::new()
        .on(StreamKind::Raft, control.rpc_handler())
        .on(StreamKind::Control, control.control_handler());
    let config = MeshConfig {
        socket: Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0))),
        timing,
        addresses: watch::Sender::new(Addresses::default()).subscribe(),
        version: "0".into(),
        features: 0,
        boot: BootId(boot),
        clock: Arc::new(|| NOW),
    };
    let (mesh, mesh_driver) = Mesh::bind(config, identity, view.subscribe(), router).unwrap();
    let member = member(id, issued.spki, mesh.local_addr().unwrap());
    view.send_modify(|view| {
        Arc::make_mut(view).members.insert(id, member);
    });
    assert!(slot.set(mesh.clone()).is_ok());
    let tasks = vec![tokio::spawn(driver.run()), tokio::spawn(mesh_driver.run())];
    Node { control, seal_key, mesh, trusted: view.clone(), tasks }
}

/// Nodes that know each other as members, each with raft started and none initialized.
async fn nodes(dir: &Path, count: u8) -> Vec<Node> {
    let view = nobody();
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(start(n, n.into(), dir, Arc::new(RealDisk), &view).await);
    }
    linked(&nodes).await;
    nodes
}

async fn linked(nodes: &[Node]) {
    for node in nodes {
        let all = nodes.len() - 1;
        let mut links = node.mesh.links();
        let linked = tokio::time::timeout(4 * SOON, links.wait_for(|links| links.len() == all)).await;
        assert!(linked.is_ok(), "no full mesh");
    }
}

/// Has it done by whoever leads, which on a busy machine may become another node meanwhile. A change that
/// follows another one at once may be refused, for what raft tells of its membership lags a little.
async fn by_the_leader(nodes: &[Node], step: impl AsyncFn(&Control) -> Result<(), ControlError>) {
    let mut last = None;
    let done = tokio::time::timeout(4 * SOON, async {
        loop {
            for node in nodes {
                match step(&node.control).await {
                    Ok(()) => return,
                    Err(error) => last = Some(error),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let done = done.await;
    assert!(done.is_ok(), "{last:?}");
}

fn member(id: NodeId, spki: Vec<u8>, address: SocketAddr) -> Member {
    Member {
        id,
        name: id.short(),
        role: Role::Voter,
        addresses: Addresses { mesh: vec![address], http: None },
        spki,
        seal_key: Vec::new(),
        seal_key_signature: Vec::new(),
        serial: "1".into(),
        not_after: u64::MAX,
        version: "0".into(),
        features: 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_hands_over_loses_its_leader_and_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path(), 3).await;
    let ids: Vec<NodeId> = nodes.iter().map(Node::id).collect();
    let first = &nodes[0].control;
    first.initialize().await.unwrap();
    first.propose(founded_by(&nodes[0]), SOON).await.unwrap();

    // The second follows the log; the third, to whom the log is gone, a snapshot.
    first.add_learner(ids[1]).await.unwrap();
    // What raft tells of its membership lags a little behind what it has done.
    let learns =
        |m: &openraft::RaftMetrics<_>| m.membership_config.membership().learner_ids().any(|id| id == ids[1]);
    first.inner.raft.wait(Some(SOON)).metrics(learns, "the learner").await.unwrap();
    let before = first.newest_membership();
    first.add_learner(ids[1]).await.unwrap();
    assert_eq!(first.newest_membership(), before, "nothing to do makes no entry");
    nodes[1].sees("itself as learner", |view| view.learners.contains(&ids[1])).await;
    by_the_leader(&nodes[..1], async |first| first.promote(ids[1]).await).await;
    nodes[1].sees("two voters", |view| view.voters.len() == 1 && view.is_voter(ids[1])).await;
    let raft = &first.inner.raft;
    raft.trigger().snapshot().await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.snapshot.is_some(), "snapshot").await.unwrap();
    let upto = raft.metrics().borrow_watched().snapshot.unwrap().index;
    raft.trigger().purge_log(upto).await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.purged.is_some(), "purge").await.unwrap();
    by_the_leader(&nodes[..1], async |first| first.add_learner(ids[2]).await).await;
    nodes[2].sees("the founding, by snapshot", |view| view.cluster == CLUSTER && view.name == "demo").await;
    by_the_leader(&nodes[..1], async |first| first.promote(ids[2]).await).await;
    let uniform = |m: &openraft::RaftMetrics<_>| m.membership_config.get_joint_config().len() == 1;
    first.inner.raft.wait(Some(SOON)).metrics(uniform, "one set of voters").await.unwrap();
    for node in &nodes {
        node.sees("three voters", |view| view.voters.len() == 1 && view.voters[0].len() == 3).await;
    }

    // A follower's command goes to the leader.
    assert!(!nodes[2].control.is_leader());
    assert!(matches!(nodes[2].control.promote(ids[0]).await, Err(ControlError::NotLeader(_))));
    let command = Command::CreateToken(token(50));
    assert_eq!(nodes[2].control.propose(command, SOON).await, Ok(Outcome::Done));
    assert!(first.state().tokens.contains_key(&TokenId(50)));
    // The leader refuses what a member does not know, whatever the one who asks has seen of the members.
    let rotate = Command::RotateCa { at_ms: 1 };
    let refused = crate::raft::forward_command(&nodes[2].mesh, ids[0], rotate, SOON).await;
    assert!(matches!(&refused, Ok(Outcome::Rejected(why)) if why.contains("n1 (skein 0)")), "{refused:?}");
    assert!(first.state().rotation.is_none());

    first.transfer_leader(ids[1]).await.unwrap();
    for node in &nodes {
        node.sees("the new leader", |view| view.leader == Some(ids[1])).await;
    }
    let command = Command::CreateToken(token(51));
    assert_eq!(nodes[0].control.propose(command, SOON).await, Ok(Outcome::Done));

    // The leader is gone; the others elect, and take it out of raft and of the cluster.
    let term = nodes[0].control.view().borrow().term;
    nodes.remove(1).stop().await;
    let command = Command::CreateToken(token(52));
    nodes[0].sees("a newer leader", |view| view.term > term && view.leader.is_some()).await;
    assert_eq!(nodes[0].control.propose(command, 4 * SOON).await, Ok(Outcome::Done));
    by_the_leader(&nodes, async |control| control.demote(ids[1]).await).await;
    by_the_leader(&nodes, async |control| control.remove(ids[1]).await).await;
    for node in &nodes {
        node.sees("the leader gone", |view| view.all_voters().len() == 2 && view.learners.is_empty()).await;
    }

    // A leader that has lost its majority does not know that yet, and so not whether it lags.
    by_the_leader(&nodes, async |control| match control.confirm_state(SOON).await {
        true => Ok(()),
        false => Err(ControlError::NotLeader(None)),
    })
    .await;
    let at = nodes.iter().position(|node| node.control.is_leader()).unwrap();
    let leader = nodes.remove(at);
    for node in nodes {
        assert!(!node.control.confirm_state(SOON).await, "no leader");
        node.stop().await;
    }
    assert!(leader.control.leader_ready().await);
    assert!(!leader.control.confirm_state(Duration::from_millis(200)).await);
    leader.stop().await;
}

/// A leader sends an entry while it writes it. If the power goes meanwhile a follower may have it alone: then
/// the leader must not make another one of its term for the same place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_power_makes_no_second_entry_for_a_place() {
    let (dir, view, disks) = (Path::new("/raft"), nobody(), [SimDisk::new(), SimDisk::new()]);
    let mut nodes = Vec::new();
    for (n, disk) in (1..).zip(&disks) {
        nodes.push(start(n, n.into(), dir, Arc::new(disk.clone()), &view).await);
    }
    linked(&nodes).await;
    let (first, two) = (nodes[0].control.clone(), nodes[1].id());
    first.initialize().await.unwrap();
    assert_eq!(first.propose(founded_by(&nodes[0]), SOON).await, Ok(Outcome::Done));
    by_the_leader(&nodes[..1], async |first| first.add_learner(two).await).await;
    by_the_leader(&nodes[..1], async |first| first.promote(two).await).await;
    nodes[1].sees("two voters", |view| view.voters.len() == 1 && view.is_voter(two)).await;
    first.propose(Command::CreateToken(token(70)), SOON).await.unwrap();

    disks[0].set_latency(DiskLatency { sync: Duration::from_secs(3600), ..DiskLatency::default() });
    let proposer = first.clone();
    let lost = async move { proposer.propose(Command::CreateToken(token(71)), 100 * SOON).await };
    let lost = tokio::spawn(lost);
    let on_platter = async |disk: &SimDisk, n: &str| {
        crate::raft::survey(Arc::new(disk.platter()), &dir.join(n)).await.unwrap().last.unwrap()
    };
    let (term, last) = on_platter(&disks[0], "1").await;
    let sent = tokio::time::timeout(4 * SOON, async {
        while on_platter(&disks[1], "2").await != (term, last + 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(sent.await.is_ok(), "the follower has what its leader lacks");
    assert!(first.is_leader(), "it is the leader that loses power");
    let after = disks[0].platter();
    after.set_latency(DiskLatency::default());
    assert_eq!(on_platter(&after, "1").await, (term, last));
    let Node { control, mesh, tasks, .. } = nodes.remove(0);
    mesh.close("no power");
    tasks.iter().for_each(JoinHandle::abort);
    lost.abort();
    drop((control, first));

    nodes.insert(0, start(1, 101, dir, Arc::new(after), &view).await);
    assert_eq!(nodes[0].control.propose(Command::CreateToken(token(72)), 4 * SOON).await, Ok(Outcome::Done));
    let applied = nodes.iter().map(|node| node.control.view().borrow().applied_index).max().unwrap();
    for node in &nodes {
        node.sees("what the leader has applied", |view| view.applied_index >= applied).await;
        let tokens: Vec<u64> = node.control.state().tokens.keys().map(|id| id.0).collect();
        assert_eq!(tokens, [1, 70, 71, 72], "{}", node.id().short());
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_term_that_a_member_makes_up_takes_no_office() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path(), 2).await;
    let (leader, reader) = (&nodes[0], &nodes[1]);
    leader.control.initialize().await.unwrap();
    leader.sees("a leader", |view| view.leader.is_some()).await;
    // It holds the key of the CA, so that the reader hears it.
    assert_eq!(leader.control.propose(founded_by(leader), SOON).await, Ok(Outcome::Done));
    let term = leader.control.view().borrow().term;
    let vote = openraft::Vote::new(u64::MAX / 2, reader.id());
    let voted = reader.control.inner.raft.vote(openraft::raft::VoteRequest::new(vote, None)).await.unwrap();
    assert!(voted.vote_granted, "it has that term now");
    // It answers every append with it.
    let adds = leader.control.clone();
    let id = reader.id();
    let adding = tokio::spawn(async move { adds.add_learner(id).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(leader.control.is_leader() && leader.control.view().borrow().term == term);
    let token = leader.control.propose(Command::CreateToken(token(61)), SOON).await;
    assert!(token.is_ok(), "{token:?}");
    // By a warrant it is a voter, of a term that there may have been.
    let warrant = ByteBuf::from(warrant::sign(&ca(9), CLUSTER, reader.id()));
    assert!(leader.control.inner.electorate.judge(reader.id(), &[warrant]));
    leader.sees("the higher term", |view| view.term >= u64::MAX / 2).await;
    adding.abort();
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_or_for_voters_that_is_none() {
    use crate::raft::{
        rpc::{Request, Response, exchange},
        type_config::TypeConfig,
    };
    use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};

    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path(), 2).await;
    let (one, two) = (nodes[0].id(), nodes[1].id());
    nodes[0].control.initialize().await.unwrap();
    nodes[0].sees("a leader", |view| view.leader.is_some()).await;
    let term = nodes[0].control.view().borrow().term;
    let kind = (StreamKind::Raft, StreamKind::Raft.lane());
    let asks = async |request: &Request| -> Response {
        exchange(&nodes[1].mesh, one, kind, request, Vec::new()).await.unwrap()
    };
    // Everything that a leader or a candidate says, in that one's name and of a higher term.
    let said_by = |node: NodeId| {
        let (asked, leads) =
            (openraft::Vote::new(term + 100, node), openraft::Vote::new_committed(term + 100, node));
        [
            Request::Vote(VoteRequest::new(asked, None)),
            Request::PreVote(VoteRequest::new(asked, None)),
            Request::Append(AppendEntriesRequest::<TypeConfig> {
                vote: leads,
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            }),
            Request::Snapshot { vote: leads, meta: Default::default(), len: 0 },
            Request::Transfer(TransferLeaderRequest::new(leads, one, None)),
        ]
    };
    for forged in said_by(one) {
        let answer = asks(&forged).await;
        assert!(matches!(answer, Response::Refused(_)), "{answer:?}");
    }
    // In its own name one that is no voter is not heard: its term alone would take office from the leader.
    for own in said_by(two) {
        let answer = asks(&own).await;
        assert!(matches!(answer, Response::Unknown), "{answer:?}");
    }
    let by = |seed, node| ByteBuf::from(warrant::sign(&ca(seed), CLUSTER, node));
    for none in [vec![], vec![by(8, two)], vec![by(9, one)], vec![by(9, two); 5]] {
        assert!(matches!(asks(&Request::Warrant(none)).await, Response::Unknown));
    }
    let warranted = nodes[0].control.warranted();
    assert!(!warranted(one) && !warranted(two));
    assert_eq!(nodes[0].control.view().borrow().term, term);
    assert!(nodes[0].control.is_leader());
    // Whom the CA calls a voter is one, whether this node has heard of it or not.
    assert!(matches!(asks(&Request::Warrant(vec![by(8, two), by(9, two)])).await, Response::Known));
    assert!(warranted(two));
    let own = openraft::Vote::new(term + 100, two);
    let honest = Request::PreVote(VoteRequest::new(own, None));
    let answer = asks(&honest).await;
    assert!(matches!(answer, Response::Vote(vote) if !vote.vote_granted), "its log is behind");
    assert_eq!(nodes[0].control.view().borrow().term, term);
    // A member that is no voter does not make tokens.
    let command = Command::CreateToken(token(60));
    let refused = crate::raft::forward_command(&nodes[1].mesh, one, command, SOON).await;
    assert_eq!(refused, Err(ProposeError::NotAllowed));
    // A warrant counts by the roots of now: while the CA is rotated both do, and then the new one alone.
    let root = |seed: &u8| ByteBuf::from(ca(*seed).certificate().to_vec());
    let trust = |seeds: &[u8]| {
        nodes[0].trusted.send_modify(|view| Arc::make_mut(view).roots = seeds.iter().map(root).collect());
    };
    for (seeds, good) in [(&[9, 8][..], true), (&[8], true), (&[7], false), (&[9], false)] {
        trust(seeds);
        assert_eq!(warranted(two), good, "{seeds:?}");
    }
    assert!(nodes[0].control.inner.electorate.judge(two, &[by(9, two)]) && warranted(two));
    for node in nodes {
        node.stop().await;
    }
}
