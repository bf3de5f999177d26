//! `skein bench latency`: one client, one row at a time, each sent when the last is acknowledged.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::cli::Failure;

use super::{
    LatencyArgs,
    bodies::{Bodies, Format, Stamps},
    cluster::{Cluster, Edge},
    connection::Connection,
    load::now_ns,
    report::{Errors, LatencyReport, Setting, Single, progress},
    spread::Spread,
};

/// Not counted: the connection is open and the schema known then.
const WARM_UP: u32 = 10;
/// A line of progress after so many.
const LINE: u32 = 1000;

pub(super) async fn measure(
    args: &LatencyArgs,
    cluster: &Cluster,
    setting: Setting,
) -> Result<LatencyReport, Failure> {
    let found = cluster.places().await?;
    let stamps = Stamps::new(1, now_ns());
    let mut places = Vec::new();
    for (is, edge) in [("writer", Some(found.writer)), ("other", found.other)] {
        if let Some(edge) = edge {
            let bodies = Bodies::new(Format::LineProtocol, 1, stamps.clone(), &mut rand::rng());
            places.push(at(args, edge, is, bodies).await?);
        }
    }
    Ok(LatencyReport { bench: "latency", setting, places })
}

/// One after the other at that node.
pub(super) async fn at(
    args: &LatencyArgs,
    edge: Edge,
    is: &'static str,
    mut bodies: Bodies,
) -> Result<Single, Failure> {
    let node = edge.name.clone();
    progress(&format!("{} single writes to {node} ({is})", args.writes));
    let mut connection =
        Connection::new(edge, Format::LineProtocol, &args.cluster.database, &args.cluster.ack);
    for _ in 0..WARM_UP {
        let first = connection.post(bodies.next()).await;
        first.map_err(|e| Failure::new(format!("{node} does not take a write: {e}")))?;
    }
    let (mut times, mut levels, mut errors) = (Vec::new(), BTreeSet::new(), Errors::new());
    for turn in 1..=args.writes {
        let body = bodies.next();
        let sent = Instant::now();
        match connection.post(body).await {
            Ok(acked) => {
                times.push(sent.elapsed());
                levels.insert(acked.level);
            }
            Err(error) => *errors.entry(error).or_default() += 1,
        }
        if turn % LINE == 0 && turn < args.writes {
            progress(&format!("{turn} of {}", args.writes));
        }
    }
    let ack = levels.into_iter().collect::<Vec<_>>().join("+");
    Ok(Single { node, place: is, ack, write: Spread::of(times), errors })
}
