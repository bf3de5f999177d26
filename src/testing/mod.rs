//! Simulated twins of the seams, and planted bugs.

mod disk;
mod fixture;
pub mod mutant;
mod platter;

pub use disk::{DiskLatency, Fault, Rot, SimDisk};
pub use fixture::{fixture, read_fixture};
