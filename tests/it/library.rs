//! The library alone, without HTTP and SQL: three nodes in one process over real sockets and
//! disks, with the reference engine.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use skeinmesh::{
    engine::{MemoryEngine, Operation, StorageEngine},
    identity::{DataDir, JoinToken},
    node::{Consistency, Node, NodeConfig, ScrubConfig, Surroundings, Write},
    transport::Socket,
    types::{Role, TimingProfile},
};

pub struct Running {
    pub node: Node,
    pub engine: Arc<MemoryEngine>,
}

pub async fn start(dir: &Path, join: Option<JoinToken>, seeds: &[SocketAddr]) -> Running {
    start_at(dir, join, seeds, Surroundings::real()).await
}

pub async fn start_at(
    dir: &Path,
    join: Option<JoinToken>,
    seeds: &[SocketAddr],
    surroundings: Surroundings,
) -> Running {
    start_with(dir, join, seeds, surroundings, MemoryEngine::default()).await
}

pub async fn start_with(
    dir: &Path,
    join: Option<JoinToken>,
    seeds: &[SocketAddr],
    surroundings: Surroundings,
    engine: MemoryEngine,
) -> Running {
    let engine = Arc::new(engine);
    let config = NodeConfig {
        dir: open_when_free(dir).await,
        name: dir.file_name().unwrap().to_string_lossy().into_owned(),
        role: Role::Voter,
        ca: None,
        join,
        new_cluster: seeds.is_empty(),
        bootstrap_expect: None,
        profile: TimingProfile::Lan,
        socket: Socket::Bind("127.0.0.1:0".parse().unwrap()),
        advertise: Vec::new(),
        http: None,
        seeds: seeds.iter().map(ToString::to_string).collect(),
        mdns: None,
        segment_bytes: 1 << 20,
        keep_bytes: 1 << 20,
        scrub: ScrubConfig::default(),
    };
    let node = Node::start(config, surroundings, engine.clone()).await.unwrap();
    Running { node, engine }
}

