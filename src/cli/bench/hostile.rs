//! `skein bench hostile`: what users feel whose node others ask for all that it can be made to compute.
//!
//! Two users go on all the time, one that asks and one that writes; attackers take turns with nobody.
//! All are at one node, the writer, where most can be harmed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::Method;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    cli::{Client, ClientError, Failure, Target, client::query_string, table},
    types::Epoch,
};

use super::{
    HostileArgs,
    bodies::{Bodies, Format, Stamps},
    cluster::{Cluster, Edge},
    connection::Connection,
    frozen::{pid_of, watched},
    load::now_ns,
    query,
    report::{Errors, Setting, errors, progress, spread},
    spread::Spread,
};

/// Rows of a write of the user that writes.
const ROWS: u32 = 10;
/// Between an answer and the next request of a user.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than a user's request may take.
const PATIENCE: Duration = Duration::from_secs(70);

/// What takes most, by kind: rows that are joined and then counted, sorted, grouped, put together or
/// sent; patterns; windows; grouping sets; what is long to plan. The rest of the corpus,
/// `src/engine/columnar/sql/tests/hostile.rs`, is refused or costs less.
const STATEMENTS: [&str; 20] = [
    "SELECT count(*) FROM cpu a, cpu b, cpu c WHERE a.value + b.value + c.value = 0.5",
    "SELECT * FROM cpu a, cpu b ORDER BY a.value + b.value",
    "SELECT a.time, b.time, count(*) FROM cpu a, cpu b GROUP BY 1, 2",
    "SELECT DISTINCT a.value + b.value FROM cpu a, cpu b",
    "SELECT string_agg(a.host, ',') FROM cpu a, cpu b",
    "SELECT array_agg(a.host || b.host) FROM cpu a, cpu b",
    "SELECT median(a.value + b.value) FROM cpu a, cpu b",
    "SELECT sum(a.value) OVER (PARTITION BY a.host) FROM cpu a, cpu b",
    "SELECT min(host || host) OVER (ORDER BY time ROWS BETWEEN 9999 PRECEDING AND 9999 FOLLOWING) FROM cpu",
    "SELECT count(*) FROM cpu a JOIN cpu b ON a.host = b.host JOIN cpu c ON c.host = b.host",
    "SELECT host, count(*) FROM cpu GROUP BY CUBE (host, value, cpu_idle, cpu_user)",
    "SELECT count(*) FROM cpu a WHERE EXISTS (SELECT 1 FROM cpu b, cpu c WHERE b.time > a.time)",
    "SELECT * FROM cpu a, cpu b",
    "SELECT max(replace(a.host, 'e', b.host)) FROM cpu a, cpu b",
    "SELECT approx_distinct(a.host || b.host) FROM cpu a, cpu b",
    "SELECT count(DISTINCT a.time) FROM cpu a, cpu b",
    "SELECT count(*) FROM cpu a, cpu b WHERE regexp_like(a.host || b.host, '(s|e|r|v)*x')",
    "SELECT a.host FROM cpu a, cpu b INTERSECT SELECT a.host FROM cpu a, cpu b",
    "WITH a AS (SELECT value + value AS v FROM cpu), b AS (SELECT v + v AS v FROM a), \
     c AS (SELECT v + v AS v FROM b), d AS (SELECT v + v AS v FROM c), e AS (SELECT v + v AS v FROM d), \
     f AS (SELECT v + v AS v FROM e), g AS (SELECT v + v AS v FROM f) SELECT max(v) FROM g",
    "COPY cpu TO '/tmp/x.parquet'",
];

