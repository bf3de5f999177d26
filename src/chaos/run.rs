//! A run from its beginning to its report.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use skeinmesh::cli::Failure;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};

use crate::{
    Args,
    check::{self, Violation},
    clients,
    cluster::Cluster,
    crash_images,
    disk::{self, Disk},
    faults, isolation,
    ledger::Ledger,
    logs,
    nemesis::Nemesis,
    network, power_loss,
    process::PROGRAM,
    relay::Relay,
    report::{Report, STORM},
};

/// Until clients have finished their last operation.
const FINISH: Duration = Duration::from_secs(60);

/// What the shell gets: 0 nothing found, 1 a violation or a failure.
pub fn run(args: &Args) -> ExitCode {
    let outcome =
        tokio::runtime::Runtime::new().map_err(Failure::from).and_then(|runtime| runtime.block_on(go(args)));
    let report = match outcome {
        Ok(report) => report,
        Err(failure) => return failure.report(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        print!("{report}");
    }
    if report.violations.is_empty() && !report.interrupted { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn go(args: &Args) -> Result<Report, Failure> {
    isolation::furnish()?;
    let home = tempfile::Builder::new().prefix("skein-chaos-").tempdir()?;
    symlink(std::env::current_exe()?, home.path().join(PROGRAM))?;
    let seed = args.seed.unwrap_or_else(rand::random);
    eprintln!("seed {seed}, logs and disks in {}", home.path().display());
    let mut report =
        Report { chaos: STORM, seed, patience: args.patience, nodes: args.nodes.into(), ..Report::default() };
    let ledger = Arc::new(Ledger::new());
    let began = Instant::now();
    // The first process of a process namespace dies of no signal that it does not ask for.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let outcome = match (args.power_loss, args.crash_images) {
        (Some(cycles), _) => tokio::select! {
            outcome = power_loss::run(cycles, home.path(), seed, &ledger, &mut report) => outcome,
            () = stop => { report.interrupted = true; Ok(()) }
        },
        (None, Some(images)) => tokio::select! {
            outcome = crash_images::run(images, home.path(), seed, &ledger, &mut report) => outcome,
            () = stop => { report.interrupted = true; Ok(()) }
        },
        (None, None) => storm(args, home.path(), &ledger, stop, &mut report).await,
    };
    report.seconds = began.elapsed().as_secs_f64();
    let mut history = ledger.history();
    logs::read(home.path(), &mut history)?;
    report.count(&history);
    report.failed_attempts = ledger.failed.load(Ordering::Relaxed);
    report.violations.extend(check::check(&history));
    match outcome {
        // What came before it may be the reason, so it is told with the rest.
        Err(failure) => report.violations.push(Violation::new("run", failure.to_string())),
        Ok(()) if report.interrupted || report.faults.is_empty() => {}
        Ok(()) => report.violations.extend(report.unseen()),
    }
    if args.keep || !report.violations.is_empty() {
        keep(home.path(), &history, &report)?;
        report.kept = Some(home.keep().display().to_string());
    }
    Ok(report)
}

/// Faults, clients, healing, a last look.
async fn storm(
    args: &Args,
    home: &Path,
    ledger: &Arc<Ledger>,
    stop: impl Future<Output = ()>,
    report: &mut Report,
) -> Result<(), Failure> {
    let (nodes, seed) = (usize::from(args.nodes), report.seed);
    let disks = match Disk::try_ext4(home) {
        Ok(()) => disk::Kind::Ext4,
        Err(why) => {
            eprintln!("no ext4 on loop devices here, disks are in memory: {why}");
            disk::Kind::Memory
        }
    };
    let (kinds, skipped) = faults::choose(&args.faults, nodes, disks);
    report.skipped = skipped;
    network::make(nodes)?;
    let relay = Relay::start(nodes, seed)?;
    let mut cluster = Cluster::prepare(nodes, home, disks, relay, args.patience)?;
    let mut nemesis = Nemesis::new(kinds, seed);
    let told = tokio::select! {
        told = tell(args, &mut cluster, &mut nemesis, ledger, report) => told,
        () = stop => { report.interrupted = true; Ok(()) }
    };
    report.violations = nemesis.never_acted();
    report.faults = nemesis.counts;
    report.count_datagrams(&cluster.relay);
    report.violations.append(&mut cluster.violations);
    told
}

async fn tell(
    args: &Args,
    cluster: &mut Cluster,
    nemesis: &mut Nemesis,
    ledger: &Arc<Ledger>,
    report: &mut Report,
) -> Result<(), Failure> {
    let nodes = cluster.nodes.len();
    cluster.form().await?;
    // The first row, so that no table is unknown to a node that has everything.
    cluster.takes_writes().await;
    cluster.timeline.say("the cluster is formed, clients start");
    let admin: Arc<str> = cluster.admin_token().await?.into();
    let mut clients = clients::start(nodes, &admin, ledger, report.seed);
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    while Instant::now() < deadline && !ledger.stopped() {
        nemesis.strike(cluster).await?;
    }
    cluster.relay.weather().clear();
    cluster.timeline.say("no more faults");
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    report.writes_after_ms = millis(cluster.takes_writes().await);
    ledger.stop();
    if timeout(FINISH, async { while clients.join_next().await.is_some() {} }).await.is_err() {
        return Err(Failure::new(format!("clients did not finish within {FINISH:?}")));
    }
    report.level_after_ms = millis(cluster.becomes_level().await);
    cluster.timeline.say("a last look at every node");
    clients::look_at_the_end(nodes, ledger).await;
    clients::look_at_the_names(nodes, &admin, ledger).await;
    cluster.revive().await
}

/// What the nodes' own logs do not tell.
fn keep(home: &Path, history: &crate::history::History, report: &Report) -> io::Result<()> {
    fs::write(home.join("history.json"), serde_json::to_vec(history)?)?;
    fs::write(home.join("report.json"), serde_json::to_vec_pretty(report)?)
}
