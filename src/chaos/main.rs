//! The program `skein-chaos`: real nodes on a network and on disks made for them, a nemesis that
//! follows a seed, clients that remember every answer, and a checker. `docs/testing.md` has the how.
//!
//! Under the name `skein` it *is* `skein`: what is tested is always what was built with it.
#![forbid(unsafe_code)]

mod check;
mod claims;
mod clients;
mod cluster;
mod commands;
mod crash_images;
mod disk;
mod faults;
mod feed;
mod history;
mod http;
mod isolation;
mod ledger;
mod logs;
mod nemesis;
mod network;
mod power_loss;
mod process;
mod recorder;
mod registers;
mod relay;
mod report;
mod run;
mod timeline;
mod weather;

use std::{path::Path, process::ExitCode};

use clap::Parser;

use faults::Kind;

/// Real nodes under faults, and a checker. Needs root: the nodes get network namespaces and file
/// systems of their own, which end with the program however it ends.
#[derive(Debug, Clone, Parser)]
#[command(name = "skein-chaos", version)]
struct Args {
    /// How many nodes: 3 or 5
    #[arg(long, default_value_t = 3, value_parser = nodes)]
    nodes: u8,
    /// How long faults are made, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Decides the faults and their order [default: drawn, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Only these faults, for example kill,pause-writer
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    faults: Vec<Kind>,
    /// Multiplies the bounds on healing, for a machine that others use too; never a check
    #[arg(long, default_value_t = 1.0, value_parser = patience)]
    patience: f64,
    /// Instead: a lone node, and so many power losses of a real file system
    #[arg(long, value_name = "CYCLES", conflicts_with_all = ["nodes", "seconds", "faults"])]
    power_loss: Option<u32>,
    /// Instead: a lone node, and what so many crashes could leave of its disk
    #[arg(long, value_name = "IMAGES", conflicts_with_all = ["nodes", "seconds", "faults", "power_loss"])]
    crash_images: Option<u32>,
    /// One line of JSON at the end, and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// Keep logs and disks of a run without violations too
    #[arg(long)]
    keep: bool,
    /// The program has namespaces of its own already
    #[arg(long, hide = true)]
    inside: bool,
}

fn nodes(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(count @ (3 | 5)) => Ok(count),
        // A fourth would not vote.
        _ => Err("want 3 or 5".to_owned()),
    }
}

fn patience(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(factor) if (1.0..=20.0).contains(&factor) => Ok(factor),
        _ => Err("want a factor from 1 to 20".to_owned()),
    }
}

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == process::PROGRAM) {
        skeinmesh::testing::mutant::plant_from_environment();
        return skeinmesh::cli::main();
    }
    let args = Args::parse();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skein-chaos: needs root, for network namespaces and mounts of its own (try sudo)");
        return ExitCode::from(2);
    }
    if !args.inside {
        return isolation::enter().report();
    }
    run::run(&args)
}
