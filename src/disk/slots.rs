//! A small file with two slots, one of which is always whole: the promise and the watermark of the
//! log, and raft's vote.
//!
//! 8192 bytes, slots at 0 and 4096. A slot, little endian: magic 4, CRC-32C u32 over what follows,
//! generation u64, six u64 values. The valid slot with the highest generation counts. The file is
//! allocated once, so that writing to it cannot run out of space.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use crc32c::crc32c;

use super::{Create, Disk, DiskFile, Durability, read_file, replace_file};

/// What a slot holds.
pub(crate) type Values = [u64; 6];

/// Length of the file.
pub(crate) const SLOTS_LEN: u64 = 2 * SLOT as u64;
const SLOT: usize = 4096;
const USED: usize = 64;

/// An open two-slot file.
#[derive(Debug)]
pub(crate) struct Slots {
    magic: [u8; 4],
    file: Arc<dyn DiskFile>,
    generation: u64,
}

/// Why a two-slot file cannot be read.
#[derive(Debug)]
pub(crate) enum SlotsError {
    /// Neither slot is whole.
    Damaged(PathBuf),
    Io(io::Error),
}

impl From<io::Error> for SlotsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Slots {
    /// Makes the file, whole or not at all, durable when this returns.
    pub(crate) async fn create(
        disk: &dyn Disk,
        path: &Path,
        magic: [u8; 4],
        values: Values,
    ) -> io::Result<()> {
        let mut bytes = BytesMut::with_capacity(2 * SLOT);
        for generation in 1..=2 {
            bytes.extend_from_slice(&encode(magic, generation, values));
            bytes.resize(generation as usize * SLOT, 0);
        }
        replace_file(disk, path, bytes.freeze()).await
    }

    /// Opens the file and reads what counts.
    pub(crate) async fn open(
        disk: &dyn Disk,
        path: &Path,
        magic: [u8; 4],
    ) -> Result<(Self, Values), SlotsError> {
        let bytes = read_file(disk, path, SLOTS_LEN).await?;
        let slots = [bytes.get(..USED), bytes.get(SLOT..SLOT + USED)];
        let newest = slots.into_iter().flatten().filter_map(|slot| decode(magic, slot)).max_by_key(|s| s.0);
        let (generation, values) = newest.ok_or_else(|| SlotsError::Damaged(path.to_owned()))?;
        let file = disk.open(path, Create::No).await?;
        Ok((Self { magic, file, generation }, values))
    }

    /// Writes the older slot, durable when this returns. An error is final.
    pub(crate) async fn write(&mut self, values: Values) -> io::Result<()> {
        self.generation += 1;
        let slot = encode(self.magic, self.generation, values);
        let offset = if self.generation % 2 == 1 { 0 } else { SLOT as u64 };
        self.file.write(offset, vec![slot], Durability::Now).await
    }

    /// Writes both slots, one after the other, so that damage to either cannot bring back an
    /// older state.
    pub(crate) async fn write_both(&mut self, values: Values) -> io::Result<()> {
        self.write(values).await?;
        self.write(values).await
    }
}

fn encode(magic: [u8; 4], generation: u64, values: Values) -> Bytes {
    let mut slot = BytesMut::with_capacity(USED);
    slot.put_slice(&magic);
    slot.put_u32_le(0);
    slot.put_u64_le(generation);
    values.iter().for_each(|value| slot.put_u64_le(*value));
    let crc = crc32c(&slot[8..]).to_le_bytes();
    slot[4..8].copy_from_slice(&crc);
    slot.freeze()
}

fn decode(magic: [u8; 4], slot: &[u8]) -> Option<(u64, Values)> {
    let (found, rest) = slot.get(..USED)?.split_first_chunk::<4>()?;
    let (crc, body) = rest.split_first_chunk::<4>()?;
    if *found != magic || crc32c(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut numbers = body.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
    let generation = numbers.next()?;
    let mut values = Values::default();
    for value in &mut values {
        *value = numbers.next()?;
    }
    Some((generation, values))
}
