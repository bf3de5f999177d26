//! `skein finalise`: the end of an upgrade.

use clap::Args;
use hyper::Method;

use super::{Client, Failure, TargetArgs, output};
use crate::node::UpgradeReport;

/// Flags of `skein finalise`.
#[derive(Debug, Args)]
pub(super) struct FinaliseArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: FinaliseArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let report: UpgradeReport =
        client.send(Method::POST, "/api/v1/cluster/finalise", "").await?.json().await?;
    let text = format!(
        "feature level {}: no older version is let in, nor started again on what is here\n",
        report.level
    );
    output::done(args.json, &report, &text)
}
