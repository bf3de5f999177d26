//! `skein token`: join tokens.

use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Client, Failure, TargetArgs, output,
    table::{number, render, text},
};
use crate::{config::parse_duration, discovery::Seed, identity::JoinToken, node::Surroundings, types::Role};

/// Commands under `skein token`.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a join token; without a terminal, print it and nothing else
    Create(CreateArgs),
    /// Make a join token before there is a cluster; print it and nothing else. Asks no node
    Generate(GenerateArgs),
    /// List join tokens (never the tokens themselves)
    List(ListArgs),
    /// Take a join token back
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// What the node that joins may be: voter, reader or gateway
    #[arg(long, default_value = "voter")]
    role: String,
    /// How long the token is good, such as 30m, 1h or 7d; `never` for no end
    #[arg(long, default_value = "1h")]
    ttl: String,
    /// How many nodes may join with it; 0 for any number
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// Where a node that is not on the same LAN finds the cluster, kept in the token; may be given several
    /// times
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// What the nodes that join may be: voter or reader
    #[arg(long, default_value = "voter")]
    role: String,
    /// Where the nodes may find each other, kept in the token; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    seed: Vec<String>,
    /// How long the token is good, such as 30m, 1h or 7d; `never` for no end
    #[arg(long, default_value = "never")]
    ttl: String,
    /// How many nodes may join with it, besides the one that makes the cluster; 0 for any number
    #[arg(long, default_value_t = 0)]
    uses: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
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
struct RevokeArgs {
    /// Id of the token, as `skein token list` shows it
    id: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: TokenArgs) -> Result<(), Failure> {
    match args.command {
        TokenCommand::Create(args) => create(args).await,
        TokenCommand::Generate(args) => {
            let token = generate(&args)?.reveal();
            output::done(args.json, &json!({ "token": *token }), &format!("{}\n", *token))
        }
        TokenCommand::List(args) => list(args).await,
        TokenCommand::Revoke(args) => {
            let client = Client::from_env(args.target.resolve()?);
            client.send(Method::DELETE, &format!("/api/v1/tokens/{}", path_part(&args.id)?), "").await?;
            let value = json!({ "id": args.id, "done": "revoked" });
            output::done(args.json, &value, &format!("token {} is taken back\n", args.id))
        }
    }
}

/// What the node answers to a token made.
#[derive(Deserialize, Serialize)]
struct Created {
    token: String,
    role: String,
    ttl: String,
    uses: Option<u32>,
    #[serde(default)]
    seeds: Vec<String>,
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let uses = (args.uses > 0).then_some(args.uses);
    let mut wanted = json!({ "role": args.role, "ttl": args.ttl, "uses": uses });
    // A node of a version that knows no seeds here takes what does not ask for any.
    if !args.seed.is_empty() {
        wanted["seeds"] = json!(args.seed);
    }
    let created = client.send(Method::POST, "/api/v1/tokens", wanted.to_string()).await?;
    let created: Created = created.json().await?;
    if args.json {
        return output::json(&created);
    }
    output::print(&show_created(&created, output::is_terminal()))
}

/// The token alone for programs; for people also what to do with it.
fn show_created(created: &Created, on_a_terminal: bool) -> String {
    if !on_a_terminal {
        return format!("{}\n", created.token);
    }
    let uses = created.uses.map_or("any number of nodes".to_owned(), |n| match n {
        1 => "one node".to_owned(),
        n => format!("{n} nodes"),
    });
    let time = if created.ttl == "never" { "without end".to_owned() } else { format!("for {}", created.ttl) };
    let elsewhere = if created.seeds.is_empty() {
        "(not on the same LAN: add --seed HOST:7400 with the address of this node)".to_owned()
    } else {
        format!("(it knows where to ask: {})", created.seeds.join(", "))
    };
    format!(
        "For {uses} as {}, {time}. On the next node:\n\n  skein start --join {}\n\n{elsewhere}\n",
        created.role, created.token
    )
}

