//! Reading from any position: from memory if recent, else from the segment files.

use std::{io, sync::Arc};

use super::{
    DamagedRecord,
    record::Record,
    segment::{Cursor, NoRecord},
    state::{Shared, State},
};

/// Why a reader stops. After [`ReadError::Io`] a read may be tried again; the others stay.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log no longer reaches back that far.
    #[error("the log begins at record {first_seq} now")]
    Retired {
        /// First seq still there.
        first_seq: u64,
    },
    /// Records this reader has returned were cut off.
    #[error("the log was cut behind record {keep}")]
    Cut {
        /// Last record that was kept.
        keep: u64,
    },
    /// A record on disk is damaged.
    #[error("record {seq} in {segment} is damaged ({reason})")]
    Damaged {
        /// Which record.
        seq: u64,
        /// In which file.
        segment: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk.
    #[error("reading the log: {0}")]
    Io(#[from] io::Error),
}

/// Reads the log forward. It sees records as soon as they are appended, durable or not, and does
/// not keep the log from ending or retiring.
#[derive(Debug)]
pub struct WalReader {
    shared: Arc<Shared>,
    next: u64,
    /// Number of cuts of which this reader knows that they do not concern it.
    cuts: usize,
    /// First seq of the segment being read, and the place in it of the record `next`.
    place: Option<(u64, Cursor)>,
}

/// Where the next records are.
enum Source {
    Nowhere,
    Memory(Vec<Record>),
    /// A segment, up to this seq.
    File(Box<(String, Cursor, u64, u64)>),
}

impl WalReader {
    pub(super) fn new(shared: Arc<Shared>, from_seq: u64) -> Self {
        let cuts = shared.lock().cuts.len();
        Self { shared, next: from_seq.max(1), cuts, place: None }
    }

    /// Seq of the record that the next read starts with.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next records, at least one if there is one and not more than `max_bytes` of replicated
    /// parts beyond the first. Empty at the end of the log. Dropping the future loses nothing.
    pub async fn read(&mut self, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
        loop {
            match self.source(max_bytes)? {
                Source::Nowhere => return Ok(Vec::new()),
                Source::Memory(records) => {
                    self.next += records.len() as u64;
                    return Ok(records);
                }
                Source::File(file) => {
                    let (name, cursor, first_seq, last_seq) = *file;
                    if let Some(records) =
                        self.read_file(name, cursor, first_seq, last_seq, max_bytes).await?
                    {
                        return Ok(records);
                    }
                }
            }
        }
    }

    fn source(&mut self, max_bytes: usize) -> Result<Source, ReadError> {
        let shared = self.shared.clone();
        let state = shared.lock();
        self.check(&state)?;
        if self.next > state.end.seq {
            return Ok(Source::Nowhere);
        }
        if state.in_tail(self.next).is_some() {
            let (mut records, mut bytes) = (Vec::new(), 0);
            for record in state.tail_from(self.next) {
                bytes += record.raw.len();
                if bytes > max_bytes && !records.is_empty() {
                    break;
                }
                records.push(record.clone());
            }
            return Ok(Source::Memory(records));
        }
        // What is not in memory is durable and in a segment.
        let Some(segment) = state.segment_of(self.next).filter(|s| s.last_seq >= self.next) else {
            return Err(ReadError::Io(io::Error::other(format!("record {} is in no segment", self.next))));
        };
        let first_seq = segment.header.first_seq;
        let cursor = match self.place.take() {
            Some((first, mut cursor)) if first == first_seq => {
                cursor.extend(segment.end);
                cursor
            }
            _ => Cursor::new(segment, segment.near(self.next).1, segment.end),
        };
        let name = segment.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Source::File(Box::new((name, cursor, first_seq, segment.last_seq))))
    }

    /// `None`: something was cut meanwhile, look again.
    async fn read_file(
        &mut self,
        segment: String,
        mut cursor: Cursor,
        first_seq: u64,
        last_seq: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<Record>>, ReadError> {
        let (mut records, mut bytes, mut offset) = (Vec::<Record>::new(), 0, cursor.offset);
        let outcome = loop {
            let wanted = self.next + records.len() as u64;
            if wanted > last_seq {
                break Ok(());
            }
            offset = cursor.offset;
            match cursor.next().await {
                Ok(record) if record.lsn.seq < wanted => {}
                Ok(record) if record.lsn.seq > wanted => {
                    break Err((wanted, "another record is in its place".into()));
                }
                Ok(record) => {
                    bytes += record.raw.len();
                    if bytes > max_bytes && !records.is_empty() {
                        break Ok(());
                    }
                    offset = cursor.offset;
                    records.push(record);
                }
                Err(NoRecord::Io(error)) => return Err(error.into()),
                Err(NoRecord::Nothing) => break Err((wanted, "its header does not verify".to_owned())),
                Err(NoRecord::Damaged(e) | NoRecord::Foreign(e)) => break Err((wanted, e.to_string())),
            }
        };
        let shared = self.shared.clone();
        let state = shared.lock();
        // What was cut or retired meanwhile may have been read half gone.
        let before = self.cuts;
        self.check(&state)?;
        if self.cuts != before {
            return Ok(None);
        }
        if let (Err((seq, reason)), true) = (outcome, records.is_empty()) {
            let found = DamagedRecord { seq, segment: segment.clone(), reason: reason.clone() };
            shared.note_damage(&state, found);
            return Err(ReadError::Damaged { seq, segment, reason });
        }
        cursor.offset = offset;
        self.place = Some((first_seq, cursor));
        self.next += records.len() as u64;
        Ok(Some(records))
    }

    fn check(&mut self, state: &State) -> Result<(), ReadError> {
        let missed = state.cuts.get(self.cuts..).unwrap_or_default();
        if let Some(keep) = missed.iter().copied().filter(|keep| keep + 1 < self.next).min() {
            return Err(ReadError::Cut { keep });
        }
        if !missed.is_empty() {
            self.cuts = state.cuts.len();
            self.place = None;
        }
        if self.next < state.first_seq() {
            return Err(ReadError::Retired { first_seq: state.first_seq() });
        }
        Ok(())
    }
}
