//! Agreement on members, roles, writer and epoch (openraft).

mod applied;
mod change;
mod control;
mod electorate;
pub mod failover;
mod features;
mod log_record;
mod log_store;
mod log_writer;
pub mod membership;
mod network;
mod poll;
mod propose;
pub mod recover;
mod room;
pub mod rotation;
mod rpc;
mod runtime;
mod snapshot;
mod state_machine;
mod survey;
mod type_config;
mod types;
mod vote;

pub use control::{Control, ControlDriver, ControlError, RaftConfig};
pub use electorate::{Warranted, Warrants, held_cas};
pub use features::{FINALISE, OPERATOR_COMMANDS, missing};
pub use log_store::LogError;
pub use network::MeshSlot;
pub use propose::{ProposeError, forward_command};
pub use survey::{LogAt, RaftSurvey, SnapshotSurvey, survey};
pub use types::{ApiToken, Command, Outcome, State, TokenRecord};

/// openraft's handle for our types.
type Raft = openraft::Raft<type_config::TypeConfig, state_machine::StateMachine>;
