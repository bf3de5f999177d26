//! What a run came to.

use std::{collections::BTreeMap, fmt, sync::atomic::Ordering};

use serde::Serialize;

use crate::{
    check::Violation,
    history::{Claimed, History, Level, Mode, Nanos},
    relay::Relay,
};

const MODES: [&str; 4] = ["local", "min_lsn", "max_staleness", "linearizable"];
const CLAIMS: [(&str, Claimed); 4] = [
    ("held", Claimed::Held),
    ("taken", Claimed::Taken),
    ("refused", Claimed::Refused),
    ("unknown", Claimed::Unknown),
];
/// Acknowledged writes and answered reads from which on every level and every mode must be among them.
const ENOUGH: u64 = 500;
/// Violations that are printed; all are in the kept directory.
const SHOWN: usize = 20;

/// The kind of run that has faults of every kind, and registers.
pub const STORM: &str = "storm";

/// See the module.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub chaos: &'static str,
    pub seed: u64,
    pub nodes: usize,
    pub seconds: f64,
    pub patience: f64,
    pub writes: u64,
    pub acked: BTreeMap<&'static str, u64>,
    pub refused: u64,
    pub unknown: u64,
    pub cut: u64,
    pub answers: BTreeMap<u16, u64>,
    pub reads: BTreeMap<&'static str, u64>,
    pub register_writes: u64,
    pub register_reads: u64,
    pub claims: BTreeMap<&'static str, u64>,
    pub failed_attempts: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub skipped: BTreeMap<&'static str, &'static str>,
    pub datagrams: BTreeMap<&'static str, u64>,
    pub failovers: usize,
    pub unavailable_ms: Spread,
    pub writes_after_ms: u64,
    pub level_after_ms: u64,
    pub interrupted: bool,
    pub violations: Vec<Violation>,
    pub kept: Option<String>,
}

/// Of durations in milliseconds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let rank = |share: usize| {
            let at = (values.len() * share).div_ceil(100).saturating_sub(1);
            values.get(at).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

impl Report {
    /// Counts what the clients saw.
    pub fn count(&mut self, history: &History) {
        self.writes = history.writes.len() as u64;
        self.acked = Level::EVERY.map(|level| (level.as_str(), 0)).into();
        for write in &history.writes {
            match write.first_ack() {
                Some(ack) => *self.acked.entry(ack.level.as_str()).or_default() += 1,
                None if write.refused => self.refused += 1,
                None => self.unknown += 1,
            }
        }
        self.cut = history.cut.len() as u64;
        self.answers.clone_from(&history.answers);
        self.reads = MODES.map(|mode| (mode, 0)).into();
        for read in &history.reads {
            let [local, min_lsn, max_staleness, linearizable] = MODES;
            let mode = match read.mode {
                Mode::Local => local,
                Mode::MinLsn(_) => min_lsn,
                Mode::MaxStaleness(_) => max_staleness,
                Mode::Linearizable => linearizable,
            };
            *self.reads.entry(mode).or_default() += 1;
        }
        self.register_writes = history.sets.iter().filter(|set| set.acked.is_some()).count() as u64;
        self.register_reads = history.gets.len() as u64;
        self.claims = CLAIMS.map(|(word, _)| (word, 0)).into();
        for claim in &history.claims {
            let word =
                CLAIMS.iter().find(|(_, outcome)| *outcome == claim.outcome).map_or("", |(word, _)| word);
            *self.claims.entry(word).or_default() += 1;
        }
        let gaps = unavailability(history);
        self.failovers = gaps.len();
        self.unavailable_ms = Spread::of(gaps.into_iter().map(|gap| gap / 1_000_000).collect());
    }

    /// What the clients of a whole run should have seen and did not: nothing was judged then, and a
    /// pass would say nothing.
    pub fn unseen(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (what, counts) in [("writes acknowledged at", &self.acked), ("reads answered in", &self.reads)] {
            let all: u64 = counts.values().sum();
            let none = counts.iter().filter(|(_, count)| **count == 0 && all >= ENOUGH);
            found.extend(none.map(|(word, _)| Violation::new("unseen", format!("no {what} {word}"))));
            if all == 0 {
                found.push(Violation::new("unseen", format!("no {what} any mode or level")));
            }
        }
        if self.chaos == STORM && self.register_reads.min(self.register_writes) == 0 {
            found.push(Violation::new("unseen", "no register was written and read"));
        }
        let claimed = |word| self.claims.get(word).is_some_and(|count| *count > 0);
        if self.chaos == STORM && !(claimed("held") && claimed("taken")) {
            found.push(Violation::new("unseen", "no name was claimed, or none by two at a time"));
        }
        found
    }

    /// Counts what the relay did.
    pub fn count_datagrams(&mut self, relay: &Relay) {
        let counts = relay.counts();
        self.datagrams = BTreeMap::from([
            ("passed", counts.passed.load(Ordering::Relaxed)),
            ("lost", counts.lost.load(Ordering::Relaxed)),
            ("doubled", counts.doubled.load(Ordering::Relaxed)),
            ("delayed", counts.delayed.load(Ordering::Relaxed)),
            ("flipped", counts.flipped.load(Ordering::Relaxed)),
        ]);
    }
}

