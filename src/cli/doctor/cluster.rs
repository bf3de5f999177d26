//! What the status of the cluster shows to be wrong. Pure: status in, findings out.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use crate::{
    node::{ClusterStatus, NodeReport},
    types::{NodeHealth, NodeId, Role},
};

/// A certificate is renewed at half of its 30 days; below this, renewal does not work.
const CERT_DAYS: i64 = 10;
/// Clocks further apart are worth a word.
const SKEW_MS: i64 = 500;
/// Clocks further apart break things: tokens and certificates begin and end by them.
const SKEW_BAD_MS: i64 = 60_000;
/// Data older than that is behind.
const LAG_MS: u64 = 10_000;
/// Readiness ends there.
const LAG_RECORDS: u64 = 10_000;

pub(super) fn judge(status: &ClusterStatus) -> Vec<Finding> {
    let mut found = vec![quorum(status), writer(status)];
    found.push(links(status));
    found.push(clocks(status));
    found.push(certificates(status));
    found.push(versions(status));
    found.push(lag(status));
    found.extend(warnings(status));
    found
}

pub(super) fn name(node: &NodeReport) -> &str {
    if node.name.is_empty() { "(no name)" } else { &node.name }
}

fn is_up(node: &&NodeReport) -> bool {
    node.state != NodeHealth::Down
}

fn names<'a>(nodes: impl Iterator<Item = &'a NodeReport>) -> String {
    nodes.map(name).collect::<Vec<_>>().join(", ")
}

/// Whether writes go on, and how many more may fail.
fn quorum(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "quorum";
    let voters = || status.nodes.iter().filter(|node| node.role == Role::Voter);
    let (all, up) = (voters().count(), voters().filter(is_up).count());
    let need = all / 2 + 1;
    let down = names(voters().filter(|node| !is_up(node)));
    let says = format!("{up} of {all} voters answer");
    match up.checked_sub(need) {
        None => Finding::fail(
            CHECK,
            format!("{says}, {need} are needed; down: {down}"),
            "Nobody can write. Nothing that was acknowledged is lost.",
            format!("start {down} again; if they are gone for good: skein recover"),
        ),
        Some(0) if all == 1 => Finding::warn(
            CHECK,
            "one voter",
            "The data has no second copy, and losing the node stops everything.",
            "add two nodes: skein token create --uses 2",
        ),
        Some(0) if up == all => Finding::warn(
            CHECK,
            format!("{says}; none may fail"),
            "Losing either of two voters stops writes.",
            "add a third node: skein token create",
        ),
        Some(margin) if up < all => Finding::warn(
            CHECK,
            format!("{says}; {margin} more may fail; down: {down}"),
            "Writes go on with those that are left.",
            format!("start {down} again, or take it out: skein node remove {down}"),
        ),
        Some(margin) => Finding::ok(CHECK, format!("{says}; {margin} may fail without stopping writes")),
    }
}

fn writer(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "writer";
    let named = status.nodes.iter().find(|node| node.is_writer);
    match (named.filter(is_up), status.leader) {
        (Some(writer), Some(_)) => Finding::ok(
            CHECK,
            format!("{} writes in epoch {}", name(writer), status.epoch.unwrap_or_default()),
        ),
        (_, None) => Finding::fail(
            CHECK,
            "there is no raft leader",
            "Nobody can name a writer; writes wait and then fail.",
            "see quorum and links: a majority of voters must reach each other",
        ),
        (None, Some(_)) => Finding::fail(
            CHECK,
            "no writer answers",
            "Writes wait at the nodes. Naming another one takes about a second.",
            "ask again; if it stays so, the log of the leader says why",
        ),
    }
}

/// Members that are both up and have no connection: UDP between them.
fn links(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "links";
    let up: Vec<&NodeReport> = status.nodes.iter().filter(is_up).collect();
    let linked: BTreeSet<(NodeId, NodeId)> =
        up.iter().flat_map(|node| node.links.iter().map(|link| (node.id, link.to))).collect();
    // A member of an older version tells of no links: nothing is known then.
    let tells = |node: &NodeReport| !node.links.is_empty();
    let mut apart = Vec::new();
    let mut pairs = 0;
    for (at, a) in up.iter().enumerate() {
        for b in up.iter().skip(at + 1) {
            pairs += 1;
            if (tells(a) || tells(b)) && !linked.contains(&(a.id, b.id)) && !linked.contains(&(b.id, a.id)) {
                apart.push(format!("{} - {}", name(a), name(b)));
            }
        }
    }
    if apart.is_empty() {
        return Finding::ok(CHECK, format!("all {pairs} pairs of nodes that are up have a link"));
    }
    Finding::fail(
        CHECK,
        format!("no link between {}", apart.join(", ")),
        "Both are up. Most likely UDP between them is blocked one way or both; the cluster may flap.",
        "let UDP through to the mesh port of both, and check the addresses in `skein node list`",
    )
}

