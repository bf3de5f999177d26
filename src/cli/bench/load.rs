//! `skein bench write` and `skein bench forward`: many connections with large bodies for some
//! seconds, and what that costs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::cli::Failure;

use super::{
    ForeignArgs, ForwardArgs, LoadArgs,
    bodies::{Bodies, Format, Stamps},
    cluster::{Cluster, CpuTimes, Edge},
    connection::{Acked, Connection},
    report::{Cpu, Errors, ForwardReport, Load, Setting, WriteReport, progress},
    spread::Spread,
};

/// After a write that failed.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn write(
    args: &LoadArgs,
    cluster: &Cluster,
    setting: Setting,
) -> Result<WriteReport, Failure> {
    let places = cluster.places().await?;
    let mut writer = Place::prepare(args, places.writer, "writer", &stamps(args));
    writer.warm_up().await?;
    writer.drive(Duration::from_secs(args.seconds), cluster).await?;
    Ok(WriteReport { bench: "write", setting, writer: writer.result()? })
}

/// The load of [`write`] on another program's server.
pub(super) async fn foreign(
    args: &ForeignArgs,
    edge: Edge,
    cluster: &Cluster,
    setting: Setting,
) -> Result<WriteReport, Failure> {
    let stamps = Stamps::new(args.rows, now_ns());
    let mut rng = rand::rng();
    let mut worker = |_| Worker {
        connection: Connection::foreign(edge.clone(), &args.path),
        bodies: Bodies::new(Format::LineProtocol, args.rows, stamps.clone(), &mut rng),
        schedule: None,
        tally: Tally::default(),
    };
    let mut place = Place {
        node: edge.name.clone(),
        is: "another program",
        format: Format::LineProtocol,
        rows: args.rows,
        rate: None,
        workers: (0..args.connections).map(&mut worker).collect(),
        enough: Arc::default(),
        took: Duration::ZERO,
        cpu: Vec::new(),
    };
    place.warm_up().await?;
    place.drive(Duration::from_secs(args.seconds), cluster).await?;
    Ok(WriteReport { bench: "foreign", setting, writer: place.result()? })
}

pub(super) async fn forward(
    args: &ForwardArgs,
    cluster: &Cluster,
    setting: Setting,
) -> Result<ForwardReport, Failure> {
    let places = cluster.places().await?;
    let other = places
        .other
        .ok_or_else(|| Failure::usage("there is no node besides the writer: give its --url too"))?;
    let stamps = stamps(&args.load);
    let mut writer = Place::prepare(&args.load, places.writer, "writer", &stamps);
    let mut other = Place::prepare(&args.load, other, "other", &stamps);
    writer.warm_up().await?;
    other.warm_up().await?;
    let time = Duration::from_secs(args.load.seconds) / args.rounds;
    for _ in 0..args.rounds {
        writer.drive(time, cluster).await?;
        other.drive(time, cluster).await?;
    }
    let (writer, other) = (writer.result()?, other.result()?);
    if writer.forwarded > 0 || other.forwarded < other.requests {
        progress("the writer changed meanwhile: see FORWARDED, and measure again");
    }
    let cpu_ratio = other.nodes_cpu_ns_per_row.zip(writer.nodes_cpu_ns_per_row).map(|(o, w)| o / w);
    let rows_ratio = other.rows_per_s / writer.rows_per_s;
    Ok(ForwardReport { bench: "forward", setting, writer, other, rows_ratio, cpu_ratio })
}

pub(super) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn stamps(args: &LoadArgs) -> Arc<Stamps> {
    Stamps::new(args.rows, now_ns())
}

/// A node under load, over all its turns.
pub(super) struct Place {
    node: String,
    is: &'static str,
    format: Format,
    rows: u32,
    rate: Option<u32>,
    workers: Vec<Worker>,
    /// Ends a turn before its time.
    enough: Arc<AtomicBool>,
    took: Duration,
    cpu: CpuTimes,
}

