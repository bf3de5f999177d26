//! Rotation of the cluster's CA: what an operator asks for, what a node does to carry it on, and what
//! is said of it. The steps and their rules are in [`crate::raft::rotation`].

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use serde_bytes::ByteBuf;
use tokio::time::{Instant, sleep};

use crate::{
    identity::{ClusterCa, PeerCertificate, fingerprint, succession},
    raft::{
        Command, Outcome, State,
        rotation::{RotationStep, key_holders, next_step},
    },
    types::{CaRotation, ClusterView, NodeId},
};

use super::{
    Node, NodeError,
    handle::ControlFailure,
    local::ThisNode,
    status_report::{CaReport, RootReport, RotationReport},
};

/// Between two looks at what a rotation needs.
const LOOK: Duration = Duration::from_millis(500);
/// After a step that failed.
const RETRY: Duration = Duration::from_secs(2);
/// Bound of one proposal.
const PROPOSAL: Duration = Duration::from_secs(5);
/// From the moment at which every member has renewed to the end of the old root: links made under old
/// certificates are replaced meanwhile, without a stream being cut (`transport/refresh.rs`).
const GRACE: Duration = Duration::from_secs(15);

impl Node {
    /// Starts a rotation of the cluster's CA: returns when the cluster has agreed on it; the rest goes on
    /// by itself, over restarts and changes of leader, see [`super::ClusterStatus::ca`].
    pub async fn rotate_ca(&self) -> Result<(), ControlFailure> {
        let at_ms = self.this().surroundings.unix_ms();
        self.propose(Command::RotateCa { at_ms }).await
    }

    /// The cluster's CA, and how far a rotation is, as this node knows.
    pub fn ca(&self) -> CaReport {
        report(&self.view().borrow(), self.this().surroundings.unix_seconds())
    }

    /// Lets a rotation end without these members: they come home as lapsed ones.
    pub async fn drop_from_rotation(&self, nodes: BTreeSet<NodeId>) -> Result<(), ControlFailure> {
        self.propose(Command::DropFromRotation { nodes }).await
    }
}

