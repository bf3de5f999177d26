//! Work of the engine that no client waits for: flushes, compactions, counts.

use std::sync::{Arc, Mutex};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
};

use super::lock;
use crate::engine::EngineError;

/// How much less the kernel gives to a thread where there is not enough for all: about a third.
#[cfg(target_os = "linux")]
const NICE: i32 = 5;

/// Runs work that takes long on a thread of its own, which the kernel does not prefer, where the runtime has
/// threads; inline where there is only one (simulation). Goes on to its end if the future is dropped.
pub(super) async fn background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let threads =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if !threads {
        return work();
    }
    let (tell, told) = oneshot::channel();
    let once = Arc::new(Mutex::new(Some((work, tell))));
    let run = move || {
        let taken = lock(&once).take();
        if let Some((work, tell)) = taken {
            // Whoever asked may have given up.
            let _ = tell.send(work());
        }
    };
    let unpreferred = run.clone();
    // Not one of the runtime's: only a privileged process could make it what it was.
    let started = std::thread::Builder::new().name("skein-backgrnd".into()).spawn(move || {
        yield_to_others();
        unpreferred();
    });
    if started.is_err() {
        // The runtime waits for one of its own.
        tokio::task::spawn_blocking(run);
    }
    told.await.unwrap_or_else(|_| Err(EngineError::Broken("a background thread ended early".into())))
}

/// Makes the calling thread one that the kernel does not prefer.
pub(super) fn yield_to_others() {
    // Where that is not allowed it runs as others do. Elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICE);
}
