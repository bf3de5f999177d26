//! What a peer that does not read can be sent, and what else still reaches it.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{sync::Semaphore, task::yield_now};

use super::{super::endpoint, *};
use crate::protocol::frame::MAX_CHUNK;

/// Of one frame; it is written in one piece.
const FRAME: usize = 128 << 10;
/// Nothing has been taken for so long: nothing will be.
const PAUSE: Duration = Duration::from_secs(4);

/// Followers that read nothing before they are let: the writer can send each its window and no more,
/// whatever it has, and everything else passes them by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_takes_its_window_and_holds_up_no_other() {
    let (may_read, read) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
    let deaf = || -> Arc<dyn Handler> {
        let (may_read, read) = (may_read.clone(), read.clone());
        Arc::new(move |_: Peer, mut stream: Stream| -> BoxFuture<'static, ()> {
            let (may_read, read) = (may_read.clone(), read.clone());
            Box::pin(async move {
                let _permit = may_read.acquire().await;
                while let Ok(frame) = stream.recv.read_frame(MAX_CHUNK).await {
                    read.fetch_add(frame.len() as u64, Ordering::Relaxed);
                }
            })
        })
    };
    let a = Node::start(member(1), 1);
    let b = Node::start_with(member(2), 2, |router| router.on(StreamKind::Append, deaf()));
    share_view(&[&a, &b]);
    a.linked(b.id()).await;

    let window = u64::from(endpoint::STREAM_WINDOW);
    assert_eq!(window, 8 << 20, "as docs/wire.md says");
    let mut streams = Vec::new();
    for count in 1..=3 {
        let mut stream = a.mesh.open(b.id(), StreamKind::Append, Lane::Live).await.unwrap();
        let mut sent = 0;
        let frame = Bytes::from(vec![7; FRAME]);
        while let Ok(written) = timeout(PAUSE, stream.send.write_frame(frame.clone())).await {
            written.unwrap();
            sent += FRAME as u64;
            assert!(sent < 2 * window, "{sent} bytes were taken for a peer that reads nothing");
        }
        // What is under way or waits here, besides what lies there.
        let most = window + endpoint::SEND_WINDOW;
        assert!((window - FRAME as u64..=most).contains(&sent), "{sent} bytes on stream {count}");
        streams.push((stream, sent));
        assert_eq!(a.ask(b.id(), "still there").await.unwrap(), "2: still there");
    }

    // Let go, they read on where they were.
    may_read.add_permits(streams.len());
    let mut sent = 0;
    for (mut stream, until_now) in streams {
        // The frame that was given up half written is no frame: only whole ones are counted.
        sent += until_now;
        let _ = stream.send.finish();
    }
    let all = async {
        while read.load(Ordering::Relaxed) < sent {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), all).await.expect("what was sent is read");
}

/// A link that is used as soon as it is there, for more than a connection carries before its hello: the
/// answer to the hello goes first, or the dialer would wait for it behind what it does not read yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_hello_is_not_behind_what_the_link_carries() {
    for round in 1..=64 {
        let (a, b) = (Node::start(member(1), 1), Node::start(member(2), 2));
        let (here, there) = (listed(&a.identity, Some(a.addr())), listed(&b.identity, None));
        a.view.send_replace(view_of([here.clone(), there.clone()].into_iter()));
        b.view.send_replace(view_of([here, there].into_iter()));
        let (peer, mesh) = (b.id(), a.mesh.clone());
        let at_once = async {
            // Asked without pause: whoever waits to be told of the link comes too late.
            let mut stream = loop {
                match mesh.open(peer, StreamKind::Append, Lane::Live).await {
                    Ok(stream) => break stream,
                    Err(_) => yield_now().await,
                }
            };
            let _ = stream.send.write_frame(Bytes::from(vec![7; 2 * FRAME])).await;
        };
        let linked = async {
            b.linked(a.id()).await;
        };
        let both = timeout(Duration::from_secs(4), async { tokio::join!(linked, at_once) });
        both.await.unwrap_or_else(|_| panic!("round {round}: no answer to the hello"));
    }
}
