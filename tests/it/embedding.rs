//! What an embedder builds on: the examples run, their engine keeps the contract, and a protocol of one's
//! own is for members only and has its limits.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use skeinmesh::{
    disk::Disk,
    engine::{EngineError, MemoryEngine, Work},
    identity::DataDir,
    node::{Node, NodeConfig, ProtocolError, Surroundings},
    testing::engine_suite::{self, Ground, Subject},
    transport::{OpenError, Peer, Stream, StreamError},
    types::Role,
};

#[path = "../../examples/custom_protocol.rs"]
#[allow(dead_code, unreachable_pub)]
mod custom_protocol;
#[path = "../../examples/embed_kv.rs"]
#[allow(dead_code, unreachable_pub)]
mod embed_kv;
#[path = "../../examples/read_replica.rs"]
#[allow(dead_code, unreachable_pub)]
mod read_replica;

const PATIENCE: Duration = Duration::from_secs(60);

/// Each is a program of its own and runs as one; here without another link of everything.
#[test]
fn the_example_with_its_own_engine_runs() {
    embed_kv::main().unwrap();
}

#[test]
fn the_example_of_a_read_replica_runs() {
    read_replica::main().unwrap();
}

#[test]
fn the_example_of_a_protocol_runs() {
    custom_protocol::main().unwrap();
}

struct KvSubject;

impl Subject for KvSubject {
    type Engine = embed_kv::Kv;

    fn open(&self, disk: Arc<dyn Disk>, dir: std::path::PathBuf) -> Work<Arc<embed_kv::Kv>> {
        Box::pin(embed_kv::Kv::open(disk, dir))
    }

    fn batch(&self, _database: &str, point: u64, _time_ns: i64) -> (u8, Bytes) {
        (1, Bytes::from(format!("{point}=held")))
    }

    fn held<'a>(
        &'a self,
        engine: &'a embed_kv::Kv,
        _database: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u64>, EngineError>> {
        let held =
            (1..=1_000).filter(|point: &u64| engine.get(&point.to_string()).as_deref() == Some("held"));
        Box::pin(std::future::ready(Ok(held.collect())))
    }

    fn has_databases(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn the_engine_of_the_example_keeps_the_contract() {
    let report = engine_suite::run(&KvSubject, Ground::Simulated).await;
    assert!(report.failed.is_empty(), "{report}");
    assert!(report.passed.len() >= 20, "{report}");
}

async fn start(dir: &Path, founder: Option<&Node>) -> Node {
    let config = NodeConfig::on_loopback(DataDir::open(dir).unwrap(), founder).unwrap();
    Node::start(config, Surroundings::real(), Arc::new(MemoryEngine::new())).await.unwrap()
}

/// Opens a stream once there is a link.
async fn open(from: &Node, to: &Node, name: &str) -> Stream {
    let opened = async {
        loop {
            match from.open_protocol(to.id(), name).await {
                Ok(stream) => return stream,
                Err(ProtocolError::Open(OpenError::NotLinked(_))) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.expect("a link")
}

fn echo(_: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        while let Ok(frame) = stream.recv.read_frame(1000).await {
            if stream.send.write_frame(frame).await.is_err() {
                return;
            }
        }
    })
}

async fn said(stream: &mut Stream) -> Result<Bytes, StreamError> {
    tokio::time::timeout(PATIENCE, stream.recv.read_frame(1000)).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_is_served_to_members_by_name_and_ends_with_its_server() {
    let home = tempfile::tempdir().unwrap();
    let a = start(&home.path().join("a"), None).await;
    let b = start(&home.path().join("b"), Some(&a)).await;
    let served = a.serve_protocol("echo/1", Arc::new(echo)).unwrap();
    assert!(matches!(a.serve_protocol("echo/1", Arc::new(echo)), Err(ProtocolError::Served(_))));
    assert!(matches!(a.serve_protocol("Echo", Arc::new(echo)), Err(ProtocolError::Name(_))));

    let mut stream = open(&b, &a, "echo/1").await;
    stream.send.write_frame(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(&said(&mut stream).await.unwrap()[..], b"hello");
    // Beyond the handler's limit nothing is read, and nothing else of the link is touched.
    stream.send.write_frame(Bytes::from(vec![0; 1001])).await.unwrap();
    assert!(said(&mut stream).await.is_err());
    let mut other = open(&b, &a, "echo/2").await;
    assert_eq!(said(&mut other).await, Err(StreamError::NotServed));
    let mut own = a.open_protocol(a.id(), "echo/1").await;
    assert!(matches!(own, Err(ProtocolError::Open(OpenError::NotLinked(_)))), "{own:?}");

    drop(served);
    own = Ok(open(&b, &a, "echo/1").await);
    assert_eq!(said(&mut own.unwrap()).await, Err(StreamError::NotServed));
    b.shutdown().await;
    a.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_protocols_leave_room_for_the_cluster_and_end_with_membership() {
    let home = tempfile::tempdir().unwrap();
    let a = start(&home.path().join("a"), None).await;
    let token = a.create_token(Role::Reader, None, None, vec![]).await.unwrap();
    let mut config =
        NodeConfig::on_loopback(DataDir::open(&home.path().join("r")).unwrap(), Some(&a)).unwrap();
    (config.role, config.join) = (Role::Reader, Some(token.parse().unwrap()));
    let reader = Node::start(config, Surroundings::real(), Arc::new(MemoryEngine::new())).await.unwrap();
    let _served = a.serve_protocol("echo/1", Arc::new(echo)).unwrap();

    // As many as there may be, and each is served; the next is refused, and writes still go through.
    let mut streams = Vec::new();
    for n in 0..256_u32 {
        let mut stream = open(&reader, &a, "echo/1").await;
        stream.send.write_frame(Bytes::copy_from_slice(&n.to_be_bytes())).await.unwrap();
        assert_eq!(said(&mut stream).await.unwrap()[..], n.to_be_bytes());
        streams.push(stream);
    }
    // Whether its refusal comes before it is named or behind, it opens, and its reader hears of it.
    for _ in 0..500 {
        let mut more = open(&reader, &a, "echo/1").await;
        assert_eq!(said(&mut more).await, Err(StreamError::NotServed));
    }
    reader.submit(skeinmesh::node::Write::new(1, "room", PATIENCE)).await.unwrap();
    streams.pop();
    let again = async {
        loop {
            let mut stream = open(&reader, &a, "echo/1").await;
            let _ = stream.send.write_frame(Bytes::from_static(b"again")).await;
            if said(&mut stream).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("a place that was given up is free");

    // Who is removed is not served any more, on the streams it has or on new ones.
    a.remove_node(reader.id()).await.unwrap();
    let ended = async {
        let mut stream = streams.pop().unwrap();
        while stream.send.write_frame(Bytes::from_static(b"still?")).await.is_ok()
            && said(&mut stream).await.is_ok()
        {}
        while reader.open_protocol(a.id(), "echo/1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("a removed member is cut off");
    a.shutdown().await;
}