async fn write(node: &Node, payload: &str) -> skeinmesh::node::Receipt {
    let write = Write {
        encoding: 9,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        ack: None,
        timeout: Duration::from_secs(10),
        key: None,
        request: None,
    };
    node.submit(write).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_write_anywhere_and_survive_the_writer() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let home = tempfile::tempdir().unwrap();
    let a = start(&home.path().join("a"), None, &[]).await;
    let token = a.node.founded().unwrap().token.clone();
    let seed = a.node.mesh_addr().unwrap();
    assert_eq!(write(&a.node, "first").await.at.seq, 2);

    let b = start(&home.path().join("b"), Some(token.clone()), &[seed]).await;
    let c = start(&home.path().join("c"), Some(token), &[seed]).await;
    let mut view = c.node.view();
    let voters = view.wait_for(|view| view.voters.len() == 1 && view.all_voters().len() == 3);
    tokio::time::timeout(Duration::from_secs(30), voters).await.expect("three voters").unwrap();

    let mut written = vec!["first".to_owned()];
    for (n, node) in [&a, &b, &c, &b].into_iter().enumerate() {
        let text = format!("from {n}");
        let receipt = write(&node.node, &text).await;
        assert_eq!(receipt.ack, skeinmesh::node::AckLevel::Quorum);
        node.node
            .read_point(Consistency::MinLsn(receipt.at), Duration::from_secs(5))
            .await
            .expect("read your own write");
        written.push(text);
    }

    // The writer stops; the others go on with everything that was acknowledged.
    let before = c.node.view().borrow().writer.unwrap();
    assert_eq!(before.node, a.node.id());
    let port = a.node.mesh_addr().unwrap();
    a.node.shutdown().await;
    drop(a);
    let mut tries = 0;
    while let Err(error) = std::net::UdpSocket::bind(port) {
        tries += 1;
        assert!(tries < 100, "a stopped node keeps its port: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let receipt = write(&b.node, "after").await;
    assert!(receipt.at.epoch > before.epoch);
    written.push("after".to_owned());
    for node in [&b, &c] {
        node.node.read_point(Consistency::Linearizable, Duration::from_secs(5)).await.unwrap();
        let held: Vec<String> = node
            .engine
            .contents()
            .into_values()
            .filter_map(|operation| match operation {
                Operation::Batch { payload, .. } => Some(String::from_utf8(payload.to_vec()).unwrap()),
                _ => None,
            })
            .collect();
        assert_eq!(held, written);
        assert_eq!(node.engine.applied().seq, receipt.at.seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_record_does_not_start_over() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a");
    let a = start(&dir, None, &[]).await;
    write(&a.node, "kept").await;
    a.node.shutdown().await;
    drop(a);
    std::fs::remove_file(dir.join("cluster.json")).unwrap();
    let engine = Arc::new(MemoryEngine::default());
    let config = NodeConfig {
        socket: Socket::Bind("127.0.0.1:0".parse().unwrap()),
        mdns: None,
        new_cluster: true,
        ..NodeConfig::new(open_when_free(&dir).await)
    };
    let error = Node::start(config, Surroundings::real(), engine).await.unwrap_err();
    assert!(error.to_string().contains("cluster.json"), "{error}");
    assert!(error.is_disk());
    assert!(dir.join("wal/promise").exists());
}

/// The lock goes with the last part of the node that stopped.
async fn open_when_free(dir: &Path) -> DataDir {
    for _ in 0..100 {
        match DataDir::open(dir) {
            Ok(dir) => return dir,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("the data directory is still locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_slept_for_sixty_days_comes_back() {
    const SLEPT_NS: i64 = 60 * 86_400 * 1_000_000_000;
    let home = tempfile::tempdir().unwrap();
    let dirs = ["a", "b", "c"].map(|name| home.path().join(name));
    let a = start(&dirs[0], None, &[]).await;
    let token = a.node.founded().unwrap().token.clone();
    let seed = a.node.mesh_addr().unwrap();
    let b = start(&dirs[1], Some(token.clone()), &[seed]).await;
    let c = start(&dirs[2], Some(token), &[seed]).await;
    let mut view = c.node.view();
    let voters = view.wait_for(|view| view.voters.len() == 1 && view.all_voters().len() == 3);
    tokio::time::timeout(Duration::from_secs(30), voters).await.expect("three voters").unwrap();
    // Every voter's own raft state has the CA key sealed to it by now, and so has its disk.
    write(&c.node, "before").await;
    let seeds: Vec<SocketAddr> = [&a, &b, &c].map(|n| n.node.mesh_addr().unwrap()).to_vec();
    for node in [a, b, c] {
        node.node.shutdown().await;
    }

    let later = || {
        let now = Surroundings::real();
        let clock = now.clock.clone();
        Surroundings { clock: Arc::new(move || clock() + SLEPT_NS), ..now }
    };
    let mut awake = Vec::new();
    for (dir, address) in dirs.iter().zip(&seeds) {
        until_free(*address).await;
        let engine = Arc::new(MemoryEngine::default());
        let config = NodeConfig {
            socket: Socket::Bind(*address),
            mdns: None,
            ..NodeConfig::new(open_when_free(dir).await)
        };
        let node = Node::start(config, later(), engine.clone()).await.unwrap();
        awake.push(Running { node, engine });
    }
    // Thirty-day certificates expired a month ago: each voter signs itself a new one.
    let late = Write::new(9, "after", Duration::from_secs(30));
    awake[1].node.submit(late).await.unwrap();
    for node in &awake {
        node.node.read_point(Consistency::Linearizable, Duration::from_secs(10)).await.unwrap();
        assert_eq!(
            node.engine.contents().values().filter(|o| matches!(o, Operation::Batch { .. })).count(),
            2
        );
        assert!(node.node.own_status().cert_days_left >= 29);
    }
}

/// So does the port.
async fn until_free(address: SocketAddr) {
    for _ in 0..250 {
        if std::net::UdpSocket::bind(address).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{address} is still in use");
}
