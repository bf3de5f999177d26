//! I9: a read sees what it asked for. `min_lsn`: at least that position, which for what was read or
//! acknowledged at `quorum` before is never lost, so a client that passes on what it saw never goes
//! back, on whatever node. `linearizable`: everything acknowledged at `quorum` before it began.
//! `max_staleness`, and the age that any answer states: everything acknowledged until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use skeinmesh::{
    node::{Consistency, ReadError, ReadPoint},
    types::{EpochTable, Lsn},
};

use crate::machine;

/// A read under way.
#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) consistency: Consistency,
    pub(crate) began: Duration,
    /// It is what somebody read, or what a majority acknowledged: it cannot be lost.
    pub(crate) lasting: bool,
}

/// What readers may rely on.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The highest seq acknowledged by a majority, by the moment from which it was.
    acked: BTreeMap<Duration, u64>,
    /// What the one session of clients has seen.
    pub(crate) session: Lsn,
    /// How many were answered, by kind.
    pub(crate) answered: BTreeMap<&'static str, u64>,
    /// Positions that were asked for with `min_lsn`: where that was answered and whether it is there.
    told: BTreeMap<Lsn, BTreeSet<(&'static str, bool)>>,
}

impl Reads {
    pub(crate) fn note_acked(&mut self, now: Duration, at: Lsn) {
        let known = self.acked_until(Duration::MAX);
        self.acked.insert(now, known.max(at.seq));
    }

    /// Highest seq that had been acknowledged by that moment.
    pub(crate) fn acked_until(&self, moment: Duration) -> u64 {
        self.acked.range(..=moment).next_back().map_or(0, |(_, seq)| *seq)
    }

    pub(crate) fn end(
        &mut self,
        host: &'static str,
        read: &Read,
        answer: Result<ReadPoint, ReadError>,
    ) -> Vec<String> {
        if let (Consistency::MinLsn(at), Ok(_) | Err(ReadError::LostPosition { .. })) =
            (read.consistency, &answer)
        {
            self.told.entry(at).or_default().insert((host, answer.is_ok()));
        }
        let point = match answer {
            Ok(point) => point,
            Err(ReadError::LostPosition { wanted }) if read.lasting => {
                return vec![format!(
                    "I9: {host} says that {wanted} is lost, which was read or acknowledged before"
                )];
            }
            Err(ReadError::LostPosition { .. }) => {
                *self.answered.entry("read-lost").or_default() += 1;
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let (kind, floor) = match read.consistency {
            Consistency::Local => ("read-local", 0),
            Consistency::MinLsn(at) => ("read-min-lsn", at.seq),
            Consistency::Linearizable => ("read-linearizable", self.acked_until(read.began)),
            Consistency::MaxStaleness(age) => {
                ("read-max-staleness", self.acked_until(read.began.saturating_sub(age)))
            }
        };
        *self.answered.entry(kind).or_default() += 1;
        let stated = point.staleness.map_or(0, |age| self.acked_until(machine::now().saturating_sub(age)));
        let mut found = Vec::new();
        for (what, floor) in [(kind, floor), ("stated age", stated)] {
            if point.applied.seq < floor {
                found.push(format!(
                    "I9: {what}: a read on {host} ({:?}, begun after {:.3} s, ended after {:.3} s) saw up to {}, \
                     {:?} old, not {floor}",
                    read.consistency,
                    read.began.as_secs_f64(),
                    machine::now().as_secs_f64(),
                    point.applied,
                    point.staleness,
                ));
            }
        }
        self.session = self.session.max(point.applied);
        found
    }

    /// What was told of positions agrees with the log in the end, whose epoch starts these are: who was
    /// answered found that very record, and what was said to be lost is.
    pub(crate) fn judge(&self, name: &str, epochs: &EpochTable, applied: Lsn) -> Vec<String> {
        let mut found = Vec::new();
        for (at, answers) in &self.told {
            let held = epochs.holds(*at, applied.seq);
            for (host, _) in answers.iter().filter(|(_, there)| *there != held) {
                let (said, is) = if held { ("lost", "there") } else { ("there", "lost") };
                found.push(format!("I9: {host} said of {at} that it is {said}; on {name} it is {is}"));
            }
        }
        found
    }
}

#[test]
fn a_stale_read_of_each_kind_is_seen() {
    let mut reads = Reads::default();
    reads.note_acked(Duration::from_secs(1), Lsn::new(1, 5));
    reads.note_acked(Duration::from_secs(2), Lsn::new(1, 3));
    reads.note_acked(Duration::from_secs(3), Lsn::new(1, 9));
    let mut saw = |consistency, seq: u64| {
        let read = Read { consistency, began: Duration::from_millis(2_500), lasting: true };
        let point = ReadPoint { applied: Lsn::new(1, seq), staleness: None };
        reads.end("a", &read, Ok(point)).len()
    };
    assert_eq!(saw(Consistency::Local, 0), 0);
    assert_eq!((saw(Consistency::Linearizable, 5), saw(Consistency::Linearizable, 4)), (0, 1));
    let min = Consistency::MinLsn(Lsn::new(1, 7));
    assert_eq!((saw(min, 7), saw(min, 6)), (0, 1));
    let (old, older) = (Duration::from_millis(500), Duration::from_secs(2));
    assert_eq!(saw(Consistency::MaxStaleness(old), 4), 1);
    assert_eq!(saw(Consistency::MaxStaleness(older), 0), 0);
    let lost = ReadError::LostPosition { wanted: Lsn::new(1, 7) };
    let read = |lasting| Read { consistency: min, began: Duration::ZERO, lasting };
    assert_eq!(reads.end("a", &read(true), Err(lost.clone())).len(), 1);
    assert_eq!(reads.end("a", &read(false), Err(lost)).len(), 0);
}

#[test]
fn an_answer_about_another_record_at_that_place_is_seen() {
    let epochs = EpochTable::from_entries(vec![(1, 1), (2, 4)]).unwrap();
    let judged = |at, answer: Result<ReadPoint, ReadError>| {
        let mut reads = Reads::default();
        let read = Read { consistency: Consistency::MinLsn(at), began: Duration::ZERO, lasting: false };
        reads.end("a", &read, answer);
        reads.judge("b", &epochs, Lsn::new(2, 9)).len()
    };
    let answered = || Ok(ReadPoint { applied: Lsn::new(2, 9), staleness: None });
    let lost = |wanted| Err(ReadError::LostPosition { wanted });
    let (kept, cut) = (Lsn::new(1, 3), Lsn::new(1, 6));
    assert_eq!((judged(kept, answered()), judged(cut, lost(cut))), (0, 0));
    assert_eq!((judged(kept, lost(kept)), judged(cut, answered())), (1, 1));
    assert_eq!(judged(cut, Err(ReadError::NoWriter)), 0, "nothing was said");
}