/// Does what a rotation needs next, if it is this node's turn. Runs as long as the process.
pub(super) async fn carry_on(this: Arc<ThisNode>) -> Result<(), NodeError> {
    // Since when every member has renewed, as this leader knows.
    let mut complete: Option<Instant> = None;
    loop {
        let view = this.control.view().borrow().clone();
        let leads = view.rotation.is_some() && this.control.leader_ready().await;
        let state = this.control.state();
        let step = next_step(&state, &view.all_voters());
        if step != Some(RotationStep::Retire) || !leads {
            complete = None;
        }
        let done = match step {
            Some(RotationStep::MakeRoot) if leads => make_root(&this, &state, &view).await,
            Some(RotationStep::Seal(node)) if seals(&this, &state, &view, leads) => {
                seal(&this, &state, node).await
            }
            Some(RotationStep::Retire) if leads => {
                if complete.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                    retire(&this, &state).await
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        };
        if let Err(reason) = done {
            tracing::warn!(?step, reason, "a step of the CA's rotation failed; it is tried again");
            sleep(RETRY).await;
        }
        sleep(LOOK).await;
    }
}

/// Makes the new root. Its key is in this process's memory until the cluster has agreed, and on disk only
/// sealed.
async fn make_root(this: &ThisNode, state: &State, view: &ClusterView) -> Result<(), String> {
    let cluster = state.cluster.ok_or("there is no cluster yet")?;
    let old = this.signer().cas(state).into_iter().next().ok_or("this node does not hold the CA key")?;
    let now = this.surroundings.unix_seconds();
    let new = ClusterCa::create(cluster, &this.surroundings.random(), now).map_err(|e| e.to_string())?;
    let succession = succession::sign(&old, cluster, new.certificate());
    let voters = view.all_voters();
    let sealed = key_holders(state, &voters)
        .filter_map(|id| state.members.get(&id))
        .map(|member| Ok((member.id, this.seal_to(member, &new, cluster)?)))
        .collect::<Result<_, String>>()?;
    agree(this, Command::AddRoot { succession, sealed }).await
}

/// The leader seals, or, if it has no copy itself, the first voter that has one.
fn seals(this: &ThisNode, state: &State, view: &ClusterView, leads: bool) -> bool {
    let Some(rotation) = &state.rotation else { return false };
    let holds = |id: &NodeId| rotation.sealed_ca.contains_key(id);
    let me = this.identity.node();
    match view.leader {
        Some(leader) if holds(&leader) => leads,
        _ => view.all_voters().iter().find(|id| holds(id)) == Some(&me),
    }
}

async fn seal(this: &ThisNode, state: &State, node: NodeId) -> Result<(), String> {
    let (Some(member), Some(cluster)) = (state.members.get(&node), state.cluster) else { return Ok(()) };
    let cas = this.signer().cas(state);
    let newest = state.roots.last().ok_or("there is no root")?;
    let ca = cas.iter().find(|ca| newest == ca.certificate()).ok_or("this node does not hold the new key")?;
    let of = Some(ByteBuf::from(ca.fingerprint()));
    agree(this, Command::SealCa { node, sealed: this.seal_to(member, ca, cluster)?, of }).await
}

async fn retire(this: &ThisNode, state: &State) -> Result<(), String> {
    let old = state.roots.first().ok_or("there is no root")?;
    agree(this, Command::RetireRoot { root: ByteBuf::from(fingerprint(old)) }).await
}

async fn agree(this: &ThisNode, command: Command) -> Result<(), String> {
    match this.control.propose(command, PROPOSAL).await {
        Ok(Outcome::Done) => Ok(()),
        Ok(other) => Err(other.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// One line in every node's log for each step that it has applied.
pub(super) fn tell(old: &ClusterView, new: &ClusterView) {
    if old.cluster != new.cluster {
        return;
    }
    let audit =
        |step: &str, what: String| tracing::info!(target: "skein::audit", step, "CA rotation: {what}");
    let (before, now) = (old.rotation.as_ref(), new.rotation.as_ref());
    if let (None, Some(_)) = (before, now) {
        audit("asked", "an operator asked for a new root".to_owned());
    }
    for root in new.roots.iter().filter(|root| !old.roots.contains(root)) {
        audit(
            "overlap",
            format!("a new root, {}: two are trusted, join tokens of the old one end", short(root)),
        );
    }
    let nothing = CaRotation::default();
    let (before, rotation) = (before.unwrap_or(&nothing), now.unwrap_or(&nothing));
    for node in rotation.renewed.difference(&before.renewed) {
        let left = rotation.waits_for(&new.members).len();
        audit("renewed", format!("{node} has a certificate of the new root, {left} members have not"));
    }
    for node in rotation.dropped.difference(&before.dropped) {
        audit("dropped", format!("an operator does not wait for {node}"));
    }
    for root in old.roots.iter().filter(|root| !new.roots.contains(root)) {
        audit("over", format!("root {} is retired: certificates of it are refused", short(root)));
    }
}

/// What is said of the CA in the cluster's status.
pub(super) fn report(view: &ClusterView, now: u64) -> CaReport {
    let root = |der: &ByteBuf| {
        let not_after = PeerCertificate::parse(der).map_or(0, |root| root.not_after);
        RootReport {
            fingerprint: HEXLOWER.encode(&fingerprint(der)),
            days_left: (signed(not_after) - signed(now)).div_euclid(86_400),
        }
    };
    let rotation = view.rotation.as_ref().map(|rotation| RotationReport {
        asked_ms: rotation.asked_ms,
        renewed: rotation.renewed.iter().map(ToString::to_string).collect(),
        waits_for: match view.roots.len() {
            // Nobody can renew before there is a new root.
            0 | 1 => view.members.keys().map(ToString::to_string).collect(),
            _ => rotation.waits_for(&view.members).iter().map(ToString::to_string).collect(),
        },
        dropped: rotation.dropped.iter().map(ToString::to_string).collect(),
    });
    CaReport { roots: view.roots.iter().map(root).collect(), rotation }
}

/// What an operator should know of it, in full sentences.
pub(super) fn warnings(view: &ClusterView, answers: impl Fn(&NodeId) -> bool, now: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(rotation) = &view.rotation {
        for id in rotation.waits_for(&view.members).iter().filter(|id| !answers(id)) {
            let id = id.short();
            warnings.push(format!(
                "The CA is being rotated and waits for {id}, which does not answer: start it, remove it, or go on \
                 without it (skein ca rotate --drop {id})."
            ));
        }
    } else if let Some(newest) = report(view, now).roots.last().filter(|root| root.days_left < ROOT_SOON) {
        warnings.push(format!("The cluster's CA has {} days left: skein ca rotate.", newest.days_left));
    }
    warnings
}

/// Days of the root's life from which on a rotation is asked for.
const ROOT_SOON: i64 = 180;

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn short(root: &[u8]) -> String {
    HEXLOWER.encode(&fingerprint(root)).chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, Member, Role};

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;
    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn view(members: &[u8], roots: &[u8]) -> ClusterView {
        let member = |n: &u8| Member {
            id: NodeId([*n; 16]),
            name: String::new(),
            role: Role::Voter,
            addresses: Default::default(),
            spki: vec![],
            seal_key: vec![],
            seal_key_signature: vec![],
            serial: String::new(),
            not_after: 0,
            version: String::new(),
            features: 0,
        };
        let root =
            |seed: &u8| ClusterCa::create(CLUSTER, &[*seed; 32], NOW).unwrap().certificate().to_vec().into();
        ClusterView {
            cluster: CLUSTER,
            members: members.iter().map(|n| (NodeId([*n; 16]), member(n))).collect(),
            roots: roots.iter().map(root).collect(),
            ..ClusterView::default()
        }
    }

    #[test]
    fn a_root_is_warned_of_before_it_ends_and_not_while_it_is_replaced() {
        let mut view = view(&[1, 2], &[1]);
        let warned = |view: &ClusterView, now| warnings(view, |_| true, now);
        assert_eq!(report(&view, NOW).roots[0].days_left, 3650);
        assert!(warned(&view, NOW).is_empty() && warned(&view, NOW + 3_470 * DAY).is_empty());
        let soon = warned(&view, NOW + 3_471 * DAY);
        assert!(soon.len() == 1 && soon[0].contains("179 days left: skein ca rotate"), "{soon:?}");
        assert_eq!(report(&view, NOW + 3_651 * DAY).roots[0].days_left, -1);
        view.rotation = Some(CaRotation::default());
        assert!(warned(&view, NOW + 3_471 * DAY).is_empty());
    }

    #[test]
    fn whom_a_rotation_waits_for_is_named_once_it_does_not_answer() {
        let mut view = view(&[1, 2, 3], &[1]);
        let [renewed, dropped, missing] = [1, 2, 3].map(|n| NodeId([n; 16]));
        view.rotation = Some(CaRotation { asked_ms: 7, ..CaRotation::default() });
        assert_eq!(report(&view, NOW).rotation.unwrap().waits_for.len(), 3, "there is no new root yet");
        view.roots.push(self::view(&[], &[2]).roots.remove(0));
        view.rotation =
            Some(CaRotation { asked_ms: 7, renewed: [renewed].into(), dropped: [dropped].into() });
        let said = report(&view, NOW).rotation.unwrap();
        assert_eq!(said.waits_for, [missing.to_string()]);
        assert_eq!((said.renewed, said.dropped), (vec![renewed.to_string()], vec![dropped.to_string()]));
        assert!(warnings(&view, |_| true, NOW).is_empty(), "it answers, and is about to renew");
        let warned = warnings(&view, |id| *id != missing, NOW);
        assert!(
            warned.len() == 1 && warned[0].contains(&format!("--drop {}", missing.short())),
            "{warned:?}"
        );
    }
}
