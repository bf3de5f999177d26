//! The watermark (what was surely durable, the last known commit position, a cut under way) and
//! the promise: the meanings of the two two-slot files `watermark` and `promise`.

use super::quarantine::Debt;
use crate::{
    disk::SlotValues as Values,
    types::{Epoch, Lsn},
};

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

/// Content of the file `promise`: what this node must not forget, whatever becomes of its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// Highest epoch promised.
    pub(super) epoch: Epoch,
    /// Set while the log may lack records that this node has acknowledged.
    pub(super) debt: Option<Debt>,
}

impl Promise {
    pub(super) fn values(&self) -> Values {
        let Debt { lost_from, reach } = self.debt.unwrap_or_default();
        [self.epoch, self.debt.is_some() as u64, lost_from, reach.epoch, reach.seq, 0]
    }

    pub(super) fn from_values([epoch, owes, lost_from, e, s, _]: Values) -> Self {
        Self { epoch, debt: (owes != 0).then_some(Debt { lost_from, reach: Lsn::new(e, s) }) }
    }
}
