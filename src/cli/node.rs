//! `skein node`: the members.

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::{
    Answer, Client, Failure, TargetArgs, client::query_string, output, status::node_table, token::path_part,
};
use crate::{
    node::{ClusterStatus, DrainReport, NodeReport},
    types::NodeId,
};

/// Commands under `skein node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// List the members
    List(ListArgs),
    /// Make a voter a reader: it keeps its data and serves reads, and no majority waits for it
    Demote(MemberArgs),
    /// Make a reader a voter, as soon as it is level with the others
    Promote(MemberArgs),
    /// Take office and leadership from a node until it is undrained, and wait until it is safe to stop it
    Drain(MemberArgs),
    /// Let a drained node write and lead again
    Undrain(MemberArgs),
    /// Take a member out for ever; it comes back only as a new node
    Remove(MemberArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MemberArgs {
    /// Id, first characters of the id, or name
    node: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: NodeArgs) -> Result<(), Failure> {
    match args.command {
        NodeCommand::List(args) => {
            let client = Client::from_env(args.target.resolve()?);
            let status: ClusterStatus = client.get("/api/v1/cluster").await?;
            if args.json { output::json(&status.nodes) } else { output::print(&node_table(&status.nodes)) }
        }
        NodeCommand::Demote(args) => {
            let node = change(&args, Method::POST, "/demote").await?;
            told(&args, &node, "demoted", "is a reader now")
        }
        NodeCommand::Promote(args) => {
            let node = change(&args, Method::POST, "/promote").await?;
            told(
                &args,
                &node,
                "promoted",
                "becomes a voter when it is level and linked with the others; from three voters on only together with \
                 another one, for an even number tolerates no more (see skein status)",
            )
        }
        NodeCommand::Drain(args) => drain(&args).await,
        NodeCommand::Undrain(args) => {
            let node = change(&args, Method::DELETE, "/drain").await?;
            told(&args, &node, "undrained", "may write and lead again")
        }
        NodeCommand::Remove(args) => {
            let node = change(&args, Method::DELETE, "").await?;
            told(&args, &node, "removed", "is removed")
        }
    }
}

/// Says what became of a member, in a word for machines and in more for people.
fn told(args: &MemberArgs, node: &NodeReport, word: &str, text: &str) -> Result<(), Failure> {
    let (id, name) = (node.id.to_string(), &node.name);
    let value = json!({ "id": id, "name": name, "done": word });
    output::done(args.json, &value, &format!("node {name} ({id}) {text}\n"))
}

/// Drains, and says whether the node may be stopped.
async fn drain(args: &MemberArgs) -> Result<(), Failure> {
    let (node, answer) = ask(args, Method::POST, "/drain").await?;
    let report: DrainReport = answer.json().await?;
    let (name, id) = (&node.name, node.id);
    if args.json {
        let DrainReport { safe, waits_for } = &report;
        let value = json!({ "id": id.to_string(), "name": name, "done": "drained", "safe": safe, "waits_for": waits_for });
        output::json(&value)?;
    }
    if report.safe {
        let text = format!(
            "node {name} ({id}) is drained: it neither writes nor leads, and a majority stays without it.\nIt is safe to \
             stop. When it is back: skein node undrain {name}\n"
        );
        return if args.json { Ok(()) } else { output::print(&text) };
    }
    Err(Failure::new(format!(
        "node {name} ({id}) is drained, but do not stop it yet:\n  - {}\nGive the command again to look again, or skein \
         node undrain {name}",
        report.waits_for.join("\n  - ")
    )))
}

/// Asks for a change of the member that is meant.
async fn change(args: &MemberArgs, method: Method, what: &str) -> Result<NodeReport, Failure> {
    ask(args, method, what).await.map(|(node, _)| node)
}

async fn ask(args: &MemberArgs, method: Method, what: &str) -> Result<(NodeReport, Answer), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let status: ClusterStatus = client.get("/api/v1/cluster").await?;
    let node = find(&status.nodes, &args.node)?;
    let id = node.id.to_string();
    let answer = client.send(method, &format!("/api/v1/nodes/{}{what}", path_part(&id)?), "").await?;
    Ok((node.clone(), answer))
}

/// Flags of `skein transfer`.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// To this voter: id, first characters of the id, or name [default: whoever is level first]
    node: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `skein transfer`: moves office and leadership away from the writer.
pub(super) async fn transfer(args: TransferArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let status: ClusterStatus = client.get("/api/v1/cluster").await?;
    let Some(writer) = status.writer else {
        return Err(Failure::new("there is no writer to take over from: see skein status"));
    };
    let to = match &args.node {
        Some(wanted) => Some(find(&status.nodes, wanted)?.id.to_string()),
        None => None,
    };
    let query = query_string(&[("to", to.as_deref())]);
    client.send(Method::POST, &format!("/api/v1/nodes/{writer}/transfer{query}"), "").await?;
    let now: ClusterStatus = client.get("/api/v1/cluster").await?;
    let name = |id: Option<NodeId>| {
        now.nodes.iter().find(|node| Some(node.id) == id).map_or("nobody", |node| node.name.as_str())
    };
    let epoch = now.epoch.unwrap_or_default();
    let id = |node: Option<NodeId>| node.map(|node| node.to_string());
    let value = json!({ "from": id(Some(writer)), "to": id(now.writer), "epoch": epoch });
    let text = format!("{} handed over to {} (epoch {epoch})\n", name(Some(writer)), name(now.writer));
    output::done(args.json, &value, &text)
}

/// The one node that is meant.
pub(super) fn find<'a>(nodes: &'a [NodeReport], wanted: &str) -> Result<&'a NodeReport, Failure> {
    let by_id = |node: &&NodeReport| wanted.len() >= 4 && node.id.to_string().starts_with(wanted);
    let matching: Vec<&NodeReport> = nodes.iter().filter(|node| node.name == wanted || by_id(node)).collect();
    match matching[..] {
        [node] => Ok(node),
        [] => Err(Failure::new(format!("no member has the id or name {wanted:?}: see skein node list"))),
        _ => Err(Failure::new(format!("{} members match {wanted:?}: give the whole id", matching.len()))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{NodeHealth, Role};

    pub(in crate::cli) fn node(n: u8, name: &str) -> NodeReport {
        NodeReport {
            id: NodeId([n; 16]),
            name: name.into(),
            role: Role::Voter,
            wants: Role::Voter,
            state: NodeHealth::Up,
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
            silent_ms: None,
            clock_skew_ms: None,
            points: None,
            queries: None,
            links: vec![],
        }
    }

    #[test]
    fn a_node_is_found_by_id_prefix_or_name_and_only_if_it_is_one() {
        let nodes = [node(1, "north"), node(2, "south"), node(3, "south")];
        assert_eq!(find(&nodes, "north").unwrap().id, nodes[0].id);
        assert_eq!(find(&nodes, &nodes[2].id.to_string()).unwrap().id, nodes[2].id);
        assert_eq!(find(&nodes, &nodes[1].id.short()).unwrap().id, nodes[1].id);
        assert!(find(&nodes, "south").unwrap_err().to_string().contains("2 members"));
        assert!(find(&nodes, "west").is_err());
        assert!(find(&nodes, &nodes[0].id.to_string()[..1]).is_err());
        assert!(find(&nodes, "").is_err());
    }
}
