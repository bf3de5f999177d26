//! Real node processes in a temporary directory on loopback, for one test.

use std::{
    ops::{Index, IndexMut},
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;

/// Clusters at a time: every node of more would be too slow for its own timeouts.
const AT_A_TIME: usize = 2;
/// Longest wait for what should come by itself.
const PATIENCE: Duration = Duration::from_secs(45);

/// The nodes `n1`, `n2`, ...; they are killed, and their files removed, with the value. When the
/// test panics the end of each log is printed.
pub struct Cluster {
    nodes: Vec<Process>,
    home: TempDir,
    _place: Place,
}

impl Cluster {
    /// Of no node yet.
    pub fn empty() -> Self {
        let place = Place::take();
        Self { nodes: Vec::new(), home: tempfile::tempdir().unwrap(), _place: place }
    }

    /// So many voters that are up and have a writer.
    #[track_caller]
    pub fn of(count: usize) -> Self {
        let mut cluster = Self::empty();
        let first = cluster.add();
        cluster[first].start(&["--new-cluster"]);
        cluster.join(count - 1);
        cluster
    }

    /// Another node, not started.
    pub fn add(&mut self) -> usize {
        let name = format!("n{}", self.nodes.len() + 1);
        self.nodes.push(Process::new(self.home.path(), &name));
        self.nodes.len() - 1
    }

    /// So many more nodes, joined by one token from the first one that runs, until all are voters.
    #[track_caller]
    pub fn join(&mut self, count: usize) {
        let door = self.running().next().expect("one node runs");
        if count > 0 {
            let token = self[door].token(count);
            let seed = self[door].mesh.clone();
            let flags = ["--join", &token, "--seed", &seed];
            let mut started = Vec::new();
            for _ in 0..count {
                let node = self.add();
                started.push((node, self[node].launch(&flags)));
            }
            for (node, lines) in started {
                if let Err(ended) = self[node].wait_ready(&lines) {
                    panic!("{} could not join: {ended:?}", self[node].name);
                }
            }
        }
        self.settled();
    }

    /// Waits until every running node sees exactly the running nodes, as voters that are up, and
    /// one writer among them. Nodes that were killed are members still, and are seen down.
    #[track_caller]
    pub fn settled(&self) {
        let mut seen = Value::Null;
        let settled = poll(PATIENCE, || {
            let mut writers = Vec::new();
            for node in self.running() {
                let status = self[node].status()?;
                seen = status.clone();
                let up =
                    status["nodes"].as_array()?.iter().filter(|n| n["role"] == "voter" && n["state"] == "up");
                if up.count() != self.running().count() {
                    return None;
                }
                writers.push(status["writer"].as_str()?.to_owned());
            }
            writers.dedup();
            let [writer] = &writers[..] else { return None };
            self.running().any(|node| self[node].id == *writer).then_some(())
        });
        assert!(settled.is_some(), "the cluster has not settled after {PATIENCE:?}; last seen: {seen:#}");
    }

    /// Which node writes, as the running ones say.
    #[track_caller]
    pub fn writer(&self) -> usize {
        eventually("a writer that runs", || {
            self.running().find_map(|node| {
                let writer = self[node].status()?["writer"].as_str()?.to_owned();
                self.running().find(|other| self[*other].id == writer)
            })
        })
    }

    /// The running nodes but this one.
    pub fn others(&self, than: usize) -> Vec<usize> {
        self.running().filter(|node| *node != than).collect()
    }

    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_running())
    }

    pub fn processes(&mut self) -> &mut [Process] {
        &mut self.nodes
    }
}

impl Index<usize> for Cluster {
    type Output = Process;

    fn index(&self, node: usize) -> &Process {
        &self.nodes[node]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, node: usize) -> &mut Process {
        &mut self.nodes[node]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.nodes.iter().for_each(Process::print_end_of_log);
        }
    }
}

/// Asks until there is an answer, which must come soon.
#[track_caller]
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask)
}

/// Asks until there is an answer, which must come in that time.
#[track_caller]
pub fn within<T>(patience: Duration, what: &str, ask: impl FnMut() -> Option<T>) -> T {
    poll(patience, ask).unwrap_or_else(|| panic!("after {patience:?} still not: {what}"))
}

fn poll<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One of the places for clusters.
struct Place;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Place {
    fn take() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = FREED.wait_while(taken, |n| *n >= AT_A_TIME).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
