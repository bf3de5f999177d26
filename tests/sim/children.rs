//! Schedules in processes of their own, as many at once as there are cores.

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{FAULTS, SEED, faults::Counts};

/// What a schedule in another process came to.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) seed: u64,
    pub(crate) passed: bool,
    pub(crate) trace: Option<String>,
    pub(crate) simulated_ms: u64,
    pub(crate) counts: Counts,
    /// The first.
    pub(crate) violation: Option<String>,
    pub(crate) output: String,
}

/// Runs the schedule of one seed, if need be with a planted bug and storms of these kinds of faults.
pub(crate) fn run(seed: u64, mutant: Option<(&str, &str)>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "schedules", "--nocapture", "--test-threads=1"]).env(SEED, seed.to_string());
    if let Some((name, faults)) = mutant {
        command.env("SKEIN_MUTANT", name);
        if !faults.is_empty() {
            command.env(FAULTS, faults);
        }
    }
    let done = command.output().unwrap();
    let output =
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let line = |what: &str| {
        // The harness writes the name of the test in front of the first line.
        let start = format!("seed {seed} {what} ");
        output.lines().find_map(|line| Some(line.split_once(&start)?.1.trim().to_owned()))
    };
    let mut counts = Counts::default();
    for (name, times) in line("counts").iter().flat_map(|l| l.split(' ')).filter_map(|c| c.split_once('=')) {
        counts.add(name, times.parse().unwrap());
    }
    let trace = line("trace");
    Child {
        seed,
        // A child that ran no schedule has not passed.
        passed: done.status.success() && trace.is_some(),
        trace,
        simulated_ms: line("simulated").and_then(|l| l.split(' ').next()?.parse().ok()).unwrap_or(0),
        counts,
        violation: line("violated"),
        output,
    }
}

/// Runs many, in the order of their seeds, and returns what they came to in that order. With
/// `until_failure` none is begun after one has failed.
pub(crate) fn run_all(
    seeds: std::ops::Range<u64>,
    mutant: Option<(&str, &str)>,
    until_failure: bool,
) -> Vec<Child> {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let children = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !(until_failure && failed.load(Ordering::Relaxed)) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let done = run(seed, mutant);
                    failed.fetch_or(!done.passed, Ordering::Relaxed);
                    children.lock().unwrap().push(done);
                }
            });
        }
    });
    let mut children = children.into_inner().unwrap();
    children.sort_by_key(|child| child.seed);
    children
}
