//! What may go wrong at a call of a [`super::SimDisk`].

use std::io;

/// What goes wrong at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO. A durable write that meets it is in the page cache, marked clean: a later sync
    /// succeeds without writing it.
    Eio,
    /// ENOSPC. The call has no effect.
    Enospc,
    /// A write is cut short: half of its bytes are in the page cache, not synced, and it ends with
    /// ENOSPC. So does every other call, without effect.
    Short,
    /// The machine stops during the call: what the call writes is not synced, and every later
    /// call fails until [`super::SimDisk::crash`] or [`super::SimDisk::kill`].
    PowerCut,
}

/// The error of a fault that lets a call have no effect.
pub(super) fn refuse(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        Some(Fault::Eio) => Err(io::Error::other("simulated EIO")),
        Some(Fault::Enospc | Fault::Short) => Err(io::ErrorKind::StorageFull.into()),
        Some(Fault::PowerCut) | None => Ok(()),
    }
}

/// The error of a power cut, for after what the call leaves behind.
pub(super) fn cut(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        Some(Fault::PowerCut) => Err(io::Error::other("simulated power cut")),
        _ => Ok(()),
    }
}
