//! Positions: one log, so they follow the order of time, and what an answer states is what was asked
//! for. These rules need no row: they hold for all writes at once, not only for those of a bucket.

use std::collections::BTreeMap;

use skeinmesh::types::Lsn;

use super::Violation;
use crate::history::{History, Mode, Nanos, Write};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut found = order(&history.writes);
    found.extend(reads(history));
    found.extend(offices(history));
    found
}

/// Positions of `quorum` follow the order of time, and none is given twice, at whatever level.
fn order(writes: &[Write]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut taken: BTreeMap<Lsn, u64> = BTreeMap::new();
    for (n, ack) in writes.iter().flat_map(|write| write.acks.iter().map(|ack| (write.n, ack))) {
        match taken.insert(ack.at, n) {
            Some(other) if other != n => {
                let says = format!("rows {other} and {n} were both acknowledged at {}", ack.at);
                found.push(Violation::new("I5", says));
            }
            _ => {}
        }
    }
    let mut by_end: Vec<_> = writes.iter().filter_map(|write| Some((write, write.quorum()?))).collect();
    let mut by_start = by_end.clone();
    by_end.sort_by_key(|(_, ack)| ack.when);
    by_start.sort_by_key(|(write, _)| write.invoked);
    let mut ended = by_end.into_iter().peekable();
    let mut highest = Lsn::ZERO;
    for (write, ack) in by_start {
        while let Some((_, earlier)) = ended.next_if(|(_, earlier)| earlier.when < write.invoked) {
            highest = if earlier.at.seq > highest.seq { earlier.at } else { highest };
        }
        if ack.at.seq <= highest.seq || ack.at.epoch < highest.epoch {
            let says =
                format!("row {} was written at {} after {highest} had been acknowledged", write.n, ack.at);
            found.push(Violation::new("I4", says));
        }
    }
    found
}

/// Highest position by the moment from which it was known.
struct Known(Vec<(Nanos, u64)>);

impl Known {
    fn of(mut moments: Vec<(Nanos, u64)>) -> Self {
        moments.sort_unstable();
        let mut highest = 0;
        for (_, seq) in &mut moments {
            highest = highest.max(*seq);
            *seq = highest;
        }
        Self(moments)
    }

    /// Known before that moment.
    fn before(&self, moment: Nanos) -> u64 {
        let count = self.0.partition_point(|(when, _)| *when < moment);
        count.checked_sub(1).and_then(|last| self.0.get(last)).map_or(0, |(_, seq)| *seq)
    }
}

/// A read states at least the position that it was asked for.
fn reads(history: &History) -> Vec<Violation> {
    let acked = history.writes.iter().filter_map(|write| write.quorum());
    let acked = Known::of(acked.map(|ack| (ack.when, ack.at.seq)).collect());
    let read = Known::of(history.reads.iter().map(|read| (read.returned, read.applied.seq)).collect());
    let mut found = Vec::new();
    for it in &history.reads {
        let (check, floor) = match it.mode {
            Mode::Local => continue,
            Mode::MinLsn(least) => ("I9", least.seq),
            Mode::MaxStaleness(age) => {
                let age = Nanos::try_from(age.as_nanos()).unwrap_or(Nanos::MAX);
                ("staleness", acked.before(it.invoked.saturating_sub(age)))
            }
            Mode::Linearizable => ("linearizable", acked.before(it.invoked).max(read.before(it.invoked))),
        };
        if it.applied.seq < floor {
            let at = it.node + 1;
            let says = format!("n{at} answered {:?} as of {}, and not of {floor}", it.mode, it.applied);
            found.push(Violation::new(check, says));
        }
    }
    found
}

/// An epoch is one process's.
fn offices(history: &History) -> Vec<Violation> {
    let twice = history.offices.iter().filter(|(_, holders)| holders.len() > 1);
    twice
        .map(|(epoch, holders)| Violation::new("I4", format!("{holders:?} took office in epoch {epoch}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::sample::*;
    use super::*;
    use crate::history::Level;

    #[track_caller]
    fn finds(history: &History, wanted: &[(&str, &str)]) {
        let found = check(history);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (violation, (check, says)) in found.iter().zip(wanted) {
            assert!(violation.check == *check && violation.says.contains(says), "{found:#?}");
        }
    }

    #[test]
    fn positions_out_of_order_are_seen() {
        let quorum = |n, invoked, at| write(n, invoked, Some(at), Level::Quorum);
        let good = vec![quorum(1, 10, (1, 5, 15)), quorum(2, 20, (1, 6, 25)), quorum(3, 22, (2, 8, 40))];
        let with = |more| History { writes: [good.clone(), vec![more]].concat(), ..History::default() };
        finds(&with(quorum(7, 24, (2, 7, 30))), &[]);
        finds(&with(quorum(7, 70, (1, 4, 75))), &[("I4", "row 7 was written at 1.4 after 2.8")]);
        finds(&with(quorum(7, 70, (1, 9, 75))), &[("I4", "row 7 was written at 1.9 after 2.8")]);
        finds(&with(quorum(7, 20, (1, 6, 26))), &[("I5", "rows 2 and 7 were both acknowledged at 1.6")]);
        let weak = write(7, 20, Some((1, 6, 26)), Level::Memory);
        finds(&with(weak), &[("I5", "rows 2 and 7 were both acknowledged at 1.6")]);
    }

    #[test]
    fn a_read_that_states_too_little_is_seen() {
        // No row of its bucket is missing: it is what the answer states that is too old.
        let stated = |mode, invoked, applied| History {
            writes: vec![write(1, 10, Some((1, 5, 15)), Level::Quorum)],
            reads: vec![read(Mode::Local, 20, 7, &[1]), read(mode, invoked, applied, &[1])],
            ..History::default()
        };
        let least = Mode::MinLsn(Lsn::new(1, 9));
        finds(&stated(least, 40, 9), &[]);
        finds(&stated(least, 40, 8), &[("I9", "as of 1.8, and not of 9")]);
        finds(&stated(Mode::Linearizable, 40, 7), &[]);
        // 7 was read before.
        finds(&stated(Mode::Linearizable, 40, 6), &[("linearizable", "and not of 7")]);
        // Then that read had not returned.
        finds(&stated(Mode::Linearizable, 24, 5), &[]);
        finds(&stated(Mode::Linearizable, 24, 4), &[("linearizable", "and not of 5")]);
        let old = Mode::MaxStaleness(Duration::from_nanos(20));
        finds(&stated(old, 36, 4), &[("staleness", "and not of 5")]);
        finds(&stated(old, 35, 4), &[]);
    }

    #[test]
    fn two_processes_in_one_epoch_are_seen() {
        let held = |holders: &[&str]| History {
            offices: [(3, holders.iter().map(ToString::to_string).collect())].into(),
            ..History::default()
        };
        finds(&held(&["n1"]), &[]);
        finds(&held(&["n1", "n2"]), &[("I4", "took office in epoch 3")]);
        finds(&held(&["n1", "n1"]), &[("I4", "took office in epoch 3")]);
    }
}
