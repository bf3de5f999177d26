//! The protocol model: sealing, promises, epochs, cuts, membership, reads (DESIGN 6.2 to 6.8) as
//! a small world of nodes, in which everything that may happen is tried.
//!
//! Read [`rules`] first: every rule is a switch, with what DESIGN says, where the source decides it,
//! and, here, what goes wrong without it. [`state`] is the world, [`protocol`] what it notices,
//! [`control`], [`office`], [`replica`] and [`install`] are the steps. `docs/testing.md` has bounds, counts and
//! commands.
//!
//! Uses nothing but the standard library, so that it also builds alone:
//! `rustc --edition 2024 -O --test tests/model/main.rs`.

mod control;
mod explore;
mod fingerprint;
mod install;
mod links;
mod liveness;
mod log;
mod mutants;
mod office;
mod protocol;
mod replica;
mod rules;
mod state;
mod step;
mod walks;

use std::{
    env, fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    sync::mpsc,
    thread,
    time::Instant,
};

use explore::{Found, Look, nothing, search};
use liveness::failover_can_finish;
use mutants::mutant;
use protocol::Model;
use rules::Rule;
use state::Bounds;
use walks::{SITUATIONS, Seen};

/// A space to be gone through whole.
struct Space {
    says: &'static str,
    bounds: Bounds,
    look: Look,
}

const fn space(says: &'static str, bounds: Bounds) -> Space {
    Space { says, bounds, look: nothing }
}

/// As well, from every world each smallest majority alone brings a new writer to its first commit.
const fn live(says: &'static str, bounds: Bounds) -> Space {
    Space { says, bounds, look: failover_can_finish }
}

/// In the gate.
const SMALL: &[Space] = &[
    live("3 voters, 2 epochs, 1 write; failover can finish", Bounds::of(3, 2, 2, 1)),
    live("3 voters, 3 epochs, no write; failover can finish", Bounds::of(3, 3, 2, 0)),
    space("3 voters, 2 epochs, 2 writes", Bounds::of(3, 2, 2, 2)),
    space("3 voters, 2 epochs, 1 write, 1 crash", Bounds::of(3, 2, 2, 1).crashes(1)),
    space("3 voters, 2 epochs, 1 write, 1 read", Bounds::of(3, 2, 2, 1).reads(1)),
    space("3 voters, 2 epochs, 1 write sent again", Bounds::of(3, 2, 2, 1).retries()),
    space("3 voters, 2 epochs, 1 write, 1 crash, 1 snapshot", Bounds::of(3, 2, 1, 1).crashes(1).snapshots(1)),
    space(
        "3 voters, 2 epochs, 1 write, 1 snapshot, 1 recovery",
        Bounds::of(3, 2, 1, 1).snapshots(1).recoveries(1),
    ),
    space("2 voters, 3 epochs, 1 write, 1 crash", Bounds::of(2, 3, 2, 1).crashes(1)),
    space("1 voter, 3 epochs, 2 writes, 2 crashes", Bounds::of(1, 3, 2, 2).crashes(2)),
    space("3 voters and a learner, 2 epochs, 1 write", Bounds::of(4, 2, 1, 1).voters(3)),
    live(
        "1 voter and a learner, 1 change, 2 epochs, 1 write; failover can finish",
        Bounds::of(2, 2, 1, 1).voters(1).changes(1),
    ),
];

/// With `SKEIN_MODEL=large`.
const LARGE: &[Space] = &[
    space("3 voters, 3 epochs, 1 write", Bounds::of(3, 3, 2, 1)),
    space("3 voters, 3 epochs, 1 write, a rival round", Bounds::of(3, 3, 3, 1)),
    space("3 voters, 3 epochs, 2 writes", Bounds::of(3, 3, 2, 2)),
    space("3 voters, 3 epochs, 1 write, 1 crash", Bounds::of(3, 3, 2, 1).crashes(1)),
    space("3 voters, 2 epochs, 1 write, 2 crashes", Bounds::of(3, 2, 2, 1).crashes(2)),
    space("3 voters, 4 epochs, no write", Bounds::of(3, 4, 3, 0)),
    space("3 voters, 1 change, 2 epochs, 1 write", Bounds::of(3, 2, 1, 1).changes(1)),
    space("2 voters and a learner, 1 change, 2 epochs, 1 write", Bounds::of(3, 2, 1, 1).voters(2).changes(1)),
];

/// Walks in the gate, and with `SKEIN_MODEL=large`.
const WALKS: [u64; 2] = [4_000, 1_000_000];

fn is_large() -> bool {
    env::var("SKEIN_MODEL").is_ok_and(|mode| mode == "large")
}

/// Does `work` for every number below `count`, on two threads, and returns what it gave in order.
fn on_two_threads<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, (tell, told)) = (AtomicUsize::new(0), mpsc::channel());
    thread::scope(|scope| {
        for _ in 0..2 {
            let (next, work, tell) = (&next, &work, tell.clone());
            scope.spawn(move || {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= count || tell.send((job, work(job))).is_err() {
                        return;
                    }
                }
            });
        }
    });
    drop(tell);
    let mut done: Vec<(usize, T)> = told.into_iter().collect();
    done.sort_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, gave)| gave).collect()
}

