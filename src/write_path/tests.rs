//! The writer over a real log on the simulated disk. Its followers are what they acknowledge.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use super::{
    SubmitError,
    apply::{AppliedState, Apply},
    commit::{Batch, CommitError, Writer},
    outcome,
};
use crate::{
    disk::Disk,
    engine::{EngineError, Export, MemoryEngine, Operation, Refused, Room, StorageEngine, Work},
    protocol::forward::{AckLevel, BatchId, Progress},
    replication::{Applier, Replica, Tenure, fence::Fence},
    testing::{DiskLatency, SimDisk},
    types::{BootId, ClusterId, ClusterView, Epoch, Lsn, MembershipId, NodeId, Office, Why},
    wal::{DedupKey, Wal, WalConfig},
};

const BOOT: BootId = BootId(7);
const LEASE: Duration = Duration::from_millis(300);
const HEARTBEAT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(3);

type Answer = Result<(Lsn, AckLevel), CommitError>;

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn set(ids: &[u8]) -> BTreeSet<NodeId> {
    ids.iter().map(|n| id(*n)).collect()
}

fn office(epoch: Epoch, node: u8) -> Option<Office> {
    Some(Office {
        epoch,
        node: id(node),
        boot: BOOT,
        membership: MembershipId::default(),
        at_ms: 0,
        why: Why::default(),
    })
}

/// The writer's process, node 1.
struct Rig {
    disk: SimDisk,
    replica: Arc<Replica>,
    apply: Arc<Apply>,
    writer: Arc<Writer>,
    view: watch::Sender<Arc<ClusterView>>,
}

impl Rig {
    /// In office in epoch 1, with `EpochStart` at 1.1 acknowledged by every voter.
    async fn of(voters: &[u8], disk: SimDisk, engine: Arc<dyn StorageEngine>) -> Self {
        let config = WalConfig { segment_bytes: 16 << 10, ..WalConfig::new("/wal") };
        let mut nonce = 0;
        let draw = Box::new(move || {
            nonce += 1;
            nonce
        });
        let (wal, driver, recovered) =
            Wal::open(Arc::new(disk.boot()), config, ClusterId([9; 16]), draw).await.unwrap();
        tokio::spawn(driver.run());
        let view = ClusterView { voters: vec![set(voters)], writer: office(1, 1), ..ClusterView::default() };
        let (view, seen) = watch::channel(Arc::new(view));
        let fence = Fence::new(wal.clone(), id(1), BOOT, None);
        let replica = Replica::new(fence, wal, (id(1), BOOT), recovered.commit, seen, LEASE);
        let (apply, checkpointer) = Apply::new(engine.clone()).unwrap();
        tokio::spawn(apply.clone().run(replica.clone()));
        tokio::spawn(checkpointer.run(replica.clone(), 0));
        let writer = Writer::new(replica.clone(), apply.clone(), engine, Arc::new(|| 0));
        tokio::spawn(writer.clone().hold_office(HEARTBEAT));
        let rig = Self { disk, replica, apply, writer, view };
        let held = rig.replica.watch_tenure().wait_for(Option::is_some).await.unwrap().clone();
        rig.acked(voters, 1);
        held.unwrap().watch_opened().wait_for(|open| *open).await.unwrap();
        rig
    }

    async fn plain(voters: &[u8]) -> (Self, Arc<MemoryEngine>) {
        let engine = Arc::new(MemoryEngine::new());
        (Self::of(voters, SimDisk::new(), engine.clone()).await, engine)
    }

    fn tenure(&self) -> Arc<Tenure> {
        self.replica.tenure().expect("in office")
    }

    /// These have everything up to `seq` on disk and have answered the newest lease round.
    fn acked(&self, followers: &[u8], seq: u64) {
        let tenure = self.tenure();
        for follower in followers.iter().filter(|n| **n != 1) {
            let mut acks = tenure.acks();
            let round = acks.round();
            acks.note(id(*follower), Lsn::new(tenure.epoch, seq), Lsn::ZERO, round);
        }
        self.replica.recount(&tenure);
    }

