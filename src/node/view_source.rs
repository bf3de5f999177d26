//! The serving end of a `View` stream: any node with data shows members that are not in raft what it
//! knows of the cluster.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::{sync::watch, time::timeout};

use crate::{
    protocol::{
        frame::{self, MAX_MESSAGE},
        view::{MAX_VIEW, ViewFrame, ViewRequest},
    },
    transport::{Handler, Peer, Stream, StreamError},
    types::{ClusterView, Timing},
};

use super::{local::ThisNode, readiness};

/// Handles `View` streams.
pub(super) struct ViewSource {
    pub(super) this: Arc<ThisNode>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) timing: Timing,
}

impl Handler for ViewSource {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (view, this, stopping, timing) =
            (self.this.control.view(), self.this.clone(), self.stopping.clone(), self.timing);
        Box::pin(async move {
            let ready = || readiness::of_node(&this, *stopping.borrow(), timing).ready;
            let ended = async {
                stream.recv.read_message::<ViewRequest>(MAX_MESSAGE).await?;
                show(&mut stream, view, ready, timing).await
            };
            if let Err(error) = ended.await {
                tracing::debug!(peer = %peer.node(), %error, "a view is not followed any more");
            }
        })
    }
}

/// Sends the view at once and at each change, and a beat while it stays.
async fn show(
    stream: &mut Stream,
    mut view: watch::Receiver<Arc<ClusterView>>,
    ready: impl Fn() -> bool,
    timing: Timing,
) -> Result<(), StreamError> {
    let mut shown: Option<Arc<ClusterView>> = None;
    loop {
        let now = view.borrow_and_update().clone();
        let changed = shown.as_ref() != Some(&now);
        let whole = changed.then(|| Box::new(ClusterView::clone(&now)));
        let bytes = frame::encode(&ViewFrame { view: whole, ready: ready() });
        if bytes.len() > MAX_VIEW {
            tracing::warn!(bytes = bytes.len(), "the view of the cluster is too long for gateways");
            return Ok(());
        }
        stream.send.write_frame(bytes).await?;
        shown = Some(now);
        if let Ok(Err(_)) = timeout(timing.heartbeat, view.changed()).await {
            return Ok(());
        }
    }
}
