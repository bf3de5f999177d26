//! Every rule, left out: where the model then finds its counterexample.
//!
//! A search is breadth first, so a counterexample is a shortest one behind its `prefix`, the part of
//! the story that is told by hand where the way is too long to be found.

use super::{
    explore::{Found, Look, nothing, search},
    liveness::failover_can_finish,
    protocol::Model,
    rules::Rule,
    state::Bounds,
    step::Step,
};

/// A counterexample is known within this many worlds; more mean that it has gone.
const CAP: usize = 1_000_000;

/// The protocol without one rule.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    pub rule: Rule,
    pub bounds: Bounds,
    pub prefix: &'static [Step],
    look: Look,
}

impl Mutant {
    pub fn hunt(&self) -> Found {
        search(Model::new(self.bounds).without(self.rule), self.prefix, CAP, self.look)
    }
}

/// Two offices and a batch among three voters: enough for most.
const PLAIN: Bounds = Bounds::of(3, 2, 1, 1);

/// The mutant of each rule.
pub fn mutant(rule: Rule) -> Mutant {
    let plain = |bounds| Mutant { rule, bounds, prefix: &[], look: nothing };
    match rule {
        Rule::PromiseFsynced | Rule::PromiseBeforeReport => plain(PLAIN.crashes(1)),
        Rule::NoAckBelowPromise | Rule::NoOwnVoteBelowPromise => plain(PLAIN),
        Rule::ReportLastRecordEpoch | Rule::CompareEpochThenSeq => plain(Bounds::of(3, 3, 2, 1)),
        Rule::HighestReportWins => plain(PLAIN),
        Rule::NextEpochOnly => plain(Bounds::of(3, 2, 2, 0)),
        Rule::MembershipUnchangedSinceSeal => {
            Mutant { prefix: VOTERS_CHANGE_UNDER_A_ROUND, ..plain(PLAIN_OF_FOUR.changes(2)) }
        }
        Rule::OfficeBoundToBoot => plain(Bounds::of(3, 1, 0, 2).crashes(1)),
        Rule::OwnEpochOnly => Mutant { prefix: TWO_SHORT_OFFICES, ..plain(Bounds::of(3, 4, 3, 1)) },
        Rule::LearnersNeverCount => plain(PLAIN_OF_FOUR),
        Rule::BothSetsWhileJoint => plain(PLAIN_OF_FOUR.changes(1).marked_swaps()),
        Rule::AckNamesStreamEpoch => plain(Bounds::of(3, 3, 2, 1)),
        Rule::AckAfterFsync | Rule::OwnVoteAfterFsync => plain(PLAIN.crashes(1)),
        Rule::AcceptingIsPromising | Rule::ServeAfterEpochStart | Rule::CutByEpochTable => plain(PLAIN),
        Rule::PromiseAgainstStreamEpoch => Mutant { look: failover_can_finish, ..plain(PLAIN) },
        Rule::CutOnlyAtLaterEpoch => plain(Bounds::of(3, 1, 0, 1)),
        Rule::CutDurableBeforeAdoption => plain(PLAIN.crashes(1)),
        Rule::CommitBelievedAfterCut | Rule::ApplyCommittedOnly => plain(PLAIN),
        Rule::FsyncBeforeDurable => plain(PLAIN.crashes(2)),
        Rule::ViewIsOneValue | Rule::OneChangeUntilMarked => plain(PLAIN.voters(1).changes(2)),
        Rule::OneVoterPerChange => plain(PLAIN_OF_FOUR.changes(1)),
        Rule::ReadConfirmedByMajority | Rule::ConfirmedAfterTheQuestion => plain(PLAIN.reads(1)),
        Rule::ReadAfterEpochStartCommits => plain(PLAIN.reads(1)),
        Rule::AdmitAfterEpochStart => plain(PLAIN.retries()),
        Rule::SnapshotOfApplied | Rule::SnapshotBeyondLogEnd => plain(PLAIN.snapshots(1)),
        Rule::InstallingIsPromising | Rule::EngineBeforeLog => plain(PLAIN.crashes(1).snapshots(1)),
        Rule::InstallIsAnnounced => plain(PLAIN.snapshots(1).recoveries(1)),
        Rule::RecoveryForgetsCommit => plain(PLAIN.recoveries(1)),
    }
}

/// Three voters and a node that does not vote yet.
const PLAIN_OF_FOUR: Bounds = Bounds::of(4, 2, 1, 1).voters(3);

/// A round has B's answer; then B leaves the voters and D becomes one. Every change is marked.
const VOTERS_CHANGE_UNDER_A_ROUND: &[Step] = &[
    Step::BeginRound,
    Step::Seal { round: 0, voter: 1 },
    Step::Change { old: 0b0111, new: 0b0101 },
    Step::Settle,
    Step::Learn { node: 0 },
    Step::Learn { node: 0 },
    Step::Mark { node: 0 },
    Step::Fsync { node: 0 },
    Step::Append { node: 2 },
    Step::Fsync { node: 2 },
    Step::Commit { node: 0, view: 4 },
    Step::Change { old: 0b0101, new: 0b1101 },
    Step::Settle,
    Step::Learn { node: 0 },
    Step::Learn { node: 0 },
];

/// Figure 8 of the raft paper begins: a batch is on A alone; B's office ends when its start is on B
/// alone; A is in office again.
const TWO_SHORT_OFFICES: &[Step] = &[
    Step::Write { node: 0, batch: 1 },
    Step::Fsync { node: 0 },
    Step::BeginRound,
    Step::Seal { round: 0, voter: 1 },
    Step::Seal { round: 0, voter: 2 },
    Step::Name { round: 0, counted: 0b110, node: 1 },
    Step::TakeOffice { node: 1, view: 3 },
    Step::Fsync { node: 1 },
    Step::BeginRound,
    Step::Seal { round: 0, voter: 0 },
    Step::Seal { round: 0, voter: 2 },
    Step::Name { round: 0, counted: 0b101, node: 0 },
    Step::Learn { node: 0 },
    Step::TakeOffice { node: 0, view: 4 },
];
