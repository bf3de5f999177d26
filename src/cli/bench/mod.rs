//! `skein bench`: what a cluster does per second, how long one write takes, how long it is without a
//! writer, how soon a node is there, and what a frozen reader, a flood of strangers or growth costs. [`run`]
//! brings up a cluster of its own unless it is given one.

mod arrival;
mod bodies;
mod bootstrap;
mod cluster;
mod connection;
mod dashboard;
mod failover;
mod felt;
mod fleet;
mod flood;
mod frozen;
mod growth;
mod hostile;
mod join;
mod lan;
mod lanes;
mod latency;
mod load;
mod metrics;
mod net;
mod plot;
mod pulse;
mod query;
mod replicate;
mod report;
mod spread;
mod startup;
mod strangers;
mod traffic;

use clap::{Args, Subcommand};

use bodies::Format;
use cluster::{Cluster, Edge};
use growth::GrowthArgs;
use startup::StartArgs;

use crate::node::AckLevel;

use super::{Failure, Target, output, start::Stop};

/// Flags of `skein bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Rows per second at the writer
    Write(LoadArgs),
    /// The same load, in line protocol, on another program that takes it: InfluxDB, VictoriaMetrics
    Foreign(ForeignArgs),
    /// Rows per second at a node that is not the writer, against the writer
    Forward(ForwardArgs),
    /// Time of one single-row write after another, at the writer and at another node
    Latency(LatencyArgs),
    /// How far followers are behind the writer, and how fast one comes back that was away
    Replicate(LoadArgs),
    /// How fast a newcomer fetches the engine's files, from the start of its join until it is level
    Bootstrap(bootstrap::BootstrapArgs),
    /// Whether a snapshot that fills a link starves heartbeats, on links of a given rate (needs root and iproute2)
    Lanes(lanes::LanesArgs),
    /// Time and processor time of a few queries over rows that are written first
    Query(query::QueryArgs),
    /// What users feel while others ask what costs a node the most
    Hostile(HostileArgs),
    /// How soon a node is ready, what it takes when it has nothing to do, and how soon it has all rows again
    /// after it was killed
    Start(StartArgs),
    /// What a row costs with more tables and more series, and a write with more voters
    Growth(GrowthArgs),
    /// Kill the writer again and again: time without one, and whether a row is missing
    Failover(FailoverArgs),
    /// How long nodes take to join: one after the other, many at once by one token, and from nothing to three
    /// voters on a LAN of its own (needs root and iproute2)
    Join(JoinArgs),
    /// Freeze a reader at full ingest: memory and latency of the writer, and how soon it is level again
    FrozenReader(FrozenArgs),
    /// Flood the writer with handshakes of strangers at full ingest: rows per second kept, and memory
    Flood(FloodArgs),
}

/// Which cluster is measured.
#[derive(Debug, Clone, Args)]
struct ClusterArgs {
    /// Measure the cluster of these nodes [default: one of its own on this machine]
    #[arg(long, value_name = "URL", num_args = 1..)]
    url: Vec<String>,
    /// Nodes of the cluster that is started for this
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9), conflicts_with = "url")]
    nodes: u16,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"], conflicts_with = "url")]
    profile: String,
    /// Database that the rows go to
    #[arg(short = 'd', long = "database", value_name = "DB", default_value = "bench")]
    database: String,
    /// When a write counts as written: memory, local, quorum or all
    #[arg(long, default_value = "quorum", value_parser = AckLevel::EVERY.map(AckLevel::as_str))]
    ack: String,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
struct LoadArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Rows of a request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// What bodies are written in
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Requests per second of all connections together, sent when they are due whatever became of
    /// those before; a time is counted from when its request was due. [default: the next request
    /// follows the answer]
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How long, at each place
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Debug, Clone, Args)]
struct ForeignArgs {
    /// Where it listens
    #[arg(long, value_name = "URL")]
    url: String,
    /// Where it takes line protocol with times in nanoseconds
    #[arg(long, default_value = "/write?db=bench&precision=ns")]
    path: String,
    /// Its process, whose processor time counts
    #[arg(long)]
    pid: Option<u32>,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Rows of a request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

impl ForeignArgs {
    fn edge(&self) -> Result<Edge, Failure> {
        match Target::parse(&self.url)? {
            Target::Tcp { authority } => Ok(Edge { name: authority.clone(), authority, token: None }),
            _ => Err(Failure::usage(format!("{}: the bench speaks plain HTTP only", self.url))),
        }
    }
}

#[derive(Debug, Clone, Args)]
struct ForwardArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Writer and other node take turns so often, so that a busy machine is so to both
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

#[derive(Debug, Clone, Args)]
struct LatencyArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Writes at each place
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    writes: u32,
}

#[derive(Debug, Clone, Args)]
struct HostileArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Requests of 1000 rows that are written first
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Clients that ask hostile statements, one behind the other
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    attackers: u16,
    /// How long in all, with and without them
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// With and without take turns so often, so that a busy machine is so to both
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    rounds: u32,
}

