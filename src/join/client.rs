//! The joiner: asks every place it knows, for ever, until one lets it in or says never.

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream};
use tokio::{sync::watch, time::timeout};

use super::{
    chain, proof,
    waiting::{JoinError, Waiting, said_by_peer},
};
use crate::{
    discovery::{Candidates, Seed, turn},
    identity::{ClusterRecord, Identity, JoinToken, PeerCertificate, SealKey, seal, token::TokenKeys},
    protocol::{
        frame,
        join::{AdmitRequest, Admitted, JoinRequest, JoinResponse, Refusal},
    },
    transport::{DialError, Mesh, StrangerLink},
    types::{Addresses, ClusterView, Member, NodeId, Role},
};

/// Until an address has answered the handshake.
const DIAL: Duration = Duration::from_secs(4);
/// Until a door has answered a request: it may have to ask the leader.
const ANSWER: Duration = Duration::from_secs(20);
/// Addresses of those that mDNS sees which are tried in a round, and dials at a time.
const SIGHTED: usize = 64;
const AT_A_TIME: usize = 32;
/// Where something was announced that does not answer, more is waited for so long before the next round: the
/// true ones answer a question of mDNS within an eighth of a second.
const GATHER: Duration = Duration::from_millis(250);
/// Addresses of a round that are named when they do not answer, the first ones: whoever announces many neither
/// fills the log nor hides a seed.
const NAMED: usize = 8;
/// Between rounds: doubles from the first to the last, plus up to a half at random.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// What the joiner says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applicant {
    /// A label for people.
    pub name: String,
    /// Role wanted; must be the token's.
    pub role: Role,
    /// Where it listens.
    pub addresses: Addresses,
    /// Software version.
    pub version: String,
    /// Feature bits.
    pub features: u64,
}

/// Where doors may be, besides the seeds within the token.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--seed`, resolved anew in each round.
    pub seeds: Vec<Seed>,
    /// What mDNS sees; `None` when it is off.
    pub sightings: Option<watch::Receiver<Candidates>>,
    /// Interfaces mDNS uses, to say where nobody was found.
    pub interfaces: Option<watch::Receiver<Vec<String>>>,
}

/// The joiner's surroundings.
pub struct Joiner<'a> {
    /// Dials.
    pub mesh: &'a Mesh,
    /// Signs.
    pub identity: &'a Identity,
    /// Its public half becomes part of the member record.
    pub seal_key: &'a SealKey,
    /// Seconds since 1970.
    pub clock: &'a (dyn Fn() -> u64 + Send + Sync),
    /// A number in 0..1, for jitter.
    pub jitter: &'a (dyn Fn() -> f64 + Send + Sync),
    /// Told what the joiner waits for, each time that changes.
    pub report: &'a (dyn Fn(&Waiting) + Send + Sync),
}

impl fmt::Debug for Joiner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joiner").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Joiner<'_> {
    /// Connects to whoever is there.
    pub(super) async fn dial(&self, address: SocketAddr) -> Result<StrangerLink, Waiting> {
        let unreachable = |reason: String| Waiting::Unreachable { address, reason };
        timeout(DIAL, self.mesh.dial_stranger(address))
            .await
            .map_err(|_| unreachable(format!("nothing heard for {} s", DIAL.as_secs())))?
            .map_err(|error| match error {
                // Where is said already.
                DialError::TimedOut(_) => unreachable("no answer in time".to_owned()),
                error => unreachable(error.to_string()),
            })
    }
}

/// A node that was let in.
#[derive(Debug)]
pub struct Joined {
    /// What it was given.
    pub admitted: Admitted,
    /// Where.
    pub door: SocketAddr,
    /// The connection, to become a link with [`StrangerLink::admitted`] once the certificate is
    /// stored and the mesh has a view that holds the members.
    pub link: StrangerLink,
}

impl Joined {
    /// What to store, before anything else is done with the admission.
    pub fn record(&self) -> ClusterRecord {
        ClusterRecord {
            cluster: self.admitted.cluster,
            name: self.admitted.cluster_name.clone(),
            roots: self.admitted.roots.iter().map(|root| root.to_vec()).collect(),
            certificate: self.admitted.certificate.clone(),
            peers: self.admitted.members.iter().flat_map(|m| m.1.mesh.iter().copied()).collect(),
            recovery: self.admitted.recovery.clone(),
            gateway: false,
        }
    }

