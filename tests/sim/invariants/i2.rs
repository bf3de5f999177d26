//! I2: what was refused, each time it was sent, is nowhere.

use crate::ledger::{Contents, Outcome, Written};

pub(crate) fn judge(host: &str, contents: &Contents, writes: &[Written]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, write) in writes.iter().enumerate() {
        let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_));
        if write.attempts.iter().all(|attempt| refused(&attempt.outcome))
            && let Some((at, _)) = contents.iter().find(|(_, payload)| **payload == write.payload)
        {
            let outcomes: Vec<_> = write.attempts.iter().map(|attempt| &attempt.outcome).collect();
            found.push(format!("I2: write {number} was refused ({outcomes:?}); {host} holds it at {at}"));
        }
    }
    found
}

#[test]
fn a_refused_write_is_seen_and_an_unknown_one_may_be_there() {
    use super::sample::{contents, write};
    let refused = || Outcome::Refused("no writer".into());
    let here = contents(&[(1, 1, "refused"), (1, 2, "unknown once")]);
    assert_eq!(judge("a", &here, &[write("refused", &[refused(), refused()])]).len(), 1);
    assert_eq!(judge("a", &here, &[write("unknown once", &[refused(), Outcome::Unknown])]).len(), 0);
    assert_eq!(judge("a", &here, &[write("elsewhere", &[refused()])]).len(), 0);
}
