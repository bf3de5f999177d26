//! What is read from strangers, clients, peers and disks, as functions over any bytes: the targets of `fuzz/`
//! (cargo-fuzz), and of a campaign of mutations that needs nothing but this library.
//!
//! A target panics if a decoder does, or if what was decoded does not hold together.

#[cfg(feature = "columnar")]
mod bodies;
#[cfg(test)]
mod kept;
mod samples;
#[cfg(test)]
mod tests;

use std::{panic::catch_unwind, sync::OnceLock};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::{Serialize, de::DeserializeOwned};

#[cfg(feature = "sql")]
pub use bodies::statement;
#[cfg(feature = "columnar")]
pub use bodies::{lines, packed, payload};
pub use samples::{JOINS, samples};

use crate::{
    identity::{ClusterCa, JoinToken, PeerCertificate, seal},
    protocol::{
        forward::{ForwardRequest, ForwardResponse},
        frame::{self, MAX_JOIN, MAX_MESSAGE, MAX_RAFT, StreamHeader},
        hello::Hello,
        http::{HttpRequest, MAX_HEAD, Part},
        join::{AdmitRequest, JoinRequest, JoinResponse},
        replication::{
            Ack, Append, Mark, ReadRequest, ReadResponse, Seal, Sealed, SnapshotOffer, SnapshotRequest,
            SnapshotWanted, Subscribe, Subscribed,
        },
        status::{NodeStatus, StatusRequest},
        view::{MAX_VIEW, ViewFrame, ViewRequest},
    },
    raft::Command,
    types::ClusterId,
    wal::{DedupKey, RECORD_HEADER, Record, is_shared},
};

/// A decoder, or several, over any bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Of the file in `fuzz/fuzz_targets/`, and of [`samples`].
    pub name: &'static str,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame },
    Target { name: "join", run: join },
    Target { name: "wire", run: wire },
    Target { name: "record", run: record },
    #[cfg(feature = "columnar")]
    Target { name: "lines", run: lines },
    #[cfg(feature = "columnar")]
    Target { name: "packed", run: packed },
    #[cfg(feature = "columnar")]
    Target { name: "payload", run: payload },
    #[cfg(feature = "sql")]
    Target { name: "statement", run: statement },
];

/// Stream headers and lengths of frames: `header, length, ...`.
pub fn frame(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<{ StreamHeader::LEN }>() else { return };
    if let Ok(read) = StreamHeader::decode(*header) {
        assert_eq!(read.encode(), *header, "a header has one form");
    }
    let Some((prefix, rest)) = rest.split_first_chunk::<4>() else { return };
    for limit in [0, MAX_JOIN, MAX_MESSAGE, MAX_RAFT] {
        if let Ok(len) = frame::frame_len(*prefix, limit) {
            assert!(len <= limit, "a frame of {len} bytes under a limit of {limit}");
        }
    }
    for limit in [0, 1, rest.len().saturating_sub(1)] {
        if rest.len() > limit {
            assert!(frame::decode::<JoinRequest>(rest, limit).is_err(), "a message over its limit");
        }
    }
}

/// What a stranger says, and what is said to one: requests with all that is read of them, answers,
/// certificates, and the text of a token.
pub fn join(data: &[u8]) {
    again::<JoinResponse>(data, MAX_MESSAGE);
    if let Some(request) = again::<JoinRequest>(data, MAX_JOIN) {
        match request {
            JoinRequest::Admit(request) => admit(&request),
            JoinRequest::Renew { csr } => sign(&csr),
            JoinRequest::Relayed(_) | JoinRequest::Meet(_) => {}
        }
    }
    // Also as they stand: a mutation of a request rarely leaves what is around them whole.
    sign(data);
    if let Ok(certificate) = PeerCertificate::parse(data) {
        assert!(certificate.not_before <= certificate.not_after || certificate.signer(&[data]).is_none());
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.reveal().parse::<JoinToken>().map(|again| again.id()), Ok(token.id()));
    }
}

fn admit(request: &AdmitRequest) {
    sign(&request.csr);
    let (key, signature) = (&request.seal_key, &request.seal_key_signature);
    // Nothing was signed by the key that a mutation makes.
    let _ = seal::verify_seal_key(&request.csr, request.cluster, key, signature);
}

