//! The log over a real disk in a temporary directory, and over a simulated one that loses power.

use openraft::{
    StorageError, Vote as RaftVote,
    async_runtime::Oneshot,
    entry::RaftEntry,
    testing::log::{StoreBuilder, Suite},
    type_config::alias::OneshotOf,
    vote::leader_id_std::CommittedLeaderId,
};

use super::{
    super::{applied::Board, snapshot::Snapshots, state_machine::StateMachine, type_config::TypeConfig},
    *,
};
use crate::{disk::RealDisk, types::NodeId};

/// openraft's suite numbers its nodes.
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        Self(id)
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry::new_blank(id(term, index))
}

async fn append(store: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (tx, rx) = OneshotOf::<TypeConfig>::channel();
    store.append(entries, IOFlushed::signal(tx)).await?;
    rx.await.map_err(|_| stopped())?
}

/// Opens a log and spawns its writer.
async fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<LogStore, LogError> {
    let (store, writer) = LogStore::open(disk, dir, watch::Sender::new(None)).await?;
    tokio::spawn(writer.run());
    Ok(store)
}

fn indices(store: &LogStore) -> Vec<(u64, u64)> {
    let memory = store.memory();
    memory.entries.values().map(|h| (h.entry.log_id.leader_id.term, h.entry.log_id.index)).collect()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let store = open(disk.clone(), dir.path()).await.unwrap();
        let (snapshots, applied) = Snapshots::open(disk, dir.path().join("snapshot")).await.unwrap();
        let board = Board::new(applied.clone());
        Ok((dir, store, StateMachine::new(applied, board, snapshots)))
    }
}

// On a paused clock: the suite sleeps for eight seconds in all.
#[tokio::test(start_paused = true)]
async fn openraft_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    let vote = RaftVote::new_committed(2, NodeId::from(1));
    store.save_vote(&vote).await.unwrap();
    append(&mut store, (1..=9).map(|i| blank(1, i)).collect()).await.unwrap();
    store.truncate_after(Some(id(1, 7))).await.unwrap();
    append(&mut store, vec![blank(2, 8)]).await.unwrap();
    store.purge(id(1, 3)).await.unwrap();
    store.save_committed(Some(id(2, 8))).await.unwrap();
    append(&mut store, vec![blank(2, 9)]).await.unwrap();
    let mut again = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    assert_eq!(indices(&again), vec![(1, 4), (1, 5), (1, 6), (1, 7), (2, 8), (2, 9)]);
    assert_eq!(again.read_vote().await.unwrap(), Some(vote));
    assert_eq!(again.read_committed().await.unwrap(), Some(id(2, 8)));
    let state = again.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 3)), Some(id(2, 9))));
}

#[tokio::test]
async fn a_committed_position_is_written_without_help_from_other_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    store.save_committed(Some(id(0, 5))).await.unwrap();
    let mut found = None;
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        found = open(Arc::new(RealDisk), dir.path()).await.unwrap().read_committed().await.unwrap();
        if found.is_some() {
            break;
        }
    }
    assert_eq!(found, Some(id(0, 5)));
}

#[tokio::test]
async fn purging_rewrites_a_file_of_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
    let len = || log_record::written(&std::fs::read(dir.path().join("log")).unwrap()) as u64;
    let mut index = 0;
    while len() < 2 * GARBAGE {
        append(&mut store, (index..index + 4000).map(|i| blank(1, i)).collect()).await.unwrap();
        index += 4000;
    }
    store.purge(id(1, index - 3)).await.unwrap();
    assert!(len() < 1024, "{} bytes left", len());
    append(&mut store, vec![blank(1, index)]).await.unwrap();
    let again = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    assert_eq!(indices(&again), vec![(1, index - 2), (1, index - 1), (1, index)]);
}

