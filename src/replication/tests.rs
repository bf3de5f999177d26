//! Fence and tenure over a log on the simulated disk.

use std::path::Path;

use super::{catch_up::install, incoming::Incoming, sender::position, *};
use crate::{
    disk::{Create, Disk, Durability},
    engine::{MemoryEngine, Operation, StorageEngine},
    protocol::replication::{SnapshotOffer, Subscribe, Subscribed},
    testing::{Fault, SimDisk},
    types::{ClusterId, EpochTable},
    wal::{Draft, RecordKind, WalConfig},
};

const ME: NodeId = NodeId([1; 16]);
const OTHER: NodeId = NodeId([2; 16]);
const BOOT: BootId = BootId(7);
const L: Duration = Duration::from_millis(300);

async fn replica(disk: &SimDisk) -> Arc<Replica> {
    let config = WalConfig { segment_bytes: 1 << 16, ..WalConfig::new("/wal") };
    let mut nonce = disk.calls();
    let draw = Box::new(move || {
        nonce += 1;
        nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    let (wal, driver, recovered) =
        Wal::open(Arc::new(disk.boot()), config, ClusterId([9; 16]), draw).await.unwrap();
    tokio::spawn(driver.run());
    let fence = Fence::new(wal.clone(), ME, BOOT, None);
    let (_, view) = watch::channel(Arc::new(ClusterView::default()));
    Replica::new(fence, wal, (ME, BOOT), recovered.commit, view, L)
}

fn start() -> Draft {
    Draft::unkeyed(RecordKind::EpochStart, 0, 0, "start".into())
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_promises_the_epoch_of_its_last_record() {
    let disk = SimDisk::new();
    let replica = replica(&disk).await;
    // The office of epoch 1 was looked up when its node had followed epoch 3 already.
    let epochs = EpochTable::from_entries(vec![(1, 1), (3, 5)]).unwrap();
    let admitted = replica.fence.admit_snapshot(1, Lsn::new(3, 9), 77, epochs).await.unwrap();
    replica.fence.reset(admitted, Lsn::new(3, 9)).await.unwrap();
    assert_eq!((replica.fence.promised(), replica.wal.promise()), (3, 3));
    // The writer of epoch 2, which others have left long ago, would cut at 5.
    let refused = replica.fence.adopt(2, 4, Lsn::new(3, 9)).await;
    assert!(matches!(refused, Err(fence::FenceError::Fenced { promised: 3, epoch: 2 })), "{refused:?}");
    assert_eq!(replica.wal.end(), Lsn::new(3, 9));
}

/// An engine whose last checkpoint is all that it has applied.
#[derive(Debug)]
struct Restored(MemoryEngine);

impl Restored {
    async fn open(disk: &SimDisk) -> Self {
        Self(MemoryEngine::open(Arc::new(disk.boot()), "/engine".into()).await.unwrap())
    }
}

impl Applier for Restored {
    fn applied(&self) -> Lsn {
        self.0.recovered().0
    }

    fn install(
        &self,
        from: PathBuf,
        _: Lsn,
    ) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>> {
        self.0.install(from)
    }

    fn mend(
        &self,
        from: PathBuf,
        _: Lsn,
        _: Arc<Replica>,
    ) -> Pin<Box<dyn Future<Output = Result<bool, EngineError>> + Send>> {
        let installed = self.0.install(from);
        Box::pin(async move { installed.await.map(|_| true) })
    }

    fn checkpoint(&self) -> Pin<Box<dyn Future<Output = Result<Lsn, EngineError>> + Send>> {
        self.0.checkpoint(bytes::Bytes::new())
    }

    fn export(&self) -> Pin<Box<dyn Future<Output = Result<Export, EngineError>> + Send>> {
        self.0.export()
    }
}

/// A disk with a log and an engine that hold nothing, and a snapshot at 3.9 that has come whole.
async fn fetched() -> (SimDisk, SnapshotOffer) {
    let position = Lsn::new(3, 9);
    let disk = SimDisk::new();
    replica(&disk).await;
    Restored::open(&disk).await;
    let source = MemoryEngine::open(Arc::new(disk.clone()), "/source".into()).await.unwrap();
    source.apply(position, &Operation::DropDatabase { database: "d".into() }).unwrap();
    source.checkpoint(bytes::Bytes::new()).await.unwrap();
    let image = disk.content(Path::new("/source/IMAGE")).unwrap();
    disk.create_dir(Path::new("/incoming")).await.unwrap();
    let file = disk.open(Path::new("/incoming/IMAGE"), Create::New).await.unwrap();
    file.write(0, vec![image.into()], Durability::Now).await.unwrap();
    disk.sync_dir(Path::new("/incoming")).await.unwrap();
    let epochs = EpochTable::from_entries(vec![(1, 1), (3, 5)]).unwrap();
    disk.kill();
    (disk, SnapshotOffer { position, chain: 77, epochs, ..SnapshotOffer::default() })
}

/// The start after: it finishes the log or gives the snapshot up, also when power goes again.
async fn finish_at_every_call(disk: &SimDisk, what: &str) {
    for call in 1.. {
        let disk = disk.fork();
        let start = async |disk: &SimDisk| {
            let (replica, engine) = (replica(disk).await, Restored::open(disk).await);
            (replica.wal.clone(), engine.applied())
        };
        let (wal, held) = start(&disk).await;
        disk.fail_at(disk.calls() + call, Fault::PowerCut, false);
        let whole = wal.begin_anew(held).await.is_ok();
        disk.crash(call);
        let (wal, held) = start(&disk).await;
        wal.begin_anew(held).await.unwrap();
        assert_eq!((wal.end(), wal.commit()), (held, held), "{what}, again at {call}");
        assert_eq!(wal.begin_anew(Lsn::new(9, 9)).await.unwrap(), None, "{what}: something is left");
        if whole {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn power_may_go_at_every_call_of_an_installation() {
    let (disk, offer) = fetched().await;
    let position = offer.position;
    let mut seen = BTreeSet::new();
    // What the call was about to write may be there or not.
    for (call, seed) in (1..).flat_map(|call| (0..16).map(move |seed| (call, seed))) {
        let disk = disk.fork();
        let (replica, engine) = (replica(&disk).await, Restored::open(&disk).await);
        let incoming = Incoming::new(Arc::new(disk.boot()), "/incoming".into());
        disk.fail_at(disk.calls() + call, Fault::PowerCut, false);
        // Of an office that its node had long lost when it took the snapshot.
        let whole = install(&incoming, &replica, &engine, 1, offer.clone()).await.is_ok();
        let promised = replica.wal.promise();
        disk.crash(seed);
        let (replica, engine) = (self::replica(&disk).await, Restored::open(&disk).await);
        let (log, held, promise) = (replica.wal.end(), engine.applied(), replica.wal.promise());
        assert!(promise >= promised, "call {call}: a promise was forgotten");
        assert!(held == Lsn::ZERO || promise == position.epoch, "call {call}: {held} with promise {promise}");
        seen.insert((log, held, promise));
        finish_at_every_call(&disk, &format!("call {call}, seed {seed}")).await;
        if whole {
            assert_eq!((log, held), (position, position));
            break;
        }
    }
    assert!(seen.contains(&(Lsn::ZERO, position, 3)), "no crash between engine and log: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_of_another_history_is_told_apart_from_one_that_is_to_be_cut() {
    let disk = SimDisk::new();
    let (replica, engine) = (replica(&disk).await, Restored::open(&disk).await);
    replica.fence.take_office(1, start()).await.unwrap();
    for _ in 2..=3 {
        replica.fence.append(1, start()).unwrap();
    }
    replica.fence.take_office(2, start()).await.unwrap();
    replica.wal.settle().await.unwrap();
    let chain = async |seq| replica.wal.chain_at(seq).await.unwrap().unwrap();
    let follower = async |durable: Lsn, chain: u32, applied: (Lsn, u32)| {
        let subscribe = Subscribe {
            epoch: 2,
            writer_boot: BOOT,
            boot: BootId(8),
            durable,
            epochs: EpochTable::from_entries(vec![(1, 1)]).unwrap(),
            chain,
            applied: applied.0,
            applied_chain: applied.1,
            keeps_from: 0,
        };
        match position(&replica, &engine, &subscribe).await.unwrap() {
            Subscribed::Resume { keep, .. } => Ok(keep),
            Subscribed::Diverged { at } => Err(at),
            other => panic!("{other:?}"),
        }
    };
    let nothing = (Lsn::ZERO, 0);
    let last = Lsn::new(1, 3);
    assert_eq!(follower(last, chain(3).await, nothing).await, Ok(3));
    assert_eq!(follower(last, chain(3).await ^ 1, nothing).await, Err(last));
    let applied = Lsn::new(1, 2);
    assert_eq!(follower(last, chain(3).await, (applied, chain(2).await)).await, Ok(3));
    assert_eq!(follower(last, chain(3).await, (applied, chain(2).await ^ 1)).await, Err(applied));
    // Behind where epoch 2 begins lies what was never committed: cut, and no alarm.
    assert_eq!(follower(Lsn::new(1, 9), 0xbad, (applied, chain(2).await)).await, Ok(3));
}

#[tokio::test(start_paused = true)]
async fn a_new_writer_is_not_fresh_before_its_start_is_committed() {
    let disk = SimDisk::new();
    let replica = replica(&disk).await;
    replica.fence.take_office(1, start()).await.unwrap();
    // Known committed, from the office before.
    replica.note_commit(Lsn::new(1, 1));
    let start = replica.fence.take_office(2, start()).await.unwrap();
    let voters = vec![BTreeSet::from([ME, OTHER])];
    let tenure = replica.begin_tenure(2, start.lsn.seq, MembershipId::default(), voters);
    replica.wal.settle().await.unwrap();
    // The other voter answers a heartbeat while it still catches up.
    tenure.beat();
    tenure.acks().note(OTHER, Lsn::new(1, 1), Lsn::ZERO, 1);
    replica.recount(&tenure);
    assert!(tenure.acks().confirmed(Instant::now()).is_some());
    assert!(!tenure.has_begun(replica.commit()));
    tenure.acks().note(OTHER, start.lsn, Lsn::ZERO, 1);
    replica.recount(&tenure);
    assert!(tenure.has_begun(replica.commit()));
}
