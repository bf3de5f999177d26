//! What one end of a gateway's streams may cost the other: waits that end, and bodies of any length.

use tokio::sync::mpsc;

use super::*;
use crate::{
    node::view_source::{self, Ended},
    protocol::{
        Lane,
        http::{BODY_PIECE, MAX_BODY_FRAME},
        view::ViewRequest,
    },
    types::TimingProfile,
};

/// Shows a view of the test's, and tells it how that ended.
struct Shows {
    view: watch::Receiver<Arc<ClusterView>>,
    ended: mpsc::UnboundedSender<Result<(), Ended>>,
}

impl Handler for Shows {
    fn handle(&self, _: Peer, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (view, ended) = (self.view.clone(), self.ended.clone());
        Box::pin(async move {
            let timing = TimingProfile::Fast.timing();
            let _ = ended.send(view_source::serve(&mut stream, view, || true, timing).await);
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_ask_or_does_not_read_is_shown_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    let mesh = &gateway.inner.this.mesh;
    let bound = TimingProfile::Fast.timing().view_silence();
    let (out, view) = watch::channel(Arc::new(ClusterView::default()));
    let (tell, mut ended) = mpsc::unbounded_channel();
    let answering = node.answer_gateways(Arc::new(Shows { view, ended: tell }));

    let silent = mesh.open(node.id(), StreamKind::Http, Lane::Request).await.unwrap();
    assert_eq!(timeout(SOON, ended.recv()).await, Ok(Some(Err(Ended::Unasked(bound)))));
    drop(silent);

    let mut unread = mesh.open(node.id(), StreamKind::Http, Lane::Request).await.unwrap();
    unread.send.write_message(&ViewRequest::default()).await.unwrap();
    let flood = async {
        // Each is a change, and more than all that lies between the two takes.
        for applied_index in 1.. {
            let view = ClusterView { name: "x".repeat(3 << 20), applied_index, ..ClusterView::default() };
            out.send_replace(Arc::new(view));
            sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::select! {
        () = flood => None,
        ended = timeout(SOON, ended.recv()) => ended.expect("it waits without end"),
    };
    assert_eq!(ended, Some(Err(Ended::Unread(bound))));
    // Nothing of it is kept for who may read it one day.
    let rest = async {
        loop {
            if let Err(error) = unread.recv.read_frame(crate::protocol::view::MAX_VIEW).await {
                return error;
            }
        }
    };
    assert_eq!(timeout(SOON, rest).await, Ok(StreamError::Abandoned));
    drop(answering);
    gateway.shutdown().await;
    node.shutdown().await;
}

/// Takes so many frames of a body, says with which status, and tells how many bytes they were, and of how
/// many frames.
struct Reads {
    frames: usize,
    status: u16,
    told: mpsc::UnboundedSender<(usize, usize)>,
}

impl Handler for Reads {
    fn handle(&self, _: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (frames, status, told) = (self.frames, self.status, self.told.clone());
        Box::pin(async move {
            let Stream { mut send, mut recv } = stream;
            let _: HttpRequest = recv.read_message(MAX_MESSAGE).await.unwrap();
            let (mut bytes, mut count) = (0, 0);
            while count < frames
                && let Ok(frame) = recv.read_frame(MAX_BODY_FRAME).await
            {
                bytes += frame.len();
                count += 1;
            }
            told.send((bytes, count)).unwrap();
            // Whoever does not want the rest says so by that.
            drop(recv);
            send.write_message(&Part::Head(HttpResponse { status, headers: vec![] })).await.unwrap();
            send.write_message(&Part::End).await.unwrap();
            send.finish().unwrap();
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_body_goes_in_pieces_and_a_refusal_of_it_arrives() {
    let home = tempfile::tempdir().unwrap();
    let (node, gateway) = world(home.path()).await;
    let (told, mut read) = mpsc::unbounded_channel();
    let mut asked = async |frames, status, len| {
        let _answering = node.answer_gateways(Arc::new(Reads { frames, status, told: told.clone() }));
        let body = Bytes::from(vec![7; len]);
        let answer = timeout(SOON, gateway.ask(Errand::Query, &get("/x"), &body)).await.unwrap();
        (answer.map(|answer| answer.head.status), read.recv().await.unwrap())
    };
    assert_eq!(asked(9, 200, 0).await, (Ok(200), (0, 1)), "an empty one is a frame too");
    assert_eq!(asked(9, 200, MAX_BODY_FRAME).await, (Ok(200), (MAX_BODY_FRAME, 1)), "as every version reads");
    let long = 20 << 20;
    assert_eq!(asked(usize::MAX, 200, long).await, (Ok(200), (long, long / BODY_PIECE)));
    // Not read on after the first piece: more is on its way than lies between the two.
    assert_eq!(asked(1, 413, long).await, (Ok(413), (BODY_PIECE, 1)));
    gateway.shutdown().await;
    node.shutdown().await;
}