    /// A first view, good for nothing but to let the members in until raft has a better one.
    pub fn first_view(&self) -> ClusterView {
        let member = |(id, addresses): &(NodeId, Addresses)| (*id, stub(*id, addresses));
        ClusterView {
            cluster: self.admitted.cluster,
            name: self.admitted.cluster_name.clone(),
            roots: self.admitted.roots.clone(),
            profile: self.admitted.profile,
            members: self.admitted.members.iter().map(member).collect(),
            applied_index: self.admitted.applied_index,
            recovery: self.admitted.recovery.clone(),
            ..ClusterView::default()
        }
    }
}

/// A member of whom a door has told where it listens, and nothing else.
pub(super) fn stub(id: NodeId, addresses: &Addresses) -> Member {
    Member {
        id,
        name: String::new(),
        role: Role::default(),
        addresses: addresses.clone(),
        spki: Vec::new(),
        seal_key: Vec::new(),
        seal_key_signature: Vec::new(),
        serial: String::new(),
        not_after: 0,
        version: String::new(),
        features: 0,
    }
}

/// Asks to be let in until somebody does. Tries every address it knows, of those that are announced so many in
/// turn, for ever, and says what it waits for. Connections are made beside each other, for one address
/// may answer nothing for seconds; requests one after the other, for two certificates for one node would
/// be one too many. Ends with an error only where no retry can help. Cancel-safe: asking again
/// after a lost answer costs no second use of the token.
pub async fn join(
    joiner: &Joiner<'_>,
    token: &JoinToken,
    applicant: &Applicant,
    mut sources: Sources,
) -> Result<Joined, JoinError> {
    let request = Request::new(joiner, token, applicant)?;
    sources.add_seeds_of(token);
    let mut said = Said::default();
    let (mut pause, mut rounds) = (PAUSE.0, 0);
    loop {
        let mut round = Vec::new();
        let addresses = sources.addresses(token, joiner.identity.node(), &mut round, rounds).await;
        rounds += 1;
        if addresses.is_empty() && round.is_empty() {
            let interfaces = sources.interfaces.as_ref().map(|names| names.borrow().clone());
            round.push(Waiting::NobodyInSight { interfaces: interfaces.unwrap_or_default() });
        }
        // Seeds come first.
        let named: BTreeSet<SocketAddr> = addresses.iter().copied().take(NAMED).collect();
        let dials = addresses.into_iter().map(|address| async move { (address, joiner.dial(address).await) });
        let mut dials = stream::iter(dials).buffer_unordered(AT_A_TIME);
        while let Some((address, dialled)) = dials.next().await {
            let asked = match dialled {
                Ok(link) => request.ask(joiner, link, address).await,
                Err(waiting) => Err(Miss::Later(waiting)),
            };
            match asked {
                Ok(joined) => return Ok(joined),
                Err(Miss::Final(refusal)) => return Err(JoinError::Refused(refusal)),
                Err(Miss::Later(waiting)) => round.push(waiting),
            }
        }
        // Without a pinned CA a refusal is believed only if nobody says anything else.
        if let Some(refusal) = unanimous(&round) {
            return Err(JoinError::Refused(refusal));
        }
        let is_silent = |waiting: &Waiting| matches!(waiting, Waiting::Unreachable { .. });
        let in_vain = round.iter().any(is_silent);
        let beyond = |waiting: &Waiting| matches!(waiting, Waiting::Unreachable { address, .. } if !named.contains(address));
        round.retain(|waiting| !beyond(waiting));
        said.say("still outside", &round, joiner);
        sources.pause(pause.mul_f64(1.0 + (joiner.jitter)().clamp(0.0, 1.0) / 2.0)).await;
        if in_vain {
            tokio::time::sleep(GATHER).await;
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// What was said in the last round: it is said again only when it has changed.
#[derive(Default)]
pub(super) struct Said(BTreeSet<String>);

impl Said {
    pub(super) fn say(&mut self, what: &str, round: &[Waiting], joiner: &Joiner<'_>) {
        let now = round.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        for waiting in round.iter().filter(|waiting| !self.0.contains(&waiting.to_string())) {
            tracing::info!("{what}: {waiting}");
            (joiner.report)(waiting);
        }
        self.0 = now;
    }
}

fn unanimous(round: &[Waiting]) -> Option<Refusal> {
    let refusals = round.iter().map(|waiting| match waiting {
        Waiting::RefusedHere { refusal, .. } => Some(*refusal),
        _ => None,
    });
    refusals.collect::<Option<Vec<_>>>()?.first().copied()
}

impl Sources {
    /// Every address to try now, each once: seeds, then what mDNS sees of this token's cluster, in turn.
    async fn addresses(
        &self,
        token: &JoinToken,
        me: NodeId,
        waiting: &mut Vec<Waiting>,
        round: usize,
    ) -> Vec<SocketAddr> {
        let mut all = self.resolve(waiting).await;
        if let Some(sightings) = &self.sightings {
            let sightings = sightings.borrow();
            let of_it = |cluster| token.cluster().is_none_or(|wanted| wanted == cluster);
            let members = sightings.iter().filter(|(id, seen)| **id != me && seen.cluster.is_some_and(of_it));
            let seen = members.flat_map(|(_, seen)| seen.addresses.iter().copied()).collect();
            all.extend(turn(seen, SIGHTED, round));
        }
        let mut once = BTreeSet::new();
        all.retain(|address| once.insert(*address));
        all
    }

    /// The addresses behind the seeds now.
    pub(super) async fn resolve(&self, waiting: &mut Vec<Waiting>) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for seed in &self.seeds {
            match seed.resolve().await {
                Ok(addresses) => all.extend(addresses),
                Err(error) => {
                    waiting.push(Waiting::Unresolved { seed: seed.to_string(), reason: error.to_string() })
                }
            }
        }
        all
    }

    /// The seeds within a token count too.
    pub(super) fn add_seeds_of(&mut self, token: &JoinToken) {
        self.seeds.extend(token.seeds().iter().filter_map(|seed| seed.parse().ok()));
    }

    /// Waits, or until mDNS sees something new.
    pub(super) async fn pause(&mut self, pause: Duration) {
        match &mut self.sightings {
            Some(sightings) => {
                sightings.borrow_and_update();
                if let Ok(Err(_)) = timeout(pause, sightings.changed()).await {
                    // mDNS has stopped: what it saw last still counts, but nothing wakes us.
                    tokio::time::sleep(pause).await;
                }
            }
            None => tokio::time::sleep(pause).await,
        }
    }
}

/// One attempt that did not get in.
pub(super) enum Miss {
    Final(Refusal),
    Later(Waiting),
}

/// Everything of a request that does not depend on the connection.
pub(super) struct Request<'a> {
    token: &'a JoinToken,
    keys: TokenKeys,
    template: AdmitRequest,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        joiner: &Joiner<'_>,
        token: &'a JoinToken,
        applicant: &Applicant,
    ) -> Result<Self, JoinError> {
        if applicant.role != token.role() {
            return Err(JoinError::Refused(Refusal::OtherRole));
        }
        let seal_key = seal::seal_key_public(joiner.seal_key)?;
        let message = seal::seal_key_message(token.cluster(), joiner.identity.node(), &seal_key);
        let template = AdmitRequest {
            token: token.id(),
            cluster: token.cluster().unwrap_or_default(),
            proof: Vec::new(),
            csr: joiner.identity.csr()?,
            role: applicant.role,
            name: applicant.name.clone(),
            addresses: applicant.addresses.clone(),
            seal_key_signature: joiner.identity.sign(&message).to_vec(),
            seal_key,
            version: applicant.version.clone(),
            features: applicant.features,
            clock: 0,
        };
        Ok(Self { token, keys: token.keys()?, template })
    }

    /// Asks on this connection, once.
    pub(super) async fn ask(
        &self,
        joiner: &Joiner<'_>,
        link: StrangerLink,
        address: SocketAddr,
    ) -> Result<Joined, Miss> {
        let later = |reason: String| Miss::Later(Waiting::Later { address, reason });
        // Nothing that proves the secret goes to anyone but the cluster the token pins.
        if let Some(pinned) = self.token.fingerprint() {
            let shown = link.peer_certificates().iter().map(|certificate| certificate.as_ref());
            chain::check(shown, &pinned, (joiner.clock)())
                .map_err(|reason| Miss::Later(Waiting::NotTheCluster { address, reason }))?;
        }
        let exporter = link.exporter().ok_or_else(|| later("the connection ended".into()))?;
        let transcript =
            proof::transcript(&exporter, &self.template.csr, self.template.role, self.template.token);
        let request = JoinRequest::Admit(Box::new(AdmitRequest {
            proof: proof::joiner_proof(&self.keys, &transcript),
            clock: (joiner.clock)(),
            ..self.template.clone()
        }));
        let asked = async {
            let mut stream = link.open_join().await.map_err(|error| error.to_string())?;
            stream.exchange(&request, frame::MAX_MESSAGE).await.map_err(|error| error.to_string())
        };
        let answer: Result<JoinResponse, String> =
            timeout(ANSWER, asked).await.unwrap_or_else(|_| Err("no answer in time".into()));
        match answer.map_err(later)? {
            JoinResponse::Admitted(admitted) => {
                self.check(joiner, &admitted, &transcript, address)?;
                Ok(Joined { admitted: *admitted, door: address, link })
            }
            JoinResponse::Retry { reason } => Err(later(said_by_peer(&reason))),
            JoinResponse::Met(_) => Err(later("it answers what was not asked".into())),
            JoinResponse::Refused(refusal) if self.token.fingerprint().is_some() => Err(Miss::Final(refusal)),
            JoinResponse::Refused(refusal) => Err(Miss::Later(Waiting::RefusedHere { address, refusal })),
        }
    }

    /// An admission counts only from the cluster, for this key, in the cluster it names.
    fn check(
        &self,
        joiner: &Joiner<'_>,
        admitted: &Admitted,
        transcript: &[u8],
        address: SocketAddr,
    ) -> Result<(), Miss> {
        let roots = || admitted.roots.iter().map(|root| root.as_slice());
        if self.token.fingerprint().is_none()
            && !proof::verify_server(&self.keys.mac_key(), transcript, roots(), &admitted.server_proof)
        {
            return Err(Miss::Later(Waiting::Unproven { address }));
        }
        let usable = PeerCertificate::parse(&admitted.certificate).is_ok_and(|certificate| {
            let me = joiner.identity.node();
            certificate.node == me
                && certificate.claims == Some((admitted.cluster, me))
                && certificate.signer(&roots().collect::<Vec<_>>()).is_some()
        });
        if admitted.node != joiner.identity.node()
            || !usable
            || self.token.cluster().is_some_and(|cluster| cluster != admitted.cluster)
        {
            let reason = "it sent a certificate that is of no use".to_owned();
            return Err(Miss::Later(Waiting::Later { address, reason }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{discovery::Candidate, types::ClusterId};

    fn address(n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], n))
    }

    #[tokio::test]
    async fn addresses_of_the_tokens_cluster_each_once() {
        let rng = &mut StdRng::seed_from_u64(1);
        let cluster = ClusterId([1; 16]);
        let pinned = JoinToken::for_cluster(Role::Voter, cluster, b"root", vec![], rng).unwrap();
        let chosen = JoinToken::generate(Role::Voter, vec![], rng).unwrap();
        let seen =
            |port, cluster| Candidate { addresses: vec![address(port)], cluster, ..Default::default() };
        let candidates = Candidates::from([
            (NodeId([1; 16]), seen(1, Some(cluster))),
            (NodeId([2; 16]), seen(2, Some(ClusterId([2; 16])))),
            (NodeId([3; 16]), seen(3, None)),
            (NodeId([4; 16]), seen(4, Some(cluster))),
        ]);
        let sources = Sources {
            seeds: vec!["127.0.0.1:9".parse().unwrap(), "127.0.0.1:1".parse().unwrap()],
            sightings: Some(watch::channel(candidates).1),
            interfaces: None,
        };
        let me = NodeId([4; 16]);
        let mut waiting = vec![];
        assert_eq!(sources.addresses(&pinned, me, &mut waiting, 0).await, [address(9), address(1)]);
        let all = sources.addresses(&chosen, me, &mut waiting, 0).await;
        assert_eq!(all, [address(9), address(1), address(2)]);
        assert!(waiting.is_empty());
    }

    #[tokio::test]
    async fn seeds_are_tried_in_each_round_and_what_is_announced_in_turn() {
        let rng = &mut StdRng::seed_from_u64(1);
        let cluster = Some(ClusterId([1; 16]));
        let token = JoinToken::for_cluster(Role::Voter, ClusterId([1; 16]), b"root", vec![], rng).unwrap();
        let seen = |port| Candidate { addresses: vec![address(port)], cluster, ..Default::default() };
        let many: Candidates = (0..256).map(|n| (NodeId([n as u8; 16]), seen(10_000 + n))).collect();
        let sources = Sources {
            seeds: vec!["127.0.0.1:9".parse().unwrap()],
            sightings: Some(watch::channel(many).1),
            interfaces: None,
        };
        let mut tried = BTreeSet::new();
        for round in 7..11 {
            let addresses = sources.addresses(&token, NodeId([255; 16]), &mut vec![], round).await;
            assert_eq!((addresses.len(), addresses[0]), (1 + SIGHTED, address(9)));
            tried.extend(addresses);
        }
        assert_eq!(tried.len(), 256, "all of them within four rounds, but for this node itself");
    }

    #[test]
    fn a_refusal_nobody_can_prove_counts_only_if_all_agree() {
        let refused = || Waiting::RefusedHere { address: address(1), refusal: Refusal::UnknownToken };
        assert_eq!(unanimous(&[refused(), refused()]), Some(Refusal::UnknownToken));
        let silent = Waiting::Unreachable { address: address(2), reason: "x".into() };
        assert_eq!(unanimous(&[refused(), silent]), None);
        assert_eq!(unanimous(&[]), None);
    }
}
