//! The long-lived tasks of a node: spawned here and nowhere else, each with a name; the first
//! that ends ends the node.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::task::JoinSet;

use super::NodeError;

/// Which task ended, and how.
type Ended = (&'static str, Result<(), NodeError>);

/// A set of named tasks.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: Arc<Mutex<JoinSet<Ended>>>,
}

impl Tasks {
    /// Runs `task` until it ends or the node stops.
    pub(super) fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move { (name, task.await) });
    }

    /// Waits for the first task to end, and says why it did. Cancel-safe.
    pub(super) async fn first_end(&self) -> NodeError {
        let ended = std::future::poll_fn(|cx| {
            self.set.lock().unwrap_or_else(PoisonError::into_inner).poll_join_next(cx)
        })
        .await;
        match ended {
            Some(Ok((_, Err(error)))) => error,
            Some(Ok((name, Ok(())))) => NodeError::Task(format!("{name} ended")),
            Some(Err(error)) if error.is_panic() => NodeError::Task(format!("a task panicked: {error}")),
            Some(Err(_)) | None => NodeError::Task("all tasks were stopped".into()),
        }
    }

    /// Stops them all, without waiting for what they are doing.
    pub(super) fn abort_all(&self) {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
