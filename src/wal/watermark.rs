//! The watermark (what was surely durable, the last known commit position, a cut under way) and
//! the promise: the meanings of the two two-slot files `watermark` and `promise`.

use super::slots::Values;
use crate::types::{Epoch, Lsn};

/// File name and magic of the watermark.
pub(super) const WATERMARK: (&str, [u8; 4]) = ("watermark", *b"SKWM");
/// File name and magic of the promise.
pub(super) const PROMISE: (&str, [u8; 4]) = ("promise", *b"SKPR");

/// Content of the file `watermark`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Watermark {
    /// A record at or below this was durable: if it is bad, that is damage, not a torn write.
    pub(super) durable: Lsn,
    /// Last known commit position.
    pub(super) commit: Lsn,
    /// A cut behind this seq has begun; recovery finishes it before it judges records.
    pub(super) end: Option<u64>,
}

impl Watermark {
    pub(super) fn values(&self) -> Values {
        let Self { durable, commit, end } = self;
        let (cut, end) = (end.is_some() as u64, end.unwrap_or(0));
        [durable.epoch, durable.seq, commit.epoch, commit.seq, cut, end]
    }

    pub(super) fn from_values([de, ds, ce, cs, cut, end]: Values) -> Self {
        Self { durable: Lsn::new(de, ds), commit: Lsn::new(ce, cs), end: (cut != 0).then_some(end) }
    }
}

/// Content of the file `promise`.
pub(super) const fn promise_values(epoch: Epoch) -> Values {
    [epoch, 0, 0, 0, 0, 0]
}
