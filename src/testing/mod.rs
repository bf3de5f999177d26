//! Simulated twins of the seams, and planted bugs.

mod disk;
pub mod mutant;

pub use disk::{DiskLatency, Fault, Rot, SimDisk};
