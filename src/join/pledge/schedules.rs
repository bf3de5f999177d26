//! The rules under everything that can happen: machines that crash between any two steps and come
//! back, messages that are lost, late and out of order, data directories that are emptied; by seed.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    tests::{id, sighting},
    *,
};

/// What is wrong with the rules in a schedule that shows that these tests would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A restarted node knows nothing of its pledge.
    PledgeIsForgotten,
    /// A pledge is told before it is on disk.
    ToldBeforeKept,
}

/// What happens besides restarts and a bad network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Crashes,
    /// At most one directory less than there are nodes is emptied.
    EmptiedDirectories,
}

/// A machine: what is on its disk, and its process if it runs.
struct Machine {
    id: NodeId,
    pledge: Option<NodeId>,
    member_of: Option<usize>,
    process: Option<Gathering>,
}

struct Message {
    to: usize,
    from: usize,
    id: NodeId,
    said: Sighting,
    wants_answer: bool,
}

struct World {
    rng: StdRng,
    wrong: Wrong,
    now: Instant,
    machines: Vec<Machine>,
    flying: Vec<Message>,
    /// Who made each.
    clusters: Vec<NodeId>,
    next_id: u8,
}

impl World {
    fn new(seed: u64, wrong: Wrong) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = rng.random_range(2..=5);
        let mut world = Self {
            rng,
            wrong,
            now: Instant::now(),
            machines: vec![],
            flying: vec![],
            clusters: vec![],
            next_id: 0,
        };
        for _ in 0..nodes {
            let id = world.draw_id();
            world.machines.push(Machine { id, pledge: None, member_of: None, process: None });
        }
        world
    }

    /// Ids come in no order: that of a new directory may well be the smallest.
    fn draw_id(&mut self) -> NodeId {
        self.next_id += 1;
        id(self.next_id.wrapping_mul(101))
    }

    fn nodes(&self) -> u32 {
        u32::try_from(self.machines.len()).unwrap()
    }

    fn any(&mut self) -> usize {
        self.rng.random_range(0..self.machines.len())
    }

    fn start(&mut self, at: usize) {
        let (nodes, wrong) = (self.nodes(), self.wrong);
        let machine = &mut self.machines[at];
        if machine.member_of.is_none() && machine.process.is_none() {
            let pledge = machine.pledge.filter(|_| wrong != Wrong::PledgeIsForgotten);
            machine.process = Some(Gathering::new(machine.id, String::new(), nodes, pledge));
        }
    }

    fn crash(&mut self, at: usize) {
        self.machines[at].process = None;
    }

    fn empty(&mut self, at: usize) {
        let id = self.draw_id();
        self.machines[at] = Machine { id, pledge: None, member_of: None, process: None };
    }

    /// One machine connects to another: it joins a member, and otherwise tells and asks.
    fn meet(&mut self, from: usize, to: usize) {
        let Some(process) = &self.machines[from].process else { return };
        if from == to {
            return;
        }
        match self.machines[to].member_of {
            Some(cluster) => {
                self.machines[from].member_of = Some(cluster);
                self.machines[from].process = None;
            }
            None => {
                let said = self.said_by(process);
                let id = self.machines[from].id;
                self.flying.push(Message { to, from, id, said, wants_answer: true });
            }
        }
    }

    fn said_by(&self, process: &Gathering) -> Sighting {
        sighting(self.now, self.nodes(), process.pledge())
    }

    fn deliver(&mut self, which: usize) {
        let Message { to, from, id, said, wants_answer } = self.flying.swap_remove(which);
        let now = self.now;
        let Some(process) = &mut self.machines[to].process else { return };
        // It counts from when it is heard.
        process.note(id, Sighting { at: now, ..said });
        if wants_answer {
            let process = self.machines[to].process.as_ref().unwrap();
            let (id, said) = (self.machines[to].id, self.said_by(process));
            self.flying.push(Message { to: from, from: to, id, said, wants_answer: false });
        }
    }

    /// One machine decides, and perhaps dies of it.
    fn step(&mut self, at: usize, may_crash: bool) {
        let now = self.now;
        let Some(process) = &mut self.machines[at].process else { return };
        let mut dies = |often| may_crash && self.rng.random_bool(often);
        match process.step(now) {
            Step::Wait(_) => {}
            Step::Pledge(to) => {
                if self.wrong == Wrong::ToldBeforeKept {
                    process.pledged(to);
                    if dies(0.8) {
                        return;
                    }
                }
                if dies(0.2) {
                    return self.crash(at);
                }
                assert!(
                    self.machines[at].pledge.is_none_or(|before| before == to)
                        || self.wrong != Wrong::Nothing
                );
                self.machines[at].pledge = Some(to);
                if dies(0.2) {
                    return self.crash(at);
                }
                self.machines[at].process.as_mut().unwrap().pledged(to);
            }
            Step::Found => {
                // Before the record of its cluster is on disk nobody has heard of it.
                if dies(0.2) {
                    return self.crash(at);
                }
                self.clusters.push(self.machines[at].id);
                self.machines[at].member_of = Some(self.clusters.len());
                self.machines[at].process = None;
            }
        }
    }

    /// Anything may happen.
    fn troubled(&mut self, trouble: Trouble) {
        let mut may_empty = match trouble {
            Trouble::Crashes => 0,
            Trouble::EmptiedDirectories => self.machines.len() - 1,
        };
        // Some pairs may not reach each other for a while.
        let mut cut = (self.any(), self.any());
        for _ in 0..self.rng.random_range(20..400) {
            let at = self.any();
            match self.rng.random_range(0..100) {
                0..5 => self.crash(at),
                5..15 => self.start(at),
                15..17 if may_empty > 0 => {
                    may_empty -= 1;
                    self.empty(at);
                }
                17..20 => cut = (at, self.any()),
                20..50 => {
                    let to = self.any();
                    if (at, to) != cut {
                        self.meet(at, to);
                    }
                }
                50..75 if !self.flying.is_empty() => {
                    let which = self.rng.random_range(0..self.flying.len());
                    if self.rng.random_bool(0.2) {
                        self.flying.swap_remove(which);
                    } else {
                        self.deliver(which);
                    }
                }
                75..95 => self.step(at, true),
                _ => self.now += IN_SIGHT.mul_f64(self.rng.random_range(0.0..0.6)),
            }
        }
    }

    /// Everything runs and everybody is reached, for so many rounds.
    fn calm(&mut self, rounds: usize) {
        let all = 0..self.machines.len();
        for _ in 0..rounds {
            self.now += Duration::from_secs(1);
            for at in all.clone() {
                self.start(at);
                for to in all.clone() {
                    self.meet(at, to);
                }
                while !self.flying.is_empty() {
                    self.deliver(0);
                }
            }
            for at in all.clone() {
                self.step(at, false);
            }
        }
    }
}

