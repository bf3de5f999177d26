//! Unmodified nodes over a simulated network, disk, clock and randomness: everything that happens
//! follows from a seed.
//!
//! `cargo test --test sim` runs 60 schedules; `SKEIN_SIM_SEEDS=n` as many as you like, from
//! `SKEIN_SIM_FIRST` on; `SKEIN_SIM_SEED=s` one again. Each runs in a process of its own (see
//! `entropy.rs`), as many at once as there are cores.

mod children;
mod churn;
mod clients;
mod engine;
mod entropy;
mod faults;
mod host;
mod invariants;
mod ledger;
mod machine;
mod network;
mod panics;
mod platter;
mod station;
mod storm;
mod world;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use faults::Counts;
use skeinmesh::testing::mutant::{Caught, MUTANTS, plant_from_environment};

/// One schedule to run, in this process.
const SEED: &str = "SKEIN_SIM_SEED";
/// How many to run.
const SEEDS: &str = "SKEIN_SIM_SEEDS";
/// A schedule that is not over after so many seconds is not going to be.
const ENDLESS: u32 = 600;
/// The first of them.
const FIRST: &str = "SKEIN_SIM_FIRST";
/// The kinds of faults, by name and with commas between, if not all of them.
const FAULTS: &str = "SKEIN_SIM_FAULTS";
/// How many, if nothing is said.
const USUAL: u64 = 60;
/// From so many on every kind of fault must have been reached.
const ENOUGH: u64 = 60;

/// What else must have been reached then: what faults did, what clients were answered, what was looked
/// at. A rule that nothing ever came under has not held.
const REACHED: [&str; 29] = [
    "acked-all",
    "acked-local",
    "acked-memory",
    "acked-quorum",
    "claimed",
    "datagrams-blocked",
    "datagrams-doubled",
    "datagrams-held-up",
    "datagrams-lost",
    "disk-refused",
    "fail-stop",
    "joined",
    "looked-for-promise",
    "looked-for-write",
    "looked-into-recovery",
    "offices",
    "promoted",
    "read-linearizable",
    "read-local",
    "read-max-staleness",
    "read-min-lsn",
    "removed",
    "rot-noticed",
    "snapshots",
    "spared",
    "stopped",
    "told-removed",
    "torn-write",
    "unknown",
];

/// The same for what comes about in a few schedules of a hundred.
const SELDOM: [&str; 2] = ["refused", "read-lost"];
/// From so many on that must have been reached as well.
const MANY: u64 = 240;

#[test]
fn schedules() {
    match number(SEED) {
        Some(seed) => replay(seed),
        None => many(number(FIRST).unwrap_or(1), number(SEEDS).unwrap_or(USUAL)),
    }
}

#[test]
fn a_seed_decides_every_datagram() {
    if number(SEED).is_some() {
        return;
    }
    for seed in [1, 2] {
        let (first, again) = (children::run(seed, None), children::run(seed, None));
        assert!(first.trace.is_some(), "{}", first.output);
        assert_eq!(first.trace, again.trace, "seed {seed}");
    }
}

/// A pass proves nothing if a bug would pass too. `SKEIN_MUTANT` chooses one.
#[test]
fn planted_bugs_are_caught() {
    if number(SEED).is_some() {
        return;
    }
    let only = std::env::var("SKEIN_MUTANT").ok();
    for mutant in MUTANTS.iter().filter(|it| only.as_ref().is_none_or(|only| it.name == only)) {
        // This program does not hold the library's own tests.
        let Caught::Simulation { within, faults } = mutant.caught else { continue };
        let began = Instant::now();
        let children = children::run_all(1..within + 1, Some((mutant.name, faults)), true);
        let caught = children.iter().find(|child| !child.passed);
        let child = caught.unwrap_or_else(|| panic!("{}: not caught in {within} seeds", mutant.name));
        let violation =
            child.violation.as_ref().unwrap_or_else(|| panic!("{}: {}", mutant.name, child.output));
        println!(
            "{}: seed {} ({:.0} s): {violation}",
            mutant.name,
            child.seed,
            began.elapsed().as_secs_f64()
        );
    }
}

/// What `tests/planted_bugs.sh` goes by, and that the documentation says of each who finds it.
#[test]
fn planted_bugs_are_listed() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/testing.md")).unwrap();
    let mut names = BTreeSet::new();
    for mutant in MUTANTS {
        assert!(names.insert(mutant.name), "{} twice", mutant.name);
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` ", mutant.name)));
        let row = row.unwrap_or_else(|| panic!("docs/testing.md has no row for {}", mutant.name));
        match mutant.caught {
            Caught::Simulation { within, faults } => {
                println!("planted {} sim {within} {faults}", mutant.name);
                assert!(row.contains("simulation") && row.contains(faults), "{row}");
            }
            Caught::Test(path) => {
                println!("planted {} test {path}", mutant.name);
                assert!(row.contains(path), "{row}");
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs one schedule and says what came of it.
fn replay(seed: u64) {
    // A schedule takes seconds. What spins while simulated time stands still would never end.
    std::thread::spawn(move || {
        // One by one: a process that is stopped does not count.
        (0..ENDLESS).for_each(|_| std::thread::sleep(Duration::from_secs(1)));
        println!("seed {seed} violated it does not end: something is busy though no time passes");
        std::process::exit(1);
    });
    if let Some(mutant) = plant_from_environment() {
        println!("planted: {mutant}");
    }
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .try_init();
    panics::watch();
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

fn many(first: u64, seeds: u64) {
    let began = Instant::now();
    let children = children::run_all(first..first + seeds, None, false);
    let mut counts = Counts::default();
    for (name, times) in children.iter().flat_map(|child| &child.counts.0) {
        counts.add(name, *times);
    }
    let simulated: u64 = children.iter().map(|child| child.simulated_ms).sum();
    println!("schedules: {seeds} in {:.1} s", began.elapsed().as_secs_f64());
    println!("simulated: {:.1} s; {counts}", simulated as f64 / 1e3);
    let failed: Vec<_> = children.iter().filter(|child| !child.passed).collect();
    for child in &failed {
        println!("--- {SEED}={} cargo test --test sim schedules\n{}", child.seed, child.output);
    }
    let seeds_failed: Vec<u64> = failed.iter().map(|child| child.seed).collect();
    assert!(failed.is_empty(), "failed seeds: {seeds_failed:?}; run one again with {SEED}=s");
    let seldom = SELDOM.into_iter().filter(|_| seeds >= MANY);
    let wanted = faults::names().into_iter().chain(REACHED).chain(seldom);
    let missed: Vec<_> = wanted.filter(|name| counts.0.get(*name).is_none_or(|times| *times == 0)).collect();
    assert!(seeds < ENOUGH || missed.is_empty(), "never reached in {seeds} schedules: {missed:?}");
}
