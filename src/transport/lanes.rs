//! Pacing of the bulk lanes.
//!
//! Stream priority orders only what still sits in the sender's buffer; what already queues in the
//! network delays a heartbeat whatever its priority. So bulk is kept below the link's rate: each
//! time the round trip shows that a queue has built up, what was sent meanwhile *is* the link's
//! rate, and bulk falls back to 70 % of it; while there is none it creeps up again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::protocol::Lane;

/// Largest piece sent at once on a paced lane.
pub(super) const PIECE: usize = 64 * 1024;
const START: f64 = 32e6;
const FLOOR: f64 = 1e6;
const CEILING: f64 = 4e9;
/// A queue is more than the shortest round trip again, plus this.
const QUEUE: Duration = Duration::from_millis(10);
const INTERVAL: Duration = Duration::from_millis(50);

/// True for the lanes that are paced.
pub(super) const fn paced(lane: Lane) -> bool {
    matches!(lane, Lane::CatchUp | Lane::Bulk)
}

/// What the connection shows at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) rtt: Duration,
    pub(super) min_rtt: Duration,
    /// Bytes sent on the connection so far, all lanes together.
    pub(super) sent: u64,
}

/// Token bucket of one connection's bulk lanes.
#[derive(Debug)]
pub(super) struct Pacer(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Bytes per second.
    rate: f64,
    /// Bytes that may be sent at `filled`; negative while in debt.
    tokens: f64,
    filled: Instant,
    judged: Instant,
    sent: u64,
    /// Somebody had to wait since the last judgement, so the rate is what limits.
    limited: bool,
    /// Judgements to skip while the queue of the last cut drains.
    hold: u8,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        let state =
            State { rate: START, tokens: 0.0, filled: now, judged: now, sent: 0, limited: false, hold: 0 };
        Self(Mutex::new(state))
    }

    /// Waits until `bytes` more may be sent. Cancel-safe but for the tokens taken.
    pub(super) async fn take(&self, bytes: usize, sample: impl Fn() -> Sample) {
        let wait = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if now.duration_since(state.judged) >= INTERVAL {
                state.judge(now, sample());
            }
            state.take(now, bytes)
        };
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

impl State {
    fn take(&mut self, now: Instant, bytes: usize) -> Duration {
        let burst = (self.rate * 0.01).max(2.0 * PIECE as f64);
        let earned = now.duration_since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + earned).min(burst) - bytes as f64;
        self.filled = now;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        self.limited = true;
        Duration::from_secs_f64(-self.tokens / self.rate)
    }

    fn judge(&mut self, now: Instant, sample: Sample) {
        let elapsed = now.duration_since(self.judged).as_secs_f64();
        let measured = sample.sent.saturating_sub(self.sent) as f64 / elapsed.max(1e-3);
        self.judged = now;
        self.sent = sample.sent;
        if self.hold > 0 {
            self.hold -= 1;
        } else if sample.rtt > sample.min_rtt * 2 + QUEUE {
            self.rate = (0.7 * measured.min(self.rate)).clamp(FLOOR, CEILING);
            self.hold = 2;
        } else if self.limited {
            self.rate = (self.rate * 1.1).min(CEILING);
        }
        self.limited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `rate` bytes per second with a queue, and a sender that always has bulk to send.
    #[tokio::test(start_paused = true)]
    async fn settles_below_the_link_and_keeps_the_queue_short() {
        let link = 10e6;
        let pacer = Pacer::new(Instant::now());
        let start = Instant::now();
        let (mut sent, mut queue, mut last) = (0_u64, 0.0_f64, start);
        let mut late = Vec::new();
        while start.elapsed() < Duration::from_secs(20) {
            let rtt = Duration::from_millis(1) + Duration::from_secs_f64(queue / link);
            pacer.take(PIECE, || Sample { rtt, min_rtt: Duration::from_millis(1), sent }).await;
            let now = Instant::now();
            queue = (queue - now.duration_since(last).as_secs_f64() * link).max(0.0) + PIECE as f64;
            last = now;
            sent += PIECE as u64;
            if start.elapsed() > Duration::from_secs(5) {
                late.push(queue / link);
            }
        }
        let rate = sent as f64 / start.elapsed().as_secs_f64();
        assert!(rate > 0.6 * link, "{rate}");
        late.sort_by(f64::total_cmp);
        let p99 = late[late.len() * 99 / 100];
        assert!(p99 < 0.05, "queue p99 {p99} s");
    }
}
