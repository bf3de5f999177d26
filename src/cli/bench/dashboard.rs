//! `skein bench query --ingest`: one question of a dashboard, asked alone and under full ingest, and that
//! ingest without the question. The three take turns of equal length, in an order that turns too, so that
//! a machine that grows slower is slower for all.

use std::{ops::Range, time::Duration};

use clap::{Args, value_parser};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::cli::{Failure, table};

use super::{
    LoadArgs,
    cluster::{Cluster, Edge},
    load::{Place, stamps, used},
    query::{Asker, QueryArgs},
    report::{Load, loads, progress, spread},
    spread::Spread,
};

/// Connections that write.
const CONNECTIONS: u16 = 12;
/// Rows of a request.
const ROWS: u32 = 1000;

/// Longest wait for nodes to be quiet.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what they do.
const LOOK: Duration = Duration::from_secs(1);

/// Flags of `skein bench query` for it.
#[derive(Debug, Clone, Args)]
pub(super) struct DashboardArgs {
    /// Then ask one of them again and again, alone and while 12 connections write as fast as it goes
    #[arg(long)]
    pub(super) ingest: bool,
    /// Milliseconds between an answer and the next question, with --ingest
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = value_parser!(u64).range(0..=60_000))]
    pause: u64,
    /// How long, with --ingest: the question alone, ingest alone and both have so much each
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The three take turns so often, so that a busy machine is so to all
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(1..=60))]
    rounds: u32,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Dashboard {
    sql: String,
    /// Between an answer and the next question, in milliseconds.
    pause_ms: u64,
    /// The question when nobody writes.
    alone: Option<Spread>,
    /// While rows are written.
    under_ingest: Option<Spread>,
    /// The second by the first.
    p50_ratio: Option<f64>,
    p99_ratio: Option<f64>,
    /// Nobody asks.
    ingest_alone: Load,
    ingest_asked: Load,
    /// Rows per second of the second by those of the first.
    rows_ratio: f64,
}

/// Who has its turn.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Question,
    Ingest,
    Both,
}

/// `times` is what the question is about, in nanoseconds.
pub(super) async fn measure(
    args: &QueryArgs,
    cluster: &Cluster,
    edge: &Edge,
    times: Range<u64>,
) -> Result<Dashboard, Failure> {
    let DashboardArgs { pause, seconds, rounds, .. } = args.dashboard;
    let sql = question(&times);
    let asker = Asker::new(edge, &args.cluster.database, "json", &sql);
    let load = LoadArgs {
        cluster: args.cluster.clone(),
        connections: CONNECTIONS,
        rows: ROWS,
        format: args.format,
        rate: None,
        seconds,
    };
    let stamps = stamps(&load);
    let mut ingest_alone = Place::prepare(&load, edge.clone(), "nobody asks", &stamps);
    let mut ingest_asked = Place::prepare(&load, edge.clone(), "asked meanwhile", &stamps);
    ingest_alone.warm_up().await?;
    ingest_asked.warm_up().await?;
    let (pause, time) = (Duration::from_millis(pause), Duration::from_secs(seconds) / rounds);
    let (mut alone, mut under_ingest) = (Vec::new(), Vec::new());
    for turn in turns(rounds) {
        match turn {
            Turn::Question => {
                quiet(cluster).await?;
                progress(&format!("one question again and again for {} s", time.as_secs_f32()));
                alone.extend(asked(&asker, pause, time).await?);
            }
            Turn::Ingest => ingest_alone.drive(time, cluster).await?,
            Turn::Both => {
                let both = tokio::join!(ingest_asked.drive(time, cluster), asked(&asker, pause, time));
                both.0?;
                under_ingest.extend(both.1?);
            }
        }
    }
    let (alone, under_ingest) = (Spread::of(alone), Spread::of(under_ingest));
    let ratio = |of: fn(&Spread) -> f64| Some(of(under_ingest.as_ref()?) / of(alone.as_ref()?));
    let (p50_ratio, p99_ratio) = (ratio(|times| times.p50_ms), ratio(|times| times.p99_ms));
    let (ingest_alone, ingest_asked) = (ingest_alone.result()?, ingest_asked.result()?);
    Ok(Dashboard {
        sql,
        pause_ms: args.dashboard.pause,
        alone,
        under_ingest,
        p50_ratio,
        p99_ratio,
        rows_ratio: ingest_asked.rows_per_s / ingest_alone.rows_per_s,
        ingest_alone,
        ingest_asked,
    })
}

