//! What a node lacks in the end, and whether the level of its acknowledgement allows that.
//!
//! | level | may be lost |
//! |---|---|
//! | `memory` | when the process that acknowledged it leaves office before a majority has it: its epoch ends below that position |
//! | `local` | the same, and only if another node, or the same with another disk, takes office then |
//! | `quorum`, `all` | never |
//!
//! That an epoch has ended below a position is first the cluster's own word (410). It is not believed
//! if no later epoch was ever seen, or if the same epoch committed that position or one behind it.

use std::collections::{BTreeMap, BTreeSet};

use skeinmesh::types::{Epoch, Lsn};

use super::{Violation, rows::Facts};
use crate::history::{Ack, Final, History, Level, Write};

/// Rows that were acknowledged or read, and are not there.
pub(super) fn of(facts: &Facts<'_>, history: &History, last: &Final) -> Vec<Violation> {
    let rows: BTreeSet<u64> = last.rows.iter().copied().collect();
    let at = format!("n{}", last.node + 1);
    let epochs = Epochs::of(history);
    let mut found = Vec::new();
    for write in history.writes.iter().filter(|write| !rows.contains(&write.n)) {
        let seen = facts.seen.contains_key(&write.n);
        if write.quorum().is_some() {
            found.push(Violation::new("I1", format!("{at} lost an acknowledged row: {write:?}")));
        } else if seen {
            found.push(Violation::new("I5", format!("{at} lacks a row that a read had found: {write:?}")));
        } else if let Some(says) = broken(&epochs, history, write) {
            found.push(Violation::new("I1", format!("{at} lost a row {says}: {write:?}")));
        }
    }
    found
}

/// Positions of which the cluster says that they were cut, and which it had committed.
pub(super) fn believed_lost(history: &History) -> Vec<Violation> {
    let epochs = Epochs::of(history);
    let committed = history.cut.iter().filter(|at| epochs.has_committed(**at));
    committed.map(|at| Violation::new("I9", format!("{at} is said to be lost, and was committed"))).collect()
}

/// The promise that is broken if a row below `quorum` is lost.
fn broken(epochs: &Epochs<'_>, history: &History, write: &Write) -> Option<String> {
    write.acks.iter().find_map(|ack| {
        let why = if !history.cut.contains(&ack.at) {
            "that was not cut"
        } else if ack.at.epoch >= epochs.newest {
            "though no later epoch began"
        } else if epochs.has_committed(ack.at) {
            "though its epoch committed more than it"
        } else if ack.level >= Level::Local && epochs.stayed_with_its_holder(ack) {
            "though nobody else took office"
        } else {
            return None;
        };
        Some(format!("acknowledged at {} {why}", ack.level))
    })
}

/// What is known of epochs.
struct Epochs<'a> {
    history: &'a History,
    newest: Epoch,
    /// Highest seq of each that was certainly committed in it: all below it is too.
    committed: BTreeMap<Epoch, u64>,
}

impl<'a> Epochs<'a> {
    fn of(history: &'a History) -> Self {
        let mut committed: BTreeMap<Epoch, u64> = BTreeMap::new();
        let applied = history.reads.iter().map(|read| read.applied);
        let acked = history.writes.iter().filter_map(|write| Some(write.quorum()?.at));
        let finals = history.finals.iter().map(|last| last.applied);
        for at in applied.chain(acked).chain(finals) {
            let highest = committed.entry(at.epoch).or_default();
            *highest = at.seq.max(*highest);
        }
        let weak = history.writes.iter().flat_map(|write| &write.acks).map(|ack| ack.at.epoch);
        let known = weak.chain(committed.keys().copied()).chain(history.offices.keys().copied());
        Self { newest: known.max().unwrap_or(0), history, committed }
    }

    /// The log of one epoch is the log of one process: what lies before a committed record is.
    fn has_committed(&self, at: Lsn) -> bool {
        self.committed.get(&at.epoch).is_some_and(|seq| at.seq <= *seq)
    }

