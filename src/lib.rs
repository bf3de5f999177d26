//! A clustered time-series store as a library: an authenticated QUIC mesh, raft for the small
//! truth, a replicated write-ahead log with one writer, and storage engines above it.
//!
//! Start with [`node::Node`]; bring your own storage with [`engine::StorageEngine`].
#![doc = "\n# The README\n\n"]
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
pub mod discovery;
pub mod disk;
pub mod engine;
#[cfg(feature = "server")]
pub mod http;
pub mod identity;
pub mod join;
pub mod node;
pub mod protocol;
pub mod raft;
pub mod replication;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod types;
pub mod wal;
pub mod write_path;
