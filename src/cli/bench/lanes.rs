//! `skein bench lanes`: whether bulk starves heartbeats. Three voters and a reader on links of a rate that
//! one snapshot can fill: what the cluster feels under ingest, before the reader comes and while it does.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{Args, value_parser};
use hyper::Method;
use tokio::{
    process::Child,
    time::{Instant, sleep, timeout},
};

use crate::{
    cli::{Client, Failure, Target, processes::token},
    disk::RealDisk,
    node::ClusterStatus,
    raft::survey,
    types::Role,
};

use super::{
    ClusterArgs, LoadArgs,
    arrival::Arrival,
    bodies::{Format, Stamps},
    cluster::{Cluster, Edge, NO_OLD_LOG},
    felt::{Felt, Filled, LanesReport, LinkUse},
    lan,
    load::{Place, now_ns, stamps},
    metrics::Metrics,
    net::{self, Carried, Machines},
    pulse::Pulse,
    query,
    report::{Load, Setting, progress},
};

/// Nodes that vote; the reader is the one after them.
const VOTERS: usize = 3;
/// Where each listens for HTTP, in a network of its own.
const PORT: u16 = 8086;
/// Longest wait for three voters, and for them to be level.
const PATIENCE: Duration = Duration::from_secs(300);
/// The reader's start and what follows its being level, at most.
const REST: Duration = Duration::from_secs(60);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(100);
/// Rows of a request.
const ROWS: u32 = 1000;

/// Flags of `skein bench lanes`.
#[derive(Debug, Clone, Args)]
pub(super) struct LanesArgs {
    /// Rate of every link, in either direction
    #[arg(long, default_value = "400mbit", value_parser = Rate::parse)]
    rate: Rate,
    /// Requests of 1000 rows that are written first
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    requests: u64,
    /// Rows per second that are written all the time, whether the ones before were acknowledged or not
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u32).range(1_000..=10_000_000))]
    ingest_rows: u32,
    /// How long without the reader
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    before: u64,
    /// Longest wait for the reader to be level
    #[arg(long, default_value_t = 120, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Timeouts of the cluster that is started for this: lan, fast or wan
    #[arg(long, default_value = "lan", value_parser = ["lan", "fast", "wan"])]
    profile: String,
    /// Print one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Of a link.
#[derive(Debug, Clone, PartialEq)]
struct Rate {
    /// In the words of `tc`.
    text: String,
    mbit_per_s: f64,
}

impl Rate {
    fn parse(text: &str) -> Result<Self, String> {
        let units = [("kbit", 1e-3), ("mbit", 1.0), ("gbit", 1e3)];
        let read =
            |(unit, mbit): (&str, f64)| Some(f64::from(text.strip_suffix(unit)?.parse::<u32>().ok()?) * mbit);
        match units.into_iter().find_map(read).filter(|rate| *rate >= 1.0) {
            Some(mbit_per_s) => Ok(Self { text: text.to_owned(), mbit_per_s }),
            None => Err("a number and kbit, mbit or gbit, from 1mbit on".to_owned()),
        }
    }
}

impl LanesArgs {
    /// The nodes before they are there, for the setting.
    pub(super) fn cluster(&self) -> Cluster {
        Cluster::elsewhere(vec![String::new(); VOTERS + 1], &self.profile)
    }

    fn load(&self) -> LoadArgs {
        LoadArgs {
            cluster: ClusterArgs::own(VOTERS as u16, &self.profile, "quorum"),
            connections: 12,
            rows: ROWS,
            seconds: self.seconds,
            format: Format::default(),
            rate: Some(self.ingest_rows / ROWS),
        }
    }
}

