//! The end of an upgrade: from when on no older version is let in or back.

use std::collections::BTreeSet;

use super::{Node, handle::ControlFailure, status_report::UpgradeReport};
use crate::{raft::Command, types::ClusterView};

impl Node {
    /// How far an upgrade is, as this node knows.
    pub fn upgrade(&self) -> UpgradeReport {
        report(&self.view().borrow())
    }

    /// Says that an upgrade is complete: what every member knows now, each has to know from here on, and an
    /// older version is neither let in nor started again on what is here. Nothing else changes, and nothing
    /// does if it was said before. Returns what holds when the cluster has agreed on it.
    ///
    /// # Errors
    /// [`ControlFailure::Rejected`], with their names, while some members lack what others know.
    pub async fn finalise_upgrade(&self) -> Result<UpgradeReport, ControlFailure> {
        let mut view = self.view();
        let features = {
            let view = view.borrow();
            view.members.values().fold(0, |all, member| all | member.features)
        };
        if self.upgrade().level & features != features {
            self.propose(Command::Finalise { features }).await?;
        }
        let heard = view.wait_for(|view| view.feature_level & features == features);
        match tokio::time::timeout(super::handle::PROPOSAL, heard).await {
            Ok(Ok(view)) => Ok(report(&view)),
            Ok(Err(_)) | Err(_) => Err(ControlFailure::Unknown),
        }
    }
}

pub(super) fn report(view: &ClusterView) -> UpgradeReport {
    let members = || view.members.values();
    let some = members().fold(0, |some, member| some | member.features);
    // A bit of the level is of every member, also of one whose newest words have not arrived.
    let known = members().fold(some, |known, member| known & member.features) | view.feature_level;
    let behind: BTreeSet<String> =
        members().filter(|member| member.features != some).map(|member| member.name.clone()).collect();
    UpgradeReport { level: view.feature_level, known, behind: behind.into_iter().collect() }
}
