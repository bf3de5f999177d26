//! What goes wrong in a schedule, and when: all of it follows from the seed.

use std::{collections::BTreeMap, fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// Something that begins, lasts and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
}

/// Hosts are meant by their place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// The host loses power: what was not synced is lost, kept or torn.
    PowerLoss(usize),
    /// All of them at once.
    PowerLossOfAll,
    /// The process ends, the machine stays.
    Kill(usize),
    /// The process is asked to stop and comes back: it hands office over first.
    Restart(usize),
    /// The process stands still, as by SIGSTOP.
    Pause(usize),
    /// Nothing goes to the host and nothing comes from it.
    Partition(usize),
    /// The hosts of the set bits and the others do not hear each other.
    Halves(u8),
    /// It hears nothing.
    Deaf(usize),
    /// It is not heard.
    Mute(usize),
    /// The first is not heard by the second.
    OneWay(usize, usize),
    /// Every datagram may be lost, with this probability.
    Loss(f64),
    /// Every datagram may arrive twice, with this probability.
    Twice(f64),
    /// Every datagram may be overtaken, with this probability.
    Reorder(f64),
    /// A sync takes this long.
    SlowDisk(usize, Duration),
    /// So many bytes more and the disk is full.
    Full(usize, u64),
    /// The disk call after so many fails, and with `true` all after it.
    Eio(usize, u64, bool),
    /// The wall clock is off by so many seconds.
    Clock(usize, i64),
    /// The host loses power, and meanwhile a bit of its log rots.
    BitFlip(usize, u64),
    /// The host is removed, and its machine comes back as a new node with an empty disk.
    Replace(usize),
}

/// Draws one kind of fault.
type Draw = fn(&mut StdRng, usize) -> Kind;

/// Every kind, with how often it comes beside the others where both are enabled.
const KINDS: [(u32, Draw); 19] = [
    (4, |_, host| Kind::PowerLoss(host)),
    (2, |_, _| Kind::PowerLossOfAll),
    (3, |_, host| Kind::Kill(host)),
    (2, |_, host| Kind::Restart(host)),
    (3, |_, host| Kind::Pause(host)),
    (3, |_, host| Kind::Partition(host)),
    (2, |random, _| Kind::Halves(random.random())),
    (2, |_, host| Kind::Deaf(host)),
    (2, |_, host| Kind::Mute(host)),
    (2, |random, host| Kind::OneWay(host, random.random_range(0..3))),
    (2, |random, _| Kind::Loss(random.random_range(0.02..0.3))),
    (1, |random, _| Kind::Twice(random.random_range(0.05..0.5))),
    (2, |random, _| Kind::Reorder(random.random_range(0.05..0.6))),
    (2, |random, host| Kind::SlowDisk(host, Duration::from_millis(random.random_range(20..300)))),
    (2, |random, host| Kind::Full(host, random.random_range(0..6_000))),
    (2, |random, host| Kind::Eio(host, random.random_range(1..40), random.random_bool(0.3))),
    (2, |random, host| Kind::Clock(host, random.random_range(-3_000..40_000))),
    (2, |random, host| Kind::BitFlip(host, random.random())),
    (1, |_, host| Kind::Replace(host)),
];

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::PowerLoss(_) => "power-loss",
            Self::PowerLossOfAll => "power-loss-of-all",
            Self::Kill(_) => "kill",
            Self::Restart(_) => "restart",
            Self::Pause(_) => "pause",
            Self::Partition(_) => "partition",
            Self::Halves(_) => "halves",
            Self::Deaf(_) => "deaf",
            Self::Mute(_) => "mute",
            Self::OneWay(..) => "one-way",
            Self::Loss(_) => "loss",
            Self::Twice(_) => "twice",
            Self::Reorder(_) => "reorder",
            Self::SlowDisk(..) => "slow-disk",
            Self::Full(..) => "disk-full",
            Self::Eio(..) => "disk-error",
            Self::Clock(..) => "clock",
            Self::BitFlip(..) => "bit-flip",
            Self::Replace(_) => "replace",
        }
    }

    /// Hosts that are switched off while it lasts.
    pub(crate) fn downs(&self, host: usize) -> bool {
        match self {
            Self::PowerLoss(it) | Self::Kill(it) | Self::BitFlip(it, _) => *it == host,
            Self::PowerLossOfAll => true,
            _ => false,
        }
    }

    /// Whether the machine gets no turn while it lasts.
    pub(crate) fn stops(&self, host: usize) -> bool {
        matches!(self, Self::Pause(it) if *it == host)
    }

    /// Whether it keeps datagrams of `from` away from `to`.
    pub(crate) fn blocks(&self, from: usize, to: usize) -> bool {
        match self {
            Self::Partition(host) => *host == from || *host == to,
            Self::Halves(half) => (half >> from) & 1 != (half >> to) & 1,
            Self::Deaf(host) => *host == to,
            Self::Mute(host) => *host == from,
            Self::OneWay(mouth, ear) => (*mouth, *ear) == (from, to),
            _ => false,
        }
    }
}

/// The faults of a storm of that length, by beginning. They may overlap. Each storm has its own mix:
/// about half of the kinds, some of them far more often than others; or, of `only`, each alike.
pub(crate) fn plan(
    random: &mut StdRng,
    hosts: usize,
    begin: Duration,
    length: Duration,
    only: Option<&str>,
) -> Vec<Fault> {
    let mut mix: Vec<(u32, Draw)> = Vec::new();
    for (weight, draw) in KINDS {
        let (enabled, factor) = (random.random_bool(0.5), random.random_range(0..4));
        match only {
            Some(only) if only.split(',').any(|it| it == name(draw)) => mix.push((1, draw)),
            None if enabled => mix.push((weight << factor, draw)),
            _ => {}
        }
    }
    let mut faults = Vec::new();
    let mut from = begin;
    loop {
        from += Duration::from_millis(random.random_range(100..2_500));
        let host = random.random_range(0..hosts);
        // Half of them last about as long as it takes to miss a writer and to name another.
        let longest = if random.random_bool(0.5) { 700 } else { 4_000 };
        let until = (from + Duration::from_millis(random.random_range(50..longest))).min(begin + length);
        if from >= begin + length {
            return faults;
        }
        let Ok((_, draw)) = mix.choose_weighted(random, |kind| kind.0) else { return faults };
        faults.push(Fault { kind: draw(random, host), from, until });
    }
}

/// How often each kind of fault, and whatever else is worth counting, was reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts(pub(crate) BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, name: &str, times: u64) {
        *self.0.entry(name.to_owned()).or_default() += times;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(name, times)| format!("{name}={times}")).collect();
        f.write_str(&each.join(" "))
    }
}

/// Names of all kinds of faults.
pub(crate) fn names() -> Vec<&'static str> {
    KINDS.iter().map(|(_, draw)| name(*draw)).collect()
}

fn name(draw: Draw) -> &'static str {
    draw(&mut StdRng::seed_from_u64(0), 0).name()
}
