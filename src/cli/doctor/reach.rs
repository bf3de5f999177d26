//! Whether members that do not answer can be reached from here: by UDP, as the mesh does, and by TCP, to tell
//! a machine that is off from a firewall that lets no UDP through.

use std::{net::SocketAddr, time::Duration};

use futures::future::join_all;
use tokio::net::TcpStream;

use super::{Finding, cluster::name};
use crate::{
    cli::{
        Failure,
        stranger::{self, Answers},
    },
    node::{ClusterStatus, NodeReport},
    types::NodeHealth,
};

/// Longest wait for a TCP connection.
const CONNECT: Duration = Duration::from_secs(2);

/// One finding for each member that is down; one for all if none is.
pub(super) async fn look(status: &ClusterStatus) -> Result<Vec<Finding>, Failure> {
    let parse = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<SocketAddr>().ok());
    let down: Vec<(&NodeReport, SocketAddr)> = status
        .nodes
        .iter()
        .filter(|node| node.state == NodeHealth::Down)
        .filter_map(|node| Some((node, parse(&node.mesh_addr)?)))
        .collect();
    if down.is_empty() {
        return Ok(vec![Finding::ok("reach", "every member answers the node that was asked")]);
    }
    let addresses: Vec<SocketAddr> = down.iter().map(|(_, mesh)| *mesh).collect();
    let udp = stranger::dial_all(&addresses).await?;
    let tcp = join_all(down.iter().map(|(node, _)| connects(parse(&node.http_addr)))).await;
    Ok(down.iter().zip(udp).zip(tcp).map(|(((node, mesh), udp), tcp)| judge(node, *mesh, udp, tcp)).collect())
}

/// Whether somebody takes a TCP connection; `None` if that says nothing, for the address is only good on its
/// own machine.
async fn connects(http: Option<SocketAddr>) -> Option<bool> {
    let http = http.filter(|http| !http.ip().is_unspecified() && !http.ip().is_loopback())?;
    Some(matches!(tokio::time::timeout(CONNECT, TcpStream::connect(http)).await, Ok(Ok(_))))
}

fn judge(node: &NodeReport, mesh: SocketAddr, udp: Result<Answers, String>, tcp: Option<bool>) -> Finding {
    const CHECK: &str = "reach";
    let name = name(node);
    let silence = node.silent_ms.map_or(String::new(), |ms| format!(", last heard {} s ago", ms / 1000));
    match (udp, tcp) {
        (Ok(there), _) if there.node == node.id => Finding::warn(
            CHECK,
            format!(
                "{name} answers at {mesh} by UDP within {} ms, but not the node that was asked",
                there.took.as_millis()
            ),
            "Its process runs and can be reached from this machine.",
            format!(
                "ask again in a few seconds; if it stays so, its log says why, or a firewall between the two nodes \
                 lets no UDP back from {name}"
            ),
        ),
        (Ok(there), _) => {
            let is = if there.member { "a member of a cluster" } else { "of no cluster yet" };
            Finding::fail(
                CHECK,
                format!("at {mesh}, where {name} should be, {} answers, {is}", there.node.short()),
                "The address has been given to another node, or the data directory was lost.",
                format!(
                    "start {name} again: it tells the cluster its new address by itself; if it is gone, skein node \
                     remove {name}"
                ),
            )
        }
        (Err(why), Some(true)) => Finding::fail(
            CHECK,
            format!("{name}: no answer by UDP at {mesh} ({why}), but its HTTP port takes connections"),
            "UDP to its mesh port is blocked.",
            format!("let UDP through to {mesh}, both ways"),
        ),
        (Err(why), _) => Finding::fail(
            CHECK,
            format!("{name} does not answer at {mesh} ({why}){silence}"),
            "Its process or machine is down, or UDP to it is blocked.",
            format!("start {name}; if it runs, let UDP through to {mesh}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::doctor::Level,
        types::{NodeId, Role},
    };

    #[test]
    fn a_firewall_is_told_from_a_dead_machine() {
        let node = NodeReport {
            id: NodeId([1; 16]),
            name: "b".into(),
            role: Role::Voter,
            wants: Role::Voter,
            state: NodeHealth::Down,
            mesh_addr: None,
            http_addr: None,
            version: None,
            durable: None,
            applied: None,
            lag_records: None,
            lag_ms: None,
            rtt_ms: None,
            cert_days_left: None,
            snapshot: None,
            scrubbed: None,
            follows: None,
            view_age_ms: None,
            is_leader: false,
            is_writer: false,
            silent_ms: Some(12_300),
            clock_skew_ms: None,
            points: None,
            queries: None,
            links: vec![],
        };
        let mesh = "192.0.2.1:7400".parse().unwrap();
        let of = |udp: Result<Answers, String>, tcp| judge(&node, mesh, udp, tcp);
        let answer = |n| Ok(Answers { node: NodeId([n; 16]), member: true, took: Duration::from_millis(3) });
        let blocked = of(Err("timed out".into()), Some(true));
        assert!(blocked.level == Level::Fail && blocked.means.starts_with("UDP"), "{blocked:?}");
        for tcp in [None, Some(false)] {
            let dead = of(Err("timed out".into()), tcp);
            assert!(dead.level == Level::Fail && dead.says.contains("last heard 12 s ago"), "{dead:?}");
        }
        assert_eq!(of(answer(1), None).level, Level::Warn);
        let other = of(answer(2), None);
        assert!(other.level == Level::Fail && other.says.contains("a member of a cluster"), "{other:?}");
    }
}
