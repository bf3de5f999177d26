//! `skein bench start`: what whoever starts a node feels. How long until it is ready, what it takes while
//! it has nothing to do, and how long until it has everything again that was in memory when it was killed.
//!
//! One node. Files that it reads at a start are in memory already, as the program itself is.

use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure, client::query_string, table},
    disk::RealDisk,
    wal::survey,
};

use super::{
    ClusterArgs,
    bodies::Format,
    cluster::Cluster,
    frozen::{Rss, pid_of, watched},
    load::{now_ns, used},
    query,
    replicate::{applied, client},
    report::{Setting, progress, spread},
    spread::Spread,
};

/// Rows of a request that writes.
const ROWS: u64 = 1000;
/// Until a node that has just started has done what comes after that.
const SETTLED: Duration = Duration::from_secs(2);
/// Until a cluster of one has a writer, and a node has its rows again.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at how far the node is.
const LOOK: Duration = Duration::from_millis(2);
/// With these nothing is flushed: all rows are in memory, and in the log.
const UNFLUSHED: [(&str, &str); 2] =
    [("SKEIN_STORAGE_FLUSH_BYTES", "16GiB"), ("SKEIN_STORAGE_FLUSH_AGE", "1h")];

#[derive(Debug, Clone, Args)]
pub(super) struct StartArgs {
    /// How often a node is started with an empty directory, and again
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    starts: u16,
    /// How long the node has nothing to do, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle: u64,
    /// Requests of 1000 rows that are written before the node is killed
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Timeouts of the node: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    pub(super) profile: String,
    /// Print one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct StartReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    /// From the start of the process until it says that it is ready, the cluster made.
    empty: Option<Spread>,
    /// The same of the node that this made, after it was told to stop and has stopped.
    again: Option<Spread>,
    idle: Idle,
    recovery: Recovery,
}

/// A node without rows, peers or clients.
#[derive(Debug, Serialize)]
struct Idle {
    seconds: f64,
    rss: Rss,
    /// Processor time by time, in percent of a core.
    cpu_percent: f64,
}

/// A node that was killed with rows that were in no file but the log. Times are from the start of its process.
#[derive(Debug, Serialize)]
struct Recovery {
    rows: u64,
    /// Of log, up to behind the last record. None of it was flushed.
    wal_bytes: u64,
    ready_s: f64,
    /// Until all is applied, so that queries see it.
    applied_s: f64,
    /// Until a query has counted every row; `None` in a build without SQL.
    counted_s: Option<f64>,
    /// Log by the time until all was applied.
    mb_per_s: f64,
    rows_per_s: f64,
}

