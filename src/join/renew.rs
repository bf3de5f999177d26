//! Renewal: a member's certificate is replaced at half its life and when another root signs, and one
//! that has expired, or that the others do not take, is no reason to stay outside.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    cause::{Cause, Lapse, RETRY_URGENT, cause, due},
    client::stub,
    signer::Signer,
};
use crate::{
    identity::{ClusterRecord, Issued, PeerCertificate, Store, fingerprint, succession},
    protocol::{
        StreamKind, frame,
        join::{Admitted, JoinRequest, JoinResponse},
    },
    raft::{Command, Control, Outcome, forward_command},
    transport::Mesh,
    types::{Addresses, ClusterView, Member, NodeId},
};

/// Longest sleep between two looks at the certificate, so that a clock that jumps is noticed.
const LOOK: Duration = Duration::from_secs(600);
/// Over which the members of a cluster spread their renewals when there is a new root.
const SPREAD: Duration = Duration::from_secs(2);
/// Between two looks at what has changed.
const AT_MOST: Duration = Duration::from_millis(200);
const ASK: Duration = Duration::from_secs(20);
const AGREE: Duration = Duration::from_secs(5);

/// Keeps this node's certificate fresh. `node/` runs it as long as the node is a member.
pub struct Renewal {
    /// Key, clock, and the CA if this node is a voter.
    pub signer: Signer,
    /// The state, on nodes that are in raft.
    pub control: Option<Control>,
    /// What the mesh knows of the cluster: roots that a door tells of go there.
    pub view: watch::Sender<Arc<ClusterView>>,
    /// Asks others.
    pub mesh: Mesh,
    /// Where the certificate is kept.
    pub store: Store,
    /// A number in 0..1, drawn once: spreads the renewals of a cluster made in one go.
    pub jitter: f64,
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal").field("signer", &self.signer).finish_non_exhaustive()
    }
}

impl Renewal {
    /// Looks after the certificate for ever. Cancel-safe.
    pub async fn run(self) {
        let (mut view, mut lapses) = (self.view.subscribe(), self.mesh.lapses());
        let mut lapse = Lapse::default();
        // A certificate the cluster has not been told of yet.
        let mut untold = None;
        let mut not_before = Instant::now();
        // When this node first saw that its root is not the one that signs.
        let mut outdated: Option<Instant> = None;
        loop {
            let now = (self.signer.clock)() / 1000;
            let certificate = self.signer.identity.certificate();
            let newest = view.borrow_and_update().roots.last().cloned();
            lapse.note(*lapses.borrow_and_update(), Instant::now());
            let newest = newest.as_ref().map(|root| root.as_slice());
            let cause = cause(&certificate, newest, now, self.jitter, lapse.counts());
            if cause == Some(Cause::OldRoot) {
                let since = *outdated.get_or_insert_with(Instant::now);
                not_before = not_before.max(since + SPREAD.mul_f64(self.jitter.clamp(0.0, 1.0)));
            } else {
                outdated = None;
            }
            if let Some(cause) = cause.filter(|_| Instant::now() >= not_before) {
                match self.renew(cause).await {
                    Ok(issued) => {
                        untold = issued;
                        lapse.answered(Instant::now());
                    }
                    Err(reason) => tracing::warn!(
                        days_left = days_left(&certificate, now),
                        ?cause,
                        "cannot renew this node's certificate yet: {reason}"
                    ),
                }
                not_before = Instant::now() + cause.pause();
            }
            let told = match untold.take() {
                Some(issued) if !self.tell(&issued).await => {
                    untold = Some(issued);
                    false
                }
                _ => self.tell_root().await,
            };
            let due = due(&self.signer.identity.certificate(), self.jitter);
            let next = if told { LOOK } else { RETRY_URGENT };
            let mut sleep = Duration::from_secs(due.saturating_sub(now)).min(next);
            if cause.is_some() || lapse.is_open() {
                sleep = sleep.min(not_before.saturating_duration_since(Instant::now()));
            }
            let pause = tokio::time::sleep(sleep.max(Duration::from_secs(1)));
            // What changes the cause is looked at soon, and at most once in a moment.
            tokio::select! {
                () = pause => {}
                () = roots_changed(&mut view, newest, self.signer.identity.node()) => sleep_a_moment().await,
                Ok(()) = lapses.changed() => sleep_a_moment().await,
            }
        }
    }

