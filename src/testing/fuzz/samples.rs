//! What the mutations begin with: one whole encoding of everything that the targets read.

use std::net::SocketAddr;

use serde::Serialize;
use serde_bytes::ByteBuf;

use crate::{
    identity::{Identity, JoinToken, NodeKey, seal},
    protocol::{
        StreamKind,
        forward::{AckLevel, BatchId, DedupKey, ForwardRequest, ForwardResponse, Progress},
        frame::{self, MAX_JOIN, StreamHeader},
        hello::Hello,
        http::{HttpRequest, HttpResponse, Part},
        join::{AdmitRequest, Admitted, Carrier, JoinRequest, JoinResponse, Refusal, RelayedJoin},
        replication::{
            Ack, Append, Mark, ReadRequest, ReadResponse, Report, Seal, Sealed, SnapshotOffer,
            SnapshotRequest, SnapshotWanted, Subscribe, Subscribed,
        },
        request_id::RequestId,
        status::{Following, NodeStatus, SnapshotProgress, StatusRequest},
        view::{ViewFrame, ViewRequest},
    },
    raft::Command,
    types::{
        Addresses, BootId, ClusterId, ClusterView, EpochTable, Lsn, Member, MembershipId, NodeId, Office,
        Recovery, Role, Succession, TimingProfile, TokenId, Why,
    },
    wal::RECORD_HEADER,
};

/// Kinds of messages that the target `wire` knows.
pub(super) const KINDS: usize = 22;
/// Samples of the target `join` that are requests of a stranger: the first ones.
pub const JOINS: usize = 5;

const NODE: NodeId = NodeId([3; 16]);
const CLUSTER: ClusterId = ClusterId([7; 16]);

/// Of the target with that name; none if there is no such target.
pub fn samples(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frame" => frames(),
        "join" => joins(),
        "wire" => messages(),
        "record" => records(),
        #[cfg(feature = "columnar")]
        of_clients => super::bodies::samples(of_clients),
        #[cfg(not(feature = "columnar"))]
        _ => Vec::new(),
    }
}

fn bytes(message: &impl Serialize) -> Vec<u8> {
    frame::encode(message).to_vec()
}

fn addresses() -> Addresses {
    let at = |text: &str| text.parse::<SocketAddr>().ok();
    Addresses {
        mesh: [at("10.0.0.1:7400"), at("[fe80::1]:7400")].into_iter().flatten().collect(),
        http: at("10.0.0.1:8086"),
    }
}

fn frames() -> Vec<Vec<u8>> {
    let of = |kind: StreamKind| {
        let message = bytes(&JoinRequest::Renew { csr: vec![5; 40] });
        let header = StreamHeader { kind, version: 1 }.encode();
        [&header[..], &(message.len() as u32).to_be_bytes(), &message].concat()
    };
    StreamKind::ALL.into_iter().map(of).collect()
}

fn identity() -> Option<Identity> {
    Identity::stranger(NodeKey::from_seed(&[9; 32]).ok()?, 1_800_000_000).ok()
}

fn admit(csr: &[u8]) -> AdmitRequest {
    let seal_key = vec![4; 32];
    let signature =
        identity().map(|me| me.sign(&seal::seal_key_message(None, me.node(), &seal_key)).to_vec());
    AdmitRequest {
        token: TokenId(8),
        cluster: CLUSTER,
        proof: vec![6; 64],
        csr: csr.to_vec(),
        role: Role::Voter,
        name: "n1".into(),
        addresses: addresses(),
        seal_key,
        seal_key_signature: signature.unwrap_or_default(),
        version: "0.1.0".into(),
        features: 3,
        clock: 1_800_000_000,
    }
}

fn succession() -> Succession {
    Succession { root: vec![1; 30], after: vec![3; 32], signature: vec![2; 64] }
}

fn recovery() -> Recovery {
    Recovery { generation: 2, by: NODE, nonce: 5, kept: Lsn::new(3, 9), signature: vec![3; 64] }
}

