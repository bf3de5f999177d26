//! I7: a write is there once, however often it was sent under its key, and every answer names the
//! same place.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use skeinmesh::types::Lsn;

use crate::ledger::{Contents, Written};

pub(crate) fn judge(host: &str, contents: &Contents, writes: &[Written]) -> Vec<String> {
    let mut places: BTreeMap<&Bytes, Vec<Lsn>> = BTreeMap::new();
    for (at, payload) in contents {
        places.entry(payload).or_default().push(*at);
    }
    let mut found = Vec::new();
    for (number, write) in writes.iter().enumerate() {
        let there = places.get(&write.payload).map_or(&[][..], Vec::as_slice);
        if there.len() > 1 {
            found.push(format!("I7: {host} holds write {number} more than once, at {there:?}"));
        }
        let named: BTreeSet<Lsn> = write.attempts.iter().filter_map(|a| a.outcome.lasting()).collect();
        if named.len() > 1 {
            found.push(format!("I7: the answers to write {number} name {named:?}"));
        }
    }
    found
}

#[test]
fn a_double_and_two_answers_are_seen() {
    use super::sample::{acked, contents, write};
    use skeinmesh::node::AckLevel::{Local, Quorum};
    let here = contents(&[(1, 1, "once"), (1, 2, "twice"), (2, 4, "twice")]);
    assert_eq!(judge("a", &here, &[write("once", &[acked(1, 1, Quorum), acked(1, 1, Quorum)])]).len(), 0);
    assert_eq!(judge("a", &here, &[write("twice", &[])]).len(), 1);
    assert_eq!(judge("a", &here, &[write("once", &[acked(1, 1, Quorum), acked(2, 3, Quorum)])]).len(), 1);
    // What was acknowledged at `local` and cut has another place when it is sent again.
    assert_eq!(judge("a", &here, &[write("once", &[acked(1, 7, Local), acked(1, 1, Quorum)])]).len(), 0);
}
