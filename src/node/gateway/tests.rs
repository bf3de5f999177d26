//! A gateway beside a real voter of the same process, over real sockets and disks.

use std::{path::Path, sync::Mutex};

use tokio::time::sleep;

use super::*;
use crate::{
    engine::MemoryEngine,
    node::{NewApiToken, Node},
    protocol::{
        frame::{self, MAX_MESSAGE},
        http::{HttpResponse, Part},
        view::ViewFrame,
    },
    transport::{Socket, StreamError},
    types::Scope,
    write_path::policy::Change,
};

const SOON: Duration = Duration::from_secs(20);

fn config(dir: &Path, seed: Option<&Node>) -> NodeConfig {
    NodeConfig {
        new_cluster: seed.is_none(),
        socket: Socket::Bind("127.0.0.1:0".parse().unwrap()),
        mdns: None,
        seeds: seed.iter().map(|node| node.mesh_addr().unwrap().to_string()).collect(),
        ..NodeConfig::new(DataDir::open(dir).unwrap())
    }
}

async fn voter(dir: &Path) -> Node {
    let engine = Arc::new(MemoryEngine::default());
    Node::start(config(dir, None), Surroundings::real(), engine).await.unwrap()
}

/// A voter with a gateway of its cluster, which is ready.
async fn world(home: &Path) -> (Node, Gateway) {
    let node = voter(&home.join("voter")).await;
    let token = node.create_token(Role::Gateway, None, Some(1), vec![]).await.unwrap();
    let joining =
        NodeConfig { join: Some(token.parse().unwrap()), ..config(&home.join("gateway"), Some(&node)) };
    let started = Gateway::start(joining, Surroundings::real(), Balance::RoundRobin);
    let gateway = timeout(SOON, started).await.expect("it is let in").unwrap();
    ready(&gateway).await;
    (node, gateway)
}