/// A connection and what came of it.
struct Worker {
    connection: Connection,
    bodies: Bodies,
    /// When this connection's first request of a turn is due, and how long after it each next one;
    /// `None`: as soon as the one before is answered.
    schedule: Option<Schedule>,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Schedule {
    first: Duration,
    every: Duration,
}

#[derive(Default)]
struct Tally {
    times: Vec<Duration>,
    bytes: u64,
    forwarded: u64,
    levels: BTreeSet<String>,
    errors: Errors,
}

impl Tally {
    fn note(&mut self, answer: Result<Acked, String>, time: Duration, bytes: usize) {
        match answer {
            Ok(acked) => {
                self.times.push(time);
                self.bytes += bytes as u64;
                self.forwarded += u64::from(acked.forwarded);
                self.levels.insert(acked.level);
            }
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
    }

    fn absorb(&mut self, other: Self) {
        self.times.extend(other.times);
        self.bytes += other.bytes;
        self.forwarded += other.forwarded;
        self.levels.extend(other.levels);
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
    }
}

impl Worker {
    async fn drive(mut self, began: Instant, until: Instant, enough: Arc<AtomicBool>) -> Self {
        let mut due = self.schedule.map(|schedule| began + schedule.first);
        while due.unwrap_or_else(Instant::now) < until && !enough.load(Ordering::Relaxed) {
            let body = self.bodies.next();
            // Late if the one before was answered late: what it waited then is part of its time.
            let sent = match due {
                Some(due) => {
                    sleep_until(due).await;
                    due
                }
                None => Instant::now(),
            };
            let bytes = body.len();
            let answer = self.connection.post(body).await;
            let failed = answer.is_err();
            self.tally.note(answer, sent.elapsed(), bytes);
            due = due.zip(self.schedule).map(|(due, schedule)| due + schedule.every);
            if failed && due.is_none() {
                sleep(PAUSE).await;
            }
        }
        self
    }
}

impl Schedule {
    /// Of one of so many connections that send so many requests per second together, in turn.
    fn of(nth: u16, connections: u16, rate: u32) -> Self {
        let apart = Duration::from_secs(1) / rate;
        Self { first: apart * u32::from(nth), every: apart * u32::from(connections) }
    }
}

impl Place {
    pub(super) fn prepare(args: &LoadArgs, edge: Edge, is: &'static str, stamps: &Arc<Stamps>) -> Self {
        let mut rng = rand::rng();
        Self::with(args, edge, is, || Bodies::new(args.format, args.rows, stamps.clone(), &mut rng))
    }

    /// As [`Self::prepare`], with bodies of which each connection gets its own.
    pub(super) fn with(
        args: &LoadArgs,
        edge: Edge,
        is: &'static str,
        mut bodies: impl FnMut() -> Bodies,
    ) -> Self {
        let (cluster, format) = (&args.cluster, args.format);
        let mut worker = |nth| Worker {
            connection: Connection::new(edge.clone(), format, &cluster.database, &cluster.ack),
            bodies: bodies(),
            schedule: args.rate.map(|rate| Schedule::of(nth, args.connections, rate)),
            tally: Tally::default(),
        };
        let workers = (0..args.connections).map(&mut worker).collect();
        let (rows, rate, enough) = (args.rows, args.rate, Arc::default());
        let (node, took, cpu) = (edge.name, Duration::ZERO, Vec::new());
        Self { node, is, format, rows, rate, workers, enough, took, cpu }
    }

    /// Set to true, it ends the turn under way, and those that would follow.
    pub(super) fn enough(&self) -> Arc<AtomicBool> {
        self.enough.clone()
    }

    /// A write on each connection, not counted: connections are open and the schema is known then.
    pub(super) async fn warm_up(&mut self) -> Result<(), Failure> {
        let node = &self.node;
        let first = self.workers.iter_mut().map(|worker| {
            let body = worker.bodies.next();
            worker.connection.post(body)
        });
        let all = join_all(first).await;
        match all.into_iter().find_map(Result::err) {
            Some(error) => Err(Failure::new(format!("{node} does not take a write: {error}"))),
            None => Ok(()),
        }
    }

    pub(super) async fn drive(&mut self, time: Duration, cluster: &Cluster) -> Result<(), Failure> {
        let (node, is) = (&self.node, self.is);
        progress(&format!(
            "{} connections write to {node} ({is}) for {} s",
            self.workers.len(),
            time.as_secs_f32()
        ));
        let before = cluster.cpu()?;
        let began = Instant::now();
        let turn = |worker: Worker| worker.drive(began, began + time, self.enough.clone());
        let mut tasks: JoinSet<Worker> = self.workers.drain(..).map(turn).collect();
        while let Some(worker) = tasks.join_next().await {
            self.workers.push(worker.map_err(|e| Failure::new(format!("a connection's task failed: {e}")))?);
        }
        self.took += began.elapsed();
        if let (Some(before), Some(after)) = (before, cluster.cpu()?) {
            for (process, time) in used(&before, &after) {
                match self.cpu.iter_mut().find(|(name, _)| *name == process) {
                    Some((_, all)) => *all += time,
                    None => self.cpu.push((process, time)),
                }
            }
        }
        Ok(())
    }

