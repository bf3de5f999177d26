//! `skein inspect`: what lies in a data directory while no node runs on it. Only `inspect wal
//! --repair --accept-loss` changes anything.

mod manifest;
mod raft;
mod snapshot;
mod wal;

use std::{path::PathBuf, sync::Arc};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Failure;
use crate::{
    config,
    disk::{Disk, RealDisk},
    identity::DataDir,
};

/// Commands under `skein inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The log: segments, epochs, promise, damage; and mending it
    Wal(wal::WalArgs),
    /// The raft log: entries, vote, members, who writes
    Raft(PlaceArgs),
    /// The checkpoint: tables, files, rows, up to where the log is in it
    Manifest(manifest::ManifestArgs),
    /// The raft snapshot, and an engine snapshot that is being fetched
    Snapshot(PlaceArgs),
}

/// Where to look, and how to show it.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// The data directory; no node may run on it [default: as for skein start]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: InspectArgs) -> Result<(), Failure> {
    match args.what {
        What::Wal(args) => wal::run(args).await,
        What::Raft(args) => raft::run(args).await,
        What::Manifest(args) => manifest::run(args).await,
        What::Snapshot(args) => snapshot::run(args).await,
    }
}

impl PlaceArgs {
    /// The directory, held against other processes, and the disk it is on.
    fn open(&self) -> Result<(DataDir, Arc<dyn Disk>), Failure> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = self.data_dir.clone().or_else(|| env("SKEIN_DATA_DIR").map(PathBuf::from));
        let root = rustix::process::geteuid().is_root();
        let dir = named
            .or_else(|| config::default_data_dir(root, env))
            .ok_or_else(|| Failure::usage("no data directory: name one with --data-dir"))?;
        if !dir.is_dir() {
            return Err(Failure::usage(format!("{} is no directory", dir.display())));
        }
        let held = DataDir::open(&dir).map_err(|e| Failure::disk(e.to_string()))?;
        Ok((held, Arc::new(RealDisk)))
    }
}

/// A file and its length.
#[derive(Debug, Serialize)]
struct FileLine {
    file: String,
    bytes: u64,
}

fn file_lines(files: &[(String, u64)]) -> Vec<FileLine> {
    files.iter().map(|(file, bytes)| FileLine { file: file.clone(), bytes: *bytes }).collect()
}
