//! Who writes: the leader watches the writer and, when it must, seals a majority and names the
//! next one (DESIGN 6.4.1 to 6.4.3 and 6.4.7). Every rule here has a counterexample in the
//! protocol model when it is dropped.
//!
//! [`decide`] and [`due`] are pure; [`Failover::run`] is the driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_bytes::ByteBuf;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::{
    protocol::{
        StreamKind,
        replication::{Report, Seal, Sealed},
        status::{NodeStatus, StatusRequest},
    },
    transport::Mesh,
    types::{BootId, ClusterView, Epoch, Lsn, Member, NodeId, Office, Timing, Why},
};

use super::{Command, Control, Outcome, poll::Poll};

/// How this node seals itself and tells its own status, given by the layers above.
pub trait Local: fmt::Debug + Send + Sync + 'static {
    /// As if the `Seal` had come over the wire from this node.
    fn seal(&self, seal: Seal) -> BoxFuture<'_, Result<Sealed, String>>;
    /// This node's status.
    fn status(&self) -> NodeStatus;
    /// When this node last heard the writer of that epoch on its own stream.
    fn heard_writer(&self, epoch: Epoch) -> Option<Instant>;
    /// True when this node's log holds the record at `at`, judged by its epoch table.
    fn holds(&self, at: Lsn) -> bool;
    /// The wall clock, milliseconds since 1970.
    fn unix_ms(&self) -> u64;
    /// Every CA key that this node holds, sealed to a member that is about to become a voter, each with
    /// the SHA-256 of its root.
    fn seal_ca_for(&self, member: &Member) -> Result<Vec<(ByteBuf, ByteBuf)>, String>;
}

/// The leader's watch over the writer.
#[derive(Debug)]
pub struct Failover {
    control: Control,
    mesh: Mesh,
    local: Arc<dyn Local>,
    me: NodeId,
    timing: Timing,
    statuses: watch::Sender<Statuses>,
}

/// What the leader last heard of each member, and when.
pub type Statuses = Arc<BTreeMap<NodeId, (Instant, NodeStatus)>>;

/// Why a round is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Nobody has ever written.
    NoWriter,
    /// Not heard for L.
    Silent,
    /// Another process run than the one in the register.
    OtherBoot,
    /// Named, but not in office within L.
    NotInOffice,
    /// A voter promised a higher epoch: the sitting writer may be unable to commit.
    PromisedAbove,
    /// It asks to be relieved, and is level with this target.
    Drains {
        /// A voter that has everything.
        target: NodeId,
    },
    /// Its disk is full or slow, and this target is level with it.
    DiskTrouble {
        /// A voter that has everything.
        target: NodeId,
    },
    /// It is no longer a voter.
    NotVoter,
}

impl Trigger {
    /// As it is remembered with the epoch that it starts.
    const fn why(self) -> Why {
        match self {
            Self::NoWriter => Why::First,
            Self::Silent => Why::Silent,
            Self::OtherBoot => Why::Restarted,
            Self::NotInOffice => Why::NotInOffice,
            Self::PromisedAbove => Why::PromisedAbove,
            Self::Drains { .. } => Why::HandedOver,
            Self::DiskTrouble { .. } => Why::Disk,
            Self::NotVoter => Why::NotVoter,
        }
    }
}

impl Failover {
    /// A watch that acts while this node is the leader.
    pub fn new(control: Control, mesh: Mesh, local: Arc<dyn Local>, me: NodeId, timing: Timing) -> Self {
        Self { control, mesh, local, me, timing, statuses: watch::Sender::new(Statuses::default()) }
    }

    /// What the leader hears of the members; empty on other nodes.
    pub fn statuses(&self) -> watch::Receiver<Statuses> {
        self.statuses.subscribe()
    }