#[tokio::test]
async fn damage_below_the_last_group_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
    for index in 1..=3 {
        append(&mut store, vec![blank(1, index)]).await.unwrap();
    }
    let path = dir.path().join("log");
    let whole = std::fs::read(&path).unwrap();
    let mut bent = whole.clone();
    bent[MAGIC.len() + 20] ^= 1;
    std::fs::write(&path, &bent).unwrap();
    assert!(matches!(open(Arc::new(RealDisk), dir.path()).await, Err(LogError::Damaged { .. })));
    std::fs::write(&path, &whole[..log_record::written(&whole) - 1]).unwrap();
    let cut = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    assert_eq!(indices(&cut), vec![(1, 1), (1, 2)]);
    std::fs::write(dir.path().join("vote"), b"nonsense").unwrap();
    assert!(matches!(open(Arc::new(RealDisk), dir.path()).await, Err(LogError::Damaged { .. })));
    std::fs::remove_file(dir.path().join("vote")).unwrap();
    assert!(matches!(open(Arc::new(RealDisk), dir.path()).await, Err(LogError::Damaged { .. })));
}

#[tokio::test]
async fn reads_for_replication_fit_in_a_message() {
    use crate::raft::types::Command;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    let big = |index| {
        let sealed = serde_bytes::ByteBuf::from(vec![7; 3 * 1024 * 1024]);
        Entry::new_normal(id(1, index), Command::SealCa { node: NodeId::default(), sealed, of: None })
    };
    append(&mut store, (1..=5).map(big).collect()).await.unwrap();
    assert_eq!(store.limited_get_log_entries(1, 6).await.unwrap().len(), 2);
    assert_eq!(store.try_get_log_entries(1..6).await.unwrap().len(), 5);
}

#[cfg(feature = "testing")]
mod crash {
    use futures::FutureExt;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{Fault, SimDisk};

    /// What must and what may be found after a power cut.
    #[derive(Clone, Default, PartialEq, Debug)]
    struct Model {
        log: Vec<(u64, u64)>,
        purged: u64,
        term: u64,
    }

    /// Runs random work until the power goes; returns the model before and after the call that
    /// it hit.
    async fn work(store: &mut LogStore, random: &mut StdRng, mut sure: Model) -> (Model, Model) {
        loop {
            let mut next = sure.clone();
            let last = next.log.last().map_or(next.purged, |e| e.1);
            let result = match random.random_range(0..10) {
                0 => {
                    next.term += 1;
                    store.save_vote(&RaftVote::new(next.term, NodeId::from(1))).await
                }
                1 if !next.log.is_empty() => {
                    let keep = random.random_range(0..=next.log.len());
                    next.log.truncate(keep);
                    let upto = next.log.last().map_or(id(0, next.purged), |e| id(e.0, e.1));
                    store.truncate_after(Some(upto)).await
                }
                2 if !next.log.is_empty() => {
                    let gone = random.random_range(0..next.log.len());
                    let upto = next.log[gone];
                    next.log.drain(..=gone);
                    next.purged = upto.1;
                    if random.random_range(0..2) == 0 {
                        // Pretend much garbage, so that rewriting is exercised.
                        store.memory().written += 2 * GARBAGE;
                    }
                    store.purge(id(upto.0, upto.1)).await
                }
                _ => {
                    let count = random.random_range(1..6);
                    let new = (last + 1..=last + count).map(|index| (next.term, index));
                    next.log.extend(new.clone());
                    append(store, new.map(|(term, index)| blank(term, index)).collect()).await
                }
            };
            if result.is_err() {
                return (sure, next);
            }
            sure = next;
        }
    }

    fn found(store: &LogStore) -> Model {
        let (purged, term) = {
            let memory = store.memory();
            let term = memory.vote.as_ref().map_or(0, |vote| vote.leader_id.term);
            (memory.purged.as_ref().map_or(0, |id| id.index), term)
        };
        Model { log: indices(store), purged, term }
    }

    /// True when `state` lies between `sure` and `maybe`: an append may be there in part.
    fn between(state: &Model, sure: &Model, maybe: &Model) -> bool {
        let partial = maybe.log.starts_with(&state.log) && state.log.starts_with(&sure.log);
        state == sure || state == maybe || (partial && (state.purged, state.term) == (sure.purged, sure.term))
    }