fn generate(args: &GenerateArgs) -> Result<JoinToken, Failure> {
    let role = match args.role.parse::<Role>() {
        Ok(Role::Gateway) => {
            return Err(Failure::usage(
                "--role: the nodes that start together hold data; make a token for gateways with `skein token create \
                 --role gateway` when the cluster stands",
            ));
        }
        Ok(role) => role,
        Err(_) => return Err(Failure::usage(format!("--role: voter or reader, not {:?}", args.role))),
    };
    for seed in &args.seed {
        seed.parse::<Seed>().map_err(|e| Failure::usage(format!("--seed: {e}")))?;
    }
    let surroundings = Surroundings::real();
    let expires = match args.ttl.as_str() {
        "never" => None,
        text => {
            let ttl = parse_duration(text).map_err(|e| Failure::usage(format!("--ttl: {e}")))?;
            if ttl.is_zero() {
                return Err(Failure::usage("--ttl: a token of no time cannot let anybody join"));
            }
            Some(surroundings.unix_seconds().saturating_add(ttl.as_secs().max(1)))
        }
    };
    let token = JoinToken::generate(role, args.seed.clone(), &mut surroundings.rng())
        .map_err(|e| Failure::usage(e.to_string()))?;
    Ok(token.limited(expires, (args.uses > 0).then_some(args.uses)))
}

/// A token as the node lists it.
#[derive(Deserialize, Serialize)]
struct Listed {
    id: String,
    role: String,
    created_ms: u64,
    expires_ms: Option<u64>,
    uses_left: Option<u32>,
    revoked: bool,
}

#[derive(Deserialize, Serialize)]
struct List {
    tokens: Vec<Listed>,
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let list: List = client.get("/api/v1/tokens").await?;
    if args.json {
        return output::json(&list);
    }
    output::print(&show_list(&list.tokens))
}

fn show_list(tokens: &[Listed]) -> String {
    let columns =
        [text("ID"), text("ROLE"), number("USES LEFT"), text("CREATED"), text("EXPIRES"), text("REVOKED")];
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|token| {
            vec![
                token.id.clone(),
                token.role.clone(),
                token.uses_left.map_or("any".to_owned(), |n| n.to_string()),
                moment(token.created_ms),
                token.expires_ms.map_or("never".to_owned(), moment),
                if token.revoked { "yes" } else { "" }.to_owned(),
            ]
        })
        .collect();
    render(&columns, &rows)
}

/// Milliseconds since 1970 as `2026-01-31T12:00:00Z`.
pub(super) fn moment(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).ok();
    seconds
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| ms.to_string())
}

/// An id that is to stand in a path.
pub(super) fn path_part(id: &str) -> Result<&str, Failure> {
    let good = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if good { Ok(id) } else { Err(Failure::usage(format!("{id:?} is no id"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_the_token_alone() {
        let mut created = Created {
            token: "skein1-voter-x".into(),
            role: "voter".into(),
            ttl: "1h".into(),
            uses: Some(1),
            seeds: Vec::new(),
        };
        assert_eq!(show_created(&created, false), "skein1-voter-x\n");
        let people = show_created(&created, true);
        assert!(people.contains("For one node as voter, for 1h."), "{people}");
        assert!(people.contains("skein start --join skein1-voter-x\n"), "{people}");
        assert!(people.contains("add --seed HOST:7400"), "{people}");
        created.seeds = vec!["db-1:7400".into()];
        let people = show_created(&created, true);
        assert!(
            people.contains("it knows where to ask: db-1:7400") && !people.contains("--seed"),
            "{people}"
        );
    }

    #[test]
    fn a_token_is_generated_without_any_node() {
        let args = |role: &str, seed: &str, ttl: &str, uses| GenerateArgs {
            role: role.into(),
            seed: vec![seed.into()],
            ttl: ttl.into(),
            uses,
            json: false,
        };
        let token = generate(&args("reader", "db-1:7400", "never", 0)).unwrap();
        assert_eq!((token.role(), token.cluster(), token.expires()), (Role::Reader, None, None));
        assert_eq!((token.seeds(), token.uses()), (&["db-1:7400".to_owned()][..], None));
        let limited = generate(&args("voter", "[::1]:7400", "1h", 3)).unwrap();
        assert!(limited.expires().is_some() && limited.uses() == Some(3));
        assert_eq!(limited.reveal().parse(), Ok(limited));
        for wrong in [
            args("king", "a:1", "1h", 0),
            args("gateway", "a:1", "1h", 0),
            args("voter", "a", "1h", 0),
            args("voter", "a:1", "soon", 0),
            args("voter", "a:1", "0s", 0),
        ] {
            assert!(generate(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn lists_and_ids() {
        let token = Listed {
            id: "0000000000000007".into(),
            role: "voter".into(),
            created_ms: 1_700_000_000_000,
            expires_ms: None,
            uses_left: Some(4),
            revoked: true,
        };
        let shown = show_list(&[token]);
        let row = shown.lines().nth(1).unwrap();
        assert_eq!(row, "0000000000000007  voter          4  2023-11-14T22:13:20Z  never    yes");
        assert!(path_part("../tokens").is_err() && path_part("").is_err() && path_part("a7").is_ok());
    }
}
