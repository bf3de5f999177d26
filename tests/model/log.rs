//! The replicated log as the model sees it: a record is its epoch and what it is for; its place in
//! the log is its seq.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// Longest log. A step that would need a longer one is not taken.
pub const LONGEST: usize = 8;

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// First record of an epoch; names the membership its writer counts with.
    Start(u8),
    /// `ConfigMark`: from here on the writer counts with that membership.
    Mark(u8),
    /// A client's batch, known by its id.
    Batch(u8),
}

/// One record: epoch in the high byte, kind and value in the low one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Record(u16);

impl Record {
    pub fn new(epoch: u8, body: Body) -> Self {
        let low = match body {
            Body::Start(membership) => 0x80 | membership,
            Body::Mark(membership) => 0x40 | membership,
            Body::Batch(id) => id,
        };
        Self(u16::from(epoch) << 8 | u16::from(low))
    }

    pub fn epoch(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub fn body(self) -> Body {
        let low = (self.0 & 0x3f) as u8;
        match self.0 & 0xc0 {
            0x80 => Body::Start(low),
            0x40 => Body::Mark(low),
            _ => Body::Batch(low),
        }
    }

    /// The membership that a start or a mark names.
    pub fn membership(self) -> Option<u8> {
        match self.body() {
            Body::Start(id) | Body::Mark(id) => Some(id),
            Body::Batch(_) => None,
        }
    }

    pub fn is_batch(self, id: u8) -> bool {
        self.body() == Body::Batch(id)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.body() {
            Body::Start(membership) => write!(f, "{}.start(m{membership})", self.epoch()),
            Body::Mark(membership) => write!(f, "{}.mark(m{membership})", self.epoch()),
            Body::Batch(id) => write!(f, "{}.w{id}", self.epoch()),
        }
    }
}

/// A log, or the first part of one.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Log {
    len: u8,
    /// Zero from `len` on, so that equal logs are equal values.
    records: [Record; LONGEST],
}

impl Log {
    pub fn len(&self) -> u8 {
        self.len
    }

    pub fn is_full(&self) -> bool {
        self.len as usize == LONGEST
    }

    pub fn push(&mut self, record: Record) {
        self.records[self.len as usize] = record;
        self.len += 1;
    }

    pub fn truncate(&mut self, keep: u8) {
        while self.len > keep {
            self.len -= 1;
            self.records[self.len as usize] = Record::default();
        }
    }

    pub fn first(&self, keep: u8) -> Self {
        let mut part = *self;
        part.truncate(keep);
        part
    }

    /// The record at `seq`, which counts from 1.
    pub fn at(&self, seq: u8) -> Record {
        self.records[seq as usize - 1]
    }

    pub fn records(&self) -> &[Record] {
        &self.records[..self.len as usize]
    }

    /// Epoch of the record at `seq`; 0 for seq 0.
    pub fn epoch_at(&self, seq: u8) -> u8 {
        if seq == 0 { 0 } else { self.at(seq).epoch() }
    }

    pub fn last_epoch(&self) -> u8 {
        self.epoch_at(self.len)
    }

    /// True when both hold the same first `upto` records.
    pub fn agrees(&self, other: &Self, upto: u8) -> bool {
        let mut seq = 0;
        while seq < upto as usize {
            if self.records[seq] != other.records[seq] {
                return false;
            }
            seq += 1;
        }
        true
    }

    /// Where `epoch` starts, if it is in the log.
    pub fn start_of(&self, epoch: u8) -> Option<u8> {
        (1..=self.len).find(|seq| self.epoch_at(*seq) == epoch)
    }

    /// Where the first epoch later than `epoch` starts.
    pub fn next_start(&self, epoch: u8) -> Option<u8> {
        (1..=self.len).find(|seq| self.epoch_at(*seq) > epoch)
    }

    /// How much of `follower` is certainly a prefix of this, the sender's log, judged by epoch
    /// starts alone. Within the newest epoch both share, only a *later epoch start* ends the common
    /// part; a shorter sender does not.
    pub fn common_prefix(&self, follower: &Self) -> u8 {
        let mut seq = follower.len;
        while seq > 0 {
            let epoch = follower.epoch_at(seq);
            let start = follower.start_of(epoch);
            if start == self.start_of(epoch) {
                let theirs = follower.next_start(epoch).map_or(follower.len, |next| next - 1);
                return self.next_start(epoch).map_or(theirs, |next| theirs.min(next - 1));
            }
            seq = start.map_or(0, |start| start - 1);
        }
        0
    }
}

impl Hash for Log {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Eight records of two bytes make two words.
        for half in self.records.chunks(4) {
            let word = half.iter().fold(0, |word, record| word << 16 | u64::from(record.0));
            state.write_u64(word);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, record) in self.records().iter().enumerate() {
            write!(f, "{}{record}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}