    #[tokio::test]
    async fn nothing_acknowledged_is_lost_to_power_cuts() {
        let dir = Path::new("/data/raft");
        for seed in 0..150 {
            let mut random = StdRng::seed_from_u64(seed);
            let disk = SimDisk::new();
            let mut model = Model { term: 1, ..Model::default() };
            for life in 0..4 {
                let mut store = open(Arc::new(disk.boot()), dir).await.unwrap();
                if life == 0 {
                    store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
                    append(&mut store, vec![blank(1, 1)]).await.unwrap();
                    model.log = vec![(1, 1)];
                }
                disk.fail_at(disk.calls() + random.random_range(1..40), Fault::PowerCut, false);
                let (sure, maybe) = work(&mut store, &mut random, model).await;
                disk.crash(random.random());
                // Reopening is itself cut once, and must come to the same.
                disk.fail_at(disk.calls() + random.random_range(1..8), Fault::PowerCut, false);
                let _ = open(Arc::new(disk.boot()), dir).await;
                disk.crash(random.random());
                let again = open(Arc::new(disk.boot()), dir).await.unwrap();
                model = found(&again);
                assert!(
                    between(&model, &sure, &maybe),
                    "seed {seed} life {life}: {model:?} is not between {sure:?} and {maybe:?}"
                );
            }
        }
    }

    /// With a reserve that the entries reach into.
    #[tokio::test(start_paused = true)]
    async fn a_full_disk_takes_votes_and_entries_also_after_a_restart() {
        const RESERVE: u64 = 32 << 10;
        let (disk, dir) = (SimDisk::new(), Path::new("/raft"));
        let open = async || {
            let opened =
                LogStore::open_with(Arc::new(disk.boot()), dir, RESERVE, watch::Sender::new(None)).await;
            let (store, writer) = opened.unwrap();
            tokio::spawn(writer.run());
            store
        };
        let mut store = open().await;
        store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
        append(&mut store, vec![blank(1, 0)]).await.unwrap();
        disk.set_limit(Some(disk.used()));
        let mut index = 0;
        for term in 2..10 {
            let vote = RaftVote::new_committed(term, NodeId::from(term));
            store.save_vote(&vote).await.unwrap();
            for _ in 0..100 {
                index += 1;
                append(&mut store, vec![blank(term, index)]).await.unwrap();
            }
            store.truncate_after(Some(id(term, index - 1))).await.unwrap();
            index -= 1;
            // Much garbage: what would be written anew has no space, and the record says it instead.
            store.memory().written += 2 * GARBAGE;
            store.purge(id(term, index - 1)).await.unwrap();
            disk.kill();
            store = open().await;
            assert_eq!(store.read_vote().await.unwrap(), Some(vote));
            assert_eq!(indices(&store), vec![(term, index)]);
        }
        let content = disk.content(&dir.join("log")).unwrap();
        let (written, len) = (log_record::written(&content) as u64, content.len() as u64);
        assert!(written > RESERVE && written < len && len <= 2 * RESERVE + 8, "{written} of {len}");
        assert!(disk.files().iter().all(|path| !path.to_string_lossy().ends_with(".tmp")));
    }

