//! One schedule: three hosts form a cluster, a storm passes over them while clients write, the
//! storm ends, and they must come together again.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::{
    engine::StorageEngine,
    testing::{DiskLatency, SimDisk},
    types::Lsn,
};
use turmoil::Sim;

use crate::{
    faults::{Counts, Fault, Kind, plan},
    host::{Common, Host, Life, PORT},
    ledger::{Ledger, Outcome, payloads},
    network::{Network, Trace, Weather},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Bounds, in simulated time.
const FORM: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(30);
const ACCEPT: Duration = Duration::from_secs(10);
/// The storm begins that long after the cluster is formed.
const CALM: Duration = Duration::from_millis(200);

/// What a schedule came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) trace: Trace,
    pub(crate) simulated: Duration,
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
}

/// Runs the schedule of a seed. `home` is an empty directory.
pub(crate) fn run(seed: u64, home: &Path) -> Report {
    let mut world = World::new(seed, home);
    let all_is_well = world.form() && world.storm() && world.settle();
    if all_is_well {
        world.judge();
    }
    let ledger = world.common.ledger.lock().unwrap();
    let mut counts = world.counts;
    let count = |what: fn(&Outcome) -> bool| ledger.count(what) as u64;
    counts.add("acked", count(|o| matches!(o, Outcome::Acked(_))));
    counts.add("refused", count(|o| matches!(o, Outcome::Refused(_))));
    counts.add("unknown", count(|o| matches!(o, Outcome::Unknown)));
    counts.add("offices", ledger.epochs.offices() as u64);
    let trace = world.common.network.trace();
    Report { trace, simulated: world.sim.elapsed(), counts, violations: ledger.violations.clone() }
}

struct World {
    sim: Sim<'static>,
    hosts: Vec<Arc<Host>>,
    common: Arc<Common>,
    random: StdRng,
    up: [bool; 3],
    blocked: [[bool; 3]; 3],
    counts: Counts,
}

