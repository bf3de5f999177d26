//! `skein bench frozen-reader`: full ingest at the writer while a reader's process is stopped, against
//! the same while it runs. What the writer must not do is to remember for it.
//!
//! The two take turns in one run, in an order that turns too, so that a machine that grows slower is
//! slower for both. Before each turn the reader is level: after a frozen one it is let go and waited for
//! without load.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::cli::{Failure, processes::Nodes};

use super::{
    ClusterArgs, FrozenArgs, LoadArgs,
    bodies::Format,
    cluster::{Cluster, unreadable},
    load::{Place, stamps},
    report::{Load, Setting, errors, loads, progress},
    spread::Spread,
};

/// Longest wait for the reader to be level, at the end of a turn.
const PATIENCE: Duration = Duration::from_secs(900);
/// Between two looks at positions and memory.
const LOOK: Duration = Duration::from_millis(100);
pub(super) const MIB: f64 = (1 << 20) as f64;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct FrozenReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    reader: String,
    /// How often each had its turn.
    rounds: u32,
    /// While the reader ran.
    running: Load,
    /// While it was stopped.
    frozen: Load,
    /// Memory of the writer's process meanwhile.
    writer_rss_running: Rss,
    writer_rss_frozen: Rss,
    /// Median while frozen less median while not, and the same of the largest.
    rss_change_mib: f64,
    rss_peak_change_mib: f64,
    /// p99 of a request while frozen by that while not.
    p99_ratio: Option<f64>,
    /// From SIGCONT to level, without load.
    caught_up: Option<Spread>,
}

/// Resident memory over some time, in MiB.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Rss {
    pub(super) median_mib: f64,
    pub(super) max_mib: f64,
}

impl Rss {
    pub(super) fn of(mut looks: Vec<u64>) -> Option<Self> {
        looks.sort_unstable();
        let mib = |bytes: &u64| *bytes as f64 / MIB;
        Some(Self { median_mib: looks.get(looks.len() / 2).map(mib)?, max_mib: looks.last().map(mib)? })
    }
}

pub(super) async fn measure(
    args: &FrozenArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<FrozenReport, Failure> {
    let places = cluster.places().await?;
    let (load, writer) = (args.load(), places.writer);
    let stamps = stamps(&load);
    let mut running = Place::prepare(&load, writer.clone(), "reader runs", &stamps);
    let mut frozen = Place::prepare(&load, writer.clone(), "reader frozen", &stamps);
    running.warm_up().await?;
    frozen.warm_up().await?;
    let nodes = cluster.nodes()?;
    // The last one: it was let in as a reader.
    let reader = nodes.len() - 1;
    let (reader_name, reader_pid) = (nodes.name(reader).to_owned(), pid_of(nodes, nodes.name(reader))?);
    let writer_pid = pid_of(nodes, &writer.name)?;
    level(nodes, reader).await?;
    let turn = Duration::from_secs(args.seconds) / args.rounds;
    let (mut rss_running, mut rss_frozen, mut caught_up) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        for is_frozen in [round % 2 == 1, round % 2 == 0] {
            if is_frozen {
                signal(reader_pid, Signal::STOP)?;
                // It must not stay so, whatever comes.
                let woken = Woken(reader_pid);
                rss_frozen.extend(watched(writer_pid, frozen.drive(turn, cluster)).await?);
                let since = Instant::now();
                drop(woken);
                level(cluster.nodes()?, reader).await?;
                caught_up.push(since.elapsed());
                progress(&format!("{reader_name} is level {} ms after", since.elapsed().as_millis()));
            } else {
                rss_running.extend(watched(writer_pid, running.drive(turn, cluster)).await?);
                level(cluster.nodes()?, reader).await?;
            }
        }
    }
    let (running, frozen) = (running.result()?, frozen.result()?);
    if running.forwarded + frozen.forwarded > 0 {
        return Err(Failure::new("the writer changed meanwhile: measure again"));
    }
    let p99 = |load: &Load| load.request.as_ref().map(|request| request.p99_ms);
    let p99_ratio = p99(&frozen).zip(p99(&running)).map(|(frozen, running)| frozen / running);
    let no_memory = || Failure::new("the writer's memory cannot be read on this machine");
    let writer_rss_running = Rss::of(rss_running).ok_or_else(no_memory)?;
    let writer_rss_frozen = Rss::of(rss_frozen).ok_or_else(no_memory)?;
    Ok(FrozenReport {
        bench: "frozen-reader",
        setting,
        reader: reader_name,
        rounds: args.rounds,
        rss_change_mib: writer_rss_frozen.median_mib - writer_rss_running.median_mib,
        rss_peak_change_mib: writer_rss_frozen.max_mib - writer_rss_running.max_mib,
        running,
        frozen,
        writer_rss_running,
        writer_rss_frozen,
        p99_ratio,
        caught_up: Spread::of(caught_up),
    })
}