async fn ready(gateway: &Gateway) {
    let ready = async {
        while !gateway.readiness().ready {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, ready).await.unwrap_or_else(|_| panic!("not ready: {:?}", gateway.readiness()));
}

fn write(text: &'static str) -> Write {
    Write::new(9, text, Duration::from_secs(10))
}

fn get(target: &str) -> HttpRequest {
    let target = target.to_owned();
    HttpRequest { method: "GET".into(), target, http2: false, headers: vec![], vouched: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_outside_of_raft_that_writes_and_may_do_little_else() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    let view = node.view().borrow().clone();
    assert_eq!(view.members[&gateway.id()].role, Role::Gateway);
    assert!(!view.is_voter(gateway.id()) && !view.learners.contains(&gateway.id()), "{view:?}");
    for none in ["raft", "wal", "engine"] {
        assert!(!gateway.data_dir().join(none).exists(), "{none} in a gateway's directory");
    }
    assert_eq!(gateway.heard().unwrap().0, node.id());

    let asked = Write { ack: Some(crate::node::AckLevel::Quorum), ..write("point") };
    let receipt = gateway.submit(asked).await.unwrap();
    assert!(receipt.forwarded && receipt.writer == node.id(), "{receipt:?}");
    assert_eq!(receipt.ack, crate::node::AckLevel::Quorum);
    let drop = Change::Drop { database: "home".into() }.into_write(SOON);
    assert!(matches!(gateway.submit(drop).await, Err(SubmitError::Invalid(why)) if why.contains("gateway")));

    // With its key, what is a voter's, or a replica's, business is not even read.
    for kind in [
        StreamKind::Raft,
        StreamKind::Append,
        StreamKind::Snapshot,
        StreamKind::Seal,
        StreamKind::Read,
        StreamKind::Custom,
    ] {
        let mut stream = gateway.inner.this.mesh.open(node.id(), kind, kind.lane()).await.unwrap();
        let _ = stream.send.write_message(&StatusRequest::default()).await;
        let answer = stream.recv.read_frame(MAX_MESSAGE).await;
        assert_eq!(answer, Err(StreamError::NotServed), "{kind:?}");
    }
    let remove = Command::Remove { node: node.id(), at_ms: 0 };
    let refused = forward_command(&gateway.inner.this.mesh, node.id(), remove, SOON).await;
    assert_eq!(refused, Err(crate::raft::ProposeError::NotAllowed));
    let resign = StatusRequest { resign: true, ..StatusRequest::default() };
    let asked = gateway.inner.this.mesh.request(node.id(), StreamKind::Status, &resign, SOON);
    let status: NodeStatus = asked.await.unwrap();
    assert!(!status.draining, "a gateway moves no office");

    let status = node.status().await;
    let shown = status.nodes.iter().find(|shown| shown.id == gateway.id()).unwrap();
    assert_eq!(
        (shown.role, shown.state, shown.follows),
        (Role::Gateway, crate::types::NodeHealth::Up, Some(node.id()))
    );
    assert!(shown.applied.is_none() && shown.lag_records.is_none() && shown.view_age_ms.is_some());

    // Put out, it hears so, notes it and ends.
    node.remove_node(gateway.id()).await.unwrap();
    let ended = timeout(SOON, gateway.run()).await.expect("it ends");
    assert!(matches!(ended, NodeError::Removed { .. }), "{ended}");
    assert!(gateway.data_dir().join("removed").exists());
    let unheard = timeout(SOON, async {
        while gateway.is_current() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    unheard.await.expect("nobody shows it anything any more");
    gateway.shutdown().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_the_first_link_of_a_node_that_has_just_come_up() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    gateway.shutdown().await;
    drop(gateway);
    let again = config(&home.path().join("gateway"), Some(&node));
    let gateway = Gateway::start(again, Surroundings::real(), Balance::RoundRobin).await.unwrap();
    // The voter has no HTTP edge here, but it is there to be asked.
    let asked = gateway.ask(Errand::Query, &get("/"), &Bytes::new()).await;
    let asked_it = match &asked {
        Err(AskError::Unsent { node: of, .. } | AskError::Broken { node: of, .. }) => *of == node.id(),
        Ok(_) | Err(AskError::Nobody(_)) => false,
    };
    assert!(asked_it, "{asked:?}");
    gateway.shutdown().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_holds_no_secret_and_nothing_sealed() {
    let home = tempfile::tempdir().unwrap();
    let node = voter(&home.path().join("voter")).await;
    node.create_token(Role::Reader, None, None, vec![]).await.unwrap();
    let wanted = NewApiToken { scopes: [Scope::Read].into(), ..NewApiToken::default() };
    let (secret, token) = node.create_api_token(wanted).await.unwrap();
    let state = node.this().control.state();
    let view = Box::new(ClusterView::clone(&node.view().borrow()));
    let shown = frame::encode(&ViewFrame { view: Some(view), ready: true });
    let holds = |what: &[u8]| !what.is_empty() && shown.windows(what.len()).any(|window| window == what);
    assert!(holds(&state.roots[0]) && holds(node.id().to_string().as_bytes()) | holds(&node.id().0));
    let sealed = state.sealed_ca.values().map(|sealed| &sealed[..]);
    let keys = state.tokens.values().map(|token| &token.public_key[..]);
    let hashes = state.api_tokens.values().map(|token| &token.hash[..]);
    let told: Vec<&[u8]> =
        sealed.chain(keys).chain(hashes).chain([secret.as_bytes(), &token.hash[..8]]).collect();
    assert!(told.len() >= 7, "one of each at least");
    for secret in told {
        assert!(!holds(secret), "{secret:?} is shown to gateways");
    }
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_its_way_back_and_directories_are_not_mixed_up() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    let (id, dirs) = (gateway.id(), [home.path().join("gateway"), home.path().join("voter")]);
    gateway.shutdown().await;
    drop(gateway);
    let surroundings = Surroundings::real();
    let open = |dir: &Path| {
        let opened = DataDir::open(dir);
        async move { opened }
    };
    let dir = timeout(SOON, async {
        loop {
            match open(&dirs[0]).await {
                Ok(dir) => break dir,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let dir = dir.await.expect("the directory is free again");
    assert!(Gateway::is_meant(&dir, &surroundings, None).await.unwrap());
    drop(dir);

    // Neither seed nor token: it remembers where the others were.
    let again = NodeConfig { new_cluster: false, ..config(&dirs[0], None) };
    let gateway = Gateway::start(again, surroundings.clone(), Balance::RoundRobin).await.unwrap();
    assert_eq!(gateway.id(), id);
    ready(&gateway).await;
    gateway.submit(write("after the restart")).await.unwrap();
    gateway.shutdown().await;
    drop(gateway);

    let engine = Arc::new(MemoryEngine::default());
    let mistaken = Node::start(config(&dirs[0], Some(&node)), surroundings.clone(), engine).await;
    assert!(matches!(mistaken, Err(NodeError::Usage(why)) if why.contains("gateway")));
    node.shutdown().await;
    drop(node);
    let mistaken = Gateway::start(config(&dirs[1], None), surroundings, Balance::RoundRobin).await;
    assert!(matches!(mistaken, Err(NodeError::Usage(why)) if why.contains("join token for gateways")));
}

mod bounds;

/// Answers as it was told, each request in its turn.
#[derive(Default)]
struct Scripted(Mutex<Vec<Vec<Part>>>);

impl Handler for Arc<Scripted> {
    fn handle(&self, _: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let mut script = self.0.lock().unwrap();
        let parts = if script.is_empty() { Vec::new() } else { script.remove(0) };
        Box::pin(async move {
            // Read to its end: whoever drops a request half read tells the asker to stop sending it.
            while stream.recv.read_frame(MAX_MESSAGE).await.is_ok() {}
            for part in parts {
                stream.send.write_message(&part).await.unwrap();
                if part == Part::Data {
                    stream.send.write_frame(Bytes::from_static(b"row")).await.unwrap();
                }
            }
            // What is not said to be whole is cut.
            stream.send.finish().unwrap();
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    let ask = || async { gateway.ask(Errand::Query, &get("/x"), &Bytes::new()).await };
    assert!(matches!(ask().await, Err(AskError::Broken { .. })), "nobody answers gateways there yet");

    let head = |status| Part::Head(HttpResponse { status, headers: vec![] });
    let scripted = Arc::new(Scripted(Mutex::new(vec![
        vec![Part::Beat, head(200), Part::Beat, Part::Data, Part::Beat, Part::Data, Part::End],
        vec![head(200), Part::Data],
        vec![head(200)],
        vec![Part::Data, Part::End],
        vec![head(503), Part::End],
        vec![head(200), Part::Data, head(200)],
    ])));
    let answering = node.answer_gateways(Arc::new(scripted));
    let mut whole = ask().await.unwrap();
    assert_eq!(whole.next().await.unwrap(), Some(Piece::Data(Bytes::from_static(b"row"))));
    assert_eq!(whole.next().await.unwrap(), Some(Piece::Data(Bytes::from_static(b"row"))));
    assert_eq!(whole.next().await.unwrap(), None);
    assert_eq!(whole.next().await.unwrap(), None);
    let mut cut = ask().await.unwrap();
    assert!(cut.next().await.unwrap().is_some());
    assert!(matches!(cut.next().await, Err(AskError::Broken { .. })), "after its first byte");
    assert!(matches!(ask().await, Err(AskError::Broken { .. })), "before its first byte");
    assert!(matches!(ask().await, Err(AskError::Broken { .. })), "without a head");
    // There is nobody else: what it says is better than nothing.
    assert_eq!(ask().await.unwrap().head.status, 503);
    let mut twice = ask().await.unwrap();
    assert!(twice.next().await.unwrap().is_some());
    assert!(twice.next().await.is_err(), "a second head");
    assert_eq!(
        gateway.inner.asker.choice.running(),
        3,
        "answers that are not dropped yet: {whole:?} {cut:?} {twice:?}"
    );
    drop((whole, cut, twice));
    assert_eq!(gateway.inner.asker.choice.running(), 0);

    drop(answering);
    assert!(matches!(ask().await, Err(AskError::Broken { .. })), "the edge there has stopped");
    node.shutdown().await;
    let gone = timeout(SOON, async {
        while gateway
            .ask(Errand::Query, &get("/x"), &Bytes::new())
            .await
            .is_err_and(|error| error != AskError::Nobody("node with data"))
        {
            sleep(Duration::from_millis(10)).await;
        }
    });
    gone.await.expect("nobody is linked");
    assert!(!gateway.readiness().ready || gateway.is_current());
    gateway.shutdown().await;
}
