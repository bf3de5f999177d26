//! What the writer has let in and not applied yet, by key and in bytes.
//!
//! Commits may stall, for want of a majority or of a disk; the writer takes in no more than
//! [`ROOM`] meanwhile, whatever level its clients ask for. Marks and control records are not
//! counted: they are few, and an office cannot do without them.

use std::collections::BTreeMap;

use crate::wal::{DedupKey, RECORD_HEADER};

/// Bytes of records that are let in and not applied, at most; a single one may be larger.
const ROOM: usize = 64 * 1024 * 1024;

/// Keys of records of this office that are in the log and not yet applied.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    records: BTreeMap<DedupKey, Entry>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    seq: u64,
    bytes: usize,
}

impl InFlight {
    /// The seq of the record with this key.
    pub(super) fn seq_of(&self, key: &DedupKey) -> Option<u64> {
        self.records.get(key).map(|entry| entry.seq)
    }

    /// Whether this client key is under way with another body; [`Self::seq_of`] found none with
    /// this one.
    pub(super) fn has_other_body(&self, key: &DedupKey) -> bool {
        let DedupKey::Client { key, .. } = *key else { return false };
        let any_body = DedupKey::Client { key, body: [0; 16] }..=DedupKey::Client { key, body: [255; 16] };
        self.records.range(any_body).next().is_some()
    }

    /// Whether a record with a payload of that length may be let in.
    pub(super) fn has_room(&self, payload: usize) -> bool {
        self.records.is_empty() || self.bytes + RECORD_HEADER + payload <= ROOM
    }

    pub(super) fn insert(&mut self, key: DedupKey, seq: u64, payload: usize) {
        let bytes = RECORD_HEADER + payload;
        self.bytes += bytes;
        if let Some(before) = self.records.insert(key, Entry { seq, bytes }) {
            self.bytes -= before.bytes;
        }
    }

    /// Forgets the record with this key: it has been applied.
    pub(super) fn remove(&mut self, key: &DedupKey) {
        if let Some(entry) = self.records.remove(key) {
            self.bytes -= entry.bytes;
        }
    }

    /// Forgets all: the office is over.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{forward::BatchId, frame::MAX_PAYLOAD},
        types::{BootId, NodeId},
    };

    fn key(counter: u64) -> DedupKey {
        DedupKey::Batch(BatchId { edge: NodeId([1; 16]), boot: BootId(2), counter })
    }

    #[test]
    fn room_is_counted_in_bytes_and_comes_back() {
        let mut in_flight = InFlight::default();
        assert!(in_flight.has_room(MAX_PAYLOAD));
        in_flight.insert(key(1), 1, MAX_PAYLOAD);
        in_flight.insert(key(2), 2, MAX_PAYLOAD - 3 * RECORD_HEADER);
        assert!(in_flight.has_room(0) && !in_flight.has_room(1));
        in_flight.remove(&key(7));
        assert!(!in_flight.has_room(1));
        in_flight.remove(&key(1));
        assert!(in_flight.has_room(MAX_PAYLOAD));
        in_flight.insert(key(3), 3, MAX_PAYLOAD);
        in_flight.clear();
        assert!(in_flight.has_room(ROOM * 2), "one record fits always, or it never would");
    }

    #[test]
    fn a_client_key_is_known_with_any_body() {
        let client = |key, body| DedupKey::Client { key: [key; 16], body: [body; 16] };
        let mut in_flight = InFlight::default();
        in_flight.insert(client(1, 7), 9, 10);
        assert_eq!(in_flight.seq_of(&client(1, 7)), Some(9));
        assert_eq!(in_flight.seq_of(&client(1, 8)), None);
        assert!(in_flight.has_other_body(&client(1, 8)));
        assert!(!in_flight.has_other_body(&client(2, 7)));
        assert!(!in_flight.has_other_body(&key(1)));
    }
}
