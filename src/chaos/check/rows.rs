//! Rows that are written once and never changed: what was acknowledged must be there, at the level
//! asked for and by the consistency asked for, and nothing else, and nothing twice.
//!
//! A row can only be there or not, so every rule compares one write with one read, and no order of
//! operations has to be searched for. Each is sound: it demands a row only where the promise of the
//! level or of the consistency, taken with the order of this program's own clock, says so.

use std::collections::{BTreeMap, BTreeSet};

use skeinmesh::types::Lsn;

use super::{Violation, losses};
use crate::history::{Final, History, Level, Mode, Nanos, Read, Write, bucket};

pub fn check(history: &History) -> Vec<Violation> {
    let facts = Facts::of(history);
    let mut found = Vec::new();
    let default = history.default_level();
    history.writes.iter().for_each(|write| found.extend(acknowledgements(write, default)));
    for read in &history.reads {
        found.extend(strangers(&facts, &read.rows, read.returned, &format!("a read at n{}", read.node + 1)));
        found.extend(missing(&facts, read));
    }
    found.extend(sessions(&history.reads));
    for last in &history.finals {
        found.extend(strangers(&facts, &last.rows, Nanos::MAX, &format!("n{} in the end", last.node + 1)));
        found.extend(losses::of(&facts, history, last));
    }
    found.extend(differences(&history.finals));
    found
}

/// What is known of all rows.
pub(super) struct Facts<'a> {
    writes: BTreeMap<u64, &'a Write>,
    buckets: BTreeMap<u64, Vec<&'a Write>>,
    /// When a read that found the row had returned, the first time.
    pub(super) seen: BTreeMap<u64, Nanos>,
    /// Rows that every node has in the end.
    stayed: BTreeSet<u64>,
}

impl<'a> Facts<'a> {
    fn of(history: &'a History) -> Self {
        let mut buckets: BTreeMap<u64, Vec<&Write>> = BTreeMap::new();
        for write in &history.writes {
            buckets.entry(bucket(write.n)).or_default().push(write);
        }
        let mut seen = BTreeMap::new();
        for read in &history.reads {
            for n in &read.rows {
                let first = seen.entry(*n).or_insert(read.returned);
                *first = read.returned.min(*first);
            }
        }
        let mut finals =
            history.finals.iter().map(|last| last.rows.iter().copied().collect::<BTreeSet<u64>>());
        let first = finals.next().unwrap_or_default();
        let stayed = finals.fold(first, |all, rows| &all & &rows);
        Self { writes: history.writes.iter().map(|write| (write.n, write)).collect(), buckets, seen, stayed }
    }

    /// Where the row stands in the log for good, if that is known: `quorum` promises it; what was
    /// acknowledged below it stands there if it stayed and was sent only once.
    fn position(&self, write: &Write) -> Option<Lsn> {
        let weak = || {
            let only = write.first_ack().filter(|_| write.acks.len() == 1 && write.taken == 1);
            only.filter(|_| self.stayed.contains(&write.n))
        };
        write.quorum().or_else(weak).map(|ack| ack.at)
    }
}

/// An acknowledgement claims what was asked for, and all of one key name one position.
fn acknowledgements(write: &Write, default: Level) -> Vec<Violation> {
    let mut found = Vec::new();
    for ack in &write.acks {
        if ack.level < write.asked.unwrap_or(default) {
            found.push(Violation::new("I1", format!("a level was silently lowered: {write:?}")));
        }
    }
    let places: BTreeSet<Lsn> =
        write.acks.iter().filter(|ack| ack.level >= Level::Quorum).map(|ack| ack.at).collect();
    if places.len() > 1 {
        found.push(Violation::new("I7", format!("one key was written at several positions: {write:?}")));
    }
    found
}

