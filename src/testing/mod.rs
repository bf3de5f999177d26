//! Simulated twins of the seams, and planted bugs.

mod disk;
mod fixture;
pub mod mutant;
mod platter;
mod rot;
mod space;

pub use disk::{DiskLatency, Fault, SimDisk};
pub use fixture::{fixture, read_fixture};
pub use rot::Rot;
