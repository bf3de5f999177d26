//! Linearizability of registers in which no value is written twice.
//!
//! Then no search is needed (Gibbons and Korach, "Testing Shared Memories", 1997). A write and the
//! reads of its value make a *zone*: from the first end of any of them to the last beginning of any
//! of them. If that runs forwards, the register must have held this value all the time between. If
//! it runs backwards, some moment between is enough. So a history is linearizable exactly if no
//! read ends before its write begins, no two forward zones overlap, and no backward zone lies
//! within a forward one.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::history::{Get, Nanos, Set};

/// The operations on one value.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    /// First end of an operation; the value was there at that moment or before.
    first_end: Nanos,
    /// Last beginning of an operation; the value was there at that moment or after.
    last_start: Nanos,
}

/// What is not linearizable.
pub fn check(sets: &[Set], gets: &[Get]) -> Vec<Violation> {
    let keys: BTreeSet<u64> = sets.iter().map(|set| set.key).chain(gets.iter().map(|get| get.key)).collect();
    let mut found = Vec::new();
    for key in keys {
        let sets: Vec<&Set> = sets.iter().filter(|set| set.key == key).collect();
        let gets: Vec<&Get> = gets.iter().filter(|get| get.key == key).collect();
        let one = one_register(&sets, &gets);
        found.extend(
            one.into_iter().map(|says| Violation::new("linearizable", format!("register {key}: {says}"))),
        );
    }
    found
}

