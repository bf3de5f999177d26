//! `skein auth`: API tokens.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Client, Failure, TargetArgs, output,
    table::{render, text},
    token::{moment, path_part},
};
use crate::types::Scope;

/// Commands under `skein auth`.
#[derive(Debug, Args)]
pub(super) struct AuthArgs {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, Subcommand)]
enum AuthCommand {
    /// Make an API token; without a terminal, print it and nothing else. It is never shown again
    Create(CreateArgs),
    /// List API tokens (never the tokens themselves)
    List(ListArgs),
    /// Take an API token back: no node accepts it any more
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// A name for people [default: made of scope and id]
    #[arg(long)]
    name: Option<String>,
    /// What it may do: read (query, status), write (ingest) or both, or admin (everything)
    #[arg(long, required = true, value_delimiter = ',', value_name = "read|write|admin")]
    scope: Vec<Scope>,
    /// Only this database; may be given several times [default: every one]
    #[arg(long, short, value_name = "D")]
    database: Vec<String>,
    /// How long the token is good, such as 12h or 90d; `never` for no end
    #[arg(long, default_value = "never", value_name = "T")]
    ttl: String,
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
    /// Id of the token, as `skein auth list` shows it
    id: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: AuthArgs) -> Result<(), Failure> {
    match args.command {
        AuthCommand::Create(args) => create(args).await,
        AuthCommand::List(args) => list(args).await,
        AuthCommand::Revoke(args) => {
            let client = Client::from_env(args.target.resolve()?);
            client.send(Method::DELETE, &format!("/api/v1/auth/tokens/{}", path_part(&args.id)?), "").await?;
            let value = json!({ "id": args.id, "done": "revoked" });
            output::done(args.json, &value, &format!("API token {} is taken back\n", args.id))
        }
    }
}

/// A token as a node describes it.
#[derive(Deserialize, Serialize)]
struct Described {
    id: String,
    name: String,
    scopes: Vec<Scope>,
    databases: Option<Vec<String>>,
    created_ms: u64,
    expires_ms: Option<u64>,
    /// Only in the answer to the request that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

async fn create(args: CreateArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let databases: BTreeSet<&String> = args.database.iter().collect();
    let wanted = json!({
        "name": args.name,
        "scopes": args.scope,
        "databases": (!databases.is_empty()).then_some(databases),
        "ttl": args.ttl,
    });
    let created = client.send(Method::POST, "/api/v1/auth/tokens", wanted.to_string()).await?;
    let created: Described = created.json().await?;
    if args.json {
        return output::json(&created);
    }
    output::print(&show_created(&created, output::is_terminal()))
}

/// The token alone for programs; for people also what it is.
fn show_created(created: &Described, on_a_terminal: bool) -> String {
    let secret = created.token.as_deref().unwrap_or_default();
    if !on_a_terminal {
        return format!("{secret}\n");
    }
    let until = created.expires_ms.map_or("without end".to_owned(), |ms| format!("until {}", moment(ms)));
    format!(
        "API token {} ({}): {}, {}, {until}. It is shown only now:\n\n  {secret}\n\n\
         Clients send it as a bearer token or as the password; the commands of skein take it from SKEIN_API_TOKEN.\n",
        created.name,
        created.id,
        scopes(created),
        places(created),
    )
}

fn scopes(token: &Described) -> String {
    token.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(",")
}

fn places(token: &Described) -> String {
    token.databases.as_ref().map_or("every database".to_owned(), |names| names.join(","))
}

#[derive(Deserialize, Serialize)]
struct List {
    tokens: Vec<Described>,
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let list: List = client.get("/api/v1/auth/tokens").await?;
    if args.json {
        return output::json(&list);
    }
    output::print(&show_list(&list.tokens))
}

fn show_list(tokens: &[Described]) -> String {
    let columns =
        [text("ID"), text("NAME"), text("SCOPE"), text("DATABASES"), text("CREATED"), text("EXPIRES")];
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|token| {
            vec![
                token.id.clone(),
                token.name.clone(),
                scopes(token),
                places(token),
                moment(token.created_ms),
                token.expires_ms.map_or("never".to_owned(), moment),
            ]
        })
        .collect();
    render(&columns, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(secret: Option<&str>) -> Described {
        Described {
            id: "00000000000000ab".into(),
            name: "grafana".into(),
            scopes: vec![Scope::Read, Scope::Write],
            databases: Some(vec!["home".into(), "lab".into()]),
            created_ms: 1_700_000_000_000,
            expires_ms: None,
            token: secret.map(str::to_owned),
        }
    }

    #[test]
    fn programs_get_the_token_alone() {
        let created = token(Some("skein_x"));
        assert_eq!(show_created(&created, false), "skein_x\n");
        let people = show_created(&created, true);
        assert!(
            people.contains("grafana (00000000000000ab): read,write, home,lab, without end."),
            "{people}"
        );
        assert!(people.contains("\n  skein_x\n"), "{people}");
    }

    #[test]
    fn a_list_for_people() {
        let admin = Described { scopes: vec![Scope::Admin], databases: None, ..token(None) };
        let table = show_list(&[token(None), admin]);
        let want = [
            "ID                NAME     SCOPE       DATABASES       CREATED               EXPIRES",
            "00000000000000ab  grafana  read,write  home,lab        2023-11-14T22:13:20Z  never",
            "00000000000000ab  grafana  admin       every database  2023-11-14T22:13:20Z  never",
        ];
        assert_eq!(table.lines().collect::<Vec<_>>(), want);
        assert!(!serde_json::to_string(&token(None)).unwrap().contains("token\""));
    }
}
