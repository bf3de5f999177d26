//! `skein status`: every member is asked at once, for a moment.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::Instant;

use crate::{
    protocol::{
        Lane, StreamKind,
        status::{NodeStatus, StatusRequest},
    },
    raft::failover::Local,
    types::{ClusterView, NodeHealth, NodeId, Role, generation},
};

use super::{
    local::ThisNode,
    rotation,
    status_report::{ClusterStatus, LinkReport, NodeReport, SnapshotReport, TermReport},
    upgrade,
};

/// Who does not answer in that time is shown without positions.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) async fn gather(this: &Arc<ThisNode>) -> ClusterStatus {
    let view = this.control.view().borrow().clone();
    let me = this.identity.node();
    let asked = view.members.keys().filter(|id| **id != me).map(|id| ask(this, *id));
    let answers: Vec<(NodeStatus, Option<i64>)> = join_all(asked).await.into_iter().flatten().collect();
    this.heard.keep(|id| view.members.contains_key(id));
    let skews: BTreeMap<NodeId, i64> =
        answers.iter().filter_map(|(status, skew)| Some((status.node, (*skew)?))).collect();
    let mut heard: BTreeMap<NodeId, NodeStatus> =
        answers.into_iter().map(|(status, _)| (status.node, status)).collect();
    heard.insert(me, this.status());
    let commit = heard.values().map(|status| status.commit).max();
    let now = Instant::now();
    let links = this.mesh.links().borrow().clone();
    let mut nodes: Vec<NodeReport> = view
        .members
        .values()
        .map(|member| {
            let status = heard.get(&member.id);
            let is = view.role(member);
            let following = status.and_then(|s| s.follows);
            // A gateway has no positions.
            let placed = status.filter(|_| is != Role::Gateway);
            let lag = placed.and_then(|s| Some(commit?.seq.saturating_sub(s.applied.seq)));
            NodeReport {
                id: member.id,
                name: member.name.clone(),
                role: is,
                wants: member.role,
                state: health(&view, member.id, status, is != member.role),
                mesh_addr: member.addresses.mesh.first().map(ToString::to_string),
                http_addr: member.addresses.http.map(|at| at.to_string()),
                version: Some(status.map_or(&member.version, |s| &s.version).clone()),
                durable: placed.map(|s| s.durable),
                applied: placed.map(|s| s.applied),
                lag_records: lag,
                lag_ms: status.and_then(|s| s.stale_ms),
                rtt_ms: links.get(&member.id).map(|link| link.rtt().as_secs_f64() * 1e3),
                cert_days_left: status.map(|s| s.cert_days_left),
                snapshot: status.and_then(|s| s.fetching).map(SnapshotReport::from),
                scrubbed: status.and_then(|s| s.scrubbed),
                follows: following.and_then(|f| f.node),
                view_age_ms: following.and_then(|f| f.age_ms),
                is_leader: view.leader == Some(member.id),
                is_writer: view.writer.is_some_and(|office| office.node == member.id),
                silent_ms: match status {
                    Some(_) => None,
                    None => this.heard.ago(member.id, now).map(millis),
                },
                clock_skew_ms: skews.get(&member.id).copied(),
                points: status.map(|s| s.points),
                queries: status.map(|s| s.queries),
                links: status.map_or_else(Vec::new, links_of),
            }
        })
        .collect();
    // By name, as people call them; members are kept by id.
    nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    ClusterStatus {
        cluster_id: view.cluster,
        cluster_name: view.name.clone(),
        node_id: me,
        leader: view.leader,
        writer: view.writer.map(|office| office.node),
        epoch: view.writer.map(|office| office.epoch),
        commit,
        generation: generation(view.recovery.as_ref()),
        nodes,
        terms: view.terms.iter().map(TermReport::from).collect(),
        ca: rotation::report(&view, this.surroundings.unix_seconds()),
        upgrade: upgrade::report(&view),
        warnings: {
            let mut warnings = warnings(&view, &heard, &this.mesh.foreign().borrow());
            let answers = |id: &NodeId| heard.contains_key(id);
            warnings.extend(rotation::warnings(&view, answers, this.surroundings.unix_seconds()));
            warnings
        },
    }
}

/// Asks a member; its status, and by how many milliseconds its wall clock is ahead of this node's.
async fn ask(this: &ThisNode, peer: NodeId) -> Option<(NodeStatus, Option<i64>)> {
    let asked = Instant::now();
    let request = StatusRequest::default();
    let status: NodeStatus = this.mesh.request(peer, StreamKind::Status, &request, PATIENCE).await.ok()?;
    // It speaks for itself only.
    if status.node != peer {
        return None;
    }
    let took = asked.elapsed();
    this.heard.answered(peer, Instant::now());
    // It looked at its clock half way between question and answer, to within half the time that took.
    let own = this.surroundings.unix_ms().saturating_sub(millis(took / 2));
    let skew = skew(status.unix_ms, own);
    Some((status, skew))
}

/// Milliseconds that a clock is ahead of ours; an older node does not tell its own.
fn skew(theirs: u64, own: u64) -> Option<i64> {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    (theirs > 0).then(|| signed(theirs) - signed(own))
}

