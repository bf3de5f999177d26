//! `skein doctor`: looks at the cluster, at the ways to its members and at this machine, and says what is
//! wrong or soon will be, what that means and what to do. Changes nothing.

mod cluster;
mod machine;
mod reach;

use clap::Args;
use serde::Serialize;

use super::{Client, Failure, TargetArgs, flags::this_host, output};
use crate::{
    config::{Config, Flag},
    node::ClusterStatus,
};

/// Flags of `skein doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Configuration file (TOML): mesh.listen, the interfaces and the data directory in it count
    #[arg(long, value_name = "FILE", env = "SKEIN_CONFIG")]
    config: Option<std::path::PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Could not be looked at from here.
    Skip,
    /// It works, but not for ever, or not if one thing more goes wrong.
    Warn,
    /// It does not work.
    Fail,
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    /// What was seen.
    says: String,
    /// What it means; nothing for what is as it should be.
    #[serde(skip_serializing_if = "str::is_empty")]
    means: &'static str,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    todo: String,
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, says: says.into(), means: "", todo: String::new() }
    }

    fn skip(check: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Skip, ..Self::ok(check, says) }
    }

    fn warn(
        check: &'static str,
        says: impl Into<String>,
        means: &'static str,
        todo: impl Into<String>,
    ) -> Self {
        Self { check, level: Level::Warn, says: says.into(), means, todo: todo.into() }
    }

    fn fail(
        check: &'static str,
        says: impl Into<String>,
        means: &'static str,
        todo: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, ..Self::warn(check, says, means, todo) }
    }
}

/// Everything found, and how bad the worst is.
#[derive(Debug, Serialize)]
struct Report {
    worst: Level,
    findings: Vec<Finding>,
}

/// Looks, prints, and fails if anything does.
pub(super) async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let dir = args.target.data_dir.as_ref().map(|dir| dir.display().to_string());
    let flags: Vec<Flag> =
        dir.into_iter().map(|value| Flag { key: "data.dir", flag: "--data-dir", value }).collect();
    let config = Config::load(args.config.as_deref(), |name| std::env::var(name).ok(), &flags, &this_host())?;
    let findings = look(&args, &config).await?;
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let report = Report { worst, findings };
    if args.json {
        output::json(&report)?;
    } else {
        output::print(&show(&report.findings))?;
    }
    // What is wrong has been said.
    if worst == Level::Fail { Err(Failure::new("")) } else { Ok(()) }
}

async fn look(args: &DoctorArgs, config: &Config) -> Result<Vec<Finding>, Failure> {
    let mut found = Vec::new();
    let status: Option<ClusterStatus> = match args.target.resolve() {
        Ok(target) => match Client::from_env(target).get("/api/v1/cluster").await {
            Ok(status) => Some(status),
            Err(error) => {
                found.push(no_node(error.to_string()));
                None
            }
        },
        // A URL that is none is a mistake of the command line; a socket that is not there is a finding.
        Err(super::ClientError::Unreachable { error, target, .. }) => {
            found.push(no_node(format!("no node answers at {target}: {error}")));
            None
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(status) = &status {
        found.extend(cluster::judge(status));
        found.extend(reach::look(status).await?);
    }
    found.push(machine::interfaces(config));
    found.extend(machine::disk(config, args.target.url.is_some()).await);
    Ok(found)
}

fn no_node(says: String) -> Finding {
    Finding::fail(
        "node",
        says,
        "What the cluster knows of itself cannot be asked; what follows is about this machine only.",
        "start it (skein start), or name another node with --url or --data-dir",
    )
}

/// A line for each finding, below it what it means and what to do.
fn show(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Skip => "-   ",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        // Names come from elsewhere and may not move the cursor.
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        out.push_str(&format!("{level}  {:width$}  {}\n", finding.check, clean(&finding.says)));
        let indent = " ".repeat(width + 8);
        if !finding.means.is_empty() {
            out.push_str(&format!("{indent}{}\n", finding.means));
        }
        if !finding.todo.is_empty() {
            out.push_str(&format!("{indent}-> {}\n", clean(&finding.todo)));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    out.push_str(&match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => "\nNothing is wrong.\n".to_owned(),
        (fails, warns) => format!("\n{fails} failed, {warns} to look at.\n"),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_it_means_and_what_to_do() {
        let findings = [
            Finding::ok("quorum", "3 of 3 voters answer"),
            Finding::warn("certificates", "b\u{1b}[2J: 4 days", "It is not renewed.", "look at its log"),
        ];
        let lines: Vec<String> = show(&findings).lines().map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "ok    quorum        3 of 3 voters answer",
                "WARN  certificates  b[2J: 4 days",
                "                    It is not renewed.",
                "                    -> look at its log",
                "",
                "0 failed, 1 to look at.",
            ]
        );
        assert!(show(&findings[..1]).ends_with("\nNothing is wrong.\n"));
        let json = serde_json::to_value(&findings[1]).unwrap();
        assert_eq!((&json["level"], &json["todo"]), (&"warn".into(), &"look at its log".into()));
    }
}
