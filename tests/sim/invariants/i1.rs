//! I1: what was acknowledged is not lost, to the extent that its level promises.
//!
//! `quorum` and `all`: on every node in the end, where the receipt says. `memory` and `local`: the same,
//! unless the epoch ended below that position, so that the record was cut as one that no majority had;
//! at `local`, which is on the disk of the writer, only if another node took office then.

use skeinmesh::{
    node::AckLevel,
    types::{Epoch, EpochTable},
};

use crate::ledger::{Contents, Outcome, Written, head};

/// `epochs`: the epoch starts of the final log. `kept` tells whether from an epoch on nobody held
/// office but the node that held that one.
pub(crate) fn judge(
    host: &str,
    contents: &Contents,
    writes: &[Written],
    epochs: &EpochTable,
    kept: impl Fn(Epoch) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (number, write) in writes.iter().enumerate() {
        for attempt in &write.attempts {
            let Outcome::Acked(at, level) = attempt.outcome else { continue };
            if contents.get(&at) == Some(&write.payload) {
                continue;
            }
            let may_be_lost = match level {
                AckLevel::Memory => !epochs.holds(at, u64::MAX),
                AckLevel::Local => !epochs.holds(at, u64::MAX) && !kept(at.epoch),
                AckLevel::Quorum | AckLevel::All => false,
            };
            if !may_be_lost {
                let there: Option<String> = contents.get(&at).map(head);
                let moment = attempt.answered.as_secs_f64();
                found.push(format!(
                    "I1: write {number} was acknowledged at {at} ({level:?}) on {} after {moment:.3} s; there \
                     {host} holds {there:?}",
                    attempt.host
                ));
            }
        }
    }
    found
}

/// On how many of these disks an acknowledged record is at the moment of the answer: a majority's, at
/// `all` every voter's.
pub(crate) fn on_platters(
    write: usize,
    at: impl std::fmt::Display,
    level: AckLevel,
    have: usize,
    voters: usize,
) -> Option<String> {
    let want = if level == AckLevel::All { voters } else { voters / 2 + 1 };
    (have < want).then(|| {
        format!("I1: write {write} was acknowledged at {at} ({level}), but is on {have} of {voters} disks")
    })
}

#[test]
fn a_lost_write_is_seen_and_a_weak_one_may_be_cut() {
    use super::sample::{acked, contents, write};
    use AckLevel::{All, Local, Memory, Quorum};
    let epochs = EpochTable::from_entries(vec![(1, 1), (2, 4)]).unwrap();
    let here = contents(&[(1, 2, "kept"), (2, 5, "other")]);
    let judged = |text, outcome: Outcome, kept: bool| {
        judge("a", &here, &[write(text, &[outcome])], &epochs, |_| kept).len()
    };
    assert_eq!(judged("kept", acked(1, 2, Quorum), false), 0);
    for level in AckLevel::EVERY {
        assert_eq!(judged("lost", acked(1, 3, level), false), 1);
    }
    assert_eq!(judged("replaced", acked(2, 5, Quorum), false), 1);
    assert_eq!(judged("kept", acked(2, 9, Quorum), false), 1, "not where the receipt says");
    // Epoch 1 ended at 4: its record 6 was cut, its record 3 was not. If the same node went on, its own
    // disk had what it had acknowledged at `local`.
    for (level, kept, lost) in [
        (Memory, false, 0),
        (Memory, true, 0),
        (Local, false, 0),
        (Local, true, 1),
        (Quorum, false, 1),
        (All, false, 1),
    ] {
        assert_eq!(judged("cut", acked(1, 6, level), kept), lost, "{level} {kept}");
    }
    assert!(on_platters(1, "1.2", Quorum, 1, 3).is_some() && on_platters(1, "1.2", Quorum, 2, 4).is_some());
    assert!(on_platters(1, "1.2", Quorum, 2, 3).is_none() && on_platters(1, "1.2", All, 2, 3).is_some());
    assert!(on_platters(1, "1.2", All, 3, 3).is_none());
}
