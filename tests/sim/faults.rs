//! What goes wrong in a schedule, and when: all of it follows from the seed.

use std::{collections::BTreeMap, fmt, time::Duration};

use rand::{Rng, rngs::StdRng};

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
    /// Nothing goes to the host and nothing comes from it.
    Partition(usize),
    /// It hears nothing.
    Deaf(usize),
    /// It is not heard.
    Mute(usize),
    /// Every datagram may be lost, with this probability.
    Loss(f64),
    /// Every datagram may arrive twice, with this probability.
    Twice(f64),
    /// A sync takes this long.
    SlowDisk(usize, Duration),
}

impl Kind {
    fn draw(random: &mut StdRng, hosts: usize) -> Self {
        let host = random.random_range(0..hosts);
        match random.random_range(0..20) {
            0..=3 => Self::PowerLoss(host),
            4..=5 => Self::PowerLossOfAll,
            6..=8 => Self::Kill(host),
            9..=11 => Self::Partition(host),
            12..=13 => Self::Deaf(host),
            14..=15 => Self::Mute(host),
            16..=17 => Self::Loss(random.random_range(0.02..0.3)),
            18 => Self::Twice(random.random_range(0.05..0.5)),
            _ => Self::SlowDisk(host, Duration::from_millis(random.random_range(20..300))),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::PowerLoss(_) => "power-loss",
            Self::PowerLossOfAll => "power-loss-of-all",
            Self::Kill(_) => "kill",
            Self::Partition(_) => "partition",
            Self::Deaf(_) => "deaf",
            Self::Mute(_) => "mute",
            Self::Loss(_) => "loss",
            Self::Twice(_) => "twice",
            Self::SlowDisk(..) => "slow-disk",
        }
    }

    /// Hosts that are down while it lasts.
    pub(crate) fn downs(&self, host: usize) -> bool {
        match self {
            Self::PowerLoss(it) | Self::Kill(it) => *it == host,
            Self::PowerLossOfAll => true,
            _ => false,
        }
    }

    /// Whether it keeps datagrams of `from` away from `to`.
    pub(crate) fn blocks(&self, from: usize, to: usize) -> bool {
        match self {
            Self::Partition(host) => *host == from || *host == to,
            Self::Deaf(host) => *host == to,
            Self::Mute(host) => *host == from,
            _ => false,
        }
    }
}

/// The faults of a storm of that length, by beginning. They may overlap.
pub(crate) fn plan(random: &mut StdRng, hosts: usize, begin: Duration, length: Duration) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut from = begin;
    loop {
        from += Duration::from_millis(random.random_range(100..3_000));
        if from >= begin + length {
            return faults;
        }
        let kind = Kind::draw(random, hosts);
        let until = (from + Duration::from_millis(random.random_range(50..4_000))).min(begin + length);
        faults.push(Fault { kind, from, until });
    }
}

/// How often each kind of fault was reached.
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
