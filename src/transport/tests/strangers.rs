//! What strangers get who do not come to join: nothing; and those who take their time over it.

use super::*;

/// A node that would serve every kind of stream, and what reached it.
fn serves_all(identity: Arc<Identity>) -> (Node, Arc<Mutex<Vec<StreamKind>>>) {
    let reached = Arc::new(Mutex::new(Vec::new()));
    let node = Node::start_with(identity, 1, |router| {
        StreamKind::ALL.into_iter().filter(|kind| *kind != StreamKind::Hello).fold(router, |router, kind| {
            let reached = reached.clone();
            let handler = move |_: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
                let reached = reached.clone();
                Box::pin(async move {
                    reached.lock().unwrap().push(kind);
                    let _ = stream.recv.read_frame(MAX_MESSAGE).await;
                    let _ = stream.send.write_message(&Text("secret".into())).await;
                })
            };
            router.on(kind, Arc::new(handler))
        })
    });
    (node, reached)
}

#[tokio::test]
async fn no_byte_comes_from_any_kind_of_stream_but_join() {
    let (a, reached) = serves_all(member(1));
    share_view(&[&a]);
    let c = Node::start(stranger(3), 3);
    for kind in StreamKind::ALL.into_iter().filter(|kind| *kind != StreamKind::Join) {
        let (_, ended) = c.knock(a.addr(), kind, "let me").await;
        assert!(refused(&ended, CloseCode::NotAdmitted), "{kind:?}: {ended:?}");
        assert_eq!(*reached.lock().unwrap(), [], "{kind:?} reached its handler");
    }
    let (_, ended) = c.knock(a.addr(), StreamKind::Join, "please").await;
    assert_eq!((ended, &reached.lock().unwrap()[..]), (Ok(Text("secret".into())), &[StreamKind::Join][..]));
}

#[tokio::test]
async fn who_takes_his_time_at_the_door_is_put_out() {
    let reads = |router: Router| {
        let handler = |_: Peer, mut stream: Stream| -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move {
                // A handler with no patience of its own.
                let _ = stream.recv.read_frame(MAX_MESSAGE).await;
                std::future::pending().await
            })
        };
        router.on(StreamKind::Join, Arc::new(handler))
    };
    let a = Node::start_with(member(1), 1, reads);
    share_view(&[&a]);
    let c = Node::start(stranger(3), 3);
    let silent = c.mesh.inner.dial(a.addr()).await.unwrap();
    let slow = c.mesh.inner.dial(a.addr()).await.unwrap();
    let mut stream = slow.stream(slow.conn.open_bi().await.unwrap());
    stream.send.write_header(StreamHeader { kind: StreamKind::Join, version: 1 }).await.unwrap();
    // A byte now and then, for ever; as a header, which is four of them, and then a frame of many.
    let drips = async {
        let drop = StreamHeader { kind: StreamKind::Hello, version: 0 };
        while stream.send.write_header(drop).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let put_out = |contact: Arc<Contact>| async move { Closed::from(contact.conn.closed().await) };
    let all = async { tokio::join!(drips, put_out(silent), put_out(slow.clone())) };
    let ((), silent, slow) = timeout(Duration::from_secs(30), all).await.expect("both are put out");
    assert_eq!((silent, slow), (Closed::ByPeer(CloseCode::Limit), Closed::ByPeer(CloseCode::Limit)));
}
