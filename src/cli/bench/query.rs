//! `skein bench query`: rows are written, and then the questions of a dashboard asked, each again and
//! again, with what the node's processor spent on an answer; and many rows read as an Arrow stream.

use std::time::Duration;

use clap::{Args, value_parser};
use futures::future::join_all;
use hyper::Method;
use serde::Serialize;
use tokio::time::Instant;

use crate::cli::{Client, Failure, Target, client::query_string, table};

use super::{
    ClusterArgs,
    bodies::{Bodies, Format, Stamps},
    cluster::{Cluster, Edge},
    connection::Connection,
    dashboard::{self, Dashboard, DashboardArgs},
    load::{now_ns, used},
    report::{Setting, progress, spread},
    spread::Spread,
};

/// Rows of a request that writes.
pub(super) const ROWS: u32 = 1000;
/// Connections that write.
const CONNECTIONS: u64 = 12;
/// The newest rows of all, as a share: rows are a nanosecond apart, so a share stands for "the last hour".
const RECENT: u64 = 10;
/// How often rows are read as an Arrow stream.
const STREAMS: u32 = 3;

/// Flags of `skein bench query`.
#[derive(Debug, Clone, Args)]
pub(super) struct QueryArgs {
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
    /// What bodies are written in
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Requests of 1000 rows that are written first
    #[arg(long, default_value_t = 2000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// How often each query is asked
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Most rows that are read as one Arrow stream, if so many are written; 0 for none
    #[arg(long, default_value_t = 5_000_000, value_parser = value_parser!(u64).range(0..=10_000_000))]
    arrow_rows: u64,
    #[command(flatten)]
    pub(super) dashboard: DashboardArgs,
}

pub(super) async fn measure(
    args: &QueryArgs,
    cluster: &Cluster,
    setting: Setting,
) -> Result<QueryReport, Failure> {
    let edge = cluster.places().await?.writer;
    let first = now_ns();
    progress(&format!("writing {} rows", args.requests * u64::from(ROWS)));
    write(&args.cluster, &edge, args.format, args.requests, first).await?;
    let recent = first + args.requests * u64::from(ROWS) / RECENT * (RECENT - 1);
    let mut questions = Vec::new();
    for (name, sql) in asked(recent) {
        progress(&format!("{} x {name}", args.runs));
        questions.push(ask(args, cluster, &edge, name, &sql).await?);
    }
    let rows = args.requests * u64::from(ROWS);
    let arrow = match rows.min(args.arrow_rows) {
        0 => None,
        most => Some(stream(args, &edge, most).await?),
    };
    let dashboard = match args.dashboard.ingest {
        false => None,
        true => Some(dashboard::measure(args, cluster, &edge, recent..first + rows).await?),
    };
    Ok(QueryReport { bench: "query", setting, node: edge.name, rows, questions, arrow, dashboard })
}

/// Writes so many thousand rows. Every row is acknowledged when this returns.
pub(super) async fn write(
    cluster: &ClusterArgs,
    edge: &Edge,
    format: Format,
    requests: u64,
    first: u64,
) -> Result<(), Failure> {
    let stamps = Stamps::new(ROWS, first);
    let each = |nth: u64| {
        let mut connection = Connection::new(edge.clone(), format, &cluster.database, &cluster.ack);
        let mut bodies = Bodies::new(format, ROWS, stamps.clone(), &mut rand::rng());
        let mine = requests / CONNECTIONS + u64::from(nth < requests % CONNECTIONS);
        async move {
            for _ in 0..mine {
                connection.post(bodies.next()).await?;
            }
            Ok::<_, String>(())
        }
    };
    let written = join_all((0..CONNECTIONS).map(each)).await;
    let refused = |error| Failure::new(format!("{} does not take a write: {error}", edge.name));
    written.into_iter().collect::<Result<(), _>>().map_err(refused)
}

