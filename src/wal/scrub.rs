//! Reading what lies in sealed segments again, so that damage is found while other nodes still have
//! the records, and not when they are needed.

use std::ops::ControlFlow;

use super::{
    DamagedRecord, ReadError, Wal,
    segment::{Cursor, NoRecord, Segment},
    set_aside::header_verifies,
};
use crate::disk::is_unreadable;

/// What one step of a scrub did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where the next step goes on; `None` behind the last sealed segment.
    pub next: Option<u64>,
    /// Bytes that were read and verify.
    pub bytes: u64,
}

/// The segments that are written no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Their bytes.
    pub bytes: u64,
    /// Of their last record; 0 when there are none.
    pub last_seq: u64,
}

impl Wal {
    /// What is in sealed segments now.
    pub fn sealed(&self) -> Sealed {
        let state = self.shared.lock();
        let count = state.segments.len().saturating_sub(1);
        let last = count.checked_sub(1).and_then(|last| state.segments.get(last));
        Sealed {
            bytes: state.segments.iter().take(count).map(|segment| segment.end).sum(),
            last_seq: last.map_or(0, |segment| segment.last_seq),
        }
    }

    /// Reads records from `from` on, out of the files also where they are in memory, until `bytes`
    /// of them verify or their segment ends; the segment's header with its first record. The segment
    /// that is written is left out: it is read when it is sealed. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadError::Damaged`], which [`Wal::watch_damage`] tells too; [`ReadError::Io`].
    pub async fn scrub(&self, from: u64, bytes: u64) -> Result<Scrubbed, ReadError> {
        let (segment, cuts) = {
            let state = self.shared.lock();
            let at = state.segments.partition_point(|segment| segment.last_seq < from);
            let sealed = state.segments.len().saturating_sub(1);
            (state.segments.get(at).filter(|_| at < sealed).cloned(), state.cuts.len())
        };
        let Some(segment) = segment else { return Ok(Scrubbed { next: None, bytes: 0 }) };
        let from = from.max(segment.header.first_seq);
        let (next, read, bad) = match verify(&segment, from, bytes).await? {
            ControlFlow::Continue((next, read)) => (next, read, None),
            ControlFlow::Break((seq, reason)) => (seq, 0, Some((seq, reason))),
        };
        let Some((seq, reason)) = bad else { return Ok(Scrubbed { next: Some(next), bytes: read }) };
        let state = self.shared.lock();
        // What was cut or retired meanwhile may have been read half gone.
        if state.cuts.len() != cuts || seq < state.first_seq() {
            return Ok(Scrubbed { next: Some(seq), bytes: 0 });
        }
        let segment =
            segment.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let found = DamagedRecord { seq, segment: segment.clone(), reason: reason.clone() };
        self.shared.note_damage(&state, found);
        Err(ReadError::Damaged { seq, segment, reason })
    }
}

/// Where to go on and how many bytes were read, or the record that does not verify.
type Verified = ControlFlow<(u64, String), (u64, u64)>;

async fn verify(segment: &Segment, from: u64, bytes: u64) -> Result<Verified, ReadError> {
    if from == segment.header.first_seq && !header_verifies(segment).await? {
        return Ok(ControlFlow::Break((from, "the header of its segment does not verify".to_owned())));
    }
    let (mut seq, offset) = segment.near(from);
    let mut cursor = Cursor::new(segment, offset, segment.end);
    let mut begin = offset;
    while seq <= segment.last_seq && (seq <= from || cursor.offset - begin < bytes) {
        let reason = match cursor.next().await {
            Ok(record) if record.lsn.seq == seq => {
                if seq < from {
                    // On the way from where the index points to.
                    begin = cursor.offset;
                }
                seq += 1;
                continue;
            }
            Ok(_) => "another record is in its place".to_owned(),
            Err(NoRecord::Io(error)) if is_unreadable(&error) => error.to_string(),
            Err(NoRecord::Io(error)) => return Err(error.into()),
            Err(NoRecord::Nothing) => "its header does not verify".to_owned(),
            Err(NoRecord::Damaged(error) | NoRecord::Foreign(error)) => error.to_string(),
        };
        return Ok(ControlFlow::Break((seq, reason)));
    }
    Ok(ControlFlow::Continue((seq, cursor.offset - begin)))
}
