//! Power cuts at random, full disks, and errors that are final.

use futures::FutureExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::*;
use crate::testing::{Fault, SimDisk};

/// What must and what may be found after a power cut.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Model {
    pub(super) log: Vec<(u64, u64)>,
    pub(super) purged: u64,
    pub(super) term: u64,
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

pub(super) fn found(store: &LogStore) -> Model {
    let (purged, term) = {
        let memory = store.memory();
        let term = memory.vote.as_ref().map_or(0, |vote| vote.leader_id.term);
        (memory.purged.as_ref().map_or(0, |id| id.index), term)
    };
    Model { log: indices(store), purged, term }
}

/// True when `state` lies between `sure` and `maybe`: an append may be there in part.
pub(super) fn between(state: &Model, sure: &Model, maybe: &Model) -> bool {
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
        let opened = LogStore::open_with(Arc::new(disk.boot()), dir, RESERVE, watch::Sender::new(None)).await;
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
    let state = frame::encode(&State::default());
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
