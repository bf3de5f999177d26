//! Bugs planted at run time, to see that the tests find them.
//!
//! Each stands where it would be made, under `#[cfg(feature = "testing")]`, and asks
//! `types::planted` whether it is switched on.

use crate::types::planted;

/// A bug that can be switched on.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// What `SKEIN_MUTANT` calls it.
    pub name: &'static str,
    /// What it breaks.
    pub breaks: &'static str,
    /// Who must find it.
    pub caught: Caught,
}

/// Who finds a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caught {
    /// One of the first so many schedules of the simulation.
    Simulation {
        /// How many.
        within: u64,
        /// Kinds of faults that lead to it, with commas between; empty for the usual mixes.
        faults: &'static str,
    },
    /// A test of the library, by its path: the schedule that shows the bug is too rare to wait for.
    Test(&'static str),
}

const fn simulation(name: &'static str, breaks: &'static str, within: u64) -> Mutant {
    Mutant { name, breaks, caught: Caught::Simulation { within, faults: "" } }
}

const fn storms(name: &'static str, breaks: &'static str, within: u64, faults: &'static str) -> Mutant {
    Mutant { name, breaks, caught: Caught::Simulation { within, faults } }
}

const fn test(name: &'static str, breaks: &'static str, path: &'static str) -> Mutant {
    Mutant { name, breaks, caught: Caught::Test(path) }
}

/// Every bug there is.
pub const MUTANTS: &[Mutant] = &[
    simulation("ack_before_fsync", "the log counts a group as durable without waiting for fdatasync", 30),
    simulation("commit_alone", "the writer takes its own disk for a majority", 30),
    simulation(
        "keep_the_tail",
        "a follower adopts a stream without cutting what the new writer does not hold",
        60,
    ),
    simulation("promise_not_persisted", "a promise is kept in memory only", 30),
    simulation(
        "seal_before_promise_fsync",
        "a voter reports to the leader before its promise is on disk",
        30,
    ),
    simulation("office_survives_restart", "a restarted writer goes on in its old epoch", 30),
    storms(
        "choose_the_leader",
        "the leader names itself, whatever the reports say",
        60,
        "slow-disk,kill,partition",
    ),
    simulation("dedup_not_replicated", "only the writer remembers which batches were applied", 60),
    simulation(
        "retry_not_checked_against_tail",
        "a new writer lets batches in before its start is applied",
        60,
    ),
    simulation("apply_beyond_commit", "a replica applies what it has on disk, committed or not", 60),
    storms(
        "read_without_majority",
        "a writer answers a linearizable read without asking a voter",
        60,
        "pause,mute,deaf",
    ),
    storms(
        "read_before_epoch_start",
        "a new writer answers reads before its start is committed",
        60,
        "kill,slow-disk",
    ),
    simulation("skip_dir_fsync", "a new log segment is used before its name is durable", 30),
    storms("retry_fsync", "a failed fsync is tried again, and believed", 60, "disk-error"),
    storms(
        "recover_without_sync",
        "recovery calls what it reads durable without syncing it",
        30,
        "slow-disk,kill",
    ),
    simulation("default_is_local", "a write without a level is acknowledged at `local`", 30),
    simulation("all_is_quorum", "`all` is acknowledged when a majority has it", 60),
    storms(
        "position_by_seq",
        "`min_lsn` is compared by seq alone, so another record at that place is believed to be it",
        60,
        "partition,mute,slow-disk",
    ),
    simulation(
        "any_forwarded_payload",
        "a record that came without its payload is completed with any that is kept, unchecked",
        60,
    ),
    simulation("dedup_not_saved", "a checkpoint forgets which batches were applied", 60),
    storms(
        "leader_goes_on_in_its_term",
        "a leader that restarts makes entries of the term in which it led before, whatever it has lost of it",
        60,
        "power-loss-of-all,slow-disk",
    ),
    test(
        "commit_old_epoch",
        "records of earlier epochs are counted for a commit (figure 8 of the raft paper)",
        "replication::acks::tests::commit_needs_a_majority_in_the_own_epoch",
    ),
    test(
        "learners_count",
        "a learner's acknowledgement counts for a commit",
        "replication::acks::tests::learners_do_not_count_and_joint_sets_both_do",
    ),
    test(
        "longest_log_wins",
        "reports are compared by seq, whatever their epoch",
        "raft::failover::tests::highest_epoch_then_seq_wins_and_ties_go_to_the_preferred",
    ),
    test(
        "truncate_mid_log_corruption",
        "damage before the end of the log is taken for a torn tail",
        "wal::tests::damage_is_told_from_a_torn_tail_by_groups_and_watermark",
    ),
    test(
        "old_log_after_rename",
        "raft goes on in its old log when the new one has its name already and something failed behind that",
        "raft::log_store::tests::faults::a_full_disk_at_any_call_loses_nothing",
    ),
    test(
        "believe_the_page_cache",
        "an engine tells of a checkpoint whose name a power cut can still take back",
        "testing::engine_suite::tests::the_reference_engine_passes",
    ),
    test(
        "membership_gate_dropped",
        "the next change of voters does not wait for the mark of the last",
        "raft::membership::tests::the_gate_stays_shut_until_the_mark_is_committed",
    ),
    test(
        "record_length_trusted",
        "a record is taken to be as long as it says, whatever there is of it",
        "testing::fuzz::tests::records_are_whole_or_refused",
    ),
    test(
        "setwriter_without_membership",
        "a writer is named by a majority of voters that are no longer the voters",
        "raft::state_machine::tests::an_office_counted_under_another_membership_is_stale",
    ),
];

/// The bug that `SKEIN_MUTANT` switches on, if any.
///
/// # Panics
/// There is no such bug: a misspelt name would pass for a bug that nothing finds.
pub fn plant_from_environment() -> Option<&'static str> {
    let wanted = planted::name()?;
    let known = MUTANTS.iter().find(|mutant| mutant.name == wanted);
    Some(known.unwrap_or_else(|| panic!("SKEIN_MUTANT={wanted}: there is no such planted bug")).name)
}
