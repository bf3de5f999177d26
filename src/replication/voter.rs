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
    /// Promises an epoch on behalf of the leader `from`, or says why not.
    pub async fn seal(&self, from: NodeId, seal: Seal) -> Result<Sealed, WalError> {
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