impl World {
    fn new(seed: u64, home: &Path) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(random.random())
            .tick_duration(Duration::from_millis(5))
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(Duration::from_millis(random.random_range(1..20)))
            .udp_capacity(4096)
            .build();
        let common = Arc::new(Common {
            network: Network::new(random.random()),
            ledger: Mutex::new(Ledger::default()),
            token: Mutex::new(None),
            addresses: Mutex::new(Vec::new()),
        });
        let mut hosts = Vec::new();
        for (place, name) in NAMES.into_iter().enumerate() {
            let host = Arc::new(Host {
                name,
                place,
                disk: SimDisk::new(),
                dir: home.join(name),
                seed: random.random(),
                common: common.clone(),
                now: Mutex::new(Life::default()),
            });
            host.disk.set_latency(usual(random.random_range(1..10)));
            let it = host.clone();
            sim.host(name, move || it.clone().live());
            common.addresses.lock().unwrap().push((sim.lookup(name), PORT).into());
            hosts.push(host);
        }
        let (blocked, counts) = ([[false; 3]; 3], Counts::default());
        Self { sim, hosts, common, random, up: [true; 3], blocked, counts }
    }

    /// Until all three vote.
    fn form(&mut self) -> bool {
        self.until("formation", FORM, |world| {
            world.hosts.iter().all(|host| {
                let life = host.now.lock().unwrap();
                let three = |view: &Arc<skeinmesh::types::ClusterView>| {
                    view.voters.len() == 1 && view.all_voters().len() == 3 && view.writer.is_some()
                };
                life.engine.is_some() && life.view.as_ref().is_some_and(three)
            })
        })
    }

    /// Faults and writes.
    fn storm(&mut self) -> bool {
        let begin = self.sim.elapsed() + CALM;
        let length = Duration::from_millis(self.random.random_range(8_000..20_000));
        let faults = plan(&mut self.random, self.hosts.len(), begin, length);
        let mut next_write = begin;
        let mut active: Vec<Fault> = Vec::new();
        while self.sim.elapsed() < begin + length {
            if !self.step() {
                return false;
            }
            let now = self.sim.elapsed();
            let before = active.clone();
            active = faults.iter().filter(|fault| fault.from <= now && now < fault.until).copied().collect();
            if active != before {
                self.change(&before, &active);
            }
            if now >= next_write {
                let host = self.random.random_range(0..self.hosts.len());
                let padding = if self.random.random_bool(0.1) { 3_000 } else { 30 };
                next_write += Duration::from_millis(self.random.random_range(10..150));
                self.order(host, padding);
            }
        }
        self.change(&active, &[]);
        true
    }

    /// Nothing is wrong any more: all come together, and every node takes a write.
    fn settle(&mut self) -> bool {
        let converged = |world: &mut Self| world.converged();
        if !self.until("convergence", SETTLE, converged) {
            return false;
        }
        let acked = |world: &Self| {
            world.common.ledger.lock().unwrap().count(|outcome| matches!(outcome, Outcome::Acked(_)))
        };
        let want = acked(self) + self.hosts.len();
        (0..self.hosts.len()).for_each(|host| self.order(host, 10));
        self.until("writes on every node", ACCEPT, |world| acked(world) >= want)
            && self.until("convergence after the last writes", SETTLE, converged)
    }

    /// No client waits, and every engine has applied the same, what is acknowledged included.
    fn converged(&self) -> bool {
        let ledger = self.common.ledger.lock().unwrap();
        let applied = self.hosts.iter().map(|host| {
            let life = host.now.lock().unwrap();
            life.engine.as_ref().map(|engine| engine.applied())
        });
        let applied: Vec<Option<Lsn>> = applied.collect();
        let level = applied.iter().all(|at| at.is_some() && *at == applied[0]);
        level && ledger.open() == 0 && applied[0].map_or(0, |at| at.seq) >= ledger.last_acked()
    }

    fn judge(&mut self) {
        let engine = |host: &Arc<Host>| {
            let life = host.now.lock().unwrap();
            Some((host.name, payloads(life.engine.as_ref()?)))
        };
        let engines: Vec<_> = self.hosts.iter().filter_map(engine).collect();
        self.common.ledger.lock().unwrap().judge(&engines);
    }

    /// Steps until `done`; noted as a violation if that takes longer than `bound`, or if something
    /// else is broken meanwhile.
    fn until(&mut self, what: &str, bound: Duration, done: impl Fn(&mut Self) -> bool) -> bool {
        let deadline = self.sim.elapsed() + bound;
        while !done(self) {
            if self.sim.elapsed() > deadline {
                let lives: Vec<String> = self
                    .hosts
                    .iter()
                    .map(|host| {
                        let life = host.now.lock().unwrap();
                        format!(
                            "{}: {:?}, register {:?}",
                            host.name,
                            life.status,
                            life.view.as_ref().map(|v| (v.term, v.leader, v.writer, &v.voters))
                        )
                    })
                    .collect();
                let says = format!("I10: no {what} within {bound:?}: {}", lives.join("\n    "));
                self.common.ledger.lock().unwrap().violated(says);
                return false;
            }
            if !self.step() {
                return false;
            }
        }
        true
    }

    /// One tick. False once something is broken.
    fn step(&mut self) -> bool {
        let ended = self.sim.step().err();
        let mut ledger = self.common.ledger.lock().unwrap();
        if let Some(error) = ended {
            ledger.violated(format!("liveness: a host ended: {error}"));
        }
        ledger.violations.is_empty()
    }

    fn order(&mut self, host: usize, padding: usize) {
        let it = &self.hosts[host];
        let mut life = it.now.lock().unwrap();
        if self.up[host] && life.engine.is_some() {
            life.orders.push_back(self.common.ledger.lock().unwrap().begin(it.name, padding));
        }
    }

    /// Brings the world from one set of faults to another.
    fn change(&mut self, before: &[Fault], after: &[Fault]) {
        for fault in after.iter().filter(|fault| !before.contains(fault)) {
            tracing::info!(at = ?self.sim.elapsed(), ?fault, "begins");
            self.counts.add(fault.kind.name(), 1);
            for host in 0..self.hosts.len() {
                if fault.kind.downs(host) && self.up[host] {
                    self.take_down(host, matches!(fault.kind, Kind::Kill(_)));
                }
            }
        }
        for host in 0..self.hosts.len() {
            if !self.up[host] && !after.iter().any(|fault| fault.kind.downs(host)) {
                tracing::info!(at = ?self.sim.elapsed(), host = self.hosts[host].name, "power on");
                self.sim.bounce(self.hosts[host].name);
                self.up[host] = true;
            }
            let usual = usual(5);
            let slow = after.iter().find_map(|fault| match fault.kind {
                Kind::SlowDisk(it, sync) if it == host => Some(DiskLatency { sync, ..usual }),
                _ => None,
            });
            self.hosts[host].disk.set_latency(slow.unwrap_or(usual));
            for to in (0..self.hosts.len()).filter(|to| *to != host) {
                let block = after.iter().any(|fault| fault.kind.blocks(host, to));
                if std::mem::replace(&mut self.blocked[host][to], block) != block {
                    let (from, to) = (self.hosts[host].name, self.hosts[to].name);
                    if block {
                        self.sim.partition_oneway(from, to);
                    } else {
                        self.sim.repair_oneway(from, to);
                    }
                }
            }
        }
        let mut weather = Weather::default();
        for fault in after {
            match fault.kind {
                Kind::Loss(loss) => weather.loss = weather.loss.max(loss),
                Kind::Twice(twice) => weather.twice = weather.twice.max(twice),
                _ => {}
            }
        }
        self.common.network.set_weather(weather);
    }

    fn take_down(&mut self, host: usize, killed: bool) {
        let it = self.hosts[host].clone();
        self.up[host] = false;
        self.sim.crash(it.name);
        let dice = self.random.random();
        if killed {
            it.disk.kill();
        } else {
            it.disk.crash(dice);
        }
        let mut life = it.now.lock().unwrap();
        let mut ledger = self.common.ledger.lock().unwrap();
        if let Some(engine) = life.engine.take() {
            ledger.observe_contents(it.name, &engine);
        }
        (life.status, life.view) = (None, None);
        ledger.host_died(it.name);
    }
}

fn usual(sync_ms: u64) -> DiskLatency {
    DiskLatency { sync: Duration::from_millis(sync_ms), ..DiskLatency::default() }
}
