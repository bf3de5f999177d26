//! The writer: taking office, appending, counting, and linearizable reads.

use super::{
    log::{Body, Record},
    protocol::{Model, Successors},
    rules::Rule,
    state::{Broken, Nodes, Read, State, Stream, has},
    step::Step,
};

impl Model {
    pub(super) fn office_steps(&self, state: &State, node: usize, into: &mut Successors) {
        let Some(office) = state.office(node) else {
            self.take_office(state, node, into);
            return;
        };
        self.learn(state, node, into);
        self.append_start(state, node, office, into);
        self.write(state, node, office, into);
        self.mark(state, node, office, into);
        self.commit(state, node, office, into);
        self.read_begins(state, node, office, into);
    }

    /// 6.4.4: office goes to the process that the register names, once.
    fn take_office(&self, state: &State, node: usize, into: &mut Successors) {
        let this = &state.nodes[node];
        for view in 1..=state.command_count {
            let register = state.register(view);
            let epoch = register.epoch;
            let mine =
                register.node == node && (register.boot == this.boot || !self.hold(Rule::OfficeBoundToBoot));
            let taken = state.streams().iter().any(|stream| {
                let same_run = stream.boot == this.boot || self.hold(Rule::OfficeBoundToBoot);
                stream.epoch == epoch && stream.owner as usize == node && same_run
            });
            if !mine || taken || this.promise > epoch || state.stream_count as usize == state.streams.len() {
                continue;
            }
            // A process that goes on in an epoch of a former run finds its start in the log.
            let resumes = this.log.last_epoch() == epoch;
            if this.log.is_full() && !resumes {
                continue;
            }
            let mut next = *state;
            let writer = &mut next.nodes[node];
            (writer.session, writer.view, writer.office) = (0, view, state.stream_count + 1);
            self.accept(&mut next, node, epoch);
            if !resumes && self.hold(Rule::ServeAfterEpochStart) {
                let start = Record::new(epoch, Body::Start(state.membership(view).id));
                self.push(&mut next, node, start);
            }
            let writer = next.nodes[node];
            let stream = &mut next.streams[state.stream_count as usize];
            let (owner, boot) = (node as u8, writer.boot);
            *stream =
                Stream { epoch, owner, boot, log: writer.log, commit: writer.commit, ..Stream::default() };
            stream.acks[node] = writer.durable;
            next.stream_count += 1;
            into.add(Step::TakeOffice { node: node as u8, view }, next);
        }
    }

    /// Accepting an epoch, one's own or a stream's, promises it.
    pub(super) fn accept(&self, next: &mut State, node: usize, epoch: u8) {
        if self.hold(Rule::AcceptingIsPromising) {
            let this = &mut next.nodes[node];
            this.promise = this.promise.max(epoch);
            if self.hold(Rule::PromiseFsynced) {
                this.promise_on_disk = this.promise;
            }
        }
    }

    /// A writer that sees a later register steps down, and counts with each membership it sees.
    fn learn(&self, state: &State, node: usize, into: &mut Successors) {
        if state.nodes[node].view == state.command_count {
            return;
        }
        let mut next = *state;
        let this = &mut next.nodes[node];
        this.view += 1;
        let office = this.office as usize - 1;
        if state.register(this.view).epoch > state.streams[office].epoch {
            (this.office, this.view) = (0, 0);
        }
        into.add(Step::Learn { node: node as u8 }, next);
    }

    fn append_start(&self, state: &State, node: usize, office: usize, into: &mut Successors) {
        let epoch = state.streams[office].epoch;
        if state.streams[office].log.last_epoch() < epoch {
            let membership = state.membership(state.nodes[node].view).id;
            let record = Record::new(epoch, Body::Start(membership));
            if let Some(next) = self.append_own(state, node, office, record) {
                into.add(Step::AppendStart { node: node as u8 }, next);
            }
        }
    }

    /// A new batch, or one that its edge sends again.
    fn write(&self, state: &State, node: usize, office: usize, into: &mut Successors) {
        let Stream { epoch, log, .. } = state.streams[office];
        let Some(start) = log.start_of(epoch) else { return };
        let mut append = |batch: u8| {
            let record = Record::new(epoch, Body::Batch(batch));
            if let Some(mut next) = self.append_own(state, node, office, record) {
                next.writes = next.writes.max(batch);
                into.add(Step::Write { node: node as u8, batch }, next);
            }
        };
        if state.writes < self.bounds.writes {
            // Without waiting for the start to be applied, which only the table of batches needs.
            append(state.writes + 1);
        }
        if !self.bounds.retries {
            return;
        }
        let applied = state.nodes[node].applied;
        if applied < start && self.hold(Rule::AdmitAfterEpochStart) {
            return;
        }
        for batch in 1..=state.writes {
            let is_applied = log.first(applied).records().iter().any(|record| record.is_batch(batch));
            let in_flight = log.records().contains(&Record::new(epoch, Body::Batch(batch)));
            if !is_applied && !in_flight {
                append(batch);
            }
        }
    }

    /// 6.5: the writer says from where on it counts with a membership.
    fn mark(&self, state: &State, node: usize, office: usize, into: &mut Successors) {
        let Stream { epoch, log, .. } = state.streams[office];
        let membership = state.membership(state.nodes[node].view).id;
        let said = log.records().iter().any(|record| record.membership().is_some_and(|id| id >= membership));
        if !said && log.last_epoch() == epoch {
            let record = Record::new(epoch, Body::Mark(membership));
            if let Some(next) = self.append_own(state, node, office, record) {
                into.add(Step::Mark { node: node as u8 }, next);
            }
        }
    }

