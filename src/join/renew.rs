//! Renewal: a member's certificate is replaced at half its life, and one that has expired is no
//! reason to stay outside.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::signer::Signer;
use crate::{
    identity::{ClusterRecord, Issued, PeerCertificate, Store},
    protocol::{
        StreamKind, frame,
        join::{JoinRequest, JoinResponse},
    },
    raft::{Command, Control},
    transport::Mesh,
    types::{ClusterView, NodeId},
};

/// Longest sleep between two looks at the certificate, so that a clock that jumps is noticed.
const LOOK: Duration = Duration::from_secs(600);
/// After a failed attempt: with a certificate that still holds, and without one.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_EXPIRED: Duration = Duration::from_secs(3);
const ASK: Duration = Duration::from_secs(20);
const AGREE: Duration = Duration::from_secs(5);

/// Keeps this node's certificate fresh. `node/` runs it as long as the node is a member.
pub struct Renewal {
    /// Key, clock, and the CA if this node is a voter.
    pub signer: Signer,
    /// The state, on nodes that are in raft.
    pub control: Option<Control>,
    /// What this node knows of the cluster.
    pub view: tokio::sync::watch::Receiver<Arc<ClusterView>>,
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
        // A certificate the cluster has not been told of yet.
        let mut untold = None;
        loop {
            let now = (self.signer.clock)() / 1000;
            let certificate = self.signer.identity.certificate();
            let due = due(&certificate, self.jitter);
            let mut sleep = Duration::from_secs(due.saturating_sub(now)).min(LOOK);
            if now >= due {
                let expired = now >= certificate.not_after;
                sleep = if expired { RETRY_EXPIRED } else { RETRY };
                match self.renew(expired).await {
                    Ok(issued) => untold = issued,
                    Err(reason) => tracing::warn!(
                        days_left = days_left(&certificate, now),
                        "cannot renew this node's certificate yet: {reason}"
                    ),
                }
            }
            if let Some(issued) = untold.take()
                && !self.tell(&issued).await
            {
                untold = Some(issued);
                sleep = sleep.min(RETRY);
            }
            tokio::time::sleep(sleep.max(Duration::from_secs(1))).await;
        }
    }

    /// Gets a new certificate and shows it from now on: signs it itself if it can, else asks the
    /// voters in turn. `Some` when the cluster has still to be told of it.
    async fn renew(&self, expired: bool) -> Result<Option<Issued>, String> {
        let csr = self.signer.identity.csr().map_err(|error| error.to_string())?;
        let view = self.view.borrow().clone();
        if let Some(issued) = self.sign_own(&csr, &view)? {
            if expired {
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
            let asked = async {
                // Whoever has no valid certificate is let in nowhere but at the door.
                if expired {
                    self.ask_as_lapsed(&view, voter, &request).await
                } else {
                    let asked = self.mesh.request(voter, StreamKind::Join, &request, ASK);
                    asked.await.map_err(|error| error.to_string())
                }
            };
            match timeout(ASK, asked).await {
                Ok(Ok(JoinResponse::Admitted(admitted))) => {
                    self.install(&admitted.certificate, &view).await?;
                    return Ok(None);
                }
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
        let issued = self.signer.issue(&ca, csr).map_err(|error| error.to_string())?;
        Ok(Some(issued).filter(|issued| issued.node == self.signer.identity.node()))
    }

    async fn ask_as_lapsed(
        &self,
        view: &ClusterView,
        voter: NodeId,
        request: &JoinRequest,
    ) -> Result<JoinResponse, String> {
        let mut reason = format!("no address of node {voter} is known");
        for address in view.members.get(&voter).into_iter().flat_map(|member| &member.addresses.mesh) {
            let asked = async {
                let link = self.mesh.dial_stranger(*address).await.map_err(|error| error.to_string())?;
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
}

/// When to renew: at half life, up to a tenth of it earlier. Seconds since 1970.
fn due(certificate: &PeerCertificate, jitter: f64) -> u64 {
    let life = certificate.not_after.saturating_sub(certificate.not_before);
    let early = (life as f64 / 10.0 * jitter.clamp(0.0, 1.0)) as u64;
    (certificate.not_before + life / 2).saturating_sub(early)
}

fn days_left(certificate: &PeerCertificate, now: u64) -> i64 {
    (certificate.not_after as i64 - now as i64) / 86_400
}
