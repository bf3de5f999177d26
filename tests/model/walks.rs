//! Random walks, for what is too wide to be gone through whole: changes of voters, crashes, reads,
//! snapshots and retries together.

use super::{
    explore::{Trace, walk},
    protocol::Model,
    state::{Bounds, Stage, State},
    step::Step,
};

/// Everything at once.
pub const WIDE: [Bounds; 2] = [
    Bounds::of(5, 5, 5, 3).voters(3).crashes(2).changes(3).reads(2).snapshots(1).retries(),
    Bounds::of(4, 4, 4, 2).voters(3).crashes(1).changes(2).reads(1).snapshots(1),
];

/// Steps of a walk at most.
pub const LONGEST: usize = 90;

/// Whether a step, from one world to the next, is in a certain situation.
type Is = fn(&State, Step, &State) -> bool;

/// Situations that walks have to get into, or they show nothing.
pub const SITUATIONS: [(&str, Is); 11] = [
    ("two rounds of one epoch each with an answer", |state, _, _| {
        let answered = |epoch| state.rounds.iter().filter(|r| r.epoch == epoch && r.answered != 0).count();
        state.rounds.iter().any(|round| round.epoch > 0 && answered(round.epoch) > 1)
    }),
    ("the node named has died before it took office", |state, step, _| {
        let register = state.newest_register();
        let in_office = state.streams().iter().any(|stream| stream.epoch == register.epoch);
        matches!(step, Step::Crash { .. }) && step.node() == Some(register.node) && !in_office
    }),
    ("a writer has died with its start not on its own disk", |state, step, _| {
        let Step::Crash { node, .. } = step else { return false };
        let node = node as usize;
        let start = state.office(node).and_then(|o| state.streams[o].log.start_of(state.streams[o].epoch));
        start.is_some_and(|start| state.nodes[node].on_disk < start)
    }),
    ("a stale writer writes", |state, step, _| {
        let Step::Write { node, .. } = step else { return false };
        let epoch = state.office(node as usize).map(|office| state.streams[office].epoch);
        epoch.is_some_and(|epoch| epoch < state.newest_register().epoch)
    }),
    ("a node is cut below what it had on disk", |state, step, after| {
        let Step::Follow { node, .. } = step else { return false };
        after.nodes[node as usize].on_disk < state.nodes[node as usize].on_disk
    }),
    ("a restarted writer follows another", |state, step, _| {
        let Step::Follow { node, .. } = step else { return false };
        state.nodes[node as usize].boot > 0 && state.streams().iter().any(|stream| stream.owner == node)
    }),
    ("a commit is counted under a changed membership", |state, step, _| {
        let Step::Commit { view, .. } = step else { return false };
        state.membership(view).id > 1
    }),
    ("a commit is counted while membership is joint", |state, step, _| {
        let Step::Commit { view, .. } = step else { return false };
        state.membership(view).is_joint()
    }),
    ("a read is answered after a failover", |state, step, _| {
        matches!(step, Step::ReadAnswered) && state.streams[state.read.stream as usize - 1].epoch > 1
    }),
    ("a snapshot replaces records that were there", |state, step, _| {
        let Step::BeginAnew { node } = step else { return false };
        state.nodes[node as usize].log.len() > 0
    }),
    ("a start finishes a snapshot that its engine has", |state, step, after| {
        let Step::Crash { node, .. } = step else { return false };
        let (before, after) = (&state.nodes[node as usize], &after.nodes[node as usize]);
        before.stage == Stage::InEngine && after.stage == Stage::None && after.log == before.snapshot
    }),
];

/// What some walks came by.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub walks: u64,
    pub steps: u64,
    pub situations: [u64; SITUATIONS.len()],
}

impl Seen {
    /// Walks with the seeds from `first` on; the seed and the way of the first that breaks something.
    pub fn walk(&mut self, first: u64, count: u64) -> Option<(u64, Trace)> {
        (first..first + count).find_map(|seed| self.one(seed).map(|trace| (seed, trace)))
    }

    /// The walk of one seed.
    pub fn one(&mut self, seed: u64) -> Option<Trace> {
        self.walks += 1;
        let model = Model::new(WIDE[(seed % WIDE.len() as u64) as usize]);
        walk(model, seed, LONGEST, &mut |state, step, after| {
            self.steps += 1;
            for (count, (_, is)) in self.situations.iter_mut().zip(SITUATIONS) {
                *count += u64::from(is(state, step, after));
            }
        })
    }

    pub fn add(&mut self, other: &Self) {
        self.walks += other.walks;
        self.steps += other.steps;
        for (sum, more) in self.situations.iter_mut().zip(other.situations) {
            *sum += more;
        }
    }
}