    /// Returns when the office has marked that in the log.
    async fn voters_are(&self, sets: &[&[u8]], index: u64) {
        let mark = self.replica.wal.end().seq + 1;
        let voters = sets.iter().map(|ids| set(ids)).collect();
        let membership = MembershipId { term: 1, index };
        let now = ClusterView { voters, membership, ..ClusterView::clone(&self.view.borrow()) };
        self.view.send_replace(Arc::new(now));
        self.replica.wal.watch_end().wait_for(|end| end.seq == mark).await.unwrap();
    }

    fn writes(&self, office: Option<Office>) {
        let now = ClusterView { writer: office, ..ClusterView::clone(&self.view.borrow()) };
        self.view.send_replace(Arc::new(now));
    }

    async fn commit(&self, batch: Batch) -> Answer {
        self.writer.commit(1, batch).await
    }

    /// Asked for, and under way for a moment.
    async fn begin(&self, batch: Batch) -> JoinHandle<Answer> {
        let writer = self.writer.clone();
        let asked = tokio::spawn(async move { writer.commit(1, batch).await });
        sleep(Duration::from_millis(50)).await;
        asked
    }
}

fn batch(counter: u64, ack: AckLevel) -> Batch {
    Batch {
        key: DedupKey::Batch(BatchId { edge: id(8), boot: BootId(1), counter }),
        also: None,
        encoding: 9,
        payload: Bytes::from(format!("batch {counter}")),
        ack: Some(ack),
        deadline: Instant::now() + PATIENCE,
        request: None,
        kept: false,
    }
}

fn unreached(seq: u64, asked: AckLevel, reached: AckLevel) -> Answer {
    Err(CommitError::Unknown(Some(Progress { at: Lsn::new(1, seq), asked, reached })))
}

fn batches(engine: &MemoryEngine) -> Vec<Lsn> {
    let held = engine.contents().into_iter();
    held.filter(|(_, operation)| matches!(operation, Operation::Batch { .. })).map(|(at, _)| at).collect()
}

#[tokio::test(start_paused = true)]
async fn memory_is_answered_before_the_disk_and_seen_only_when_committed() {
    let (rig, engine) = Rig::plain(&[1, 2, 3]).await;
    rig.disk.set_latency(DiskLatency { sync: Duration::from_secs(1), ..DiskLatency::default() });
    let before = Instant::now();
    let at = Lsn::new(1, 2);
    assert_eq!(rig.commit(batch(1, AckLevel::Memory)).await, Ok((at, AckLevel::Memory)));
    assert_eq!(before, Instant::now(), "nothing was waited for");
    assert!(rig.replica.wal.durable() < at);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.replica.wal.durable(), at);
    assert!(batches(&engine).is_empty(), "on one disk only");
    // The same batch again, at more: the record that is there is waited for.
    let again = rig.begin(batch(1, AckLevel::Quorum)).await;
    assert!(!again.is_finished());
    rig.acked(&[2], 2);
    assert_eq!(again.await.unwrap(), Ok((at, AckLevel::Quorum)));
    assert_eq!(batches(&engine), [at]);
    assert_eq!(rig.replica.wal.end(), at, "once in the log");
}

#[tokio::test(start_paused = true)]
async fn local_needs_a_lease_that_is_live_after_the_sync() {
    let (rig, _) = Rig::plain(&[1, 2, 3]).await;
    // Its followers have been silent for longer than the lease: partitioned, or it was paused.
    sleep(LEASE * 2).await;
    let answer = rig.commit(batch(1, AckLevel::Local)).await;
    assert_eq!(answer, unreached(2, AckLevel::Local, AckLevel::Memory));
    assert_eq!(rig.replica.wal.durable(), Lsn::new(1, 2), "it is on disk, and that is not enough");
    // A majority answers again, and has nothing new on disk.
    let again = rig.begin(batch(1, AckLevel::Local)).await;
    assert!(!again.is_finished());
    rig.acked(&[3], 1);
    assert_eq!(again.await.unwrap(), Ok((Lsn::new(1, 2), AckLevel::Local)));
    assert_eq!(rig.replica.commit(), Lsn::new(1, 1));

    // Live when the batch is let in, and no more when it is on disk.
    rig.disk.set_latency(DiskLatency { sync: LEASE, ..DiskLatency::default() });
    rig.acked(&[3], 1);
    let answer = rig.commit(batch(2, AckLevel::Local)).await;
    assert_eq!(answer, unreached(3, AckLevel::Local, AckLevel::Memory));
    assert_eq!(rig.replica.wal.durable(), Lsn::new(1, 3));
}

