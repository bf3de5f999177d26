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
}

pub(super) async fn run(args: TokenArgs) -> Result<(), Failure> {
    match args.command {
        TokenCommand::Create(args) => create(args).await,
        TokenCommand::List(args) => list(args).await,
        TokenCommand::Revoke(args) => {
            let client = Client::from_env(args.target.resolve()?);
            client.send(Method::DELETE, &format!("/api/v1/tokens/{}", path_part(&args.id)?), "").await?;
            output::print(&format!("token {} is taken back\n", args.id))
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
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let uses = (args.uses > 0).then_some(args.uses);
    let wanted = json!({ "role": args.role, "ttl": args.ttl, "uses": uses }).to_string();
    let created: Created = client.send(Method::POST, "/api/v1/tokens", wanted).await?.json().await?;
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
    format!(
        "For {uses} as {}, {time}. On the next node:\n\n  skein start --join {}\n\n\
         (not on the same LAN: add --seed HOST:7400 with the address of this node)\n",
        created.role, created.token
    )
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
fn moment(ms: u64) -> String {
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
        let created =
            Created { token: "skein1-voter-x".into(), role: "voter".into(), ttl: "1h".into(), uses: Some(1) };
        assert_eq!(show_created(&created, false), "skein1-voter-x\n");
        let people = show_created(&created, true);
        assert!(people.contains("For one node as voter, for 1h."), "{people}");
        assert!(people.contains("skein start --join skein1-voter-x\n"), "{people}");
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
