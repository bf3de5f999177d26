//! `skein ca`: the cluster's certificate authority.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::{
    Client, Failure, TargetArgs,
    node::find,
    output,
    table::{number, or_dash, render, text},
    token::moment,
};
use crate::node::{CaReport, ClusterStatus, NodeReport};

/// Commands under `skein ca`.
#[derive(Debug, Args)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Replace the cluster's CA: every member gets a certificate of a new root, then the old one is retired
    Rotate(RotateArgs),
    /// Show the CA, and how far a rotation is
    Status(StatusArgs),
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// Let the rotation under way end without this member: id, first characters of it, or name
    #[arg(long, value_name = "NODE")]
    drop: Vec<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: CaArgs) -> Result<(), Failure> {
    match args.command {
        CaCommand::Rotate(args) => rotate(args).await,
        CaCommand::Status(args) => {
            let client = Client::from_env(args.target.resolve()?);
            let status: ClusterStatus = client.get("/api/v1/cluster").await?;
            if args.json { output::json(&status.ca) } else { output::print(&show(&status.ca, &status.nodes)) }
        }
    }
}

async fn rotate(args: RotateArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let mut dropped = Vec::new();
    if !args.drop.is_empty() {
        let status: ClusterStatus = client.get("/api/v1/cluster").await?;
        for wanted in &args.drop {
            dropped.push(find(&status.nodes, wanted)?.id.to_string());
        }
    }
    client.send(Method::POST, "/api/v1/ca/rotate", json!({ "drop": dropped }).to_string()).await?;
    if args.json {
        let status: ClusterStatus = client.get("/api/v1/cluster").await?;
        return output::json(&status.ca);
    }
    if dropped.is_empty() {
        output::print(
            "the CA is being rotated; it goes on by itself, see skein ca status. Join tokens made before it end with \
             it (not those of skein token generate): make new ones\n",
        )
    } else {
        output::print("the rotation does not wait for them; they come home by their keys when they start\n")
    }
}

fn show(ca: &CaReport, nodes: &[NodeReport]) -> String {
    let mut out = String::new();
    for (at, root) in ca.roots.iter().enumerate() {
        let what = if at + 1 == ca.roots.len() { "signs" } else { "is being retired" };
        out.push_str(&format!("root      {}  {} days left, {what}\n", root.fingerprint, root.days_left));
    }
    let Some(rotation) = &ca.rotation else {
        out.push_str("rotation  none\n");
        return out;
    };
    out.push_str(&format!(
        "rotation  asked for {}, {} of {} members have renewed\n\n",
        moment(rotation.asked_ms),
        rotation.renewed.len(),
        nodes.len(),
    ));
    let columns = [text("NODE"), text("NAME"), text("CERTIFICATE"), number("DAYS LEFT")];
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let id = node.id.to_string();
            let how = match () {
                () if rotation.renewed.contains(&id) => "new",
                () if rotation.dropped.contains(&id) => "old, not waited for",
                () if node.cert_days_left.is_none() => "old, does not answer",
                () => "old",
            };
            vec![node.id.short(), node.name.clone(), how.to_owned(), or_dash(node.cert_days_left)]
        })
        .collect();
    out.push_str(&render(&columns, &rows));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{RootReport, RotationReport};

    #[test]
    fn shows_both_roots_and_whom_it_waits_for() {
        let root = |mark: &str| RootReport { fingerprint: mark.repeat(64), days_left: 3650 };
        let mut ca = CaReport { roots: vec![root("a")], rotation: None };
        let plain = show(&ca, &[]);
        assert!(plain.ends_with("rotation  none\n") && plain.contains("3650 days left, signs\n"), "{plain}");

        let nodes: Vec<NodeReport> = ["north", "south", "west"]
            .iter()
            .enumerate()
            .map(|(n, name)| crate::cli::node::tests::node(n as u8 + 1, name))
            .collect();
        let ids: Vec<String> = nodes.iter().map(|node| node.id.to_string()).collect();
        ca.roots.push(root("b"));
        ca.rotation = Some(RotationReport {
            asked_ms: 1_700_000_000_000,
            renewed: vec![ids[0].clone()],
            waits_for: vec![ids[1].clone()],
            dropped: vec![ids[2].clone()],
        });
        let shown = show(&ca, &nodes);
        assert!(
            shown.contains("is being retired\n") && shown.contains("1 of 3 members have renewed"),
            "{shown}"
        );
        let line = |name: &str| shown.lines().find(|line| line.contains(name)).unwrap_or_default();
        assert!(line("north").contains("  new  "), "{shown}");
        assert!(line("south").contains("old, does not answer"), "{shown}");
        assert!(line("west").contains("old, not waited for"), "{shown}");
    }
}