fn one_register(sets: &[&Set], gets: &[&Get]) -> Vec<String> {
    let mut found = Vec::new();
    // The value before the first write, as a write that ended before everything.
    let mut clusters = BTreeMap::from([(None, Cluster { first_end: 0, last_start: 0 })]);
    for set in sets.iter().filter(|set| !set.refused) {
        let cluster = Cluster { first_end: set.acked.unwrap_or(Nanos::MAX), last_start: set.invoked };
        clusters.insert(Some(set.value), cluster);
    }
    for get in gets {
        let Some(cluster) = clusters.get_mut(&get.value) else {
            found.push(format!("a read found {:?}, which was refused or never written: {get:?}", get.value));
            continue;
        };
        // Still the write's own beginning, or that of an earlier read of it, which is later.
        let written = sets.iter().find(|set| Some(set.value) == get.value).map_or(0, |set| set.invoked);
        if get.returned < written {
            found.push(format!("a read found {:?} before it was written: {get:?}", get.value));
        }
        cluster.first_end = cluster.first_end.min(get.returned);
        cluster.last_start = cluster.last_start.max(get.invoked);
    }
    // A write of unknown outcome that nobody read may come after everything.
    clusters.retain(|_, cluster| cluster.first_end < Nanos::MAX);
    let is_forward = |cluster: &Cluster| cluster.first_end < cluster.last_start;
    let mut forward: Vec<_> = clusters.iter().filter(|(_, cluster)| is_forward(cluster)).collect();
    forward.sort_by_key(|(_, cluster)| cluster.first_end);
    for pair in forward.windows(2) {
        if let [(value, a), (next, b)] = pair
            && b.first_end < a.last_start
        {
            found.push(format!(
                "{value:?} was still read at {} although {next:?} was there at {}",
                a.last_start, b.first_end
            ));
        }
    }
    for (value, cluster) in clusters.iter().filter(|(_, cluster)| !is_forward(cluster)) {
        // Forward zones that do not overlap are in order: only the last that begins before it matters.
        let before = forward.partition_point(|(_, zone)| zone.first_end < cluster.last_start);
        let around = before.checked_sub(1).and_then(|at| forward.get(at));
        if let Some((held, zone)) = around.filter(|(_, zone)| cluster.first_end < zone.last_start) {
            found.push(format!(
                "{held:?} was there at {} and was still read at {}, although {value:?} was written between, from \
                 {} to {}",
                zone.first_end, zone.last_start, cluster.last_start, cluster.first_end
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn set(value: u64, invoked: Nanos, acked: impl Into<Option<Nanos>>) -> Set {
        Set { key: 1, value, invoked, acked: acked.into(), refused: false }
    }

    fn get(value: impl Into<Option<u64>>, invoked: Nanos, returned: Nanos) -> Get {
        Get { key: 1, node: 0, value: value.into(), invoked, returned }
    }

    #[test]
    fn good_histories_pass() {
        let sets = [set(1, 10, 20), set(2, 15, None), set(3, 30, 40)];
        let gets = [get(None, 1, 5), get(None, 12, 14), get(1, 22, 24), get(2, 26, 28), get(3, 50, 60)];
        assert_eq!(check(&sets, &gets), []);
    }

    #[test]
    fn planted_violations_are_seen() {
        let stale = check(&[set(1, 10, 20), set(2, 30, 40)], &[get(1, 50, 60)]);
        assert_eq!(stale.len(), 1, "an acknowledged write is not seen: {stale:?}");
        let none = check(&[set(1, 10, 20)], &[get(None, 30, 40)]);
        assert_eq!(none.len(), 1, "nothing is found after a write: {none:?}");
        let back =
            check(&[set(1, 10, None), set(2, 10, None)], &[get(1, 20, 30), get(2, 40, 50), get(1, 60, 70)]);
        assert_eq!(back.len(), 1, "a value comes back, as a write applied twice would: {back:?}");
        let phantom = check(&[set(1, 10, 20)], &[get(9, 30, 40)]);
        assert!(phantom[0].says.contains("never written"), "{phantom:?}");
        let refused = check(&[Set { refused: true, ..set(1, 10, None) }], &[get(1, 30, 40)]);
        assert!(refused[0].says.contains("refused"), "{refused:?}");
        let early = check(&[set(1, 50, 60)], &[get(1, 10, 20)]);
        assert!(early.iter().any(|v| v.says.contains("before it was written")), "{early:?}");
        let other_key = check(&[set(1, 10, 20)], &[Get { key: 2, ..get(None, 30, 40) }]);
        assert_eq!(other_key, []);
    }

    /// Against a search over all orders, on small histories of every kind.
    #[test]
    fn it_agrees_with_a_search() {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let (sets, gets) = small_history(&mut rng);
            let expected = search(&sets, &gets);
            let found = check(&sets, &gets);
            assert_eq!(found.is_empty(), expected, "{sets:?} {gets:?} {found:?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(good > 1_000 && bad > 1_000, "{good} good, {bad} bad");
    }

    /// Times are all different.
    fn small_history(rng: &mut StdRng) -> (Vec<Set>, Vec<Get>) {
        let mut times: Vec<Nanos> = (1..=16).collect();
        let mut span = || {
            let mut one = || times.swap_remove(rng.random_range(0..times.len()));
            let (a, b) = (one(), one());
            (a.min(b), a.max(b))
        };
        let spans: Vec<_> = (0..6).map(|_| span()).collect();
        let writes = rng.random_range(1..=3);
        let sets = (0..writes).map(|n| {
            let (start, end) = spans[n];
            set(n as u64 + 1, start, rng.random_bool(0.8).then_some(end))
        });
        let sets: Vec<Set> = sets.collect();
        let gets = spans[writes..].iter().map(|(start, end)| {
            let value = rng.random_range(0..=writes as u64);
            get((value > 0).then_some(value), *start, *end)
        });
        (sets, gets.collect())
    }

    /// True if some order of the operations explains all reads.
    fn search(sets: &[Set], gets: &[Get]) -> bool {
        #[derive(Clone, Copy)]
        struct Op {
            start: Nanos,
            end: Nanos,
            writes: Option<u64>,
            reads: Option<u64>,
        }
        fn place(left: &[Op], holds: Option<u64>) -> bool {
            if left.iter().all(|op| op.end == Nanos::MAX) {
                return true;
            }
            let first_end = left.iter().map(|op| op.end).min().unwrap_or(0);
            (0..left.len()).any(|at| {
                let op = left[at];
                if op.start > first_end || (op.writes.is_none() && op.reads != holds) {
                    return false;
                }
                let mut rest = left.to_vec();
                rest.remove(at);
                place(&rest, op.writes.or(holds))
            })
        }
        let writes = sets.iter().map(|set| Op {
            start: set.invoked,
            end: set.acked.unwrap_or(Nanos::MAX),
            writes: Some(set.value),
            reads: None,
        });
        let reads = gets.iter().map(|get| Op {
            start: get.invoked,
            end: get.returned,
            writes: None,
            reads: get.value,
        });
        place(&writes.chain(reads).collect::<Vec<_>>(), None)
    }
}
