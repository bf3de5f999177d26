//! `skein db`: databases.

use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Client, Failure, TargetArgs, output,
    table::{number, or_dash, render, text},
};
use crate::config::parse_duration;

/// Commands under `skein db`.
#[derive(Debug, Args)]
pub(super) struct DbArgs {
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// List the databases, what they keep and what this node holds of them
    List(ListArgs),
    /// Drop a database and all its points, on every node
    Drop(DropArgs),
    /// Show, or set, how long a database keeps its points
    Retention(RetentionArgs),
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
struct DropArgs {
    /// Name of the database
    name: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RetentionArgs {
    /// Name of the database, which need not be there yet
    name: String,
    /// Age from which on points are gone, such as 12h or 30d; `none` to keep them for ever
    keep: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a node answers to `GET /api/v1/databases`.
#[derive(Deserialize)]
struct Listed {
    databases: Vec<Database>,
}

#[derive(Deserialize, Serialize)]
struct Database {
    name: String,
    #[serde(rename = "measurement_count")]
    tables: u64,
    keep: Option<String>,
    horizon: Option<String>,
    files: u64,
    bytes: u64,
}

pub(super) async fn run(args: DbArgs) -> Result<(), Failure> {
    match args.command {
        DbCommand::List(args) => {
            let databases = list(&Client::from_env(args.target.resolve()?)).await?;
            if args.json { output::json(&databases) } else { output::print(&table(&databases)) }
        }
        DbCommand::Drop(args) => {
            let path = format!("/api/v1/databases/{}", path_part(&args.name)?);
            Client::from_env(args.target.resolve()?).send(Method::DELETE, &path, "").await?;
            let value = json!({ "name": args.name, "done": "dropped" });
            output::done(args.json, &value, &format!("database {} is dropped\n", args.name))
        }
        DbCommand::Retention(args) => retention(args).await,
    }
}

async fn retention(args: RetentionArgs) -> Result<(), Failure> {
    let path = format!("/api/v1/databases/{}/retention", path_part(&args.name)?);
    let client = Client::from_env(args.target.resolve()?);
    if let Some(keep) = &args.keep {
        if keep != "none" {
            parse_duration(keep).map_err(|e| Failure::usage(format!("{e}, or none")))?;
        }
        client.send(Method::PUT, &path, json!({ "keep": keep }).to_string()).await?;
    }
    let found = list(&client).await?.into_iter().find(|database| database.name == args.name);
    // One that keeps for ever and has no table is not listed.
    let keep = match found {
        Some(database) => database.keep,
        None if args.keep.is_some() => None,
        None => return Err(Failure::new(format!("there is no database {:?}", args.name))),
    };
    if args.json {
        return output::json(&json!({ "name": args.name, "keep": keep }));
    }
    let says = keep.map_or("for ever".to_owned(), |keep| format!("for {keep}"));
    output::print(&format!("database {} keeps its points {says}\n", args.name))
}

async fn list(client: &Client) -> Result<Vec<Database>, Failure> {
    Ok(client.get::<Listed>("/api/v1/databases").await?.databases)
}

fn table(databases: &[Database]) -> String {
    let columns = [
        text("NAME"),
        number("TABLES"),
        number("FILES"),
        number("BYTES"),
        text("KEEPS"),
        text("GONE BEFORE"),
    ];
    let row = |db: &Database| {
        vec![
            db.name.clone(),
            db.tables.to_string(),
            db.files.to_string(),
            db.bytes.to_string(),
            db.keep.clone().unwrap_or_else(|| "for ever".to_owned()),
            or_dash(db.horizon.as_ref()),
        ]
    };
    render(&columns, &databases.iter().map(row).collect::<Vec<_>>())
}

/// A name that can be a part of a path: what a database may be called is narrower still.
pub(super) fn path_part(name: &str) -> Result<&str, Failure> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.bytes().all(good) {
        return Ok(name);
    }
    Err(Failure::usage(format!("{name:?} is no name of a database: letters, digits, '_' and '-'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see() {
        let home = Database {
            name: "home".into(),
            tables: 2,
            keep: Some("30d".into()),
            horizon: None,
            files: 3,
            bytes: 1_234,
        };
        let want = "NAME  TABLES  FILES  BYTES  KEEPS  GONE BEFORE\nhome       2      3   1234  30d    -\n";
        assert_eq!(table(&[home]), want);
        assert!(path_part("a/b").is_err() && path_part("").is_err() && path_part("a_b-1").is_ok());
    }
}
