//! Machines that share one thread and take turns of a few simulated milliseconds.
//!
//! Each has a tokio runtime of its own whose clock is paused and moves only in its turn. A machine
//! that stands still gets no turn; when it goes on, its clock has jumped, as that of a process does
//! that was stopped and continued.

use std::{cell::Cell, fmt, future::Future, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, advance, sleep},
};

/// How long a turn is, in whole milliseconds: the grain of tokio's timers.
pub(crate) const TURN: Duration = Duration::from_millis(5);

thread_local! {
    /// When the turn began, and by the clock of the machine whose turn it is.
    static NOW: Cell<(Duration, Option<Instant>)> = const { Cell::new((Duration::ZERO, None)) };
}

/// Simulated time since the schedule began.
pub(crate) fn now() -> Duration {
    let (began, base) = NOW.get();
    began + base.map_or(Duration::ZERO, |base| base.elapsed())
}

/// Begins the next round of turns.
pub(crate) fn next_round() {
    NOW.set((NOW.get().0 + TURN, None));
}

/// A machine, switched off at first.
#[derive(Default)]
pub(crate) struct Machine {
    runtime: Option<Runtime>,
    late: Duration,
}

impl Machine {
    pub(crate) fn is_on(&self) -> bool {
        self.runtime.is_some()
    }

    /// Switches it on: from its next turn on it runs `program`.
    pub(crate) fn start(&mut self, program: impl Future<Output = ()> + Send + 'static) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without I/O takes nothing from the system");
        // The clock starts at some moment between two milliseconds; timers know whole ones only.
        runtime.block_on(async { sleep(Duration::from_millis(1)).await });
        runtime.spawn(program);
        (self.runtime, self.late) = (Some(runtime), Duration::ZERO);
    }

    /// Switches it off, whatever it was doing.
    pub(crate) fn stop(&mut self) {
        self.runtime = None;
    }

    /// Lets it run for a turn.
    pub(crate) fn turn(&mut self) {
        let Some(runtime) = &self.runtime else { return };
        let late = std::mem::take(&mut self.late);
        runtime.block_on(async {
            if !late.is_zero() {
                advance(late).await;
            }
            NOW.set((NOW.get().0, Some(Instant::now())));
            sleep(TURN).await;
        });
        NOW.set((NOW.get().0, None));
    }

    /// Lets a turn pass without it.
    pub(crate) fn stand_still(&mut self) {
        self.late += TURN;
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("on", &self.is_on()).field("late", &self.late).finish()
    }
}

/// Runs something to its end beside all machines, at a moment when none has its turn.
pub(crate) fn aside<T>(what: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O takes nothing from the system").block_on(what)
}

#[test]
fn who_stands_still_finds_its_clock_ahead() {
    use std::sync::{Arc, Mutex};
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut machine, notes) = (Machine::default(), seen.clone());
    machine.start(async move {
        loop {
            sleep(TURN * 2).await;
            notes.lock().unwrap().push(now());
        }
    });
    for round in 0..20 {
        if (5..15).contains(&round) {
            machine.stand_still();
        } else {
            machine.turn();
        }
        next_round();
    }
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|at| *at < TURN * 5 || *at >= TURN * 15), "{seen:?}");
    assert!(seen.iter().any(|at| *at >= TURN * 15), "{seen:?}");
}
