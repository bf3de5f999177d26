//! Bugs planted at run time, to see that the tests find them.
//!
//! Each stands where it would be made, under `#[cfg(feature = "testing")]`, and asks whether it is
//! switched on.

use crate::types::planted;

/// Names the bug to switch on.
const VARIABLE: &str = "SKEIN_MUTANT";

/// Every bug there is, and what it breaks.
pub const MUTANTS: [(&str, &str); 3] = [
    ("ack_before_fsync", "the log counts a group as durable without waiting for fdatasync"),
    ("commit_alone", "the writer takes its own disk for a majority"),
    ("keep_the_tail", "a follower adopts a stream without cutting what the new writer does not hold"),
];

/// Switches on what `SKEIN_MUTANT` names; nothing if it is not set. Call it before a node starts.
///
/// # Panics
/// There is no such bug: a misspelt name would pass for a bug that nothing finds.
pub fn plant_from_environment() -> Option<&'static str> {
    let wanted = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
    let known = MUTANTS.iter().find(|(name, _)| *name == wanted);
    let (name, _) = known.unwrap_or_else(|| panic!("{VARIABLE}={wanted}: there is no such planted bug"));
    assert!(planted::plant(name), "another bug is planted already");
    Some(name)
}
