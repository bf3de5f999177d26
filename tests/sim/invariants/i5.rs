//! I5: no two nodes ever hold different records at one position; what was applied anywhere stays.

use std::collections::BTreeMap;

use bytes::Bytes;
use skeinmesh::types::Lsn;

/// Every record that was ever seen applied on some node, by seq, with who was seen first.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<u64, (Lsn, Bytes, &'static str)>);

impl History {
    pub(crate) fn observe(&mut self, host: &'static str, contents: &BTreeMap<Lsn, Bytes>) -> Vec<String> {
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

    /// In the end every node holds all of it and nothing else.
    pub(crate) fn judge(&mut self, engines: &[(&'static str, BTreeMap<Lsn, Bytes>)]) -> Vec<String> {
        let mut found: Vec<String> =
            engines.iter().flat_map(|(host, contents)| self.observe(host, contents)).collect();
        for (host, contents) in engines {
            for (at, payload, by) in self.0.values().filter(|(at, ..)| !contents.contains_key(at)) {
                let payload = head(payload);
                found.push(format!("I5: {by} has applied `{payload}` at {at}, {host} does not hold it"));
            }
        }
        found
    }
}

/// Which write it is, without what fills it up.
fn head(payload: &Bytes) -> String {
    String::from_utf8_lossy(payload).trim_end_matches(['x', ' ']).to_owned()
}

#[test]
fn a_fork_and_a_hole_are_seen() {
    let log = |records: &[(u64, u64, &'static str)]| {
        let record = |(epoch, seq, text): &(u64, u64, &'static str)| {
            (Lsn::new(*epoch, *seq), Bytes::from_static(text.as_bytes()))
        };
        records.iter().map(record).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (log(&[(1, 1, "x"), (1, 2, "y")]), log(&[(1, 1, "x")]));
    assert!(History::default().judge(&[("a", a.clone()), ("b", a.clone())]).is_empty());
    assert_eq!(History::default().judge(&[("a", a.clone()), ("b", b)]).len(), 1);
    assert_eq!(History::default().observe("a", &a), [""; 0]);
    let mut history = History::default();
    history.observe("a", &a);
    assert_eq!(history.observe("b", &log(&[(1, 1, "x"), (2, 2, "z")])).len(), 1);
}
