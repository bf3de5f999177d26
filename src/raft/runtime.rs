//! openraft's view of the async runtime: tokio for everything, but random draws (election
//! timeouts) come from an injected seed, so that a simulated run can be repeated.

use std::{cell::Cell, future::Future, time::Duration};

use futures::FutureExt;
use openraft::{
    OptionalSend,
    rt::{AsyncRuntime, deterministic_rng::DeterministicRng},
};

/// The runtime that everything but randomness is delegated to.
type Tokio = openraft::impls::TokioRuntime;
/// openraft's own seedable generator, whose crate is not among ours.
type Seeded = DeterministicRng<Tokio>;

tokio::task_local! {
    /// Seed of the current task; tasks spawned from it get seeds derived from it.
    static SEED: Cell<u64>;
}

/// Runs `work` so that it and every task openraft spawns from it draw from `seed`.
pub(super) async fn seeded<F: Future>(seed: u64, work: F) -> F::Output {
    SEED.scope(Cell::new(seed), work).await
}

/// tokio, with random numbers from the seed of the task.
#[derive(Debug)]
pub(super) struct Runtime(Tokio);

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = <Tokio as AsyncRuntime>::Watch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match take_seed() {
            Some(seed) => Tokio::spawn(SEED.scope(Cell::new(mix(seed, 0x9e37_79b9_7f4a_7c15)), future)),
            None => Tokio::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        Tokio::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        // Outside of `seeded` (openraft's test suites) the process generator stands in: a
        // constant would give every node the same election timeout.
        let seed = take_seed().unwrap_or_else(rand::random);
        Seeded::scope(seed, async { Seeded::thread_rng() })
            .now_or_never()
            .unwrap_or_else(|| unreachable!("a future without an await point is ready at once"))
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// The seed of this task, which moves on; `None` outside of [`seeded`].
fn take_seed() -> Option<u64> {
    SEED.try_with(|cell| {
        let seed = cell.get();
        cell.set(mix(seed, 0x6a09_e667_f3bc_c908));
        seed
    })
    .ok()
}

/// SplitMix64: different increments give independent sequences.
fn mix(seed: u64, increment: u64) -> u64 {
    let z = seed.wrapping_add(increment);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn draws(seed: u64) -> Vec<u64> {
        let config = openraft::Config::default();
        seeded(seed, async {
            let here = config.new_rand_election_timeout::<Runtime>();
            let config = config.clone();
            let there = Runtime::spawn(async move {
                (0..8).map(|_| config.new_rand_election_timeout::<Runtime>()).collect::<Vec<_>>()
            });
            let mut all = there.await.unwrap();
            all.push(here);
            all
        })
        .await
    }

    #[tokio::test]
    async fn a_seed_decides_every_draw() {
        assert_eq!(draws(7).await, draws(7).await);
        assert_ne!(draws(7).await, draws(8).await);
        let once = draws(7).await;
        assert!(once.iter().any(|timeout| *timeout != once[0]), "drawn anew each time: {once:?}");
    }
}