/// Buckets of one host. It has an end too: what is written meanwhile is not asked for.
fn question(times: &Range<u64>) -> String {
    let Range { start, end } = times;
    format!(
        "SELECT date_bin(INTERVAL '1 millisecond', time) AS at, avg(value) FROM cpu WHERE host = 'server017' \
         AND time >= to_timestamp_nanos({start}) AND time < to_timestamp_nanos({end}) GROUP BY at ORDER BY at"
    )
}

/// Everybody's turns: forwards in one round, backwards in the next.
fn turns(rounds: u32) -> impl Iterator<Item = Turn> {
    let (there, back) =
        ([Turn::Question, Turn::Ingest, Turn::Both], [Turn::Both, Turn::Ingest, Turn::Question]);
    (0..rounds).flat_map(move |round| if round % 2 == 0 { there } else { back })
}

/// Waits until the nodes have written and put together what ingest has left to do; for a while, if they
/// are of this command.
async fn quiet(cluster: &Cluster) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = cluster.cpu()?;
    while let Some(times) = before.filter(|_| Instant::now() < deadline) {
        sleep(LOOK).await;
        before = cluster.cpu()?;
        let nodes = before.iter().flat_map(|now| used(&times, now)).filter(|(name, _)| name != "bench");
        if nodes.map(|(_, time)| time).sum::<Duration>() < LOOK / 4 {
            break;
        }
    }
    Ok(())
}

/// How long each answer took.
async fn asked(asker: &Asker, pause: Duration, time: Duration) -> Result<Vec<Duration>, Failure> {
    let until = Instant::now() + time;
    let mut times = Vec::new();
    while Instant::now() < until {
        times.push(asker.ask().await?.0);
        sleep(pause).await;
    }
    Ok(times)
}

impl Dashboard {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("THE SAME OF ONE HOST"),
            table::number("RUNS"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let row = |when: &str, times: Option<&Spread>| {
            let runs = times.map_or(0, |times| times.count);
            let mut row = vec![when.to_owned(), runs.to_string()];
            row.extend(spread(times));
            row
        };
        let rows =
            [row("nobody writes", self.alone.as_ref()), row("under full ingest", self.under_ingest.as_ref())];
        let times = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        format!(
            "{}\n{}\nunder ingest the question takes {} times as long in the median, {} times in p99; ingest keeps \
             {:.0} % of its rows per second\n",
            table::render(&columns, &rows),
            loads(&[&self.ingest_alone, &self.ingest_asked]),
            times(self.p50_ratio),
            times(self.p99_ratio),
            self.rows_ratio * 1e2
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::load, *};

    #[test]
    fn question_and_ingest_as_table() {
        let ms = |ms| Spread::of(vec![Duration::from_millis(ms)]);
        let dashboard = Dashboard {
            sql: question(&(1..2)),
            pause_ms: 100,
            alone: ms(4),
            under_ingest: ms(10),
            p50_ratio: Some(2.5),
            p99_ratio: None,
            ingest_alone: load("n1", "nobody asks"),
            ingest_asked: load("n1", "asked meanwhile"),
            rows_ratio: 0.875,
        };
        let table = dashboard.table();
        assert!(table.contains("\nunder full ingest        1   10.00   10.00   10.00\n"), "{table}");
        let end = "\nunder ingest the question takes 2.50 times as long in the median, - times in p99; ingest keeps 88 % \
                   of its rows per second\n";
        assert!(table.ends_with(end), "{table}");
    }

    #[test]
    fn everybody_has_the_same_number_of_turns() {
        let all: String = turns(2).map(|turn| format!("{turn:?} ")).collect();
        assert_eq!(all, "Question Ingest Both Both Ingest Question ");
    }
}
