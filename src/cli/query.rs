//! `skein query`.

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::Value;

use super::{Client, Failure, TargetArgs, client::query_string, output};

/// Flags of `skein query`.
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The question
    sql: String,
    /// Database in which tables without one are looked for
    #[arg(short = 'd', long = "database", value_name = "DB", default_value = "default")]
    database: String,
    /// Value for the parameter $NAME of the question: a number, true, false or null, else a text
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, Value)>,
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
    let given: serde_json::Map<String, Value> = args.parameters.iter().cloned().collect();
    let given = (!given.is_empty()).then(|| Value::from(given).to_string());
    let pairs = [
        ("db", Some(args.database.as_str())),
        ("format", Some(args.format.asked())),
        (name, Some(value)),
        ("timeout", args.timeout.as_deref()),
        ("params", given.as_deref()),
        ("q", Some(args.sql.as_str())),
    ];
    format!("/api/v3/query_sql{}", query_string(&pairs))
}

/// `NAME=VALUE`. A text that would be read as something else is written in JSON's quotes.
fn parameter(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    let name = name.strip_prefix('$').unwrap_or(name);
    let json = serde_json::from_str::<Value>(value).ok();
    let json = json.filter(|value| !value.is_array() && !value.is_object());
    Ok((name.to_owned(), json.unwrap_or_else(|| value.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked() {
        let mut args = QueryArgs {
            sql: "select 'a&b' from cpu".into(),
            database: "home".into(),
            parameters: Vec::new(),
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
        args.parameters = ["a=1", "$b=x y"].map(|text| parameter(text).unwrap()).to_vec();
        assert!(
            path(&args).contains("&params=%7B%22a%22%3A1%2C%22b%22%3A%22x%20y%22%7D&"),
            "{}",
            path(&args)
        );
        for (text, want) in [
            ("n=-1.5", serde_json::json!(-1.5)),
            ("n=true", true.into()),
            ("n=null", Value::Null),
            ("n=\"7\"", "7".into()),
            ("n=[1]", "[1]".into()),
            ("n=a=b", "a=b".into()),
            ("n=", "".into()),
        ] {
            assert_eq!(parameter(text).unwrap(), ("n".to_owned(), want), "{text}");
        }
        assert!(parameter("n").is_err());
    }
}
