//! The rules of the protocol, each a switch of the model.
//!
//! This table is the link between three texts: DESIGN says the rule, the model shows what happens
//! without it, and the source carries `// Model: name` at the line that decides. `links.rs` holds
//! table and source together.

/// Declares [`Rule`] and its table from one list.
macro_rules! rules {
    ($($rule:ident $name:literal $design:literal [$($place:literal),+] $says:literal;)+) => {
        /// A rule of the protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule { $($rule),+ }

        impl Rule {
            pub const ALL: &[Self] = &[$(Self::$rule),+];

            /// As in the source, `// Model: name`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$rule => $name),+ }
            }

            /// Section of DESIGN.
            pub const fn design(self) -> &'static str {
                match self { $(Self::$rule => $design),+ }
            }

            /// Where the source decides it, `file::function` below `src/`.
            pub const fn places(self) -> &'static [&'static str] {
                match self { $(Self::$rule => &[$($place),+]),+ }
            }

            /// The rule in one line.
            pub const fn says(self) -> &'static str {
                match self { $(Self::$rule => $says),+ }
            }
        }
    };
}

rules! {
    // Sealing.
    PromiseFsynced "promise_fsynced" "6.4.2"
        ["wal/writer.rs::set_promise", "wal/recovery.rs::read"]
        "A promise is on disk, and a log without its promise refuses to start.";
    PromiseBeforeReport "promise_before_report" "6.4.2"
        ["replication/fence.rs::seal"]
        "A voter answers Seal only when its promise is on disk.";
    NoAckBelowPromise "no_ack_below_promise" "6.4.2"
        ["replication/fence.rs::durable_for", "replication/receiver.rs::acknowledge"]
        "After a promise no ack of a lower stream epoch leaves, not even for what was queued before.";
    NoOwnVoteBelowPromise "no_own_vote_below_promise" "6.4.2"
        ["replication/mod.rs::recount"]
        "A writer that has promised a higher epoch no longer counts its own fsync.";
    ReportLastRecordEpoch "report_last_record_epoch" "6.4.2"
        ["replication/fence.rs::report"]
        "A report carries the epoch of the last durable record, not the promise.";
    CompareEpochThenSeq "compare_epoch_then_seq" "6.4.3"
        ["raft/failover.rs::decide"]
        "Reports are compared by (epoch, seq), not by length.";
    HighestReportWins "highest_report_wins" "6.4.3, 6.4.7"
        ["raft/failover.rs::decide"]
        "Nobody but the highest report becomes writer, the target of a transfer neither.";

    // Naming.
    NextEpochOnly "next_epoch_only" "6.4.3"
        ["raft/state_machine.rs::set_writer"]
        "SetWriter is taken only for the current epoch + 1.";
    MembershipUnchangedSinceSeal "membership_unchanged_since_seal" "6.4.3"
        ["raft/state_machine.rs::set_writer", "raft/failover.rs::round"]
        "SetWriter is taken only under the membership its majority was counted under.";
    OfficeBoundToBoot "office_bound_to_boot" "6.4.0"
        ["write_path/commit.rs::hold_office"]
        "Office belongs to one process run: a restarted writer has none.";
    ViewIsOneValue "view_is_one_value" "6.4.4"
        ["write_path/commit.rs::serve"]
        "Register and voters come from one view, never from two moments.";

    // Counting.
    OwnEpochOnly "own_epoch_only" "6.4.4"
        ["replication/acks.rs::commit"]
        "A commit is counted at a record of the writer's own epoch; older ones ride along.";
    LearnersNeverCount "learners_never_count" "6.4.4"
        ["replication/acks.rs::lowest_of_majorities"]
        "Only voters count for a majority.";
    BothSetsWhileJoint "both_sets_while_joint" "6.5"
        ["replication/acks.rs::lowest_of_majorities", "types/view.rs::is_quorum"]
        "While membership is joint every count needs a majority of both sets.";
    AckNamesStreamEpoch "ack_names_stream_epoch" "6.4.2"
        ["replication/sender.rs::take_acks"]
        "An ack counts only in the stream epoch it names.";
    AckAfterFsync "ack_after_fsync" "6.3"
        ["wal/writer.rs::write_group"]
        "A follower acknowledges what it has fsynced.";
    OwnVoteAfterFsync "own_vote_after_fsync" "6.3"
        ["wal/writer.rs::write_group"]
        "The writer counts itself for what it has fsynced.";

    // Following.
    AcceptingIsPromising "accepting_is_promising" "6.4.5"
        ["replication/fence.rs::adopt"]
        "Accepting a stream of an epoch is a promise of it, on disk.";
    PromiseAgainstStreamEpoch "promise_against_stream_epoch" "6.4.2"
        ["replication/fence.rs::append_replica"]
        "A promise is compared with the stream epoch, never with that of a record inside.";
    ServeAfterEpochStart "serve_after_epoch_start" "6.4.4"
        ["write_path/commit.rs::serve", "replication/receiver.rs::follow"]
        "A writer serves no subscription before its EpochStart is in its log.";
    CutByEpochTable "cut_by_epoch_table" "6.4.5"
        ["types/position.rs::common_prefix", "replication/sender.rs::position"]
        "Where a follower is cut is judged by epoch starts, not by length.";
    CutOnlyAtLaterEpoch "cut_only_at_later_epoch" "6.4.5"
        ["types/position.rs::common_prefix"]
        "A follower is cut only where the sender's table shows a later epoch, not because the sender is shorter.";
    CutDurableBeforeAdoption "cut_durable_before_adoption" "6.4.5"
        ["replication/fence.rs::adopt", "wal/cut.rs::cut_closed"]
        "A cut is on disk before the stream is adopted.";
    CommitBelievedAfterCut "commit_believed_after_cut" "6.4.6"
        ["replication/receiver.rs::append", "replication/sender.rs::send_records"]
        "A commit notice is believed only on a stream whose cut is done.";
    ApplyCommittedOnly "apply_committed_only" "6.4.6"
        ["write_path/apply.rs::run"]
        "Only what is committed, and on this disk, is applied.";
    FsyncBeforeDurable "fsync_before_durable" "6.2"
        ["wal/scan.rs::settle"]
        "Recovery fsyncs before it calls anything durable: the page cache is not the disk.";

    // Membership.
    OneChangeUntilMarked "one_change_until_marked" "6.5"
        ["raft/membership.rs::next_step"]
        "The next change waits until a mark with the newest membership's id is committed.";
    OneVoterPerChange "one_voter_per_change" "6.5"
        ["raft/change.rs::change"]
        "A change adds or removes exactly one voter.";

    // Reads, retries, snapshots.
    ReadConfirmedByMajority "read_confirmed_by_majority" "6.7"
        ["replication/read_index.rs::index"]
        "A read index is confirmed by a majority that has promised nothing higher.";
    ConfirmedAfterTheQuestion "confirmed_after_the_question" "6.7"
        ["replication/read_index.rs::index"]
        "Only answers to questions sent after the read arrived confirm it.";
    ReadAfterEpochStartCommits "read_after_epoch_start_commits" "6.7"
        ["replication/read_index.rs::index", "replication/sender.rs::send_records", "node/reads.rs::staleness"]
        "A writer answers for freshness only once its EpochStart is committed.";
    AdmitAfterEpochStart "admit_after_epoch_start" "6.4.4, 6.8"
        ["write_path/commit.rs::until_open"]
        "No batch is admitted before EpochStart is applied, so that the table of batches is complete.";
    SnapshotOfApplied "snapshot_of_applied" "6.6"
        ["replication/catch_up.rs::send"]
        "A snapshot holds applied records only.";
    SnapshotBeyondLogEnd "snapshot_beyond_log_end" "6.6"
        ["replication/catch_up.rs::fetch", "wal/anew.rs::announce", "write_path/apply.rs::replace_all"]
        "A snapshot is installed only beyond the end of the log, and of what is applied.";
    InstallingIsPromising "installing_is_promising" "6.4.5, 6.6"
        ["replication/fence.rs::admit_snapshot"]
        "Installing a snapshot promises the epoch of its last record, before the engine has it.";
    EngineBeforeLog "engine_before_log" "6.6"
        ["replication/catch_up.rs::install"]
        "The log begins behind a snapshot only when the engine has it on disk.";
    InstallIsAnnounced "install_is_announced" "6.6"
        ["replication/fence.rs::admit_snapshot", "wal/anew.rs::begin_anew"]
        "The log is told of a snapshot before the engine has it, so that a start after a crash between the two finishes it.";
    RecoveryForgetsCommit "recovery_forgets_commit" "6.4.6"
        ["wal/anew.rs::begin_alone"]
        "Who goes on alone forgets a commit position beyond its log: other records take those places.";
}

/// Which rules are in force.
#[derive(Debug, Clone, Copy)]
pub struct Rules(u64);

impl Rules {
    pub const ALL: Self = Self((1 << Rule::ALL.len()) - 1);

    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u64))
    }

    pub const fn hold(self, rule: Rule) -> bool {
        self.0 >> rule as u64 & 1 == 1
    }
}
