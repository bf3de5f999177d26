//! A reader beside a real voter of the same process, whose key asks for what is not a reader's business.

use std::{path::Path, time::Duration};

use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    engine::MemoryEngine,
    protocol::{
        forward::{BatchId, DedupKey, ForwardRequest, ForwardResponse},
        frame::MAX_MESSAGE,
        replication::{ReadRequest, ReadResponse, Seal, Sealed},
        status::StatusRequest,
    },
    raft::forward_command,
    transport::Socket,
    types::{BootId, Lsn, Office},
    write_path::ClientKey,
};

const SOON: Duration = Duration::from_secs(20);

fn config(dir: &Path, seed: Option<&Node>) -> NodeConfig {
    NodeConfig {
        new_cluster: seed.is_none(),
        socket: Socket::Bind("127.0.0.1:0".parse().unwrap()),
        mdns: None,
        seeds: seed.iter().map(|node| node.mesh_addr().unwrap().to_string()).collect(),
        ..NodeConfig::new(DataDir::open(dir).unwrap())
    }
}

async fn start(config: NodeConfig) -> Node {
    let started = Node::start(config, Surroundings::real(), Arc::new(MemoryEngine::default()));
    timeout(SOON, started).await.expect("it starts").unwrap()
}

/// A voter that writes, and a reader that it has a link to.
async fn world(home: &Path) -> (Node, Node) {
    let voter = start(config(&home.join("voter"), None)).await;
    let token = voter.create_token(Role::Reader, None, Some(1), vec![]).await.unwrap();
    let joining = NodeConfig {
        role: Role::Reader,
        join: Some(token.parse().unwrap()),
        ..config(&home.join("reader"), Some(&voter))
    };
    let reader = start(joining).await;
    let mut view = reader.view();
    let seen = view.wait_for(|view| view.learners.contains(&reader.id()) && view.writer.is_some());
    assert!(timeout(SOON, seen).await.is_ok(), "it is a reader");
    (voter, reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_readers_key_asks_in_vain_for_what_is_a_voters() {
    let home = tempfile::tempdir().unwrap();
    let (voter, reader) = world(home.path()).await;
    let (mesh, of) = (&reader.inner.this.mesh, voter.id());
    let before = voter.view().borrow().clone();
    let office = before.writer.unwrap();
    let promised = voter.inner.this.replica.fence.promised();

    let usurped = Office { epoch: office.epoch + 1, node: reader.id(), ..office };
    for command in [
        Command::Remove { node: of, at_ms: 0 },
        Command::Retire { node: of },
        Command::Enlist { node: reader.id() },
        Command::Drain { node: of, drained: true },
        Command::SetWriter(usurped),
        Command::RevokeToken { token: TokenId(1) },
        Command::RotateCa { at_ms: 0 },
    ] {
        let what = command.to_string();
        assert_eq!(forward_command(mesh, of, command, SOON).await, Err(ProposeError::NotAllowed), "{what}");
    }

    // In the term of a leader that is another one, by the name of its connection, and in one of its own.
    let epochs = [promised, promised + 1, u64::MAX];
    for (epoch, term) in epochs.into_iter().flat_map(|epoch| [(epoch, before.term), (epoch, u64::MAX)]) {
        let seal = Seal { epoch, term, resigned: Some((office.epoch, office.boot)) };
        let answer: Sealed = mesh.request(of, StreamKind::Seal, &seal, SOON).await.unwrap();
        assert_eq!(answer, Sealed::NotLeader { term: before.term }, "epoch {epoch}, term {term}");
    }
    // As the writer, of its epoch and of one before it.
    for epoch in [office.epoch, office.epoch - 1] {
        let question = ReadRequest::Confirm { epoch };
        let answer: ReadResponse = mesh.request(of, StreamKind::Read, &question, SOON).await.unwrap();
        assert_eq!(answer, ReadResponse::Refused { promise: promised }, "epoch {epoch}");
    }
    let resign = StatusRequest { resign: true, to: Some(reader.id()) };
    let status: NodeStatus = mesh.request(of, StreamKind::Status, &resign, SOON).await.unwrap();
    assert!(!status.draining, "a reader moves no office");
    // A batch in another edge's name would make that one's own look like a retry.
    for node in [of, NodeId([9; 16])] {
        let key = DedupKey::Batch(BatchId { edge: node, boot: BootId(1), counter: 1 });
        let own = DedupKey::Batch(BatchId { edge: reader.id(), boot: BootId(1), counter: 1 });
        for (key, also) in [(key, None), (own, Some(key))] {
            let request = ForwardRequest {
                epoch: office.epoch,
                key,
                also,
                ack: None,
                encoding: 9,
                timeout_ms: 1_000,
                request: None,
                kept: false,
            };
            let mut stream = mesh.open(of, StreamKind::Forward, StreamKind::Forward.lane()).await.unwrap();
            stream.send.write_message(&request).await.unwrap();
            stream.send.write_frame(bytes::Bytes::from_static(b"point")).await.unwrap();
            let answer = stream.recv.read_message::<ForwardResponse>(MAX_MESSAGE).await.unwrap();
            assert!(
                matches!(&answer, ForwardResponse::Invalid { reason } if reason.contains("another edge")),
                "{answer:?}"
            );
        }
    }

    // Nothing has come of it.
    assert_eq!(voter.inner.this.replica.fence.promised(), promised);
    let after = voter.view().borrow().clone();
    assert_eq!((after.writer, after.leader, after.term), (Some(office), before.leader, before.term));
    assert!(after.drained.is_empty() && after.rotation.is_none() && after.is_voter(of));
    // What a reader may, it still may.
    let written = reader.submit(Write::new(9, "point", SOON)).await.unwrap();
    assert!(written.forwarded, "{written:?}");
    let read = async {
        while reader.inner.this.replica.commit() < written.at {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, read).await.is_ok(), "what it wrote came back to it");
}

/// The payload of that record in the reader's own log.
async fn at_reader(reader: &Node, at: Lsn) -> bytes::Bytes {
    let replica = &reader.inner.this.replica;
    let mut end = replica.wal.watch_end();
    let came = timeout(SOON, end.wait_for(|end| *end >= at)).await;
    assert!(came.is_ok(), "{at} comes to the reader, which has {}", replica.wal.end());
    let records = replica.wal.reader(at.seq).read(1).await.unwrap();
    assert_eq!(records[0].lsn, at);
    records[0].payload.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_forwarded_is_in_its_log_without_having_come_back() {
    let home = tempfile::tempdir().unwrap();
    let (voter, reader) = world(home.path()).await;
    let (mesh, replica) = (&reader.inner.this.mesh, reader.inner.this.replica.clone());
    let office = voter.view().borrow().writer.unwrap();
    let long = |of: u8| bytes::Bytes::from(vec![of; 8 << 10]);
    let spared = || replica.forwarded.left_out();
    let write = async |write: Write| {
        let payload = write.payload.clone();
        let receipt = reader.submit(write).await.unwrap();
        assert!(receipt.forwarded);
        assert_eq!(at_reader(&reader, receipt.at).await, payload);
    };

    write(Write::new(9, long(1), SOON)).await;
    // It is in the log a moment before it is counted.
    let counted = async {
        while (spared(), replica.forwarded.bytes()) != (8 << 10, 0) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, counted).await.is_ok(), "it was sent once, from here");
    write(Write::new(9, "few bytes", SOON)).await;
    write(Write::new(9, bytes::Bytes::from(vec![2; (8 << 10) - 1]), SOON)).await;
    let key = Some(ClientKey { key: [3; 16], former: None, body: [3; 16] });
    write(Write { key, ..Write::new(9, long(3), SOON) }).await;
    assert_eq!(spared(), 8 << 10, "of these the record alone tells what they are");
    let at = voter.submit(Write::new(9, long(4), SOON)).await.unwrap().at;
    assert_eq!((at_reader(&reader, at).await, spared()), (long(4), 8 << 10), "it is not from here");

    let id = |counter| DedupKey::Batch(BatchId { edge: reader.id(), boot: replica.boot, counter });
    let forward = async |key, kept| {
        let request = ForwardRequest {
            epoch: office.epoch,
            key,
            also: None,
            ack: None,
            encoding: 9,
            timeout_ms: 10_000,
            request: None,
            kept,
        };
        let mut stream =
            mesh.open(voter.id(), StreamKind::Forward, StreamKind::Forward.lane()).await.unwrap();
        stream.send.write_message(&request).await.unwrap();
        stream.send.write_frame(long(5)).await.unwrap();
        let answer = stream.recv.read_message::<ForwardResponse>(MAX_MESSAGE).await.unwrap();
        let ForwardResponse::Written { at, .. } = answer else { panic!("{answer:?}") };
        assert_eq!((at_reader(&reader, at).await, spared()), (long(5), 8 << 10), "it came whole");
        at
    };

    // The answer to the fourth batch that this node numbers was lost, and its record is here.
    let at = forward(id(4), false).await;
    assert_eq!(reader.submit(Write::new(9, long(5), SOON)).await.unwrap().at, at);
    assert_eq!(replica.forwarded.bytes(), 0, "of none a record is on its way");

    // The writer is told of a payload that is not kept, and once that another one is.
    forward(id(1_000), true).await;
    assert!(replica.forwarded.keep(&id(2_000), &long(6)));
    forward(id(2_000), true).await;
    // Its own numbers are below those now: they come whole, and nothing else changes.
    write(Write::new(9, long(7), SOON)).await;
    assert_eq!(spared(), 8 << 10);
}
