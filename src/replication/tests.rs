//! Fence and tenure over a log on the simulated disk.

use super::*;
use crate::{
    testing::SimDisk,
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
    Draft { kind: RecordKind::EpochStart, encoding: 0, timestamp: 0, key: None, payload: "start".into() }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_promises_the_epoch_of_its_last_record() {
    let disk = SimDisk::new();
    let replica = replica(&disk).await;
    // The office of epoch 1 was looked up when its node had followed epoch 3 already.
    let epochs = EpochTable::from_entries(vec![(1, 1), (3, 5)]).unwrap();
    replica.fence.reset(1, Lsn::new(3, 9), 77, epochs).await.unwrap();
    assert_eq!((replica.fence.promised(), replica.wal.promise()), (3, 3));
    // The writer of epoch 2, which others have left long ago, would cut at 5.
    let refused = replica.fence.adopt(2, 4, Lsn::new(3, 9)).await;
    assert!(matches!(refused, Err(fence::FenceError::Fenced { promised: 3, epoch: 2 })), "{refused:?}");
    assert_eq!(replica.wal.end(), Lsn::new(3, 9));
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
