//! Nodes that start together: each meets the others on `Join` streams, and ends as the one that makes
//! the cluster or as one that was let in. What is decided when stands in [`super::pledge`].
//!
//! Nothing here trusts an address: a node counts once it has proved the token's secret on a connection
//! whose key makes its id.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::Instant;

use super::{
    client::{Joined, Joiner, Miss, Request, Said, Sources},
    meeting::Meeting,
    pledge::Step,
    waiting::{JoinError, Waiting},
};
use crate::{
    discovery::turn,
    identity::{JoinToken, Store},
    protocol::join::Refusal,
    transport::StrangerLink,
    types::NodeId,
};

/// Between rounds: doubles from the first to the last, plus up to a half at random. Two rounds fit
/// into the time that a node is in sight after it was met.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// Most addresses tried in a round, and most of which it is remembered who answered.
const ADDRESSES: usize = 32;
/// Of these for what mDNS sees, however much is known otherwise.
const SIGHTED: usize = 8;
const MAX_ANSWERED: usize = 256;

/// What came of it.
#[derive(Debug)]
pub enum Gathered {
    /// This node makes the cluster, with the token all of them have.
    Founder,
    /// A member let it in.
    Joined(Box<Joined>),
}

/// Meets whom it can find until enough are pledged to this node, or a member lets it in. Goes on for
/// ever and says what it waits for; ends with an error only where no retry can help. A pledge is on
/// disk before anybody hears of it. Cancel-safe: a pledge that was heard of stays, the rest begins
/// anew.
pub async fn gather(
    joiner: &Joiner<'_>,
    token: &JoinToken,
    mut sources: Sources,
    meeting: &Meeting,
    store: &Store,
) -> Result<Gathered, JoinError> {
    let request = Request::new(joiner, token, meeting.applicant())?;
    sources.add_seeds_of(token);
    let mut answered = BTreeMap::new();
    let mut said = Said::default();
    let (mut pause, mut rounds) = (PAUSE.0, 0);
    loop {
        if token.expires().is_some_and(|at| at <= (joiner.clock)()) {
            return Err(JoinError::Expired);
        }
        let mut round = meeting.round(joiner, &sources, &mut answered, rounds).await;
        rounds += 1;
        // One after the other: two certificates for one node would be one too many.
        for (address, link) in std::mem::take(&mut round.members) {
            match request.ask(joiner, link, address).await {
                Ok(joined) => return Ok(Gathered::Joined(Box::new(joined))),
                Err(Miss::Final(refusal)) => return Err(JoinError::Refused(refusal)),
                Err(Miss::Later(waiting)) => round.outside.push(waiting),
            }
        }
        if let Some(refusal) = round.last_word() {
            return Err(JoinError::Refused(refusal));
        }
        let step = meeting.gathering().step(Instant::now());
        match step {
            // Where one node is enough, only this keeps it from making a second cluster when its
            // directory was emptied and the members are busy.
            Step::Pledge(_) | Step::Found if meeting.nodes() == 1 && round.is_undecided() => {}
            Step::Pledge(to) => {
                store.set_pledge(token.id(), to).await?;
                meeting.gathering().pledged(to);
                tracing::info!(%to, "pledged, once and for all, to the node that makes the cluster");
                pause = PAUSE.0;
                continue;
            }
            Step::Found => return Ok(Gathered::Founder),
            Step::Wait(incomplete) => round.missed.push(Waiting::Nodes(incomplete)),
        }
        round.missed.append(&mut round.outside);
        said.say("waiting", &round.missed, joiner);
        tokio::select! {
            () = sources.pause(pause.mul_f64(1.0 + (joiner.jitter)().clamp(0.0, 1.0) / 2.0)) => {
                pause = (pause * 2).min(PAUSE.1);
            }
            () = meeting.news() => pause = PAUSE.0,
        }
    }
}

/// What came of trying every address once.
#[derive(Default)]
struct Round {
    /// Connections to those that are members of a cluster already.
    members: Vec<(SocketAddr, StrangerLink)>,
    /// What they said when asked.
    outside: Vec<Waiting>,
    /// What else did not come to anything.
    missed: Vec<Waiting>,
    /// True when another node of no cluster was met.
    met: bool,
}

impl Round {
    /// A refusal that ends this node: without a pinned CA it is believed only if nobody says anything
    /// else, and only if whoever says it knows the token. Other clusters may be in sight.
    fn last_word(&self) -> Option<Refusal> {
        let refusals = self.outside.iter().map(|waiting| match waiting {
            Waiting::RefusedHere { refusal, .. } if *refusal != Refusal::UnknownToken => Some(*refusal),
            _ => None,
        });
        refusals.collect::<Option<Vec<_>>>()?.first().copied().filter(|_| !self.met)
    }

