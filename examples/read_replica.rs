//! A service that reads where it runs: one voter takes the writes, and this process holds a full copy as
//! a reader, which never votes and never delays a write. It reads its own writes by their position.
//!
//!     cargo run --no-default-features --example read_replica
use std::{error::Error, sync::Arc, time::Duration};

use skeinmesh::{
    engine::MemoryEngine,
    identity::DataDir,
    node::{Consistency, Node, NodeConfig, Surroundings, Write},
    types::Role,
};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let config = NodeConfig::on_loopback(DataDir::open(&home.path().join("voter"))?, None)?;
    let voter = Node::start(config, Surroundings::real(), Arc::new(MemoryEngine::new())).await?;
    voter.submit(Write::new(1, "before there was a replica", PATIENCE)).await?;

    // Its own token: one that was made for voters lets no reader in.
    let token = voter.create_token(Role::Reader, Some(PATIENCE), Some(1), vec![]).await?;
    let mut config = NodeConfig::on_loopback(DataDir::open(&home.path().join("reader"))?, Some(&voter))?;
    (config.role, config.join) = (Role::Reader, Some(token.parse()?));
    let engine = Arc::new(MemoryEngine::new());
    let reader = Node::start(config, Surroundings::real(), engine.clone()).await?;

    for n in 0..3 {
        // Written here or at the voter, it goes to the writer; the receipt says where it stands.
        let receipt = reader.submit(Write::new(1, format!("measurement {n}"), PATIENCE)).await?;
        let read = reader.read_point(Consistency::MinLsn(receipt.at), PATIENCE).await?;
        println!("written at {}, read here at {}", receipt.at, read.applied);
    }
    reader.read_point(Consistency::Linearizable, PATIENCE).await?;
    let held = engine.contents();
    println!("the replica holds {} records", held.len());
    assert_eq!(held.len(), 4, "what was there before came along");
    let view = voter.view().borrow().clone();
    assert!(!view.is_voter(reader.id()), "a reader does not vote");

    reader.shutdown().await;
    voter.submit(Write::new(1, "without the replica", PATIENCE)).await?;
    println!("writes go on without it");
    voter.shutdown().await;
    Ok(())
}
