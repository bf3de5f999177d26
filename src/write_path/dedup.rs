//! At most once inside: which batches have been applied.
//!
//! Applied state: fed in LSN order by the apply loop of every node, saved with each checkpoint,
//! part of an engine snapshot, aged by the records' own timestamps, never by a clock.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    types::{BootId, Lsn, MembershipId, NodeId},
    wal::DedupKey,
};

/// Counters remembered per (edge, boot). An edge holds far fewer requests at a time.
const WINDOW: usize = 8192;
/// Client keys remembered at most.
const CLIENTS: usize = 1_000_000;
/// How long, in the records' own time, anything is remembered: 24 h.
const AGE_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Records between two sweeps for age.
const SWEEP: u32 = 65_536;

/// The table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Dedup {
    edges: BTreeMap<(NodeId, BootId), Window>,
    clients: BTreeMap<[u8; 16], Client>,
    since_sweep: u32,
    /// Membership id of the newest `EpochStart` or `ConfigMark` applied. It is no key, but applied state
    /// like them, and lies here because an older version reads this table and skips what it does not
    /// know.
    #[serde(default)]
    marked: MembershipId,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Window {
    counters: BTreeMap<u64, Lsn>,
    /// Counters at or below it have left the window.
    forgotten: u64,
    newest_ns: i64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Client {
    body: [u8; 16],
    at: Lsn,
    ns: i64,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not applied.
    New,
    /// Applied at that position: a retry is answered with it.
    At(Lsn),
    /// The same client key came with another body.
    OtherBody,
    /// So old that it is no longer known whether it was applied.
    TooOld,
}

impl Dedup {
    /// A table from [`Self::save`]; an empty one from no bytes.
    pub fn load(bytes: &Bytes) -> Result<Self, rmp_serde::decode::Error> {
        if bytes.is_empty() { Ok(Self::default()) } else { rmp_serde::from_slice(bytes) }
    }

    /// The table as bytes, for a checkpoint.
    pub fn save(&self) -> Bytes {
        crate::protocol::frame::encode(self)
    }

    /// What of it is true in any cluster that has the same data: clients' keys. Batch ids and marks speak of
    /// this cluster's processes and members.
    #[must_use]
    pub fn portable(&self) -> Self {
        Self { clients: self.clients.clone(), ..Self::default() }
    }

    /// The newest mark of a membership.
    pub const fn marked(&self) -> MembershipId {
        self.marked
    }

    /// Notes an applied mark of a membership.
    pub fn mark(&mut self, membership: MembershipId) {
        self.marked = membership;
    }

    /// Whether the record with this key has been applied.
    pub fn look_up(&self, key: &DedupKey) -> Seen {
        match key {
            DedupKey::Batch(id) => match self.edges.get(&(id.edge, id.boot)) {
                Some(window) if id.counter <= window.forgotten => Seen::TooOld,
                Some(window) => window.counters.get(&id.counter).map_or(Seen::New, |at| Seen::At(*at)),
                None => Seen::New,
            },
            DedupKey::Client { key, body } => match self.clients.get(key) {
                Some(client) if client.body == *body => Seen::At(client.at),
                Some(_) => Seen::OtherBody,
                None => Seen::New,
            },
        }
    }

    /// Notes an applied record.
    pub fn feed(&mut self, key: &DedupKey, at: Lsn, timestamp_ns: i64) {
        match key {
            DedupKey::Batch(id) => {
                let window = self.edges.entry((id.edge, id.boot)).or_default();
                window.newest_ns = window.newest_ns.max(timestamp_ns);
                window.counters.insert(id.counter, at);
                while window.counters.len() > WINDOW {
                    if let Some((counter, _)) = window.counters.pop_first() {
                        window.forgotten = window.forgotten.max(counter);
                    }
                }
            }
            DedupKey::Client { key, body } => {
                self.clients.insert(*key, Client { body: *body, at, ns: timestamp_ns });
            }
        }
        self.since_sweep += 1;
        if self.since_sweep >= SWEEP || self.clients.len() > CLIENTS {
            self.sweep(timestamp_ns);
        }
    }

    fn sweep(&mut self, now_ns: i64) {
        self.since_sweep = 0;
        let oldest = now_ns.saturating_sub(AGE_NS);
        self.edges.retain(|_, window| window.newest_ns >= oldest);
        self.clients.retain(|_, client| client.ns >= oldest);
        if self.clients.len() > CLIENTS {
            // Over the bound the older half goes, by position: the same half on every node.
            let mut positions: Vec<u64> = self.clients.values().map(|client| client.at.seq).collect();
            let middle = positions.len() / 2;
            let (_, median, _) = positions.select_nth_unstable(middle);
            let median = *median;
            self.clients.retain(|_, client| client.at.seq > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::forward::BatchId;

    fn batch(counter: u64) -> DedupKey {
        DedupKey::Batch(BatchId { edge: NodeId([1; 16]), boot: BootId(2), counter })
    }

    #[test]
    fn a_retry_is_known_also_after_a_restart() {
        let mut table = Dedup::default();
        table.feed(&batch(1), Lsn::new(1, 5), 0);
        table.feed(&DedupKey::Client { key: [1; 16], body: [2; 16] }, Lsn::new(1, 6), 0);
        let table = Dedup::load(&table.save()).unwrap();
        assert_eq!(table.look_up(&batch(1)), Seen::At(Lsn::new(1, 5)));
        assert_eq!(table.look_up(&batch(2)), Seen::New);
        assert_eq!(
            table.look_up(&DedupKey::Client { key: [1; 16], body: [2; 16] }),
            Seen::At(Lsn::new(1, 6))
        );
        assert_eq!(table.look_up(&DedupKey::Client { key: [1; 16], body: [3; 16] }), Seen::OtherBody);
    }

    #[test]
    fn a_table_without_mark_is_read_and_one_with_it_is_read_by_an_older_version() {
        #[derive(Serialize, Deserialize)]
        struct Former {
            edges: BTreeMap<(NodeId, BootId), Window>,
            clients: BTreeMap<[u8; 16], Client>,
            since_sweep: u32,
        }
        let mut table = Dedup::default();
        table.feed(&batch(1), Lsn::new(1, 5), 0);
        table.mark(MembershipId { term: 3, index: 9 });
        let former: Former = rmp_serde::from_slice(&table.save()).unwrap();
        assert_eq!(former.edges.len(), 1);
        let again = Dedup::load(&crate::protocol::frame::encode(&former)).unwrap();
        assert_eq!(
            (again.marked(), again.look_up(&batch(1))),
            (MembershipId::default(), Seen::At(Lsn::new(1, 5)))
        );
        assert_eq!(Dedup::load(&table.save()).unwrap().marked(), MembershipId { term: 3, index: 9 });
    }

    #[test]
    fn what_left_the_window_is_never_taken_for_new() {
        let mut table = Dedup::default();
        for counter in 1..=(WINDOW as u64 + 10) {
            table.feed(&batch(counter), Lsn::new(1, counter), 0);
        }
        assert_eq!(table.look_up(&batch(3)), Seen::TooOld);
        assert_eq!(table.look_up(&batch(11)), Seen::At(Lsn::new(1, 11)));
        // Another boot of the same edge starts afresh.
        let other = DedupKey::Batch(BatchId { edge: NodeId([1; 16]), boot: BootId(3), counter: 3 });
        assert_eq!(table.look_up(&other), Seen::New);
    }

    #[test]
    fn only_clients_keys_go_elsewhere() {
        let mut table = Dedup::default();
        table.feed(&batch(1), Lsn::new(1, 5), 0);
        table.mark(MembershipId { term: 3, index: 9 });
        let key = DedupKey::Client { key: [1; 16], body: [2; 16] };
        table.feed(&key, Lsn::new(1, 6), 0);
        let elsewhere = Dedup::load(&table.portable().save()).unwrap();
        assert_eq!(
            (elsewhere.look_up(&key), elsewhere.look_up(&batch(1))),
            (Seen::At(Lsn::new(1, 6)), Seen::New)
        );
        assert_eq!(elsewhere.marked(), MembershipId::default());
    }

    #[test]
    fn a_day_later_it_is_forgotten() {
        let mut table = Dedup::default();
        table.feed(&batch(1), Lsn::new(1, 1), 0);
        table.sweep(AGE_NS + 1);
        assert_eq!(table.look_up(&batch(1)), Seen::New);
    }
}
