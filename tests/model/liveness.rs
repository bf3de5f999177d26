//! Whatever has happened: a majority that is up and hears each other can finish a failover.

use super::{
    log::{Body, Record},
    protocol::Model,
    rules::Rule,
    state::{Broken, Nodes, State, has},
};

/// `FailoverStuck` if some smallest majority, alone, cannot bring a new writer to its first commit.
pub fn failover_can_finish(model: &Model, state: &State) -> Option<Broken> {
    let membership = state.newest_membership();
    let is_quorum = |up: Nodes| model.is_quorum(&membership, up);
    let stuck = (1..1 << model.bounds.nodes).any(|up: Nodes| {
        let smallest = (0..model.bounds.nodes).all(|node| !has(up, node) || !is_quorum(up & !(1 << node)));
        smallest && is_quorum(up) && !finishes(model, state, up)
    });
    stuck.then_some(Broken::FailoverStuck)
}

/// Everybody in `up` promises, the highest takes office, the others follow it to its first record.
fn finishes(model: &Model, state: &State, up: Nodes) -> bool {
    let epoch = state.newest_register().epoch + 1;
    let nodes = || (0..model.bounds.nodes).filter(|node| has(up, *node)).map(|node| &state.nodes[node]);
    if nodes().any(|node| node.promise > epoch) {
        return false;
    }
    let reported = |log: &super::log::Log, durable: u8| (log.epoch_at(durable), durable);
    let Some(writer) = nodes().max_by_key(|node| reported(&node.log, node.durable)) else { return false };
    // The leader names nobody who lacks what somebody knows to be committed (6.4.3): an alarm, which
    // must not ring without cause.
    let best = reported(&writer.log, writer.durable);
    if nodes().any(|node| reported(&state.committed, node.commit) > best) {
        return false;
    }
    if writer.log.is_full() {
        return true; // a bound of the model, not of the protocol
    }
    let mut log = writer.log;
    log.push(Record::new(epoch, Body::Start(state.newest_membership().id)));
    nodes().all(|node| {
        let mut follower = node.log.first(log.common_prefix(&node.log));
        while follower.len() < log.len() {
            let record = log.at(follower.len() + 1);
            if record.epoch() < epoch && !model.hold(Rule::PromiseAgainstStreamEpoch) {
                return false;
            }
            follower.push(record);
        }
        follower == log
    })
}