/// Rows that nobody sent, that were refused, or that are there twice.
fn strangers(facts: &Facts<'_>, rows: &[u64], returned: Nanos, at: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut once = BTreeSet::new();
    for n in rows {
        if !once.insert(*n) {
            found.push(Violation::new("I7", format!("{at} found row {n} twice: {:?}", facts.writes.get(n))));
        }
        match facts.writes.get(n) {
            None => found.push(Violation::new("I2", format!("{at} found row {n}, which nobody wrote"))),
            Some(write) if write.refused => {
                found.push(Violation::new("I2", format!("{at} found a row that was refused: {write:?}")));
            }
            Some(write) if write.invoked > returned => {
                found
                    .push(Violation::new("I2", format!("{at} found a row before it was written: {write:?}")));
            }
            Some(_) => {}
        }
    }
    found
}

/// Rows that a read had to find.
fn missing(facts: &Facts<'_>, read: &Read) -> Vec<Violation> {
    let rows: BTreeSet<u64> = read.rows.iter().copied().collect();
    let writes = facts.buckets.get(&read.bucket).map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    for write in writes.iter().filter(|write| !rows.contains(&write.n)) {
        if let Some(why) = must_see(facts, read, write) {
            let head = Read { rows: Vec::new(), ..read.clone() };
            found.push(Violation::new(why.check(), format!("{}: {write:?} is not in {head:?}", why.says())));
        }
    }
    found
}

/// Why a read should have found a row.
#[derive(Debug, Clone, Copy)]
enum Missing {
    Applied,
    MinLsn,
    Staleness,
    Acknowledged,
    Visible,
}

impl Missing {
    const fn check(self) -> &'static str {
        match self {
            Self::Applied => "I6",
            Self::MinLsn => "I9",
            Self::Staleness => "staleness",
            Self::Acknowledged | Self::Visible => "linearizable",
        }
    }

    const fn says(self) -> &'static str {
        match self {
            Self::Applied => "a gap below what the node says it has applied",
            Self::MinLsn => "min_lsn was not kept",
            Self::Staleness => "max_staleness was not kept",
            Self::Acknowledged => "a linearizable read missed what was acknowledged before it began",
            Self::Visible => "a linearizable read missed what another read had found before it began",
        }
    }
}

fn must_see(facts: &Facts<'_>, read: &Read, write: &Write) -> Option<Missing> {
    let position = facts.position(write);
    let acked = write.quorum().map(|ack| ack.when);
    if position.is_some_and(|at| at.seq <= read.applied.seq) {
        return Some(Missing::Applied);
    }
    let before = |when: Option<Nanos>, moment: Nanos| when.is_some_and(|when| when < moment);
    match read.mode {
        Mode::Local => None,
        Mode::MinLsn(least) => {
            // Answered, so this very position is in the history, whatever its level promised.
            let named = write.acks.iter().any(|ack| ack.at == least);
            let below = position.is_some_and(|at| at.seq <= least.seq);
            (named || below).then_some(Missing::MinLsn)
        }
        Mode::MaxStaleness(age) => {
            let age = Nanos::try_from(age.as_nanos()).unwrap_or(Nanos::MAX);
            before(acked, read.invoked.saturating_sub(age)).then_some(Missing::Staleness)
        }
        Mode::Linearizable if before(acked, read.invoked) => Some(Missing::Acknowledged),
        Mode::Linearizable => {
            before(facts.seen.get(&write.n).copied(), read.invoked).then_some(Missing::Visible)
        }
    }
}

/// A client that passes the position of an earlier read on finds at least what that read found.
fn sessions(reads: &[Read]) -> Vec<Violation> {
    let mut earlier: BTreeMap<(usize, u64), Vec<&Read>> = BTreeMap::new();
    let mut found = Vec::new();
    for read in reads {
        let own = earlier.entry((read.client, read.bucket)).or_default();
        if let Mode::MinLsn(least) = read.mode {
            let rows: BTreeSet<u64> = read.rows.iter().copied().collect();
            for before in own.iter().filter(|before| before.applied.seq <= least.seq) {
                if let Some(gone) = before.rows.iter().find(|n| !rows.contains(n)) {
                    let says = format!(
                        "client {} saw row {gone} at {} of n{}, and with min_lsn={least} at n{} it did not",
                        read.client,
                        before.applied,
                        before.node + 1,
                        read.node + 1
                    );
                    found.push(Violation::new("I9", says));
                }
            }
        }
        own.push(read);
    }
    found
}

