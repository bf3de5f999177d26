//! Bodies in the shape of a fleet of machines, as line protocol or as columns in MessagePack. They
//! are made ahead; only timestamps are written when a body is sent, so that no row is sent twice.
//! Which machines there are, and which tables, is told by a [`Fleet`].

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use clap::ValueEnum;
use rand::Rng;
use serde::Serialize;

use super::fleet::Fleet;

/// Digits of a timestamp in nanoseconds, from 2001 to 2286.
const DIGITS: usize = 19;
/// Different bodies of one maker, but for their timestamps.
pub(super) const KINDS: usize = 16;

/// What a body is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Format {
    /// InfluxDB line protocol
    #[default]
    LineProtocol,
    /// Columns in MessagePack, as Arc takes them
    Msgpack,
}

impl Format {
    /// As the flag has it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::LineProtocol => "line-protocol",
            Self::Msgpack => "msgpack",
        }
    }
}

/// Hands out timestamps, each once, to all makers of bodies.
#[derive(Debug)]
pub(super) struct Stamps {
    /// Timestamps of a body by this.
    next: AtomicU64,
    /// Timestamps that a body may take: a power of ten, so that their last digits stand in a text
    /// already.
    block: u64,
}

impl Stamps {
    /// For bodies of that many rows, from `now_ns` on.
    pub(super) fn new(rows: u32, now_ns: u64) -> Arc<Self> {
        let mut block = 1;
        while block < u64::from(rows) {
            block *= 10;
        }
        Arc::new(Self { next: AtomicU64::new(now_ns / block), block })
    }

    fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// Makes bodies.
#[derive(Debug)]
pub(super) struct Bodies {
    format: Format,
    unstamped: Vec<Unstamped>,
    turn: usize,
    stamps: Arc<Stamps>,
}

/// A body without its timestamps, and where they begin.
#[derive(Debug, Default)]
struct Unstamped {
    bytes: Vec<u8>,
    stamps_at: Vec<usize>,
}

impl Bodies {
    /// Bodies of that many rows, of a thousand hosts in one table.
    pub(super) fn new(format: Format, rows: u32, stamps: Arc<Stamps>, rng: &mut impl Rng) -> Self {
        let mut fleet = Fleet::of_a_thousand();
        let one = |_| match format {
            Format::LineProtocol => text(rows, &mut fleet, rng),
            Format::Msgpack => columns(rows, &mut fleet, rng),
        };
        Self { format, unstamped: (0..KINDS).map(one).collect(), turn: 0, stamps }
    }

