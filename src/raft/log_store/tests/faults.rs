//! Every call fails, is cut short or loses the power, once and from there on: in a run of the log and of
//! its snapshots, and again in the recovery after it.

use tokio::time::{Duration, timeout};

use super::{
    crash::{Model, between, found},
    *,
};
use crate::testing::{Fault, SimDisk};

const DIR: &str = "/raft";

#[derive(Clone, Copy, Debug)]
enum Step {
    /// For a new term.
    Vote,
    /// So many entries.
    Append(u64),
    /// All entries behind this index go.
    Truncate(u64),
    /// Of all that is committed: up to this index. Entries up to there go next.
    SnapshotAndPurge(u64),
    /// As above, where the file is worth writing anew.
    SnapshotAndRewrite(u64),
}

const SCRIPT: [Step; 12] = [
    Step::Vote,
    Step::Append(4),
    Step::Vote,
    Step::Append(1),
    Step::Truncate(3),
    Step::Append(2),
    Step::SnapshotAndPurge(2),
    Step::Append(3),
    Step::Vote,
    Step::SnapshotAndRewrite(6),
    Step::Append(2),
    Step::SnapshotAndPurge(8),
];

/// What the files say: the log, and how far the snapshot reaches.
#[derive(Clone, Default, PartialEq, Debug)]
struct Files {
    log: Model,
    snapshot: u64,
}

struct Opened {
    store: LogStore,
    snapshots: Snapshots,
}

/// As a node opens them.
async fn open(disk: &SimDisk) -> Result<Opened, LogError> {
    let dir = Path::new(DIR);
    let io = |source| LogError::Io { dir: dir.to_owned(), source };
    let shared: Arc<dyn Disk> = Arc::new(disk.boot());
    let (snapshots, applied) = Snapshots::open(shared.clone(), dir.join("snapshot")).await.map_err(io)?;
    let (store, writer) = LogStore::open_with(shared, dir, SMALL, watch::Sender::new(None)).await?;
    store.check_snapshot(applied.last.as_ref()).unwrap();
    tokio::spawn(writer.run());
    Ok(Opened { store, snapshots })
}

impl Opened {
    async fn files(&self) -> Files {
        let snapshot = self.snapshots.current().await.and_then(|snapshot| snapshot.meta.last_log_id);
        Files { log: found(&self.store), snapshot: snapshot.map_or(0, |id| id.index) }
    }

    /// Does a step; `maybe` is what may be there from now on, and must be once this returns without error.
    async fn take(&mut self, step: Step, maybe: &mut Files) -> io::Result<()> {
        let Files { log, snapshot } = maybe;
        match step {
            Step::Vote => {
                log.term += 1;
                self.store.save_vote(&RaftVote::new(log.term, NodeId::from(1))).await
            }
            Step::Append(count) => {
                let last = log.log.last().map_or(log.purged, |entry| entry.1);
                let new: Vec<_> = (last + 1..=last + count).map(|index| (log.term, index)).collect();
                log.log.extend(&new);
                append(&mut self.store, new.iter().map(|(term, index)| blank(*term, *index)).collect())
                    .await?;
                self.store.save_committed(Some(id(log.term, last + count))).await
            }
            Step::Truncate(last) => {
                log.log.retain(|entry| entry.1 <= last);
                self.store.truncate_after(log.log.last().map(|entry| id(entry.0, entry.1))).await
            }
            Step::SnapshotAndPurge(upto) | Step::SnapshotAndRewrite(upto) => {
                let entry = log.log.iter().find(|entry| entry.1 == upto).copied().unwrap();
                let meta = SnapshotMeta { last_log_id: Some(id(entry.0, upto)), ..Default::default() };
                let state = frame::encode(&State { name: upto.to_string(), ..Default::default() });
                *snapshot = upto;
                self.snapshots.save_patiently(Snapshot { meta, snapshot: state }).await?;
                // From here on the snapshot is there whatever becomes of the log.
                log.log.retain(|entry| entry.1 > upto);
                log.purged = upto;
                if matches!(step, Step::SnapshotAndRewrite(_)) {
                    self.store.memory().written += 2 * GARBAGE;
                }
                self.store.purge(id(entry.0, upto)).await
            }
        }
    }
}

/// Goes through the script until something fails; returns what is certain and what may be.
async fn run(disk: &SimDisk) -> (Files, Files) {
    let (mut sure, mut maybe) = (Files::default(), Files::default());
    let Ok(mut opened) = open(disk).await else { return (sure, maybe) };
    for step in SCRIPT {
        // What finds no space waits for it; it is found as it stands then.
        let done = timeout(Duration::from_secs(30), opened.take(step, &mut maybe)).await;
        if !matches!(done, Ok(Ok(()))) {
            break;
        }
        sure = maybe.clone();
    }
    (sure, maybe)
}

fn is_between(found: &Files, sure: &Files, maybe: &Files) -> bool {
    // A step that saved the snapshot may not have come to the log.
    let snapshot = found.snapshot == sure.snapshot || found.snapshot == maybe.snapshot;
    snapshot && between(&found.log, &sure.log, &maybe.log) && found.log.purged <= found.snapshot
}

async fn fail_at_every_call(fault: Fault) {
    let calls = {
        let disk = SimDisk::new();
        let (sure, maybe) = run(&disk).await;
        assert_eq!(sure, maybe);
        assert_eq!((sure.log.log, sure.log.term, sure.snapshot), (vec![(3, 9), (3, 10)], 3, 8));
        disk.calls()
    };
    assert!(calls > 40, "{calls}");
    for stop in 1..=calls {
        for (persistent, power) in [(false, false), (false, true), (true, false), (true, true)] {
            let context = format!("{fault:?} at call {stop}, persistent {persistent}, power {power}");
            let disk = SimDisk::new();
            // The process ends, or the machine.
            let end = |seed| if power { disk.crash(seed) } else { disk.kill() };
            disk.fail_at(stop, fault, persistent);
            let (sure, maybe) = run(&disk).await;
            end(stop);
            // The recovery meets the same trouble.
            disk.fail_at(disk.calls() + 1 + stop % 11, fault, persistent);
            let _ = timeout(Duration::from_secs(30), open(&disk)).await;
            end(stop + 1);
            let mut opened = open(&disk).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            let mut files = opened.files().await;
            assert!(
                is_between(&files, &sure, &maybe),
                "{context}: {files:?} is not between {sure:?} and {maybe:?}"
            );
            // What is found is on disk, and the log goes on from it.
            for step in [Step::Vote, Step::Append(1), Step::Append(3)] {
                opened.take(step, &mut files).await.unwrap_or_else(|e| panic!("{context}: {e}"));
            }
            disk.crash(stop + 2);
            let again = open(&disk).await.unwrap_or_else(|e| panic!("{context}, again: {e}"));
            assert_eq!(again.files().await, files, "{context}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_input_output_error_at_any_call_loses_nothing() {
    fail_at_every_call(Fault::Eio).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_at_any_call_loses_nothing() {
    fail_at_every_call(Fault::Enospc).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_cut_short_at_any_call_loses_nothing() {
    fail_at_every_call(Fault::Short).await;
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_call_loses_nothing() {
    fail_at_every_call(Fault::PowerCut).await;
}