pub(super) async fn measure(
    args: &HostileArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<HostileReport, Failure> {
    let edge = cluster.places().await?.writer;
    let first = now_ns();
    progress(&format!("writing {} rows", args.requests * 1_000));
    query::write(&args.cluster, &edge, Format::default(), args.requests, first).await?;
    let process = match cluster.nodes() {
        Ok(nodes) => Some(pid_of(nodes, &edge.name)?),
        Err(_) => None,
    };
    let scene = Scene {
        args: args.clone(),
        edge: edge.clone(),
        // Behind the rows that are asked for, so that an answer stays as long as it is.
        stamps: Stamps::new(ROWS, first + args.requests * 1_000_000),
        first,
    };
    let turn = Duration::from_secs(args.seconds) / args.rounds / 2;
    let (mut alone, mut beside) = (Felt::default(), Felt::default());
    let (mut rss, mut attacks) = (Vec::new(), Attacks::default());
    for round in 0..args.rounds {
        progress(&format!("turn {} of {}: alone", round + 1, args.rounds));
        scene.turn(turn, 0, &mut alone, &mut attacks).await;
        progress(&format!("turn {} of {}: beside {} attackers", round + 1, args.rounds, args.attackers));
        let work = async {
            scene.turn(turn, args.attackers, &mut beside, &mut attacks).await;
            Ok(())
        };
        match process {
            Some(process) => rss.extend(watched(process, work).await?),
            None => work.await?,
        }
    }
    Ok(HostileReport {
        bench: "hostile",
        setting,
        node: edge.name,
        rows: args.requests * 1_000,
        attackers: args.attackers,
        alone: alone.told(),
        beside: beside.told(),
        attacks,
        rss_max_mib: rss.into_iter().max().map(|bytes| bytes as f64 / f64::from(1 << 20)),
    })
}

/// What all turns have in common.
struct Scene {
    args: HostileArgs,
    edge: Edge,
    stamps: Arc<Stamps>,
    first: u64,
}

/// What the two users felt, over all their turns.
#[derive(Default)]
struct Felt {
    queries: Vec<Duration>,
    writes: Vec<Duration>,
    errors: Errors,
    offices: BTreeMap<Epoch, u64>,
}

impl Felt {
    fn told(self) -> Users {
        Users {
            query: Spread::of(self.queries),
            write: Spread::of(self.writes),
            errors: self.errors,
            offices: self.offices.len(),
        }
    }
}

impl Scene {
    /// Users alone, or beside attackers, for so long. When it ends the node has nothing to do.
    async fn turn(&self, time: Duration, attackers: u16, felt: &mut Felt, attacks: &mut Attacks) {
        let told = Arc::new(Mutex::new(Attacks::default()));
        let mut hostile = JoinSet::new();
        for nth in 0..attackers {
            hostile.spawn(attack(
                self.client(),
                self.args.cluster.database.clone(),
                nth.into(),
                told.clone(),
            ));
        }
        let until = Instant::now() + time;
        let (asked, written) = tokio::join!(self.ask(until), self.write(until));
        // They go as clients go: their connections end.
        hostile.shutdown().await;
        attacks.add(&told.lock().unwrap_or_else(PoisonError::into_inner));
        felt.queries.extend(asked.times);
        felt.writes.extend(written.times);
        for (what, count) in asked.errors.into_iter().chain(written.errors) {
            *felt.errors.entry(what).or_default() += count;
        }
        for epoch in written.epochs {
            *felt.offices.entry(epoch).or_default() += 1;
        }
    }

    fn client(&self) -> Client {
        Client::new(Target::Tcp { authority: self.edge.authority.clone() }, self.edge.token.clone())
    }

    /// The user that asks, one dashboard question after another.
    async fn ask(&self, until: Instant) -> Told {
        let rows = self.args.requests * 1_000;
        let sql = format!(
            "SELECT date_bin(INTERVAL '1 millisecond', time) AS at, avg(value), max(cpu_idle) FROM cpu WHERE host = \
             'server017' AND time >= to_timestamp_nanos({}) AND time < to_timestamp_nanos({}) GROUP BY at ORDER BY at",
            self.first + rows / 10 * 9,
            self.first + rows,
        );
        let path = path(&self.args.cluster.database, &sql);
        let client = self.client();
        let mut told = Told::default();
        while Instant::now() < until {
            let began = Instant::now();
            match timeout(PATIENCE, answered(&client, &path)).await {
                Ok(Ok(())) => told.times.push(began.elapsed()),
                Ok(Err(error)) => told.error(format!("query: {error}")),
                Err(_) => told.error("query: no answer".to_owned()),
            }
            sleep(PAUSE).await;
        }
        told
    }

    /// The user that writes.
    async fn write(&self, until: Instant) -> Told {
        let mut connection = Connection::new(
            self.edge.clone(),
            Format::default(),
            &self.args.cluster.database,
            &self.args.cluster.ack,
        );
        let mut bodies = Bodies::new(Format::default(), ROWS, self.stamps.clone(), &mut rand::rng());
        let mut told = Told::default();
        while Instant::now() < until {
            let began = Instant::now();
            match connection.post(bodies.next()).await {
                Ok(acked) => {
                    told.times.push(began.elapsed());
                    if told.epochs.last() != Some(&acked.at.epoch) {
                        told.epochs.push(acked.at.epoch);
                    }
                }
                Err(error) => told.error(format!("write: {error}")),
            }
            sleep(PAUSE).await;
        }
        told
    }
}

/// What came of the requests of one user in one turn.
#[derive(Default)]
struct Told {
    times: Vec<Duration>,
    errors: Errors,
    /// Terms of office in which writes were acknowledged, in order.
    epochs: Vec<Epoch>,
}

impl Told {
    fn error(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }
}

fn path(database: &str, sql: &str) -> String {
    let pairs = [("db", Some(database)), ("format", Some("json")), ("q", Some(sql))];
    format!("/api/v3/query_sql{}", query_string(&pairs))
}

/// Reads an answer to its end.
async fn answered(client: &Client, path: &str) -> Result<(), ClientError> {
    let mut answer = client.send(Method::POST, path, "").await?;
    while answer.chunk().await?.is_some() {}
    Ok(())
}

/// Asks one hostile statement after another, without end.
async fn attack(client: Client, database: String, nth: usize, told: Arc<Mutex<Attacks>>) {
    // Each begins with another one.
    for sql in STATEMENTS.iter().cycle().skip(nth * 7 % STATEMENTS.len()) {
        let ended = answered(&client, &path(&database, sql)).await;
        {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            match ended {
                Ok(()) => told.answered += 1,
                Err(_) => told.refused += 1,
            }
        }
        sleep(PAUSE).await;
    }
}

/// What became of hostile statements; those that ran when a turn ended are in neither.
#[derive(Debug, Default, Serialize)]
pub(super) struct Attacks {
    answered: u64,
    /// Refused, over a limit, or too late.
    refused: u64,
}

impl Attacks {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.refused += other.refused;
    }
}

