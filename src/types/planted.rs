//! Which planted bug is switched on: only with the feature `testing`, and there by
//! `testing::mutant`. The tests show that they find it; no other build holds one.

use std::sync::OnceLock;

static PLANTED: OnceLock<String> = OnceLock::new();

/// Switches a bug on for the rest of the process. False if another was switched on before.
pub fn plant(name: &str) -> bool {
    PLANTED.get_or_init(|| name.to_owned()) == name
}

/// True if that bug is switched on.
pub(crate) fn is(name: &str) -> bool {
    PLANTED.get().is_some_and(|planted| planted == name)
}
