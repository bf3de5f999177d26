//! Leaders and raft: sealing rounds, naming the writer, changing the voters.
//!
//! Any number of leaders, old and new, have rounds under way; an answered round may be decided at
//! any later time. What raft itself guarantees, one list of commands, is taken for granted.

use super::{
    protocol::{Model, Successors},
    rules::Rule,
    state::{Command, Nodes, Report, Round, State, has},
    step::Step,
};

/// Rounds for the same epoch at the same time.
const RIVALS: usize = 2;

impl Model {
    pub(super) fn control_steps(&self, state: &State, into: &mut Successors) {
        self.begin_round(state, into);
        for round in 0..state.rounds.len() {
            if state.rounds[round].epoch > 0 {
                self.seal(state, round, into);
                self.name_writer(state, round, into);
            }
        }
        self.late_seals(state, into);
        self.change_membership(state, into);
        self.settle_membership(state, into);
    }

    /// 6.4.1: for one of many reasons a leader wants another writer.
    fn begin_round(&self, state: &State, into: &mut Successors) {
        let epoch = state.newest_register().epoch + 1;
        let rivals = state.rounds.iter().filter(|round| round.epoch == epoch).count();
        let place = state.rounds.iter().position(|round| round.epoch == 0);
        if epoch > self.bounds.epochs || state.rounds_begun == self.bounds.rounds || rivals == RIVALS {
            return;
        }
        if let Some(place) = place {
            let mut next = *state;
            let membership = state.newest_membership().id;
            next.rounds[place] = Round { epoch, membership, ..Round::default() };
            next.rounds_begun += 1;
            into.add(Step::BeginRound, next);
        }
    }

    /// 6.4.2: a voter promises, and then says where its log ends.
    fn seal(&self, state: &State, round: usize, into: &mut Successors) {
        let Round { epoch, membership, answered, .. } = state.rounds[round];
        let voters = state.membership(membership).all();
        for voter in 0..self.bounds.nodes {
            let this = &state.nodes[voter];
            if !has(voters, voter) || has(answered, voter) || this.promise > epoch {
                continue;
            }
            let mut next = *state;
            self.promise(&mut next, voter, epoch);
            let last = if self.hold(Rule::ReportLastRecordEpoch) {
                this.log.epoch_at(this.durable)
            } else {
                this.promise
            };
            let round_after = &mut next.rounds[round];
            round_after.answered |= 1 << voter;
            round_after.reports[voter] = Report { epoch: last, seq: this.durable, boot: this.boot };
            into.add(Step::Seal { round: round as u8, voter: voter as u8 }, next);
        }
    }

    /// A `Seal` whose round is decided still binds whom it reaches.
    fn late_seals(&self, state: &State, into: &mut Successors) {
        let decided = state.newest_register().epoch;
        for node in 0..self.bounds.nodes {
            for epoch in state.nodes[node].promise + 1..=decided {
                let mut next = *state;
                self.promise(&mut next, node, epoch);
                into.add(Step::LateSeal { node: node as u8, epoch }, next);
            }
        }
    }

    /// A promise made when asked to seal. From here on nothing of a lower stream epoch passes; what
    /// was appended before may still reach the disk, but is no longer acknowledged.
    fn promise(&self, next: &mut State, node: usize, epoch: u8) {
        let this = &mut next.nodes[node];
        this.promise = epoch;
        if self.hold(Rule::PromiseFsynced) && self.hold(Rule::PromiseBeforeReport) {
            this.promise_on_disk = epoch;
        }
        // Nothing passes on that session any more; forgetting it joins equal worlds.
        if let Some(stream) = next.session(node)
            && next.streams[stream].epoch < epoch
            && self.hold(Rule::NoAckBelowPromise)
        {
            next.nodes[node].session = 0;
        }
    }

    /// 6.4.3: the highest report of a majority becomes writer, if nothing has changed meanwhile.
    fn name_writer(&self, state: &State, at: usize, into: &mut Successors) {
        let round = state.rounds[at];
        let current = state.newest_register().epoch;
        let takes =
            if self.hold(Rule::NextEpochOnly) { round.epoch == current + 1 } else { round.epoch >= current };
        let membership = state.newest_membership();
        let unchanged = round.membership == membership.id || !self.hold(Rule::MembershipUnchangedSinceSeal);
        if !takes || !unchanged || !state.has_room(1) {
            return;
        }
        let sealed_under = state.membership(round.membership);
        // Any part of the answers: the others may be on their way when the leader decides.
        let mut counted = round.answered;
        while counted > 0 {
            if self.is_quorum(&sealed_under, counted) {
                self.name_highest(state, at, counted, membership.all(), into);
            }
            counted = (counted - 1) & round.answered;
        }
    }

    fn name_highest(&self, state: &State, at: usize, counted: Nodes, voters: Nodes, into: &mut Successors) {
        let round = state.rounds[at];
        let key = |report: &Report| {
            let epoch = if self.hold(Rule::CompareEpochThenSeq) { report.epoch } else { 0 };
            (epoch, report.seq)
        };
        let answered = (0..self.bounds.nodes).filter(|node| has(counted, *node));
        let highest = answered.clone().map(|node| key(&round.reports[node])).max().unwrap_or_default();
        for node in answered {
            let report = &round.reports[node];
            let wins = key(report) == highest || !self.hold(Rule::HighestReportWins);
            let command = Command::SetWriter { epoch: round.epoch, node: node as u8, boot: report.boot };
            if !wins || !has(voters, node) || state.commands.contains(&command) {
                continue;
            }
            let mut next = *state;
            next.push(command);
            if self.hold(Rule::NextEpochOnly) {
                // Rounds up to this epoch can no longer be decided: see `late_seals`.
                for round in next.rounds.iter_mut().filter(|other| other.epoch <= round.epoch) {
                    *round = Round::default();
                }
            }
            into.add(Step::Name { round: at as u8, counted, node: node as u8 }, next);
        }
    }

    /// 6.5: one voter more or less, and not before the last change is marked.
    fn change_membership(&self, state: &State, into: &mut Successors) {
        let now = state.newest_membership();
        let open = state.is_marked(now.id) || !self.hold(Rule::OneChangeUntilMarked);
        if now.is_joint() || !open || state.changes == self.bounds.changes || !state.has_room(2) {
            return;
        }
        let mut change = |new: Nodes| {
            if new != 0 {
                let mut next = *state;
                next.push(Command::Membership { old: now.new, new });
                next.changes += 1;
                into.add(Step::Change { old: now.new, new }, next);
            }
        };
        let swaps = self.bounds.marked_swaps || !self.hold(Rule::OneVoterPerChange);
        for node in 0..self.bounds.nodes {
            if !swaps {
                // The sitting writer may go as well: harmless, though the product hands over first.
                change(now.new ^ 1 << node);
                continue;
            }
            for other in (0..self.bounds.nodes).filter(|other| !has(now.new, *other)) {
                if has(now.new, node) && state.newest_register().node != node {
                    change(now.new & !(1 << node) | 1 << other);
                }
            }
        }
    }

    /// Raft goes from joint to uniform by itself.
    fn settle_membership(&self, state: &State, into: &mut Successors) {
        let now = state.newest_membership();
        let waits =
            self.bounds.marked_swaps && self.hold(Rule::OneChangeUntilMarked) && !state.is_marked(now.id);
        if now.is_joint() && !waits && state.has_room(1) {
            let mut next = *state;
            next.push(Command::Membership { old: 0, new: now.new });
            into.add(Step::Settle, next);
        }
    }
}
