//! How the times of many requests spread.

use std::time::Duration;

use serde::Serialize;

/// How durations spread, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) count: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

impl Spread {
    /// `None` if there is none.
    pub(super) fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let ms = |at: Duration| at.as_secs_f64() * 1e3;
        Some(Self {
            count: all.len(),
            p50_ms: ms(percentile(&all, 500)?),
            p99_ms: ms(percentile(&all, 990)?),
            p999_ms: ms(percentile(&all, 999)?),
            max_ms: ms(*all.last()?),
        })
    }
}

/// Nearest rank: the lowest of `sorted` that at least so many in a thousand of them do not exceed.
fn percentile(sorted: &[Duration], per_mille: usize) -> Option<Duration> {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(all: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        all.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let spread = Spread::of(ms((1..=100).rev())).unwrap();
        assert_eq!(spread, Spread { count: 100, p50_ms: 50.0, p99_ms: 99.0, p999_ms: 100.0, max_ms: 100.0 });
        let spread = Spread::of(ms(1..=20)).unwrap();
        // Of 20 the 99th percentile is the worst.
        assert_eq!((spread.p50_ms, spread.p99_ms), (10.0, 20.0));
        let spread = Spread::of(ms([3, 1, 2])).unwrap();
        assert_eq!((spread.p50_ms, spread.p99_ms, spread.max_ms), (2.0, 3.0, 3.0));
        assert_eq!(Spread::of(ms([7])).unwrap().p50_ms, 7.0);
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
