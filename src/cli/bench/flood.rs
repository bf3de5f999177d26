//! `skein bench flood`: full ingest through the mesh while strangers flood the writer with handshakes,
//! against the same without them. What is written goes to another node, so that every row comes to the
//! writer, and goes from it to its followers, on streams that existed before.
//!
//! The two take turns in one run, in an order that turns too.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use crate::cli::Failure;

use super::{
    ClusterArgs, FloodArgs, LoadArgs,
    bodies::Format,
    cluster::Cluster,
    frozen::{Rss, pid_of, watched},
    load::{Place, stamps},
    report::{Load, Setting, errors, loads, progress},
    strangers::{Counts, Flood, Rate, Strangers},
};

/// After a flood, before memory is looked at a last time: what was begun is given up by then.
const OVER: Duration = Duration::from_secs(12);

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct FloodReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    /// How often each had its turn.
    rounds: u32,
    quiet: Load,
    flooded: Load,
    /// Rows per second while flooded by those while not.
    kept: f64,
    /// Memory of the flooded process in the turns without and with a flood, and when it was over.
    rss_quiet: Rss,
    rss_flooded: Rss,
    rss_after: Rss,
    /// The highest in a flood less the highest without.
    rss_peak_change_mib: f64,
    flood: Counts,
    flood_seconds: f64,
}

pub(super) async fn measure(
    args: &FloodArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<FloodReport, Failure> {
    let places = cluster.places().await?;
    let load = args.load();
    let other = places.other.ok_or_else(|| Failure::usage("there is no node besides the writer"))?;
    let nodes = cluster.nodes()?;
    let writer = nodes.index_of(&places.writer.name).ok_or_else(|| Failure::new("the writer is gone"))?;
    let status = nodes.status(writer).await.ok_or_else(|| Failure::new("the writer does not answer"))?;
    let shown = status.nodes.iter().find(|node| node.id == status.node_id);
    let target: SocketAddr = shown
        .and_then(|node| node.mesh_addr.as_deref())
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| Failure::new("the writer does not say where its mesh is"))?;
    let writer_pid = pid_of(nodes, &places.writer.name)?;

    let stamps = stamps(&load);
    let mut quiet = Place::prepare(&load, other.clone(), "quiet", &stamps);
    let mut flooded = Place::prepare(&load, other, "flooded", &stamps);
    quiet.warm_up().await?;
    flooded.warm_up().await?;
    let strangers = Arc::new(Strangers::gather().await?);
    let turn = Duration::from_secs(args.seconds) / args.rounds;
    let rate = Rate { begun: args.rate, whole: args.handshakes };
    let (mut rss_quiet, mut rss_flooded, mut counts) = (Vec::new(), Vec::new(), Counts::default());
    for round in 0..args.rounds {
        for is_flooded in [round % 2 == 1, round % 2 == 0] {
            if is_flooded {
                progress(&format!("strangers begin {} handshakes per second at {target}", args.rate));
                let flood = Flood::start(&strangers, target, rate);
                rss_flooded.extend(watched(writer_pid, flooded.drive(turn, cluster)).await?);
                counts.add(flood.stop().await?);
            } else {
                rss_quiet.extend(watched(writer_pid, quiet.drive(turn, cluster)).await?);
            }
        }
    }
    let over = async {
        tokio::time::sleep(OVER).await;
        Ok(())
    };
    let rss_after = watched(writer_pid, over).await?.pop().map(|last| vec![last]);
    let (quiet, flooded) = (quiet.result()?, flooded.result()?);
    if flooded.forwarded < flooded.requests || quiet.forwarded < quiet.requests {
        return Err(Failure::new("the writer changed meanwhile: measure again"));
    }
    let no_memory = || Failure::new("the writer's memory cannot be read on this machine");
    let rss_quiet = Rss::of(rss_quiet).ok_or_else(no_memory)?;
    let rss_flooded = Rss::of(rss_flooded).ok_or_else(no_memory)?;
    let rss_after = rss_after.and_then(Rss::of).ok_or_else(no_memory)?;
    Ok(FloodReport {
        bench: "flood",
        setting,
        rounds: args.rounds,
        kept: flooded.rows_per_s / quiet.rows_per_s,
        rss_peak_change_mib: rss_flooded.max_mib - rss_quiet.max_mib,
        quiet,
        flood_seconds: flooded.seconds,
        flooded,
        rss_quiet,
        rss_flooded,
        rss_after,
        flood: counts,
    })
}

impl FloodArgs {
    fn load(&self) -> LoadArgs {
        LoadArgs {
            cluster: ClusterArgs::own(self.nodes, &self.profile, "quorum"),
            connections: self.connections,
            rows: self.rows,
            seconds: self.seconds,
            format: Format::default(),
            rate: None,
        }
    }
}

impl FloodReport {
    pub(super) fn table(&self) -> String {
        let per_second = |count: u64| count as f64 / self.flood_seconds;
        let counts = &self.flood;
        let mut out = format!("{}\n{}", self.setting.line(), loads(&[&self.quiet, &self.flooded]));
        out.push_str(&format!(
            "\n{:.1} % of the rows per second kept under {:.0} handshakes begun per second (of which {:.0} were asked \
             to prove their address) and {:.0} whole ones ({:.0} with a certificate of another CA; {} failed), \
             {} turns each\n\
             the writer's memory: {:+.1} MiB at most ({:.1} without, {:.1} with), {:.1} MiB when it was over\n",
            self.kept * 1e2,
            per_second(counts.begun),
            per_second(counts.retries),
            per_second(counts.strangers + counts.other_ca),
            per_second(counts.other_ca),
            counts.failed,
            self.rounds,
            self.rss_peak_change_mib,
            self.rss_quiet.max_mib,
            self.rss_flooded.max_mib,
            self.rss_after.max_mib,
        ));
        out.push_str(&errors("quiet", &self.quiet.errors));
        out.push_str(&errors("flooded", &self.flooded.errors));
        out
    }
}
