//! What comes to a real door and is no request of its token's holder on that connection.

use bytes::Bytes;

use super::*;
use crate::transport::StreamError;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_gets_no_answer_and_the_door_stays_open() {
    let dir = tempfile::tempdir().unwrap();
    let root = ca(1, CLUSTER);
    let token = pinned(Role::Reader, &root);
    let (first, joiner) = (Node::new(dir.path(), 61).await, Node::new(dir.path(), 62).await);
    first.found(CLUSTER, &root, &token, 1).await;
    let door = first.address();

    let renew = frame::encode(&JoinRequest::Renew { csr: vec![1, 2, 3] });
    // As deep as the limit allows: an array of one array of one array ...
    let deep = [&b"\x81\xa5Admit"[..], &vec![0x91; frame::MAX_JOIN - 64]].concat();
    // Says that four billion bytes follow.
    let boast = b"\x81\xa5Renew\x81\xa3csr\xc6\xff\xff\xff\xff".to_vec();
    // Passed on, passed on, passed on ...
    let nested = b"\x81\xa7Relayed\x83\xa7request".repeat(frame::MAX_JOIN / 18);
    let cases: [(&str, Bytes); 9] = [
        ("nothing", Bytes::new()),
        ("noise", (0..1_000_u32).map(|n| ((n * 131) >> 3) as u8).collect()),
        ("half a request", renew.slice(..renew.len() / 2)),
        ("another message", frame::encode(&JoinResponse::Refused(Refusal::Spent))),
        ("a kind of request that is none", Bytes::from_static(b"\xa4Open")),
        ("deep", deep.into()),
        ("nested", nested.into()),
        ("boastful", boast.into()),
        ("over the limit", vec![0; frame::MAX_JOIN + 1].into()),
    ];
    for (what, bytes) in cases {
        let link = joiner.mesh.dial_stranger(door).await.unwrap();
        let mut stream = link.open_join().await.unwrap();
        // Whoever is not listened to any more cannot write to the end.
        let _ = stream.send.write_frame(bytes).await;
        let _ = stream.send.finish();
        let answer = timeout(2 * SOON, stream.recv.read_frame(frame::MAX_MESSAGE)).await.expect("an end");
        assert!(matches!(answer, Err(StreamError::Finished)), "{what}: {answer:?}");
    }
    // Well formed, and of no use.
    let renewal = joiner.knock(door, |_| JoinRequest::Renew { csr: vec![1, 2, 3] }).await;
    assert!(matches!(renewal, JoinResponse::Retry { .. } | JoinResponse::Refused(_)), "{renewal:?}");

    let state = first.control.state();
    assert_eq!((state.members.len(), state.tokens[&token.id()].uses_left), (1, Some(1)), "nothing was spent");
    assert!(joiner.join(&token, &[door]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_seen_elsewhere_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Without a fingerprint the joiner asks whoever answers, so others do get to see its requests.
    let token = JoinToken::generate(Role::Reader, vec![], &mut StdRng::seed_from_u64(9)).unwrap();
    let first = Node::new(dir.path(), 71).await;
    let (joiner, mallory) = (Node::new(dir.path(), 72).await, Node::new(dir.path(), 73).await);
    first.found(CLUSTER, &ca(1, CLUSTER), &token, 1).await;
    let door = first.address();

    // Asked by the joiner, passed on as it stands.
    let to_mallory = joiner.mesh.dial_stranger(mallory.address()).await.unwrap();
    let seen = joiner.request(&token, to_mallory.exporter().unwrap());
    let relayed = mallory.knock(door, |_| JoinRequest::Admit(Box::new(seen.clone()))).await;
    assert_eq!(refused(relayed), Refusal::WrongSecret, "of another connection");
    // The same from a connection that shows the joiner's key: what was said once is not said again.
    let once = joiner.mesh.dial_stranger(door).await.unwrap();
    let said = joiner.request(&token, once.exporter().unwrap());
    drop(once);
    let replayed = joiner.knock(door, |_| JoinRequest::Admit(Box::new(said.clone()))).await;
    assert_eq!(refused(replayed), Refusal::WrongSecret, "of an earlier connection");
    // With the proof of its own connection, and the joiner's key in it.
    let own = mallory
        .knock(door, |exporter| {
            let mut request = AdmitRequest { csr: seen.csr.clone(), ..mallory.request(&token, exporter) };
            let said = proof::transcript(&exporter, &request.csr, token.role(), token.id());
            request.proof = proof::joiner_proof(&token.keys().unwrap(), &said);
            JoinRequest::Admit(Box::new(request))
        })
        .await;
    assert_eq!(refused(own), Refusal::Malformed, "a certificate only for the key shown");

    let state = first.control.state();
    assert_eq!((state.members.len(), state.tokens[&token.id()].uses_left), (1, Some(1)), "nothing was spent");
    assert!(joiner.join(&token, &[door]).await.is_ok(), "the joiner itself comes in");
}

/// What reaches a cluster that is not the token's: not one stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_another_ca_gets_no_byte_of_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let (right, other) = (ca(1, CLUSTER), ca(2, CLUSTER));
    let token = pinned(Role::Voter, &right);
    let joiner = Node::new(dir.path(), 81).await;
    // It has the cluster's name, a certificate of its own CA, and it listens.
    let heard = Arc::new(AtomicU64::new(0));
    let counts = heard.clone();
    let listens = move |_, mut stream: crate::transport::Stream| -> futures::future::BoxFuture<'static, ()> {
        let counts = counts.clone();
        Box::pin(async move {
            counts.fetch_add(1, Ordering::Relaxed);
            let _ = stream.recv.read_frame(frame::MAX_MESSAGE).await;
        })
    };
    let evil = Arc::new(Identity::stranger(NodeKey::from_seed(&[82; 32]).unwrap(), NOW).unwrap());
    let issued = other.issue(&evil.csr().unwrap(), CLUSTER, [1; 16], NOW).unwrap();
    evil.set_certificate(&issued.certificate, &[other.certificate()]).unwrap();
    let config = MeshConfig {
        socket: Socket::Bind(SocketAddr::from(([127, 0, 0, 1], 0))),
        timing: TimingProfile::Lan.timing(),
        addresses: watch::channel(Addresses::default()).1,
        version: "0".into(),
        features: 0,
        boot: BootId(82),
        clock: Arc::new(|| NOW),
    };
    let router = Router::new().on(StreamKind::Join, Arc::new(listens));
    let (_view, seen) = watch::channel(Arc::new(ClusterView::default()));
    let (mesh, driver) = Mesh::bind(config, evil, seen, router).unwrap();
    let driver = tokio::spawn(driver.run());
    let at = mesh.local_addr().unwrap();

    let doors = [at];
    let asking = joiner.join(&token, &doors);
    let told = async {
        while joiner.said.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        joined = asking => panic!("{joined:?}"),
        told = timeout(2 * SOON, told) => told.expect("it says why it stays outside"),
    }
    let said = joiner.said.lock().unwrap().clone();
    assert!(matches!(said[..], [Waiting::NotTheCluster { address, .. }, ..] if address == at), "{said:?}");
    assert_eq!(heard.load(Ordering::Relaxed), 0, "a Join stream reached it");
    // It would have heard one.
    let link = joiner.mesh.dial_stranger(at).await.unwrap();
    let mut stream = link.open_join().await.unwrap();
    stream.send.write_message(&JoinRequest::Renew { csr: vec![] }).await.unwrap();
    let _ = stream.recv.read_frame(1).await;
    assert_eq!(heard.load(Ordering::Relaxed), 1);
    driver.abort();
}