#[derive(Debug, Clone, Args)]
struct FailoverArgs {
    /// How often the writer is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    kills: u32,
    /// Nodes of the cluster that is started for this
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    nodes: u16,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    profile: String,
    /// When a write counts as written: local or quorum
    #[arg(long, default_value = "quorum", value_parser = ["local", "quorum"])]
    ack: String,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
struct JoinArgs {
    /// Nodes that join one after the other; each is removed again before the next one comes. 0 for none
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    joins: u16,
    /// Nodes that are started at once with one token of as many uses; 0 for none
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=100))]
    at_once: u16,
    /// What they join as: reader or voter
    #[arg(long, default_value = "reader", value_parser = ["reader", "voter"])]
    role: String,
    /// Do not make three nodes in network namespaces
    #[arg(long)]
    no_lan: bool,
    /// Voters of the cluster that is started for this
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=5))]
    nodes: u16,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    profile: String,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
struct FrozenArgs {
    /// How long the reader is frozen in all; it runs as long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Frozen and running take turns so often, so that a busy machine is so to both
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    rounds: u32,
    /// Connections to the writer, each with one request at a time
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Rows of a request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    profile: String,
    /// When a write counts as written: memory, local, quorum or all
    #[arg(long, default_value = "quorum", value_parser = AckLevel::EVERY.map(AckLevel::as_str))]
    ack: String,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
struct FloodArgs {
    /// How long the writer is flooded in all; it is left alone as long
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Flooded and not take turns so often, so that a busy machine is so to both
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    rounds: u32,
    /// Handshakes per second that are begun from addresses that never answer
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    rate: u32,
    /// Whole handshakes per second by keys of no member
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    handshakes: u32,
    /// Connections to another node than the writer, each with one request at a time
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Rows of a request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// Nodes of the cluster that is started for this
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=9))]
    nodes: u16,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    profile: String,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Measures and prints. Exit code 1 if an acknowledged row is missing.
pub(super) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let mut cluster = match &args.command {
        BenchCommand::Write(args) => Cluster::of(&args.cluster)?,
        BenchCommand::Foreign(args) => Cluster::foreign(&args.edge()?, args.pid),
        BenchCommand::Replicate(args) => Cluster::of(&args.cluster)?,
        BenchCommand::Forward(args) => Cluster::of(&args.load.cluster)?,
        BenchCommand::Latency(args) => Cluster::of(&args.cluster)?,
        BenchCommand::Bootstrap(args) => Cluster::without_an_old_log(args.nodes, &args.profile)?,
        BenchCommand::Lanes(args) => args.cluster(),
        BenchCommand::Query(args) => Cluster::of(&args.cluster)?,
        BenchCommand::Hostile(args) => Cluster::of(&args.cluster)?,
        BenchCommand::Start(args) => Cluster::own(1, &args.profile)?,
        BenchCommand::Growth(args) => Cluster::own(1, &args.profile)?,
        BenchCommand::Failover(args) => Cluster::own(args.nodes, &args.profile)?,
        BenchCommand::Join(args) => Cluster::own(args.nodes, &args.profile)?,
        BenchCommand::FrozenReader(args) => Cluster::with_a_reader(3, &args.profile)?,
        BenchCommand::Flood(args) => Cluster::own(args.nodes, &args.profile)?,
    };
    let measured = tokio::select! {
        measured = measure(args.command, &mut cluster) => measured,
        () = stop.asked() => Err(Failure::new("stopped before the end")),
    };
    cluster.stop().await;
    measured
}

async fn measure(command: BenchCommand, cluster: &mut Cluster) -> Result<(), Failure> {
    cluster.start().await?;
    let setting = cluster.setting()?;
    match command {
        BenchCommand::Write(args) => {
            let report = load::write(&args, cluster, setting).await?;
            if args.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Foreign(args) => {
            let report = load::foreign(&args, args.edge()?, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Forward(args) => {
            let report = load::forward(&args, cluster, setting).await?;
            if args.load.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Latency(args) => {
            let report = latency::measure(&args, cluster, setting).await?;
            if args.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::FrozenReader(args) => {
            let report = frozen::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Flood(args) => {
            let report = flood::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Join(args) => {
            let report = join::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Replicate(args) => {
            let report = replicate::measure(&args, cluster, setting).await?;
            if args.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Bootstrap(args) => {
            let report = bootstrap::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Lanes(args) => {
            let report = lanes::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Query(args) => {
            let report = query::measure(&args, cluster, setting).await?;
            if args.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Hostile(args) => {
            let report = hostile::measure(&args, cluster, setting).await?;
            if args.cluster.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Start(args) => {
            let report = startup::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Growth(args) => {
            let report = growth::measure(&args, cluster, setting).await?;
            if args.json { output::json(&report) } else { output::print(&report.table()) }
        }
        BenchCommand::Failover(args) => {
            let report = failover::measure(&args, cluster, setting).await?;
            if args.json {
                output::json(&report)?;
            } else {
                output::print(&report.table())?;
            }
            match report.missing() {
                0 => Ok(()),
                missing => Err(Failure::new(format!("{missing} acknowledged rows are missing"))),
            }
        }
    }
}