pub(super) async fn measure(
    args: &StartArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<StartReport, Failure> {
    let (mut empty, mut again) = (Vec::new(), Vec::new());
    progress(&format!("{} starts with an empty directory, each then stopped and started again", args.starts));
    for _ in 0..args.starts {
        cluster.stop().await;
        *cluster = Cluster::own(1, &args.profile)?;
        let nodes = cluster.nodes()?;
        let began = Instant::now();
        nodes.start_first(&args.profile).await?;
        empty.push(began.elapsed());
        nodes.wait_until_formed(PATIENCE).await?;
        nodes.stop().await;
        let began = Instant::now();
        nodes.restart(0).await?;
        again.push(began.elapsed());
    }
    let idle = idle(args, cluster).await?;
    cluster.stop().await;
    *cluster = Cluster::own(1, &args.profile)?;
    let recovery = recovery(args, cluster).await?;
    let (empty, again) = (Spread::of(empty), Spread::of(again));
    Ok(StartReport { bench: "start", setting, empty, again, idle, recovery })
}

async fn idle(args: &StartArgs, cluster: &mut Cluster) -> Result<Idle, Failure> {
    progress(&format!("nothing to do for {} s", args.idle));
    sleep(SETTLED).await;
    let nodes = cluster.nodes()?;
    let process = pid_of(nodes, nodes.name(0))?;
    let (before, began) = (cluster.cpu()?, Instant::now());
    let wait = async {
        sleep(Duration::from_secs(args.idle)).await;
        Ok(())
    };
    let looks = watched(process, wait).await?;
    let seconds = began.elapsed().as_secs_f64();
    let unreadable = || Failure::new("a process cannot be looked at on this machine");
    let spent = before.zip(cluster.cpu()?).map(|(before, after)| used(&before, &after));
    let spent: Duration =
        spent.ok_or_else(unreadable)?.iter().filter(|(name, _)| name != "bench").map(|(_, time)| *time).sum();
    let rss = Rss::of(looks).ok_or_else(unreadable)?;
    Ok(Idle { seconds, rss, cpu_percent: spent.as_secs_f64() / seconds * 1e2 })
}

async fn recovery(args: &StartArgs, cluster: &mut Cluster) -> Result<Recovery, Failure> {
    let nodes = cluster.nodes()?;
    nodes.set(&UNFLUSHED);
    cluster.start().await?;
    let edge = cluster.places().await?.writer;
    let rows = args.requests * ROWS;
    progress(&format!("writing {rows} rows, none of which is flushed"));
    let to = args.write_to();
    query::write(&to, &edge, Format::default(), args.requests, now_ns()).await?;
    let nodes = cluster.nodes()?;
    let status = nodes.status(0).await.ok_or_else(|| Failure::new("the node does not answer"))?;
    let durable = status.nodes.iter().find(|node| node.id == status.node_id).and_then(|node| node.durable);
    let end = durable.ok_or_else(|| Failure::new("the node does not say what is on its disk"))?;
    nodes.kill(0).await?;
    let log = survey(&RealDisk, &nodes.data_dir(0).join("wal")).await;
    let log = log.map_err(|e| Failure::disk(e.to_string()))?;
    let wal_bytes: u64 = log.segments.iter().map(|segment| segment.bytes).sum();
    progress(&format!("killed; starting it with {wal_bytes} bytes of log"));
    let (node, began) = (client(&edge), Instant::now());
    nodes.restart(0).await?;
    let ready_s = began.elapsed().as_secs_f64();
    while !applied(&node).await.is_ok_and(|applied| applied >= end) {
        if began.elapsed() > PATIENCE {
            return Err(Failure::new("the node does not apply what is in its log"));
        }
        sleep(LOOK).await;
    }
    let applied_s = began.elapsed().as_secs_f64();
    let counted_s = if cfg!(feature = "sql") {
        let found = counted(&node, &to.database).await?;
        if found != rows {
            return Err(Failure::new(format!("{found} of {rows} acknowledged rows are there again")));
        }
        Some(began.elapsed().as_secs_f64())
    } else {
        None
    };
    Ok(Recovery {
        rows,
        wal_bytes,
        ready_s,
        applied_s,
        counted_s,
        mb_per_s: wal_bytes as f64 / 1e6 / applied_s,
        rows_per_s: rows as f64 / applied_s,
    })
}

/// Rows that a query finds.
async fn counted(node: &Client, database: &str) -> Result<u64, Failure> {
    let sql = "SELECT count(*) AS n FROM cpu";
    let pairs = [("db", Some(database)), ("format", Some("json")), ("q", Some(sql))];
    let path = format!("/api/v3/query_sql{}", query_string(&pairs));
    let answer: serde_json::Value = node.send(Method::POST, &path, "").await?.json().await?;
    answer[0]["n"].as_u64().ok_or_else(|| Failure::new("the node's answer is no count"))
}

impl StartArgs {
    fn write_to(&self) -> ClusterArgs {
        ClusterArgs {
            url: Vec::new(),
            nodes: 1,
            profile: self.profile.clone(),
            database: "bench".into(),
            ack: "local".into(),
            json: self.json,
        }
    }
}

impl StartReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("START TO READY"),
            table::number("COUNT"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let row = |what: &str, times: Option<&Spread>| {
            let count = times.map_or(0, |times| times.count);
            let mut row = vec![what.to_owned(), count.to_string()];
            row.extend(spread(times));
            row
        };
        let rows = [
            row("empty directory, cluster made", self.empty.as_ref()),
            row("stopped before, no rows", self.again.as_ref()),
        ];
        let (idle, recovery) = (&self.idle, &self.recovery);
        let counted = recovery.counted_s.map(|seconds| format!(", all counted after {seconds:.2} s"));
        format!(
            "{}\n{}\nidle for {:.0} s: {:.1} MiB resident in the median, {:.1} at most; {:.2} % of a core\n\
             killed with {} rows in {:.1} MB of log and not flushed: ready after {:.2} s, all applied after {:.2} s \
             ({:.1} MB/s, {:.0} rows/s){}\n",
            self.setting.line(),
            table::render(&columns, &rows),
            idle.seconds,
            idle.rss.median_mib,
            idle.rss.max_mib,
            idle.cpu_percent,
            recovery.rows,
            recovery.wal_bytes as f64 / 1e6,
            recovery.ready_s,
            recovery.applied_s,
            recovery.mb_per_s,
            recovery.rows_per_s,
            counted.unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::setting, *};

    #[test]
    fn starts_as_table_and_json() {
        let ms = |all: &[u64]| Spread::of(all.iter().map(|ms| Duration::from_millis(*ms)).collect());
        let report = StartReport {
            bench: "start",
            setting: setting(),
            empty: ms(&[90, 80, 100]),
            again: ms(&[50]),
            idle: Idle { seconds: 20.004, rss: Rss { median_mib: 41.26, max_mib: 42.0 }, cpu_percent: 0.314 },
            recovery: Recovery {
                rows: 5_000_000,
                wal_bytes: 412_345_678,
                ready_s: 0.21,
                applied_s: 2.0,
                counted_s: Some(2.106),
                mb_per_s: 206.17,
                rows_per_s: 2_500_000.0,
            },
        };
        let table = report.table();
        let end = "START TO READY                 COUNT  P50 MS  P99 MS  MAX MS\n\
                   empty directory, cluster made      3   90.00  100.00  100.00\n\
                   stopped before, no rows            1   50.00   50.00   50.00\n\
                   \nidle for 20 s: 41.3 MiB resident in the median, 42.0 at most; 0.31 % of a core\n\
                   killed with 5000000 rows in 412.3 MB of log and not flushed: ready after 0.21 s, all applied \
                   after 2.00 s (206.2 MB/s, 2500000 rows/s), all counted after 2.11 s\n";
        assert!(table.ends_with(end), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["again"]["p50_ms"], &json["idle"]["rss"]["max_mib"]), (&50.0.into(), &42.0.into()));
        assert_eq!(json["recovery"]["wal_bytes"], 412_345_678);
    }
}
