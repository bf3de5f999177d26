//! Which node makes the cluster when several start together: the rules of `--bootstrap-expect N`,
//! without any I/O.
//!
//! N is the number of nodes that carry the flag, all with one token. Each of them
//!
//! 1. waits until exactly N ids are in sight, its own included, that have just proved the token's
//!    secret, expect N as well, and are pledged to nobody or to the smallest of the N;
//! 2. pledges itself to that smallest id: once, and on its disk before anybody hears of it;
//! 3. makes the cluster when N nodes in sight are pledged to it, itself included;
//! 4. joins instead, at any moment, when it meets a member whose cluster knows the token.
//!
//! **Never two clusters.** A cluster takes N pledges, and an id gives one in its life: it is in its
//! data directory, before it is in any message. Two clusters would take 2N ids, and N nodes have N.
//! Each data directory that is emptied makes one id more, so it would take N of them, emptied after
//! they had pledged. That all see the same N, or the same smallest, is no part of this argument: rule
//! 1 only keeps nodes from pledging where it could not succeed. Two groups that are cut off from each
//! other have fewer than N each, and wait.
//!
//! A founder that dies between its Nth pledge and the record of its cluster has let nobody in: its
//! door opens after. It starts over, and the others repeat their pledges whenever they meet. One that
//! dies after the record comes back as a member, and rule 4 is all that is left.
//!
//! **It ends.** When all N run and reach each other, directly or by hearsay, each sees the same N;
//! as long as no directory was emptied, every pledge there is was given to the smallest of these N, so
//! the rest follow, and that node hears N pledges.
//!
//! **What it cannot do.** A node pledged to one that never comes back waits for ever: nobody can know
//! that the lost one did not make the cluster. It says so, and what helps: empty every directory (there
//! is nothing in them yet) and start again. And if more nodes carry the flag than it says, as many as
//! twice the number, two clusters are possible; more than N in sight are refused for that reason.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use crate::types::NodeId;

/// For so long after a meeting a node is in sight: two rounds of the slowest.
pub(super) const IN_SIGHT: Duration = Duration::from_secs(20);
/// Most nodes that are remembered: those who know the secret, and their former selves.
const MAX_SEEN: usize = 16;

/// What another node that carries the flag said when this one met it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sighting {
    /// Its label.
    pub(super) name: String,
    /// Its number behind the flag.
    pub(super) expect: u32,
    /// Whom it is pledged to.
    pub(super) pledge: Option<NodeId>,
    /// Where it can be found.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where it has met others.
    pub(super) others: Vec<(NodeId, Vec<SocketAddr>)>,
    /// When that was.
    pub(super) at: Instant,
}

/// What a node knows of those it starts together with.
#[derive(Debug, Clone)]
pub(super) struct Gathering {
    me: NodeId,
    name: String,
    expect: u32,
    /// As it is on disk.
    pledge: Option<NodeId>,
    seen: BTreeMap<NodeId, Sighting>,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Keep this pledge, durably, then say [`Gathering::pledged`].
    Pledge(NodeId),
    /// Make the cluster.
    Found,
    /// Nothing, and why.
    Wait(Incomplete),
}

impl Gathering {
    pub(super) fn new(me: NodeId, name: String, expect: u32, pledge: Option<NodeId>) -> Self {
        Self { me, name, expect, pledge, seen: BTreeMap::new() }
    }

    /// Notes what a node that proved the secret has said. True if it changes what there is to decide.
    pub(super) fn note(&mut self, id: NodeId, said: Sighting) -> bool {
        self.seen.retain(|_, seen| in_sight(seen, said.at));
        let news =
            self.seen.get(&id).is_none_or(|last| (last.expect, last.pledge) != (said.expect, said.pledge));
        if id == self.me || (self.seen.len() >= MAX_SEEN && !self.seen.contains_key(&id)) {
            return false;
        }
        self.seen.insert(id, said);
        news
    }

    /// The pledge is on disk.
    pub(super) fn pledged(&mut self, to: NodeId) {
        self.pledge = Some(to);
    }

    /// Whom this node is pledged to.
    pub(super) fn pledge(&self) -> Option<NodeId> {
        self.pledge
    }

    /// The others in sight.
    pub(super) fn others(&self, now: Instant) -> impl Iterator<Item = (NodeId, &Sighting)> {
        self.seen.iter().filter(move |(_, seen)| in_sight(seen, now)).map(|(id, seen)| (*id, seen))
    }

