//! Zeros written ahead of small groups.
//!
//! A segment's blocks are allocated, but the file system counts them as never written. The first group in a
//! block changes that, and its fdatasync waits for what the file system notes of it, through a journal if there
//! is one, as well as for the data. So a small group takes zeros along, and those behind it are written over them:
//! ext4 has nothing to note then. Behind the last record of a segment there are zeros either way.

use std::ops::Range;

use bytes::Bytes;

/// Bytes of zeros at a time: few enough to be written with a group, enough for many small ones.
const AHEAD: u64 = 256 << 10;
/// A group of fewer bytes is small: up to a hundred single rows. What is larger would be written twice for little.
const SMALL: u64 = 16 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How far a segment has been written with zeros.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// First seq of the segment.
    segment: u64,
    until: u64,
}

impl Ahead {
    /// What to write behind the group at these offsets of the segment that begins with `segment` and has `len`
    /// bytes. Empty if it lies in zeros that have been written, or is not small.
    pub(super) fn behind(&mut self, segment: u64, len: u64, group: Range<u64>) -> Vec<Bytes> {
        if self.segment != segment {
            *self = Self { segment, until: 0 };
        }
        if group.end <= self.until || group.end - group.start >= SMALL {
            return Vec::new();
        }
        self.until = (group.end + AHEAD).min(len).max(group.end);
        zeros(self.until - group.end)
    }
}

/// So many zeros, in pieces.
pub(super) fn zeros(mut left: u64) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while left > 0 {
        let piece =
            Bytes::from_static(&ZEROS).split_to(usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len()));
        left -= piece.len() as u64;
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pieces: &[Bytes]) -> u64 {
        assert!(pieces.iter().flatten().all(|byte| *byte == 0));
        pieces.iter().map(|piece| piece.len() as u64).sum()
    }

    #[test]
    fn small_groups_share_what_one_of_them_has_written() {
        let (mut ahead, len) = (Ahead::default(), 1 << 20);
        let mut behind = |segment, group| written(&ahead.behind(segment, len, group));
        assert_eq!(behind(1, 4_096..5_000), AHEAD);
        assert_eq!(behind(1, 5_000..9_000), 0);
        assert_eq!(behind(1, 9_000..5_000 + AHEAD), 0);
        assert_eq!(behind(1, 5_000 + AHEAD..5_001 + AHEAD), AHEAD);
        assert_eq!(behind(1, 500_000..500_000 + SMALL), 0, "a large one");
        assert_eq!(behind(1, len - 1_000..len - 400), 400, "the segment ends there");
        assert_eq!(behind(1, len - 400..len), 0);
        assert_eq!(behind(9, 4_096..5_000), AHEAD, "another segment");
        // A record larger than a segment has one of its own.
        assert_eq!(behind(9, 4_096..len + 5), 0);
    }
}
