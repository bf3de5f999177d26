//! Who has what on disk, as the writer sees it: the commit position and the lease follow.
//!
//! Pure: fed with acks and times, asked for positions. Only acks of the writer's own stream epoch
//! are fed in; only records of its own epoch count for a commit (older ones ride along); learners
//! never count; while membership is joint every count needs a majority of both sets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::{Duration, Instant};

use crate::types::{Epoch, Lsn, NodeId, is_majority};

/// Rounds remembered: far more than can be under way within a lease.
const ROUNDS: usize = 1024;

/// Acks of one term of office.
#[derive(Debug)]
pub struct Acks {
    epoch: Epoch,
    start: u64,
    me: NodeId,
    voters: Vec<BTreeSet<NodeId>>,
    followers: BTreeMap<NodeId, Follower>,
    rounds: VecDeque<(u64, Instant)>,
    next_round: u64,
}

/// What a follower said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Follower {
    /// Its last durable record.
    pub durable: Lsn,
    /// Its last applied record.
    pub applied: Lsn,
    /// Highest lease round it has answered.
    pub round: u64,
}

impl Acks {
    /// A term of office of `me` in `epoch`, whose first record is at `start`.
    pub fn new(epoch: Epoch, start: u64, me: NodeId, voters: Vec<BTreeSet<NodeId>>) -> Self {
        Self { epoch, start, me, voters, followers: BTreeMap::new(), rounds: VecDeque::new(), next_round: 1 }
    }

    /// The voter sets from now on.
    pub fn set_voters(&mut self, voters: Vec<BTreeSet<NodeId>>) {
        self.voters = voters;
    }

    /// Notes what a follower acknowledged in this stream epoch. Positions never go back: an old
    /// message that comes late takes nothing away.
    pub fn note(&mut self, from: NodeId, durable: Lsn, applied: Lsn, round: u64) {
        let known = self.followers.entry(from).or_default();
        known.durable = known.durable.max(durable);
        known.applied = known.applied.max(applied);
        known.round = known.round.max(round);
    }

    /// What each follower said last.
    pub fn followers(&self) -> &BTreeMap<NodeId, Follower> {
        &self.followers
    }

    /// The commit position, given what the writer itself has durable (`None` once it is fenced):
    /// the highest seq that a majority has, if that record is of this epoch.
    pub fn commit(&self, own: Option<Lsn>) -> Option<Lsn> {
        #[cfg(feature = "testing")]
        if crate::types::planted::is("commit_alone") {
            return own.filter(|lsn| lsn.seq >= self.start);
        }
        let seq = self.lowest_of_majorities(|id| self.durable(id, own))?;
        // Model: own_epoch_only
        let own_epoch = seq >= self.start;
        #[cfg(feature = "testing")]
        let own_epoch = own_epoch || crate::types::planted::is("commit_old_epoch");
        own_epoch.then_some(Lsn::new(self.epoch, seq))
    }

    /// The seq up to which every voter, of both sets while membership is joint, has this log on disk;
    /// 0 while one of them has not acknowledged anything in this stream epoch, and once the writer
    /// itself is fenced (`own` is `None`).
    pub fn everywhere(&self, own: Option<Lsn>) -> u64 {
        self.voters.iter().flatten().map(|id| self.durable(id, own)).min().unwrap_or(0)
    }

    fn durable(&self, id: &NodeId, own: Option<Lsn>) -> u64 {
        let at = if *id == self.me { own } else { self.followers.get(id).map(|f| f.durable) };
        at.map_or(0, |lsn| lsn.seq)
    }

    /// Starts a lease round at `now`; its number goes out with the next appends.
    pub fn begin_round(&mut self, now: Instant) -> u64 {
        let round = self.next_round;
        self.next_round += 1;
        if self.rounds.len() == ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back((round, now));
        round
    }

    /// The newest round begun.
    pub fn round(&self) -> u64 {
        self.next_round - 1
    }

    /// When the newest round was **sent** that a majority has answered: from then on the lease
    /// counts, and that old is the freshness that a bounded-staleness read may claim.
    pub fn confirmed(&self, now: Instant) -> Option<Instant> {
        let newest = self.round();
        let answered = self.lowest_of_majorities(|id| {
            if *id == self.me { u64::MAX } else { self.followers.get(id).map_or(0, |f| f.round) }
        })?;
        if answered == u64::MAX {
            return Some(now);
        }
        let answered = answered.min(newest);
        self.rounds.iter().rev().find(|r| r.0 <= answered).map(|r| r.1)
    }

    /// True while the lease of length `term` is live at `now`.
    pub fn lease_live(&self, now: Instant, term: Duration) -> bool {
        self.confirmed(now).is_some_and(|sent| now < sent + term.mul_f64(0.9))
    }

