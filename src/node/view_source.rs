//! The serving end of a `View` stream: any node with data shows members that are not in raft what it
//! knows of the cluster.

use std::{sync::Arc, time::Duration};

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

/// Why a view is not shown any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("it has not asked for it within {} ms", .0.as_millis())]
    Unasked(Duration),
    #[error("it has taken nothing for {} ms", .0.as_millis())]
    Unread(Duration),
}

impl Handler for ViewSource {
    fn handle(&self, peer: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (view, this, stopping, timing) =
            (self.this.control.view(), self.this.clone(), self.stopping.clone(), self.timing);
        Box::pin(async move {
            let ready = || readiness::of_node(&this, *stopping.borrow(), timing).ready;
            if let Err(error) = serve(&mut stream, view, ready, timing).await {
                tracing::debug!(peer = %peer.node(), %error, "a view is not followed any more");
            }
        })
    }
}

/// Both waits are bounded: by then a gateway that lives has given this node up, and follows another one.
pub(super) async fn serve(
    stream: &mut Stream,
    view: watch::Receiver<Arc<ClusterView>>,
    ready: impl Fn() -> bool,
    timing: Timing,
) -> Result<(), Ended> {
    let patience = timing.view_silence();
    let ended = match timeout(patience, stream.recv.read_message::<ViewRequest>(MAX_MESSAGE)).await {
        Ok(Ok(ViewRequest {})) => show(stream, view, ready, timing).await,
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Ended::Unasked(patience)),
    };
    if ended.is_err() {
        // What is sent and not read must not lie here for as long as the connection lives.
        stream.send.abandon();
    }
    ended
}

/// Sends the view at once and at each change, and a beat while it stays.
async fn show(
    stream: &mut Stream,
    mut view: watch::Receiver<Arc<ClusterView>>,
    ready: impl Fn() -> bool,
    timing: Timing,
) -> Result<(), Ended> {
    let patience = timing.view_silence();
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
        timeout(patience, stream.send.write_frame(bytes)).await.map_err(|_| Ended::Unread(patience))??;
        shown = Some(now);
        if let Ok(Err(_)) = timeout(timing.heartbeat, view.changed()).await {
            return Ok(());
        }
    }
}
