//! `skein bench replicate`: how long after its acknowledgement at the writer a row is applied at a
//! follower, at half of what the writer can take; how fast a follower that was away comes back; and what
//! followers cost the writer, against a node that has none.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{Client, Failure, Target, table},
    node::ClusterStatus,
    types::Lsn,
};

use super::{
    ClusterArgs, LoadArgs,
    bodies::{Bodies, Format, Stamps},
    cluster::{Cluster, Edge},
    connection::Connection,
    load::{Place, now_ns, stamps},
    metrics::Metrics,
    report::{Load, Setting, loads, progress, spread},
    spread::Spread,
};
/// Between two rows whose way to the follower is watched.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at the follower.
const LOOK: Duration = Duration::from_millis(1);
/// Longest wait for a follower.
const PATIENCE: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Debug, Serialize)]
pub(super) struct ReplicateReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    /// As fast as it goes.
    most: Load,
    /// At half that rate.
    half: Load,
    follower: String,
    /// From the acknowledgement of a row at the writer, at level local, until it is applied at the
    /// follower, at half the rate; seen by looking every millisecond.
    lag: Option<Spread>,
    /// `None` for nodes of somebody else, which are not this command's to kill.
    return_of: Option<Return>,
    /// `None` likewise.
    shipping: Option<Shipping>,
}

/// Half the rate again, at level local: with the followers, and at a node of its own.
#[derive(Debug, Serialize)]
struct Shipping {
    with_followers: Load,
    alone: Load,
    followers: usize,
    /// Processor time of the writer per row and follower: the difference of the two, by the followers. All that
    /// having one costs is in it: sending, acknowledgements, and smaller groups of records.
    ns_per_row: f64,
}

/// A follower that was killed and came back when everything was written.
#[derive(Debug, Serialize)]
struct Return {
    /// Rows that it had missed, and those per second from its start to level, start included.
    rows: u64,
    seconds: f64,
    rows_per_s: f64,
    /// By the most that the writer took, in this run.
    by_most: f64,
}

