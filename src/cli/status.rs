//! `skein status`.

use clap::Args;

use super::{
    Client, Failure, TargetArgs, output,
    table::{number, or_dash, render_steady, text},
    watch,
};
use crate::{
    node::{ClusterStatus, NodeReport, SnapshotReport, UpgradeReport},
    types::{NodeHealth, NodeId},
};

/// Flags of `skein status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print the JSON that the node answers with
    #[arg(long)]
    json: bool,
    /// Show again every second until interrupted; without a terminal, print a line for each change
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    if args.watch {
        return watch::run(&client, args.json).await;
    }
    let status: ClusterStatus = client.get("/api/v1/cluster").await?;
    if args.json { output::json(&status) } else { output::print(&show(&status, &mut Vec::new())) }
}

/// The cluster in a few lines, its nodes in a table, its warnings below. `widths` are those of the table
/// the last time.
pub(super) fn show(status: &ClusterStatus, widths: &mut Vec<usize>) -> String {
    let node = |id: Option<NodeId>| match id {
        None => "none".to_owned(),
        Some(id) => match status.nodes.iter().find(|node| node.id == id) {
            Some(node) if !node.name.is_empty() => format!("{} ({})", node.name, id.short()),
            _ => id.short(),
        },
    };
    let generation = match status.generation {
        0 => String::new(),
        recovered => format!(", generation {recovered}"),
    };
    let mut out = format!(
        "cluster  {} ({}){generation}\nleader   {}\nwriter   {}, epoch {}\ncommit   {}\n{}\n\n",
        status.cluster_name,
        status.cluster_id,
        node(status.leader),
        node(status.writer),
        or_dash(status.epoch),
        or_dash(status.commit),
        upgrade(&status.upgrade),
    );
    out.push_str(&steady_table(&status.nodes, widths));
    for (fetcher, snapshot) in status.nodes.iter().filter_map(|n| Some((n, n.snapshot?))) {
        out.push_str(&format!(
            "\n{}",
            progress(&node(Some(fetcher.id)), &node(Some(snapshot.source)), &snapshot)
        ));
    }
    if status.nodes.iter().any(|node| node.snapshot.is_some()) {
        out.push('\n');
    }
    for warning in &status.warnings {
        out.push_str(&format!("\nwarning: {warning}"));
    }
    if !status.warnings.is_empty() {
        out.push('\n');
    }
    out
}

/// What the cluster may rely on, or what an upgrade waits for.
fn upgrade(report: &UpgradeReport) -> String {
    let UpgradeReport { level, known, behind } = report;
    if !behind.is_empty() {
        format!("upgrade  under way, still to come: {}", behind.join(", "))
    } else if report.to_finalise() {
        format!(
            "upgrade  every member has features {known}, the level is {level}: skein finalise when none goes back"
        )
    } else if *level == 0 {
        // Asked of a version that does not tell.
        "features -".to_owned()
    } else {
        format!("features {level}")
    }
}

/// How far a node is that fetches a snapshot.
fn progress(fetcher: &str, source: &str, snapshot: &SnapshotReport) -> String {
    let SnapshotReport { bytes_done: done, bytes_total: total, position, .. } = *snapshot;
    let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "snapshot  {fetcher} has {percent:.0}% ({:.1} of {:.1} MiB) of the snapshot at {position} from {source}",
        mib(done),
        mib(total)
    )
}

/// One row per node.
pub(super) fn node_table(nodes: &[NodeReport]) -> String {
    steady_table(nodes, &mut Vec::new())
}

fn steady_table(nodes: &[NodeReport], widths: &mut Vec<usize>) -> String {
    let columns = [
        text("ID"),
        text("NAME"),
        text("ROLE"),
        text("STATE"),
        text("IS"),
        number("APPLIED"),
        number("LAG"),
        number("RTT MS"),
        number("CERT"),
        text("MESH"),
        text("HTTP"),
        text("VERSION"),
    ];
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    render_steady(&columns, &rows, widths)
}