pub(super) async fn measure(
    args: &LanesArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<LanesReport, Failure> {
    let felt = match net::impossible() {
        Some(why) => Err(why),
        None => Ok(measured(args, cluster).await?),
    };
    Ok(LanesReport::new(setting, felt))
}

async fn measured(args: &LanesArgs, cluster: &mut Cluster) -> Result<Felt, Failure> {
    let machines = Machines::make(VOTERS + 1, "lanes")?;
    machines.shape(&args.rate.text)?;
    machines.let_in_this_one()?;
    let mut lan = Lanes::start(args, &machines).await?;
    cluster.watch(&lan.edge.name, lan.pid());
    let rows = args.requests * u64::from(query::ROWS);
    progress(&format!("writing {rows} rows"));
    let load = args.load();
    query::write(&load.cluster, &lan.edge, Format::default(), args.requests, now_ns()).await?;
    lan.until_level().await?;
    let votes = lan.votes().await?;
    let stamps = stamps(&load);
    let (time, most) = (Duration::from_secs(args.before), Duration::from_secs(args.seconds));
    let alone = async {
        sleep(time).await;
        Ok(())
    };
    let (ingest_before, before, ()) =
        lan.under_ingest(&load, cluster, &stamps, "before the reader", time, alone).await?;
    let mut link = Vec::new();
    let joining = lan.reader(most, || {
        link.push((Instant::now(), lan.machines.sent(lan.writer)?));
        Ok(())
    });
    let (ingest_while, meanwhile, (reader, arrival)) =
        lan.under_ingest(&load, cluster, &stamps, "while it comes", most + REST, joining).await?;
    let changed = lan.votes().await?.iter().zip(&votes).filter(|(now, before)| now != before).count();
    lan.children.push(reader);
    for child in &mut lan.children {
        child.kill().await?;
    }
    Ok(Felt {
        filled: Filled { link_mbit_per_s: args.rate.mbit_per_s, rows },
        follower: lan.name(lan.follower),
        before,
        meanwhile,
        ingest_before,
        ingest_while,
        votes_changed: changed,
        fetched_mb_per_s: arrival.fetched_mb_per_s(),
        arrival,
        writer_link: used(&link, args.rate.mbit_per_s),
    })
}

/// What the writer sent from the first bytes of the snapshot to the last.
fn used(looks: &[(Instant, Carried)], mbit_per_s: f64) -> Option<LinkUse> {
    let ((since, first), (until, last)) = looks.first().zip(looks.last())?;
    let seconds = until.duration_since(*since).as_secs_f64();
    let sent = last.bytes.saturating_sub(first.bytes) as f64 * 8.0 / 1e6 / seconds;
    let dropped = last.dropped.saturating_sub(first.dropped);
    (seconds > 0.0).then(|| LinkUse { mbit_per_s: sent, share: sent / mbit_per_s, dropped })
}

/// The nodes.
struct Lanes<'a> {
    children: Vec<Child>,
    machines: &'a Machines,
    writer: usize,
    follower: usize,
    /// The writer's, by its link.
    edge: Edge,
}

impl<'a> Lanes<'a> {
    /// Three voters.
    async fn start(args: &LanesArgs, machines: &'a Machines) -> Result<Self, Failure> {
        progress(&format!("starting {VOTERS} nodes in network namespaces, with links of {}", args.rate.text));
        let edge = Edge { name: String::new(), authority: String::new(), token: None };
        let mut lanes = Self { children: Vec::new(), machines, writer: 0, follower: 1, edge };
        let first = lanes.launch(0, &["--new-cluster", "--profile", &args.profile], None).await?;
        lanes.children.push(first);
        let owner = lanes.client(0);
        let wanted = serde_json::json!({ "name": "bench", "scopes": ["write"], "ttl": "1d" }).to_string();
        let made = owner.send(Method::POST, "/api/v1/auth/tokens", wanted).await?;
        let made: serde_json::Value = made.json().await?;
        let joins = token(&owner, Role::Voter, VOTERS - 1).await?;
        for node in 1..VOTERS {
            let child = lanes.join(node, &joins).await?;
            lanes.children.push(child);
        }
        let formed = async {
            loop {
                match owner.get::<ClusterStatus>("/api/v1/cluster").await {
                    Ok(status) if lan::is_formed(&status) => break status,
                    _ => sleep(LOOK).await,
                }
            }
        };
        let status = timeout(PATIENCE, formed).await;
        let status = status.map_err(|_| Failure::new("the three did not become voters"))?;
        let writer = status.nodes.iter().find(|node| node.is_writer).map(|node| node.name.as_str());
        lanes.writer = (0..VOTERS).find(|node| writer == Some(&lanes.name(*node))).unwrap_or(0);
        lanes.follower = (lanes.writer + 1) % VOTERS;
        lanes.edge = Edge {
            name: lanes.name(lanes.writer),
            authority: machines.authority(lanes.writer, PORT),
            token: made["token"].as_str().map(str::to_owned),
        };
        Ok(lanes)
    }

