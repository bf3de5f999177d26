//! What a cluster feels of its own traffic, looked at over the unix sockets of its nodes: no link that is
//! measured lies between them and this command.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hyper::Method;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure},
    node::ClusterStatus,
    types::{Lsn, Role},
};

use super::{load::now_ns, metrics::Metrics, spread::Spread};

/// Between two beats, and between two rows whose way to the follower is watched.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at the follower.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was felt. The product has no clock at its heartbeats, so what goes the same way is timed.
#[derive(Debug, Default, Serialize)]
pub(super) struct Pulse {
    /// The writer asks every member for its status, on the lane of heartbeats and votes: until the last
    /// answer. One that does not answer is waited for 500 ms.
    pub(super) round: Option<Spread>,
    /// The writer has a majority of voters confirm that it is, on that lane: until it may read.
    pub(super) confirmed: Option<Spread>,
    /// QUIC's smoothed round trip from the writer to each other voter, as it was at each beat.
    pub(super) smoothed: Option<Spread>,
    /// From the acknowledgement of a single row at the writer, at level local, until it is applied at a
    /// follower; seen by looking every millisecond.
    pub(super) lag: Option<Spread>,
    /// Answers of voters that did not come in time.
    pub(super) unanswered: u64,
    /// Confirmations that were refused or did not come.
    pub(super) unconfirmed: u64,
    /// How often the raft leader, the writer or its epoch was another one than at the beat before.
    pub(super) changes: u64,
}

impl Pulse {
    /// Feels it until `done`.
    pub(super) async fn feel(writer: &Client, follower: &Client, done: &AtomicBool) -> Result<Self, Failure> {
        let (felt, lag) = tokio::join!(beats(writer, done), lag(writer, follower, done));
        Ok(Self { lag: Spread::of(lag?), ..felt? })
    }
}

async fn beats(writer: &Client, done: &AtomicBool) -> Result<Pulse, Failure> {
    let mut felt = Pulse::default();
    let (mut rounds, mut confirmed, mut smoothed, mut before) = (Vec::new(), Vec::new(), Vec::new(), None);
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        let status: ClusterStatus = writer.get("/api/v1/cluster").await?;
        rounds.push(began.elapsed());
        let others = status.nodes.iter().filter(|node| node.role == Role::Voter && node.id != status.node_id);
        for voter in others {
            felt.unanswered += u64::from(voter.durable.is_none());
            smoothed.extend(voter.rtt_ms.map(|ms| Duration::from_secs_f64(ms / 1e3)));
        }
        let now = (status.leader, status.writer, status.epoch);
        felt.changes += u64::from(before.replace(now).is_some_and(|before| before != now));
        let began = Instant::now();
        match writer.send(Method::GET, "/readyz?sync", "").await {
            Ok(_) => confirmed.push(began.elapsed()),
            Err(_) => felt.unconfirmed += 1,
        }
        sleep(PAUSE).await;
    }
    let (round, confirmed, smoothed) = (Spread::of(rounds), Spread::of(confirmed), Spread::of(smoothed));
    Ok(Pulse { round, confirmed, smoothed, ..felt })
}

async fn lag(writer: &Client, follower: &Client, done: &AtomicBool) -> Result<Vec<Duration>, Failure> {
    let mut lag = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let row = format!("probe n=1u {}", now_ns());
        let path = "/api/v3/write_lp?db=bench&precision=nanosecond&ack=local";
        let answer = writer.send(Method::POST, path, row).await?;
        let began = Instant::now();
        let at: Option<Lsn> = answer.header("x-skein-lsn").and_then(|at| at.parse().ok());
        let at = at.ok_or_else(|| Failure::new("an answer without position"))?;
        while Metrics::of(follower).await?.count("skein_applied_seq")? < at.seq {
            if began.elapsed() > PATIENCE {
                return Err(Failure::new(format!("the follower never applied {at}")));
            }
            sleep(LOOK).await;
        }
        lag.push(began.elapsed());
        sleep(PAUSE).await;
    }
    Ok(lag)
}