    /// Gets a new certificate and shows it from now on: signs it itself if it can, else asks the
    /// voters in turn. `Some` when the cluster has still to be told of it.
    async fn renew(&self, cause: Cause) -> Result<Option<Issued>, String> {
        let csr = self.signer.identity.csr().map_err(|error| error.to_string())?;
        let view = self.view.borrow().clone();
        // Others have not taken what this node holds to be good: its own signature would be no better.
        if cause != Cause::Refused
            && let Some(issued) = self.sign_own(&csr, &view)?
        {
            if cause == Cause::Expired {
                tracing::warn!("this voter's certificate had expired; it signed itself a new one");
            }
            self.install(&issued.certificate, &view).await?;
            return Ok(Some(issued));
        }
        let request = JoinRequest::Renew { csr };
        let mut reason = "no voter is known".to_owned();
        // Without a word on who votes (a joiner's first view) any member will do: it passes it on.
        let voters = view.all_voters();
        let whom = if voters.is_empty() { view.members.keys().copied().collect() } else { voters };
        for voter in whom.into_iter().filter(|id| *id != self.signer.identity.node()) {
            match timeout(ASK, self.ask(&view, voter, cause, &request)).await {
                Ok(Ok(JoinResponse::Admitted(admitted))) => match self.take(&admitted).await {
                    Ok(()) => return Ok(None),
                    Err(error) => reason = format!("node {voter}: {error}"),
                },
                Ok(Ok(JoinResponse::Retry { reason: said })) => reason = said,
                Ok(Ok(JoinResponse::Refused(refusal))) => reason = refusal.explain().to_owned(),
                Ok(Ok(JoinResponse::Met(_))) => reason = "it answers what was not asked".to_owned(),
                Ok(Err(error)) => reason = error,
                Err(_) => reason = format!("node {voter} did not answer in time"),
            }
        }
        Err(reason)
    }

    /// A certificate for this node's own key, by this node's own copy of the CA key.
    fn sign_own(&self, csr: &[u8], view: &ClusterView) -> Result<Option<Issued>, String> {
        let Some(ca) = self.control.as_ref().and_then(|control| self.signer.ca(&control.state(), view))
        else {
            return Ok(None);
        };
        // Behind what a door has told of, its own state may still hold a key that is retired.
        if view.roots.last().is_some_and(|newest| newest != ca.1.certificate()) {
            return Ok(None);
        }
        let issued = self.signer.issue(&ca, csr).map_err(|error| error.to_string())?;
        Ok(Some(issued).filter(|issued| issued.node == self.signer.identity.node()))
    }

    /// Asks over the link, if there is one and this node's certificate is good for it. Whoever has no
    /// valid certificate is let in nowhere but at the door.
    async fn ask(
        &self,
        view: &ClusterView,
        voter: NodeId,
        cause: Cause,
        request: &JoinRequest,
    ) -> Result<JoinResponse, String> {
        let linked = self.mesh.links().borrow().contains_key(&voter);
        if linked && cause != Cause::Expired {
            let asked = self.mesh.request(voter, StreamKind::Join, request, ASK);
            return asked.await.map_err(|error| error.to_string());
        }
        let mut reason = format!("no address of node {voter} is known");
        for address in view.members.get(&voter).into_iter().flat_map(|member| &member.addresses.mesh) {
            let asked = async {
                let link = self.mesh.dial_stranger(*address).await.map_err(|error| error.to_string())?;
                // Whatever certificate it shows: its key is a member's.
                if !view.members.contains_key(&link.node()) {
                    return Err(format!("node {} answers there, which is no member", link.node()));
                }
                let mut stream = link.open_join().await.map_err(|error| error.to_string())?;
                stream.exchange(request, frame::MAX_MESSAGE).await.map_err(|error| error.to_string())
            };
            match asked.await {
                Ok(answer) => return Ok(answer),
                Err(error) => reason = format!("{address}: {error}"),
            }
        }
        Err(reason)
    }

    /// Takes what a member has answered. Roots that this node does not know yet are believed only if they
    /// follow from those it knows.
    pub(super) async fn take(&self, admitted: &Admitted) -> Result<(), String> {
        let view = self.view.borrow().clone();
        let newer = admitted.applied_index > view.applied_index && admitted.roots != view.roots;
        if !newer {
            return self.install(&admitted.certificate, &view).await;
        }
        let trusted = succession::trusted(&view.roots, view.cluster, &admitted.successions);
        if admitted.roots.is_empty() || !admitted.roots.iter().all(|root| trusted.iter().any(|t| root == t)) {
            return Err("it names a root that none of the roots known here vouches for".to_owned());
        }
        let renewed = after(&view, admitted);
        self.install(&admitted.certificate, &renewed).await?;
        tracing::warn!("the cluster's CA was rotated while this node was away; it has the new root now");
        self.view.send_if_modified(|shown| {
            let newer = shown.applied_index < renewed.applied_index;
            if newer {
                *shown = Arc::new(renewed);
            }
            newer
        });
        Ok(())
    }

