//! Simulated twins of the seams, and planted bugs.

mod disk;
mod inode;
pub mod mutant;

pub use disk::{DiskLatency, Fault, Rot, SimDisk};