/// What the two users felt.
#[derive(Debug, Serialize)]
pub(super) struct Users {
    query: Option<Spread>,
    write: Option<Spread>,
    errors: Errors,
    /// Terms of office in which writes were acknowledged: more than one if the writer changed.
    offices: usize,
}

/// `skein bench hostile`.
#[derive(Debug, Serialize)]
pub(super) struct HostileReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    node: String,
    /// Written before.
    rows: u64,
    attackers: u16,
    alone: Users,
    beside: Users,
    attacks: Attacks,
    /// Most memory of the node's process beside attackers; `None` for a node of somebody else.
    rss_max_mib: Option<f64>,
}

impl HostileReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("USER"),
            table::number("REQUESTS"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let row = |name: &str, felt: &Option<Spread>| {
            let count = felt.as_ref().map_or(0, |felt| felt.count);
            let mut row = vec![name.to_owned(), count.to_string()];
            row.extend(spread(felt.as_ref()));
            row
        };
        let rows = [
            row("asks, alone", &self.alone.query),
            row("asks, beside attackers", &self.beside.query),
            row("writes, alone", &self.alone.write),
            row("writes, beside attackers", &self.beside.write),
        ];
        let memory = self.rss_max_mib.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.0} MiB"));
        format!(
            "{}\n{} rows at {}, {} attackers: {} statements answered, {} refused; memory at most {memory}; writers: {} \
             alone, {} beside\n\n{}{}{}",
            self.setting.line(),
            self.rows,
            self.node,
            self.attackers,
            self.attacks.answered,
            self.attacks.refused,
            self.alone.offices,
            self.beside.offices,
            table::render(&columns, &rows),
            errors("alone", &self.alone.errors),
            errors("beside", &self.beside.errors),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::setting, *};

    #[test]
    fn harm_as_table() {
        let users = |ms: [u64; 3], errors: &[(&str, u64)]| Users {
            query: Spread::of(ms.map(Duration::from_millis).to_vec()),
            write: None,
            errors: errors.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect(),
            offices: 1,
        };
        let report = HostileReport {
            bench: "hostile",
            setting: setting(),
            node: "n1".into(),
            rows: 9,
            attackers: 3,
            alone: users([1, 2, 3], &[]),
            beside: users([4, 5, 6], &[("query: 429", 2)]),
            attacks: Attacks { answered: 7, refused: 8 },
            rss_max_mib: Some(512.0),
        };
        let table = report.table();
        let end = "USER                      REQUESTS  P50 MS  P99 MS  MAX MS\n\
                   asks, alone                      3    2.00    3.00    3.00\n\
                   asks, beside attackers           3    5.00    6.00    6.00\n\
                   writes, alone                    0       -       -       -\n\
                   writes, beside attackers         0       -       -       -\n\
                   beside: 2 x query: 429\n";
        assert!(table.ends_with(end), "{table}");
        assert!(
            table.contains(
                "9 rows at n1, 3 attackers: 7 statements answered, 8 refused; memory at most 512 MiB"
            )
        );
    }
}
