//! The voter's answer to a leader that asks it to seal.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;

use crate::{
    protocol::{
        frame::MAX_MESSAGE,
        replication::{Seal, Sealed},
    },
    transport::{Handler, Peer, Stream},
    types::NodeId,
    wal::WalError,
};

use super::Replica;

/// Handles `Seal` streams.
#[derive(Clone)]
pub struct SealHandler {
    /// What promises.
    pub replica: Arc<Replica>,
    /// True of voters that the view may not know yet.
    pub warranted: Arc<dyn Fn(NodeId) -> bool + Send + Sync>,
}

impl fmt::Debug for SealHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealHandler").field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl Replica {
    /// Promises an epoch on behalf of the leader `from`, or says why not. A node whose log is
    /// damaged promises nothing until it is repaired.
    pub async fn seal(&self, from: NodeId, seal: Seal) -> Result<Sealed, WalError> {
        let view = self.view.borrow().clone();
        self.fence.seal(from, seal, &view, self.commit()).await
    }
}

impl Handler for SealHandler {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (replica, from) = (self.replica.clone(), peer.node());
        let warranted = (self.warranted)(from);
        Box::pin(async move {
            let Ok(seal) = stream.recv.read_message::<Seal>(MAX_MESSAGE).await else { return };
            // A promise bars the writer, whoever asks for it. A leader that this node has not heard of
            // shows its warrant with the next message of raft, and asks again.
            let view = replica.view.borrow().clone();
            let answer = if warranted || view.is_voter(from) {
                replica.seal(from, seal).await
            } else {
                Ok(Sealed::NotLeader { term: view.term })
            };
            match answer {
                Ok(answer) => {
                    tracing::info!(leader = %from, epoch = seal.epoch, ?answer, "sealed");
                    if stream.send.write_message(&answer).await.is_ok() {
                        let _ = stream.send.finish();
                    }
                }
                Err(error) => tracing::error!(leader = %from, epoch = seal.epoch, %error, "cannot promise"),
            }
        })
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::path::Path;

    use tokio::{sync::watch, time::Duration};

    use super::*;
    use crate::{
        replication::fence::{Fence, FenceError},
        testing::SimDisk,
        types::{BootId, ClusterId, ClusterView, Lsn},
        wal::{Draft, RecordKind, Wal, WalConfig},
    };

    const ME: NodeId = NodeId([1; 16]);
    const OTHER: NodeId = NodeId([2; 16]);

    async fn open(disk: &SimDisk) -> (Wal, Lsn) {
        // Nothing durable stays in memory, so that readers go to the disk.
        let config =
            WalConfig { quarantine: true, segment_bytes: 16 << 10, tail_bytes: 0, ..WalConfig::new("/wal") };
        let opened = Wal::open(Arc::new(disk.boot()), config, ClusterId([2; 16]), Box::new(|| 7)).await;
        let (wal, driver, recovered) = opened.unwrap();
        tokio::spawn(driver.run());
        (wal, recovered.commit)
    }

    fn draft(kind: RecordKind) -> Draft {
        let payload = bytes::Bytes::from_static(b"points");
        Draft::unkeyed(kind, 1, 0, payload)
    }

    /// A bit of the payload of the first record.
    fn rot(disk: &SimDisk) {
        assert!(disk.flip(Path::new("/wal/00000000000000000001.wal"), 4096 + 16 + 72, 0));
    }