/// The questions, and their names in the report. `recent` is where the newest tenth begins.
fn asked(recent: u64) -> [(&'static str, String); 11] {
    let newest = format!("time >= to_timestamp_nanos({recent})");
    [
        ("count of all", "SELECT count(*) FROM cpu".into()),
        (
            "by host: count, avg, max",
            "SELECT host, count(*), avg(value), max(cpu_user) FROM cpu GROUP BY host".into(),
        ),
        (
            "buckets of the newest tenth",
            format!(
                "SELECT date_bin(INTERVAL '1 millisecond', time) AS at, avg(value), max(cpu_idle) FROM cpu \
                 WHERE {newest} GROUP BY at ORDER BY at"
            ),
        ),
        (
            "the same of one host",
            format!(
                "SELECT date_bin(INTERVAL '1 millisecond', time) AS at, avg(value) FROM cpu \
                 WHERE host = 'server017' AND {newest} GROUP BY at ORDER BY at"
            ),
        ),
        (
            "buckets of all rows",
            "SELECT date_bin(INTERVAL '10 milliseconds', time) AS at, avg(value) FROM cpu GROUP BY at ORDER BY at"
                .into(),
        ),
        ("10,000 rows as they come", "SELECT * FROM cpu LIMIT 10000".into()),
        ("newest 100", "SELECT * FROM cpu ORDER BY time DESC LIMIT 100".into()),
        ("one host, all time", "SELECT count(*), avg(value) FROM cpu WHERE host = 'server017'".into()),
        ("95th percentile of all", "SELECT approx_percentile_cont(value, 0.95) FROM cpu".into()),
        (
            "last value of each host",
            "SELECT host, last_value(value ORDER BY time), max(time) FROM cpu GROUP BY host".into(),
        ),
        ("which hosts there are", "SELECT DISTINCT host FROM cpu".into()),
    ]
}

async fn ask(
    args: &QueryArgs,
    cluster: &Cluster,
    edge: &Edge,
    name: &'static str,
    sql: &str,
) -> Result<Question, Failure> {
    let asker = Asker::new(edge, &args.cluster.database, "json", sql);
    let (mut times, mut bytes) = (Vec::new(), 0);
    // The first opens files and plans; its time counts as any other.
    let before = cluster.cpu()?;
    for _ in 0..args.runs {
        let (time, len) = asker.ask().await?;
        times.push(time);
        bytes = len;
    }
    let spent = before.zip(cluster.cpu()?).and_then(|(before, after)| {
        used(&before, &after).into_iter().find(|(process, _)| *process == edge.name).map(|(_, time)| time)
    });
    let each = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(args.runs);
    Ok(Question { name, sql: sql.to_owned(), time: Spread::of(times), bytes, cpu_ms: spent.map(each) })
}

/// Reads so many rows as they come, and throws them away.
async fn stream(args: &QueryArgs, edge: &Edge, rows: u64) -> Result<ArrowStream, Failure> {
    progress(&format!("{STREAMS} x {rows} rows as Arrow stream"));
    let sql = format!("SELECT * FROM cpu LIMIT {rows}");
    let asker = Asker::new(edge, &args.cluster.database, "arrow", &sql);
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..STREAMS {
        let (time, len) = asker.ask().await?;
        times.push(time);
        bytes = len;
    }
    let time = Spread::of(times).ok_or_else(|| Failure::new("no stream was read"))?;
    let seconds = time.p50_ms / 1e3;
    let (rows_per_s, mb_per_s) = (rows as f64 / seconds, bytes as f64 / 1e6 / seconds);
    Ok(ArrowStream { rows, bytes, time, rows_per_s, mb_per_s })
}

/// Asks one question.
pub(super) struct Asker {
    client: Client,
    path: String,
}

impl Asker {
    pub(super) fn new(edge: &Edge, database: &str, format: &str, sql: &str) -> Self {
        let client = Client::new(Target::Tcp { authority: edge.authority.clone() }, edge.token.clone());
        let pairs = [("db", Some(database)), ("format", Some(format)), ("q", Some(sql))];
        Self { client, path: format!("/api/v3/query_sql{}", query_string(&pairs)) }
    }

    /// How long it took to the end of the answer, and how many bytes that has.
    pub(super) async fn ask(&self) -> Result<(Duration, u64), Failure> {
        let began = Instant::now();
        let mut answer = self.client.send(Method::POST, &self.path, "").await?;
        let mut bytes = 0;
        while let Some(chunk) = answer.chunk().await? {
            bytes += chunk.len() as u64;
        }
        Ok((began.elapsed(), bytes))
    }
}

/// A query, asked again and again.
#[derive(Debug, Serialize)]
pub(super) struct Question {
    name: &'static str,
    sql: String,
    time: Option<Spread>,
    /// Of an answer.
    bytes: u64,
    /// Processor time of the node per answer, in milliseconds; `None` for nodes of somebody else.
    cpu_ms: Option<f64>,
}

/// Many rows over one connection.
#[derive(Debug, Serialize)]
struct ArrowStream {
    rows: u64,
    bytes: u64,
    time: Spread,
    /// By the median.
    rows_per_s: f64,
    mb_per_s: f64,
}

/// `skein bench query`.
#[derive(Debug, Serialize)]
pub(super) struct QueryReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    node: String,
    /// Written before.
    rows: u64,
    questions: Vec<Question>,
    arrow: Option<ArrowStream>,
    dashboard: Option<Dashboard>,
}

