//! Three unmodified nodes over a simulated network, disk, clock and randomness: everything that
//! happens follows from a seed.
//!
//! `cargo test --test sim` runs 20 schedules; `SKEIN_SIM_SEEDS=n` as many as you like, from
//! `SKEIN_SIM_FIRST` on; `SKEIN_SIM_SEED=s` one again. Each runs in a process of its own (see
//! `entropy.rs`), as many at once as there are cores.

mod entropy;
mod faults;
mod host;
mod invariants;
mod ledger;
mod network;
mod world;

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use faults::Counts;
use skeinmesh::testing::mutant::{MUTANTS, plant_from_environment};

/// One schedule to run, in this process.
const SEED: &str = "SKEIN_SIM_SEED";
/// How many to run.
const SEEDS: &str = "SKEIN_SIM_SEEDS";
/// The first of them.
const FIRST: &str = "SKEIN_SIM_FIRST";
/// A planted bug is caught by one of that many.
const WITHIN: u64 = 30;

#[test]
fn schedules() {
    match number(SEED) {
        Some(seed) => replay(seed),
        None => many(number(FIRST).unwrap_or(1), number(SEEDS).unwrap_or(20)),
    }
}

#[test]
fn a_seed_decides_every_datagram() {
    if number(SEED).is_some() {
        return;
    }
    for seed in [1, 2] {
        let (first, again) = (child(seed, None), child(seed, None));
        assert!(first.trace.is_some(), "{}", first.output);
        assert_eq!(first.trace, again.trace, "seed {seed}");
    }
}

/// A pass proves nothing if a bug would pass too.
#[test]
fn planted_bugs_are_caught() {
    if number(SEED).is_some() {
        return;
    }
    for (mutant, breaks) in MUTANTS {
        let caught =
            (1..=WITHIN).map(|seed| (seed, child(seed, Some(mutant)))).find(|(_, child)| !child.passed);
        let Some((seed, child)) = caught else { panic!("{mutant}: {breaks}: not caught in {WITHIN} seeds") };
        let violation = child.violation.unwrap_or_else(|| panic!("{mutant}: {}", child.output));
        println!("{mutant}: seed {seed}: {violation}");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one schedule and says what came of it.
fn replay(seed: u64) {
    if let Some(mutant) = plant_from_environment() {
        println!("planted: {mutant}");
    }
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .try_init();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_owned();
    // A fresh thread: no map of the test harness has moved its keys on.
    let schedule = std::thread::Builder::new().name(format!("seed {seed}"));
    let report = schedule.spawn(move || world::run(seed, &path)).unwrap().join();
    let report = report.unwrap_or_else(|_| panic!("seed {seed}: the simulation panicked"));
    println!("seed {seed} trace {:016x}", report.trace.hash);
    println!("seed {seed} simulated {} ms", report.simulated.as_millis());
    println!("seed {seed} counts datagrams={} {}", report.trace.datagrams, report.counts);
    for violation in report.violations.iter().take(20) {
        println!("seed {seed} violated {violation}");
    }
    assert!(report.violations.is_empty(), "seed {seed}: {} violations", report.violations.len());
}

/// What a schedule in another process came to.
struct Child {
    passed: bool,
    trace: Option<String>,
    simulated_ms: u64,
    counts: Counts,
    /// The first.
    violation: Option<String>,
    output: String,
}

fn child(seed: u64, mutant: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "schedules", "--nocapture", "--test-threads=1"]).env(SEED, seed.to_string());
    if let Some(mutant) = mutant {
        command.env("SKEIN_MUTANT", mutant);
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
    Child {
        passed: done.status.success(),
        trace: line("trace"),
        simulated_ms: line("simulated").and_then(|l| l.split(' ').next()?.parse().ok()).unwrap_or(0),
        counts,
        violation: line("violated"),
        output,
    }
}

fn many(first: u64, seeds: u64) {
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let children = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let done = child(seed, None);
                    children.lock().unwrap().push((seed, done));
                }
            });
        }
    });
    let children = children.into_inner().unwrap();
    let mut counts = Counts::default();
    for (name, times) in children.iter().flat_map(|(_, child)| &child.counts.0) {
        counts.add(name, *times);
    }
    let simulated: u64 = children.iter().map(|(_, child)| child.simulated_ms).sum();
    println!("schedules: {seeds} in {:.1} s", began.elapsed().as_secs_f64());
    println!("simulated: {:.1} s; {counts}", simulated as f64 / 1e3);
    let mut failed: Vec<_> = children.iter().filter(|(_, child)| !child.passed).collect();
    failed.sort_by_key(|(seed, _)| *seed);
    for (seed, child) in &failed {
        println!("--- {SEED}={seed} cargo test --test sim\n{}", child.output);
    }
    let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    assert!(failed.is_empty(), "failed seeds: {seeds:?}; run one again with {SEED}=s");
}
