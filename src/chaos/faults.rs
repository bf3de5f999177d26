//! The faults there are, and what each needs.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{commands, disk};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of one, of the writer, of all at once.
    Kill,
    KillWriter,
    KillAll,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    PauseWriter,
    /// One node, or the writer, hears and is heard by nobody.
    Isolate,
    IsolateWriter,
    /// Two sides that do not hear each other.
    Halves,
    /// One node hears nobody, or is heard by nobody.
    Deaf,
    Mute,
    /// Two sides that only one node hears both of.
    Bridge,
    /// Each hears its two neighbours only.
    Ring,
    /// Datagrams vanish, take long and overtake each other, arrive twice, arrive damaged.
    Loss,
    Delay,
    Twice,
    Flip,
    /// No space left on one node's disk.
    Full,
    /// SIGTERM and a new start, one after the other.
    Rolling,
    /// One is removed and comes back as a new node.
    Replace,
    /// What was not synced is lost, on one disk or on all at once.
    PowerLoss,
    PowerLossAll,
    /// Every sync of one node fails, or takes long.
    SyncError,
    SyncDelay,
    /// One node's wall clock is wrong for a while.
    Skew,
}

impl Kind {
    pub const ALL: [Self; 24] = [
        Self::Kill,
        Self::KillWriter,
        Self::KillAll,
        Self::Pause,
        Self::PauseWriter,
        Self::Isolate,
        Self::IsolateWriter,
        Self::Halves,
        Self::Deaf,
        Self::Mute,
        Self::Bridge,
        Self::Ring,
        Self::Loss,
        Self::Delay,
        Self::Twice,
        Self::Flip,
        Self::Full,
        Self::Rolling,
        Self::Replace,
        Self::PowerLoss,
        Self::PowerLossAll,
        Self::SyncError,
        Self::SyncDelay,
        Self::Skew,
    ];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillWriter => "kill-writer",
            Self::KillAll => "kill-all",
            Self::Pause => "pause",
            Self::PauseWriter => "pause-writer",
            Self::Isolate => "isolate",
            Self::IsolateWriter => "isolate-writer",
            Self::Halves => "halves",
            Self::Deaf => "deaf",
            Self::Mute => "mute",
            Self::Bridge => "bridge",
            Self::Ring => "ring",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Twice => "twice",
            Self::Flip => "flip",
            Self::Full => "full",
            Self::Rolling => "rolling",
            Self::Replace => "replace",
            Self::PowerLoss => "power-loss",
            Self::PowerLossAll => "power-loss-all",
            Self::SyncError => "sync-error",
            Self::SyncDelay => "sync-delay",
            Self::Skew => "skew",
        }
    }

    /// True if only what passes between nodes is touched.
    pub const fn is_network(self) -> bool {
        matches!(
            self,
            Self::Isolate
                | Self::IsolateWriter
                | Self::Halves
                | Self::Deaf
                | Self::Mute
                | Self::Bridge
                | Self::Ring
                | Self::Loss
                | Self::Delay
                | Self::Twice
                | Self::Flip
        )
    }

    /// Why it cannot be made here.
    fn lacks(self, nodes: usize, disks: disk::Kind) -> Option<&'static str> {
        match self {
            Self::Ring if nodes < 4 => Some("of three nodes everybody is a neighbour"),
            Self::PowerLoss | Self::PowerLossAll if disks != disk::Kind::Ext4 => {
                Some("no ext4 on loop devices here")
            }
            Self::SyncError | Self::SyncDelay if !commands::is_there("strace") => {
                Some("strace is not installed")
            }
            Self::Skew if commands::faketime().is_none() => Some("libfaketime is not installed"),
            _ => None,
        }
    }
}

/// The faults to make, and those that cannot be made, with the reason. `wanted` is empty for all.
pub fn choose(
    wanted: &[Kind],
    nodes: usize,
    disks: disk::Kind,
) -> (Vec<Kind>, BTreeMap<&'static str, &'static str>) {
    let wanted = if wanted.is_empty() { &Kind::ALL[..] } else { wanted };
    let (mut kinds, mut skipped) = (Vec::new(), BTreeMap::new());
    for kind in wanted {
        match kind.lacks(nodes, disks) {
            None => kinds.push(*kind),
            Some(why) => {
                skipped.insert(kind.word(), why);
            }
        }
    }
    (kinds, skipped)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let words = || Self::ALL.map(Self::word).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.word() == word)
            .ok_or_else(|| format!("want one of {}", words()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_what_cannot_be_is_skipped_with_a_reason() {
        for kind in Kind::ALL {
            assert_eq!(kind.word().parse(), Ok(kind));
        }
        assert!("kil".parse::<Kind>().is_err());
        let (kinds, skipped) = choose(&[Kind::Ring, Kind::Kill, Kind::PowerLoss], 3, disk::Kind::Memory);
        assert_eq!(kinds, [Kind::Kill]);
        assert_eq!(skipped.keys().copied().collect::<Vec<_>>(), ["power-loss", "ring"]);
        assert_eq!(choose(&[Kind::Ring], 5, disk::Kind::Memory).0, [Kind::Ring]);
    }
}