/// A request for a certificate gets one for its own key, or none.
fn sign(csr: &[u8]) {
    const NOW: u64 = 1_800_000_000;
    static CA: OnceLock<Option<ClusterCa>> = OnceLock::new();
    let cluster = ClusterId([7; 16]);
    let Some(ca) = CA.get_or_init(|| ClusterCa::create(cluster, &[1; 32], NOW).ok()) else { return };
    if let Ok(issued) = ca.issue(csr, cluster, [1; 16], NOW) {
        assert_eq!(crate::identity::node_id(&issued.spki), issued.node, "another one's name");
        let read = PeerCertificate::parse(&issued.certificate).expect("what was signed can be read");
        assert_eq!((read.claims, &read.spki), (Some((cluster, issued.node)), &issued.spki));
    }
}

/// Messages between members, each kind by its number in the first byte.
pub fn wire(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    if let Some(read) = READERS.get(usize::from(*kind)) {
        read(data);
    }
}

/// Reads a message, and says it again.
type Reader = fn(&[u8]) -> Option<Bytes>;

/// Of each kind of message, by its number.
const READERS: [Reader; samples::KINDS] = [
    |data| said_again::<Hello>(data, MAX_MESSAGE),
    |data| said_again::<Subscribe>(data, MAX_RAFT),
    |data| said_again::<Subscribed>(data, MAX_RAFT),
    |data| said_again::<Append>(data, MAX_MESSAGE),
    |data| said_again::<Ack>(data, MAX_MESSAGE),
    |data| said_again::<Seal>(data, MAX_MESSAGE),
    |data| said_again::<Sealed>(data, MAX_MESSAGE),
    |data| said_again::<Mark>(data, MAX_MESSAGE),
    |data| said_again::<SnapshotRequest>(data, MAX_MESSAGE),
    |data| said_again::<SnapshotOffer>(data, MAX_RAFT),
    |data| said_again::<SnapshotWanted>(data, MAX_RAFT),
    |data| said_again::<ReadRequest>(data, MAX_MESSAGE),
    |data| said_again::<ReadResponse>(data, MAX_MESSAGE),
    |data| said_again::<ForwardRequest>(data, MAX_MESSAGE),
    |data| said_again::<ForwardResponse>(data, MAX_MESSAGE),
    |data| said_again::<HttpRequest>(data, MAX_HEAD),
    |data| said_again::<Part>(data, MAX_HEAD),
    |data| said_again::<ViewRequest>(data, MAX_MESSAGE),
    |data| said_again::<ViewFrame>(data, MAX_VIEW),
    |data| said_again::<StatusRequest>(data, MAX_MESSAGE),
    |data| said_again::<NodeStatus>(data, MAX_MESSAGE),
    |data| said_again::<Command>(data, MAX_RAFT),
];

fn said_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    data: &[u8],
    limit: usize,
) -> Option<Bytes> {
    again::<T>(data, limit).map(|read| frame::encode(&read))
}

/// Records of the log, one behind the other, as they come from a peer and from a segment.
pub fn record(data: &[u8]) {
    let mut rest = Bytes::copy_from_slice(data);
    let mut read = 0;
    while let Ok((record, behind)) = Record::decode_replicated(rest.clone()) {
        assert_eq!(record.raw.len() + behind.len(), rest.len(), "bytes were lost, or read twice");
        assert!(record.raw.len() >= RECORD_HEADER && record.raw.to_bytes() == rest.slice(..record.raw.len()));
        assert!(record.payload.len() + RECORD_HEADER <= record.raw.len());
        assert_eq!(record.digest, crc32c::crc32c(&record.raw.to_bytes()));
        // As it comes to the edge that forwarded it: what follows stands behind the header.
        if matches!(record.key, Some(DedupKey::Batch(_))) && is_shared(record.payload.len()) {
            let bare = Bytes::from([&rest[..RECORD_HEADER], &behind[..]].concat());
            let again = Record::decode_kept(&bare, |_, _| Some(record.payload.clone()));
            assert_eq!(again, Ok(Some((record.clone(), behind.clone()))));
        }
        read += record.raw.len();
        rest = behind;
    }
    let zeros = |len: usize| (len < 1 << 16).then(|| vec![0; len].into());
    let _ = Record::decode_kept(&rest, |_, len| zeros(len));
    assert!(read <= data.len());
}

