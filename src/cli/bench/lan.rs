//! From nothing to three voters on a LAN: network namespaces on one bridge, and in each what somebody
//! would type there. Nobody is told an address; mDNS finds the first node.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cli::{Client, Failure, Target, processes::token},
    node::ClusterStatus,
    types::Role,
};

use super::{
    net::{self, Machines},
    report::progress,
};

/// Longest wait for three voters.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(50);
/// Machines on the LAN.
const NODES: usize = 3;

/// What it took.
#[derive(Debug, Serialize)]
pub(super) struct Lan {
    /// Commands that somebody types: one per machine.
    pub(super) commands: usize,
    /// Strings that are copied from one to the others.
    pub(super) copied: usize,
    /// From the first command until the first node was ready. It looks for a cluster first.
    pub(super) first_s: f64,
    /// Until the third one was.
    pub(super) ready_s: f64,
    /// Until all three vote and one of them writes.
    pub(super) voters_s: f64,
}

impl Lan {
    pub(super) fn text(&self) -> String {
        format!(
            "three nodes on a LAN by mDNS: {} commands, {} string copied, no address; the first was ready after {:.2} s, \
             all three after {:.2} s, three voters after {:.2} s\n",
            self.commands, self.copied, self.first_s, self.ready_s, self.voters_s
        )
    }
}

/// Why it cannot be done here, if so.
pub(super) fn skipped(unwanted: bool) -> Option<String> {
    if unwanted {
        Some("--no-lan".to_owned())
    } else if cfg!(not(feature = "mdns")) {
        Some("this program was built without mdns".to_owned())
    } else {
        net::impossible()
    }
}

pub(super) async fn measure() -> Result<Lan, Failure> {
    progress("three nodes in network namespaces, from nothing");
    let machines = Machines::make(NODES, "lan")?;
    let mut children = Vec::new();
    let began = Instant::now();
    children.push(machines.start(0, &[], &[], None).await?);
    let first_s = began.elapsed().as_secs_f64();
    // What a terminal shows by itself; a pipe is not told.
    let client = Client::new(Target::Socket(machines.socket(0)), None);
    let token = token(&client, Role::Voter, NODES - 1).await?;
    for node in 1..NODES {
        children.push(machines.start(node, &[], &[], Some(&token)).await?);
    }
    let ready_s = began.elapsed().as_secs_f64();
    let voters = async {
        while !client.get("/api/v1/cluster").await.is_ok_and(|status| is_formed(&status)) {
            sleep(LOOK).await;
        }
    };
    if timeout(PATIENCE, voters).await.is_err() {
        let log = std::fs::read_to_string(machines.log(NODES - 1)).unwrap_or_default();
        return Err(Failure::new(format!("the three did not become voters; the last one says:\n{log}")));
    }
    let voters_s = began.elapsed().as_secs_f64();
    for child in &mut children {
        child.kill().await?;
    }
    Ok(Lan { commands: NODES, copied: 1, first_s, ready_s, voters_s })
}

/// True when all vote and one of them writes.
pub(super) fn is_formed(status: &ClusterStatus) -> bool {
    let voters = status.nodes.iter().filter(|node| node.role == Role::Voter).count();
    voters == NODES && status.writer.is_some()
}
