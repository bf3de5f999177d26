//! Bytes of the raft log file: records with length, checksum and the group they were written in.
//!
//! A record is `len u32, crc u32, group u64, payload`, little-endian; the checksum covers the
//! rest. `group` is the file offset at which the write that carried the record began: because a
//! group is written only after the one before it is durable, a damaged record that is followed by
//! records of *later* groups was once durable and is corruption, while one followed only by
//! records of its own group is the torn end of a write that nobody was told about.
//!
//! Behind the last record the file is zeros, allocated for what comes.

use serde::{Deserialize, Serialize};

use super::type_config::{Entry, LogId};
use crate::protocol::frame;

/// First bytes of the file: magic and format version.
pub(super) const MAGIC: [u8; 8] = *b"skraft\x00\x01";
/// Bytes before a payload.
pub(super) const HEADER: usize = 16;
/// Longest payload; one raft message must be able to carry it.
pub(super) const MAX_PAYLOAD: usize = frame::MAX_RAFT;

/// What a payload says. The log is what these make when played in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Record {
    /// The next entry.
    Entry(Box<Entry>),
    /// Entries behind this one are gone (all of them for `None`).
    TruncateAfter(Option<LogId>),
    /// Entries up to and with this one are in a snapshot.
    Purge(LogId),
    /// Entries up to this one are committed.
    Committed(Option<LogId>),
}

/// The bytes in front of a payload written in the group that begins at `group`.
pub(super) fn header(payload: &[u8], group: u64) -> [u8; HEADER] {
    let len = (payload.len() as u32).to_le_bytes();
    let group = group.to_le_bytes();
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&len);
    header[4..8].copy_from_slice(&checksum(&len, &group, payload).to_le_bytes());
    header[8..].copy_from_slice(&group);
    header
}

/// A file whose bytes were durable once and are not what they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record at offset {at} is damaged, but records written later (offset {behind}) are whole")]
pub(super) struct Damage {
    at: usize,
    behind: usize,
}

/// Where the zeros begin that are allocated behind what was written.
pub(super) fn written(file: &[u8]) -> usize {
    const STEP: usize = 4096;
    const ZEROS: [u8; STEP] = [0; STEP];
    let zeros =
        file.rchunks(STEP).take_while(|chunk| ZEROS.starts_with(chunk)).map(<[u8]>::len).sum::<usize>();
    let rest = file.get(..file.len() - zeros).unwrap_or_default();
    rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// What a file holds.
pub(super) struct Scan<'a> {
    pub(super) payloads: Vec<&'a [u8]>,
    /// Where they end: at the end of what was written, or where a torn write begins.
    pub(super) end: usize,
    /// Where the last whole record's group begins: what is before was durable when it was written.
    pub(super) last_group: usize,
}

/// Reads `file` behind its magic. Behind `written` it is all zeros.
pub(super) fn scan(file: &[u8], written: usize) -> Result<Scan<'_>, Damage> {
    let mut payloads = Vec::new();
    let mut at = MAGIC.len();
    let mut last_group = at;
    while at < file.len() {
        let Some((payload, group)) = record_at(file, at) else { break };
        payloads.push(payload);
        // No group begins behind its own record; a file that says so is only written again as a whole.
        last_group = usize::try_from(group).ok().filter(|group| *group <= at).unwrap_or(MAGIC.len());
        at += HEADER + payload.len();
    }
    for behind in at + 1..written {
        if record_at(file, behind).is_some_and(|(_, group)| group > at as u64) {
            return Err(Damage { at, behind });
        }
    }
    Ok(Scan { payloads, end: at, last_group })
}

/// The whole record at `at`: its payload and group.
fn record_at(file: &[u8], at: usize) -> Option<(&[u8], u64)> {
    let (header, rest) = file.get(at..)?.split_first_chunk::<HEADER>()?;
    let (len, tail) = header.split_first_chunk::<4>()?;
    let (crc, group) = tail.split_first_chunk::<4>()?;
    let group: &[u8; 8] = group.try_into().ok()?;
    let bytes = u32::from_le_bytes(*len) as usize;
    if bytes == 0 || bytes > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(..bytes)?;
    (checksum(len, group, payload) == u32::from_le_bytes(*crc))
        .then_some((payload, u64::from_le_bytes(*group)))
}

fn checksum(len: &[u8; 4], group: &[u8; 8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(len), group), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of payloads as the writer lays them out.
    fn file(groups: &[&[&str]]) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        for group in groups {
            let start = file.len() as u64;
            for payload in *group {
                file.extend(header(payload.as_bytes(), start));
                file.extend(payload.as_bytes());
            }
        }
        file
    }

    #[test]
    fn every_cut_of_the_last_group_is_a_torn_tail() {
        let whole = file(&[&["one", "two"], &["three", "four"]]);
        let found = scan(&whole, whole.len()).unwrap();
        assert_eq!((found.payloads.len(), found.last_group), (4, file(&[&["one", "two"]]).len()));
        let durable = file(&[&["one", "two"]]).len();
        for len in durable..whole.len() {
            let Scan { payloads, end, .. } = scan(&whole[..len], len).unwrap();
            assert!(payloads.len() >= 2 && end <= len, "cut to {len}");
        }
    }

    #[test]
    fn a_flipped_bit_is_torn_in_the_last_group_and_corruption_before_it() {
        let whole = file(&[&["one", "two"], &["three", "four"]]);
        let last = file(&[&["one", "two"]]).len();
        for at in MAGIC.len()..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 4;
            match scan(&bent, bent.len()) {
                Ok(Scan { payloads, end, .. }) => {
                    assert!(at >= last && end >= last && payloads.len() < 4, "bit {at} went unseen");
                }
                Err(_) => assert!(at < last, "a write that was never acknowledged stops the start"),
            }
        }
    }

    #[test]
    fn zeros_behind_the_end_are_neither_records_nor_torn() {
        let whole = file(&[&["one", "two"], &["ends in zeros\0\0"]]);
        for more in [0, 1, 4095, 4096, 10_000] {
            let mut file = whole.clone();
            file.resize(whole.len() + more, 0);
            let written = written(&file);
            assert_eq!(written, whole.len() - 2);
            let Scan { payloads, end, .. } = scan(&file, written).unwrap();
            assert_eq!((payloads.len(), end), (3, whole.len()));
        }
        assert_eq!(written(&[0; 5000]), 0);
    }
}
