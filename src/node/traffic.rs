//! What clients do at this node's edge. The edge counts; every node's counts are told with its status,
//! so that one node can show the whole cluster's rates.

use crate::telemetry::Counter;

use super::Node;

/// Counts since the process started.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Points acknowledged to clients.
    pub points: Counter,
    /// Queries whose answer was begun.
    pub queries: Counter,
}

impl Node {
    /// Where the edge counts what clients do; the counts are told with the status.
    pub fn traffic(&self) -> &Traffic {
        &self.this().traffic
    }
}
