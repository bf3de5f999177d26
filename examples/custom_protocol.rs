//! A protocol of one's own between the members of a cluster: no port, no certificate and no list of peers
//! of its own. Here each node tells what it measures itself; any other asks.
//!
//!     cargo run --no-default-features --example custom_protocol
use std::{error::Error, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use skeinmesh::{
    engine::MemoryEngine,
    identity::DataDir,
    node::{Node, NodeConfig, Surroundings},
    transport::{Peer, Stream, StreamError},
};

const PROTOCOL: &str = "example.gauge/1";
/// Longest message: whatever a peer announces, no more is read.
const LIMIT: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    gauge: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reading {
    gauge: String,
    value: f64,
}

async fn answer(value: f64, peer: Peer, mut stream: Stream) -> Result<(), StreamError> {
    // As many questions as the peer likes on one stream.
    loop {
        let ask: Ask = match stream.recv.read_message(LIMIT).await {
            Err(StreamError::Finished) => return Ok(()),
            ask => ask?,
        };
        println!("{} asks for {}", peer.node(), ask.gauge);
        stream.send.write_message(&Reading { gauge: ask.gauge, value }).await?;
    }
}

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let mut nodes: Vec<Node> = Vec::new();
    for name in ["a", "b"] {
        let config = NodeConfig::on_loopback(DataDir::open(&home.path().join(name))?, nodes.first())?;
        nodes.push(Node::start(config, Surroundings::real(), Arc::new(MemoryEngine::new())).await?);
    }
    let (a, b) = (&nodes[0], &nodes[1]);

    // Nobody serves it yet: the first read says so.
    let mut early = b.open_protocol(a.id(), PROTOCOL).await?;
    let refused = early.recv.read_message::<Reading>(LIMIT).await;
    assert!(matches!(refused, Err(StreamError::NotServed)), "{refused:?}");

    let handler = |peer: Peer, stream: Stream| -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = answer(21.5, peer, stream).await {
                eprintln!("a stream ended: {error}");
            }
        })
    };
    let served = a.serve_protocol(PROTOCOL, Arc::new(handler))?;
    let mut stream = b.open_protocol(a.id(), PROTOCOL).await?;
    for gauge in ["boiler", "attic"] {
        stream.send.write_message(&Ask { gauge: gauge.to_owned() }).await?;
        let reading =
            tokio::time::timeout(Duration::from_secs(10), stream.recv.read_message::<Reading>(LIMIT));
        println!("{:?}", reading.await??);
    }
    stream.send.finish()?;
    drop(served);
    for node in &nodes {
        node.shutdown().await;
    }
    Ok(())
}
