//! Every node: following a stream, fsync and ack, crashes.

use super::{
    protocol::{Model, Successors},
    rules::Rule,
    state::{Broken, Read, State},
    step::Step,
};

impl Model {
    pub(super) fn replica_steps(&self, state: &State, node: usize, into: &mut Successors) {
        self.follow(state, node, into);
        self.append(state, node, into);
        self.fsync(state, node, into);
        self.late_promise(state, node, into);
        self.crash(state, node, into);
    }

    /// 6.4.5: a subscription is answered. Promise, cut, adopt, in this order. Which process is the
    /// writer of an epoch the product also knows from raft; the model needs no such check.
    fn follow(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        if this.installs() {
            return;
        }
        for (at, stream) in state.streams().iter().enumerate() {
            let own = stream.owner as usize == node;
            let open = this.session as usize == at + 1;
            // Subscribing again changes nothing, unless it cuts what it should not.
            let again = open && self.hold(Rule::CutOnlyAtLaterEpoch);
            let started = stream.log.last_epoch() == stream.epoch || !self.hold(Rule::ServeAfterEpochStart);
            let in_newer_office =
                state.office(node).is_some_and(|office| state.streams[office].epoch >= stream.epoch);
            if own || again || !started || in_newer_office || stream.epoch < this.promise {
                continue;
            }
            let mut next = *state;
            let keep = self.keep(state, node, at);
            self.accept(&mut next, node, stream.epoch);
            self.cut(&mut next, node, keep);
            let after = &mut next.nodes[node];
            (after.office, after.view, after.session) = (0, 0, at as u8 + 1);
            self.acknowledge(&mut next, node, at);
            into.add(Step::Follow { node: node as u8, stream: at as u8 }, next);
        }
    }

    /// How much of its log the follower may keep.
    fn keep(&self, state: &State, node: usize, stream: usize) -> u8 {
        let (follower, sender) = (&state.nodes[node].log, &state.streams[stream].log);
        if !self.hold(Rule::CutByEpochTable) {
            return follower.len().min(sender.len());
        }
        let keep = sender.common_prefix(follower);
        if self.hold(Rule::CutOnlyAtLaterEpoch) {
            return keep;
        }
        // Shorter is what the sender has on disk itself: it streams before its own fsync.
        let owner = state.streams[stream].owner as usize;
        let is_in_office = state.office(owner) == Some(stream);
        if is_in_office { keep.min(state.nodes[owner].durable) } else { keep }
    }

    fn cut(&self, next: &mut State, node: usize, keep: u8) {
        let this = &mut next.nodes[node];
        if keep >= this.log.len() {
            return;
        }
        if keep < this.applied {
            next.broken = Some(Broken::AppliedCut);
        }
        if !self.hold(Rule::CutDurableBeforeAdoption) && keep < this.on_disk {
            next.undone_cut = Some((node as u8, this.log.first(this.on_disk)));
        }
        this.log.truncate(keep);
        this.durable = this.durable.min(keep);
        this.on_disk = this.on_disk.min(keep);
        this.applied = this.applied.min(keep);
    }

    /// The next record of the stream. It may have been under way for long.
    fn append(&self, state: &State, node: usize, into: &mut Successors) {
        let Some(at) = state.session(node) else { return };
        let (this, stream) = (&state.nodes[node], &state.streams[at]);
        let seq = this.log.len() + 1;
        // Records that come after a promise do no harm as long as they are not acknowledged; the
        // product lets none in.
        let fenced = stream.epoch < this.promise && self.hold(Rule::NoAckBelowPromise);
        if seq > stream.log.len() || fenced {
            return;
        }
        let record = stream.log.at(seq);
        if record.epoch() < this.promise && !self.hold(Rule::PromiseAgainstStreamEpoch) {
            return;
        }
        let mut next = *state;
        self.push(&mut next, node, record);
        if !self.hold(Rule::AckAfterFsync) {
            self.acknowledge(&mut next, node, at);
        }
        into.add(Step::Append { node: node as u8 }, next);
    }

    /// A group commit: everything in the log is on disk.
    fn fsync(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        if this.on_disk == this.log.len() {
            return;
        }
        let mut next = *state;
        let end = this.log.len();
        (next.nodes[node].durable, next.nodes[node].on_disk) = (end, end);
        if next.undone_cut.is_some_and(|(whose, _)| whose as usize == node) {
            next.undone_cut = None;
        }
        if let Some(office) = state.office(node) {
            let promised_higher = this.promise > state.streams[office].epoch;
            if !promised_higher || !self.hold(Rule::NoOwnVoteBelowPromise) {
                next.streams[office].acks[node] = end;
            }
        } else if let Some(at) = state.session(node) {
            self.acknowledge(&mut next, node, at);
        }
        into.add(Step::Fsync { node: node as u8 }, next);
    }

    /// The ack is taken to arrive at once: when the writer counts it is a step of its own.
    fn acknowledge(&self, next: &mut State, node: usize, at: usize) {
        let (this, stream) = (&next.nodes[node], &next.streams[at]);
        if this.promise > stream.epoch && self.hold(Rule::NoAckBelowPromise) {
            return;
        }
        let has = if self.hold(Rule::AckAfterFsync) { this.durable } else { this.log.len() };
        let ack = has.min(stream.log.len()).max(stream.acks[node]);
        next.streams[at].acks[node] = ack;
    }

    fn late_promise(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        if this.promise > this.promise_on_disk && self.hold(Rule::PromiseFsynced) {
            let mut next = *state;
            next.nodes[node].promise_on_disk = this.promise;
            into.add(Step::PromiseReachesDisk { node: node as u8 }, next);
        }
    }

    /// The process dies and starts again, as another run.
    fn crash(&self, state: &State, node: usize, into: &mut Successors) {
        if state.crashes == self.bounds.crashes {
            return;
        }
        for tail in [false, true] {
            let this = &state.nodes[node];
            if tail && this.on_disk == this.log.len() {
                continue; // the same as power loss
            }
            let mut next = *state;
            next.crashes += 1;
            self.restart(&mut next, node, tail);
            into.add(Step::Crash { node: node as u8, tail }, next);
        }
    }

    /// What is there after the end of a process, and the next one. `tail`: also what was not fsynced.
    pub(super) fn restart(&self, next: &mut State, node: usize, tail: bool) {
        let this = &mut next.nodes[node];
        if !tail {
            this.log.truncate(this.on_disk);
            if let Some((_, old)) = next.undone_cut.filter(|(whose, _)| *whose as usize == node) {
                (this.log, this.on_disk) = (old, old.len());
                next.undone_cut = None;
            }
        } else if self.hold(Rule::FsyncBeforeDurable) {
            this.on_disk = this.log.len();
        }
        this.durable = this.log.len();
        this.applied = this.applied.min(this.durable);
        this.promise = this.promise_on_disk;
        (this.session, this.office, this.view) = (0, 0, 0);
        this.boot += 1;
        let asked = (next.read.stream as usize).checked_sub(1);
        if asked.is_some_and(|stream| next.streams[stream].owner as usize == node) {
            next.read = Read::default();
        }
        self.finish_install(next, node);
    }
}