    /// A record enters the writer's log and its stream at once; its fsync comes later, or never.
    fn append_own(&self, state: &State, node: usize, office: usize, record: Record) -> Option<State> {
        let epoch = state.streams[office].epoch;
        if state.nodes[node].log.is_full() || state.nodes[node].promise > epoch {
            return None;
        }
        let mut next = *state;
        self.push(&mut next, node, record);
        let log = next.nodes[node].log;
        next.streams[office].log = log;
        if !self.hold(Rule::OwnVoteAfterFsync) {
            next.streams[office].acks[node] = log.len();
        }
        Some(next)
    }

    /// 6.4.4: what a majority has on disk, counted at a record of the own epoch.
    fn commit(&self, state: &State, node: usize, office: usize, into: &mut Successors) {
        let newest = state.nodes[node].view;
        let oldest = if self.hold(Rule::ViewIsOneValue) { newest } else { 1 };
        for view in oldest..=newest {
            let stream = &state.streams[office];
            let counts = |seq: &u8| {
                let own_epoch = stream.log.epoch_at(*seq) == stream.epoch || !self.hold(Rule::OwnEpochOnly);
                own_epoch && self.has_majority(state, office, view, *seq)
            };
            let Some(seq) = (stream.commit + 1..=stream.log.len()).rev().find(counts) else { continue };
            let mut next = *state;
            next.streams[office].commit = seq;
            self.note_committed(&mut next, office, seq);
            into.add(Step::Commit { node: node as u8, view }, next);
        }
    }

    fn has_majority(&self, state: &State, office: usize, view: u8, seq: u8) -> bool {
        let membership = state.membership(view);
        let acked = |node: usize| {
            let own = state.streams[office].acks[node];
            if self.hold(Rule::AckNamesStreamEpoch) {
                return own;
            }
            // A bare number that came late is taken for an ack of this stream.
            state.streams().iter().map(|stream| stream.acks[node]).max().unwrap_or(own)
        };
        let have: Nodes =
            (0..self.bounds.nodes).filter(|node| acked(*node) >= seq).map(|node| 1 << node).sum();
        if self.hold(Rule::LearnersNeverCount) {
            self.is_quorum(&membership, have)
        } else {
            have.count_ones() * 2 > membership.new.count_ones()
        }
    }

    /// What is committed once is committed for ever.
    fn note_committed(&self, next: &mut State, office: usize, seq: u8) {
        let log = next.streams[office].log;
        let known = next.committed.len();
        if !log.agrees(&next.committed, known.min(seq)) {
            next.broken = Some(Broken::CommittedLost);
            return;
        }
        for at in known + 1..=seq {
            let record = log.at(at);
            if let Body::Batch(batch) = record.body()
                && next.committed.records().iter().any(|before| before.is_batch(batch))
            {
                next.broken = Some(Broken::BatchTwice);
            }
            next.committed.push(record);
        }
        let epoch = next.streams[office].epoch;
        let committer = &mut next.committers[epoch as usize];
        if log.epoch_at(seq) != epoch {
            return;
        }
        if *committer != 0 && *committer != office as u8 + 1 {
            next.broken = Some(Broken::TwoWritersCommit);
        }
        *committer = office as u8 + 1;
    }

    /// 6.7: the writer notes its commit position, then asks.
    fn read_begins(&self, state: &State, node: usize, office: usize, into: &mut Successors) {
        let stream = &state.streams[office];
        let started = stream.log.epoch_at(stream.commit) == stream.epoch;
        let ready = started || !self.hold(Rule::ReadAfterEpochStartCommits);
        if state.reads == self.bounds.reads || state.read.stream != 0 || !ready {
            return;
        }
        let mut next = *state;
        next.reads += 1;
        let confirmed = if self.hold(Rule::ConfirmedAfterTheQuestion) {
            0
        } else {
            // Acks that came before count as answers.
            (0..self.bounds.nodes).filter(|node| stream.acks[*node] > 0).map(|node| 1 << node).sum()
        };
        let required = state.committed.len();
        next.read = Read { stream: office as u8 + 1, index: stream.commit, required, confirmed };
        into.add(Step::ReadBegins { node: node as u8 }, next);
    }

    pub(super) fn read_steps(&self, state: &State, into: &mut Successors) {
        let read = state.read;
        let Some(office) = (read.stream as usize).checked_sub(1) else { return };
        let stream = &state.streams[office];
        for voter in 0..self.bounds.nodes {
            if !has(read.confirmed, voter) && state.nodes[voter].promise <= stream.epoch {
                let mut next = *state;
                next.read.confirmed |= 1 << voter;
                into.add(Step::ReadConfirmed { voter: voter as u8 }, next);
            }
        }
        let writer = stream.owner as usize;
        let membership = state.membership(state.nodes[writer].view);
        let asked = state.office(writer) == Some(office);
        if asked && (self.is_quorum(&membership, read.confirmed) || !self.hold(Rule::ReadConfirmedByMajority))
        {
            let mut next = *state;
            if read.index < read.required {
                next.broken = Some(Broken::StaleRead);
            }
            next.read = Read::default();
            into.add(Step::ReadAnswered, next);
        }
    }
}
