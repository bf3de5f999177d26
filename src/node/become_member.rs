//! How a node becomes a member: it is one already, is let in by a token, founds a cluster, or finds out
//! with others who of them does.

use std::{sync::Arc, time::Duration};

use rand::RngCore;
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use crate::{
    disk::{Create, Durability},
    identity::{ClusterCa, ClusterRecord, Identity, JoinToken, SealKey, Store, seal},
    join::{
        self, Gathered, Joined, Meeting, TokenLimits,
        bootstrap::{Decision, Situation, decide as decide_bootstrap, must_look_around},
        token_record,
    },
    protocol::StreamKind,
    raft::{Command, Control, Outcome},
    transport::Mesh,
    types::{Addresses, ClusterId, ClusterView, Epoch, Member, Role},
};

use super::{
    NodeConfig, NodeError,
    late::LateHandlers,
    local::{VERSION, features},
    peers::Peers,
    surroundings::Surroundings,
};

/// How long a node without any instruction looks for a cluster on the LAN.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// Uses and life of the token shown when a cluster is founded.
const FIRST_TOKEN_USES: u32 = 4;
const FIRST_TOKEN_MS: u64 = 3_600_000;
/// File of the first API token, in the founding node's data directory.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";

/// What a node is at start.
pub(super) enum Place {
    Member(ClusterRecord),
    Joiner(JoinToken),
    /// One of so many that start together with a token chosen up front.
    Carrier(JoinToken, u32),
    Founder,
}

impl Place {
    /// Whether it is, or would become, a member without data.
    pub(super) fn is_gateway(&self) -> bool {
        match self {
            Self::Member(record) => record.gateway,
            Self::Joiner(token) | Self::Carrier(token, _) => token.role() == Role::Gateway,
            Self::Founder => false,
        }
    }
}

/// What it is once that is settled with whom it may concern.
pub(super) enum Settled {
    Member(ClusterRecord),
    /// Let in a moment ago.
    Joined(ClusterRecord),
    /// With the token chosen up front, if there is one.
    Founder(Option<JoinToken>),
}

/// Told once, when a cluster is founded and a token for the next nodes is made for it.
#[derive(Debug, Clone)]
pub struct Founded {
    /// The token for the next nodes.
    pub token: JoinToken,
    /// How many nodes it admits.
    pub uses: u32,
    /// For how long.
    pub ttl: Duration,
}

/// Which of them this node is, by its data directory, its flags and what is in sight.
pub(super) async fn decide(
    config: &NodeConfig,
    record: Option<ClusterRecord>,
    peers: &Peers,
) -> Result<Place, NodeError> {
    let mut situation = Situation {
        empty: record.is_none(),
        token: config.join.as_ref(),
        seeds: !config.seeds.is_empty(),
        new_cluster: config.new_cluster,
        expect: config.bootstrap_expect,
        sightings: None,
    };
    let seen;
    if must_look_around(&situation)
        && let Some(sightings) = &peers.sightings
    {
        tracing::info!(
            seconds = LOOK_AROUND.as_secs(),
            "no token and no seed: looking for a cluster on this network"
        );
        tokio::time::sleep(LOOK_AROUND).await;
        seen = sightings.borrow().clone();
        situation.sightings = Some(&seen);
    }
    let decision = decide_bootstrap(&situation);
    if let Some(refusal) = decision.refusal() {
        return Err(NodeError::Usage(refusal));
    }
    match (decision, record, &config.join) {
        (Decision::Rejoin { ignored }, Some(record), _) => {
            if !ignored.is_empty() {
                tracing::info!(
                    flags = ignored.join(" "),
                    "this node is a member already; these flags are ignored"
                );
            }
            Ok(Place::Member(record))
        }
        (Decision::Join, _, Some(token)) if config.role != Role::Voter && config.role != token.role() => {
            Err(NodeError::Usage(format!(
                "this join token is for a {}, --role says {}: make one with `skein token create --role {}`, or leave \
                 --role out",
                token.role(),
                config.role,
                config.role
            )))
        }
        (Decision::Join, _, Some(token)) => Ok(Place::Joiner(token.clone())),
        (Decision::Found | Decision::Expect { .. }, ..) if config.role != Role::Voter => {
            Err(NodeError::Usage("the first nodes of a cluster are voters: start without --role".into()))
        }
        (Decision::Found, ..) => Ok(Place::Founder),
        (Decision::Expect { nodes }, _, Some(token)) => Ok(Place::Carrier(token.clone(), nodes)),
        (other, ..) => Err(NodeError::Usage(format!("cannot start like this: {other:?}"))),
    }
}

