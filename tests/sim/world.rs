//! One schedule: hosts form a cluster, a storm passes over them while clients write and read, the
//! storm ends, and they must come together again.

use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::{
    engine::StorageEngine,
    types::{ClusterId, ClusterView, Epoch, Lsn, Role},
};

use crate::{
    FAULTS,
    churn::Churn,
    faults::{Counts, Fault, plan},
    host::{Common, Ended, Host},
    invariants::{i1, i2, i3, i4, i6, i7, i10, i14, i15},
    ledger::{Attempt, Ledger, Outcome, payloads},
    machine,
    network::{Network, Trace},
    panics,
    platter::{self, Log},
    station::{Station, dice},
};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// The storm begins that long after the cluster is formed.
const CALM: Duration = Duration::from_millis(200);
/// Of the writes that a majority acknowledges, every so many is looked for on the platters.
const LOOKED_FOR: usize = 8;

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
    ledger.tell(&mut counts);
    let trace = world.common.network.trace();
    world.common.network.struck().into_iter().for_each(|(kind, times)| counts.add(kind, times));
    Report { trace, simulated: machine::now(), counts, violations: ledger.violations.clone() }
}

pub(crate) struct World {
    pub(crate) stations: Vec<Station>,
    pub(crate) common: Arc<Common>,
    pub(crate) random: StdRng,
    pub(crate) counts: Counts,
    /// The faults that last now.
    pub(crate) active: Vec<Fault>,
    /// The change of membership that is under way.
    pub(crate) churning: Option<Churn>,
    /// The last write of the schedule, by place.
    last_writes: Vec<usize>,
    /// Names that clients were sent to claim.
    pub(crate) claims: u64,
    acks: usize,
    epoch: Epoch,
    cluster: Option<ClusterId>,
}