    /// True when a member may be of the token's cluster and has not said.
    fn is_undecided(&self) -> bool {
        let of_another = |waiting: &Waiting| {
            matches!(waiting, Waiting::RefusedHere { refusal: Refusal::UnknownToken, .. })
        };
        !self.outside.iter().all(of_another)
    }
}

/// What one address turned out to be.
enum Visit {
    Myself,
    Member(StrangerLink),
    Met,
}

impl Meeting {
    /// Tries every address that may be a node, each node once. `answered` tells who answered where.
    async fn round(
        &self,
        joiner: &Joiner<'_>,
        sources: &Sources,
        answered: &mut BTreeMap<SocketAddr, NodeId>,
        rounds: usize,
    ) -> Round {
        let mut round = Round::default();
        let given = sources.resolve(&mut round.missed).await;
        if answered.len() > MAX_ANSWERED {
            answered.clear();
        }
        let (addresses, told) = self.addresses(given, sources, answered, rounds);
        let visits =
            addresses.into_iter().map(|address| async move { (address, self.visit(joiner, address).await) });
        for (address, (node, visit)) in join_all(visits).await {
            match node {
                Some(node) => answered.insert(address, node),
                None => answered.remove(&address),
            };
            match visit {
                Ok(Visit::Myself) => {}
                Ok(Visit::Met) => round.met = true,
                Ok(Visit::Member(link)) => round.members.push((address, link)),
                // Hearsay may lead nowhere from here.
                Err(Waiting::Unreachable { .. }) if !told.contains(&address) => {}
                Err(waiting) => round.missed.push(waiting),
            }
        }
        round
    }

    /// Where to try now, each node once, and which of it this node was told by seeds and mDNS.
    fn addresses(
        &self,
        given: Vec<SocketAddr>,
        sources: &Sources,
        answered: &BTreeMap<SocketAddr, NodeId>,
        rounds: usize,
    ) -> (Vec<SocketAddr>, BTreeSet<SocketAddr>) {
        let now = Instant::now();
        let gathering = self.gathering();
        let met: BTreeMap<NodeId, Vec<SocketAddr>> = gathering
            .others(now)
            .map(|(id, seen)| {
                let there = answered.iter().find(|(_, node)| **node == id);
                (id, there.map_or_else(|| seen.addresses.clone(), |(address, _)| vec![*address]))
            })
            .collect();
        let unknown = |id: &NodeId| *id != self.me() && !met.contains_key(id);
        let mut all = given;
        let mut seen = BTreeSet::new();
        if let Some(sightings) = &sources.sightings {
            let sightings = sightings.borrow();
            let unknown = sightings.iter().filter(|(id, _)| unknown(id));
            seen.extend(unknown.flat_map(|(_, seen)| seen.addresses.iter().copied()));
        }
        let told: BTreeSet<SocketAddr> = all.iter().chain(&seen).copied().collect();
        all.extend(met.values().flatten().copied());
        let hearsay = gathering.others(now).flat_map(|(_, seen)| &seen.others);
        all.extend(hearsay.filter(|(id, _)| unknown(id)).flat_map(|(_, addresses)| addresses).copied());
        // What was proven, or comes from whoever was, is not crowded out by what anybody announces.
        let (mut once, mut nodes) = (BTreeSet::new(), BTreeSet::from([self.me()]));
        let mut first =
            |at: &SocketAddr| once.insert(*at) && answered.get(at).is_none_or(|node| nodes.insert(*node));
        all.retain(&mut first);
        all.truncate(if seen.is_empty() { ADDRESSES } else { ADDRESSES - SIGHTED });
        seen.retain(&mut first);
        all.extend(turn(seen, ADDRESSES - all.len(), rounds));
        (all, told)
    }

    /// Connects, and meets whoever is there if it is of no cluster.
    async fn visit(
        &self,
        joiner: &Joiner<'_>,
        address: SocketAddr,
    ) -> (Option<NodeId>, Result<Visit, Waiting>) {
        let link = match joiner.dial(address).await {
            Ok(link) => link,
            Err(waiting) => return (None, Err(waiting)),
        };
        let node = link.node();
        let visit = if node == self.me() {
            Ok(Visit::Myself)
        } else if link.peer_certificates().len() > 1 {
            // Its own certificate, and that of its cluster.
            Ok(Visit::Member(link))
        } else {
            self.meet(&link, address).await.map(|()| Visit::Met)
        };
        (Some(node), visit)
    }
}

#[cfg(test)]
mod tests;
