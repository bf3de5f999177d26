//! `skein bench bootstrap`: rows are written until the log's beginning is gone; then readers join, one
//! after the other, without any other load. Each has to fetch the engine's files.

use std::time::Duration;

use clap::{Args, value_parser};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure, Target, table},
    types::Role,
};

use super::{
    ClusterArgs,
    arrival::Arrival,
    bodies::Format,
    cluster::Cluster,
    load::now_ns,
    query,
    report::{Setting, progress},
};

/// Longest wait for a node to be level.
const PATIENCE: Duration = Duration::from_secs(900);
/// Between two looks at who is not.
const LOOK: Duration = Duration::from_millis(100);

/// Flags of `skein bench bootstrap`.
#[derive(Debug, Clone, Args)]
pub(super) struct BootstrapArgs {
    /// Requests of 1000 rows that are written first
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Readers that join one after the other; each is removed again before the next one comes
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=100))]
    joins: u16,
    /// Nodes of the cluster that is started for this
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u16).range(1..=5))]
    pub(super) nodes: u16,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    pub(super) profile: String,
    /// Print one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct BootstrapReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    /// Written before.
    rows: u64,
    readers: Vec<Reader>,
}

/// A reader that came.
#[derive(Debug, Serialize)]
struct Reader {
    #[serde(flatten)]
    arrival: Arrival,
    fetched_mb_per_s: f64,
    mb_per_s: Option<f64>,
}

impl From<Arrival> for Reader {
    fn from(arrival: Arrival) -> Self {
        let (fetched_mb_per_s, mb_per_s) = (arrival.fetched_mb_per_s(), arrival.mb_per_s());
        Self { arrival, fetched_mb_per_s, mb_per_s }
    }
}

pub(super) async fn measure(
    args: &BootstrapArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<BootstrapReport, Failure> {
    let edge = cluster.places().await?.writer;
    let rows = args.requests * u64::from(query::ROWS);
    progress(&format!("writing {rows} rows"));
    let written = ClusterArgs::own(args.nodes, &args.profile, "quorum");
    query::write(&written, &edge, Format::default(), args.requests, now_ns()).await?;
    let writer = Client::new(Target::Tcp { authority: edge.authority }, edge.token);
    let nodes = cluster.nodes()?;
    let deadline = Instant::now() + PATIENCE;
    for node in 0..nodes.len() {
        while !nodes.is_level(node).await {
            if Instant::now() > deadline {
                return Err(Failure::new(format!("{} does not become level", nodes.name(node))));
            }
            sleep(LOOK).await;
        }
    }
    let mut readers = Vec::new();
    for turn in 1..=args.joins {
        progress(&format!("reader {turn} of {} joins", args.joins));
        let began = Instant::now();
        for joined in nodes.join_at_once(1, Role::Reader).await? {
            let newcomer = nodes.client(joined.node);
            let arrival = Arrival::follow(&newcomer, &writer, began, began + PATIENCE, || Ok(())).await?;
            readers.push(arrival.into());
            nodes.remove(joined.node).await?;
        }
    }
    Ok(BootstrapReport { bench: "bootstrap", setting, rows, readers })
}

impl BootstrapReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::number("READY S"),
            table::number("FILES MB"),
            table::number("HERE S"),
            table::number("FETCHED MB/S"),
            table::number("LEVEL S"),
            table::number("MB/S"),
        ];
        let row = |reader: &Reader| {
            let Arrival { ready_s, bytes, here_s, level_s } = reader.arrival;
            vec![
                format!("{ready_s:.2}"),
                format!("{:.1}", bytes as f64 / 1e6),
                format!("{here_s:.2}"),
                format!("{:.1}", reader.fetched_mb_per_s),
                level_s.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}")),
                reader.mb_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
            ]
        };
        format!(
            "{}\n{} rows; a reader joins, seconds from the start of its process\n\n{}",
            self.setting.line(),
            self.rows,
            table::render(&columns, &self.readers.iter().map(row).collect::<Vec<_>>())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::setting, *};

    #[test]
    fn readers_as_table() {
        let arrival = Arrival { ready_s: 0.5, bytes: 30_000_000, here_s: 2.0, level_s: Some(3.0) };
        let late = Arrival { level_s: None, ..arrival.clone() };
        let readers = vec![arrival.into(), late.into()];
        let report = BootstrapReport { bench: "bootstrap", setting: setting(), rows: 9, readers };
        let table = report.table();
        let end = "READY S  FILES MB  HERE S  FETCHED MB/S  LEVEL S  MB/S\n   \
                   0.50      30.0    2.00          20.0     3.00  10.0\n   \
                   0.50      30.0    2.00          20.0        -     -\n";
        assert!(table.ends_with(end) && table.contains("\n9 rows; "), "{table}");
    }
}
