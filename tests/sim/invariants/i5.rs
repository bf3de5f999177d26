//! I5: no two nodes ever hold different records at one position; what was applied anywhere stays.

use std::collections::BTreeMap;

use bytes::Bytes;
use skeinmesh::types::Lsn;

use crate::ledger::{Contents, head};

/// Every record that was ever seen applied on some node, by seq, with who was seen first.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<u64, (Lsn, Bytes, &'static str)>);

impl History {
    pub(crate) fn observe(&mut self, host: &'static str, contents: &Contents) -> Vec<String> {
        let mut found = Vec::new();
        for (at, payload) in contents {
            let (first, known, by) = self.0.entry(at.seq).or_insert_with(|| (*at, payload.clone(), host));
            if *first != *at || *known != *payload {
                let (payload, known) = (head(payload), head(known));
                found.push(format!("I5: {host} holds `{payload}` at {at}, {by} held `{known}` at {first}"));
            }
        }
        found
    }

    /// Positions of the records up to that one, with who was seen to hold it.
    pub(crate) fn up_to(&self, applied: Lsn) -> impl Iterator<Item = (Lsn, &'static str)> {
        self.0.range(..=applied.seq).map(|(_, (at, _, by))| (*at, *by))
    }
}

#[test]
fn a_fork_is_seen() {
    use super::sample::contents;
    let a = contents(&[(1, 1, "x"), (1, 2, "y")]);
    let mut history = History::default();
    assert_eq!(history.observe("a", &a), [""; 0]);
    assert_eq!(history.observe("b", &a), [""; 0]);
    assert_eq!(history.observe("b", &contents(&[(1, 1, "x"), (2, 2, "z")])).len(), 1);
    assert_eq!(history.observe("b", &contents(&[(1, 1, "other")])).len(), 1);
    assert_eq!(history.up_to(Lsn::new(9, 1)).count(), 1);
}