/// A Markdown row.
fn row(cells: &[&dyn std::fmt::Display]) -> String {
    cells.iter().map(|cell| format!("| {cell} ")).collect::<String>() + "|"
}

/// docs/testing.md holds these rows, or says what to put there.
fn told_in_docs(rows: &[String]) {
    let path = Path::new(option_env!("CARGO_MANIFEST_DIR").unwrap_or(".")).join("docs/testing.md");
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let docs: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(plain).collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !docs.contains(&plain(row))).collect();
    assert!(
        missing.is_empty(),
        "{} says otherwise; these rows belong there:\n{}",
        path.display(),
        rows.join("\n")
    );
}

/// The protocol as it is holds in every world within the bounds.
#[test]
fn spaces_hold() {
    let mut spaces: Vec<&Space> = SMALL.iter().collect();
    if is_large() {
        spaces.extend(LARGE);
    }
    let rows = on_two_threads(spaces.len(), |job| {
        let Space { says, bounds, look } = spaces[job];
        let began = Instant::now();
        let Found { states, depth, exhausted, trace } = search(Model::new(*bounds), &[], usize::MAX, *look);
        if let Some(trace) = trace {
            panic!("{says}: a violation\n{trace}");
        }
        assert!(exhausted, "{says}: not gone through whole");
        println!("{says}: {states} worlds, {depth} steps deep, {:.1} s", began.elapsed().as_secs_f64());
        row(&[says, &states, &depth])
    });
    told_in_docs(&rows);
}

/// Without any one rule something breaks. `SKEIN_MODEL=traces` tells how, a rule's name that one.
#[test]
fn every_rule_has_a_counterexample() {
    let wanted = env::var("SKEIN_MODEL").unwrap_or_default();
    let rows = on_two_threads(Rule::ALL.len(), |job| {
        let rule = Rule::ALL[job];
        let mutant = mutant(rule);
        let Found { states, trace, .. } = mutant.hunt();
        let Some(trace) = trace else {
            panic!("{} has lost its counterexample: nothing among {states} worlds", rule.name());
        };
        if wanted == "traces" || wanted == rule.name() {
            println!("{} (DESIGN {}): {}\n{trace}\n", rule.name(), rule.design(), rule.says());
        }
        // The same way with the rule in force is closed, or leads nowhere bad.
        let kept = explore::replay(Model::new(mutant.bounds), &trace.steps);
        assert!(
            kept.is_err() || kept.is_ok_and(|state| state.broken.is_none()),
            "{} holds and breaks",
            rule.name()
        );
        row(&[&format!("`{}`", rule.name()), &rule.design(), &trace.steps.len(), &trace.broken.says()])
    });
    told_in_docs(&rows);
}

/// Random walks through the whole of it break nothing, and get everywhere.
/// `SKEIN_MODEL_WALK=SEED` takes one again and tells it.
#[test]
fn walks_hold() {
    if let Ok(seed) = env::var("SKEIN_MODEL_WALK") {
        let seed = seed.parse().expect("SKEIN_MODEL_WALK is the seed of a walk");
        match Seen::default().one(seed) {
            Some(trace) => panic!("walk {seed}, shortened:\n{}", trace.shrunk()),
            None => return println!("walk {seed} breaks nothing"),
        }
    }
    const AT_ONCE: u64 = 100;
    let began = Instant::now();
    let count = WALKS[usize::from(is_large())];
    let parts = on_two_threads((count / AT_ONCE) as usize, |job| {
        let mut seen = Seen::default();
        let broken = seen.walk(job as u64 * AT_ONCE, AT_ONCE);
        if let Some((seed, trace)) = broken {
            panic!("SKEIN_MODEL_WALK={seed} cargo test --test model walks_hold\n{}", trace.shrunk());
        }
        seen
    });
    let mut all = Seen::default();
    parts.iter().for_each(|part| all.add(part));
    println!("{} walks, {} steps, {:.1} s", all.walks, all.steps, began.elapsed().as_secs_f64());
    for (count, (says, _)) in all.situations.iter().zip(SITUATIONS) {
        println!("{count:>9} times {says}");
        assert!(*count > 0, "no walk came by this: {says}");
    }
}

/// A walk finds a planted violation, says by which seed, and shortens it.
#[test]
fn a_walk_finds_what_is_broken() {
    let model = Model::new(Bounds::of(3, 3, 3, 2).crashes(2)).without(Rule::OfficeBoundToBoot);
    let (seed, trace) = (0..1_000)
        .find_map(|seed| explore::walk(model, seed, 60, &mut |_, _, _| {}).map(|trace| (seed, trace)))
        .expect("a restarted writer that goes on in its epoch breaks something");
    let again = explore::walk(model, seed, 60, &mut |_, _, _| {}).expect("a seed decides a walk");
    assert_eq!(again.steps, trace.steps);
    let shrunk = trace.clone().shrunk();
    assert!(shrunk.steps.len() < trace.steps.len());
    let told = shrunk.to_string();
    assert!(
        told.contains("is killed and starts again") || told.contains("loses power and starts again"),
        "{told}"
    );
    assert!(told.contains(shrunk.broken.says()), "{told}");
}
