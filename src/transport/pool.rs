//! Which connection to a peer stays: at most one link each. Decisions only, no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use tokio::time::Instant;

use crate::types::{BootId, NodeId};

/// How long a boot that was replaced is remembered.
const MEMORY: Duration = Duration::from_secs(300);
/// How long a cloned identity is refused.
const REFUSED: Duration = Duration::from_secs(30);
/// Boots remembered per peer.
const BOOTS: usize = 8;

/// What decides between two connections to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// Number of the connection in this process.
    pub(super) number: u64,
    /// The peer's process run.
    pub(super) boot: BootId,
    /// Which of the two nodes dialled.
    pub(super) dialer: NodeId,
    pub(super) remote: SocketAddr,
    /// It is to take the place of the one there is: same processes, newer certificates.
    pub(super) renews: bool,
}

/// The verdict on a connection offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer<L> {
    /// It is the link now.
    Up,
    /// It is the link now; the other one is to end once its streams have.
    UpDrain(L),
    /// It is the link now; the other one is dead or of a dead process.
    UpReplace(L),
    /// The link there already is stays.
    Duplicate,
    /// Two processes use this identity, at these addresses; neither is served.
    Cloned(Option<L>, [SocketAddr; 2]),
    /// Found cloned a short while ago.
    StillCloned,
}

/// The links, and what is remembered of boots.
#[derive(Debug)]
pub(super) struct Pool<L> {
    links: BTreeMap<NodeId, (Key, L)>,
    history: BTreeMap<NodeId, History>,
    greeting: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct History {
    replaced: Vec<(BootId, SocketAddr, Instant)>,
    refused_until: Option<Instant>,
}

impl<L> Default for Pool<L> {
    fn default() -> Self {
        Self { links: BTreeMap::new(), history: BTreeMap::new(), greeting: BTreeSet::new() }
    }
}

impl<L: Clone> Pool<L> {
    /// Takes in a connection past its hello, or says why not.
    pub(super) fn offer(&mut self, peer: NodeId, key: Key, link: L, now: Instant) -> Offer<L> {
        let history = self.history.entry(peer).or_default();
        match history.refused_until {
            Some(until) if now < until => return Offer::StillCloned,
            _ => history.refused_until = None,
        }
        history.replaced.retain(|(_, _, at)| now.duration_since(*at) < MEMORY);
        // A process that was replaced by a later one is dead. If it comes back, both live.
        if let Some(&(_, before, _)) = history.replaced.iter().find(|(boot, ..)| *boot == key.boot) {
            history.replaced.clear();
            history.refused_until = Some(now + REFUSED);
            let old = self.links.remove(&peer);
            let other = old.as_ref().map_or(before, |(old, _)| old.remote);
            return Offer::Cloned(old.map(|(_, link)| link), [other, key.remote]);
        }
        let Some((old, _)) = self.links.get(&peer) else {
            self.links.insert(peer, (key, link));
            return Offer::Up;
        };
        let old = *old;
        let renews = old.boot == key.boot && key.renews;
        if old.boot == key.boot && old.dialer != key.dialer && old.dialer < key.dialer && !renews {
            return Offer::Duplicate;
        }
        if old.boot != key.boot {
            if history.replaced.len() >= BOOTS {
                history.replaced.remove(0);
            }
            history.replaced.push((old.boot, old.remote, now));
        }
        let replaced = self.links.insert(peer, (key, link));
        match replaced {
            Some((_, loser)) if renews => Offer::UpDrain(loser),
            // Dialled by the other side: alive, with streams that deserve to end in peace.
            Some((_, loser)) if old.boot == key.boot && old.dialer != key.dialer => Offer::UpDrain(loser),
            // The same side dialled again, so it has lost the old one; or another boot.
            Some((_, dead)) => Offer::UpReplace(dead),
            None => Offer::Up,
        }
    }

    /// Forgets a connection that ended, if it still is the link. True if it was.
    pub(super) fn remove(&mut self, peer: NodeId, number: u64) -> bool {
        let is_link = self.links.get(&peer).is_some_and(|(key, _)| key.number == number);
        if is_link {
            self.links.remove(&peer);
        }
        is_link
    }

    pub(super) fn get(&self, peer: NodeId) -> Option<&L> {
        self.links.get(&peer).map(|(_, link)| link)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &L)> {
        self.links.iter().map(|(peer, (_, link))| (*peer, link))
    }

