//! One write after another with so many voters, and what the leader sends while there is nothing to write.

use std::{collections::BTreeMap, time::Duration};

use hyper::Method;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure},
    protocol::frame::Lane,
};

use super::{
    super::{
        LatencyArgs,
        bodies::{Bodies, Format, Stamps},
        cluster::Cluster,
        latency,
        load::now_ns,
    },
    GrowthArgs,
    figures::{Idle, Quorum},
};

/// After the last write, until followers have acknowledged and confirmed what there is.
const SETTLED: Duration = Duration::from_secs(2);
/// What is read: frames by lane, as they are handed to QUIC. Neither its own packets and acknowledgements nor
/// the heads of UDP and IP are in it.
const SENT: &str = "skein_mesh_sent_bytes_total{lane=\"";

/// A number of voters that a cluster can have: of four members three vote.
pub(super) fn count(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ (1 | 2 | 3 | 5)) => Ok(count),
        _ => Err("1, 2, 3 or 5".to_owned()),
    }
}

pub(super) async fn measure(
    args: &GrowthArgs,
    cluster: &mut Cluster,
    voters: u16,
) -> Result<Quorum, Failure> {
    let edge = cluster.places().await?.writer;
    let single = LatencyArgs { cluster: args.cluster(voters, "quorum"), writes: args.writes };
    let bodies = Bodies::new(Format::LineProtocol, 1, Stamps::new(1, now_ns()), &mut rand::rng());
    let single = latency::at(&single, edge, "writer", bodies).await?;
    let idle = match voters {
        1 => None,
        _ => Some(idle(args, cluster, voters).await?),
    };
    Ok(Quorum { voters, write: single.write, ratio: None, errors: single.errors, idle })
}

async fn idle(args: &GrowthArgs, cluster: &mut Cluster, voters: u16) -> Result<Idle, Failure> {
    sleep(SETTLED).await;
    let nodes = cluster.nodes()?;
    let status = nodes.any_status().await.ok_or_else(|| Failure::new("no node answers"))?;
    let leader = status.nodes.iter().find(|node| node.is_leader);
    let leader = leader.and_then(|leader| nodes.index_of(&leader.name));
    let leader = nodes.client(leader.ok_or_else(|| Failure::new("the cluster has no leader"))?);
    // The question above made nodes ask each other.
    sleep(SETTLED).await;
    let (before, began) = (sent(&leader).await?, Instant::now());
    sleep(Duration::from_secs(args.idle)).await;
    let (after, seconds) = (sent(&leader).await?, began.elapsed().as_secs_f64());
    let each = |(lane, bytes): (&String, &u64)| {
        let since = bytes.saturating_sub(before.get(lane).copied().unwrap_or(0));
        (lane.clone(), since as f64 / seconds / f64::from(voters - 1))
    };
    let bytes_per_s: BTreeMap<String, f64> = after.iter().map(each).collect();
    let consensus = bytes_per_s.get(Lane::Consensus.as_str()).copied().unwrap_or_default();
    Ok(Idle {
        seconds,
        consensus_bytes_per_s: consensus,
        all_bytes_per_s: bytes_per_s.values().sum(),
        bytes_per_s,
    })
}

/// Bytes of frames that a node has sent so far, by lane. To read that makes it send nothing to others.
async fn sent(node: &Client) -> Result<BTreeMap<String, u64>, Failure> {
    let answer = node.send(Method::GET, "/metrics", "").await?.bytes().await?;
    let found = lanes(&String::from_utf8_lossy(&answer));
    if found.is_empty() { Err(Failure::new("the node does not say what it sends")) } else { Ok(found) }
}

fn lanes(metrics: &str) -> BTreeMap<String, u64> {
    let lane = |line: &str| {
        let (lane, bytes) = line.strip_prefix(SENT)?.split_once("\"} ")?;
        Some((lane.to_owned(), bytes.parse().ok()?))
    };
    metrics.lines().filter_map(lane).collect()
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Registry;

    use super::*;

    #[test]
    fn bytes_are_read_as_nodes_tell_them() {
        let registry = Registry::new();
        for (lane, bytes) in [(Lane::Consensus, 1234), (Lane::CatchUp, 0)] {
            let labels = [("lane", lane.as_str())];
            registry.read_counter("skein_mesh_sent_bytes_total", "Bytes.", &labels, move || bytes);
        }
        let told = lanes(&registry.render());
        assert_eq!(told, BTreeMap::from([("catch-up".to_owned(), 0), ("consensus".to_owned(), 1234)]));
    }

    #[test]
    fn no_cluster_has_four_voters() {
        assert_eq!(["1", "2", "3", "5"].map(count), [Ok(1), Ok(2), Ok(3), Ok(5)]);
        assert!(["0", "4", "6", "x"].map(count).iter().all(Result::is_err));
    }
}