fn links_of(status: &NodeStatus) -> Vec<LinkReport> {
    let report = |(to, rtt): &(NodeId, u64)| {
        let sent = status.sent.iter().find(|(peer, _)| peer == to).map(|(_, sent)| sent);
        let sent = sent.map(|bytes| {
            Lane::ALL.map(Lane::as_str).map(str::to_owned).into_iter().zip(bytes.clone()).collect()
        });
        LinkReport { to: *to, rtt_ms: *rtt as f64 / 1e3, sent_bytes: sent.unwrap_or_default() }
    };
    status.rtt_us.iter().map(report).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn health(view: &ClusterView, id: NodeId, status: Option<&NodeStatus>, changing: bool) -> NodeHealth {
    match status {
        None => NodeHealth::Down,
        Some(status) if status.draining || view.drained.contains(&id) => NodeHealth::Draining,
        // More than five voters are never made: a sixth waits for ever, and that is its state.
        Some(_) if changing && !view.is_voter(id) && view.all_voters().len() < 5 => NodeHealth::Joining,
        Some(_) => NodeHealth::Up,
    }
}

fn warnings(
    view: &ClusterView,
    heard: &BTreeMap<NodeId, NodeStatus>,
    foreign: &BTreeMap<NodeId, u64>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let own = generation(view.recovery.as_ref());
    for (id, other) in foreign {
        let id = id.short();
        warnings.push(match own.cmp(other) {
            Ordering::Less => {
                format!("The cluster was recovered without this node ({id} says so): start this node again.")
            }
            Ordering::Equal => {
                format!("{id} was recovered too, without this node: only one of the two can go on.")
            }
            Ordering::Greater => {
                format!("{id} is of the cluster before its recovery and is kept out: start it again.")
            }
        });
    }
    let voters = view.all_voters();
    let alive = voters.iter().filter(|id| heard.contains_key(id)).count();
    let tolerates = alive.saturating_sub(voters.len() / 2 + 1);
    match (voters.len(), alive) {
        (1, _) => warnings.push("One voter: losing it stops everything. Add two more nodes.".to_owned()),
        (2, _) => warnings.push("Two voters: losing either stops writes. Add a third node.".to_owned()),
        (all, alive) if alive < all && tolerates == 0 => warnings
            .push(format!("{} of {all} voters do not answer: losing one more stops writes.", all - alive)),
        _ => {}
    }
    for member in view.drained.iter().filter_map(|id| view.members.get(id)) {
        warnings.push(format!(
            "{} is drained and takes no office: skein node undrain {} when it is to again.",
            member.name, member.name
        ));
    }
    for (id, status) in heard {
        let silence = millis(view.profile.timing().view_silence());
        if status.follows.is_some_and(|from| from.age_ms.is_none_or(|age| age > silence)) {
            warnings.push(format!(
                "The gateway {} has lost the view of the cluster: it answers /readyz with 503 until it hears a node \
                 with data.",
                id.short()
            ));
        }
        if status.cert_days_left < 7 {
            warnings.push(format!(
                "The certificate of {} has {} days left and has not been renewed.",
                id.short(),
                status.cert_days_left
            ));
        }
        if status.disk_troubled {
            warnings.push(format!("The log's disk on {} is full.", id.short()));
        }
        if let Some(seq) = status.damaged {
            warnings.push(format!(
                "The log of {} is damaged at record {seq}, and that is not mended yet; its own log says why.",
                id.short()
            ));
        }
        if status.damaged_files > 0 {
            warnings.push(format!(
                "{} data files of {} are damaged: queries that need one fail there until it is replaced from \
                 another node; its own log says what it waits for.",
                status.damaged_files,
                id.short()
            ));
        }
        if let Some(first) = status.repairing {
            warnings.push(format!(
                "The log of {} was damaged: it fetches records from {first} on again, and counts as down for a \
                 failover until it has them.",
                id.short()
            ));
        } else if status.quarantined > 0 {
            warnings.push(format!(
                "{} set {} bytes of a damaged log aside and has the records again: look at its disk, then empty \
                 wal/quarantine.",
                id.short(),
                status.quarantined
            ));
        }
    }
    let sound = |id: &&NodeId| heard.get(*id).is_some_and(|status| status.repairing.is_none());
    let sealing: BTreeSet<NodeId> = voters.iter().filter(sound).copied().collect();
    let damaged = heard.values().filter(|s| s.repairing.is_some() && view.is_voter(s.node)).count();
    let in_office = heard.values().any(|status| status.office.is_some());
    if damaged > 0 && !in_office && !view.is_quorum(&sealing) {
        warnings.push(format!(
            "No writer can be named: {damaged} of {} voters lost records they had acknowledged, and only {} others \
             answer. Bring more voters up; if there are none, give up what is lost with `skein inspect wal --repair \
             --accept-loss` on a stopped node.",
            voters.len(),
            sealing.len()
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, BootId, Lsn, MembershipId};

    #[test]
    fn a_certificate_is_warned_of_from_the_last_week_on() {
        let status = |cert_days_left| NodeStatus {
            node: NodeId([1; 16]),
            boot: BootId(1),
            promise: 1,
            office: None,
            durable: Lsn::ZERO,
            commit: Lsn::ZERO,
            applied: Lsn::ZERO,
            flushed: Lsn::ZERO,
            disk_troubled: false,
            marked: MembershipId::default(),
            linked: vec![],
            linked_at: vec![],
            addresses: Addresses::default(),
            version: String::new(),
            cert_days_left,
            draining: false,
            repairing: None,
            quarantined: 0,
            fetching: None,
            rtt_us: vec![],
            sent: vec![],
            stale_ms: None,
            unix_ms: 0,
            points: 0,
            queries: 0,
            damaged: None,
            damaged_files: 0,
            scrubbed: None,
            successor: None,
            follows: None,
        };
        for (days, warned) in [(29, false), (7, false), (6, true), (0, true), (-400, true)] {
            let heard = BTreeMap::from([(NodeId([1; 16]), status(days))]);
            let warnings = warnings(&ClusterView::default(), &heard, &BTreeMap::new());
            let said = warnings.iter().any(|w| w.contains(&format!("has {days} days left")));
            assert_eq!(said, warned, "{days}: {warnings:?}");
        }
    }
}