    pub(super) fn result(self) -> Result<Load, Failure> {
        let connections = u16::try_from(self.workers.len()).unwrap_or(u16::MAX);
        let mut tally = Tally::default();
        self.workers.into_iter().for_each(|worker| tally.absorb(worker.tally));
        let (requests, seconds) = (tally.times.len() as u64, self.took.as_secs_f64());
        let rows = requests * u64::from(self.rows);
        if rows == 0 {
            let errors: Vec<String> = tally.errors.into_keys().collect();
            return Err(Failure::new(format!("{} acknowledged no write: {}", self.node, errors.join(", "))));
        }
        let share = |time: Duration| time.as_nanos() as f64 / rows as f64;
        let nodes: Duration =
            self.cpu.iter().filter(|(name, _)| name != "bench").map(|(_, time)| *time).sum();
        Ok(Load {
            node: self.node,
            place: self.is,
            ack: tally.levels.into_iter().collect::<Vec<_>>().join("+"),
            format: self.format,
            connections,
            rows_per_request: self.rows,
            requests_per_s_wanted: self.rate,
            seconds,
            requests,
            forwarded: tally.forwarded,
            rows_per_s: rows as f64 / seconds,
            mb_per_s: tally.bytes as f64 / 1e6 / seconds,
            request: Spread::of(tally.times),
            errors: tally.errors,
            nodes_cpu_ns_per_row: (!self.cpu.is_empty()).then(|| share(nodes)),
            cpu: self
                .cpu
                .into_iter()
                .map(|(process, time)| Cpu {
                    process,
                    ns_per_row: share(time),
                    cores: time.as_secs_f64() / seconds,
                })
                .collect(),
        })
    }
}

/// Processor time between two looks.
pub(super) fn used(before: &CpuTimes, after: &CpuTimes) -> CpuTimes {
    let since = |(name, now): &(String, Duration)| {
        let then = before.iter().find(|(known, _)| known == name)?;
        Some((name.clone(), now.saturating_sub(then.1)))
    };
    after.iter().filter_map(since).collect()
}

#[cfg(test)]
mod tests {
    use crate::types::Lsn;

    use super::*;

    #[test]
    fn processor_time_is_a_difference() {
        let at = |name: &str, ms| (name.to_owned(), Duration::from_millis(ms));
        let before = vec![at("n1", 100), at("gone", 1)];
        let after = vec![at("n1", 350), at("new", 5)];
        assert_eq!(used(&before, &after), [at("n1", 250)]);
    }

    #[test]
    fn requests_of_all_connections_are_due_in_turn() {
        let of = |nth| Schedule::of(nth, 4, 1_000);
        let due = |nth, turn| of(nth).first + of(nth).every * turn;
        let ms = Duration::from_millis;
        assert_eq!(
            [due(0, 0), due(1, 0), due(3, 0), due(0, 1), due(2, 5)],
            [ms(0), ms(1), ms(3), ms(4), ms(22)]
        );
    }

    #[test]
    fn tallies_add_up_and_only_acknowledged_writes_count() {
        let acked = |level: &str| Ok(Acked { at: Lsn::new(1, 1), level: level.into(), forwarded: true });
        let ms = Duration::from_millis;
        let (mut all, mut one) = (Tally::default(), Tally::default());
        one.note(acked("quorum"), ms(3), 10);
        one.note(Err("503 unavailable".into()), ms(900), 10);
        all.note(acked("local"), ms(5), 10);
        all.note(Err("503 unavailable".into()), ms(900), 10);
        all.absorb(one);
        assert_eq!((all.times.as_slice(), all.bytes, all.forwarded), (&[ms(5), ms(3)][..], 20, 2));
        assert_eq!(all.levels.into_iter().collect::<Vec<_>>(), ["local", "quorum"]);
        assert_eq!(all.errors["503 unavailable"], 2);
    }
}
