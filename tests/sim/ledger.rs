//! What the clients know and what was seen of the nodes, kept outside of every host.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use skeinmesh::{
    engine::{MemoryEngine, Operation},
    node::{AckLevel, ClientKey, ReadError, ReadPoint, Receipt, SubmitError},
    protocol::status::NodeStatus,
    types::{BootId, ClusterView, Epoch, Lsn, NodeId, TokenId},
};

use crate::{
    faults::Counts,
    invariants::{i3, i4, i5, i6, i8, i9},
    machine,
};

/// Every write, every read, every record ever applied, every office and every state ever seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) writes: Vec<Written>,
    pub(crate) history: i5::History,
    pub(crate) epochs: i4::Epochs,
    pub(crate) control: i8::Control,
    pub(crate) reads: i9::Reads,
    /// Looks at a node that has been spared what it had forwarded.
    pub(crate) spared: u64,
    /// API tokens that were made.
    pub(crate) claimed: u64,
    /// Writes that a majority has just acknowledged.
    pub(crate) fresh: Vec<usize>,
    /// What is broken, first finding first.
    pub(crate) violations: Vec<String>,
}

/// A write as its client knows it. Its payload is unlike every other's.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) payload: Bytes,
    /// Level asked for.
    pub(crate) ack: Option<AckLevel>,
    /// With a key it may be sent again, to whatever node.
    pub(crate) key: Option<ClientKey>,
    pub(crate) attempts: Vec<Attempt>,
}

/// One time that it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) host: &'static str,
    pub(crate) outcome: Outcome,
    /// Simulated time of its answer.
    pub(crate) answered: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No answer yet.
    Open,
    /// Acknowledged at this position, at this level.
    Acked(Lsn, AckLevel),
    /// Refused: it was not written.
    Refused(String),
    /// Nobody knows.
    Unknown,
}

impl Outcome {
    /// The position, if a majority stands for it. Levels are ordered by what they claim.
    pub(crate) fn lasting(&self) -> Option<Lsn> {
        match self {
            Self::Acked(at, level) if *level >= AckLevel::Quorum => Some(*at),
            _ => None,
        }
    }
}

impl Ledger {
    /// A new write; returns its number.
    pub(crate) fn write(&mut self, ack: Option<AckLevel>, keyed: bool, padding: usize) -> usize {
        let number = self.writes.len();
        let text = format!("{number} ");
        let len = (text.len() + padding).next_multiple_of(8);
        let payload = Bytes::from(format!("{text:x<len$}"));
        let hash = (number as u128).to_be_bytes();
        let key = keyed.then_some(ClientKey { key: hash, former: None, body: hash });
        self.writes.push(Written { payload, ack, key, attempts: Vec::new() });
        number
    }

    /// Notes that a client on `host` is about to send a write; returns the number of the attempt.
    pub(crate) fn attempt(&mut self, write: usize, host: &'static str) -> usize {
        let attempts = &mut self.writes[write].attempts;
        attempts.push(Attempt { host, outcome: Outcome::Open, answered: Duration::ZERO });
        attempts.len() - 1
    }

    pub(crate) fn end(&mut self, write: usize, attempt: usize, answer: Result<Receipt, SubmitError>) {
        let wanted = self.writes[write].ack.unwrap_or(AckLevel::Quorum);
        let outcome = match answer {
            Ok(receipt) => {
                let level = receipt.ack;
                if level < wanted {
                    self.violated(format!("I1: write {write} was acknowledged at {level:?}, not {wanted:?}"));
                }
                Outcome::Acked(receipt.at, level)
            }
            Err(SubmitError::Unknown(_)) => Outcome::Unknown,
            Err(error) => Outcome::Refused(error.to_string()),
        };
        if let Some(at) = outcome.lasting() {
            self.reads.note_acked(machine::now(), at);
            self.fresh.push(write);
        }
        let it = &mut self.writes[write].attempts[attempt];
        (it.outcome, it.answered) = (outcome, machine::now());
    }