    /// Damage that is met while it runs: no seal is answered, by whoever knows of it; a writer keeps its
    /// log until it has left office; a stream that began before is over, and pays nothing.
    #[tokio::test(start_paused = true)]
    async fn a_voter_that_meets_damage_answers_no_seal_and_sets_it_aside_in_no_office() {
        let disk = SimDisk::new();
        let (wal, commit) = open(&disk).await;
        let view = ClusterView { voters: vec![[ME, OTHER].into()], ..ClusterView::default() };
        let (_view, view) = watch::channel(Arc::new(view));
        let fence = Fence::new(wal.clone(), ME, BootId(3), None);
        let replica =
            Replica::new(fence, wal.clone(), (ME, BootId(3)), commit, view, Duration::from_millis(300));
        replica.fence.take_office(1, draft(RecordKind::EpochStart)).await.unwrap();
        let record = replica.fence.append(1, draft(RecordKind::Batch)).unwrap();
        wal.settle().await.unwrap();
        rot(&disk);
        assert!(wal.reader(1).read(1).await.is_err());
        let seal = |epoch| Seal { epoch, term: 1, resigned: None };
        assert_eq!(replica.seal(ME, seal(2)).await.unwrap(), Sealed::Damaged);
        assert_eq!(replica.fence.promised(), 1);

        assert!(matches!(replica.fence.set_aside(1).await, Err(FenceError::InOffice(1))));
        assert_eq!((wal.end().seq, wal.debt()), (2, None), "others follow this log");
        replica.fence.step_down(1).await.unwrap();
        assert!(matches!(
            replica.fence.append(1, draft(RecordKind::Batch)),
            Err(FenceError::Fenced { promised: 2, epoch: 1 })
        ));
        replica.fence.leave_office(1);
        let before = replica.fence.adopt(2, 2, Lsn::ZERO).await.unwrap();
        assert_eq!(replica.fence.set_aside(1).await.unwrap().map(|debt| debt.lost_from), Some(1));
        assert_eq!((wal.end(), wal.lacks()), (Lsn::ZERO, None));

        // The stream from before would leave a gap, and what it has brought is not what is owed.
        assert!(matches!(
            replica.fence.append_replica(before, vec![record.clone()]),
            Err(FenceError::Fenced { .. })
        ));
        assert!(!replica.fence.pay_debt(before).await.unwrap());
        assert_eq!(replica.seal(ME, seal(3)).await.unwrap(), Sealed::Damaged);
        assert!(matches!(
            replica.fence.take_office(3, draft(RecordKind::EpochStart)).await,
            Err(FenceError::Wal(WalError::Refused(_)))
        ));
        let after = replica.fence.adopt(3, 0, Lsn::ZERO).await.unwrap();
        assert!(replica.fence.pay_debt(after).await.unwrap());
        assert!(matches!(replica.seal(ME, seal(4)).await.unwrap(), Sealed::Report(_)));
    }

    /// What is in a checkpoint the voter has, and a lone one has nobody to be unfair to.
    #[tokio::test(start_paused = true)]
    async fn damage_below_a_checkpoint_keeps_nobody_from_answering() {
        for (voters, checkpoint, answers) in
            [(vec![ME, OTHER], 0, false), (vec![ME, OTHER], 1, true), (vec![ME], 0, true)]
        {
            let disk = SimDisk::new();
            let (wal, commit) = open(&disk).await;
            wal.append(1, draft(RecordKind::Batch)).unwrap();
            wal.settle().await.unwrap();
            rot(&disk);
            assert!(wal.reader(1).read(1).await.is_err());
            wal.note_checkpoint(checkpoint);
            let view = ClusterView { voters: vec![voters.into_iter().collect()], ..ClusterView::default() };
            let (_view, view) = watch::channel(Arc::new(view));
            let fence = Fence::new(wal.clone(), ME, BootId(3), None);
            let replica = Replica::new(fence, wal, (ME, BootId(3)), commit, view, Duration::from_millis(300));
            let answer = replica.seal(ME, Seal { epoch: 2, term: 1, resigned: None }).await.unwrap();
            assert_eq!(matches!(answer, Sealed::Report(_)), answers, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_voter_that_lost_records_answers_no_seal_before_it_is_repaired() {
        let disk = SimDisk::new();
        let (wal, _) = open(&disk).await;
        for _ in 0..3 {
            wal.append(1, draft(RecordKind::Batch)).unwrap();
            wal.settle().await.unwrap();
        }
        drop(wal);
        disk.kill();
        rot(&disk);

        let (wal, commit) = open(&disk).await;
        assert_eq!(wal.end(), Lsn::ZERO);
        let view = ClusterView { voters: vec![[ME].into()], ..ClusterView::default() };
        let (_view, view) = watch::channel(Arc::new(view));
        let fence = Fence::new(wal.clone(), ME, BootId(3), None);
        let replica = Replica::new(fence, wal, (ME, BootId(3)), commit, view, Duration::from_millis(300));
        let seal = Seal { epoch: 2, term: 1, resigned: None };
        assert_eq!(replica.seal(ME, seal).await.unwrap(), Sealed::Damaged);
        assert_eq!(replica.fence.promised(), 0, "it promises nothing either");
        replica.wal.clear_debt().await.unwrap();
        assert!(
            matches!(replica.seal(ME, seal).await.unwrap(), Sealed::Report(report) if report.promise == 2)
        );
    }
}