    /// From this acknowledgement on nobody held office but the node, with the disk, that gave it.
    fn stayed_with_its_holder(&self, ack: &Ack) -> bool {
        if self.history.lone {
            return true;
        }
        let holder = |epoch: Epoch| self.history.offices.get(&epoch).and_then(|them| them.first());
        let same = |epoch| holder(epoch).is_some() && holder(epoch) == holder(ack.at.epoch);
        (ack.at.epoch..=self.newest).all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, sample::*};
    use super::*;

    /// Epoch 1 is n1's and commits up to 6; 7 is acknowledged at that level only, and lost; epoch 2
    /// is held by `next`, epoch 3 too.
    fn lost_in(level: Level, next: &str) -> History {
        let offices = [(1, "n1"), (2, next), (3, next)];
        History {
            writes: vec![
                write(1, 10, Some((1, 6, 15)), Level::Quorum),
                write(2, 20, Some((1, 7, 25)), level),
                write(3, 30, Some((3, 9, 35)), Level::Quorum),
            ],
            finals: vec![last(0, &[1, 3]), last(1, &[1, 3])],
            cut: [Lsn::new(1, 7)].into(),
            offices: offices.map(|(epoch, holder)| (epoch, vec![holder.to_owned()])).into(),
            ..History::default()
        }
    }

    #[track_caller]
    fn wants(history: &History, wanted: &[(&str, &str)]) {
        let found = check(history);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (check, says) in wanted {
            assert!(found.iter().any(|v| v.check == *check && v.says.contains(says)), "{found:#?}");
        }
    }

    #[test]
    fn each_level_may_lose_what_it_does_not_promise_and_no_more() {
        let both = |says| [("I1", says), ("I1", says)];
        wants(&lost_in(Level::Memory, "n2"), &[]);
        // Its process ended, and the next on the same disk never had it.
        wants(&lost_in(Level::Memory, "n1"), &[]);
        wants(&lost_in(Level::Local, "n2"), &[]);
        wants(&lost_in(Level::Local, "n1"), &both("acknowledged at local though nobody else took office"));
        // The same name with an empty disk is somebody else.
        wants(&lost_in(Level::Local, "n1-2"), &[]);
        for level in [Level::Quorum, Level::All] {
            let history = lost_in(level, "n2");
            wants(&history, &[("I1", "n1 lost an"), ("I1", "n2 lost an"), ("I9", "1.7 is said to be lost")]);
        }
    }

    #[test]
    fn an_epoch_of_which_nobody_knows_the_holder_excuses_a_local_loss() {
        let mut history = lost_in(Level::Local, "n1");
        history.offices.remove(&2);
        wants(&history, &[]);
        // A lone node needs nobody's log for that.
        let alone = History { lone: true, ..lost_in(Level::Local, "n1") };
        let mut found = check(&alone);
        found.retain(|v| v.says.contains("nobody else took office"));
        assert_eq!(found.len(), 2, "{found:#?}");
    }

    #[test]
    fn a_cut_is_not_believed_without_a_later_epoch_or_behind_a_commit() {
        for level in [Level::Memory, Level::Local] {
            let both = |says| [("I1", says), ("I1", says)];
            let not_cut = History { cut: BTreeSet::new(), ..lost_in(level, "n2") };
            wants(&not_cut, &both("that was not cut"));
            let mut same_epoch = lost_in(level, "n2");
            same_epoch.writes.pop();
            same_epoch.offices.retain(|epoch, _| *epoch == 1);
            same_epoch.finals.iter_mut().for_each(|last| last.rows.retain(|n| *n == 1));
            wants(&same_epoch, &both("though no later epoch began"));
            let mut committed = lost_in(level, "n2");
            committed.writes.push(write(4, 26, Some((1, 8, 28)), Level::Quorum));
            committed.finals.iter_mut().for_each(|last| last.rows.push(4));
            let [one, other] = both("though its epoch committed more than it");
            wants(&committed, &[one, other, ("I9", "1.7 is said to be lost")]);
        }
    }

    /// Sent again under its key after it was cut, it has a place of its own, with a promise of its own.
    #[test]
    fn every_acknowledgement_has_to_be_excused() {
        let mut history = lost_in(Level::Local, "n2");
        history.writes[1].acks.push(Ack { at: Lsn::new(3, 10), level: Level::Local, when: 40 });
        let says = "acknowledged at local that was not cut";
        wants(&history, &[("I1", says), ("I1", says)]);
    }
}
