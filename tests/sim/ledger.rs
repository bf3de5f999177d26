//! What the clients know and what was seen of the nodes, kept outside of every host.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use skeinmesh::{
    engine::{MemoryEngine, Operation},
    node::{AckLevel, Receipt, SubmitError},
    protocol::status::NodeStatus,
    types::{BootId, ClusterView, Epoch, Lsn, NodeId},
};

use crate::invariants::{i1, i4, i5};

/// Every write, every record ever applied, every office ever seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) writes: Vec<Written>,
    pub(crate) history: i5::History,
    pub(crate) epochs: i4::Epochs,
    /// What is broken, first finding first.
    pub(crate) violations: Vec<String>,
}

/// A write as its client knows it. Its payload is unlike every other's.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) payload: Bytes,
    pub(crate) host: &'static str,
    pub(crate) outcome: Outcome,
    /// Simulated time of its answer.
    pub(crate) answered: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No answer yet.
    Open,
    /// Acknowledged at this position, by a majority.
    Acked(Lsn),
    /// Refused: it was not written.
    Refused(String),
    /// Nobody knows.
    Unknown,
}

impl Ledger {
    /// Notes that a client on `host` is about to write; returns the number of the write.
    pub(crate) fn begin(&mut self, host: &'static str, padding: usize) -> usize {
        let number = self.writes.len();
        let payload = Bytes::from(format!("{number} at {host} {}", "x".repeat(padding)));
        self.writes.push(Written { payload, host, outcome: Outcome::Open, answered: Duration::ZERO });
        number
    }

    pub(crate) fn end(&mut self, number: usize, answer: Result<Receipt, SubmitError>, now: Duration) {
        let outcome = match answer {
            Ok(receipt) if receipt.ack == AckLevel::Quorum => Outcome::Acked(receipt.at),
            Ok(receipt) => {
                let level = receipt.ack;
                self.violated(format!("I1: write {number} was acknowledged at {level:?}, not by a quorum"));
                Outcome::Unknown
            }
            Err(SubmitError::Unknown(_)) => Outcome::Unknown,
            Err(error) => Outcome::Refused(error.to_string()),
        };
        let write = &mut self.writes[number];
        (write.outcome, write.answered) = (outcome, now);
    }

    /// The clients on `host` died with it.
    pub(crate) fn host_died(&mut self, host: &str) {
        for write in self.writes.iter_mut().filter(|w| w.host == host && w.outcome == Outcome::Open) {
            write.outcome = Outcome::Unknown;
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Open)
    }

    pub(crate) fn count(&self, what: impl Fn(&Outcome) -> bool) -> usize {
        self.writes.iter().filter(|write| what(&write.outcome)).count()
    }

    /// Seq of the last acknowledged record; 0 if there is none.
    pub(crate) fn last_acked(&self) -> u64 {
        let acked = |write: &Written| match write.outcome {
            Outcome::Acked(at) => Some(at.seq),
            _ => None,
        };
        self.writes.iter().filter_map(acked).max().unwrap_or(0)
    }

    /// Looks at a node: its own word, and the register as it knows it.
    pub(crate) fn observe(&mut self, host: &'static str, status: &NodeStatus, view: &ClusterView) {
        let found = self.epochs.observe(host, status, view.writer);
        self.violations.extend(found);
    }

    /// Looks at what an engine has applied.
    pub(crate) fn observe_contents(&mut self, host: &'static str, engine: &MemoryEngine) {
        let found = self.history.observe(host, &payloads(engine));
        self.violations.extend(found);
    }

    /// The last word, once every node has everything.
    pub(crate) fn judge(&mut self, engines: &[(&'static str, BTreeMap<Lsn, Bytes>)]) {
        let mut found = i1::judge(&self.writes, engines);
        found.extend(self.history.judge(engines));
        self.violations.extend(found);
    }

    pub(crate) fn violated(&mut self, says: String) {
        self.violations.push(says);
    }
}

/// The batches an engine holds, by position.
pub(crate) fn payloads(engine: &MemoryEngine) -> BTreeMap<Lsn, Bytes> {
    let batch = |(at, operation)| match operation {
        Operation::Batch { payload, .. } => Some((at, payload)),
        _ => None,
    };
    engine.contents().into_iter().filter_map(batch).collect()
}

/// Which process holds an office.
pub(crate) type Process = (NodeId, BootId);
/// Who was seen in which epoch.
pub(crate) type Offices = BTreeMap<Epoch, Process>;
