//! Becoming a member, and staying one: the joiner, the door, renewal of certificates.

mod admission;
pub mod bootstrap;
mod chain;
mod client;
mod proof;
mod renew;
mod server;
mod signer;
#[cfg(test)]
mod tests;

pub use admission::{TokenLimits, token_record};
pub use chain::ChainError;
pub use client::{Applicant, JoinError, Joined, Joiner, Sources, Waiting, join};
pub use renew::Renewal;
pub use server::Door;
pub use signer::{Clock, Serials, Signer};
