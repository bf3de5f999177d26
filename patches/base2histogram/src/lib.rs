//! What openraft asks of the crate `base2histogram`, in its place.
//!
//! openraft counts sizes of batches in about twenty histograms. The crate makes tables for sixteen widths of
//! their buckets when the first is made, 26 MB of which openraft uses 2 KB; that was 40 % of an idle node.
//! This has the part of its interface (0.2.3) that openraft calls, and buckets of the same bounds, without
//! tables. A percentile is the least value of its bucket here and interpolated there; nobody asks for one while
//! openraft's feature `runtime-stats` is off. It goes when a release makes only the tables that are used.

#![forbid(unsafe_code)]

use std::{fmt, marker::PhantomData};

/// A bucket's bounds keep so many of a value's leading bits.
const WIDTH: u32 = 3;
/// Buckets between two powers of two, and of one value each below them.
const GROUP: usize = 1 << (WIDTH - 1);
/// For every value of 64 bits.
const BUCKETS: usize = GROUP + (u64::BITS - WIDTH + 1) as usize * GROUP;

/// Counts of values by bucket. `T` names slots of time, of which there is one here.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// Without values.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, slots: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count = count.saturating_add(times);
            self.total = self.total.saturating_add(times);
        }
    }

    /// How many values there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The least value of the bucket below whose end this share of all values lies; 0 without values.
    #[must_use]
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0_u64;
        for (at, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= wanted {
                return least(at);
            }
        }
        0
    }

    /// The percentiles that are shown.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total,
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.10),
            p50: self.percentile(0.50),
            p90: self.percentile(0.90),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({})", self.percentile_stats())
    }
}

/// The bucket of a value: itself below [`GROUP`], then its leading bits.
fn bucket(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    match bits.checked_sub(WIDTH) {
        None => value as usize,
        // The first of the leading bits is always set.
        Some(shift) => GROUP * (shift as usize + 1) + ((value >> shift) as usize & (GROUP - 1)),
    }
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    match (bucket / GROUP).checked_sub(1) {
        None => bucket as u64,
        Some(shift) => ((GROUP | (bucket % GROUP)) as u64) << shift,
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}")
    }
}

/// Histograms below one another, a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(String, PercentileStats)>);

impl AsciiChart {
    /// Without histograms.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more.
    #[must_use]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.0.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_the_one_before_ends() {
        for at in 1..BUCKETS {
            assert_eq!((bucket(least(at)), bucket(least(at) - 1)), (at, at - 1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        // As in the crate.
        assert_eq!([16, 20, 1024, 4096].map(bucket), [12, 13, 36, 44]);
        assert_eq!(BUCKETS, 252);
    }

    #[test]
    fn percentiles_are_the_least_of_their_bucket() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!((histogram.percentile(0.5), histogram.total()), (0, 0));
        for value in 1..=1000 {
            histogram.record(value);
        }
        histogram.record_n(u64::MAX, 10);
        assert_eq!([0.001, 0.5, 0.9, 1.0].map(|share| histogram.percentile(share)), [2, 448, 896, 7 << 61]);
        assert_eq!(histogram.percentile_stats().samples, 1010);
    }
}