/// For each epoch after the first in which something was acknowledged at `quorum`: the time between
/// the last such acknowledgement before it and its first. The fault itself is in it.
fn unavailability(history: &History) -> Vec<Nanos> {
    let acks = history.writes.iter().filter_map(|write| write.quorum());
    let mut acks: Vec<_> = acks.map(|ack| (ack.when, ack.at.epoch)).collect();
    acks.sort_unstable();
    let (mut gaps, mut last): (Vec<Nanos>, Option<(Nanos, u64)>) = (Vec::new(), None);
    for (when, epoch) in acks {
        match last {
            Some((before, known)) if epoch > known => gaps.push(when - before),
            // An answer of an earlier epoch that was under way.
            Some((_, known)) if epoch < known => continue,
            _ => {}
        }
        last = Some((when, epoch));
    }
    gaps
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "seed         {}, {} nodes, {:.0} s", self.seed, self.nodes, self.seconds)?;
        writeln!(
            f,
            "writes       {}: acknowledged {}; refused {}, unknown {}; cut {}",
            self.writes,
            list(&self.acked),
            self.refused,
            self.unknown,
            self.cut
        )?;
        let answers = self.answers.iter().map(|(status, count)| format!("{status} {count}"));
        writeln!(f, "answers      {}", answers.collect::<Vec<_>>().join(", "))?;
        writeln!(f, "reads        {}", list(&self.reads))?;
        writeln!(f, "registers    {} writes, {} reads", self.register_writes, self.register_reads)?;
        writeln!(f, "claims       {}", list(&self.claims))?;
        writeln!(f, "faults       {}", list(&self.faults))?;
        for (fault, why) in &self.skipped {
            writeln!(f, "SKIPPED: {fault}: {why}")?;
        }
        if !self.datagrams.is_empty() {
            writeln!(f, "datagrams    {}", list(&self.datagrams))?;
        }
        let Spread { p50, p99, max } = &self.unavailable_ms;
        writeln!(
            f,
            "failovers    {}, without writes p50 {p50} ms, p99 {p99} ms, longest {max} ms",
            self.failovers
        )?;
        writeln!(
            f,
            "healed       writes after {} ms, level after {} ms",
            self.writes_after_ms, self.level_after_ms
        )?;
        if self.interrupted {
            writeln!(f, "interrupted before its end: what has to be there in the end was not looked at")?;
        }
        writeln!(f, "violations   {}", self.violations.len())?;
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(f, "  {violation}")?;
        }
        match &self.kept {
            Some(path) => writeln!(f, "kept         {path} (logs, history; disks: mount -o loop,ro nN.img)"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use skeinmesh::types::Lsn;

    use super::*;
    use crate::history::{Ack, Write};

    #[test]
    fn a_failover_lasts_from_the_last_ack_of_one_epoch_to_the_first_of_the_next() {
        let write = |(n, (epoch, when)): (usize, &(u64, Nanos))| Write {
            n: n as u64,
            keyed: false,
            asked: None,
            invoked: 0,
            taken: 1,
            acks: vec![Ack { at: Lsn::new(*epoch, n as u64), level: Level::Quorum, when: *when }],
            refused: false,
        };
        let acks = [(1, 10), (1, 20), (2, 70), (1, 72), (2, 75), (5, 100)];
        let history = History { writes: acks.iter().enumerate().map(write).collect(), ..History::default() };
        assert_eq!(unavailability(&history), [50, 25]);
        let mut report = Report::default();
        report.count(&history);
        assert_eq!((report.failovers, report.acked["quorum"]), (2, 6));
    }

    #[test]
    fn a_run_that_saw_nothing_is_no_pass() {
        let says = |report: &Report| -> Vec<String> { report.unseen().into_iter().map(|v| v.says).collect() };
        let mut report = Report { chaos: STORM, register_reads: 1, register_writes: 1, ..Report::default() };
        report.acked = Level::EVERY.map(|level| (level.as_str(), ENOUGH)).into();
        report.reads = MODES.map(|mode| (mode, ENOUGH)).into();
        assert_eq!(says(&report), ["no name was claimed, or none by two at a time"]);
        report.claims = BTreeMap::from([("held", 1), ("taken", 1)]);
        assert_eq!(says(&report), [""; 0]);
        report.acked.insert("memory", 0);
        report.reads.insert("linearizable", 0);
        assert_eq!(says(&report), ["no writes acknowledged at memory", "no reads answered in linearizable"]);
        report.register_reads = 0;
        assert_eq!(says(&report).len(), 3);
        report.count(&History::default());
        assert_eq!(says(&report).len(), 4, "nothing at all: {report:?}");
        report.claims = BTreeMap::from([("held", 1), ("taken", 1)]);
        // Of a few one may be missing.
        report.acked.insert("local", 5);
        report.reads.insert("local", 5);
        assert_eq!(says(&report), ["no register was written and read"]);
    }

    #[test]
    fn a_spread_is_by_rank() {
        assert_eq!(Spread::of((1..=200).collect()), Spread { p50: 100, p99: 198, max: 200 });
        assert_eq!(Spread::of(vec![7]), Spread { p50: 7, p99: 7, max: 7 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