fn row(node: &NodeReport) -> Vec<String> {
    let role = if node.role == node.wants {
        node.role.to_string()
    } else {
        format!("{} (wants {})", node.role, node.wants)
    };
    let state = match node.state {
        NodeHealth::Up => "up",
        NodeHealth::Down => "down",
        NodeHealth::Joining => "joining",
        NodeHealth::Draining => "draining",
    };
    let is = match (node.is_writer, node.is_leader, node.follows) {
        (true, true, _) => "writer, leader".to_owned(),
        (true, false, _) => "writer".to_owned(),
        (false, true, _) => "leader".to_owned(),
        (false, false, Some(source)) => format!("follows {}", source.short()),
        (false, false, None) => String::new(),
    };
    vec![
        node.id.short(),
        node.name.clone(),
        role,
        state.to_owned(),
        is,
        or_dash(node.applied),
        or_dash(node.lag_records),
        or_dash(node.rtt_ms.map(|ms| format!("{ms:.1}"))),
        or_dash(node.cert_days_left.map(|days| format!("{days}d"))),
        or_dash(node.mesh_addr.as_deref()),
        or_dash(node.http_addr.as_deref()),
        or_dash(node.version.as_deref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, Lsn, Role};

    fn node(n: u8, name: &str) -> NodeReport {
        NodeReport {
            id: NodeId([n; 16]),
            name: name.into(),
            role: Role::Voter,
            wants: Role::Voter,
            state: NodeHealth::Up,
            mesh_addr: Some("192.0.2.1:7400".into()),
            http_addr: None,
            version: Some("0.1.0".into()),
            durable: None,
            applied: Some(Lsn::new(3, 1042)),
            lag_records: Some(0),
            lag_ms: None,
            rtt_ms: Some(0.25),
            cert_days_left: Some(29),
            snapshot: None,
            scrubbed: None,
            follows: None,
            view_age_ms: None,
            is_leader: false,
            is_writer: false,
            silent_ms: None,
            clock_skew_ms: None,
            points: None,
            queries: None,
            links: vec![],
        }
    }

    #[test]
    fn people_see_names_roles_and_warnings() {
        let writer = NodeReport { is_writer: true, is_leader: true, ..node(1, "north") };
        let joining = NodeReport {
            role: Role::Reader,
            state: NodeHealth::Joining,
            applied: None,
            lag_records: None,
            rtt_ms: None,
            snapshot: Some(SnapshotReport {
                source: NodeId([1; 16]),
                position: Lsn::new(2, 900),
                bytes_done: 3 << 20,
                bytes_total: 12 << 20,
            }),
            ..node(2, "south")
        };
        let status = ClusterStatus {
            cluster_id: ClusterId([3; 16]),
            cluster_name: "home".into(),
            node_id: NodeId([1; 16]),
            leader: Some(NodeId([1; 16])),
            writer: None,
            epoch: Some(3),
            commit: Some(Lsn::new(3, 1042)),
            generation: 1,
            nodes: vec![writer, joining],
            terms: vec![],
            ca: Default::default(),
            upgrade: UpgradeReport { level: 7, known: 7, behind: vec![] },
            warnings: vec!["Two voters: losing one stops writes.".into()],
        };
        let shown = show(&status, &mut Vec::new());
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].ends_with("), generation 1"), "{shown}");
        assert_eq!(lines[1], format!("leader   north ({})", NodeId([1; 16]).short()));
        assert_eq!(lines[2], "writer   none, epoch 3");
        assert_eq!(lines[3], "commit   3.1042");
        assert_eq!(lines[4], "features 7");
        assert!(lines[6].starts_with("ID      NAME   ROLE                  STATE    IS"), "{shown}");
        assert!(lines[7].contains("writer, leader") && lines[7].contains("  29d  "), "{shown}");
        assert!(lines[8].contains("reader (wants voter)") && lines[8].contains("joining"), "{shown}");
        assert_eq!(lines[6].find("MESH"), lines[7].find("192.0.2.1"));
        let (north, south) = (NodeId([1; 16]).short(), NodeId([2; 16]).short());
        let fetches = format!(
            "snapshot  south ({south}) has 25% (3.0 of 12.0 MiB) of the snapshot at 2.900 from north ({north})"
        );
        assert!(lines.contains(&fetches.as_str()), "{shown}");
        assert_eq!(lines.last(), Some(&"warning: Two voters: losing one stops writes."));

        let report = UpgradeReport { known: 15, level: 7, behind: vec!["south".into()] };
        assert!(upgrade(&report).ends_with("still to come: south"));
        assert!(upgrade(&UpgradeReport { behind: vec![], ..report }).contains("skein finalise"));
    }
}