/// In the end all nodes hold the same.
fn differences(finals: &[Final]) -> Vec<Violation> {
    let set = |last: &Final| last.rows.iter().copied().collect::<BTreeSet<u64>>();
    let Some((first, others)) = finals.split_first() else { return Vec::new() };
    let expected = set(first);
    let differs = others.iter().filter_map(|last| {
        let rows = set(last);
        let n = expected.symmetric_difference(&rows).next()?;
        Some(Violation::new("I5", format!("n{} and n{} differ in row {n}", first.node + 1, last.node + 1)))
    });
    differs.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{check, sample::*};
    use super::{History, Level, Mode};
    use crate::{
        check::Violation,
        history::{Ack, Write},
    };
    use skeinmesh::types::Lsn;

    /// Rows 1 and 2 at quorum, 3 at local, 4 unknown, 5 refused.
    fn good() -> History {
        let unknown = write(4, 40, None, Level::Quorum);
        let refused = Write { refused: true, taken: 0, ..write(5, 50, None, Level::Quorum) };
        History {
            writes: vec![
                write(1, 10, Some((1, 5, 15)), Level::Quorum),
                write(2, 20, Some((1, 6, 25)), Level::Quorum),
                write(3, 30, Some((1, 7, 35)), Level::Local),
                unknown,
                refused,
            ],
            reads: vec![
                read(Mode::Local, 26, 5, &[1]),
                read(Mode::Linearizable, 26, 6, &[1, 2]),
                read(Mode::MinLsn(Lsn::new(1, 6)), 40, 6, &[1, 2]),
                read(Mode::MaxStaleness(Duration::from_nanos(20)), 44, 5, &[1]),
            ],
            finals: vec![last(0, &[1, 2, 3]), last(1, &[3, 2, 1])],
            ..History::default()
        }
    }

    /// After that change there is exactly this to complain about.
    #[track_caller]
    fn seen(change: impl FnOnce(&mut History), wanted: &[(&str, &str)]) {
        let mut history = good();
        change(&mut history);
        let found = check(&history);
        let matches =
            |v: &Violation, (check, says): &(&str, &str)| v.check == *check && v.says.contains(says);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        assert!(wanted.iter().all(|want| found.iter().any(|v| matches(v, want))), "{found:#?}");
    }

    #[test]
    fn a_good_history_passes() {
        seen(|_| {}, &[]);
        // An unknown write may be there or not; a local one may be cut by a later epoch.
        seen(|h| h.finals.iter_mut().for_each(|f| f.rows.push(4)), &[]);
        seen(
            |h| {
                h.finals.iter_mut().for_each(|f| f.rows.retain(|n| *n != 3));
                h.cut.insert(Lsn::new(1, 7));
                h.writes.push(write(6, 60, Some((2, 8, 65)), Level::Quorum));
                h.finals.iter_mut().for_each(|f| f.rows.push(6));
            },
            &[],
        );
    }

    #[test]
    fn a_lost_acknowledgement_is_seen() {
        let gone = |h: &mut History| {
            h.finals.iter_mut().for_each(|f| f.rows.retain(|n| *n != 2));
            h.reads.clear();
        };
        seen(gone, &[("I1", "n1 lost an acknowledged"), ("I1", "n2 lost an acknowledged")]);
        let local = |h: &mut History| h.finals.iter_mut().for_each(|f| f.rows.retain(|n| *n != 3));
        seen(
            local,
            &[("I1", "n1 lost a row acknowledged at local"), ("I1", "n2 lost a row acknowledged at local")],
        );
        // The cluster's word that it was cut does not do without a later epoch.
        let said = |h: &mut History| {
            local(h);
            h.cut.insert(Lsn::new(1, 7));
        };
        seen(
            said,
            &[("I1", "n1 lost a row acknowledged at local"), ("I1", "n2 lost a row acknowledged at local")],
        );
        let one = |h: &mut History| h.finals[1].rows.retain(|n| *n != 1);
        seen(one, &[("I1", "n2 lost an acknowledged"), ("I5", "differ in row 1")]);
        let lowered = |h: &mut History| h.writes[2].asked = Some(Level::Quorum);
        seen(lowered, &[("I1", "silently lowered")]);
        let not_all = |h: &mut History| h.writes[0].asked = Some(Level::All);
        seen(not_all, &[("I1", "silently lowered")]);
        // Without a level a cluster promises `quorum`, a lone node `local`.
        let default = |h: &mut History| h.writes[2].asked = None;
        seen(default, &[("I1", "silently lowered")]);
        seen(
            |h| {
                default(h);
                h.lone = true;
            },
            &[],
        );
    }

    #[test]
    fn a_stale_read_is_seen_in_every_mode() {
        let drop_2 = |at: usize| move |h: &mut History| h.reads[at].rows.retain(|n| *n != 2);
        let lower = |at: usize| {
            move |h: &mut History| {
                drop_2(at)(h);
                h.reads[at].applied = Lsn::new(1, 5);
            }
        };
        seen(drop_2(1), &[("I6", "a gap")]);
        seen(lower(1), &[("linearizable", "acknowledged before it began"), ("linearizable", "and not of 6")]);
        seen(lower(2), &[("I9", "min_lsn"), ("I9", "client 0 saw row 2"), ("I9", "and not of 6")]);
        let stale = |h: &mut History| {
            h.reads[3].invoked = 46;
            h.reads[3].applied = Lsn::new(1, 5);
        };
        seen(stale, &[("staleness", "max_staleness"), ("staleness", "and not of 6")]);
        let visible = |h: &mut History| {
            h.finals.iter_mut().for_each(|f| f.rows.push(4));
            h.reads.push(read(Mode::Local, 50, 8, &[1, 2, 3, 4]));
            h.reads.push(read(Mode::Linearizable, 60, 7, &[1, 2, 3]));
        };
        seen(visible, &[("linearizable", "another read had found"), ("linearizable", "and not of 8")]);
        // A client that passes on what it was told at `memory`: answered, so it is there.
        let own = |rows: &'static [u64]| {
            move |h: &mut History| {
                h.writes[2] = write(3, 30, Some((1, 7, 35)), Level::Memory);
                h.writes[2].taken = 2;
                h.reads.push(read(Mode::MinLsn(Lsn::new(1, 7)), 40, 7, rows));
            }
        };
        seen(own(&[1, 2, 3]), &[]);
        seen(own(&[1, 2]), &[("I9", "min_lsn")]);
        let back = |h: &mut History| {
            h.reads.push(read(Mode::Local, 50, 9, &[1, 2, 3, 4]));
        };
        seen(back, &[("I5", "n1 lacks a row that a read had found"), ("I5", "n2 lacks a row")]);
    }

    #[test]
    fn a_duplicate_is_seen() {
        let twice = |h: &mut History| h.finals[0].rows.push(1);
        seen(twice, &[("I7", "n1 in the end found row 1 twice")]);
        let read = |h: &mut History| h.reads[0].rows.push(1);
        seen(read, &[("I7", "a read at n1 found row 1 twice")]);
        let two_places = |h: &mut History| {
            let again = Ack { at: Lsn::new(1, 9), ..h.writes[1].acks[0] };
            h.writes[1].acks.push(again);
        };
        seen(two_places, &[("I7", "several positions")]);
    }

    #[test]
    fn a_phantom_is_seen() {
        let nobody = |h: &mut History| h.finals.iter_mut().for_each(|f| f.rows.push(99));
        seen(nobody, &[("I2", "n1 in the end found row 99"), ("I2", "n2 in the end found row 99")]);
        let refused = |h: &mut History| {
            h.reads.truncate(1);
            h.reads[0].rows.push(5);
        };
        seen(refused, &[("I2", "was refused"), ("I5", "n1 lacks"), ("I5", "n2 lacks")]);
        let early = |h: &mut History| {
            h.reads.truncate(1);
            h.reads[0].rows.push(3);
            h.reads[0].returned = 29;
        };
        seen(early, &[("I2", "before it was written")]);
    }
}