    /// Runs as long as the process.
    pub async fn run(self) {
        let mut reign: Option<Reign> = None;
        let mut poll = Poll::new();
        let mut tick = tokio::time::interval(self.timing.heartbeat);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // Only a leader that has applied an entry of its own term knows the register.
            if !self.control.is_leader() || !self.control.leader_ready().await {
                if reign.take().is_some() {
                    self.statuses.send_replace(Statuses::default());
                    poll = Poll::new();
                }
                continue;
            }
            let reign = reign.get_or_insert_with(|| Reign::begin(Instant::now()));
            let view = self.control.view().borrow().clone();
            reign.note_office(view.writer, Instant::now());
            self.poll(&view, reign, &mut poll).await;
            reign.followed = view.writer.and_then(|office| self.local.heard_writer(office.epoch));
            let Some(trigger) = due(&view, reign, Instant::now(), self.timing.election_min) else { continue };
            if let Err(reason) = self.round(&view, trigger, reign).await
                && reign.is_news(view.writer.map_or(0, |office| office.epoch), &reason, Instant::now())
            {
                tracing::info!(?trigger, reason, "no new writer yet");
            }
        }
    }

    /// Asks the members for their status; what comes within a heartbeat is heard now, the rest later.
    async fn poll(&self, view: &ClusterView, reign: &mut Reign, poll: &mut Poll) {
        let patience = self.timing.election_min;
        let ask = |id| -> BoxFuture<'static, Option<NodeStatus>> {
            let mesh = self.mesh.clone();
            let question = StatusRequest { resign: false, to: None };
            Box::pin(async move { mesh.request(id, StreamKind::Status, &question, patience).await.ok() })
        };
        let others = view.members.keys().copied().filter(|id| *id != self.me);
        let heard = poll.round(others, view.writer, self.timing.heartbeat * 4 / 5, ask).await;
        reign.heard.extend(heard.into_iter().map(|(asked, status)| (status.node, (asked, status))));
        reign.heard.insert(self.me, (Instant::now(), self.local.status()));
        reign.heard.retain(|id, _| view.members.contains_key(id));
        self.statuses.send_replace(Arc::new(reign.heard.clone()));
    }

    /// Seals a majority, picks the highest report, and names its process writer.
    async fn round(&self, view: &ClusterView, trigger: Trigger, reign: &mut Reign) -> Result<(), String> {
        let current = view.writer.map_or(0, |office| office.epoch);
        let resigned = match (trigger, view.writer) {
            // A writer that drains or is full acknowledges nothing that its lease would guard.
            (Trigger::Drains { .. } | Trigger::DiskTrouble { .. }, Some(office)) => {
                Some((office.epoch, office.boot))
            }
            _ => None,
        };
        let seal = Seal { epoch: current + 1, term: view.term, resigned };
        if reign.told.as_ref().is_none_or(|told| told.epoch != current) {
            tracing::info!(?trigger, epoch = seal.epoch, "sealing for a new writer");
        }
        let reports = self.seal_majority(view, seal).await?;
        let preferred = match trigger {
            Trigger::Drains { target } | Trigger::DiskTrouble { target } => target,
            _ => preferred(view, reign, self.me),
        };
        let chosen = decide(&reports, preferred).map_err(|alarm| {
            tracing::error!(%alarm, ?reports, "refusing to name a writer");
            alarm.to_string()
        })?;
        // The membership under which the majority was counted goes into the command; apply refuses
        // it under any other.
        // Model: membership_unchanged_since_seal
        let office = Office {
            epoch: seal.epoch,
            node: chosen.node,
            boot: chosen.boot,
            membership: view.membership,
            at_ms: self.local.unix_ms(),
            // Boot 0 held no office: it is what a recovery leaves in the register.
            why: match view.writer {
                Some(office) if office.boot == BootId(0) && view.recovery.is_some() => Why::Recovered,
                // The data was restored from a backup.
                Some(office) if office.boot == BootId(0) => Why::First,
                _ => trigger.why(),
            },
        };
        match self.control.propose(Command::SetWriter(office), self.timing.election_max * 4).await {
            Ok(Outcome::Done) => {
                reign.note_office(Some(office), Instant::now());
                tracing::info!(epoch = office.epoch, writer = %office.node, at = %chosen.durable, "named a writer");
                Ok(())
            }
            // A lost answer is resolved by reading the register at the next tick.
            Ok(outcome) => Err(outcome.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn ask_to_seal(&self, voter: NodeId, seal: Seal, wait: Duration) -> Result<Sealed, String> {
        if voter == self.me {
            return self.local.seal(seal).await;
        }
        self.mesh.request(voter, StreamKind::Seal, &seal, wait).await.map_err(|e| e.to_string())
    }

    async fn seal_majority(&self, view: &ClusterView, seal: Seal) -> Result<Vec<Report>, String> {
        let voters = view.all_voters();
        let wait = self.timing.election_max * 4;
        let mut answers: FuturesUnordered<_> = voters
            .iter()
            .map(|voter| {
                let voter = *voter;
                async move {
                    let deadline = Instant::now() + wait;
                    loop {
                        let answer = self.ask_to_seal(voter, seal, wait).await;
                        match answer {
                            // It is bound for a moment yet: the same round asks again, for a dead
                            // writer's own answer may take as long as the whole round.
                            Ok(Sealed::LeaseHeld { remaining_ms }) if Instant::now() < deadline => {
                                tokio::time::sleep(Duration::from_millis(remaining_ms.max(1)).min(wait))
                                    .await;
                            }
                            answer => return (voter, answer),
                        }
                    }
                }
            })
            .collect();
        let (mut reports, mut have, mut refusals) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut damaged = 0;
        let mut grace = std::pin::pin!(None::<tokio::time::Sleep>);
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                // A majority is enough; a moment more lets the others be chosen too.
                () = async { match grace.as_mut().as_pin_mut() { Some(sleep) => sleep.await, None => std::future::pending().await } } => None,
            };
            let Some((voter, answer)) = answer else { break };
            match answer {
                Ok(Sealed::Report(report)) if report.node == voter && report.promise == seal.epoch => {
                    have.insert(voter);
                    reports.push(report);
                }
                Ok(Sealed::Damaged) => damaged += 1,
                Ok(other) => refusals.push(format!("{}: {other:?}", voter.short())),
                Err(error) => refusals.push(format!("{}: {error}", voter.short())),
            }
            if view.is_quorum(&have) && grace.is_none() {
                grace.set(Some(tokio::time::sleep(self.timing.heartbeat / 5)));
            }
        }
        if view.is_quorum(&have) {
            Ok(reports)
        } else if damaged > 0 {
            tracing::error!(
                damaged,
                sealed = have.len(),
                voters = voters.len(),
                "no writer can be named: voters whose logs were damaged answer no seal before they are repaired \
                 from a writer. Bring more voters up; if there are none, give up what is lost with `skein inspect \
                 wal --repair --accept-loss` on a stopped node"
            );
            Err(format!("{damaged} of {} voters have damaged logs", voters.len()))
        } else {
            Err(format!("{} of {} voters sealed ({})", have.len(), voters.len(), refusals.join("; ")))
        }
    }
}