fn clocks(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "clocks";
    let skews: Vec<(&NodeReport, i64)> =
        status.nodes.iter().filter_map(|node| Some((node, node.clock_skew_ms?))).collect();
    let Some((worst, skew)) = skews.iter().max_by_key(|(_, skew)| skew.abs()) else {
        return Finding::skip(CHECK, "no other node answers, so there is nothing to compare with");
    };
    let seconds = *skew as f64 / 1e3;
    let says = format!("the clock of {} is {seconds:+.1} s from this node's", name(worst));
    let means =
        "Points without a time, tokens and certificates go by these clocks. No order and no lease does.";
    let todo = "run an NTP client on every node (chrony, systemd-timesyncd)";
    if skew.abs() <= SKEW_MS {
        Finding::ok(CHECK, format!("at most {} ms apart", skew.abs()))
    } else if skew.abs() <= SKEW_BAD_MS {
        Finding::warn(CHECK, says, means, todo)
    } else {
        Finding::fail(CHECK, says, means, todo)
    }
}

fn certificates(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "certificates";
    let days: Vec<(&NodeReport, i64)> =
        status.nodes.iter().filter_map(|node| Some((node, node.cert_days_left?))).collect();
    let Some((first, left)) = days.iter().min_by_key(|(_, days)| *days) else {
        return Finding::skip(CHECK, "no node told of its certificate");
    };
    let says = format!("the one of {} has {left} days left", name(first));
    let means = "It is renewed at half of its 30 days. Renewal has been failing for a while.";
    let todo = "the log of that node says why (\"renew\"); it needs a link to a voter and a raft leader";
    if *left >= CERT_DAYS {
        Finding::ok(CHECK, format!("the first to end has {left} days left"))
    } else if *left > 0 {
        Finding::warn(CHECK, says, means, todo)
    } else {
        Finding::fail(CHECK, says, means, todo)
    }
}

fn versions(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "versions";
    let mut by_version: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &status.nodes {
        by_version.entry(node.version.as_deref().unwrap_or("unknown")).or_default().push(name(node));
    }
    let listed: Vec<String> =
        by_version.iter().map(|(version, nodes)| format!("{version}: {}", nodes.join(", "))).collect();
    match by_version.len() {
        0 | 1 if status.upgrade.to_finalise() => Finding::warn(
            CHECK,
            listed.join(""),
            "Every member runs it, and one could still go back to the version before.",
            "when none shall: skein finalise",
        ),
        0 | 1 => Finding::ok(CHECK, listed.join("")),
        _ => Finding::warn(
            CHECK,
            listed.join("; "),
            "Right while an upgrade is under way, not for long.",
            "bring the older nodes to the newest version, one after the other",
        ),
    }
}

fn lag(status: &ClusterStatus) -> Finding {
    const CHECK: &str = "lag";
    let behind = |node: &&NodeReport| {
        node.lag_ms.is_some_and(|ms| ms > LAG_MS)
            || node.lag_records.is_some_and(|records| records > LAG_RECORDS)
    };
    let slow: Vec<String> = status
        .nodes
        .iter()
        .filter(is_up)
        .filter(behind)
        .map(|node| format!("{} by {} records", name(node), node.lag_records.unwrap_or_default()))
        .collect();
    if slow.is_empty() {
        return Finding::ok(CHECK, "every node that answers has what is committed, or nearly");
    }
    Finding::warn(
        CHECK,
        format!("behind: {}", slow.join(", ")),
        "Local reads there are old, and a voter that is behind cannot take over.",
        "if it does not catch up: its disk (run skein doctor there) or the network to it is too slow",
    )
}