impl QueryReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("QUERY"),
            table::number("RUNS"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
            table::number("CPU MS"),
            table::number("BYTES"),
        ];
        let row = |question: &Question| {
            let runs = question.time.as_ref().map_or(0, |time| time.count);
            let mut row = vec![question.name.to_owned(), runs.to_string()];
            row.extend(spread(question.time.as_ref()));
            row.push(question.cpu_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}")));
            row.push(question.bytes.to_string());
            row
        };
        let rows: Vec<_> = self.questions.iter().map(row).collect();
        let mut out = format!(
            "{}\n{} rows at {}\n\n{}",
            self.setting.line(),
            self.rows,
            self.node,
            table::render(&columns, &rows)
        );
        if let Some(ArrowStream { rows, time, rows_per_s, mb_per_s, .. }) = &self.arrow {
            out.push_str(&format!(
                "\n{rows} rows as Arrow stream in {:.0} ms in the median of {}: {rows_per_s:.0} rows/s, {mb_per_s:.1} MB/s\n",
                time.p50_ms, time.count
            ));
        }
        if let Some(dashboard) = &self.dashboard {
            out.push_str(&format!("\n{}", dashboard.table()));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::setting, *};

    #[test]
    fn queries_as_table() {
        let question = |cpu_ms| Question {
            name: "count of all",
            sql: "SELECT 1".into(),
            time: Spread::of([4, 5, 6].map(Duration::from_millis).to_vec()),
            bytes: 20,
            cpu_ms,
        };
        let mut report = QueryReport {
            bench: "query",
            setting: setting(),
            node: "n1".into(),
            rows: 9,
            questions: vec![question(Some(7.5)), question(None)],
            arrow: None,
            dashboard: None,
        };
        let table = report.table();
        let end = "QUERY         RUNS  P50 MS  P99 MS  MAX MS  CPU MS  BYTES\n\
                   count of all     3    5.00    6.00    6.00    7.50     20\n\
                   count of all     3    5.00    6.00    6.00       -     20\n";
        assert!(table.ends_with(end) && table.contains("\n9 rows at n1\n"), "{table}");
        let time = Spread::of(vec![Duration::from_millis(500)]).unwrap();
        let (rows_per_s, mb_per_s) = (18.0, 1.5);
        report.arrow = Some(ArrowStream { rows: 9, bytes: 750_000, time, rows_per_s, mb_per_s });
        let table = report.table();
        let end = "\n9 rows as Arrow stream in 500 ms in the median of 1: 18 rows/s, 1.5 MB/s\n";
        assert!(table.ends_with(end), "{table}");
    }
}