fn joins() -> Vec<Vec<u8>> {
    let csr = identity().and_then(|me| me.csr().ok()).unwrap_or_default();
    let certificate = identity().map(|me| me.certificate().der.to_vec()).unwrap_or_default();
    let carrier = Carrier {
        token: TokenId(8),
        proof: vec![6; 64],
        name: "n1".into(),
        expect: 3,
        pledge: Some(NODE),
        addresses: addresses().mesh,
        others: vec![(NODE, addresses().mesh)],
    };
    let request = JoinRequest::Admit(Box::new(admit(&csr)));
    let relayed = RelayedJoin { request: request.clone(), exporter: vec![1; 32], spki: vec![2; 44] };
    // One in the other, as deep as fits: what reads it must not go as deep as a stranger likes.
    let nested = b"\x81\xa7Relayed\x83\xa7request".repeat(MAX_JOIN / 18);
    let requests = [
        bytes(&request),
        bytes(&JoinRequest::Renew { csr: csr.clone() }),
        bytes(&JoinRequest::Relayed(Box::new(relayed))),
        bytes(&JoinRequest::Meet(Box::new(carrier.clone()))),
        nested,
    ];
    let admitted = Admitted {
        node: NODE,
        cluster: CLUSTER,
        cluster_name: "home".into(),
        certificate: certificate.clone(),
        roots: vec![ByteBuf::from(certificate.clone())],
        successions: vec![succession()],
        profile: TimingProfile::Lan,
        members: vec![(NODE, addresses())],
        applied_index: 9,
        recovery: Some(recovery()),
        server_proof: vec![7; 32],
    };
    let answers = [
        bytes(&JoinResponse::Admitted(Box::new(admitted))),
        bytes(&JoinResponse::Retry { reason: "later".into() }),
        bytes(&JoinResponse::Refused(Refusal::Spent)),
        bytes(&JoinResponse::Met(Box::new(carrier))),
    ];
    let rng = &mut <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
    let token = JoinToken::for_cluster(Role::Voter, CLUSTER, b"root", vec!["a:7400".into()], rng);
    let token = token.map(|token| token.reveal().as_bytes().to_vec()).unwrap_or_default();
    requests.into_iter().chain(answers).chain([csr, certificate, token]).collect()
}

fn view() -> ClusterView {
    let member = Member {
        id: NODE,
        name: "n1".into(),
        role: Role::Voter,
        addresses: addresses(),
        spki: vec![2; 44],
        seal_key: vec![4; 32],
        seal_key_signature: vec![5; 64],
        serial: "0a".into(),
        not_after: 1_900_000_000,
        version: "0.1.0".into(),
        features: 3,
    };
    ClusterView {
        cluster: CLUSTER,
        name: "home".into(),
        members: [(NODE, member)].into(),
        removed: [(NodeId([4; 16]), 5)].into(),
        drained: [NODE].into(),
        voters: vec![[NODE].into()],
        learners: [NodeId([5; 16])].into(),
        writer: Some(office()),
        terms: vec![office()],
        leader: Some(NODE),
        term: 4,
        roots: vec![ByteBuf::from(vec![1; 30])],
        recovery: Some(recovery()),
        ..ClusterView::default()
    }
}

fn office() -> Office {
    Office {
        epoch: 3,
        node: NODE,
        boot: BootId(6),
        membership: MembershipId { term: 1, index: 2 },
        at_ms: 5,
        why: Why::default(),
    }
}

fn status() -> NodeStatus {
    let at = Lsn::new(3, 9);
    NodeStatus {
        node: NODE,
        boot: BootId(6),
        promise: 3,
        office: Some((3, true)),
        durable: at,
        commit: at,
        applied: at,
        flushed: at,
        disk_troubled: false,
        marked: MembershipId { term: 1, index: 2 },
        linked: vec![NODE],
        linked_at: vec![(NODE, addresses().mesh)],
        addresses: addresses(),
        version: "0.1.0".into(),
        cert_days_left: -1,
        draining: false,
        repairing: Some(4),
        quarantined: 0,
        fetching: Some(SnapshotProgress { source: NODE, position: at, done: 1, total: 2 }),
        rtt_us: vec![(NODE, 300)],
        sent: vec![],
        stale_ms: Some(1),
        unix_ms: 1,
        points: 2,
        queries: 3,
        damaged: Some(5),
        damaged_files: 1,
        scrubbed: Some(-4),
        successor: Some(NODE),
        follows: Some(Following { node: Some(NODE), age_ms: Some(3) }),
    }
}

