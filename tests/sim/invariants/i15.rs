//! I15: a snapshot and the log behind it are the full state: what a node's disk holds, a checkpoint
//! of its own or one installed from a peer and the records after it, makes exactly what it serves.

use crate::ledger::Contents;

pub(crate) fn judge(host: &str, live: &Contents, rebuilt: &Contents) -> Option<String> {
    if live == rebuilt {
        return None;
    }
    let missing: Vec<_> = live.keys().filter(|at| rebuilt.get(at) != live.get(at)).collect();
    let too_many: Vec<_> = rebuilt.keys().filter(|at| !live.contains_key(at)).collect();
    Some(format!(
        "I15: what the disk of {host} holds does not make what it serves: missing {missing:?}, too many {too_many:?}"
    ))
}

#[test]
fn a_lost_a_changed_and_an_invented_record_are_seen() {
    use super::sample::contents;
    let live = contents(&[(1, 1, "x"), (1, 2, "y")]);
    assert_eq!(judge("a", &live, &live), None);
    for rebuilt in [&[(1, 1, "x")][..], &[(1, 1, "x"), (1, 2, "z")], &[(1, 1, "x"), (1, 2, "y"), (1, 3, "z")]]
    {
        assert!(judge("a", &live, &contents(rebuilt)).is_some());
    }
}
