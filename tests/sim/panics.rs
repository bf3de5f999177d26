//! Panics in tasks of nodes, which tokio catches and keeps to itself if nobody waits for the task: a
//! part of the node is gone then, and nothing says so.

use std::sync::{Mutex, PoisonError};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on every panic of this process is noted, besides being printed.
pub(crate) fn watch() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(format!("panic: {info}"));
        before(info);
    }));
}

/// Those since the last time.
pub(crate) fn take() -> Vec<String> {
    std::mem::take(&mut SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

#[test]
fn a_panic_in_a_task_is_seen() {
    use crate::machine::Machine;
    watch();
    let mut machine = Machine::default();
    machine.start(async {
        tokio::spawn(async { panic!("planted for this test") });
        std::future::pending().await
    });
    machine.turn();
    assert!(take().iter().any(|says| says.contains("planted for this test")));
}