/// What a leader knows since it became one.
#[derive(Debug, Clone)]
pub struct Reign {
    since: Instant,
    heard: BTreeMap<NodeId, (Instant, NodeStatus)>,
    /// The register, and since when this leader has known it.
    office: Option<(Office, Instant)>,
    /// When this node, as a follower, last heard the writer in the register.
    followed: Option<Instant>,
    /// Of a round that named nobody, the last that the log was told.
    told: Option<Told>,
}

#[derive(Debug, Clone)]
struct Told {
    /// Of the writer there was.
    epoch: Epoch,
    reason: String,
    at: Instant,
}

impl Reign {
    /// A leader that has heard nobody yet.
    pub fn begin(now: Instant) -> Self {
        Self { since: now, heard: BTreeMap::new(), office: None, followed: None, told: None }
    }

    fn note_office(&mut self, office: Option<Office>, now: Instant) {
        if self.office.map(|known| known.0) != office {
            self.office = office.map(|office| (office, now));
        }
    }

    /// Whether the log is to be told that a round named nobody, and why. Without a majority there are ten
    /// rounds a second for as long as that lasts: the same is said once and then every ten seconds.
    fn is_news(&mut self, epoch: Epoch, reason: &str, now: Instant) -> bool {
        let known = self.told.as_ref().is_some_and(|told| {
            let pause = Duration::from_secs(if told.reason == reason { 10 } else { 1 });
            told.epoch == epoch && now < told.at + pause
        });
        if !known {
            self.told = Some(Told { epoch, reason: reason.to_owned(), at: now });
        }
        !known
    }
}

