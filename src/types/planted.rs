//! Which planted bug is switched on: only with the feature `testing`, by the environment variable
//! `SKEIN_MUTANT`, read once. `testing::mutant` has the list. The tests show that they find each; no
//! other build holds one.

use std::sync::OnceLock;

static PLANTED: OnceLock<Option<String>> = OnceLock::new();

/// The name of the bug that is switched on, for as long as the process runs.
pub fn name() -> Option<&'static str> {
    PLANTED.get_or_init(|| std::env::var("SKEIN_MUTANT").ok().filter(|name| !name.is_empty())).as_deref()
}

/// True if that bug is switched on.
pub(crate) fn is(bug: &str) -> bool {
    name() == Some(bug)
}