    /// So many different bodies of that many rows of a fleet, in line protocol.
    pub(super) fn of(
        fleet: &mut Fleet,
        kinds: usize,
        rows: u32,
        stamps: Arc<Stamps>,
        rng: &mut impl Rng,
    ) -> Self {
        let unstamped = (0..kinds).map(|_| text(rows, fleet, rng)).collect();
        Self { format: Format::LineProtocol, unstamped, turn: 0, stamps }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Bytes {
        let prefix = self.stamps.take();
        self.turn = (self.turn + 1) % self.unstamped.len().max(1);
        let Some(body) = self.unstamped.get(self.turn) else { return Bytes::new() };
        let mut bytes = body.bytes.clone();
        match self.format {
            Format::LineProtocol => {
                let prefix = prefix.to_string();
                body.stamps_at.iter().for_each(|at| put(&mut bytes, *at, prefix.as_bytes()));
            }
            Format::Msgpack => {
                let stamps = prefix * self.stamps.block..;
                for (at, stamp) in body.stamps_at.iter().zip(stamps) {
                    put(&mut bytes, *at, &stamp.to_be_bytes());
                }
            }
        }
        bytes.into()
    }
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + part.len()) {
        place.copy_from_slice(part);
    }
}

/// From 0 to 100, with four decimals.
fn value(rng: &mut impl Rng) -> f64 {
    f64::from(rng.random_range(0..1_000_000)) / 1e4
}

/// `cpu,host=server017 value=1.0000,cpu_idle=2.0000,cpu_user=3.0000 TIMESTAMP`, line by line.
fn text(rows: u32, fleet: &mut Fleet, rng: &mut impl Rng) -> Unstamped {
    let mut out = String::new();
    let mut stamps_at = Vec::new();
    for row in 0..rows {
        let (table, host) = (fleet.tables.next(rng), fleet.hosts.next(rng));
        let (value, idle, user) = (value(rng), value(rng), value(rng));
        out.push_str(&format!("{table},host={host} value={value:.4},cpu_idle={idle:.4},cpu_user={user:.4} "));
        stamps_at.push(out.len());
        out.push_str(&format!("{row:0width$}\n", width = DIGITS));
    }
    Unstamped { bytes: out.into_bytes(), stamps_at }
}

/// `{"m": "cpu", "columns": {"time": [..], "host": [..], "value": [..], ..}}`, of one table.
fn columns(rows: u32, fleet: &mut Fleet, rng: &mut impl Rng) -> Unstamped {
    let mut out = Unstamped::default();
    let bytes = &mut out.bytes;
    bytes.push(0x82);
    word(bytes, "m");
    word(bytes, &fleet.tables.next(rng));
    word(bytes, "columns");
    bytes.push(0x85);
    list(bytes, "time", rows);
    for _ in 0..rows {
        bytes.push(0xd3);
        out.stamps_at.push(bytes.len());
        bytes.extend_from_slice(&[0; 8]);
    }
    list(bytes, "host", rows);
    (0..rows).for_each(|_| word(bytes, &fleet.hosts.next(rng)));
    for name in ["value", "cpu_idle", "cpu_user"] {
        list(bytes, name, rows);
        for _ in 0..rows {
            bytes.push(0xcb);
            bytes.extend_from_slice(&value(rng).to_be_bytes());
        }
    }
    out
}

/// A string of less than 32 bytes.
fn word(bytes: &mut Vec<u8>, word: &str) {
    bytes.push(0xa0 | word.len() as u8);
    bytes.extend_from_slice(word.as_bytes());
}

/// A key and the head of its list.
fn list(bytes: &mut Vec<u8>, name: &str, rows: u32) {
    word(bytes, name);
    bytes.push(0xdd);
    bytes.extend_from_slice(&rows.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow_array::{cast::AsArray, types::TimestampNanosecondType};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::engine::columnar::{
        ingest::{Options, Precision, line_protocol, msgpack},
        schema::Schemas,
    };

    const NOW: u64 = 1_763_850_000_123_456_789;

    #[test]
    fn rows_have_the_shape_and_no_timestamp_comes_twice() {
        for rows in [1, 7, 1000, 1001] {
            let stamps = Stamps::new(rows, NOW);
            let mut rng = StdRng::seed_from_u64(1);
            let mut makers: Vec<Bodies> =
                (0..2).map(|_| Bodies::new(Format::LineProtocol, rows, stamps.clone(), &mut rng)).collect();
            let mut seen = BTreeSet::new();
            for _ in 0..20 {
                for maker in &mut makers {
                    let body = maker.next();
                    let lines: Vec<&str> = std::str::from_utf8(&body).unwrap().lines().collect();
                    assert_eq!(lines.len(), rows as usize);
                    for line in lines {
                        let [key, fields, stamp] = line.split(' ').collect::<Vec<_>>()[..] else {
                            panic!("{line}")
                        };
                        assert!(key.starts_with("cpu,host=server") && key.len() == 18, "{line}");
                        assert_eq!(fields.matches('=').count(), 3, "{line}");
                        let stamp: u64 = stamp.parse().unwrap();
                        assert!(stamp.abs_diff(NOW) < 1_000_000_000, "{line}");
                        assert!(seen.insert(stamp), "{stamp} twice");
                    }
                }
            }
        }
    }

    #[test]
    fn both_formats_are_read_as_the_same_points() {
        for format in [Format::LineProtocol, Format::Msgpack] {
            for rows in [1, 31, 1000] {
                let mut bodies =
                    Bodies::new(format, rows, Stamps::new(rows, NOW), &mut StdRng::seed_from_u64(1));
                let options = Options {
                    database: "bench".into(),
                    precision: Precision::Nanosecond,
                    now_ns: 0,
                    accept_partial: false,
                    series: None,
                };
                let (mut first, mut room) = (None, |_| true);
                for _ in 0..3 {
                    let body = bodies.next();
                    let parse = match format {
                        Format::LineProtocol => line_protocol::parse,
                        Format::Msgpack => msgpack::parse,
                    };
                    let parsed = parse(&body, &options, &Schemas::default(), &mut room).unwrap();
                    assert_eq!((parsed.rows, parsed.rejected_total), (rows as usize, 0), "{format:?}");
                    let table = parsed.batch.unwrap().tables.remove(0);
                    let names: Vec<_> =
                        table.schema.columns().iter().map(|(name, _)| name.as_str()).collect();
                    assert_eq!((table.table.as_str(), table.schema.tags()), ("cpu", 1));
                    assert_eq!(names, ["host", "value", "cpu_idle", "cpu_user"]);
                    let times =
                        table.rows.column(0).as_primitive::<TimestampNanosecondType>().values().to_vec();
                    let start = *first.get_or_insert(times[0]);
                    assert!(start.unsigned_abs().abs_diff(NOW) < 1_000, "{format:?}: {start}");
                    assert!(times.is_sorted() && times.len() == rows as usize);
                }
            }
        }
    }
}