impl World {
    fn new(seed: u64, home: &Path) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let voters = if random.random_bool(0.25) { 5 } else { 3 };
        let places = voters + usize::from(random.random_bool(0.3));
        let common = Arc::new(Common {
            network: Network::new(random.random(), places),
            ledger: Mutex::new(Ledger::default()),
            token: Mutex::new(None),
            places,
        });
        let mut stations = Vec::new();
        for (place, name) in NAMES.into_iter().enumerate().take(places) {
            let role = if place < voters { Role::Voter } else { Role::Reader };
            let host = Host::new(name, place, role, home.to_owned(), random.random(), common.clone());
            stations.push(Station::new(host, random.random_range(1..10)));
        }
        Self {
            stations,
            common,
            random,
            counts: Counts::default(),
            active: Vec::new(),
            churning: None,
            last_writes: Vec::new(),
            claims: 0,
            acks: 0,
            epoch: 0,
            cluster: None,
        }
    }

    /// Until all voters vote, and the reader learns.
    fn form(&mut self) -> bool {
        let voters = self.stations.iter().filter(|it| it.host.role == Role::Voter).count();
        let formed = |world: &mut Self| {
            world.stations[..voters].iter().all(|it| {
                let life = it.host.now.lock().unwrap();
                let all = |view: &Arc<ClusterView>| {
                    view.voters.len() == 1 && view.all_voters().len() == voters && view.writer.is_some()
                };
                life.engine.is_some() && life.view.as_ref().is_some_and(all)
            })
        };
        if !self.until("formation", i10::FORM, formed) {
            return false;
        }
        let cluster = self.views().map(|view| view.cluster).next();
        self.cluster = cluster;
        self.churning = (voters < self.stations.len()).then(|| Churn::join(voters));
        self.until("reader", i10::REPLACE, |world| world.churning.is_none())
    }

    /// Faults, writes, reads and claims.
    fn storm(&mut self) -> bool {
        let begin = machine::now() + CALM;
        let length = Duration::from_millis(self.random.random_range(8_000..20_000));
        let only = std::env::var(FAULTS).ok();
        let faults = plan(&mut self.random, self.stations.len(), begin, length, only.as_deref());
        let (mut next_write, mut next_read, mut next_claim) = (begin, begin, begin);
        while machine::now() < begin + length {
            if !self.step() {
                return false;
            }
            if self.random.random_ratio(1, 300) {
                self.look_into_recovery();
            }
            let now = machine::now();
            let active = faults.iter().filter(|fault| fault.from <= now && now < fault.until).copied();
            self.change(active.collect());
            if now >= next_write {
                next_write += Duration::from_millis(self.random.random_range(10..150));
                self.write();
            }
            if now >= next_read {
                next_read += Duration::from_millis(self.random.random_range(20..200));
                self.read();
            }
            if now >= next_claim {
                next_claim += Duration::from_millis(self.random.random_range(20..400));
                self.claim();
            }
        }
        self.change(Vec::new());
        true
    }

    /// Nothing is wrong any more: all come together, and every node takes a write.
    fn settle(&mut self) -> bool {
        // Whoever joins must have the time of the cluster, and is told so: somebody sets the clocks.
        if self.churning.is_some() || self.stations.iter().any(|it| it.rotten) {
            self.stations.iter().for_each(|it| it.host.clock_off.store(0, Ordering::Relaxed));
        }
        let settled = |world: &mut Self| {
            // Nobody keeps a disk that has begun to rot.
            let rotten = world.stations.iter().position(|it| it.rotten).filter(|_| world.churning.is_none());
            if let Some(place) = rotten {
                world.churning = world.stations[place].known_as.map(|id| Churn::replace(place, id));
            }
            world.churning.is_none()
        };
        if !self.until("end of a change of membership", i10::REPLACE, settled) {
            return false;
        }
        let converged = |world: &mut Self| world.converged();
        if !self.until("convergence", i10::SETTLE, converged) {
            return false;
        }
        self.last_writes = (0..self.stations.len()).map(|place| self.last_write(place)).collect();
        self.until("writes on every node", i10::ACCEPT, |world| world.takes_writes())
            && self.until("convergence after the last writes", i10::SETTLE, converged)
    }

    fn last_write(&mut self, place: usize) -> usize {
        let write = self.common.ledger.lock().unwrap().write(None, false, 10);
        self.send(write, place);
        write
    }

    /// Every node has taken a write. One that is refused is followed by another: a disk on which there
    /// is space again is looked at once a second.
    fn takes_writes(&mut self) -> bool {
        let mut all = true;
        for place in 0..self.stations.len() {
            let outcome = {
                let ledger = self.common.ledger.lock().unwrap();
                ledger.writes[self.last_writes[place]].attempts.last().map(|sent| sent.outcome.clone())
            };
            match outcome {
                Some(outcome) if outcome.lasting().is_some() => continue,
                None | Some(Outcome::Refused(_)) => self.last_writes[place] = self.last_write(place),
                Some(_) => {}
            }
            all = false;
        }
        all
    }

    /// No client waits, nobody is about to stop, and every engine has applied the same, what is
    /// acknowledged included.
    fn converged(&self) -> bool {
        let ledger = self.common.ledger.lock().unwrap();
        let applied: Vec<Option<Lsn>> = self
            .stations
            .iter()
            .map(|it| it.host.now.lock().unwrap().engine.as_ref().map(|engine| engine.applied()))
            .collect();
        let stopping = self.stations.iter().any(|it| it.stopping);
        ledger.open() == 0 && !stopping && i10::level(&applied, ledger.reads.acked_until(Duration::MAX))
    }

    /// The last word on every node, and on every disk.
    fn judge(&mut self) {
        let mut chains = Vec::new();
        let mut found = Vec::new();
        for station in &self.stations {
            let host = &station.host;
            let (disk, dir, name) = (host.disk().platter(), host.dir(), host.name);
            let life = host.now.lock().unwrap();
            let (Some(engine), Some(cluster)) = (&life.engine, self.cluster) else {
                found.push(format!("I10: {name} does not run in the end"));
                continue;
            };
            let (contents, applied) = (payloads(engine), engine.applied());
            let log = match Log::open(&disk, &dir, cluster) {
                Ok(log) => log,
                Err(error) => {
                    found.push(format!("I15: the log of {name} does not open in the end: {error}"));
                    continue;
                }
            };
            let mut ledger = self.common.ledger.lock().unwrap();
            ledger.observe_contents(name, engine);
            let kept = |epoch| ledger.epochs.kept_by_one_node(epoch);
            found.extend(i1::judge(name, &contents, &ledger.writes, &log.epochs, kept));
            found.extend(i2::judge(name, &contents, &ledger.writes));
            found.extend(i3::judge(name, &contents, applied));
            found.extend(i6::judge(name, &contents, applied, &ledger.history));
            found.extend(i7::judge(name, &contents, &ledger.writes));
            found.extend(ledger.reads.judge(name, &log.epochs, applied));
            match platter::rebuild(&disk, &dir, &log, applied) {
                Ok(rebuilt) => found.extend(i15::judge(name, &contents, &rebuilt)),
                Err(error) => found.push(format!("I15: the disk of {name}: {error}")),
            }
            chains.push((name, log.chain(applied)));
            self.counts.add("snapshots", life.installed);
        }
        found.extend(i10::chains(&chains));
        self.common.ledger.lock().unwrap().violations.extend(found);
    }

    /// Steps until `done`; noted as a violation if that takes longer than `bound`, or if something
    /// else is broken meanwhile.
    fn until(&mut self, what: &str, bound: Duration, done: impl Fn(&mut Self) -> bool) -> bool {
        let deadline = machine::now() + bound;
        while !done(self) {
            if machine::now() > deadline {
                let says = format!("I10: no {what} within {bound:?}: {}", self.describe());
                self.common.ledger.lock().unwrap().violated(says);
                return false;
            }
            if !self.step() {
                return false;
            }
        }
        true
    }

    fn describe(&self) -> String {
        let life = |it: &Station| {
            let life = it.host.now.lock().unwrap();
            format!(
                "{}: on {}, {:?}, register {:?}",
                it.host.name,
                it.machine.is_on(),
                life.status,
                life.view.as_ref().map(|v| (v.term, v.leader, v.writer, &v.voters))
            )
        };
        let lives: Vec<String> = self.stations.iter().map(life).collect();
        format!("{:?} {}", self.churning, lives.join("\n    "))
    }

    /// One turn of every machine. False once something is broken, a panic in a task included.
    fn step(&mut self) -> bool {
        for place in 0..self.stations.len() {
            self.common.network.deliver(place);
            let stands = self.stands_still(place);
            let it = &mut self.stations[place];
            if stands { it.machine.stand_still() } else { it.machine.turn() }
        }
        machine::next_round();
        for place in 0..self.stations.len() {
            let ended = self.stations[place].host.now.lock().unwrap().ended.take();
            if let Some(ended) = ended {
                self.bury(place, ended);
            }
            let it = &mut self.stations[place];
            if it.notices_rot() {
                self.counts.add("rot-noticed", 1);
            }
            let held = self.churning.as_ref().is_some_and(|churn| churn.holds_off(place, it.rotten));
            let joins_first =
                place > 0 && it.host.role == Role::Reader && it.host.token.lock().unwrap().is_none();
            let down = self.active.iter().any(|fault| fault.kind.downs(place));
            let may_run = !held && !down && machine::now() >= it.off_until;
            if !it.machine.is_on() && may_run && !(joins_first && it.host.boots.load(Ordering::Relaxed) == 0)
            {
                it.switch_on();
            }
        }
        self.churn();
        self.look_at_platters();
        let mut ledger = self.common.ledger.lock().unwrap();
        ledger.violations.extend(panics::take());
        ledger.violations.is_empty()
    }

    /// A process has ended by itself: was that right?
    fn bury(&mut self, place: usize, ended: Ended) {
        let it = &self.stations[place];
        let removed = self.churning.as_ref().is_some_and(|churn| churn.removes(place));
        let (excused, kind) = match &ended {
            Ended::Stopped => (it.stopping, "stopped"),
            Ended::Removed => (removed, "told-removed"),
            Ended::Disk(_) if it.rotten => (true, "rot-refused"),
            // Without space for its first files a node cannot begin.
            Ended::Disk(why) if it.known_as.is_none() && why.contains("no storage space") => {
                (true, "no-space-to-begin")
            }
            Ended::Disk(_) => (it.disk_fails, "fail-stop"),
            Ended::Failed(_) => (false, "failed"),
        };
        if !excused {
            let says = format!("liveness: the node on {} ended: {ended:?}", it.host.name);
            self.common.ledger.lock().unwrap().violated(says);
        }
        self.counts.add(kind, 1);
        let pause = Duration::from_millis(self.random.random_range(50..1_500));
        let id = it.host.node();
        self.switch_off(place, true);
        self.stations[place].off_until = machine::now() + pause;
        if self.stations[place].rotten && self.churning.is_none() {
            self.churning = id.or(self.stations[place].known_as).map(|id| Churn::replace(place, id));
        }
    }

    /// Ends the process on a host.
    pub(crate) fn switch_off(&mut self, place: usize, killed: bool) {
        let dice = dice(&mut self.random, killed);
        let it = &mut self.stations[place];
        it.known_as = it.host.node().or(it.known_as);
        if it.machine.is_on() {
            let torn = it.switch_off(dice, self.cluster, &mut self.random);
            self.counts.add("torn-write", u64::from(torn));
        }
    }

    /// What every node that runs knows of the cluster.
    pub(crate) fn views(&self) -> impl Iterator<Item = Arc<ClusterView>> {
        self.stations.iter().filter_map(|it| it.host.now.lock().unwrap().view.clone())
    }

    /// What would become of a node that was killed at this moment?
    fn look_into_recovery(&mut self) {
        let it = &self.stations[self.random.random_range(0..self.stations.len())];
        let Some(cluster) = self.cluster.filter(|_| it.machine.is_on() && !it.rotten) else { return };
        match platter::recoveries(&it.host.disk(), &it.host.dir(), cluster, false, &mut self.random) {
            Ok(seen) => {
                self.counts.add("looked-into-recovery", 1);
                let found = i14::judge(it.host.name, &seen);
                self.common.ledger.lock().unwrap().violations.extend(found);
            }
            Err(error) => {
                let says = format!("I14: the log of {} would not open: {error}", it.host.name);
                self.common.ledger.lock().unwrap().violated(says);
            }
        }
    }

    /// What was just acknowledged, and what was just promised, is on the platters of a majority.
    fn look_at_platters(&mut self) {
        let (fresh, named) = {
            let mut ledger = self.common.ledger.lock().unwrap();
            (std::mem::take(&mut ledger.fresh), ledger.epochs.named())
        };
        let acks = self.acks;
        self.acks += fresh.len();
        let nth = fresh.into_iter().zip(acks..);
        let due = nth.filter(|(_, nth)| nth.is_multiple_of(LOOKED_FOR)).map(|(write, _)| write).next();
        let risen = named > self.epoch;
        self.epoch = named;
        // Which set counts while it changes only the writer knows; what has rotted counts for nothing.
        let unclear = self.churning.is_some() || self.stations.iter().any(|it| it.rotten);
        let Some(cluster) = self.cluster.filter(|_| !unclear && (due.is_some() || risen)) else { return };
        let voters = self.stations.iter().filter(|it| it.host.role == Role::Voter);
        let logs: Vec<Log> = voters
            .filter_map(|it| Log::open(&it.host.disk().platter(), &it.host.dir(), cluster).ok())
            .collect();
        let voters = self.stations.iter().filter(|it| it.host.role == Role::Voter).count();
        let mut ledger = self.common.ledger.lock().unwrap();
        self.counts.add("looked-for-promise", u64::from(risen));
        self.counts.add("looked-for-write", u64::from(due.is_some()));
        if risen {
            let have = logs.iter().filter(|log| log.recovered.promise >= named).count();
            ledger.violations.extend(i4::promised(named, have, voters));
        }
        if let Some(write) = due {
            let acked = |it: &Attempt| match it.outcome {
                Outcome::Acked(at, level) => it.outcome.lasting().map(|_| (at, level)),
                _ => None,
            };
            let Some((at, level)) = ledger.writes[write].attempts.iter().filter_map(acked).next_back() else {
                return;
            };
            let have = logs.iter().filter(|log| log.holds(at)).count();
            ledger.violations.extend(i1::on_platters(write, at, level, have, voters));
        }
    }

    /// Whether the machine at that place gets no turn.
    fn stands_still(&self, place: usize) -> bool {
        self.active.iter().any(|fault| fault.kind.stops(place))
    }
}
