//! Bodies of line protocol in the shape of a fleet of machines. Their text is made ahead; only
//! timestamps are written when a body is sent, so that no row is sent twice.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use rand::Rng;

/// Digits of a timestamp in nanoseconds, from 2001 to 2286.
const DIGITS: usize = 19;
/// Different texts of one maker of bodies.
const TEXTS: usize = 16;

/// Hands out timestamps, each once, to all makers of bodies.
#[derive(Debug)]
pub(super) struct Stamps {
    /// The digits of the next body's timestamps that are the same for the whole body.
    next: AtomicU64,
}

impl Stamps {
    /// For bodies of that many rows, from `now_ns` on.
    pub(super) fn new(rows: u32, now_ns: u64) -> Arc<Self> {
        // Timestamps of a body, a power of ten: the digits behind it stand in the text already.
        let mut block = 1;
        while block < u64::from(rows) {
            block *= 10;
        }
        Arc::new(Self { next: AtomicU64::new(now_ns / block) })
    }

    /// Digits of each timestamp that are the same for the whole of a body.
    fn take(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

/// Makes bodies.
#[derive(Debug)]
pub(super) struct Bodies {
    texts: Vec<Text>,
    turn: usize,
    stamps: Arc<Stamps>,
}

/// A body without its timestamps, and where they begin.
#[derive(Debug)]
struct Text {
    bytes: Vec<u8>,
    stamps_at: Vec<usize>,
}

impl Bodies {
    /// Bodies of that many rows.
    pub(super) fn new(rows: u32, stamps: Arc<Stamps>, rng: &mut impl Rng) -> Self {
        let texts = (0..TEXTS).map(|_| text(rows, rng)).collect();
        Self { texts, turn: 0, stamps }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Bytes {
        let prefix = self.stamps.take();
        self.turn = (self.turn + 1) % self.texts.len().max(1);
        let Some(text) = self.texts.get(self.turn) else { return Bytes::new() };
        let mut bytes = text.bytes.clone();
        for at in &text.stamps_at {
            if let Some(digits) = bytes.get_mut(*at..*at + prefix.len()) {
                digits.copy_from_slice(prefix.as_bytes());
            }
        }
        bytes.into()
    }
}

/// `cpu,host=server017 value=1.0000,cpu_idle=2.0000,cpu_user=3.0000 TIMESTAMP`, a thousand hosts.
fn text(rows: u32, rng: &mut impl Rng) -> Text {
    let mut out = String::new();
    let mut stamps_at = Vec::new();
    for row in 0..rows {
        let host = rng.random_range(0..1000);
        let mut value = || f64::from(rng.random_range(0..1_000_000)) / 1e4;
        let (value, idle, user) = (value(), value(), value());
        out.push_str(&format!(
            "cpu,host=server{host:03} value={value:.4},cpu_idle={idle:.4},cpu_user={user:.4} "
        ));
        stamps_at.push(out.len());
        out.push_str(&format!("{row:0width$}\n", width = DIGITS));
    }
    Text { bytes: out.into_bytes(), stamps_at }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const NOW: u64 = 1_763_850_000_123_456_789;

    #[test]
    fn rows_have_the_shape_and_no_timestamp_comes_twice() {
        for rows in [1, 7, 1000, 1001] {
            let stamps = Stamps::new(rows, NOW);
            let mut rng = StdRng::seed_from_u64(1);
            let mut makers: Vec<Bodies> =
                (0..2).map(|_| Bodies::new(rows, stamps.clone(), &mut rng)).collect();
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
}