/// A node that is not a member yet, and what it needs to become one.
pub(super) struct Newcomer<'a> {
    pub(super) config: &'a NodeConfig,
    pub(super) store: &'a Store,
    pub(super) identity: &'a Arc<Identity>,
    pub(super) seal_key: &'a SealKey,
    pub(super) surroundings: &'a Surroundings,
    pub(super) addresses: &'a watch::Receiver<Addresses>,
    pub(super) mesh: &'a Mesh,
    pub(super) peers: &'a Peers,
    pub(super) view: &'a watch::Sender<Arc<ClusterView>>,
}

/// A cluster that is about to be: nothing of it is on disk or in raft.
pub(super) struct Founding {
    cluster: ClusterId,
    name: String,
    ca: ClusterCa,
    member: Member,
    certificate: Vec<u8>,
}

impl Newcomer<'_> {
    /// Settles what this node is. Waits for as long as it takes for somebody to let it in, or for the
    /// others it starts together with.
    pub(super) async fn settle(&self, place: Place, late: &LateHandlers) -> Result<Settled, NodeError> {
        let (token, nodes) = match place {
            Place::Member(record) => return Ok(Settled::Member(record)),
            Place::Founder => return Ok(Settled::Founder(None)),
            Place::Joiner(token) => (token, None),
            Place::Carrier(token, nodes) => (token, Some(nodes)),
        };
        let clock = self.surroundings.clone();
        let jitter = self.surroundings.clone();
        let joiner = join::Joiner {
            mesh: self.mesh,
            identity: self.identity,
            seal_key: self.seal_key,
            clock: &move || clock.unix_seconds(),
            jitter: &move || f64::from(jitter.rng().next_u32()) / f64::from(u32::MAX),
            report: &|_| {},
        };
        let applicant = join::Applicant {
            name: self.config.name.clone(),
            role: token.role(),
            addresses: self.addresses.borrow().clone(),
            version: VERSION.to_owned(),
            features: features(),
        };
        let (_, interfaces) = watch::channel(self.peers.interfaces.clone());
        let sources = join::Sources {
            seeds: self.config.seeds.iter().filter_map(|seed| seed.parse().ok()).collect(),
            sightings: self.peers.sightings.clone(),
            interfaces: self.peers.sightings.is_some().then_some(interfaces),
        };
        let Some(nodes) = nodes else {
            let joined = join::join(&joiner, &token, &applicant, sources).await?;
            return Ok(Settled::Joined(self.enter(joined, token.role()).await?));
        };
        if nodes == 1 && sources.sightings.is_some() {
            // No other node has to be heard for this one to go ahead: it must have had the time to hear.
            tokio::time::sleep(LOOK_AROUND).await;
        }
        let meeting = Meeting::open(self.store, self.identity.node(), &token, nodes, applicant).await?;
        late.fill(StreamKind::Join, Arc::new(meeting.clone()));
        match join::gather(&joiner, &token, sources, &meeting, self.store).await? {
            Gathered::Founder => Ok(Settled::Founder(Some(token))),
            Gathered::Joined(joined) => Ok(Settled::Joined(self.enter(*joined, token.role()).await?)),
        }
    }

    /// Makes a node that was let in a member. The connection that it asked on becomes its first link.
    async fn enter(&self, joined: Joined, role: Role) -> Result<ClusterRecord, NodeError> {
        let record = ClusterRecord { gateway: role == Role::Gateway, ..joined.record() };
        let view = joined.first_view();
        // On disk before it counts: from here on a restart rejoins instead of asking again. The view
        // first: without it a restarted node would let nobody in.
        self.store.set_view(&view).await?;
        self.store.set_cluster(&record).await?;
        self.identity.set_certificate(&record.certificate, &record.roots)?;
        self.view.send_replace(Arc::new(view));
        match joined.link.admitted().await {
            Ok(door) => tracing::info!(cluster = record.name, door = %door, "admitted"),
            // The dialer finds another way in: this node is a member now.
            Err(error) => tracing::info!(cluster = record.name, %error, "admitted; linking anew"),
        }
        Ok(record)
    }

    /// Makes the cluster's CA and this node's certificate.
    pub(super) fn prepare_founding(&self) -> Result<Founding, NodeError> {
        let cluster = ClusterId(self.surroundings.random());
        let now = self.surroundings.unix_seconds();
        let ca = match &self.config.ca {
            Some(files) => files.load(now)?,
            None => ClusterCa::create(cluster, &self.surroundings.random(), now)?,
        };
        let issued = ca.issue(&self.identity.csr()?, cluster, self.surroundings.random(), now)?;
        let seal_key = seal_key_public(self.seal_key)?;
        let message = seal::seal_key_message(Some(cluster), self.identity.node(), &seal_key);
        let member = Member {
            id: self.identity.node(),
            name: self.config.name.clone(),
            role: Role::Voter,
            addresses: self.addresses.borrow().clone(),
            spki: self.identity.spki().to_vec(),
            seal_key_signature: self.identity.sign(&message).to_vec(),
            seal_key,
            serial: issued.serial.clone(),
            not_after: issued.not_after,
            version: VERSION.to_owned(),
            features: features(),
        };
        self.identity.set_certificate(&issued.certificate, &[ca.certificate()])?;
        let name = format!("skein-{}", cluster.short());
        Ok(Founding { cluster, name, ca, member, certificate: issued.certificate })
    }

    /// Makes a raft of one and founds the cluster in it, with the token chosen up front or with one
    /// made for the next nodes. The record that makes this node a member is written last: a crash
    /// before it leaves an empty node that starts over. Its epochs begin behind `after`.
    pub(super) async fn found(
        &self,
        founding: Founding,
        chosen: Option<JoinToken>,
        after: Epoch,
        control: &Control,
    ) -> Result<(ClusterRecord, Option<Founded>), NodeError> {
        control.initialize().await?;
        let now_ms = self.surroundings.unix_ms();
        let failed = |what: &str, error: &dyn std::fmt::Display| NodeError::Task(format!("{what}: {error}"));
        let ca_certificate = founding.ca.certificate().to_vec();
        let mut rng = self.surroundings.rng();
        let (expires_ms, uses) = match &chosen {
            Some(token) => (token.expires().map(|at| at.saturating_mul(1000)), token.uses()),
            None => (Some(now_ms + FIRST_TOKEN_MS), Some(FIRST_TOKEN_USES)),
        };
        let made = chosen.is_none();
        let token = chosen.map_or_else(
            || JoinToken::for_cluster(Role::Voter, founding.cluster, &ca_certificate, Vec::new(), &mut rng),
            Ok,
        );
        let token = token.map_err(|e| failed("cannot make a join token", &e))?;
        let limits = TokenLimits { expires_ms, uses, created_ms: now_ms };
        let verifier = token.verifier().map_err(|e| failed("cannot make a join token", &e))?;
        let sealed = seal::seal(
            founding.ca.private_key(),
            &founding.member.seal_key,
            founding.cluster,
            founding.member.id,
            &mut rng,
        )
        .map_err(|e| failed("cannot seal the CA key", &e))?;
        let (admin_token, api_token) = super::api_tokens::make_first(self.surroundings);
        let command = Command::Found {
            cluster: founding.cluster,
            name: founding.name.clone(),
            root: ByteBuf::from(ca_certificate.clone()),
            member: founding.member,
            sealed_ca: ByteBuf::from(sealed),
            profile: self.config.profile,
            token: token_record(&token, verifier, limits),
            api_token,
            after,
            level: super::local::features(),
        };
        self.keep_admin_token(&admin_token).await?;
        match control.propose(command, Duration::from_secs(30)).await {
            Ok(Outcome::Done) => {}
            Ok(other) => return Err(failed("cannot found the cluster", &other)),
            Err(error) => return Err(failed("cannot found the cluster", &error)),
        }
        let record = ClusterRecord {
            cluster: founding.cluster,
            name: founding.name,
            roots: vec![ca_certificate],
            certificate: founding.certificate,
            peers: Vec::new(),
            recovery: None,
            gateway: false,
        };
        self.store.set_cluster(&record).await?;
        let ttl = Duration::from_millis(FIRST_TOKEN_MS);
        tracing::info!(cluster = %record.cluster, name = record.name, "founded a new cluster");
        Ok((record, made.then_some(Founded { token, uses: FIRST_TOKEN_USES, ttl })))
    }

    async fn keep_admin_token(&self, token: &str) -> Result<(), NodeError> {
        let disk = &self.surroundings.disk;
        let path = self.config.dir.path().join(ADMIN_TOKEN_FILE);
        let write = async {
            // Of an unfinished founding, whose cluster never was.
            match disk.remove(&path).await {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let file = disk.open(&path, Create::New).await?;
            file.write(0, vec![format!("{token}\n").into()], Durability::Now).await?;
            disk.sync_dir(self.config.dir.path()).await
        };
        write.await.map_err(|e| NodeError::Task(format!("cannot write {}: {e}", path.display())))
    }
}

fn seal_key_public(key: &SealKey) -> Result<Vec<u8>, NodeError> {
    seal::seal_key_public(key).map_err(|e| NodeError::Task(format!("the sealing key does not work: {e}")))
}
