//! Becoming a member, and staying one: the joiner, nodes that start together, the door, renewal of
//! certificates.

mod admission;
pub mod bootstrap;
mod cause;
mod chain;
mod client;
mod gather;
mod meeting;
mod pledge;
mod proof;
mod renew;
mod server;
mod signer;
#[cfg(test)]
mod tests;
mod waiting;

pub use admission::{TokenLimits, token_record};
pub use chain::ChainError;
pub use client::{Applicant, Joined, Joiner, Sources, join};
pub use gather::{Gathered, gather};
pub use meeting::Meeting;
pub use pledge::Incomplete;
pub use renew::Renewal;
pub use server::Door;
pub use signer::{Clock, Serials, Signer};
pub use waiting::{JoinError, Waiting};