    async fn join(&self, node: usize, token: &str) -> Result<Child, Failure> {
        self.launch(node, &["--seed", &self.machines.authority(0, 7400)], Some(token)).await
    }

    async fn launch(&self, node: usize, more: &[&str], token: Option<&str>) -> Result<Child, Failure> {
        let (name, http) = (self.name(node), format!("0.0.0.0:{PORT}"));
        let flags = ["--name", &name, "--no-mdns", "--log-format", "json", "--http", &http];
        self.machines.start(node, &[&flags, more].concat(), &NO_OLD_LOG, token).await
    }

    fn name(&self, node: usize) -> String {
        format!("n{}", node + 1)
    }

    fn pid(&self) -> Option<u32> {
        self.children.get(self.writer).and_then(Child::id)
    }

    /// Over its unix socket.
    fn client(&self, node: usize) -> Client {
        Client::new(Target::Socket(self.machines.socket(node)), None)
    }

    /// Until every voter has applied what is committed.
    async fn until_level(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let committed = Metrics::of(&self.client(self.writer)).await?.count("skein_commit_seq")?;
        for node in 0..VOTERS {
            while Metrics::of(&self.client(node)).await?.count("skein_applied_seq")? < committed {
                if Instant::now() > deadline {
                    return Err(Failure::new(format!("{} does not become level", self.name(node))));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Ingest and what is felt of it, until `work` is done.
    async fn under_ingest<T>(
        &self,
        load: &LoadArgs,
        cluster: &Cluster,
        stamps: &Arc<Stamps>,
        when: &'static str,
        most: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<(Load, Pulse, T), Failure> {
        let mut ingest = Place::prepare(load, self.edge.clone(), when, stamps);
        ingest.warm_up().await?;
        let done: Arc<AtomicBool> = ingest.enough();
        let (writer, follower) = (self.client(self.writer), self.client(self.follower));
        let work = async {
            let worked = work.await;
            done.store(true, Ordering::Relaxed);
            worked
        };
        let (driven, felt, worked) =
            tokio::join!(ingest.drive(most, cluster), Pulse::feel(&writer, &follower, &done), work);
        driven?;
        Ok((ingest.result()?, felt?, worked?))
    }

    /// A reader joins and becomes level.
    async fn reader(
        &self,
        most: Duration,
        fetches: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(Child, Arrival), Failure> {
        let token = token(&self.client(0), Role::Reader, 1).await?;
        progress("the reader joins");
        let began = Instant::now();
        let child = self.join(VOTERS, &token).await?;
        let (newcomer, writer) = (self.client(VOTERS), self.client(self.writer));
        let arrival = Arrival::follow(&newcomer, &writer, began, began + most, fetches).await?;
        Ok((child, arrival))
    }

    /// How each voter has voted last in raft: its term, and for whom. Read from a copy, because the log is
    /// open.
    async fn votes(&self) -> Result<Vec<Option<String>>, Failure> {
        let mut votes = Vec::new();
        for node in 0..VOTERS {
            let copy = tempfile::tempdir()?;
            copy_dir(&self.machines.data_dir(node).join("raft"), copy.path())?;
            let survey = survey(Arc::new(RealDisk), copy.path()).await;
            votes.push(survey.map_err(|e| Failure::disk(e.to_string()))?.vote);
        }
        Ok(votes)
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&to)?;
            copy_dir(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_the_words_of_tc() {
        let mbit = |text| Rate::parse(text).map(|rate| rate.mbit_per_s);
        assert_eq!([mbit("400mbit"), mbit("2gbit"), mbit("1500kbit")], [Ok(400.0), Ok(2e3), Ok(1.5)]);
        for wrong in ["400", "mbit", "-1mbit", "0mbit", "1.5gbit", "400 mbit", "400mbps"] {
            assert!(mbit(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_used_between_the_first_look_and_the_last() {
        let at = Instant::now();
        let look = |ms, bytes, dropped| (at + Duration::from_millis(ms), Carried { bytes, dropped });
        let looks = [look(0, 1_000, 1), look(500, 2_000, 1), look(2_000, 50_001_000, 4)];
        assert_eq!(used(&looks, 400.0), Some(LinkUse { mbit_per_s: 200.0, share: 0.5, dropped: 3 }));
        assert_eq!(used(&looks[..1], 400.0), None);
    }
}
