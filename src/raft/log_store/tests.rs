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
    super::{
        applied::Board,
        snapshot::Snapshots,
        state_machine::StateMachine,
        type_config::{Snapshot, SnapshotMeta, TypeConfig},
        types::{Command, State},
    },
    *,
};
use crate::{disk::RealDisk, types::NodeId};

#[cfg(feature = "testing")]
mod bits;
#[cfg(feature = "testing")]
mod crash;
#[cfg(feature = "testing")]
mod faults;

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

/// A newer version may write what this one does not know: that is no damage, and nothing is cut off.
#[tokio::test]
async fn what_a_newer_version_wrote_is_no_damage() {
    #[derive(serde::Serialize)]
    enum Record {
        Compressed(u8),
    }
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(Arc::new(RealDisk), dir.path()).await.unwrap();
    store.save_vote(&RaftVote::new(1, NodeId::from(1))).await.unwrap();
    append(&mut store, vec![blank(1, 1)]).await.unwrap();
    let path = dir.path().join("log");
    let mut bytes = std::fs::read(&path).unwrap();
    let (end, payload) = (log_record::written(&bytes), frame::encode(&Record::Compressed(7)));
    let record = [&log_record::header(&payload, end as u64)[..], &payload].concat();
    bytes[end..end + record.len()].copy_from_slice(&record);
    std::fs::write(&path, &bytes).unwrap();
    let opened = open(Arc::new(RealDisk), dir.path()).await.map(drop);
    assert!(
        matches!(&opened, Err(LogError::Newer { reason, .. }) if reason.contains("Compressed")),
        "{opened:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn reads_for_replication_fit_in_a_message() {
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
    let named = Command::SetWriter(crate::types::Office {
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
    let meta = SnapshotMeta { last_log_id: Some(id(1, 1)), ..Default::default() };
    let state = frame::encode(&State { name: "home".into(), ..Default::default() });
    snapshots.save(Snapshot { meta, snapshot: state }).await.unwrap();
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
