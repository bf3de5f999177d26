//! The voter's answer to a leader that asks it to seal.

use std::sync::Arc;

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
#[derive(Debug, Clone)]
pub struct SealHandler(pub Arc<Replica>);

impl Replica {
    /// Promises an epoch on behalf of the leader `from`, or says why not. A node whose log was
    /// damaged promises nothing until it is repaired.
    pub async fn seal(&self, from: NodeId, seal: Seal) -> Result<Sealed, WalError> {
        // Rule H12: what this node reports would not cover what it has acknowledged. A debt is found
        // when the log is opened and never comes later, so nothing changes behind this look.
        if self.wal.debt().is_some() {
            return Ok(Sealed::Damaged);
        }
        let view = self.view.borrow().clone();
        self.fence.seal(from, seal, &view, self.commit()).await
    }
}

impl Handler for SealHandler {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let replica = self.0.clone();
        Box::pin(async move {
            let from = peer.node();
            let Ok(seal) = stream.recv.read_message::<Seal>(MAX_MESSAGE).await else { return };
            match replica.seal(from, seal).await {
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
        replication::fence::Fence,
        testing::SimDisk,
        types::{BootId, ClusterId, ClusterView, Lsn},
        wal::{Draft, RecordKind, Wal, WalConfig},
    };

    const ME: NodeId = NodeId([1; 16]);

    async fn open(disk: &SimDisk) -> (Wal, Lsn) {
        let config = WalConfig { quarantine: true, segment_bytes: 16 << 10, ..WalConfig::new("/wal") };
        let opened = Wal::open(Arc::new(disk.boot()), config, ClusterId([2; 16]), Box::new(|| 7)).await;
        let (wal, driver, recovered) = opened.unwrap();
        tokio::spawn(driver.run());
        (wal, recovered.commit)
    }

    #[tokio::test(start_paused = true)]
    async fn a_voter_that_lost_records_answers_no_seal_before_it_is_repaired() {
        let disk = SimDisk::new();
        let (wal, _) = open(&disk).await;
        for _ in 0..3 {
            let payload = bytes::Bytes::from_static(b"points");
            let draft = Draft { kind: RecordKind::Batch, encoding: 1, timestamp: 0, key: None, payload };
            wal.append(1, draft).unwrap();
            wal.settle().await.unwrap();
        }
        drop(wal);
        disk.kill();
        // The payload of the first of three records.
        assert!(disk.flip(Path::new("/wal/00000000000000000001.wal"), 4096 + 16 + 72, 0));

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
