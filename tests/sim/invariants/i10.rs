//! I10: after the faults stop, the nodes come together and take writes, in bounded time, and then
//! their logs are one.

use std::time::Duration;

use skeinmesh::types::Lsn;

/// Bounds, in simulated time.
pub(crate) const FORM: Duration = Duration::from_secs(60);
pub(crate) const SETTLE: Duration = Duration::from_secs(30);
pub(crate) const ACCEPT: Duration = Duration::from_secs(10);
/// A change of membership that the storm left half-way: somebody leaves, comes with an empty disk,
/// learns, and becomes a voter.
pub(crate) const REPLACE: Duration = Duration::from_secs(60);

/// Every node has applied the same, what a majority acknowledged included.
pub(crate) fn level(applied: &[Option<Lsn>], acked: u64) -> bool {
    let first = applied.first().copied().flatten();
    first.is_some_and(|at| at.seq >= acked) && applied.iter().all(|at| *at == first)
}

/// Chain values at the last applied record, which cover everything before it.
pub(crate) fn chains(values: &[(&'static str, Option<u32>)]) -> Option<String> {
    let differ = values.iter().any(|(_, chain)| chain.is_none() || *chain != values[0].1);
    differ.then(|| format!("I10: the logs came together, but their chain values differ: {values:?}"))
}

#[test]
fn a_laggard_a_loss_and_another_log_are_seen() {
    let at = |seq| Some(Lsn::new(1, seq));
    assert!(level(&[at(5), at(5)], 5));
    assert!(!level(&[at(5), at(4)], 4) && !level(&[at(5), None], 4) && !level(&[at(5), at(5)], 6));
    assert!(!level(&[], 0));
    assert_eq!(chains(&[("a", Some(1)), ("b", Some(1))]), None);
    assert!(chains(&[("a", Some(1)), ("b", Some(2))]).is_some());
    assert!(chains(&[("a", Some(1)), ("b", None)]).is_some());
}