/// Whether the writer must be replaced, and why.
pub fn due(view: &ClusterView, reign: &Reign, now: Instant, silence: Duration) -> Option<Trigger> {
    if view.voters.is_empty() {
        return None;
    }
    let Some(office) = view.writer else { return Some(Trigger::NoWriter) };
    let named = reign.office.filter(|known| known.0 == office).map_or(now, |known| known.1);
    let patience = named.max(reign.since) + silence;
    if !view.is_voter(office.node) {
        return Some(Trigger::NotVoter);
    }
    let above = |status: &NodeStatus| view.is_voter(status.node) && status.promise > office.epoch;
    if now > patience && reign.heard.values().any(|(_, status)| above(status)) {
        return Some(Trigger::PromisedAbove);
    }
    // A new leader that followed the writer knows already since when it is silent; another one has to
    // listen for L first.
    let heard = reign.heard.get(&office.node).map(|(heard, _)| *heard);
    let silent_since = match reign.followed {
        Some(followed) => heard.map_or(followed, |heard| heard.max(followed)),
        None => heard.unwrap_or(patience - silence).max(patience - silence),
    };
    if now > silent_since + silence {
        return Some(Trigger::Silent);
    }
    // What it said before it was named says nothing of this office.
    match reign.heard.get(&office.node).filter(|(asked, _)| *asked >= named) {
        Some((_, status)) if status.boot != office.boot => Some(Trigger::OtherBoot),
        // An answer may have been long under way: what counts is when it was asked for.
        Some((asked, status)) if status.office.map(|o| o.0) != Some(office.epoch) && *asked > patience => {
            Some(Trigger::NotInOffice)
        }
        Some((_, status)) if status.draining => {
            level(view, reign, status).map(|target| Trigger::Drains { target })
        }
        Some((_, status)) if status.disk_troubled && now > patience => {
            level(view, reign, status).map(|target| Trigger::DiskTrouble { target })
        }
        _ => None,
    }
}

/// Who wins a tie: the leader itself, unless it is about to stop or its disk is in trouble.
fn preferred(view: &ClusterView, reign: &Reign, me: NodeId) -> NodeId {
    let sound = |status: &NodeStatus| fit(view, status);
    let heard = || reign.heard.values().map(|(_, status)| status);
    if heard().any(|status| status.node == me && sound(status)) {
        return me;
    }
    heard().find(|status| view.is_voter(status.node) && sound(status)).map_or(me, |status| status.node)
}

/// A healthy voter, other than the writer, that has everything the writer has.
fn level(view: &ClusterView, reign: &Reign, writer: &NodeStatus) -> Option<NodeId> {
    let others = || reign.heard.values().map(|(_, status)| status).filter(|s| s.node != writer.node);
    let fit = || others().filter(|s| view.is_voter(s.node) && fit(view, s));
    let meant = writer.successor.filter(|to| fit().any(|s| s.node == *to));
    // A follower may be ahead: the writer sends before it syncs, and its disk may be the slow one.
    let mut level = fit().filter(|s| s.durable >= writer.durable).map(|s| s.node);
    level.find(|node| meant.is_none_or(|meant| meant == *node))
}

/// Neither about to stop nor in trouble.
fn fit(view: &ClusterView, status: &NodeStatus) -> bool {
    !status.draining && !status.disk_troubled && !view.drained.contains(&status.node)
}

/// A report contradicts what was committed: never go on from here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// The best log of a majority lacks a record that somebody knows to be committed.
    #[error(
        "the highest log reported ends at {chosen}, but {commit} was committed: acknowledged data is missing"
    )]
    CommittedMissing {
        /// Best report.
        chosen: Lsn,
        /// Commit position named by some report.
        commit: Lsn,
    },
    /// No reports.
    #[error("no reports")]
    Empty,
}

/// Highest (epoch, seq) of durable records wins; `preferred` wins ties, then the smallest id.
pub fn decide(reports: &[Report], preferred: NodeId) -> Result<&Report, Alarm> {
    // Model: compare_epoch_then_seq
    // Model: highest_report_wins
    let chosen = reports
        .iter()
        .max_by_key(|report| (rank(report), report.node == preferred, std::cmp::Reverse(report.node)))
        .ok_or(Alarm::Empty)?;
    match reports.iter().map(|report| report.commit).max() {
        Some(commit) if commit > chosen.durable => {
            Err(Alarm::CommittedMissing { chosen: chosen.durable, commit })
        }
        _ => Ok(chosen),
    }
}

