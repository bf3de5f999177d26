//! A gateway beside real nodes of one process.
