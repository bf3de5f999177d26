//! I1: what a majority acknowledged is on every node in the end, once, where the receipt says.
//! And its other half, I2: what was refused is nowhere.

use std::collections::BTreeMap;

use bytes::Bytes;
use skeinmesh::types::Lsn;

use crate::ledger::{Outcome, Written};

pub(crate) fn judge(writes: &[Written], engines: &[(&'static str, BTreeMap<Lsn, Bytes>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (host, contents) in engines {
        let mut places: BTreeMap<&Bytes, Vec<Lsn>> = BTreeMap::new();
        for (at, payload) in contents {
            places.entry(payload).or_default().push(*at);
        }
        for (number, write) in writes.iter().enumerate() {
            let there = places.get(&write.payload).map_or(&[][..], Vec::as_slice);
            match &write.outcome {
                Outcome::Acked(at) if there != [*at] => found.push(format!(
                    "I1: write {number} from {} was acknowledged at {at}, after {:.3} s; {host} holds it at {there:?}",
                    write.host,
                    write.answered.as_secs_f64(),
                )),
                Outcome::Refused(reason) if !there.is_empty() => found.push(format!(
                    "I2: write {number} from {} was refused ({reason}); {host} holds it at {there:?}",
                    write.host
                )),
                _ if there.len() > 1 => {
                    found.push(format!("I7: {host} holds write {number} more than once, at {there:?}"));
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn a_lost_a_doubled_and_a_refused_write_are_seen() {
    let write = |text: &'static str, outcome| Written {
        payload: Bytes::from_static(text.as_bytes()),
        host: "a",
        outcome,
        answered: Default::default(),
    };
    let at = |seq| Lsn::new(1, seq);
    let writes = [
        write("lost", Outcome::Acked(at(1))),
        write("kept", Outcome::Acked(at(2))),
        write("refused", Outcome::Refused("no writer".into())),
        write("twice", Outcome::Unknown),
        write("gone", Outcome::Unknown),
    ];
    let records = [(at(2), "kept"), (at(3), "refused"), (at(4), "twice"), (at(5), "twice")];
    let contents = records.map(|(at, text)| (at, Bytes::from_static(text.as_bytes()))).into();
    let found = judge(&writes, &[("a", contents)]);
    assert_eq!(found.iter().map(|says| &says[..2]).collect::<Vec<_>>(), ["I1", "I2", "I7"]);
}