/// The number of the kind, and the message.
fn messages() -> Vec<Vec<u8>> {
    let at = Lsn::new(3, 9);
    let epochs = || EpochTable::from_entries(vec![(1, 1), (3, 8)]).unwrap_or_default();
    let key = DedupKey::Batch(BatchId { edge: NODE, boot: BootId(6), counter: 7 });
    let client = DedupKey::Client { key: [1; 16], body: [2; 16] };
    let hello = Hello {
        node: NODE,
        boot: BootId(6),
        cluster: CLUSTER,
        addresses: addresses(),
        version: "0.1.0".into(),
        features: 3,
        recovery: Some(recovery()),
        renews: true,
    };
    let subscribe = Subscribe {
        epoch: 3,
        writer_boot: BootId(6),
        boot: BootId(7),
        durable: at,
        epochs: epochs(),
        chain: 5,
        applied: at,
        applied_chain: 6,
        keeps_from: 8,
    };
    let resume = Subscribed::Resume { keep: 4, chain: 5, epochs: epochs(), end: Some(at) };
    let append = Append {
        epoch: 3,
        commit: at,
        count: 2,
        round: 4,
        echo: 3,
        confirmed_age_ms: Some(1),
        left_out: vec![1],
    };
    let report = Report { node: NODE, boot: BootId(6), promise: 3, durable: at, commit: at };
    let offer = SnapshotOffer {
        position: at,
        chain: 5,
        epochs: epochs(),
        files: vec![("home/cpu/1.parquet".into(), 77)],
        hashes: vec![8; 32],
    };
    let headers = vec![("content-type".to_owned(), ByteBuf::from(b"text/plain".to_vec()))];
    let http = HttpRequest {
        method: "POST".into(),
        target: "/write?db=home".into(),
        http2: false,
        headers: headers.clone(),
        vouched: true,
    };
    let forward = ForwardRequest {
        epoch: 3,
        key,
        also: Some(client),
        ack: Some(AckLevel::All),
        encoding: 1,
        timeout_ms: 9,
        request: None,
        kept: true,
    };
    let named = ForwardRequest { request: RequestId::by_client("a-1"), ..forward.clone() };
    let progress = Progress { at, asked: AckLevel::All, reached: AckLevel::Local };
    let of: [(u8, Vec<u8>); 35] = [
        (0, bytes(&hello)),
        (1, bytes(&subscribe)),
        (2, bytes(&resume)),
        (2, bytes(&Subscribed::Diverged { at })),
        (3, bytes(&append)),
        (4, bytes(&Ack { epoch: 3, durable: at, applied: at, chain: 5, round: 4 })),
        (5, bytes(&Seal { epoch: 7, term: 3, resigned: Some((2, BootId(6))) })),
        (6, bytes(&Sealed::Report(report))),
        (6, bytes(&Sealed::LeaseHeld { remaining_ms: 5 })),
        (7, bytes(&Mark { membership: MembershipId { term: 1, index: 2 }, node: NODE, boot: BootId(6) })),
        (8, bytes(&SnapshotRequest::default())),
        (9, bytes(&offer)),
        (10, bytes(&SnapshotWanted { files: vec![(0, 5)] })),
        (11, bytes(&ReadRequest::Confirm { epoch: 3 })),
        (12, bytes(&ReadResponse::Index(at))),
        (13, bytes(&forward)),
        (14, bytes(&ForwardResponse::Written { at, ack: AckLevel::Quorum })),
        (14, bytes(&ForwardResponse::SchemaChanged { schema: vec![1, 2] })),
        (14, bytes(&ForwardResponse::Unreached(progress))),
        (15, bytes(&http)),
        (16, bytes(&Part::Head(HttpResponse { status: 200, headers: headers.clone() }))),
        (16, bytes(&Part::Trailers(headers))),
        (17, bytes(&ViewRequest::default())),
        (18, bytes(&ViewFrame { view: Some(Box::new(view())), ready: true })),
        (19, bytes(&StatusRequest { resign: true, to: Some(NODE) })),
        (20, bytes(&status())),
        (21, bytes(&Command::SetWriter(office()))),
        (21, bytes(&Command::RevokeToken { token: TokenId(8) })),
        (21, bytes(&Command::Remove { node: NODE, at_ms: 5 })),
        (21, bytes(&Command::Drain { node: NODE, drained: true })),
        (21, bytes(&Command::RotateCa { at_ms: 5 })),
        (
            21,
            bytes(&Command::Update {
                node: NODE,
                addresses: addresses(),
                certificate: Some(("0a".into(), 9)),
                version: "0.1.0".into(),
                features: 3,
            }),
        ),
        (21, bytes(&Command::Finalise { features: 15 })),
        (13, bytes(&named)),
        (20, bytes(&NodeStatus { sent: vec![(NODE, vec![1, 2, 3, 4, 5])], ..status() })),
    ];
    of.into_iter().map(|(kind, message)| [&[kind], &message[..]].concat()).collect()
}

/// Records of every kind of key, alone and behind one another.
fn records() -> Vec<Vec<u8>> {
    let one = |kind: u8, flags: u8, payload: &[u8]| {
        let mut raw = Vec::with_capacity(RECORD_HEADER + payload.len());
        raw.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        raw.extend_from_slice(&[kind, flags, 1, 0]);
        raw.extend_from_slice(&3_u64.to_le_bytes());
        raw.extend_from_slice(&9_u64.to_le_bytes());
        raw.extend_from_slice(&(-5_i64).to_le_bytes());
        raw.extend_from_slice(&[if flags == 0 { 0 } else { 6 }; 32]);
        raw.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        raw.extend_from_slice(&0xabcd_u32.to_le_bytes());
        raw.extend_from_slice(payload);
        raw.resize(RECORD_HEADER + payload.len().next_multiple_of(8), 0);
        raw
    };
    let all = [
        one(1, 1, b"points"),
        one(1, 2, &[7; 100]),
        one(2, 0, b"drop"),
        one(3, 0, b""),
        one(4, 0, b"12345678"),
        one(1, 1, &[8; 4 << 10]),
    ];
    let behind = all.concat();
    all.into_iter().chain([behind]).collect()
}