    /// Decides.
    pub(super) fn step(&self, now: Instant) -> Step {
        let wait = |why| Step::Wait(self.incomplete(why, now));
        if let Some(to) = self.pledge {
            let pledges = 1 + self.others(now).filter(|(_, seen)| seen.pledge == Some(to)).count();
            return if to == self.me && pledges >= self.nodes() {
                Step::Found
            } else {
                wait(Why::Pledged { to, pledges })
            };
        }
        let other_number = self.others(now).find(|(_, seen)| seen.expect != self.expect);
        if let Some((node, seen)) = other_number {
            return wait(Why::OtherNumber { node, says: seen.expect });
        }
        let smallest = self.others(now).map(|(id, _)| id).fold(self.me, Ord::min);
        let elsewhere = |pledge: &NodeId| *pledge != smallest;
        let pledged = self.others(now).find_map(|(id, seen)| Some((id, seen.pledge.filter(elsewhere)?)));
        match (1 + self.others(now).count()).cmp(&self.nodes()) {
            std::cmp::Ordering::Less => wait(Why::TooFew),
            std::cmp::Ordering::Greater => wait(Why::TooMany),
            std::cmp::Ordering::Equal => match pledged {
                Some((node, to)) => wait(Why::PledgedElsewhere { node, to }),
                None => Step::Pledge(smallest),
            },
        }
    }

    fn nodes(&self) -> usize {
        usize::try_from(self.expect).unwrap_or(usize::MAX)
    }

    fn incomplete(&self, why: Why, now: Instant) -> Incomplete {
        let others = self.others(now).map(|(id, seen)| (id, seen.name.clone()));
        Incomplete {
            me: self.me,
            expect: self.expect,
            seen: others.chain([(self.me, self.name.clone())]).collect(),
            why,
        }
    }

    /// What is missing, whatever there is to do.
    pub(super) fn state(&self, now: Instant) -> Incomplete {
        match self.step(now) {
            Step::Wait(incomplete) => incomplete,
            Step::Pledge(_) | Step::Found => self.incomplete(Why::Complete, now),
        }
    }
}

fn in_sight(seen: &Sighting, now: Instant) -> bool {
    now.saturating_duration_since(seen.at) < IN_SIGHT
}

/// Why nodes that start together are no cluster yet; `Display` is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    me: NodeId,
    expect: u32,
    /// Ids and names in sight, this node's included.
    seen: BTreeMap<NodeId, String>,
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    TooFew,
    TooMany,
    OtherNumber { node: NodeId, says: u32 },
    PledgedElsewhere { node: NodeId, to: NodeId },
    Pledged { to: NodeId, pledges: usize },
    Complete,
}

/// What helps when a node is lost that others are pledged to.
const START_AGAIN: &str = "if its data directory is lost for ever, stop all nodes, empty the data directory of each \
                           (nothing is in them yet) and start them again";

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, expect, seen, why } = self;
        let names = seen.keys().map(|id| self.name(*id)).collect::<Vec<_>>().join(", ");
        write!(f, "{} of {expect} nodes seen: {names}", seen.len())?;
        match why {
            Why::TooFew => write!(
                f,
                "; the others must run with the same --join and --bootstrap-expect {expect}, and be found by mDNS or a \
                 --seed"
            ),
            Why::TooMany => write!(
                f,
                ": more than --bootstrap-expect says. It is the number of nodes that carry the flag: stop the nodes too \
                 many (start them again without the flag, with --join), or give all the right number"
            ),
            Why::OtherNumber { node, says } => write!(
                f,
                "; {} was started with --bootstrap-expect {says}, this node with {expect}: give all the same",
                self.name(*node)
            ),
            Why::PledgedElsewhere { node, to } => write!(
                f,
                "; {} is pledged to {}, which is {}; {START_AGAIN}",
                self.name(*node),
                self.name(*to),
                if seen.contains_key(to) { "not the one to make the cluster" } else { "not in sight" },
            ),
            Why::Pledged { to, pledges } if to == me => {
                write!(f, ", pledged to this node: {pledges} of {expect}, the cluster is made with the last")
            }
            Why::Pledged { to, .. } if seen.contains_key(to) => {
                write!(f, ", pledged to {}, which makes the cluster", self.name(*to))
            }
            Why::Pledged { to, .. } => write!(
                f,
                ", pledged to {}, which is not in sight and must be started, for it may have made the cluster; \
                 {START_AGAIN}",
                self.name(*to)
            ),
            Why::Complete => f.write_str(", the cluster is being made"),
        }
    }
}

impl Incomplete {
    fn name(&self, id: NodeId) -> String {
        let mark = if id == self.me { ", this node" } else { "" };
        match self.seen.get(&id) {
            Some(name) if !name.is_empty() => format!("{name} ({}{mark})", id.short()),
            _ => format!("{}{}", id.short(), if mark.is_empty() { "" } else { " (this node)" }),
        }
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
