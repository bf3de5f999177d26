//! `skein restore`: a backup becomes a new cluster, or databases of a running one.

mod new_cluster;
mod running;

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;

use super::{Client, Failure, TargetArgs, archive::Archive, backup::verify};

/// `skein restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// Only this database; may be given several times [default: all]
    #[arg(short, long, value_name = "NAME")]
    database: Vec<String>,
    /// Into a database of this name; needs one --database
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Into a database that has points already: points of the backup replace those of the same series and time
    #[arg(long)]
    merge: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) async fn run(args: RestoreArgs) -> Result<(), Failure> {
    if args.name.is_some() && args.database.len() != 1 {
        return Err(Failure::usage("--as names what one database becomes: say which with --database"));
    }
    // Whoever names a directory without a member in it means a cluster that is not there yet.
    let new = args
        .target
        .data_dir
        .clone()
        .filter(|dir| args.target.url.is_none() && !dir.join("cluster.json").exists());
    if new.is_some() && (args.name.is_some() || args.merge) {
        let why = "--as and --merge are for a running cluster, and no node has lived in that --data-dir";
        return Err(Failure::usage(why));
    }
    // Before anything is changed: every byte of it.
    let archive = Archive::open(&args.file)?;
    let saved = verify(&archive)?;
    let wanted: Option<BTreeSet<String>> =
        (!args.database.is_empty()).then(|| args.database.iter().cloned().collect());
    let there: BTreeSet<String> = saved.databases().into_iter().map(|database| database.name).collect();
    if let Some(missing) = wanted.iter().flatten().find(|name| !there.contains(*name)) {
        let all = there.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!("the backup has no database {missing}; it has: {all}")));
    }
    match new {
        Some(dir) => {
            let restoring =
                new_cluster::Restoring { archive: &archive, saved: &saved, backup: &args.file, dir: &dir };
            restoring.run(wanted.as_ref(), args.json).await
        }
        None => {
            let restoring = running::Restoring {
                archive: &archive,
                saved: &saved,
                client: Client::from_env(args.target.resolve()?),
                name: args.name.as_deref(),
                merge: args.merge,
            };
            restoring.run(wanted.as_ref(), args.json).await
        }
    }
}
