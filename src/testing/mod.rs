//! Simulated twins of the seams, a conformance suite for engines, and planted bugs.

mod disk;
pub mod engine_suite;
mod fault;
mod fixture;
pub mod fuzz;
pub mod mutant;
mod platter;
mod rot;
mod space;
pub mod sweep;

pub use disk::{DiskLatency, SimDisk};
pub use fault::Fault;
pub use fixture::{fixture, kept_fixture, read_fixture};
pub use rot::Rot;
