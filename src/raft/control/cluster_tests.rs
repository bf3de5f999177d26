//! Three nodes over real meshes on loopback.

use std::{net::SocketAddr, path::Path};

use tokio::task::JoinHandle;

use super::{
    tests::{SOON, found, token},
    *,
};
use crate::{
    disk::RealDisk,
    identity::{ClusterCa, Identity, NodeKey},
    protocol::StreamKind,
    transport::{Mesh, MeshConfig, Router, Socket},
    types::{Addresses, BootId, ClusterId, Member, Role, TimingProfile, TokenId},
};

const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Seconds since 1970, for certificates.
const NOW: u64 = 1_800_000_000;

struct Node {
    control: Control,
    mesh: Mesh,
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

/// Nodes that know each other as members, each with raft started and none initialized.
async fn nodes(dir: &Path, count: u8) -> Vec<Node> {
    let ca = ClusterCa::create(CLUSTER, &[9; 32], NOW).unwrap();
    let roots = [ca.certificate()];
    let view = watch::Sender::new(Arc::new(ClusterView {
        cluster: CLUSTER,
        roots: vec![serde_bytes::ByteBuf::from(ca.certificate().to_vec())],
        ..Default::default()
    }));
    let mut nodes = Vec::new();
    for n in 1..=count {
        let key = || NodeKey::from_seed(&[n; 32]).unwrap();
        let csr = Identity::stranger(key(), NOW).unwrap().csr().unwrap();
        let issued = ca.issue(&csr, CLUSTER, [n; 16], NOW).unwrap();
        let identity = Arc::new(Identity::member(key(), &issued.certificate, &roots).unwrap());
        let id = identity.node();
        let slot = MeshSlot::default();
        let timing = TimingProfile::Lan.timing();
        let config = RaftConfig { id, dir: dir.join(n.to_string()), timing, seed: n.into() };
        let (control, driver) = Control::start(config, Arc::new(RealDisk), slot.clone()).await.unwrap();
        let router = Router::new()
            .on(StreamKind::Raft, control.rpc_handler())
            .on(StreamKind::Control, control.control_handler());
        let config = MeshConfig {
            socket: Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0))),
            timing,
            addresses: watch::Sender::new(Addresses::default()).subscribe(),
            version: "0".into(),
            features: 0,
            boot: BootId(n.into()),
            clock: Arc::new(|| NOW),
        };
        let (mesh, mesh_driver) = Mesh::bind(config, identity, view.subscribe(), router).unwrap();
        let member = member(id, issued.spki, mesh.local_addr().unwrap());
        view.send_modify(|view| {
            Arc::make_mut(view).members.insert(id, member);
        });
        assert!(slot.set(mesh.clone()).is_ok());
        let tasks = vec![tokio::spawn(driver.run()), tokio::spawn(mesh_driver.run())];
        nodes.push(Node { control, mesh, tasks });
    }
    for node in &nodes {
        let all = nodes.len() - 1;
        let mut links = node.mesh.links();
        let linked = tokio::time::timeout(4 * SOON, links.wait_for(|links| links.len() == all)).await;
        assert!(linked.is_ok(), "no full mesh");
    }
    nodes
}

/// Has it done by whoever leads, which on a busy machine may become another node meanwhile.
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
    first.propose(found(), SOON).await.unwrap();

    // The second follows the log; the third, to whom the log is gone, a snapshot.
    first.add_learner(ids[1]).await.unwrap();
    let before = first.newest_membership();
    first.add_learner(ids[1]).await.unwrap();
    assert_eq!(first.newest_membership(), before, "nothing to do makes no entry");
    nodes[1].sees("itself as learner", |view| view.learners.contains(&ids[1])).await;
    first.promote(ids[1]).await.unwrap();
    nodes[1].sees("two voters", |view| view.voters.len() == 1 && view.is_voter(ids[1])).await;
    let raft = &first.inner.raft;
    raft.trigger().snapshot().await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.snapshot.is_some(), "snapshot").await.unwrap();
    let upto = raft.metrics().borrow_watched().snapshot.unwrap().index;
    raft.trigger().purge_log(upto).await.unwrap();
    raft.wait(Some(SOON)).metrics(|m| m.purged.is_some(), "purge").await.unwrap();
    first.add_learner(ids[2]).await.unwrap();
    nodes[2].sees("the founding, by snapshot", |view| view.cluster == CLUSTER && view.name == "demo").await;
    first.promote(ids[2]).await.unwrap();
    assert!(!first.is_joint());
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_in_another_nodes_name() {
    use crate::raft::rpc::{Request, Response, exchange};
    use openraft::raft::VoteRequest;

    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path(), 2).await;
    let (one, two) = (nodes[0].id(), nodes[1].id());
    nodes[0].control.initialize().await.unwrap();
    nodes[0].sees("a leader", |view| view.leader.is_some()).await;
    let term = nodes[0].control.view().borrow().term;
    let kind = (StreamKind::Raft, StreamKind::Raft.lane());
    let vote = openraft::Vote::new(term + 100, one);
    let forged = Request::Vote(VoteRequest::new(vote, None));
    let answer: Response = exchange(&nodes[1].mesh, one, kind, &forged, Vec::new()).await.unwrap();
    assert!(matches!(answer, Response::Refused(_)), "{answer:?}");
    let honest = Request::PreVote(VoteRequest::new(openraft::Vote::new(term + 100, two), None));
    let answer: Response = exchange(&nodes[1].mesh, one, kind, &honest, Vec::new()).await.unwrap();
    assert!(matches!(answer, Response::Vote(vote) if !vote.vote_granted), "its log is behind");
    assert_eq!(nodes[0].control.view().borrow().term, term);
    // A member that is no voter does not make tokens.
    let command = Command::CreateToken(token(60));
    let refused = crate::raft::forward_command(&nodes[1].mesh, one, command, SOON).await;
    assert_eq!(refused, Err(ProposeError::NotAllowed));
    for node in nodes {
        node.stop().await;
    }
}
