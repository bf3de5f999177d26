//! I6: no gap is ever served: a node that has applied up to a position holds every record that any
//! node has ever held at or below it.

use skeinmesh::types::Lsn;

use super::i5::History;
use crate::ledger::Contents;

pub(crate) fn judge(host: &str, contents: &Contents, applied: Lsn, history: &History) -> Vec<String> {
    let missing = history.up_to(applied).filter(|(at, _)| !contents.contains_key(at));
    missing
        .map(|(at, by)| format!("I6: {host} has applied up to {applied} without {at}, which {by} holds"))
        .collect()
}

#[test]
fn a_gap_is_seen_and_a_lag_is_none() {
    use super::sample::contents;
    let mut history = History::default();
    history.observe("a", &contents(&[(1, 1, "x"), (1, 2, "y"), (2, 4, "z")]));
    let b = contents(&[(1, 1, "x"), (2, 4, "z")]);
    assert_eq!(judge("b", &b, Lsn::new(2, 4), &history).len(), 1);
    assert_eq!(judge("b", &contents(&[(1, 1, "x")]), Lsn::new(1, 1), &history).len(), 0);
}
