//! How old the word of the writer is when it arrives. A frame says for how long its sender had been
//! confirmed as the writer, but not how long it was under way itself. So the sender names the newest
//! acknowledgement that it had got **on this stream**: the frame is younger than that.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::{Duration, Instant};

/// Acks whose send time is remembered.
const ACKS: usize = 64;

/// The writer's end of one stream: the newest lease round that was acknowledged on it; 0 before.
///
/// A round that the follower acknowledged on an earlier stream does not count: on this one it may
/// acknowledge the same round later than the frame was sent.
#[derive(Debug, Default)]
pub(super) struct Echo(AtomicU64);

impl Echo {
    pub(super) fn note(&self, round: u64) {
        self.0.fetch_max(round, Ordering::AcqRel);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The follower's end of one stream: when it acknowledged which lease round first.
#[derive(Debug, Default)]
pub(super) struct SentAcks(Mutex<VecDeque<(u64, Instant)>>);

impl SentAcks {
    /// An ack for `round` is about to be sent. Round 0 is none: the first ack of a stream may go out
    /// before a round was heard, and 0 is also what a sender echoes that has heard no ack.
    pub(super) fn note(&self, round: u64, now: Instant) {
        let mut acks = self.lock();
        if round > acks.back().map_or(0, |newest| newest.0) {
            if acks.len() == ACKS {
                acks.pop_front();
            }
            acks.push_back((round, now));
        }
    }

    /// When the writer was confirmed, by a frame that echoes `echo` and says that this was `age`
    /// before it was sent. Never later than it was: the frame was sent after the ack it echoes was
    /// received, and the time counts from when that ack was sent.
    pub(super) fn confirmed(&self, echo: u64, age: Duration) -> Option<Instant> {
        let sent = self.lock().iter().rev().find(|ack| ack.0 == echo).map(|ack| ack.1)?;
        sent.checked_sub(age)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_was_long_under_way_claims_nothing_before_an_ack_was_heard() {
        let (acks, echo) = (SentAcks::default(), Echo::default());
        let begin = Instant::now();
        // Sent before any ack was heard, read seconds later; the follower has answered with no round.
        let early = echo.get();
        let late = begin + Duration::from_secs(2);
        acks.note(0, late);
        assert_eq!(acks.confirmed(early, Duration::from_millis(5)), None);
        acks.note(7, late);
        acks.note(7, late + Duration::from_secs(1));
        echo.note(7);
        let age = Duration::from_millis(5);
        assert_eq!(acks.confirmed(echo.get(), age), Some(late - age));
        assert_eq!(acks.confirmed(8, age), None);
        echo.note(3);
        assert_eq!(echo.get(), 7);
    }

    #[test]
    fn old_acks_are_forgotten() {
        let acks = SentAcks::default();
        let now = Instant::now();
        (1..=ACKS as u64 + 1).for_each(|round| acks.note(round, now));
        assert_eq!(acks.confirmed(1, Duration::ZERO), None);
        assert_eq!(acks.confirmed(2, Duration::ZERO), Some(now));
    }
}
