//! I3: what a node has applied is a prefix of one log: its positions lie at or below the applied one,
//! and epochs never fall on the way up. (That it is the *same* log on all nodes is I5, that it has no
//! holes is I6.)

use skeinmesh::types::Lsn;

use crate::ledger::Contents;

pub(crate) fn judge(host: &str, contents: &Contents, applied: Lsn) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((at, _)) = contents.last_key_value()
        && *at > applied
    {
        found.push(format!("I3: {host} holds {at}, but says that it has applied up to {applied}"));
    }
    // By epoch first, as `Lsn` is ordered: then seqs must rise too.
    for (before, after) in contents.keys().zip(contents.keys().skip(1)) {
        if before.seq >= after.seq {
            found.push(format!("I3: {host} holds {before} and {after}: no log has both"));
        }
    }
    found
}

#[test]
fn a_fall_of_the_epoch_and_a_record_too_high_are_seen() {
    use super::sample::contents;
    let fine = contents(&[(1, 1, "x"), (1, 2, "y"), (3, 5, "z")]);
    assert_eq!(judge("a", &fine, Lsn::new(3, 5)), [""; 0]);
    assert_eq!(judge("a", &fine, Lsn::new(3, 4)).len(), 1);
    assert_eq!(judge("a", &contents(&[(1, 6, "x"), (2, 5, "y")]), Lsn::new(2, 9)).len(), 1);
    assert_eq!(judge("a", &contents(&[(1, 5, "x"), (2, 5, "y")]), Lsn::new(2, 9)).len(), 1);
}