/// Decodes; what was decoded must come back from its own encoding.
fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    data: &[u8],
    limit: usize,
) -> Option<T> {
    let read = frame::decode::<T>(data, limit).ok()?;
    assert!(data.len() <= limit, "{} bytes under a limit of {limit}", data.len());
    let encoded = frame::encode(&read);
    assert_eq!(frame::decode::<T>(&encoded, usize::MAX).as_ref(), Ok(&read), "from {encoded:?}");
    Some(read)
}

/// An input that a target does not survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// How many came before it.
    pub after: u64,
    /// It.
    pub input: Vec<u8>,
}

/// Runs `target` on its samples and on so many mutations of them, the same ones for the same seed, until
/// one is found that it does not survive. A stack that overflows ends the process: the runs of every day
/// are in tests.
pub fn campaign(target: fn(&[u8]), samples: &[Vec<u8>], seed: u64, mutations: u64) -> Option<Found> {
    let mut random = StdRng::seed_from_u64(seed);
    let survives = |input: &[u8]| catch_unwind(|| target(input)).is_ok();
    if let Some(at) = samples.iter().position(|sample| !survives(sample)) {
        return Some(Found { after: at as u64, input: samples.get(at)?.clone() });
    }
    (0..mutations).find_map(|after| {
        let input = mutation(samples, &mut random);
        (!survives(&input)).then_some(Found { after, input })
    })
}

/// One of the samples with one to four changes.
fn mutation(samples: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = samples.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=4) {
        change(&mut bytes, samples, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, samples: &[Vec<u8>], random: &mut StdRng) {
    // Numbers at the edges of their types, and the markers of MessagePack that take a length.
    const EDGES: [u8; 16] =
        [0, 1, 0x7f, 0x80, 0xff, 0xfe, 0xc0, 0xc1, 0xc4, 0xc6, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf];
    let at = random.random_range(0..=bytes.len());
    let len = random.random_range(0..=(bytes.len() - at).min(64));
    match random.random_range(0..9) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.random_range(0..8)),
        1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = EDGES[random.random_range(0..16)]),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + len)),
        4 => {
            let copy = bytes[at..at + len].to_vec();
            bytes.splice(at..at, copy);
        }
        5 => {
            let noise: Vec<u8> = (0..random.random_range(1..=8)).map(|_| random.random()).collect();
            bytes.splice(at..at, noise);
        }
        7 => resize(bytes, at, random),
        // A length of four bytes, in either order of them.
        6 => {
            let number = [0, 1, 0x7fff_ffff, u32::MAX, bytes.len() as u32, 1 << random.random_range(0..32)]
                [random.random_range(0..6)];
            let number = if random.random() { number.to_be_bytes() } else { number.to_le_bytes() };
            bytes.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = new);
        }
        _ => {
            let other = samples.choose(random).map_or(&[][..], Vec::as_slice);
            let from = random.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

/// Gives the string or bytes (MessagePack) that begin at `at` or behind it another length, so that what
/// is around them stays whole.
fn resize(bytes: &mut Vec<u8>, at: usize, random: &mut StdRng) {
    let marked = |byte: &u8| matches!(byte, 0xa0..=0xbf | 0xc4 | 0xd9);
    let Some(marker) = bytes.iter().skip(at).position(marked).map(|found| at + found) else { return };
    let (len_at, max, fixed) = match bytes[marker] {
        0xc4 | 0xd9 => (marker + 1, 255, 0),
        byte => (marker, 31, byte & 0xe0),
    };
    let Some(len) = bytes.get(len_at).map(|byte| usize::from(byte & (max as u8))) else { return };
    let start = len_at + 1;
    let Some(mut content) = bytes.get(start..start + len).map(<[u8]>::to_vec) else { return };
    let new = [0, len.saturating_sub(1), len + 1, max, random.random_range(0..=max)];
    let new = new[random.random_range(0..new.len())].min(max);
    content.resize(new, b'x');
    bytes.splice(start..start + len, content);
    bytes[len_at] = fixed | new as u8;
}
