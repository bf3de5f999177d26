//! What clients write down, outside of everything that can fail.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::time::Instant;

use crate::history::{History, Nanos, Write};

/// Writes of one run at most, so that it stays bounded.
const LIMIT: u64 = 500_000;
/// Oddities that are written down; more would say the same.
const ODDITIES: usize = 50;

/// Shared by all clients.
#[derive(Debug)]
pub struct Ledger {
    began: Instant,
    stop: AtomicBool,
    next: AtomicU64,
    history: Mutex<History>,
    /// Attempts that were refused or of unknown outcome, and reads that were not answered.
    pub failed: AtomicU64,
}

impl Ledger {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            history: Mutex::default(),
            failed: AtomicU64::new(0),
        }
    }

    /// What had been written down by then. What was answered later has an unknown outcome.
    pub fn until(&self, when: Nanos) -> Self {
        let all = self.history();
        let mut writes: Vec<Write> =
            all.writes.iter().filter(|write| write.invoked <= when).cloned().collect();
        for write in &mut writes {
            write.acks.retain(|ack| ack.when <= when);
        }
        let reads = all.reads.iter().filter(|read| read.returned <= when).cloned().collect();
        let history = History { lone: all.lone, writes, reads, ..History::default() };
        Self { began: self.began, history: Mutex::new(history), ..Self::new() }
    }

    pub fn now(&self) -> Nanos {
        Nanos::try_from(self.began.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// A number that no other write has.
    pub fn next(&self) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        if n >= LIMIT {
            self.stop();
        }
        n
    }

    /// The last number given.
    pub fn last(&self) -> u64 {
        self.next.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Clients may be started again.
    pub fn resume(&self) {
        self.stop.store(false, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt that came to nothing.
    pub fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that should never be given.
    pub fn odd(&self, says: String) {
        let mut history = self.history();
        if history.oddities.len() < ODDITIES {
            history.oddities.push(says);
        }
    }
}
