//! Whether a node should get requests, and why not.

use tokio::time::Instant;

use super::local::ThisNode;
use crate::types::Timing;

/// Whether this node should get requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// True when it should.
    pub ready: bool,
    /// Otherwise why not, in plain words.
    pub reasons: Vec<String>,
}

impl Readiness {
    pub(super) fn of(reasons: Vec<String>) -> Self {
        Self { ready: reasons.is_empty(), reasons }
    }
}

/// Of a node with data: a member, a leader known, and applied within 10,000 records of the commit
/// position.
pub(super) fn of_node(this: &ThisNode, stopping: bool, timing: Timing) -> Readiness {
    let view = this.control.view().borrow().clone();
    let mut reasons = cut_off(this, timing);
    if stopping {
        reasons.push("stopping".to_owned());
    }
    if view.writer.is_none() {
        reasons.push("no writer has been named yet".to_owned());
    }
    if view.drained.contains(&this.identity.node()) {
        reasons.push("drained: it is about to be stopped (skein node undrain ends that)".to_owned());
    }
    if let Some(debt) = this.replica.wal.debt() {
        reasons.push(format!("records from {} on were damaged here and are fetched again", debt.lost_from));
    }
    let behind = this.replica.commit().seq.saturating_sub(this.apply.watch().borrow().seq);
    if behind > 10_000 {
        reasons.push(format!("{behind} records behind the commit position"));
    }
    Readiness::of(reasons)
}

/// Why the cluster may have agreed on much that this node has not heard of: empty when nothing says so.
pub(super) fn cut_off(this: &ThisNode, timing: Timing) -> Vec<String> {
    let view = this.control.view().borrow().clone();
    let mut reasons = Vec::new();
    if !view.members.contains_key(&this.identity.node()) {
        reasons.push("the cluster state has not arrived yet".to_owned());
    }
    if view.leader.is_none() {
        reasons.push("no leader: a majority of voters is needed".to_owned());
    }
    // Whoever writes is still in office when it is cut off: nobody is left to say otherwise.
    let (who, heard) = match this.replica.tenure() {
        Some(tenure) => {
            ("a majority of voters", tenure.acks().confirmed(Instant::now()).max(Some(tenure.since)))
        }
        None => ("the writer", this.replica.watch_contact().borrow().map(|contact| contact.heard)),
    };
    if heard.is_none_or(|at| at.elapsed() > 3 * timing.election_max) {
        reasons.push(format!("{who} has not been heard lately"));
    }
    reasons
}