/// What the node warns of and nothing above has said.
fn warnings(status: &ClusterStatus) -> Vec<Finding> {
    let said = |text: &str| {
        text.starts_with("One voter")
            || text.starts_with("Two voters")
            || text.contains("voters do not answer")
            || text.starts_with("The certificate of")
    };
    let untold = status.warnings.iter().filter(|text| !said(text));
    untold.map(|text| Finding::warn("warning", text.clone(), "", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::doctor::Level,
        node::LinkReport,
        types::{ClusterId, Lsn},
    };

    fn node(n: u8, linked: &[u8]) -> NodeReport {
        NodeReport {
            id: NodeId([n; 16]),
            name: format!("n{n}"),
            role: Role::Voter,
            wants: Role::Voter,
            state: NodeHealth::Up,
            mesh_addr: None,
            http_addr: None,
            version: Some("0.1.0".into()),
            durable: None,
            applied: Some(Lsn::new(1, 7)),
            lag_records: Some(0),
            lag_ms: Some(3),
            rtt_ms: None,
            cert_days_left: Some(29),
            snapshot: None,
            scrubbed: None,
            follows: None,
            view_age_ms: None,
            is_leader: n == 1,
            is_writer: n == 1,
            silent_ms: None,
            clock_skew_ms: (n != 1).then_some(-2),
            points: None,
            queries: None,
            links: linked
                .iter()
                .map(|to| LinkReport { to: NodeId([*to; 16]), rtt_ms: 0.2, sent_bytes: Default::default() })
                .collect(),
        }
    }

    fn status(nodes: Vec<NodeReport>) -> ClusterStatus {
        ClusterStatus {
            cluster_id: ClusterId([3; 16]),
            cluster_name: "home".into(),
            node_id: NodeId([1; 16]),
            leader: Some(NodeId([1; 16])),
            writer: Some(NodeId([1; 16])),
            epoch: Some(3),
            commit: None,
            generation: 0,
            nodes,
            terms: vec![],
            ca: Default::default(),
            upgrade: Default::default(),
            warnings: vec![],
        }
    }

    fn three() -> Vec<NodeReport> {
        vec![node(1, &[2, 3]), node(2, &[1, 3]), node(3, &[1, 2])]
    }

    fn down(node: NodeReport) -> NodeReport {
        NodeReport {
            state: NodeHealth::Down,
            links: vec![],
            clock_skew_ms: None,
            cert_days_left: None,
            ..node
        }
    }

    /// Level and words of a check.
    fn found(status: &ClusterStatus, check: &str) -> (Level, String) {
        let found = judge(status);
        let one = found.iter().find(|finding| finding.check == check).unwrap();
        assert!(one.level != Level::Fail || !one.todo.is_empty(), "nothing to do about {}", one.says);
        (one.level, one.says.clone())
    }

    #[test]
    fn a_sound_cluster_has_nothing() {
        let all = judge(&status(three()));
        assert!(all.iter().all(|finding| finding.level == Level::Ok), "{all:?}");
    }

    #[test]
    fn how_many_may_fail() {
        let of = |nodes: Vec<NodeReport>| found(&status(nodes), "quorum");
        assert_eq!(of(vec![node(1, &[])]).0, Level::Warn);
        assert_eq!(of(vec![node(1, &[2]), node(2, &[1])]).0, Level::Warn);
        assert_eq!(
            of(three()),
            (Level::Ok, "3 of 3 voters answer; 1 may fail without stopping writes".into())
        );
        let mut nodes = three();
        nodes[2] = down(node(3, &[]));
        assert_eq!(
            of(nodes.clone()),
            (Level::Warn, "2 of 3 voters answer; 0 more may fail; down: n3".into())
        );
        nodes[1] = down(node(2, &[]));
        assert_eq!(of(nodes).0, Level::Fail);
    }

    #[test]
    fn each_trouble_is_found_once() {
        let with = |change: &dyn Fn(&mut ClusterStatus)| {
            let mut status = status(three());
            change(&mut status);
            status
        };
        let apart = with(&|s| {
            s.nodes[1].links.remove(1);
            s.nodes[2].links.remove(1);
        });
        assert_eq!(found(&apart, "links"), (Level::Fail, "no link between n2 - n3".into()));
        let one_side = with(&|s| s.nodes[1].links.truncate(1));
        assert_eq!(found(&one_side, "links").0, Level::Ok, "one end that has it is enough");
        for (skew, level) in [(500, Level::Ok), (-501, Level::Warn), (60_001, Level::Fail)] {
            assert_eq!(found(&with(&|s| s.nodes[2].clock_skew_ms = Some(skew)), "clocks").0, level, "{skew}");
        }
        for (days, level) in [(10, Level::Ok), (9, Level::Warn), (0, Level::Fail), (-3, Level::Fail)] {
            assert_eq!(found(&with(&|s| s.nodes[1].cert_days_left = Some(days)), "certificates").0, level);
        }
        assert_eq!(found(&with(&|s| s.nodes[1].version = Some("0.2.0".into())), "versions").0, Level::Warn);
        let not_final = |s: &mut ClusterStatus| (s.upgrade.level, s.upgrade.known) = (3, 7);
        assert_eq!(found(&with(&not_final), "versions").0, Level::Warn);
        assert_eq!(found(&with(&|s| s.nodes[1].lag_records = Some(10_001)), "lag").0, Level::Warn);
        assert_eq!(found(&with(&|s| s.nodes[1].lag_ms = Some(10_001)), "lag").0, Level::Warn);
        assert_eq!(found(&with(&|s| s.leader = None), "writer").0, Level::Fail);
        assert_eq!(found(&with(&|s| s.nodes[0].is_writer = false), "writer").0, Level::Fail);
        let warned =
            with(&|s| s.warnings = vec!["Two voters: x.".into(), "The log's disk on b is full.".into()]);
        assert_eq!(found(&warned, "warning"), (Level::Warn, "The log's disk on b is full.".into()));
        assert_eq!(judge(&warned).iter().filter(|finding| finding.check == "warning").count(), 1);
    }
}
