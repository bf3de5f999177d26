//! The file `vote`: for whom this node has voted, in which term.
//!
//! Two slots (`disk/slots.rs`) of a file that is allocated once, so that a node whose disk is full can
//! still vote. A slot's numbers are: 1 if there is a vote; its term; the node voted for, as two
//! halves; 1 if a quorum granted it; 0. Both slots are written for each vote, one after the other, so
//! that damage to either cannot bring back an older one.
//!
//! It was a CRC-32C and a MessagePack map once, replaced as a whole. Such a file is still read, and
//! replaced by one with slots when the log is opened.

use std::{io, path::Path};

use bytes::Bytes;
use openraft::impls::leader_id_std::LeaderId;
use serde::{Deserialize, Serialize};

use super::type_config::Vote;
use crate::{
    disk::{Disk, SLOTS_LEN, SlotValues, Slots, SlotsError, read_file},
    protocol::frame,
    types::NodeId,
};

/// Name of the file.
pub(super) const VOTE: &str = "vote";
const MAGIC: [u8; 4] = *b"SKVO";

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// The vote, if there was one.
    pub(super) vote: Option<Vote>,
    /// The file has slots.
    slots: bool,
}

/// Content of a file without slots.
#[derive(Serialize, Deserialize)]
struct Former {
    vote: Vote,
}

/// Reads the file in `dir`; `Ok(None)` if it does not verify.
pub(super) async fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Found>> {
    let path = dir.join(VOTE);
    let bytes = read_file(disk, &path, SLOTS_LEN).await?;
    if bytes.len() as u64 != SLOTS_LEN {
        return Ok(decode_former(&bytes).map(|vote| Found { vote: Some(vote), slots: false }));
    }
    match Slots::open(disk, &path, MAGIC).await {
        Ok((_, values)) => Ok(from_values(values).map(|vote| Found { vote, slots: true })),
        Err(SlotsError::Damaged(_)) => Ok(None),
        Err(SlotsError::Io(error)) => Err(error),
    }
}

/// Opens the file in `dir` for writing, durably as it was `found`.
pub(super) async fn open(disk: &dyn Disk, dir: &Path, found: Option<Found>) -> io::Result<VoteFile> {
    let vote = found.and_then(|found| found.vote);
    if found.is_none_or(|found| !found.slots) {
        replace(disk, dir, vote).await?;
    }
    let (mut slots, _) = Slots::open(disk, &dir.join(VOTE), MAGIC).await.map_err(whole)?;
    // The page cache is not the disk, and a write that was cut short left two different slots.
    slots.write_both(values(vote)).await?;
    Ok(VoteFile(slots))
}

/// Replaces the file in `dir`, of a node that does not run.
pub(super) async fn replace(disk: &dyn Disk, dir: &Path, vote: Option<Vote>) -> io::Result<()> {
    Slots::create(disk, &dir.join(VOTE), MAGIC, values(vote)).await
}

/// The open file.
#[derive(Debug)]
pub(super) struct VoteFile(Slots);

impl VoteFile {
    /// Writes a vote, durable when this returns. Needs no space. An error is final.
    pub(super) async fn write(&mut self, vote: Vote) -> io::Result<()> {
        self.0.write_both(values(Some(vote))).await
    }
}

fn values(vote: Option<Vote>) -> SlotValues {
    let Some(vote) = vote else { return SlotValues::default() };
    let node = u128::from_be_bytes(vote.leader_id.voted_for.0);
    [1, vote.leader_id.term, (node >> 64) as u64, node as u64, u64::from(vote.committed), 0]
}

/// `None` for numbers that no vote makes.
fn from_values([there, term, high, low, committed, rest]: SlotValues) -> Option<Option<Vote>> {
    if there > 1 || committed > 1 || rest != 0 {
        return None;
    }
    let node = NodeId((u128::from(high) << 64 | u128::from(low)).to_be_bytes());
    let leader_id = LeaderId { term, voted_for: node };
    Some((there == 1).then_some(Vote { leader_id, committed: committed == 1 }))
}

fn decode_former(bytes: &Bytes) -> Option<Vote> {
    let (crc, payload) = bytes.split_first_chunk::<4>()?;
    if crc32c::crc32c(payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    frame::decode::<Former>(payload, SLOTS_LEN as usize).ok().map(|file| file.vote)
}

/// The file was made just now.
fn whole(error: SlotsError) -> io::Error {
    match error {
        SlotsError::Io(error) => error,
        SlotsError::Damaged(path) => {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} does not verify", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_votes_are_the_same() {
        let node = NodeId([0x81; 16]);
        for vote in [None, Some(Vote::new(7, node)), Some(Vote::new_committed(u64::MAX, node))] {
            assert_eq!(from_values(values(vote)), Some(vote));
        }
        for wrong in [[2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 2, 0], [1, 0, 0, 0, 0, 1]] {
            assert_eq!(from_values(wrong), None);
        }
    }
}
