//! `skein node`: the members.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{Client, Failure, TargetArgs, output, status::node_table, token::path_part};
use crate::node::{ClusterStatus, NodeReport};

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
    /// Take a member out for ever; it comes back only as a new node
    Remove(RemoveArgs),
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
struct RemoveArgs {
    /// Id, first characters of the id, or name
    node: String,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) async fn run(args: NodeArgs) -> Result<(), Failure> {
    match args.command {
        NodeCommand::List(args) => {
            let client = Client::from_env(args.target.resolve()?);
            let status: ClusterStatus = client.get("/api/v1/cluster").await?;
            if args.json { output::json(&status.nodes) } else { output::print(&node_table(&status.nodes)) }
        }
        NodeCommand::Remove(args) => {
            let client = Client::from_env(args.target.resolve()?);
            let status: ClusterStatus = client.get("/api/v1/cluster").await?;
            let node = find(&status.nodes, &args.node)?;
            let id = node.id.to_string();
            client.send(Method::DELETE, &format!("/api/v1/nodes/{}", path_part(&id)?), "").await?;
            output::print(&format!("node {} ({id}) is removed\n", node.name))
        }
    }
}

/// The one node that is meant.
fn find<'a>(nodes: &'a [NodeReport], wanted: &str) -> Result<&'a NodeReport, Failure> {
    let by_id = |node: &&NodeReport| wanted.len() >= 4 && node.id.to_string().starts_with(wanted);
    let matching: Vec<&NodeReport> = nodes.iter().filter(|node| node.name == wanted || by_id(node)).collect();
    match matching[..] {
        [node] => Ok(node),
        [] => Err(Failure::new(format!("no member has the id or name {wanted:?}: see skein node list"))),
        _ => Err(Failure::new(format!("{} members match {wanted:?}: give the whole id", matching.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeHealth, NodeId, Role};

    fn node(n: u8, name: &str) -> NodeReport {
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
            scrubbed: None,
            is_leader: false,
            is_writer: false,
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
