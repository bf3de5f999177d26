//! Wire bytes, and nothing but bytes: messages, frames and every limit on them. No I/O.

pub mod archive;
pub mod custom;
pub mod forward;
pub mod frame;
pub mod hello;
pub mod http;
pub mod join;
pub mod replication;
pub mod request_id;
pub mod status;
pub mod view;

pub use frame::{DecodeError, Lane, StreamKind};
