//! What a power cut leaves of one file: the platter under [`super::SimDisk`].

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use rand::{Rng, rngs::StdRng};

/// Granularity at which a power cut tears a write.
pub(super) const SECTOR: u64 = 512;

/// One file's bytes: those a process sees, those on the platter, and what lies between.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) seen: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) unsynced: Vec<Change>,
}

/// Something that was done to a file.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Bytes at an offset.
    Write(u64, Bytes),
    /// A new length.
    Resize(u64),
}

impl Inode {
    /// Everything reaches the platter.
    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// The sectors that are the same in cache and on the platter and hold more than zeros.
    pub(super) fn sectors_at_rest(&self) -> Vec<Range<u64>> {
        let platter = self.durable.chunks(SECTOR as usize).zip((0..).step_by(SECTOR as usize));
        let at_rest = platter.filter(|(bytes, at)| {
            let from = *at as usize;
            bytes.iter().any(|b| *b != 0) && self.seen.get(from..from + bytes.len()) == Some(*bytes)
        });
        at_rest.map(|(bytes, at)| at..at + bytes.len() as u64).collect()
    }

    /// Decides what of the unsynced changes reached the platter. Within one sector they arrive in
    /// order (the page cache holds one version); between sectors, and for the length, anything goes.
    /// True if something may be torn.
    pub(super) fn crash(&mut self, random: &mut StdRng) -> bool {
        let unsynced = std::mem::take(&mut self.unsynced);
        let (all, fate) = (unsynced.len(), random.random_range(0..4));
        match fate {
            0 => {}
            1 => unsynced.iter().for_each(|change| change.apply(&mut self.durable)),
            _ => {
                let sized = random.random_range(0..=all);
                let mut len = self.durable.len() as u64;
                let mut reached: BTreeMap<u64, usize> = BTreeMap::new();
                for (nth, change) in unsynced.iter().enumerate() {
                    match change {
                        Change::Resize(to) if nth < sized => {
                            len = *to;
                            self.durable.truncate(*to as usize);
                        }
                        Change::Resize(_) => {}
                        Change::Write(offset, bytes) => {
                            let end = offset + bytes.len() as u64;
                            if nth < sized {
                                len = len.max(end);
                            }
                            for sector in offset / SECTOR..end.div_ceil(SECTOR) {
                                let until =
                                    *reached.entry(sector).or_insert_with(|| random.random_range(0..=all));
                                if nth < until {
                                    let from = (sector * SECTOR).max(*offset);
                                    let to = ((sector + 1) * SECTOR).min(end);
                                    let part = bytes.slice((from - offset) as usize..(to - offset) as usize);
                                    Change::Write(from, part).apply(&mut self.durable);
                                }
                            }
                        }
                    }
                }
                self.durable.resize(len as usize, 0);
            }
        }
        self.seen = self.durable.clone();
        all > 0 && fate > 1
    }
}

impl Change {
    /// Does it to an image of the file.
    pub(super) fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Resize(len) => image.resize(*len as usize, 0),
            Self::Write(offset, bytes) => {
                let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                if image.len() < to {
                    image.resize(to, 0);
                }
                image[from..to].copy_from_slice(bytes);
            }
        }
    }
}
