//! A change of membership from beginning to end, as an operator makes it: a member is removed, its
//! machine gets an empty disk and a new token, and comes back as somebody else.

use std::time::Duration;

use rand::Rng;
use skeinmesh::types::{NodeId, Role};

use crate::{clients::Order, machine, world::World};

/// Before an operator whose command has failed, or said nothing, tries again.
const AGAIN: Duration = Duration::from_millis(1_500);
/// How long a removed node may take to notice.
const LEAVE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Churn {
    pub(crate) place: usize,
    stage: Stage,
    asked: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Somebody is told to remove it, until the cluster has.
    Remove(NodeId),
    /// It is removed; since then it may notice.
    Leave(Duration),
    /// Somebody is asked for a token, until there is one.
    Token,
    /// It comes, and becomes what it is meant to be.
    Join,
}

impl Churn {
    /// The node at that place shall be removed and replaced.
    pub(crate) fn replace(place: usize, id: NodeId) -> Self {
        Self { place, stage: Stage::Remove(id), asked: None }
    }

    /// A node shall come to that place.
    pub(crate) fn join(place: usize) -> Self {
        Self { place, stage: Stage::Token, asked: None }
    }

    /// The machine stays switched off, that with a rotten disk from the moment on that it was noticed.
    pub(crate) fn holds_off(&self, place: usize, rotten: bool) -> bool {
        self.place == place && (self.stage == Stage::Token || (rotten && self.removes(place)))
    }

    /// It may learn that it is removed.
    pub(crate) fn removes(&self, place: usize) -> bool {
        self.place == place && matches!(self.stage, Stage::Remove(_) | Stage::Leave(_))
    }
}

impl World {
    /// Takes the change that is under way further.
    pub(crate) fn churn(&mut self) {
        let Some(mut churn) = self.churning.take() else { return };
        let (place, now) = (churn.place, machine::now());
        let due = churn.asked.is_none_or(|asked| now >= asked + AGAIN);
        let mut done = false;
        match churn.stage {
            Stage::Remove(id) => {
                if self.views().any(|view| view.removed.contains_key(&id)) {
                    self.counts.add("removed", 1);
                    churn.stage = Stage::Leave(now);
                } else if due {
                    churn.asked = Some(now);
                    self.ask(place, Order::Remove(id));
                }
            }
            Stage::Leave(since) => {
                if !self.stations[place].machine.is_on() || now > since + LEAVE {
                    self.switch_off(place, true);
                    self.stations[place].new_disk();
                    churn = Churn::join(place);
                }
            }
            Stage::Token => {
                let made = self.stations.iter().find_map(|it| it.host.now.lock().unwrap().made_token.take());
                if let Some(token) = made {
                    *self.stations[place].host.token.lock().unwrap() = Some(token);
                    churn.stage = Stage::Join;
                } else if due {
                    churn.asked = Some(now);
                    self.ask(place, Order::Token(self.stations[place].host.role));
                }
            }
            Stage::Join => {
                let role = self.stations[place].host.role;
                let is_there = |id: NodeId| {
                    self.views().any(|view| match role {
                        Role::Voter => view.voters.len() == 1 && view.is_voter(id),
                        _ => view.learners.contains(&id),
                    })
                };
                done = self.stations[place].host.node().is_some_and(is_there);
            }
        }
        if done {
            self.counts.add("joined", 1);
            if self.stations[place].host.role == Role::Voter {
                self.counts.add("promoted", 1);
            }
        } else {
            self.churning = Some(churn);
        }
    }

    /// Orders something of some node that runs, other than the one at that place.
    fn ask(&mut self, not: usize, order: Order) {
        let able: Vec<usize> = (0..self.stations.len())
            .filter(|it| *it != not && self.stations[*it].host.now.lock().unwrap().view.is_some())
            .collect();
        if !able.is_empty() {
            let it = able[self.random.random_range(0..able.len())];
            self.stations[it].host.now.lock().unwrap().orders.push_back(order);
        }
    }
}