    /// Stores the certificate, then shows it.
    async fn install(&self, certificate: &[u8], view: &ClusterView) -> Result<(), String> {
        let me = self.signer.identity.node();
        let parsed = PeerCertificate::parse(certificate).map_err(|error| error.to_string())?;
        if parsed.node != me
            || parsed.claims != Some((view.cluster, me))
            || parsed.signer(&view.roots).is_none()
        {
            return Err("the new certificate is not for this node, or not by this cluster".into());
        }
        let now = (self.signer.clock)() / 1000;
        if parsed.not_after <= now {
            // It would be replaced by one of its own clock at once, and that refused by the others.
            return Err(format!(
                "by this node's clock the new certificate expired {} s ago: set the clock (NTP)",
                now - parsed.not_after
            ));
        }
        let record = self.store.cluster().await.map_err(|error| error.to_string())?;
        let record = ClusterRecord {
            cluster: view.cluster,
            name: view.name.clone(),
            roots: view.roots.iter().map(|root| root.to_vec()).collect(),
            certificate: certificate.to_vec(),
            // A certificate is no reason to change worlds, whatever the view says.
            recovery: record.as_ref().and_then(|record| record.recovery.clone()),
            gateway: record.as_ref().is_some_and(|record| record.gateway),
            peers: record.map(|record| record.peers).unwrap_or_default(),
        };
        self.store.set_cluster(&record).await.map_err(|error| error.to_string())?;
        self.signer.identity.set_certificate(certificate, &view.roots).map_err(|error| error.to_string())?;
        tracing::info!(serial = %parsed.serial, not_after = parsed.not_after, "new certificate");
        Ok(())
    }

    /// Tells the cluster of a certificate this node signed itself. False if it must be tried again.
    async fn tell(&self, issued: &Issued) -> bool {
        let view = self.view.borrow().clone();
        let (Some(control), Some(member)) = (&self.control, view.members.get(&issued.node)) else {
            return true;
        };
        let update = Command::Update {
            node: member.id,
            addresses: member.addresses.clone(),
            certificate: Some((issued.serial.clone(), issued.not_after)),
            version: member.version.clone(),
            features: member.features,
        };
        control.propose(update, AGREE).await.is_ok()
    }

    /// Tells the cluster, while its CA is rotated, that this node shows a certificate of the new root: it
    /// is on this node's disk by then. False if it must be tried again.
    async fn tell_root(&self) -> bool {
        let view = self.view.borrow().clone();
        let node = self.signer.identity.node();
        let waited_for =
            view.roots.len() > 1 && view.rotation.as_ref().is_some_and(|r| !r.renewed.contains(&node));
        let newest = view.roots.last().filter(|_| waited_for && view.members.contains_key(&node));
        let Some(newest) = newest.filter(|root| self.signer.identity.certificate().signer(&[root]).is_some())
        else {
            return true;
        };
        let shows = Command::ShowsRoot { node, root: fingerprint(newest).to_vec().into() };
        let told = match (&self.control, view.leader) {
            (Some(control), _) => control.propose(shows, AGREE).await,
            (None, Some(leader)) => forward_command(&self.mesh, leader, shows, AGREE).await,
            (None, None) => return false,
        };
        told == Ok(Outcome::Done)
    }
}

async fn sleep_a_moment() {
    tokio::time::sleep(AT_MOST).await;
}

/// Resolves when the newest root, or what is said of this node's progress in a rotation, is another.
async fn roots_changed(view: &mut watch::Receiver<Arc<ClusterView>>, newest: Option<&[u8]>, me: NodeId) {
    let renewed = |view: &ClusterView| view.rotation.as_ref().map(|r| r.renewed.contains(&me));
    let before = renewed(&view.borrow());
    let other = |view: &Arc<ClusterView>| {
        view.roots.last().map(|root| root.as_slice()) != newest || renewed(view) != before
    };
    if view.wait_for(other).await.is_err() {
        std::future::pending().await
    }
}

/// A view with the roots and members that a door has told of, until this node has applied as much.
fn after(view: &ClusterView, admitted: &Admitted) -> ClusterView {
    let member = |(id, addresses): &(NodeId, Addresses)| match view.members.get(id) {
        Some(member) => (*id, Member { addresses: addresses.clone(), ..member.clone() }),
        None => (*id, stub(*id, addresses)),
    };
    ClusterView {
        members: admitted.members.iter().map(member).collect(),
        roots: admitted.roots.clone(),
        rotation: None,
        applied_index: admitted.applied_index,
        ..view.clone()
    }
}

fn days_left(certificate: &PeerCertificate, now: u64) -> i64 {
    (certificate.not_after as i64 - now as i64) / 86_400
}