/// What reports are compared by.
fn rank(report: &Report) -> Lsn {
    #[cfg(feature = "testing")]
    if crate::types::planted::is("choose_the_leader") {
        return Lsn::ZERO;
    }
    #[cfg(feature = "testing")]
    if crate::types::planted::is("longest_log_wins") {
        return Lsn::new(0, report.durable.seq);
    }
    report.durable
}

#[cfg(test)]
pub(super) use tests::status;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addresses, MembershipId};

    const L: Duration = Duration::from_millis(300);

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn report(node: u8, epoch: u64, seq: u64, commit: (u64, u64)) -> Report {
        Report {
            node: id(node),
            boot: BootId(node.into()),
            promise: 9,
            durable: Lsn::new(epoch, seq),
            commit: Lsn::new(commit.0, commit.1),
        }
    }

    #[test]
    fn highest_epoch_then_seq_wins_and_ties_go_to_the_preferred() {
        // A longer log of an older epoch loses.
        let reports = [report(1, 1, 90, (0, 0)), report(2, 2, 50, (0, 0)), report(3, 2, 50, (0, 0))];
        assert_eq!(decide(&reports, id(3)).unwrap().node, id(3));
        assert_eq!(decide(&reports, id(1)).unwrap().node, id(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_in_vain_is_told_once_in_a_while() {
        let mut reign = Reign::begin(Instant::now());
        let mut told = 0;
        // A minute without a majority, ten rounds a second, and one of them for another reason.
        for round in 0..600 {
            let reason = if round == 5 { "the lease is held" } else { "one of two voters answered" };
            told += u32::from(reign.is_news(3, reason, Instant::now()));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(told, 6);
        assert!(reign.is_news(4, "one of two voters answered", Instant::now()), "of another office");
        assert!(!reign.is_news(4, "the lease is held", Instant::now()), "in the same second");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(reign.is_news(4, "the lease is held", Instant::now()));
    }

    #[test]
    fn a_committed_record_that_nobody_reports_is_an_alarm() {
        let reports = [report(1, 2, 50, (2, 51)), report(2, 2, 49, (2, 40))];
        assert!(matches!(decide(&reports, id(1)), Err(Alarm::CommittedMissing { .. })));
        assert_eq!(decide(&[], id(1)), Err(Alarm::Empty));
    }

    pub(in crate::raft) fn status(node: u8, boot: u64, office: Option<u64>, promise: u64) -> NodeStatus {
        NodeStatus {
            node: id(node),
            boot: BootId(boot),
            promise,
            office: office.map(|e| (e, true)),
            durable: Lsn::new(1, 5),
            commit: Lsn::ZERO,
            applied: Lsn::ZERO,
            flushed: Lsn::ZERO,
            disk_troubled: false,
            marked: MembershipId::default(),
            linked: Vec::new(),
            linked_at: Vec::new(),
            addresses: Addresses::default(),
            version: String::new(),
            cert_days_left: 30,
            draining: false,
            repairing: None,
            quarantined: 0,
            rtt_us: Vec::new(),
            sent: Vec::new(),
            stale_ms: None,
            unix_ms: 0,
            points: 0,
            queries: 0,
            fetching: None,
            damaged: None,
            damaged_files: 0,
            scrubbed: None,
            follows: None,
            successor: None,
        }
    }

    fn view() -> ClusterView {
        ClusterView {
            voters: vec![[id(1), id(2), id(3)].into()],
            writer: Some(Office {
                epoch: 4,
                node: id(2),
                boot: BootId(2),
                membership: MembershipId::default(),
                at_ms: 0,
                why: Why::default(),
            }),
            ..ClusterView::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_trigger_and_none_too_early() {
        let view = view();
        let start = Instant::now();
        let reign = |statuses: &[NodeStatus]| {
            let mut reign = Reign::begin(start);
            reign.note_office(view.writer, start);
            for status in statuses {
                reign.heard.insert(status.node, (start, status.clone()));
            }
            reign
        };
        let soon = start + L / 2;
        let late = start + L + Duration::from_millis(1);
        let healthy = status(2, 2, Some(4), 4);
        assert_eq!(
            due(&ClusterView { writer: None, ..view.clone() }, &reign(&[]), soon, L),
            Some(Trigger::NoWriter)
        );
        assert_eq!(due(&view, &reign(&[]), soon, L), None);
        assert_eq!(due(&view, &reign(&[]), late, L), Some(Trigger::Silent));
        assert_eq!(due(&view, &reign(std::slice::from_ref(&healthy)), soon, L), None);
        assert_eq!(due(&view, &reign(std::slice::from_ref(&healthy)), late, L), Some(Trigger::Silent));
        assert_eq!(due(&view, &reign(&[status(2, 7, None, 4)]), soon, L), Some(Trigger::OtherBoot));
        // Named but not in office: only after L; and it was heard just now.
        let mut waiting = reign(&[]);
        waiting.heard.insert(id(2), (late, status(2, 2, None, 4)));
        assert_eq!(due(&view, &waiting, late, L), Some(Trigger::NotInOffice));
        waiting.heard.insert(id(2), (soon, status(2, 2, None, 4)));
        assert_eq!(due(&view, &waiting, late, L), None, "asked too early, and long under way");
        // It was another process when it was asked; the one that answers now was named since.
        let mut before = reign(&[]);
        before.heard.insert(id(2), (start, status(2, 7, Some(3), 3)));
        before.office = Some((view.writer.unwrap(), start + L / 4));
        assert_eq!(due(&view, &before, soon, L), None);
        // A leader that followed the writer need not listen for L again.
        let followed = Reign { followed: Some(start - L), ..reign(&[]) };
        assert_eq!(due(&view, &followed, start + Duration::from_millis(1), L), Some(Trigger::Silent));
        let followed = Reign { followed: Some(start), ..reign(&[]) };
        assert_eq!(due(&view, &followed, soon, L), None);
        // A promise above the register starves a healthy writer.
        let mut starved = reign(&[status(3, 3, None, 5)]);
        starved.heard.insert(id(2), (late, healthy.clone()));
        assert_eq!(due(&view, &starved, late, L), Some(Trigger::PromisedAbove));
        // A draining writer is relieved by a voter that is level, not before.
        let draining = NodeStatus { draining: true, ..healthy.clone() };
        let behind = NodeStatus { durable: Lsn::new(1, 4), ..status(3, 3, None, 4) };
        assert_eq!(due(&view, &reign(&[draining.clone(), behind]), soon, L), None);
        assert_eq!(
            due(&view, &reign(&[draining, status(3, 3, None, 4)]), soon, L),
            Some(Trigger::Drains { target: id(3) })
        );
        // One whose disk is in trouble is relieved by a voter that has all it has on disk, or more.
        let mut slow = reign(&[NodeStatus { durable: Lsn::new(1, 6), ..status(3, 3, None, 4) }]);
        slow.heard.insert(id(2), (late, NodeStatus { disk_troubled: true, ..healthy.clone() }));
        assert_eq!(due(&view, &slow, late, L), Some(Trigger::DiskTrouble { target: id(3) }));
        let behind = NodeStatus { durable: Lsn::new(1, 4), ..status(3, 3, None, 4) };
        slow.heard.insert(id(3), (late, behind));
        assert_eq!(due(&view, &slow, late, L), None);
        // One that is drained is none to hand over to, and one that is meant is waited for.
        let heard = [status(1, 1, None, 4), status(3, 3, None, 4)];
        let with = |draining: NodeStatus| reign(&[draining, heard[0].clone(), heard[1].clone()]);
        let draining = NodeStatus { draining: true, ..healthy.clone() };
        let without_1 = ClusterView { drained: [id(1)].into(), ..view.clone() };
        assert_eq!(
            due(&without_1, &with(draining.clone()), soon, L),
            Some(Trigger::Drains { target: id(3) })
        );
        let meant = NodeStatus { successor: Some(id(3)), ..draining };
        assert_eq!(due(&view, &with(meant.clone()), soon, L), Some(Trigger::Drains { target: id(3) }));
        let mut behind = with(meant.clone());
        behind.heard.insert(id(3), (start, NodeStatus { durable: Lsn::new(1, 4), ..heard[1].clone() }));
        assert_eq!(due(&view, &behind, soon, L), None);
        let without_3 = ClusterView { drained: [id(3)].into(), ..view.clone() };
        assert_eq!(due(&without_3, &with(meant), soon, L), Some(Trigger::Drains { target: id(1) }));
        let troubled = NodeStatus { disk_troubled: true, ..status(3, 3, None, 4) };
        slow.heard.insert(id(3), (late, troubled));
        assert_eq!(due(&view, &slow, late, L), None);
    }
}
