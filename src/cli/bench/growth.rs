//! `skein bench growth`: what a row costs as there are more tables and more series, and a write and an idle
//! cluster as there are more voters.
//!
//! Each point has a node of its own that holds nothing else: on one that all points share the later ones
//! would pay for what the earlier ones left, in files, memory and catalog. Before a point is measured every
//! table and every host has been written once, and what that cost per row stands beside it. Rows of one part
//! are equally long; in each body of 1000 rows names come in the order of a lot, as they do from many agents.
//!
//! A flush costs by its tables too, and counts as far as it falls into the time: a slow point may see none.
//! For that give it more `--seconds`, or the nodes a lower `SKEIN_STORAGE_FLUSH_BYTES`.

mod figures;
mod voters;

use std::time::Duration;

use clap::Args;

use crate::cli::Failure;

use super::{
    ClusterArgs, LoadArgs,
    bodies::{Bodies, Format, KINDS},
    cluster::Cluster,
    fleet::Fleet,
    frozen::{MIB, pid_of, rss},
    load::{Place, stamps, used},
    report::{Load, Setting, progress},
};

pub(super) use figures::GrowthReport;
use figures::{Cost, Point, Quorum};

/// Rows of a request.
const ROWS: u32 = 1000;

#[derive(Debug, Clone, Args)]
pub(super) struct GrowthArgs {
    /// How many tables rows are spread over, point by point
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [1, 10, 100, 1000, 10_000],
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tables: Vec<u32>,
    /// How many rows of one table come together: 1000 make each body one of a single table
    #[arg(long, value_name = "ROWS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    together: u32,
    /// Leave tables out
    #[arg(long, conflicts_with = "tables")]
    no_tables: bool,
    /// How many hosts write to one table, point by point; takes about 100 bytes of memory for each
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [1000, 10_000, 100_000, 1_000_000],
        value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    series: Vec<u32>,
    /// Leave series out
    #[arg(long, conflicts_with = "series")]
    no_series: bool,
    /// How many voters a cluster has, point by point: 1, 2, 3 or 5
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [1, 3, 5], value_parser = voters::count)]
    voters: Vec<u16>,
    /// Leave voters out
    #[arg(long, conflicts_with = "voters")]
    no_voters: bool,
    /// How long rows are written, at each point
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Writes of one row, one after the other, at each number of voters
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    writes: u32,
    /// How long nothing is written, at each number of voters, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle: u64,
    /// Timeouts of the clusters: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    pub(super) profile: String,
    /// Draw the figures into this file too
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<std::path::PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) async fn measure(
    args: &GrowthArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<GrowthReport, Failure> {
    let mut report = GrowthReport::new(setting, args.together);
    for count in args.tables.iter().filter(|_| !args.no_tables) {
        let fleet = Fleet::of_tables(*count, args.together);
        let cost = cost(args, cluster, (*count, count * args.together), "tables", fleet).await;
        report.tables.push(Point::of(*count, cost, report.tables.first()));
    }
    for count in args.series.iter().filter(|_| !args.no_series) {
        let cost = cost(args, cluster, (*count, *count), "series", Fleet::of_hosts(*count)).await;
        report.series.push(Point::of(*count, cost, report.series.first()));
    }
    for count in args.voters.iter().filter(|_| !args.no_voters) {
        progress(&format!("{count} voters"));
        fresh(cluster, *count, &args.profile).await?;
        let quorum: Quorum = voters::measure(args, cluster, *count).await?;
        report.voters.push(quorum.against(report.voters.first()));
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, report.plot())
            .map_err(|e| Failure::new(format!("cannot write {}: {e}", file.display())))?;
    }
    Ok(report)
}

/// So many new nodes in place of those that were there.
async fn fresh(cluster: &mut Cluster, nodes: u16, profile: &str) -> Result<(), Failure> {
    cluster.stop().await;
    *cluster = Cluster::own(nodes, profile)?;
    cluster.start().await
}

/// `all`: rows that name each of the `count` once.
async fn cost(
    args: &GrowthArgs,
    cluster: &mut Cluster,
    (count, all): (u32, u32),
    of: &'static str,
    mut fleet: Fleet,
) -> Result<Cost, Failure> {
    progress(&format!("{count} {of}"));
    fresh(cluster, 1, &args.profile).await?;
    let edge = cluster.places().await?.writer;
    let process = pid_of(cluster.nodes()?, &edge.name)?;
    let (load, mut rng) = (args.load(), rand::rng());
    let stamps = stamps(&load);
    let kinds = (all.div_ceil(ROWS * u32::from(args.connections)) as usize).max(KINDS);
    let bodies = || Bodies::of(&mut fleet, kinds, ROWS, stamps.clone(), &mut rng);
    let mut place = Place::with(&load, edge.clone(), of, bodies);
    let before = cluster.cpu()?;
    for _ in 0..kinds {
        place.warm_up().await?;
    }
    let rows = kinds as f64 * f64::from(ROWS) * f64::from(args.connections);
    let spent = before.zip(cluster.cpu()?).map(|(before, after)| used(&before, &after));
    let spent = spent.and_then(|used| used.into_iter().find(|(name, _)| *name == edge.name));
    place.drive(Duration::from_secs(args.seconds), cluster).await?;
    let load: Load = place.result()?;
    Ok(Cost {
        cpu_ns_per_row: load.nodes_cpu_ns_per_row,
        first_cpu_ns_per_row: spent.map(|(_, time)| time.as_nanos() as f64 / rows),
        rss_mib: rss(process)?.map(|bytes| bytes as f64 / MIB),
        load,
    })
}

impl GrowthArgs {
    fn cluster(&self, nodes: u16, ack: &str) -> ClusterArgs {
        ClusterArgs {
            url: Vec::new(),
            nodes,
            profile: self.profile.clone(),
            database: "bench".into(),
            ack: ack.to_owned(),
            json: self.json,
        }
    }

    fn load(&self) -> LoadArgs {
        LoadArgs {
            cluster: self.cluster(1, "local"),
            connections: self.connections,
            rows: ROWS,
            seconds: self.seconds,
            format: Format::LineProtocol,
            rate: None,
        }
    }
}