    /// Starts an outgoing hello to `peer`: false while there is a link or another such hello, so
    /// that this side never makes two connections of its own compete.
    pub(super) fn start_hello(&mut self, peer: NodeId) -> bool {
        !self.links.contains_key(&peer) && self.greeting.insert(peer)
    }

    /// Starts an outgoing hello to a linked peer, to renew the link: false while there is another.
    pub(super) fn start_renewal(&mut self, peer: NodeId) -> bool {
        self.links.contains_key(&peer) && self.greeting.insert(peer)
    }

    /// Ends what [`Pool::start_hello`] or [`Pool::start_renewal`] began.
    pub(super) fn end_hello(&mut self, peer: NodeId) {
        self.greeting.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId([5; 16]);
    const SMALL: NodeId = NodeId([1; 16]);

    fn key(number: u64, boot: u64, dialer: NodeId) -> Key {
        let remote = SocketAddr::from(([127, 0, 0, 1], 1000 + boot as u16));
        Key { number, boot: BootId(boot), dialer, remote, renews: false }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_dials_the_smaller_nodes_stays_in_either_order() {
        let now = Instant::now();
        let mut pool = Pool::default();
        assert_eq!(pool.offer(PEER, key(1, 7, PEER), 1, now), Offer::Up);
        assert_eq!(pool.offer(PEER, key(2, 7, SMALL), 2, now), Offer::UpDrain(1));
        assert_eq!(pool.offer(PEER, key(3, 7, PEER), 3, now), Offer::Duplicate);
        assert_eq!(pool.get(PEER), Some(&2));
        assert!(!pool.remove(PEER, 1));
        assert!(pool.remove(PEER, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_redial_and_a_new_boot_replace() {
        let now = Instant::now();
        let mut pool = Pool::default();
        pool.offer(PEER, key(1, 7, SMALL), 1, now);
        assert_eq!(pool.offer(PEER, key(2, 7, SMALL), 2, now), Offer::UpReplace(1));
        assert_eq!(pool.offer(PEER, key(3, 8, PEER), 3, now), Offer::UpReplace(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_takes_the_place_of_a_live_link_of_the_same_processes_whoever_dialled() {
        let now = Instant::now();
        for (old, new) in [(SMALL, SMALL), (PEER, SMALL), (SMALL, PEER), (PEER, PEER)] {
            let mut pool = Pool::default();
            assert!(!pool.start_renewal(PEER), "there is nothing to renew");
            pool.offer(PEER, key(1, 7, old), 1, now);
            assert!(pool.start_renewal(PEER) && !pool.start_renewal(PEER));
            let renewal = Key { renews: true, ..key(2, 7, new) };
            assert_eq!(pool.offer(PEER, renewal, 2, now), Offer::UpDrain(1), "{old} {new}");
            let other_boot = Key { renews: true, ..key(3, 8, new) };
            assert_eq!(pool.offer(PEER, other_boot, 3, now), Offer::UpReplace(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_boots_in_turn_are_a_clone_and_both_are_refused_for_a_while() {
        let now = Instant::now();
        let mut pool = Pool::default();
        pool.offer(PEER, key(1, 7, PEER), 1, now);
        pool.offer(PEER, key(2, 8, PEER), 2, now);
        let Offer::Cloned(Some(2), addresses) = pool.offer(PEER, key(3, 7, PEER), 3, now) else {
            panic!("not seen")
        };
        assert_eq!(addresses.map(|a| a.port()), [1008, 1007]);
        assert_eq!(pool.offer(PEER, key(4, 8, PEER), 4, now), Offer::StillCloned);
        assert_eq!(pool.get(PEER), None);
        // The operator stops one of them; the other is served again.
        let later = now + REFUSED;
        assert_eq!(pool.offer(PEER, key(5, 8, PEER), 5, later), Offer::Up);
        assert_eq!(pool.offer(PEER, key(6, 8, PEER), 6, later), Offer::UpReplace(5));
    }

    #[tokio::test(start_paused = true)]
    async fn restarts_are_no_clones() {
        let mut pool = Pool::default();
        for boot in 1..30 {
            let offer = pool.offer(PEER, key(boot, boot, PEER), boot, Instant::now());
            assert!(matches!(offer, Offer::Up | Offer::UpReplace(_)), "{offer:?}");
        }
    }

    #[test]
    fn one_hello_at_a_time() {
        let mut pool = Pool::<u8>::default();
        assert!(pool.start_hello(PEER));
        assert!(!pool.start_hello(PEER));
        pool.end_hello(PEER);
        assert!(pool.start_hello(PEER));
    }
}
