//! How queries are spread over the nodes that can answer them.

use serde::{Deserialize, Serialize};

/// How a gateway chooses among nodes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one that answers the fewest queries of this gateway now.
    LeastConnections,
}
