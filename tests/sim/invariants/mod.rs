//! What must hold whatever happens. Each is checked on what was observed, not on what a node says
//! of its own correctness.

pub(crate) mod i1;
pub(crate) mod i4;
pub(crate) mod i5;