    /// For each set the value that a majority reaches; the lowest of these.
    fn lowest_of_majorities(&self, value: impl Fn(&NodeId) -> u64) -> Option<u64> {
        // Model: both_sets_while_joint
        // Model: learners_never_count
        self.voters
            .iter()
            .map(|set| {
                let mut values: Vec<u64> = set.iter().map(&value).collect();
                #[cfg(feature = "testing")]
                if crate::types::planted::is("learners_count") {
                    values.extend(self.followers.keys().filter(|id| !set.contains(id)).map(&value));
                }
                values.sort_unstable_by(|a, b| b.cmp(a));
                (1..=set.len()).find(|have| is_majority(*have, set.len())).map_or(0, |have| values[have - 1])
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn set(ids: &[u8]) -> BTreeSet<NodeId> {
        ids.iter().map(|n| id(*n)).collect()
    }

    fn acks(voters: Vec<BTreeSet<NodeId>>) -> Acks {
        Acks::new(2, 10, id(1), voters)
    }

    fn ack(acks: &mut Acks, from: u8, epoch: u64, seq: u64, round: u64) {
        acks.note(id(from), Lsn::new(epoch, seq), Lsn::ZERO, round);
    }

    #[test]
    fn commit_needs_a_majority_in_the_own_epoch() {
        let mut acks = acks(vec![set(&[1, 2, 3])]);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), None);
        // A follower at an older record commits nothing, figure 8 of the raft paper.
        ack(&mut acks, 2, 1, 9, 0);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), None);
        ack(&mut acks, 2, 2, 10, 0);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), Some(Lsn::new(2, 10)));
        // A fenced writer no longer counts itself.
        assert_eq!(acks.commit(None), None);
        ack(&mut acks, 3, 2, 11, 0);
        assert_eq!(acks.commit(None), Some(Lsn::new(2, 10)));
    }

    #[test]
    fn learners_do_not_count_and_joint_sets_both_do() {
        let mut acks = acks(vec![set(&[1, 2, 3])]);
        ack(&mut acks, 9, 2, 12, 0);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), None);
        ack(&mut acks, 2, 2, 12, 0);
        acks.set_voters(vec![set(&[1, 2, 3]), set(&[1, 2, 3, 4])]);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), None);
        ack(&mut acks, 4, 2, 11, 0);
        assert_eq!(acks.commit(Some(Lsn::new(2, 12))), Some(Lsn::new(2, 11)));
    }

    #[test]
    fn everywhere_is_on_every_voter_of_both_sets() {
        let mut acks = acks(vec![set(&[1, 2, 3])]);
        let own = Some(Lsn::new(2, 12));
        ack(&mut acks, 2, 2, 12, 0);
        // The third has not been heard in this office; what it had before counts for nothing.
        assert_eq!(acks.everywhere(own), 0);
        ack(&mut acks, 3, 1, 9, 0);
        assert_eq!(acks.everywhere(own), 9);
        ack(&mut acks, 3, 2, 11, 0);
        assert_eq!(acks.everywhere(own), 11);
        assert_eq!(acks.everywhere(Some(Lsn::new(2, 10))), 10);
        assert_eq!(acks.everywhere(None), 0);
        // Learners do not count until they vote, in either set.
        ack(&mut acks, 4, 2, 10, 0);
        assert_eq!(acks.everywhere(own), 11);
        acks.set_voters(vec![set(&[1, 2, 3]), set(&[1, 2, 3, 4])]);
        assert_eq!(acks.everywhere(own), 10);
        acks.set_voters(vec![set(&[1, 2, 3, 5]), set(&[1, 2, 3])]);
        assert_eq!(acks.everywhere(own), 0);
        acks.set_voters(vec![set(&[1])]);
        assert_eq!(acks.everywhere(own), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn lease_counts_from_the_send_time_of_an_answered_round() {
        let term = Duration::from_millis(300);
        let mut acks = acks(vec![set(&[1, 2, 3])]);
        let sent = Instant::now();
        let round = acks.begin_round(sent);
        assert!(!acks.lease_live(sent, term));
        tokio::time::advance(Duration::from_millis(200)).await;
        ack(&mut acks, 2, 2, 10, round);
        assert!(acks.lease_live(Instant::now(), term));
        // 0.9 of the term after the round was sent, not after it was answered.
        tokio::time::advance(Duration::from_millis(71)).await;
        assert!(!acks.lease_live(Instant::now(), term));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_voter_is_its_own_majority() {
        let acks = acks(vec![set(&[1])]);
        assert!(acks.lease_live(Instant::now(), Duration::from_millis(300)));
        assert_eq!(acks.commit(Some(Lsn::new(2, 15))), Some(Lsn::new(2, 15)));
    }
}
