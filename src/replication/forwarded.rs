//! Payloads of batches that this node forwarded and that have not come back in the log. The writer
//! leaves them out of the records it sends here, so that most rows go over the link once.
//!
//! What this node answers for is never more than what it has put into its log, and there the record is
//! whole; its batch id, length and checksum tell that the payload is the one the writer has. A payload that
//! is not here any more costs a new subscription: this node acknowledges nothing until that stands, and what
//! it kept comes whole.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use crate::{
    protocol::frame::MAX_RECORDS,
    types::{BootId, NodeId},
    wal::{DedupKey, Record, RecordError, is_shared},
};

/// Bytes of payloads kept at most: what one second of a busy edge comes to on a link of 100 Mbit/s.
const ROOM: usize = 16 * 1024 * 1024;
/// A batch that has not come back for so long may never do: its record came in a snapshot, or nobody let it in.
const STALE: Duration = Duration::from_secs(30);

/// The payloads of one process run.
#[derive(Debug)]
pub struct Forwarded {
    edge: (NodeId, BootId),
    kept: Mutex<Kept>,
    left_out: AtomicU64,
}

/// By the number of the batch, so the oldest is first.
#[derive(Debug, Default)]
struct Kept {
    batches: BTreeMap<u64, (Instant, Bytes)>,
    bytes: usize,
    /// The highest number ever kept.
    newest: u64,
    /// None below is kept.
    from: u64,
}

/// Why a frame of records cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// The writer left out a payload that is not here. It is told from which number on it may, and sends
    /// the record whole.
    #[error("a payload was left out that this node does not keep")]
    NotKept,
    /// No writer sends that.
    #[error("a frame of records that contradicts its head: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The records of a frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) records: Vec<Record>,
    /// Bytes of their replicated parts.
    pub(super) len: usize,
    pub(super) own: Own,
}

/// What of a frame this node had forwarded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// Numbers of batches that may have been kept.
    numbers: Vec<u64>,
    /// Bytes of payloads that did not come.
    left_out: u64,
}

impl Forwarded {
    /// Of the edge whose batches bear these ids.
    pub(super) fn new(edge: (NodeId, BootId)) -> Self {
        Self { edge, kept: Mutex::default(), left_out: AtomicU64::new(0) }
    }

    /// Keeps the payload of a batch that is about to be forwarded, if it is worth it and there is room.
    /// Only then may the writer be told so. A number stands for one payload.
    pub fn keep(&self, key: &DedupKey, payload: &Bytes) -> bool {
        let Some(number) = self.number(key).filter(|_| is_shared(payload.len())) else { return false };
        let (mut kept, now) = (self.lock(), Instant::now());
        kept.drop_stale(now);
        if number < kept.from {
            return false;
        }
        if kept.batches.contains_key(&number) {
            return true;
        }
        if kept.bytes + payload.len() > ROOM {
            return false;
        }
        kept.newest = kept.newest.max(number);
        kept.bytes += payload.len();
        kept.batches.insert(number, (now, payload.clone()));
        true
    }

    /// The writer has refused the batch, or it is in this node's log.
    pub fn forget(&self, key: &DedupKey) {
        if let Some(number) = self.number(key) {
            self.lock().remove(number);
        }
    }

    /// Nothing comes back to a writer.
    pub(super) fn forget_all(&self) {
        self.lock().give_up(0);
    }

    /// The number from which on the writer may leave out what it was told is kept.
    pub(super) fn from(&self) -> u64 {
        self.lock().from
    }

    /// The `count` records of a frame, of which those at the places in `left_out` came without their
    /// payload. They are no longer than a frame that has them all, which is looked at before what they are.
    pub(super) fn complete(
        &self,
        mut frame: Bytes,
        count: u32,
        left_out: &[u32],
    ) -> Result<Whole, FrameError> {
        if !left_out.is_sorted_by(|a, b| a < b) || left_out.last().is_some_and(|last| *last >= count) {
            return Err(FrameError::Malformed("places of what is left out"));
        }
        let (mut left_out, mut whole) = (left_out.iter().peekable(), Whole::default());
        for place in 0..count {
            let (record, rest) = if left_out.next_if(|at| **at == place).is_some() {
                let (record, rest) = self.complete_one(&frame, MAX_RECORDS - whole.len)?;
                whole.own.left_out += record.payload.len() as u64;
                (record, rest)
            } else {
                Record::decode_replicated(frame)?
            };
            whole.len += record.raw.len();
            if whole.len > MAX_RECORDS {
                return Err(FrameError::Malformed("its length"));
            }
            let number = record.key.as_ref().filter(|_| is_shared(record.payload.len()));
            whole.own.numbers.extend(number.and_then(|key| self.number(key)));
            whole.records.push(record);
            frame = rest;
        }
        if frame.is_empty() { Ok(whole) } else { Err(FrameError::Malformed("the number of records")) }
    }