    /// A read on `host` was answered; `engine` is what it was answered from.
    pub(crate) fn end_read(
        &mut self,
        host: &'static str,
        read: &i9::Read,
        answer: Result<ReadPoint, ReadError>,
        engine: &MemoryEngine,
    ) {
        if answer.is_ok() {
            self.observe_contents(host, engine);
        }
        let found = self.reads.end(host, read, answer);
        self.violations.extend(found);
    }

    /// The clients on `host` died with it.
    pub(crate) fn host_died(&mut self, host: &str) {
        let attempts = self.writes.iter_mut().flat_map(|write| &mut write.attempts);
        for attempt in attempts.filter(|it| it.host == host && it.outcome == Outcome::Open) {
            attempt.outcome = Outcome::Unknown;
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Open)
    }

    pub(crate) fn count(&self, what: impl Fn(&Outcome) -> bool) -> usize {
        self.writes.iter().flat_map(|write| &write.attempts).filter(|attempt| what(&attempt.outcome)).count()
    }

    /// Looks at a node: its own word, and the control state as it knows it. `tokens` are of the same state
    /// as `view`.
    pub(crate) fn observe(
        &mut self,
        host: &'static str,
        status: &NodeStatus,
        view: &ClusterView,
        tokens: impl FnOnce() -> Vec<TokenId>,
    ) {
        let mut found = self.epochs.observe(host, status, view.writer);
        found.extend(self.control.observe(host, status.boot, view, tokens));
        self.violations.extend(found);
    }

    /// Looks at what an engine has applied.
    pub(crate) fn observe_contents(&mut self, host: &'static str, engine: &MemoryEngine) {
        use skeinmesh::engine::StorageEngine as _;
        let (contents, applied) = (payloads(engine), engine.applied());
        let mut found = i3::judge(host, &contents, applied);
        found.extend(self.history.observe(host, &contents));
        found.extend(i6::judge(host, &contents, applied, &self.history));
        self.violations.extend(found);
    }

    /// What clients were answered, and how often.
    pub(crate) fn tell(&self, counts: &mut Counts) {
        let count = |what: fn(&Outcome) -> bool| self.count(what) as u64;
        counts.add("acked", count(|o| o.lasting().is_some()));
        for level in AckLevel::EVERY {
            let at_it = |o: &Outcome| matches!(o, Outcome::Acked(_, reached) if *reached == level);
            counts.add(&format!("acked-{level}"), self.count(at_it) as u64);
        }
        counts.add("refused", count(|o| matches!(o, Outcome::Refused(_))));
        counts.add("refused-full", count(|o| matches!(o, Outcome::Refused(why) if why.contains("full"))));
        counts.add("unknown", count(|o| matches!(o, Outcome::Unknown)));
        counts.add("spared", self.spared);
        counts.add("claimed", self.claimed);
        counts.add("offices", self.epochs.offices() as u64);
        self.reads.answered.iter().for_each(|(kind, times)| counts.add(kind, *times));
    }

    pub(crate) fn violated(&mut self, says: String) {
        self.violations.push(says);
    }
}

/// The batches an engine holds, by position.
pub(crate) fn payloads(engine: &MemoryEngine) -> Contents {
    let batch = |(at, operation)| match operation {
        Operation::Batch { payload, .. } => Some((at, payload)),
        _ => None,
    };
    engine.contents().into_iter().filter_map(batch).collect()
}

/// Batches by position.
pub(crate) type Contents = BTreeMap<Lsn, Bytes>;
/// Which process holds an office.
pub(crate) type Process = (NodeId, BootId);
/// Who was seen in which epoch.
pub(crate) type Offices = BTreeMap<Epoch, Process>;

/// Which write a payload is, without what fills it up.
pub(crate) fn head(payload: &Bytes) -> String {
    String::from_utf8_lossy(payload).trim_end_matches(['x', ' ']).to_owned()
}
