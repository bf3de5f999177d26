//! The file `base`: where the log begins once its first segments are gone, and the epoch starts
//! before that point, which no segment tells any more.
//!
//! Little endian: magic `SKEINBAS` 8, CRC-32C u32 over what follows, chain value u32, epoch u64
//! and seq u64 of the last record before the log, then (epoch u64, first seq u64) per epoch.
//! It is replaced as a whole.
//!
//! The file `base.next` has the same bytes: the base that the log is to have when the engine has the
//! snapshot that is about to be installed (`anew.rs`).

use std::{io, path::Path};

use bytes::{BufMut, Bytes, BytesMut};
use crc32c::crc32c;

use super::record::Fields;
use crate::{
    disk::{Disk, read_file, replace_file},
    types::{EpochTable, Lsn},
};

/// Name of the file.
pub(super) const BASE: &str = "base";
/// Name of the file of a base that is announced.
pub(super) const NEXT: &str = "base.next";

const MAGIC: &[u8; 8] = b"SKEINBAS";
/// Bytes before the entries.
const HEAD: usize = 32;
/// More epochs than a cluster that fails over every second sees in a month; bounds the read.
const LIMIT: u64 = 64 * 1024 * 1024;

/// The position before the first record of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) lsn: Lsn,
    /// Chain value there.
    pub(super) chain: u32,
    /// Epoch starts at or before it.
    pub(super) epochs: EpochTable,
}

impl Base {
    /// Reads the file of that name; `Ok(None)` if its content is damaged.
    pub(super) async fn load(disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<Option<Self>> {
        Ok(Self::decode(&read_file(disk, &dir.join(name), LIMIT).await?))
    }

    /// Replaces the file of that name.
    pub(super) async fn save(&self, disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<()> {
        replace_file(disk, &dir.join(name), self.encode()).await
    }

    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD + 16 * self.epochs.entries().len());
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(0);
        bytes.put_u32_le(self.chain);
        bytes.put_u64_le(self.lsn.epoch);
        bytes.put_u64_le(self.lsn.seq);
        for (epoch, start) in self.epochs.entries() {
            bytes.put_u64_le(*epoch);
            bytes.put_u64_le(*start);
        }
        let crc = crc32c(&bytes[12..]).to_le_bytes();
        bytes[8..12].copy_from_slice(&crc);
        bytes.freeze()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEAD || !bytes.len().is_multiple_of(16) {
            return None;
        }
        let mut fields = Fields(bytes);
        let (magic, crc) = (fields.take::<8>(), fields.u32());
        if &magic != MAGIC || crc32c(fields.0) != crc {
            return None;
        }
        let (chain, lsn) = (fields.u32(), fields.lsn());
        let entries = fields.0.as_chunks::<16>().0.iter().map(|entry| {
            let start = Fields(entry).lsn();
            (start.epoch, start.seq)
        });
        let epochs = EpochTable::from_entries(entries.collect())?;
        epochs.holds(lsn, lsn.seq).then_some(Self { lsn, chain, epochs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_bytes_and_refuses_others() {
        let epochs = EpochTable::from_entries(vec![(1, 1), (4, 7)]).unwrap();
        let base = Base { lsn: Lsn::new(4, 9), chain: 5, epochs };
        let bytes = base.encode();
        assert_eq!(Base::decode(&bytes), Some(base));
        for at in 0..bytes.len() {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 1;
            assert_eq!(Base::decode(&wrong), None, "byte {at}");
            assert_eq!(Base::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