fn run(seed: u64, trouble: Trouble, wrong: Wrong) -> World {
    let mut world = World::new(seed, wrong);
    world.troubled(trouble);
    world.calm(40);
    world
}

#[test]
fn crashes_and_a_bad_network_make_one_cluster_of_all() {
    for seed in 0..2_000 {
        let world = run(seed, Trouble::Crashes, Wrong::Nothing);
        assert_eq!(world.clusters.len(), 1, "seed {seed}");
        assert!(world.machines.iter().all(|machine| machine.member_of == Some(1)), "seed {seed}");
    }
}

#[test]
fn emptied_directories_may_stop_it_but_never_make_two() {
    let mut stuck = 0;
    for seed in 0..2_000 {
        let world = run(seed, Trouble::EmptiedDirectories, Wrong::Nothing);
        assert!(world.clusters.len() <= 1, "seed {seed}");
        stuck += usize::from(world.clusters.is_empty());
    }
    assert!(stuck > 0, "some of these schedules lose the node that others are pledged to");
}

#[test]
fn a_pledge_that_is_not_kept_makes_two() {
    for wrong in [Wrong::PledgeIsForgotten, Wrong::ToldBeforeKept] {
        let two = |seed| run(seed, Trouble::EmptiedDirectories, wrong).clusters.len() > 1;
        assert!((0..2_000).any(two), "{wrong:?} is not seen by these schedules");
    }
}
