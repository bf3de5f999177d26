//! Snapshots: installing one, in the steps the product takes, with crashes between them; and one node
//! that goes on alone (`skein recover`).
//!
//! Engine and log are two places. What an engine holds beyond the end of its log is the node's
//! `snapshot` from [`Stage::InEngine`] on; a record that then comes to the log at a position which the
//! engine has is skipped by it, so it must be the same record.

use super::{
    log::Record,
    protocol::{Model, Successors},
    rules::Rule,
    state::{Broken, Command, Node, Stage, State},
    step::Step,
};

impl Model {
    pub(super) fn install_steps(&self, state: &State, node: usize, into: &mut Successors) {
        self.admit(state, node, into);
        self.install(state, node, into);
        self.begin_anew(state, node, into);
        self.recover(state, node, into);
    }

    /// 6.6: an engine snapshot, of whichever node, for one whose log ends before it. The epoch of its last
    /// record is promised, and the log is told where it is to begin.
    fn admit(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        let idle = matches!(this.stage, Stage::None | Stage::Ahead);
        if state.snapshots == self.bounds.snapshots || this.office != 0 || !idle {
            return;
        }
        let end = &this.log;
        for from in (0..self.bounds.nodes).filter(|from| *from != node) {
            let source = &state.nodes[from];
            let holds = if self.hold(Rule::SnapshotOfApplied) { source.applied } else { source.durable };
            let beyond = (source.log.epoch_at(holds), holds) > (end.last_epoch(), end.len());
            if holds == 0 || (!beyond && self.hold(Rule::SnapshotBeyondLogEnd)) {
                continue;
            }
            let mut next = *state;
            next.snapshots += 1;
            let after = &mut next.nodes[node];
            if holds < after.applied && beyond {
                next.broken = Some(Broken::AppliedCut);
            }
            (after.snapshot, after.stage, after.session) = (source.log.first(holds), Stage::Admitted, 0);
            if self.hold(Rule::InstallingIsPromising) {
                self.accept(&mut next, node, source.log.epoch_at(holds));
            }
            into.add(Step::Admit { node: node as u8, from: from as u8 }, next);
        }
    }

    /// The engine is replaced, and the log is what it was.
    fn install(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        let turn = match this.stage {
            Stage::Admitted => self.hold(Rule::EngineBeforeLog),
            Stage::LogFirst => true,
            _ => false,
        };
        if !turn {
            return;
        }
        let mut next = *state;
        if this.stage == Stage::LogFirst {
            self.has_installed(&mut next, node);
        } else {
            next.nodes[node].stage = Stage::InEngine;
        }
        into.add(Step::Install { node: node as u8 }, next);
    }

    /// The log begins behind the snapshot, or the installation ends without it: a later promise came
    /// between. The engine is ahead of its log then, as it may be for a while.
    fn begin_anew(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        let log_first = this.stage == Stage::Admitted && !self.hold(Rule::EngineBeforeLog);
        if this.stage == Stage::InEngine || log_first {
            let mut next = *state;
            if !self.hold(Rule::InstallingIsPromising) {
                self.accept(&mut next, node, this.snapshot.last_epoch());
            }
            self.has_installed(&mut next, node);
            if log_first {
                next.nodes[node].stage = Stage::LogFirst;
                next.nodes[node].snapshot = this.snapshot;
            }
            into.add(Step::BeginAnew { node: node as u8 }, next);
        }
        if this.stage == Stage::InEngine {
            let mut next = *state;
            next.nodes[node].stage = Stage::Ahead;
            into.add(Step::GiveUp { node: node as u8 }, next);
        }
    }

    fn has_installed(&self, next: &mut State, node: usize) {
        let this = &mut next.nodes[node];
        let holds = this.snapshot.len();
        this.log = this.snapshot;
        (this.durable, this.on_disk, this.applied) = (holds, holds, holds);
        this.commit = this.commit.max(holds);
        this.forget_snapshot();
    }

    /// What a start makes of an installation that was cut short.
    pub(super) fn finish_install(&self, next: &mut State, node: usize) {
        let this = &next.nodes[node];
        let beyond = |node: &Node| {
            (node.snapshot.last_epoch(), node.snapshot.len()) > (node.log.last_epoch(), node.log.len())
        };
        match this.stage {
            Stage::None => {}
            Stage::Admitted => next.nodes[node].forget_snapshot(),
            Stage::LogFirst => next.broken = Some(Broken::GapInEngine),
            Stage::InEngine | Stage::Ahead if !self.hold(Rule::InstallIsAnnounced) => {
                next.nodes[node].stage = Stage::Ahead;
            }
            Stage::InEngine | Stage::Ahead if beyond(this) => self.has_installed(next, node),
            Stage::InEngine | Stage::Ahead => next.nodes[node].stage = Stage::Ahead,
        }
    }

    /// A record comes to the end of a log. An engine that has the position skips it.
    pub(super) fn push(&self, next: &mut State, node: usize, record: Record) {
        let this = &mut next.nodes[node];
        this.log.push(record);
        let seq = this.log.len();
        if !matches!(this.stage, Stage::InEngine | Stage::Ahead) || seq > this.snapshot.len() {
            return;
        }
        if this.snapshot.at(seq) != record {
            next.broken = Some(Broken::AppliedCut);
        } else if this.stage == Stage::Ahead && seq == this.snapshot.len() {
            // Made good.
            this.forget_snapshot();
        }
    }

    /// `skein recover`: everybody else is gone for good, and what this node has goes on alone. Only what
    /// it has shown must be there.
    fn recover(&self, state: &State, node: usize, into: &mut Successors) {
        if state.recoveries == self.bounds.recoveries {
            return;
        }
        let mut next = *state;
        self.restart(&mut next, node, true);
        if next.broken.is_some() {
            return;
        }
        if self.hold(Rule::RecoveryForgetsCommit) {
            next.nodes[node].commit = next.nodes[node].commit.min(next.nodes[node].durable);
        }
        let (this, spent) = (next.nodes[node], next);
        next = State { writes: spent.writes, rounds_begun: self.bounds.rounds, ..State::default() };
        (next.crashes, next.snapshots) = (self.bounds.crashes, self.bounds.snapshots);
        (next.changes, next.reads) = (self.bounds.changes, self.bounds.reads);
        next.recoveries = state.recoveries + 1;
        next.nodes[node] = this;
        let shown = this.applied.max(this.commit.min(this.durable));
        let ahead = this.stage == Stage::Ahead && this.snapshot.len() > shown;
        next.committed = if ahead { this.snapshot } else { this.log.first(shown) };
        next.push(Command::Membership { old: 0, new: 1 << node });
        let epoch = state.newest_register().epoch.max(this.promise) + 1;
        next.push(Command::SetWriter { epoch, node: node as u8, boot: this.boot });
        into.add(Step::Recover { node: node as u8 }, next);
    }
}