#[tokio::test(start_paused = true)]
async fn all_is_every_voter_also_for_a_record_that_is_applied() {
    let (rig, engine) = Rig::plain(&[1, 2, 3]).await;
    let at = Lsn::new(1, 2);
    let asked = rig.begin(batch(1, AckLevel::All)).await;
    rig.acked(&[2], 2);
    assert_eq!(asked.await.unwrap(), unreached(2, AckLevel::All, AckLevel::Quorum));
    assert_eq!(batches(&engine), [at]);
    // It is applied by now: less than `all` is answered at once, `all` is not.
    for level in [AckLevel::Memory, AckLevel::Local, AckLevel::Quorum] {
        assert_eq!(rig.commit(batch(1, level)).await, Ok((at, level)));
    }
    let again = rig.begin(batch(1, AckLevel::All)).await;
    assert!(!again.is_finished());
    rig.acked(&[3], 1);
    sleep(Duration::from_millis(50)).await;
    assert!(!again.is_finished());
    rig.acked(&[3], 2);
    assert_eq!(again.await.unwrap(), Ok((at, AckLevel::All)));
    assert_eq!((batches(&engine), rig.replica.wal.end()), (vec![at], at));
}

#[tokio::test(start_paused = true)]
async fn all_counts_the_voters_in_force() {
    let (rig, _) = Rig::plain(&[1, 2, 3]).await;
    // While a fourth joins, both sets count.
    rig.voters_are(&[&[1, 2, 3], &[1, 2, 3, 4]], 1).await;
    let asked = rig.begin(batch(1, AckLevel::All)).await;
    let at = rig.replica.wal.end();
    rig.acked(&[2, 3], at.seq);
    sleep(Duration::from_millis(50)).await;
    assert_eq!((rig.replica.commit(), asked.is_finished()), (at, false));
    rig.acked(&[4], at.seq);
    assert_eq!(asked.await.unwrap(), Ok((at, AckLevel::All)));
    // The fourth falls silent, and then is no voter any more.
    rig.voters_are(&[&[1, 2, 3, 4]], 2).await;
    let asked = rig.begin(batch(2, AckLevel::All)).await;
    let end = rig.replica.wal.end();
    rig.acked(&[2, 3], end.seq);
    sleep(Duration::from_millis(50)).await;
    assert!(!asked.is_finished());
    rig.voters_are(&[&[1, 2, 3]], 3).await;
    assert_eq!(asked.await.unwrap(), Ok((end, AckLevel::All)));
    // A voter that comes with less on disk counts for what was acknowledged before, too.
    rig.voters_are(&[&[1, 2, 3, 5]], 4).await;
    assert_eq!(
        rig.commit(batch(2, AckLevel::All)).await,
        unreached(end.seq, AckLevel::All, AckLevel::Quorum)
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_all_is_let_go_with_the_office() {
    let (rig, _) = Rig::plain(&[1, 2, 3]).await;
    let applied = rig.begin(batch(1, AckLevel::All)).await;
    rig.acked(&[2], 2);
    let queued = rig.begin(batch(2, AckLevel::All)).await;
    rig.writes(office(2, 3));
    assert_eq!(applied.await.unwrap(), Err(CommitError::LostOffice));
    assert_eq!(queued.await.unwrap(), Err(CommitError::LostOffice));
    assert_eq!(rig.commit(batch(1, AckLevel::All)).await, Err(CommitError::NotWriter));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writer_says_nothing_more() {
    let (rig, _) = Rig::plain(&[1, 2, 3]).await;
    rig.disk.set_latency(DiskLatency { sync: Duration::from_secs(1), ..DiskLatency::default() });
    let local = rig.begin(batch(1, AckLevel::Local)).await;
    let seal = crate::protocol::replication::Seal { epoch: 2, term: 1, resigned: None };
    let sealed = rig.replica.seal(id(2), seal);
    rig.acked(&[2, 3], 1);
    let (sealed, answer) = tokio::join!(sealed, local);
    sealed.unwrap();
    assert_eq!(answer.unwrap(), Err(CommitError::LostOffice), "on disk, and too late");
}

#[tokio::test(start_paused = true)]
async fn a_lone_voter_reaches_every_level_by_itself() {
    let (rig, engine) = Rig::plain(&[1]).await;
    for (n, level) in (1..).zip(AckLevel::EVERY) {
        assert_eq!(rig.commit(batch(n, level)).await, Ok((Lsn::new(1, n + 1), level)));
        if level != AckLevel::Memory {
            assert_eq!(batches(&engine).len() as u64, n, "visible at {level}");
        }
    }
    // Its default is what it can do, and names no majority.
    let default = Batch { ack: None, ..batch(9, AckLevel::All) };
    assert_eq!(rig.commit(default).await.unwrap().1, AckLevel::Local);
}

#[tokio::test(start_paused = true)]
async fn a_client_key_counts_within_its_database_and_is_known_across_versions() {
    let (rig, engine) = Rig::plain(&[1, 2, 3]).await;
    let client = |key, body| DedupKey::Client { key: [key; 16], body: [body; 16] };
    let keyed = |key, also| Batch { key, also, ..batch(0, AckLevel::Memory) };
    // Key 1 is what versions before make of one text; in databases `a` and `b` it is 2 and 3 now. The body's
    // hash is of the database too.
    let (in_a, in_b) = ((client(2, 7), client(1, 7)), (client(3, 8), client(1, 8)));
    let taken = rig.commit(keyed(in_a.1, None)).await.unwrap();
    assert_eq!(rig.commit(keyed(in_a.0, Some(in_a.1))).await.unwrap(), taken, "under way");
    let other = rig.commit(keyed(in_b.0, Some(in_b.1))).await.unwrap();
    assert_ne!(other, taken, "the key of somebody else's database is no key of this one");
    rig.acked(&[2], other.0.seq);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(batches(&engine), [taken.0, other.0]);
    let again = |key, also| Batch { ack: Some(AckLevel::Quorum), ..keyed(key, also) };
    assert_eq!(rig.commit(again(in_a.0, Some(in_a.1))).await.unwrap().0, taken.0, "applied");
    assert_eq!(rig.commit(again(in_b.0, Some(in_b.1))).await.unwrap().0, other.0);
    // While an older version is about, what it will ask for is what is kept, and the other is known.
    assert_eq!(rig.commit(again(in_b.1, Some(in_b.0))).await.unwrap().0, other.0);
    assert_eq!(rig.commit(keyed(client(3, 9), Some(client(1, 9)))).await, Err(CommitError::KeyReused));
    assert_eq!(batches(&engine).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_committed_is_bounded() {
    let (rig, _) = Rig::plain(&[1, 2, 3]).await;
    let stalled = batch(1, AckLevel::Memory);
    rig.commit(stalled.clone()).await.unwrap();
    let large = DedupKey::Client { key: [1; 16], body: [1; 16] };
    rig.apply.ledger().in_flight.insert(large, 99, 64 << 20);
    let end = rig.replica.wal.end();
    for level in AckLevel::EVERY {
        assert_eq!(rig.commit(batch(2, level)).await, Err(CommitError::Busy));
    }
    assert_eq!(rig.replica.wal.end(), end, "nothing was written");
    // What is there is answered all the same, and marks are let in.
    assert!(rig.commit(stalled).await.is_ok());
    rig.voters_are(&[&[1, 2, 3, 4]], 1).await;
    rig.apply.ledger().in_flight.remove(&large);
    assert!(rig.commit(batch(2, AckLevel::Memory)).await.is_ok());
}

#[cfg(feature = "columnar")]
#[tokio::test(start_paused = true)]
async fn a_refused_append_reserves_no_column() {
    use crate::engine::columnar::{
        ColumnarConfig, ColumnarEngine, batch as columns, ingest, schema::Schemas,
    };

    let points = |counter: u64, line: String| {
        let options = ingest::Options {
            database: "db".into(),
            precision: ingest::Precision::Nanosecond,
            now_ns: 1,
            accept_partial: false,
            series: None,
        };
        let parsed =
            ingest::line_protocol::parse(line.as_bytes(), &options, &Schemas::default(), &mut |_| true)
                .unwrap();
        let payload = columns::encode(&parsed.batch.unwrap()).unwrap();
        Batch { encoding: columns::ENCODING, payload, ..batch(counter, AckLevel::Local) }
    };
    let disk = SimDisk::new();
    let home = std::path::PathBuf::from("/engine");
    let engine = ColumnarEngine::open(Arc::new(disk.boot()), home, ColumnarConfig::default()).await.unwrap();
    let rig = Rig::of(&[1], disk, engine).await;
    rig.disk.set_limit(Some(rig.disk.used()));
    let mut full = rig.replica.wal.watch_full();
    let mut counter = 1;
    while !*full.borrow_and_update() {
        rig.commit(points(counter, format!("other s=\"{}\" 1", "x".repeat(3000)))).await.unwrap();
        counter += 1;
    }
    assert_eq!(rig.commit(points(1000, "cpu v=1.5 1".into())).await, Err(CommitError::Full));
    rig.disk.set_limit(None);
    full.wait_for(|full| !*full).await.unwrap();
    rig.commit(points(1001, "cpu v=1i 1".into())).await.expect("nobody has ever written a float");
}

#[cfg(feature = "columnar")]
#[tokio::test(start_paused = true)]
async fn databases_are_dropped_and_expire_by_records_of_the_writer() {
    use crate::{
        engine::columnar::{ColumnarConfig, ColumnarEngine, batch as columns, ingest, schema::Schemas},
        write_path::policy::{self, Change},
    };

    const HOUR: i64 = 3_600_000_000_000;
    let points = |counter: u64, time: i64| {
        let options = ingest::Options {
            database: "db".into(),
            precision: ingest::Precision::Nanosecond,
            now_ns: 0,
            accept_partial: false,
            series: None,
        };
        let line = format!("cpu v=1.5 {time}");
        let parsed =
            ingest::line_protocol::parse(line.as_bytes(), &options, &Schemas::default(), &mut |_| true);
        let payload = columns::encode(&parsed.unwrap().batch.unwrap()).unwrap();
        Batch { encoding: columns::ENCODING, payload, ..batch(counter, AckLevel::Quorum) }
    };
    let change = |counter: u64, change: Change| Batch {
        encoding: policy::ENCODING,
        payload: change.encode(),
        ..batch(counter, AckLevel::Quorum)
    };
    let disk = SimDisk::new();
    let home = std::path::PathBuf::from("/engine");
    let engine = ColumnarEngine::open(Arc::new(disk.boot()), home, ColumnarConfig::default()).await.unwrap();
    let rig = Rig::of(&[1], disk, engine.clone()).await;
    let rows = |engine: Arc<ColumnarEngine>| async move {
        let found = engine.scan("db", "cpu").await.unwrap();
        found.map(|(_, found)| found.iter().map(|batch| batch.num_rows()).sum::<usize>())
    };

    rig.commit(points(1, -2 * HOUR)).await.unwrap();
    rig.commit(points(2, 0)).await.unwrap();
    let quiet = rig.replica.wal.end();
    sleep(HEARTBEAT * 20).await;
    assert_eq!(rig.replica.wal.end(), quiet, "nothing is too old, so nothing is said");
    let keep = Change::Retention { database: "db".into(), keep_ns: Some(HOUR) };
    let (at, _) = rig.commit(change(3, keep.clone())).await.unwrap();
    // The writer's clock says 0.
    sleep(HEARTBEAT * 20).await;
    assert_eq!(rows(engine.clone()).await, Some(1));
    assert_eq!(rig.replica.wal.end().seq, at.seq + 1, "it is said once");
    assert_eq!(rig.commit(change(3, keep)).await, Ok((at, AckLevel::Quorum)), "a retry is the same record");

    let drop = Change::Drop { database: "db".into() };
    let (at, _) = rig.commit(change(4, drop.clone())).await.unwrap();
    assert!(engine.databases().is_empty() && engine.survey_databases().is_empty());
    rig.commit(points(5, -2 * HOUR)).await.unwrap();
    assert_eq!(rig.commit(change(4, drop)).await.unwrap().0, at);
    sleep(HEARTBEAT * 20).await;
    assert_eq!(rows(engine.clone()).await, Some(1), "what came later is not dropped, and keeps for ever");
    let time = Change::Expire { now_ns: i64::MAX }.encode();
    assert!(rig.writer.validate(policy::ENCODING, &time).is_err(), "an edge does not say what time it is");
    assert!(rig.writer.validate(policy::ENCODING, &Bytes::from_static(b"x")).is_err());
}

#[test]
fn a_refusal_is_told_as_one_only_where_it_is_final() {
    let told = |error, sent| outcome(error, sent, office(4, 2), PATIENCE);
    let refusals = || [CommitError::Full, CommitError::Busy];
    let clear = [SubmitError::Full, SubmitError::WriterBusy];
    assert_eq!(refusals().map(|error| told(error, None)), clear);
    // A former office may have had it: that it is not in this one's log is the end of it.
    assert_eq!(refusals().map(|error| told(error, Some(3))), clear);
    // An earlier question to this office may still be under way.
    assert_eq!(
        refusals().map(|error| told(error, Some(4))),
        [SubmitError::Unknown(None), SubmitError::Unknown(None)]
    );
    for error in [CommitError::NotWriter, CommitError::LostOffice, CommitError::Unknown(None)] {
        assert_eq!(told(error.clone(), Some(3)), SubmitError::Unknown(None));
        assert_eq!(told(error, None), SubmitError::NoWriter { waited: PATIENCE });
    }
    let progress = Progress { at: Lsn::new(4, 9), asked: AckLevel::All, reached: AckLevel::Quorum };
    let error = CommitError::Unknown(Some(progress));
    assert_eq!(told(error, Some(4)), SubmitError::Unknown(Some(progress)));
}

/// Takes a checkpoint from the third record on, until it is let go, and has no room meanwhile.
#[derive(Debug, Default)]
struct Crowded {
    inner: MemoryEngine,
    running: Arc<AtomicBool>,
    let_go: Arc<Notify>,
}

impl StorageEngine for Crowded {
    fn recovered(&self) -> (Lsn, Bytes) {
        self.inner.recovered()
    }

    fn applied(&self) -> Lsn {
        self.inner.applied()
    }

    fn admit(&self, encoding: u8, payload: &Bytes) -> Result<(), Refused> {
        self.inner.admit(encoding, payload)
    }

    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        self.inner.apply(at, operation)
    }

    fn checkpoint_due(&self) -> bool {
        self.applied().seq == 3 && self.recovered().0.seq < 3
    }

    fn room(&self) -> Room {
        if self.running.load(Ordering::Relaxed) { Room::None } else { Room::Enough }
    }

    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        self.running.store(true, Ordering::Relaxed);
        let (running, let_go, work) =
            (self.running.clone(), self.let_go.clone(), self.inner.checkpoint(sidecar));
        Box::pin(async move {
            let_go.notified().await;
            running.store(false, Ordering::Relaxed);
            work.await
        })
    }

    fn export(&self) -> Work<Export> {
        self.inner.export()
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        self.inner.install(from)
    }
}

#[tokio::test(start_paused = true)]
async fn records_wait_for_a_checkpoint_when_there_is_no_room() {
    let engine = Arc::new(Crowded::default());
    let rig = Rig::of(&[1], SimDisk::new(), engine.clone()).await;
    for counter in 1..=2 {
        rig.commit(batch(counter, AckLevel::Quorum)).await.unwrap();
    }
    let third = rig.commit(batch(3, AckLevel::Quorum));
    tokio::pin!(third);
    assert!(tokio::time::timeout(PATIENCE / 2, &mut third).await.is_err(), "it is not applied");
    assert_eq!((engine.applied().seq, rig.replica.wal.end().seq), (3, 4));
    assert!(rig.apply.waits_for_room());
    engine.let_go.notify_one();
    third.await.unwrap();
    assert_eq!((engine.applied().seq, rig.apply.waits_for_room()), (4, false));
}

/// Applied, and in a checkpoint.
async fn checkpointed(engine: &MemoryEngine, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        engine.apply(Lsn::new(1, seq), &Operation::DropDatabase { database: format!("{seq}") }).unwrap();
    }
    engine.checkpoint(Bytes::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_below_what_is_applied_changes_nothing() {
    let disk = SimDisk::new();
    let place = |dir: &str| MemoryEngine::open(Arc::new(disk.boot()), dir.into());
    let (source, engine) = (place("/source").await.unwrap(), Arc::new(place("/engine").await.unwrap()));
    checkpointed(&source, 1..=5).await;
    checkpointed(&engine, 1..=9).await;
    let (apply, _) = Apply::new(engine.clone()).unwrap();
    let applier = AppliedState(apply);
    // Offered before another snapshot, at 1.9, was installed.
    let applied = applier.install("/source".into(), Lsn::new(1, 5)).await.unwrap();
    assert_eq!(
        (applied, applier.applied(), engine.applied()),
        (Lsn::new(1, 9), Lsn::new(1, 9), Lsn::new(1, 9))
    );
    assert_eq!(engine.contents().len(), 9);
    checkpointed(&source, 6..=12).await;
    let applied = applier.install("/source".into(), Lsn::new(1, 12)).await.unwrap();
    assert_eq!((applied, engine.applied(), engine.contents().len()), (Lsn::new(1, 12), Lsn::new(1, 12), 12));
}

#[tokio::test(start_paused = true)]
async fn to_mend_the_engine_goes_back_and_applies_again_and_never_the_writers() {
    let disk = SimDisk::new();
    let engine = MemoryEngine::open(Arc::new(disk.boot()), "/engine".into()).await.unwrap();
    let engine = Arc::new(engine);
    let rig = Rig::of(&[1], disk.clone(), engine.clone()).await;
    let write = async |counters: std::ops::RangeInclusive<u64>| {
        for counter in counters {
            rig.commit(batch(counter, AckLevel::Quorum)).await.unwrap();
        }
    };
    write(1..=2).await;
    let at = rig.apply.checkpoint_now().await.unwrap();
    let image = disk.content("/engine/IMAGE".as_ref()).unwrap();
    disk.create_dir("/mending".as_ref()).await.unwrap();
    crate::disk::replace_file(&disk, "/mending/IMAGE".as_ref(), image.into()).await.unwrap();
    write(3..=4).await;
    let (last, all) = (engine.applied(), engine.contents().len());
    assert_eq!((at.seq, last.seq), (3, 5));

    let applier = AppliedState(rig.apply.clone());
    let mend = || applier.mend("/mending".into(), at, rig.replica.clone());
    assert_eq!(applier.install("/mending".into(), at).await.unwrap(), last, "catching up never goes back");
    assert!(!mend().await.unwrap(), "what the writer answers with must stay");
    assert_eq!((engine.applied(), applier.applied()), (last, last));
    rig.writes(office(2, 2));
    while rig.replica.fence.in_office() {
        sleep(HEARTBEAT).await;
    }
    assert!(mend().await.unwrap());
    rig.apply.watch().wait_for(|applied| *applied == last).await.unwrap();
    assert_eq!((engine.applied(), engine.contents().len()), (last, all));
}

#[tokio::test(start_paused = true)]
async fn the_newest_mark_comes_back_with_the_checkpoint() {
    let (rig, engine) = Rig::plain(&[1]).await;
    rig.voters_are(&[&[1, 2]], 5).await;
    rig.acked(&[2], 2);
    rig.apply.watch().wait_for(|at| at.seq == 2).await.unwrap();
    let mark = MembershipId { term: 1, index: 5 };
    assert_eq!(rig.apply.marked(), mark);
    rig.apply.checkpoint_now().await.unwrap();
    engine.crash();
    let (again, _) = Apply::new(engine).unwrap();
    assert_eq!(again.marked(), mark);
}
