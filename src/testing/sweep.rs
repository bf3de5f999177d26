//! Which bits to flip and where to cut, in tests that go through whole files: some, drawn by a seed, or
//! all of them.
//!
//! `SKEIN_SWEEP=all` is every bit and every cut. `SKEIN_SWEEP_SEED` (a number, 1 by default) draws
//! other ones than those of every day.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// True if every bit and every cut is wanted.
pub fn is_thorough() -> bool {
    std::env::var_os("SKEIN_SWEEP").is_some_and(|all| all == "all")
}

/// The generator that draws.
pub fn random() -> StdRng {
    let seed = std::env::var("SKEIN_SWEEP_SEED").ok().and_then(|seed| seed.parse().ok());
    StdRng::seed_from_u64(seed.unwrap_or(1))
}

/// Byte and bit: `some` of a file of that length, with its first and last byte, or every one.
pub fn bits(len: u64, some: usize) -> Vec<(u64, u8)> {
    if is_thorough() {
        return (0..len).flat_map(|at| (0..8).map(move |bit| (at, bit))).collect();
    }
    let mut random = random();
    let ends = [0, len.saturating_sub(1)].into_iter().filter(|at| *at < len);
    let drawn: Vec<u64> = (0..some).filter(|_| len > 0).map(|_| random.random_range(0..len)).collect();
    ends.chain(drawn).map(|at| (at, random.random_range(0..8))).collect()
}

/// Lengths below `len` to cut a file to, longest first: `some`, with nothing and all but one byte, or
/// every one.
pub fn cuts(len: u64, some: usize) -> Vec<u64> {
    if is_thorough() {
        return (0..len).rev().collect();
    }
    let mut random = random();
    let ends = [0, len.saturating_sub(1)].into_iter().filter(|at| *at < len);
    let mut cuts: Vec<u64> = ends.collect();
    cuts.extend((0..some).filter(|_| len > 0).map(|_| random.random_range(0..len)));
    cuts.sort_unstable_by(|a, b| b.cmp(a));
    cuts.dedup();
    cuts
}