    /// The record whose header `frame` begins with, of at most `room` bytes.
    fn complete_one(&self, frame: &Bytes, room: usize) -> Result<(Record, Bytes), FrameError> {
        let (mut own, mut fits) = (None, true);
        let decoded = Record::decode_kept(frame, |id, len| {
            own = self.number(&DedupKey::Batch(*id));
            fits = len <= room;
            self.find(own.filter(|_| fits)?, len)
        })?;
        match (decoded, own) {
            (Some(decoded), _) => Ok(decoded),
            (None, _) if !fits => Err(FrameError::Malformed("its length")),
            (None, None) => Err(FrameError::Malformed("a batch of another node is left out")),
            (None, Some(number)) => {
                tracing::info!(
                    number,
                    "a payload that the writer left out is not kept here: it is asked for"
                );
                self.lock().give_up(number);
                Err(FrameError::NotKept)
            }
        }
    }

    /// The records of a frame are in this node's log. If they are cut off, they come whole.
    pub(super) fn came(&self, own: &Own) {
        self.left_out.fetch_add(own.left_out, Ordering::Relaxed);
        if !own.numbers.is_empty() {
            let mut kept = self.lock();
            own.numbers.iter().for_each(|number| kept.remove(*number));
        }
    }

    /// Bytes of payloads that did not have to come.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Bytes that are kept now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let kept = self.lock();
        assert_eq!(kept.bytes, kept.batches.values().map(|batch| batch.1.len()).sum::<usize>());
        kept.bytes
    }

    fn find(&self, number: u64, len: usize) -> Option<Bytes> {
        let kept = self.lock();
        #[cfg(feature = "testing")]
        if crate::types::planted::is("any_forwarded_payload") {
            return kept.batches.values().map(|it| &it.1).find(|it| it.len() == len).cloned();
        }
        kept.batches.get(&number).map(|it| &it.1).filter(|it| it.len() == len).cloned()
    }

    /// The number of a batch of this process run.
    fn number(&self, key: &DedupKey) -> Option<u64> {
        match key {
            DedupKey::Batch(id) if (id.edge, id.boot) == self.edge => Some(id.counter),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The oldest go that have been here too long.
    fn drop_stale(&mut self, now: Instant) {
        while let Some((number, (since, _))) = self.batches.first_key_value() {
            if now.duration_since(*since) < STALE {
                return;
            }
            self.remove(*number);
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some((_, payload)) = self.batches.remove(&number) {
            self.bytes -= payload.len();
        }
    }

    /// What the writer was told is not so, or it was told of `number` by somebody else: nothing counts
    /// that it has been told so far.
    fn give_up(&mut self, number: u64) {
        let newest = self.newest.max(number);
        *self = Self { newest, from: newest.saturating_add(1), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::forward::BatchId;

    const EDGE: (NodeId, BootId) = (NodeId([5; 16]), BootId(6));

    fn key(counter: u64) -> DedupKey {
        DedupKey::Batch(BatchId { edge: EDGE.0, boot: EDGE.1, counter })
    }

    fn keeps(forwarded: &Forwarded, counter: u64, len: usize) -> bool {
        forwarded.keep(&key(counter), &Bytes::from(vec![counter as u8; len]))
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_worth_it_is_kept_and_no_more_than_there_is_room_for() {
        let forwarded = Forwarded::new(EDGE);
        let payload = Bytes::from(vec![7; 8 << 10]);
        for boot in [BootId(0), BootId(7)] {
            let other = BatchId { edge: EDGE.0, boot, counter: 1 };
            assert!(!forwarded.keep(&DedupKey::Batch(other), &payload), "another process");
        }
        assert!(!forwarded.keep(&DedupKey::Client { key: [1; 16], body: [2; 16] }, &payload));
        assert!(!keeps(&forwarded, 1, 64) && !keeps(&forwarded, 1, (8 << 10) + 1));
        assert_eq!(forwarded.bytes(), 0);

        assert!(!keeps(&forwarded, 1, ROOM + 8), "more than there ever is room for");

        assert!(keeps(&forwarded, 1, ROOM / 2));
        tokio::time::advance(STALE / 2).await;
        assert!(keeps(&forwarded, 2, ROOM / 2));
        assert!(keeps(&forwarded, 1, ROOM / 2), "it is here already");
        assert!(!keeps(&forwarded, 3, 8 << 10), "there is no room");
        tokio::time::advance(STALE / 2).await;
        assert!(keeps(&forwarded, 4, 8 << 10), "the oldest is gone, which may never come");
        assert_eq!(forwarded.bytes(), ROOM / 2 + (8 << 10));

        forwarded.came(&Own { numbers: vec![4, 4, 99], left_out: 7 });
        forwarded.forget(&key(2));
        assert_eq!(forwarded.bytes(), 0);
        assert_eq!((forwarded.from(), forwarded.left_out()), (0, 7), "nothing is asked for again");
    }

    #[test]
    fn who_had_to_give_up_keeps_nothing_from_before() {
        let forwarded = Forwarded::new(EDGE);
        assert!(keeps(&forwarded, 3, 8 << 10) && keeps(&forwarded, 7, 8 << 10));
        forwarded.lock().give_up(3);
        assert_eq!((forwarded.from(), forwarded.bytes()), (8, 0));
        assert!(!keeps(&forwarded, 7, 8 << 10), "sent once more, it comes whole");
        assert!(keeps(&forwarded, 8, 8 << 10));
        forwarded.lock().give_up(u64::MAX);
        assert_eq!((forwarded.from(), forwarded.bytes()), (u64::MAX, 0));
    }

    #[cfg(feature = "testing")]
    #[tokio::test(start_paused = true)]
    async fn a_frame_is_completed_with_the_very_payload_or_not_at_all() {
        use std::sync::Arc;

        use crate::{
            testing::SimDisk,
            types::ClusterId,
            wal::{Draft, RecordKind, Wal, WalConfig},
        };
        let disk = Arc::new(SimDisk::new().boot());
        let opened =
            Wal::open(disk, WalConfig::new("/wal"), ClusterId([9; 16]), Box::new(|| 1)).await.unwrap();
        let record = |counter: u64, len: usize| {
            let payload = Bytes::from(vec![counter as u8; len]);
            let draft = Draft {
                kind: RecordKind::Batch,
                encoding: 1,
                timestamp: 0,
                key: Some(key(counter)),
                payload,
                kept: true,
            };
            opened.0.append(1, draft).unwrap()
        };
        let sent = [record(1, 8 << 10), record(2, 8 << 10), record(3, 9), record(4, 16 << 10)];
        let frame = |left_out: &[u32]| {
            let mut frame = Vec::new();
            for (place, record) in (0..).zip(&sent) {
                match record.raw.for_its_edge().filter(|_| left_out.contains(&place)) {
                    Some(header) => frame.extend_from_slice(header),
                    None => frame.extend_from_slice(&record.raw.to_bytes()),
                }
            }
            Bytes::from(frame)
        };
        assert!(sent[2].raw.for_its_edge().is_none(), "so few bytes are not left out");

        let forwarded = Forwarded::new(EDGE);
        assert!(keeps(&forwarded, 1, 8 << 10) && keeps(&forwarded, 4, 16 << 10));
        let complete = |places: &[u32]| forwarded.complete(frame(places), 4, places);
        for (left_out, bytes) in [(&[][..], 0), (&[0], 8 << 10), (&[3], 16 << 10), (&[0, 3], 24 << 10)] {
            let whole = complete(left_out).unwrap();
            assert_eq!(whole.records, sent, "{left_out:?}");
            assert_eq!(whole.len, sent.iter().map(|record| record.raw.len()).sum::<usize>());
            assert_eq!(whole.own, Own { numbers: vec![1, 2, 4], left_out: bytes });
        }
        for cut in [1, 71, 72, 73] {
            let torn = frame(&[3]).slice(..frame(&[3]).len() - cut);
            assert!(matches!(forwarded.complete(torn, 4, &[3]), Err(FrameError::Record(_))), "cut by {cut}");
        }
        for (count, left_out) in [(3, &[0][..]), (4, &[3, 0]), (4, &[0, 0]), (4, &[0, 4])] {
            let refused = forwarded.complete(frame(left_out), count, left_out);
            assert!(matches!(refused, Err(FrameError::Malformed(_))), "{count} {left_out:?}");
        }
        let elsewhere = Forwarded::new((EDGE.0, BootId(7)));
        assert!(matches!(elsewhere.complete(frame(&[0]), 4, &[0]), Err(FrameError::Malformed(_))));
        // The header of one that is kept, over and over: few bytes, and too many records.
        let header = sent[3].raw.for_its_edge().unwrap();
        let places: Vec<u32> = (0..(MAX_RECORDS / (16 << 10)) as u32 + 1).collect();
        let again = Bytes::from(header.repeat(places.len()));
        let refused = forwarded.complete(again, places.len() as u32, &places);
        assert_eq!(refused, Err(FrameError::Malformed("its length")));
        assert_eq!(forwarded.from(), 0, "none of that says anything of what is kept");

        // Of 2 another payload is kept, then its own under another number; 4 is gone with them.
        forwarded.came(&Own { numbers: vec![1], left_out: 0 });
        assert!(forwarded.keep(&key(2), &Bytes::from(vec![1; 8 << 10])));
        assert_eq!(complete(&[1]), Err(FrameError::NotKept));
        assert_eq!((forwarded.from(), forwarded.bytes()), (5, 0));
        assert!(forwarded.keep(&key(9), &sent[1].payload));
        assert_eq!(complete(&[1]), Err(FrameError::NotKept));
        assert_eq!(complete(&[3]), Err(FrameError::NotKept));
        assert_eq!(complete(&[]).unwrap().records, sent);
    }
}
