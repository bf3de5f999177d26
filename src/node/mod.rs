//! Assembly, roles and lifecycle: [`Node`] is what an embedder holds.

mod addresses;
mod api_tokens;
mod assembly;
mod backup;
mod become_member;
mod certificate;
mod come_back;
mod custom;
mod damage;
mod databases;
mod drain;
mod error;
mod footing;
mod gateway;
mod handle;
mod heard;
mod interrupted;
mod late;
mod local;
mod maintenance;
mod members;
mod metrics;
mod peers;
mod readiness;
mod reads;
pub mod recover;
mod restored;
mod rotation;
mod scrub;
mod status;
mod status_report;
mod surroundings;
mod tasks;
mod traffic;
mod upgrade;
mod upkeep;
mod view_source;

pub use api_tokens::{ApiTokenError, NewApiToken};
pub use assembly::{MdnsConfig, NodeConfig};
pub use backup::{Backup, BackupError};
pub use become_member::{ADMIN_TOKEN_FILE, Founded};
pub use come_back::come_back;
pub use custom::{ProtocolError, ServedProtocol};
pub use drain::DrainReport;
pub use error::NodeError;
pub use gateway::{Answer, AskError, Errand, Gateway, Piece};
pub use handle::{AnsweringGateways, ControlFailure, Node};
pub use local::VERSION;
pub use readiness::Readiness;
pub use reads::{Consistency, ReadError, ReadPoint};
pub use restored::{RESTORED_FILE, Restored};
pub use scrub::ScrubConfig;
pub use status_report::{
    CaReport, ClusterStatus, LinkReport, NodeReport, RootReport, RotationReport, SnapshotReport, TermReport,
    UpgradeReport,
};
pub use surroundings::{Clock, Entropy, EntropyRng, Surroundings};
pub use traffic::Traffic;

pub use crate::{
    protocol::forward::{AckLevel, Progress},
    raft::{ApiToken, TokenRecord},
    write_path::{ClientKey, Receipt, SubmitError, Write, policy::SHORTEST_KEEP},
};
