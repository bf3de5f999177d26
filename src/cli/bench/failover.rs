//! `skein bench failover`: SIGKILL for the writer while rows are written at every node, how long
//! until the next one is acknowledged, the killed node back, and again. In the end every
//! acknowledged row is looked for at every node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hyper::Method;
use rand::Rng;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure, processes::Nodes},
    node::ClusterStatus,
    types::{Epoch, NodeHealth, Role},
};

use super::{
    FailoverArgs,
    cluster::{Cluster, Edge},
    report::{FailoverReport, Setting, progress},
    spread::Spread,
    traffic::{DATABASE, TABLE, Traffic},
};

/// Longest wait for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(50);
/// Records that a node may be behind and still count as level: there is traffic.
const LEVEL: u64 = 50;
/// Calm before a kill, in milliseconds: not always at the same beat of the cluster's clocks.
const CALM_MS: std::ops::Range<u64> = 500..1000;

pub(super) async fn measure(
    args: &FailoverArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<FailoverReport, Failure> {
    let nodes = cluster.nodes()?;
    let count = usize::from(args.nodes);
    let mut traffic = Traffic::new(&args.ack);
    (0..count).for_each(|node| traffic.begin(node, edge(nodes, node)));
    let (mut failovers, mut levels) = (Vec::new(), Vec::new());
    for turn in 1..=args.kills {
        sleep(Duration::from_millis(rand::rng().random_range(CALM_MS))).await;
        let (writer, epoch) = writer(nodes, &traffic).await?;
        let name = nodes.name(writer).to_owned();
        traffic.end(writer);
        let killed = Instant::now();
        nodes.kill(writer).await?;
        let Some(first) = traffic.first_after(epoch, PATIENCE).await else {
            return Err(Failure::new(format!(
                "no write was acknowledged after the kill of {name}{}",
                logs(nodes)
            )));
        };
        let failover = first.saturating_duration_since(killed);
        let again = Instant::now();
        nodes.restart(writer).await?;
        traffic.begin(writer, edge(nodes, writer));
        until_level(nodes, count).await?;
        let level = again.elapsed();
        progress(&format!(
            "kill {turn} of {}: {name}; acknowledged again after {} ms; back and level after {} ms",
            args.kills,
            failover.as_millis(),
            level.as_millis()
        ));
        failovers.push(failover);
        levels.push(level);
    }
    sleep(Duration::from_millis(CALM_MS.start)).await;
    traffic.end_all();
    let acked = traffic.acked();
    progress(&format!("looking for {} acknowledged rows at every node", acked.len()));
    let mut missing_rows = BTreeMap::new();
    for node in 0..count {
        let found = found(&nodes.client(node)).await?;
        let missing = acked.difference(&found).count() as u64;
        missing_rows.insert(nodes.name(node).to_owned(), missing);
    }
    Ok(FailoverReport {
        bench: "failover",
        setting,
        ack: traffic.levels(),
        failovers_ms: failovers.iter().map(|time| time.as_secs_f64() * 1e3).collect(),
        failover: Spread::of(failovers),
        level_again: Spread::of(levels),
        acked_rows: acked.len() as u64,
        missing_rows,
        errors: traffic.errors(),
    })
}

fn edge(nodes: &Nodes, node: usize) -> Edge {
    Edge { name: nodes.name(node).to_owned(), authority: nodes.authority(node), token: None }
}

fn logs(nodes: &Nodes) -> String {
    format!("; logs are in {} until this command ends", nodes.home().display())
}

/// The writer and its epoch, once a write of that epoch has been acknowledged.
async fn writer(nodes: &Nodes, traffic: &Traffic) -> Result<(usize, Epoch), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = nodes.any_status().await
            && let Some(report) = status.nodes.iter().find(|node| node.is_writer)
            && let (Some(at), Some(epoch)) = (nodes.index_of(&report.name), status.epoch)
            && traffic.epoch() == Some(epoch)
        {
            return Ok((at, epoch));
        }
        sleep(LOOK).await;
    }
    Err(Failure::new(format!("no writer acknowledges{}", logs(nodes))))
}

async fn until_level(nodes: &Nodes, count: usize) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if nodes.any_status().await.is_some_and(|status| is_level(&status, count)) {
            return Ok(());
        }
        sleep(LOOK).await;
    }
    Err(Failure::new(format!("the nodes did not become level{}", logs(nodes))))
}

/// Everybody up, everybody a voter who should be, and nobody behind in log or engine.
fn is_level(status: &ClusterStatus, count: usize) -> bool {
    let commit = status.commit.map_or(0, |commit| commit.seq);
    status.writer.is_some()
        && status.leader.is_some()
        && status.nodes.len() == count
        && status.nodes.iter().all(|node| {
            node.state == NodeHealth::Up
                && (node.role == Role::Voter || count > 3)
                && node.lag_records.is_some_and(|lag| lag <= LEVEL)
                && node.durable.is_some_and(|durable| durable.seq + LEVEL >= commit)
        })
}

/// Serial numbers of the rows that a node finds, at linearizable consistency.
async fn found(client: &Client) -> Result<BTreeSet<u64>, Failure> {
    let ask = serde_json::json!({
        "db": DATABASE, "q": format!("select n from {TABLE}"), "format": "jsonl", "consistency": "linearizable",
    });
    let answer = client.send(Method::POST, "/api/v3/query_sql", ask.to_string()).await?.bytes().await?;
    let mut found = BTreeSet::new();
    for line in answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let row: serde_json::Value = serde_json::from_slice(line)
            .map_err(|e| Failure::new(format!("the node's answer is no JSON: {e}")))?;
        found.extend(row["n"].as_u64());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::types::{ClusterId, Lsn, NodeId};

    #[test]
    fn level_means_all_up_voting_and_not_behind() {
        let node = |n: u8| {
            let id = NodeId([n; 16]).to_string();
            json!({
                "id": id, "name": format!("n{n}"), "role": "voter", "wants": "voter", "state": "up",
                "durable": "2.90", "applied": "2.90", "lag_records": 0, "is_leader": false, "is_writer": n == 1,
            })
        };
        let me = NodeId([1; 16]).to_string();
        let good = json!({
            "cluster_id": ClusterId([9; 16]).to_string(), "cluster_name": "x", "node_id": me, "leader": me,
            "writer": me, "epoch": 2, "commit": Lsn::new(2, 100).to_string(),
            "nodes": [node(1), node(2), node(3)],
        });
        let level =
            |json: &serde_json::Value, count| is_level(&serde_json::from_value(json.clone()).unwrap(), count);
        assert!(level(&good, 3));
        assert!(!level(&good, 4));
        for (key, value) in [
            ("state", json!("down")),
            ("role", json!("reader")),
            ("lag_records", json!(51)),
            ("durable", json!("2.49")),
        ] {
            let mut bad = good.clone();
            bad["nodes"][1][key] = value;
            assert!(!level(&bad, 3), "{key}");
        }
        let mut bad = good.clone();
        bad["writer"] = json!(null);
        assert!(!level(&bad, 3));
    }
}
