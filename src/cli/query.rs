//! `skein query`.

use clap::{Args, ValueEnum};
use hyper::Method;

use super::{Client, Failure, TargetArgs, client::query_string, output};

/// Flags of `skein query`.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The question
    sql: String,
    /// Database in which tables without one are looked for
    #[arg(short = 'd', long = "database", value_name = "DB", default_value = "default")]
    database: String,
    /// Form of the answer
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// How fresh the data must be: local, linearizable, min_lsn=EPOCH.SEQ or max_staleness=200ms
    #[arg(long, default_value = "local")]
    consistency: String,
    /// Longest time, such as 30s
    #[arg(long)]
    timeout: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Jsonl,
    Csv,
}

impl Format {
    const fn asked(self) -> &'static str {
        match self {
            Self::Table => "pretty",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

pub(super) async fn run(args: QueryArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let mut answer = client.send(Method::POST, &path(&args), "").await?;
    let mut last = None;
    while let Some(chunk) = answer.chunk().await? {
        last = chunk.last().copied().or(last);
        output::bytes(&chunk)?;
    }
    if last.is_some_and(|byte| byte != b'\n') {
        output::print("\n")?;
    }
    Ok(())
}

fn path(args: &QueryArgs) -> String {
    let (name, value) = args.consistency.split_once('=').unwrap_or(("consistency", &args.consistency));
    let pairs = [
        ("db", Some(args.database.as_str())),
        ("format", Some(args.format.asked())),
        (name, Some(value)),
        ("timeout", args.timeout.as_deref()),
        ("q", Some(args.sql.as_str())),
    ];
    format!("/api/v3/query_sql{}", query_string(&pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked() {
        let mut args = QueryArgs {
            sql: "select 'a&b' from cpu".into(),
            database: "home".into(),
            format: Format::Table,
            consistency: "linearizable".into(),
            timeout: None,
            target: TargetArgs::default(),
        };
        assert_eq!(
            path(&args),
            "/api/v3/query_sql?db=home&format=pretty&consistency=linearizable&q=select%20%27a%26b%27%20from%20cpu"
        );
        args.consistency = "min_lsn=3.7".into();
        args.timeout = Some("5s".into());
        assert!(path(&args).contains("&min_lsn=3.7&timeout=5s&"));
    }
}
