//! Words everyone uses: identifiers, positions in the log, the view of the cluster. No I/O.

mod balance;
mod ids;
#[cfg(feature = "testing")]
pub mod planted;
mod position;
mod recovery;
mod scope;
mod succession;
mod view;

pub use balance::Balance;
pub use ids::{BootId, ClusterId, IdParseError, NodeId, Role, TokenId};
pub use position::{Epoch, EpochTable, Lsn, LsnParseError};
pub use recovery::{Recovery, generation};
pub use scope::{Databases, Scope};
pub use succession::{CaRotation, Succession};
pub use view::{
    Addresses, ClusterView, Member, MembershipId, NodeHealth, Office, Timing, TimingProfile, Why, is_majority,
};
