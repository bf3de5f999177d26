//! How much room a [`SimDisk`] has.

use std::{collections::BTreeSet, io};

use super::disk::{Machine, SimDisk};

/// The limit of a disk, and what came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Space {
    limit: Option<u64>,
    refused: u64,
}

impl SimDisk {
    /// Sets how many bytes all files together may have; growing beyond is ENOSPC.
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.lock().space.limit = bytes;
    }

    /// How many calls got ENOSPC because of the limit so far.
    pub fn refused(&self) -> u64 {
        self.lock().space.refused
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }
}

impl Machine {
    fn used(&self) -> u64 {
        let named: BTreeSet<&u64> = self.names.values().collect();
        named.into_iter().filter_map(|n| self.inodes.get(n)).map(|i| i.seen.len() as u64).sum()
    }

    /// ENOSPC if the file, grown to `end`, would not fit.
    pub(super) fn room_for(&mut self, number: u64, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(self.inode(number)?.seen.len() as u64);
        match self.space.limit {
            Some(limit) if more > 0 && self.used() + more > limit => {
                self.space.refused += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}