pub(super) async fn measure(
    args: &LoadArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<ReplicateReport, Failure> {
    let places = cluster.places().await?;
    let follower = places.other.ok_or_else(|| Failure::usage("there is no follower: give its --url too"))?;
    let (time, stamps) = (Duration::from_secs(args.seconds), stamps(args));
    let most = drive(args, cluster, &places.writer, &stamps, time).await?;
    let rate = (most.requests as f64 / most.seconds / 2.0).max(1.0) as u32;
    let at_half = LoadArgs { rate: Some(rate), ..args.clone() };
    let until = Instant::now() + time;
    let (half, lag) = tokio::join!(
        drive(&at_half, cluster, &places.writer, &stamps, time),
        watch(&args.cluster, &places.writer, &follower, until),
    );
    let (half, lag) = (half?, lag?);
    // Before a follower is away, and has other work than to follow when it is back.
    let local = LoadArgs { cluster: ClusterArgs { ack: "local".into(), ..args.cluster.clone() }, ..at_half };
    let with_followers = match cluster.nodes().is_ok() {
        true => Some(drive(&local, cluster, &places.writer, &stamps, time).await?),
        false => None,
    };
    let return_of = match cluster.nodes() {
        Err(_) => None,
        Ok(nodes) => {
            let at = nodes.index_of(&follower.name).unwrap_or_default();
            progress(&format!("{} is away while the writer takes all it can", follower.name));
            nodes.kill(at).await?;
            let missed = drive(args, cluster, &places.writer, &stamps, time).await?;
            let (rows, began) = (missed.requests * u64::from(args.rows), Instant::now());
            let end = applied(&client(&places.writer)).await?;
            let behind = client(&follower);
            cluster.nodes()?.restart(at).await?;
            while !applied(&behind).await.is_ok_and(|applied| applied >= end) {
                if began.elapsed() > PATIENCE {
                    return Err(Failure::new(format!("{} does not become level", follower.name)));
                }
                sleep(LOOK).await;
            }
            let seconds = began.elapsed().as_secs_f64();
            let rows_per_s = rows as f64 / seconds;
            Some(Return { rows, seconds, rows_per_s, by_most: rows_per_s / most.rows_per_s })
        }
    };
    let shipping = match with_followers {
        // Nothing else is to run beside the single one.
        Some(with_followers) => {
            cluster.stop().await;
            let followers = setting.nodes.saturating_sub(1).max(1);
            Some(shipping(&local, with_followers, followers, &stamps).await?)
        }
        None => None,
    };
    Ok(ReplicateReport {
        bench: "replicate",
        setting,
        most,
        half,
        follower: follower.name,
        lag: Spread::of(lag),
        return_of,
        shipping,
    })
}

/// The same at a node of its own.
async fn shipping(
    args: &LoadArgs,
    with_followers: Load,
    followers: usize,
    stamps: &Arc<Stamps>,
) -> Result<Shipping, Failure> {
    let mut single = Cluster::own(1, &args.cluster.profile)?;
    single.start().await?;
    let lone = single.places().await?.writer;
    let alone = drive(args, &single, &lone, stamps, Duration::from_secs(args.seconds)).await?;
    single.stop().await;
    let unknown = || Failure::new("the writer's processor time cannot be read on this machine");
    let (with, without) = (with_followers.cpu_of(&with_followers.node), alone.cpu_of(&alone.node));
    let (with, without) = with.zip(without).ok_or_else(unknown)?;
    let ns_per_row = (with - without) / followers as f64;
    Ok(Shipping { with_followers, alone, followers, ns_per_row })
}

async fn drive(
    args: &LoadArgs,
    cluster: &Cluster,
    writer: &Edge,
    stamps: &Arc<Stamps>,
    time: Duration,
) -> Result<Load, Failure> {
    let mut place = Place::prepare(args, writer.clone(), "writer", stamps);
    place.warm_up().await?;
    place.drive(time, cluster).await?;
    place.result()
}

/// Single rows, and how long each takes from the writer's disk to the follower's engine.
async fn watch(
    args: &ClusterArgs,
    writer: &Edge,
    follower: &Edge,
    until: Instant,
) -> Result<Vec<Duration>, Failure> {
    let mut connection = Connection::new(writer.clone(), Format::LineProtocol, &args.database, "local");
    let mut bodies = Bodies::new(Format::LineProtocol, 1, Stamps::new(1, now_ns()), &mut rand::rng());
    let client = client(follower);
    let mut lag = Vec::new();
    while Instant::now() < until {
        let acked = connection.post(bodies.next()).await.map_err(Failure::new)?;
        let began = Instant::now();
        // Not the status, which asks every member: a thousand times a second that is a load of its own.
        while Metrics::of(&client).await?.count("skein_applied_seq")? < acked.at.seq {
            if began.elapsed() > PATIENCE {
                return Err(Failure::new(format!("{} never applied {}", follower.name, acked.at)));
            }
            sleep(LOOK).await;
        }
        lag.push(began.elapsed());
        sleep(PAUSE).await;
    }
    Ok(lag)
}

pub(super) fn client(edge: &Edge) -> Client {
    Client::new(Target::Tcp { authority: edge.authority.clone() }, edge.token.clone())
}

/// How far a node has come, as it says itself.
pub(super) async fn applied(client: &Client) -> Result<Lsn, Failure> {
    let status: ClusterStatus = client.get("/api/v1/cluster").await?;
    let own = status.nodes.iter().find(|node| node.id == status.node_id);
    Ok(own.and_then(|node| node.applied).unwrap_or(Lsn::ZERO))
}

impl ReplicateReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("ROWS FROM THE WRITER"),
            table::number("COUNT"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let count = self.lag.as_ref().map_or(0, |lag| lag.count);
        let mut row = vec![format!("acknowledged there to applied at {}", self.follower), count.to_string()];
        row.extend(spread(self.lag.as_ref()));
        let mut out = format!(
            "{}\n{}\n{}",
            self.setting.line(),
            loads(&[&self.most, &self.half]),
            table::render(&columns, &[row])
        );
        if let Some(back) = &self.return_of {
            out.push_str(&format!(
                "\n{} came back {} rows behind and was level after {:.2} s: {:.0} rows/s, {:.2} times the most that the \
                 writer took\n",
                self.follower, back.rows, back.seconds, back.rows_per_s, back.by_most
            ));
        }
        if let Some(shipping) = &self.shipping {
            out.push_str(&format!(
                "\n{}\na follower costs the writer {:.0} ns of processor time per row\n",
                loads(&[&shipping.with_followers, &shipping.alone]),
                shipping.ns_per_row
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::report::tests::{load, setting},
        *,
    };

    #[test]
    fn followers_as_table() {
        let report = ReplicateReport {
            bench: "replicate",
            setting: setting(),
            most: load("n1", "writer"),
            half: load("n1", "writer"),
            follower: "n2".into(),
            lag: Spread::of(vec![Duration::from_millis(3)]),
            return_of: Some(Return { rows: 9, seconds: 2.0, rows_per_s: 4.5, by_most: 1.5 }),
            shipping: Some(Shipping {
                with_followers: load("n1", "writer"),
                alone: load("n1", "writer"),
                followers: 2,
                ns_per_row: 250.4,
            }),
        };
        let table = report.table();
        for part in [
            "\nacknowledged there to applied at n2      1    3.00    3.00    3.00\n",
            "\nn2 came back 9 rows behind and was level after 2.00 s: 4 rows/s, 1.50 times ",
            "\na follower costs the writer 250 ns of processor time per row\n",
        ] {
            assert!(table.contains(part), "{part} is not in {table}");
        }
    }
}