impl FrozenArgs {
    fn load(&self) -> LoadArgs {
        LoadArgs {
            cluster: ClusterArgs::own(3, &self.profile, &self.ack),
            connections: self.connections,
            rows: self.rows,
            seconds: self.seconds,
            format: Format::default(),
            rate: None,
        }
    }
}

/// Does `work`; what memory the process had meanwhile, look by look.
pub(super) async fn watched(
    process: Pid,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<Vec<u64>, Failure> {
    let (stop, mut stopped) = oneshot::channel::<()>();
    let looking = async move {
        let mut looks = Vec::new();
        while timeout(LOOK, &mut stopped).await.is_err() {
            looks.extend(rss(process)?);
        }
        Ok::<_, Failure>(looks)
    };
    let working = async move {
        let done = work.await;
        drop(stop);
        done
    };
    let (done, looks) = tokio::join!(working, looking);
    done?;
    looks
}

pub(super) fn rss(process: Pid) -> Result<Option<u64>, Failure> {
    let pid = sysinfo::Pid::from_u32(process.as_raw_nonzero().get().unsigned_abs());
    let mut system = System::new().map_err(unreadable)?;
    let kind = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    Ok(system.process(pid).map(sysinfo::Process::memory))
}

pub(super) fn pid_of(nodes: &Nodes, name: &str) -> Result<Pid, Failure> {
    let found = nodes.processes().into_iter().find(|(node, _)| node == name);
    let pid = found.and_then(|(_, pid)| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    pid.ok_or_else(|| Failure::new(format!("{name} does not run")))
}

fn signal(process: Pid, signal: Signal) -> Result<(), Failure> {
    kill_process(process, signal).map_err(|e| Failure::new(format!("cannot send a signal: {e}")))
}

/// A stopped process that goes on when this is dropped.
struct Woken(Pid);

impl Drop for Woken {
    fn drop(&mut self) {
        // One that is gone needs none.
        let _ = signal(self.0, Signal::CONT);
    }
}

/// Waits until that node has applied all that the cluster has committed, by its own word.
async fn level(nodes: &Nodes, node: usize) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if nodes.is_level(node).await {
            return Ok(());
        }
        sleep(LOOK).await;
    }
    let (name, home) = (nodes.name(node), nodes.home().display());
    Err(Failure::new(format!("{name} did not catch up; logs are in {home} until this command ends")))
}

impl FrozenReport {
    pub(super) fn table(&self) -> String {
        let mut out = format!("{}\n{}", self.setting.line(), loads(&[&self.running, &self.frozen]));
        let ratio =
            self.p99_ratio.map_or_else(|| "-".into(), |ratio| format!("{:+.1} %", (ratio - 1.0) * 1e2));
        out.push_str(&format!(
            "\n{} frozen, against running ({} turns each): p99 {ratio}; writer's memory {:+.1} MiB in the median \
             ({:.1} to {:.1}), {:+.1} MiB at most ({:.1} to {:.1})\n",
            self.reader,
            self.rounds,
            self.rss_change_mib,
            self.writer_rss_running.median_mib,
            self.writer_rss_frozen.median_mib,
            self.rss_peak_change_mib,
            self.writer_rss_running.max_mib,
            self.writer_rss_frozen.max_mib,
        ));
        if let Some(caught_up) = &self.caught_up {
            out.push_str(&format!(
                "level again after {:.0} ms in the median, {:.0} ms at most, without load\n",
                caught_up.p50_ms, caught_up.max_ms
            ));
        }
        out.push_str(&errors("running", &self.running.errors));
        out.push_str(&errors("frozen", &self.frozen.errors));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_by_median_and_maximum() {
        let looks = vec![5 << 20, 1 << 20, 3 << 20];
        assert_eq!(Rss::of(looks), Some(Rss { median_mib: 3.0, max_mib: 5.0 }));
        assert_eq!(Rss::of(Vec::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_watched_for_as_long_as_the_work_takes() {
        let own = rustix::process::getpid();
        let looks = watched(own, async {
            sleep(4 * LOOK).await;
            Ok(())
        });
        let looks = looks.await.unwrap();
        assert!(looks.len() > 1 && looks.iter().all(|bytes| *bytes > 1 << 20), "{looks:?}");
        let failed = watched(own, async { Err(Failure::new("no")) }).await;
        assert!(failed.is_err());
    }
}
