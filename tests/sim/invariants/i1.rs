//! I1: what was acknowledged is not lost, to the extent that its level promises.
//!
//! `quorum` (and above): on every node in the end, where the receipt says. `local`: the same, unless
//! the epoch ended below that position, so that the record was cut as one that no majority had.

use skeinmesh::types::EpochTable;

use crate::ledger::{Contents, Outcome, Written, head};

/// `epochs`: the epoch starts of the final log.
pub(crate) fn judge(host: &str, contents: &Contents, writes: &[Written], epochs: &EpochTable) -> Vec<String> {
    let mut found = Vec::new();
    for (number, write) in writes.iter().enumerate() {
        for attempt in &write.attempts {
            let Outcome::Acked(at, level) = attempt.outcome else { continue };
            if contents.get(&at) == Some(&write.payload) {
                continue;
            }
            let may_be_lost = attempt.outcome.lasting().is_none() && !epochs.holds(at, u64::MAX);
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

/// On how many of these disks an acknowledged record is: a majority's, at the moment of the answer.
pub(crate) fn on_platters(
    write: usize,
    at: impl std::fmt::Display,
    have: usize,
    voters: usize,
) -> Option<String> {
    (have * 2 <= voters)
        .then(|| format!("I1: write {write} was acknowledged at {at}, but is on {have} of {voters} disks"))
}

#[test]
fn a_lost_write_is_seen_and_a_local_one_may_be_cut() {
    use super::sample::{acked, contents, write};
    use skeinmesh::node::AckLevel::{Local, Quorum};
    let epochs = EpochTable::from_entries(vec![(1, 1), (2, 4)]).unwrap();
    let here = contents(&[(1, 2, "kept"), (2, 5, "other")]);
    let judged = |text, outcome: Outcome| judge("a", &here, &[write(text, &[outcome])], &epochs).len();
    assert_eq!(judged("kept", acked(1, 2, Quorum)), 0);
    assert_eq!(judged("lost", acked(1, 3, Quorum)), 1);
    assert_eq!(judged("replaced", acked(2, 5, Quorum)), 1);
    assert_eq!(judged("kept", acked(2, 9, Quorum)), 1, "not where the receipt says");
    // Epoch 1 ended at 4: its record 6 was cut, its record 3 was not.
    assert_eq!(judged("cut", acked(1, 6, Local)), 0);
    assert_eq!(judged("cut", acked(1, 6, Quorum)), 1);
    assert_eq!(judged("lost", acked(1, 3, Local)), 1);
    assert!(on_platters(1, "1.2", 1, 3).is_some() && on_platters(1, "1.2", 2, 4).is_some());
    assert!(on_platters(1, "1.2", 2, 3).is_none());
}
