//! Bits of a [`SimDisk`] that flip at rest.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::disk::SimDisk;

/// The bit that [`SimDisk::rot`] flipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rot {
    /// In this file,
    pub path: PathBuf,
    /// in this byte,
    pub offset: u64,
    /// this bit, 0 to 7.
    pub bit: u8,
}

impl SimDisk {
    /// Flips one bit, on the platter too. False if the file is not that long.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut machine = self.lock();
        let Some(inode) = machine.named(path) else { return false };
        let mut flipped = false;
        for image in [&mut inode.seen, &mut inode.durable] {
            if let Some(byte) = image.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        }
        flipped
    }

    /// Lets one bit of a synced file rot at rest: flips it on the platter and in what a process
    /// reads next. `under` is a file, or a directory whose files (at any depth) are candidates;
    /// `dice` decides which file, byte and bit. Only bytes that are durable come into question,
    /// and only sectors that hold something, because preallocated space would swallow nearly
    /// every throw. The same disk and dice give the same bit; `None` if there is nothing to rot.
    pub fn rot(&self, under: &Path, dice: u64) -> Option<Rot> {
        let mut random = StdRng::seed_from_u64(dice);
        let (path, sectors) = {
            let machine = self.lock();
            let synced = machine.names.iter().filter(|(path, number)| {
                path.starts_with(under) && machine.durable_names.get(*path) == Some(*number)
            });
            let candidates = synced.filter_map(|(path, number)| {
                let sectors = machine.inodes.get(number)?.sectors_at_rest();
                (!sectors.is_empty()).then(|| (path.clone(), sectors))
            });
            let mut candidates: Vec<(PathBuf, Vec<Range<u64>>)> = candidates.collect();
            if candidates.is_empty() {
                return None;
            }
            candidates.swap_remove(random.random_range(0..candidates.len()))
        };
        let sector = sectors.get(random.random_range(0..sectors.len()))?.clone();
        let (offset, bit) = (random.random_range(sector), random.random_range(0..8));
        self.flip(&path, offset, bit).then_some(Rot { path, offset, bit })
    }
}