    /// A follower takes entries as long as there is room for them, and then votes, is elected and writes
    /// the first entries of its terms as before.
    #[tokio::test(start_paused = true)]
    async fn no_vote_waits_behind_an_entry_on_a_full_disk() {
        use openraft::raft::AppendEntriesRequest;

        use super::super::super::rpc::fits;
        const RESERVE: u64 = 32 << 10;
        let (disk, dir) = (SimDisk::new(), Path::new("/raft"));
        let opened = LogStore::open_with(Arc::new(disk.boot()), dir, RESERVE, watch::Sender::new(None)).await;
        let (mut store, writer) = opened.unwrap();
        tokio::spawn(writer.run());
        store.save_vote(&RaftVote::new_committed(1, NodeId::from(1))).await.unwrap();
        append(&mut store, vec![blank(1, 0)]).await.unwrap();
        assert!(!store.room().borrow().full);
        disk.set_limit(Some(disk.used()));
        let mut index = 0;
        let soon = std::time::Duration::from_millis(100);
        loop {
            let entries: Vec<Entry> = (index + 1..=index + 10).map(|index| blank(1, index)).collect();
            let vote = RaftVote::new_committed(1, NodeId::from(1));
            let request =
                AppendEntriesRequest { vote, prev_log_id: Some(id(1, index)), entries, leader_commit: None };
            let heartbeat = AppendEntriesRequest { entries: Vec::new(), ..request.clone() };
            assert!(fits(&store.room().borrow(), &heartbeat));
            if !fits(&store.room().borrow(), &request) {
                break;
            }
            // openraft asks for the next thing without waiting for this one.
            append(&mut store, request.entries).now_or_never();
            index += 10;
            timeout(soon, store.save_vote(&vote)).await.expect("a vote waits behind entries").unwrap();
        }
        assert!(store.room().borrow().full && index > 100, "{index}");
        for term in 2..20 {
            let vote = RaftVote::new(term, NodeId::from(2));
            timeout(soon, store.save_vote(&vote)).await.expect("a vote waits for space").unwrap();
            index += 1;
            timeout(soon, append(&mut store, vec![blank(term, index)])).await.expect("a term").unwrap();
        }
        disk.set_limit(None);
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert!(!store.room().borrow().full);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_more_than_the_reserve_waits_for_space_and_is_not_lost() {
        let (disk, dir) = (SimDisk::new(), Path::new("/raft"));
        let failed = watch::Sender::new(None);
        let (mut store, writer) = LogStore::open(Arc::new(disk.boot()), dir, failed.clone()).await.unwrap();
        tokio::spawn(writer.run());
        store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
        disk.set_limit(Some(disk.used()));
        let all: Vec<Entry> = (0..40_000).map(|index| blank(1, index)).collect();
        let (tx, rx) = OneshotOf::<TypeConfig>::channel();
        for group in all.chunks(4_000) {
            append(&mut store, group.to_vec()).now_or_never();
        }
        store.append(vec![blank(1, 40_000)], IOFlushed::signal(tx)).await.unwrap();
        let mut told = Box::pin(rx);
        assert!(timeout(std::time::Duration::from_secs(60), &mut told).await.is_err(), "it had space");
        assert_eq!(*failed.borrow(), None);
        disk.set_limit(None);
        timeout(std::time::Duration::from_secs(3), told).await.expect("space again").unwrap().unwrap();
        disk.crash(1);
        let again = open(Arc::new(disk.boot()), dir).await.unwrap();
        assert_eq!(again.memory().last(), Some(id(1, 40_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_waits_for_space() {
        use crate::raft::type_config::{Snapshot, SnapshotMeta};
        let disk = SimDisk::new();
        disk.create_dir(Path::new("/raft")).await.unwrap();
        let (snapshots, _) = Snapshots::open(Arc::new(disk.boot()), "/raft/snapshot".into()).await.unwrap();
        disk.set_limit(Some(disk.used() + 10));
        let meta = SnapshotMeta { last_log_id: Some(id(1, 5)), ..Default::default() };
        let state = frame::encode(&crate::raft::types::State::default());
        let snapshot = Snapshot { meta, snapshot: state };
        let mut saved = Box::pin(snapshots.save_patiently(snapshot));
        assert!(timeout(std::time::Duration::from_secs(60), &mut saved).await.is_err());
        assert_eq!(disk.used(), 0, "what was begun takes no space meanwhile");
        disk.set_limit(None);
        timeout(std::time::Duration::from_secs(3), saved).await.expect("space again").unwrap();
        let (_, applied) = Snapshots::open(Arc::new(disk.boot()), "/raft/snapshot".into()).await.unwrap();
        assert_eq!(applied.last, Some(id(1, 5)));
    }

    #[tokio::test]
    async fn what_is_read_behind_a_failed_sync_is_written_again() {
        let disk = SimDisk::new();
        let dir = Path::new("/raft");
        let mut store = open(Arc::new(disk.boot()), dir).await.unwrap();
        store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
        append(&mut store, vec![blank(1, 0)]).await.unwrap();
        // Readable from now on, and not on disk; the node ends, the machine does not.
        disk.fail_at(disk.calls() + 1, Fault::Eio, false);
        assert!(append(&mut store, vec![blank(1, 1)]).await.is_err());
        disk.kill();
        let mut store = open(Arc::new(disk.boot()), dir).await.unwrap();
        assert_eq!(indices(&store), vec![(1, 0), (1, 1)]);
        append(&mut store, vec![blank(1, 2)]).await.unwrap();
        disk.crash(7);
        let again = open(Arc::new(disk.boot()), dir).await.unwrap();
        assert_eq!(indices(&again), vec![(1, 0), (1, 1), (1, 2)]);
    }

    #[tokio::test]
    async fn a_failed_write_is_final() {
        let disk = SimDisk::new();
        let failed = watch::Sender::new(None);
        let (mut store, writer) =
            LogStore::open(Arc::new(disk.boot()), Path::new("/raft"), failed.clone()).await.unwrap();
        tokio::spawn(writer.run());
        store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
        append(&mut store, vec![blank(1, 0)]).await.unwrap();
        disk.fail_at(disk.calls() + 1, Fault::Eio, false);
        assert!(append(&mut store, vec![blank(1, 1)]).await.is_err());
        assert!(failed.borrow().is_some());
        let calls = disk.calls();
        assert!(append(&mut store, vec![blank(1, 2)]).await.is_err());
        assert!(store.save_vote(&RaftVote::new(2, NodeId::from(1))).await.is_err());
        assert_eq!(disk.calls(), calls, "nothing is tried again");
    }
}

/// A reserve that costs little to copy.
#[cfg(feature = "testing")]
const SMALL: u64 = 1024;

/// A log, vote and snapshot with one of everything.
#[cfg(feature = "testing")]
async fn written(disk: &crate::testing::SimDisk, dir: &Path) {
    let shared: Arc<dyn Disk> = Arc::new(disk.boot());
    let (mut store, writer) =
        LogStore::open_with(shared.clone(), dir, SMALL, watch::Sender::new(None)).await.unwrap();
    let writer = tokio::spawn(writer.run());
    let vote = RaftVote::new_committed(2, NodeId::from(1));
    store.save_vote(&vote).await.unwrap();
    append(&mut store, (1..=4).map(|i| blank(1, i)).collect()).await.unwrap();
    store.truncate_after(Some(id(1, 3))).await.unwrap();
    let named = super::super::types::Command::SetWriter(crate::types::Office {
        epoch: 1,
        node: NodeId::from(1),
        boot: crate::types::BootId(7),
        membership: Default::default(),
        at_ms: 0,
        why: Default::default(),
    });
    append(&mut store, vec![Entry::new_normal(id(2, 4), named)]).await.unwrap();
    store.save_committed(Some(id(2, 4))).await.unwrap();
    store.purge(id(1, 1)).await.unwrap();
    append(&mut store, vec![blank(2, 5)]).await.unwrap();
    let (snapshots, _) = Snapshots::open(shared, dir.join("snapshot")).await.unwrap();
    let meta = super::super::type_config::SnapshotMeta { last_log_id: Some(id(1, 1)), ..Default::default() };
    let state = frame::encode(&super::super::types::State { name: "home".into(), ..Default::default() });
    snapshots.save(super::super::type_config::Snapshot { meta, snapshot: state }).await.unwrap();
    drop(store);
    writer.await.unwrap();
    disk.kill();
}

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn the_bytes_are_those_of_format_1() {
    let (disk, dir) = (crate::testing::SimDisk::new(), Path::new("/raft"));
    written(&disk, dir).await;
    for (name, kept) in [("log", "log"), ("vote", "vote-slots"), ("snapshot", "snapshot")] {
        let content = disk.content(&dir.join(name)).unwrap();
        // What is allocated behind the end is no part of the format.
        let len = if name == "log" { log_record::written(&content) } else { content.len() };
        crate::testing::fixture(&format!("raft/{kept}"), &content[..len]);
    }
}

/// Files of before the log had a reserve and the vote slots.
#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn files_without_reserve_are_read_and_get_one() {
    let (disk, dir) = (crate::testing::SimDisk::new(), Path::new("/raft"));
    disk.create_dir(dir).await.unwrap();
    for name in ["log", "vote"] {
        let bytes = crate::testing::read_fixture(&format!("raft/{name}"));
        replace_file(&disk, &dir.join(name), bytes.into()).await.unwrap();
    }
    let vote = RaftVote::new_committed(2, NodeId::from(1));
    for life in 0..2 {
        // The power may go while they are replaced.
        for call in 1..12 {
            let copy = disk.fork();
            copy.fail_at(copy.calls() + call, crate::testing::Fault::PowerCut, false);
            let _ = open(Arc::new(copy.boot()), dir).await;
            copy.crash(call);
            let mut store = open(Arc::new(copy.boot()), dir).await.unwrap();
            assert_eq!(store.read_vote().await.unwrap(), Some(vote), "life {life} call {call}");
        }
        let mut store = open(Arc::new(disk.boot()), dir).await.unwrap();
        assert_eq!(store.read_vote().await.unwrap(), Some(vote));
        let there = [(1, 2), (1, 3), (2, 4), (2, 5), (2, 6)];
        assert_eq!(indices(&store), there[..4 + life as usize]);
        append(&mut store, vec![blank(2, 6 + life)]).await.unwrap();
        disk.kill();
    }
}

/// Every bit flipped: refused, or, in the last write, that one is gone and all before it is there.
/// Every file cut at every byte: what is left of a log is what it was at some moment.
#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn every_flipped_bit_and_every_cut_is_seen() {
    let (disk, dir) = (crate::testing::SimDisk::new(), Path::new("/raft"));
    written(&disk, dir).await;
    let whole = vec![(1, 2), (1, 3), (2, 4), (2, 5)];
    let growing = |from: u64, to: u64| (from..=to).map(|index| (1, index)).collect::<Vec<_>>();
    let mut moments: Vec<Vec<(u64, u64)>> = (0..=4).map(|to| growing(1, to)).collect();
    moments.push([growing(1, 3), vec![(2, 4)]].concat());
    moments.push(whole[..3].to_vec());
    moments.push(whole.clone());
    let (mut refused, mut torn) = (0, 0);
    for name in ["log", "vote", "snapshot"] {
        let path = dir.join(name);
        let bytes = disk.content(&path).unwrap();
        // Free space holds nothing: a bit in it may be torn, and a file may end in it.
        let slots = (0..64).chain(4096..4096 + 64);
        let used: Vec<usize> = match name {
            "vote" => slots.collect(),
            "log" => (0..log_record::written(&bytes)).collect(),
            _ => (0..bytes.len()).collect(),
        };
        let whole_len = bytes.len();
        let flips = used.iter().flat_map(|at| (0..8).map(move |bit| (Some(at * 8 + bit), whole_len)));
        for (flipped, len) in flips.chain(used.iter().map(|len| (None, *len))) {
            let copy = disk.fork();
            match flipped {
                Some(bit) => assert!(copy.flip(&path, bit as u64 / 8, bit as u8 % 8)),
                None => copy.open(&path, Create::No).await.unwrap().resize(len as u64).await.unwrap(),
            }
            let context = format!("{name}, bit {flipped:?}, {len} bytes");
            let shared: Arc<dyn Disk> = Arc::new(copy.boot());
            let snapshot = Snapshots::open(shared.clone(), dir.join("snapshot")).await;
            assert_eq!(snapshot.is_err(), name == "snapshot", "{context}");
            match LogStore::open_with(shared, dir, SMALL, watch::Sender::new(None)).await {
                Err(LogError::Io { source, .. }) => panic!("{context}: {source}"),
                Err(LogError::Damaged { .. }) => refused += 1,
                Ok((store, _)) if name == "log" => {
                    let found = indices(&store);
                    assert!(moments.contains(&found), "{context}: {found:?}");
                    if flipped.is_some() {
                        assert!(whole.starts_with(&found) && found.len() >= 3, "{context}: {found:?}");
                    }
                    torn += 1;
                }
                Ok((store, _)) => {
                    assert_eq!(indices(&store), whole, "{context}");
                    // Of the two slots one is enough.
                    let voted = store.content().0;
                    assert_eq!(voted, Some(RaftVote::new_committed(2, NodeId::from(1))), "{context}");
                    assert!(flipped.is_some() || name == "snapshot", "{context}");
                }
            }
        }
    }
    assert!(refused > 1000 && torn > 100, "{refused} {torn}");
}
