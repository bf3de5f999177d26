//! The protocol: which steps a world allows, and what is noticed after each.
//!
//! The steps are told by who takes them: [`control`](super::control) (leaders, raft),
//! [`office`](super::office) (the writer), [`replica`](super::replica) (every node) and
//! [`install`](super::install) (snapshots). Where the
//! product is stricter than a rule demands, the model allows more: a world without a violation
//! here has none there.

use super::{
    rules::{Rule, Rules},
    state::{Bounds, Broken, Membership, Nodes, Stage, State},
    step::Step,
};

/// The protocol within bounds, with some rules in force.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    pub bounds: Bounds,
    pub rules: Rules,
}

/// The worlds that one step leads to.
#[derive(Debug, Default)]
pub struct Successors(pub Vec<(Step, State)>);

impl Model {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, rules: Rules::ALL }
    }

    /// The mutant without `rule`.
    pub fn without(self, rule: Rule) -> Self {
        Self { rules: self.rules.without(rule), ..self }
    }

    pub fn hold(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    /// Every step that `state` allows.
    pub fn successors(&self, state: &State, into: &mut Successors) {
        into.0.clear();
        if state.broken.is_some() {
            return;
        }
        self.control_steps(state, into);
        for node in 0..self.bounds.nodes {
            self.office_steps(state, node, into);
            self.replica_steps(state, node, into);
            self.install_steps(state, node, into);
        }
        self.read_steps(state, into);
        for (_, next) in &mut into.0 {
            self.notice(next);
        }
    }

    /// The world after `step`, if `state` allows it.
    pub fn take(&self, state: &State, step: Step) -> Option<State> {
        let mut next = Successors::default();
        self.successors(state, &mut next);
        next.0.into_iter().find(|(taken, _)| *taken == step).map(|(_, state)| state)
    }

    /// A majority of the voters, of both sets while membership is joint.
    pub fn is_quorum(&self, membership: &Membership, have: Nodes) -> bool {
        let majority = |set: Nodes| (set & have).count_ones() * 2 > set.count_ones();
        let old = !membership.is_joint() || !self.hold(Rule::BothSetsWhileJoint) || majority(membership.old);
        old && majority(membership.new)
    }

    /// What each node hears and may apply by now, and whether that breaks something. Commit notices
    /// and applying are not steps: a node is taken to have heard and applied all it could.
    fn notice(&self, state: &mut State) {
        for node in 0..self.bounds.nodes {
            let heard = self.heard_commit(state, node);
            let this = &mut state.nodes[node];
            this.commit = this.commit.max(heard);
            let committed_only = self.hold(Rule::ApplyCommittedOnly);
            // A log that begins behind what the engine has gives it nothing to apply.
            if this.stage == Stage::LogFirst {
                continue;
            }
            let may_apply = if committed_only { this.commit.min(this.durable) } else { this.durable };
            if may_apply > this.applied {
                this.applied = may_apply;
                let log = this.log;
                let is_committed =
                    may_apply <= state.committed.len() && log.agrees(&state.committed, may_apply);
                if committed_only && !is_committed {
                    state.broken = state.broken.or(Some(Broken::AppliedUncommitted));
                }
            }
        }
        if state.broken.is_none() && self.two_records_at_one_position(state) {
            state.broken = Some(Broken::TwoRecordsAtOnePosition);
        }
    }

    fn heard_commit(&self, state: &State, node: usize) -> u8 {
        if let Some(own) = state.office(node) {
            return state.streams[own].commit;
        }
        if self.hold(Rule::CommitBelievedAfterCut) {
            return state.session(node).map_or(0, |stream| state.streams[stream].commit);
        }
        let promise = state.nodes[node].promise;
        state.streams().iter().filter(|s| s.epoch >= promise).map(|s| s.commit).max().unwrap_or(0)
    }

    fn two_records_at_one_position(&self, state: &State) -> bool {
        for one in 1..self.bounds.nodes {
            for other in 0..one {
                let (one, other) = (&state.nodes[one].log, &state.nodes[other].log);
                for (a, b) in one.records().iter().zip(other.records()) {
                    if a != b && a.epoch() == b.epoch() {
                        return true;
                    }
                }
            }
        }
        false
    }
}

impl Successors {
    pub fn add(&mut self, step: Step, state: State) {
        self.0.push((step, state));
    }
}
