//! One number for a world, the same for worlds that differ only in the names of nodes.
//!
//! Everything that is said about a node is hashed into a key of its own; the keys are sorted and
//! hashed with the rest. Nodes are related to each other through streams, rounds and raft commands
//! alone, so worlds with equal keys and equal rest are the same up to names.

use std::hash::{Hash, Hasher};

use super::state::{Command, NODES, Stage, State, has};

/// Multiply and rotate; quick also in a build without optimisation.
struct Mix(u64);

impl Mix {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd);
    }

    fn finish(&self) -> u64 {
        let folded = (self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        folded ^ folded >> 29
    }
}

/// The fingerprint of a world with that many nodes.
pub fn fingerprint(state: &State, nodes: usize) -> u64 {
    let mut keys = [0; NODES];
    for (node, key) in keys.iter_mut().enumerate().take(nodes) {
        *key = node_key(state, node);
    }
    keys[..nodes].sort_unstable();
    let mut hash = Mix::new();
    for key in &keys[..nodes] {
        hash.write_u64(*key);
    }
    nameless(state, &mut hash);
    hash.finish()
}

/// Everything said about `node`.
fn node_key(state: &State, node: usize) -> u64 {
    let mut hash = Mix::new();
    let this = &state.nodes[node];
    this.log.hash(&mut hash);
    let fields = [
        this.durable,
        this.on_disk,
        this.promise,
        this.promise_on_disk,
        this.session,
        this.office,
        this.view,
    ];
    hash.write_u64(u64::from_le_bytes([
        fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], this.boot,
    ]));
    hash.write_u64(this.stage as u64);
    if this.stage != Stage::None {
        this.snapshot.hash(&mut hash);
    }
    let mut word = u64::from(this.commit) << 8 | u64::from(this.applied);
    for stream in state.streams() {
        word = word << 8 | u64::from(stream.acks[node]) << 1 | u64::from(stream.owner as usize == node);
    }
    hash.write_u64(word);
    for round in &state.rounds {
        if round.epoch > 0 && has(round.answered, node) {
            let report = &round.reports[node];
            let answer = [report.epoch, report.seq, report.boot, 1];
            hash.write_u64(u64::from(u32::from_le_bytes(answer)));
        } else {
            hash.write_u64(0);
        }
    }
    let mut roles = 0u64;
    for command in &state.commands[..state.command_count as usize] {
        let role = match *command {
            Command::None => 0,
            Command::SetWriter { node: named, .. } => u64::from(named as usize == node),
            Command::Membership { old, new } => u64::from(has(old, node)) << 1 | u64::from(has(new, node)),
        };
        roles = roles << 2 | role;
    }
    hash.write_u64(roles << 1 | u64::from(has(state.read.confirmed, node)));
    if let Some((whose, log)) = state.undone_cut
        && whose as usize == node
    {
        log.hash(&mut hash);
    }
    hash.finish()
}

/// Everything that names no node.
fn nameless(state: &State, hash: &mut Mix) {
    for stream in state.streams() {
        let head = [stream.epoch, stream.boot, stream.commit, 0];
        hash.write_u64(u64::from(u32::from_le_bytes(head)));
        stream.log.hash(hash);
    }
    for round in &state.rounds {
        hash.write_u64(u64::from(round.epoch) << 8 | u64::from(round.membership));
    }
    for command in &state.commands[..state.command_count as usize] {
        hash.write_u64(match *command {
            Command::None => 0,
            Command::SetWriter { epoch, boot, .. } => 1 << 16 | u64::from(epoch) << 8 | u64::from(boot),
            Command::Membership { old, .. } => 2 << 16 | u64::from(old != 0),
        });
    }
    state.committed.hash(hash);
    for committer in state.committers {
        hash.write_u64(u64::from(committer));
    }
    let spent = [
        state.rounds_begun,
        state.writes,
        state.crashes,
        state.changes,
        state.reads,
        state.snapshots,
        state.broken.map_or(0, |broken| broken as u8 + 1),
        state.read.stream,
    ];
    hash.write_u64(u64::from_le_bytes(spent));
    let read = u64::from(state.read.index) << 8 | u64::from(state.read.required);
    hash.write_u64(u64::from(state.recoveries) << 16 | read);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::{
        explore::{nothing, search},
        protocol::{Model, Successors},
        state::Bounds,
    };
    use super::*;

    /// Worlds told apart by all that is in them are as many kinds as the search by fingerprint finds.
    #[test]
    fn names_do_not_matter_and_everything_else_does() {
        let model = Model::new(Bounds::of(3, 2, 1, 1));
        let start = State::initial(&model.bounds);
        let (mut known, mut open) = (HashSet::from([start]), vec![start]);
        let mut next = Successors::default();
        while let Some(state) = open.pop() {
            model.successors(&state, &mut next);
            open.extend(next.0.iter().map(|(_, after)| *after).filter(|after| known.insert(*after)));
        }
        let kinds: HashSet<u64> = known.iter().map(|state| fingerprint(state, 3)).collect();
        assert_eq!(kinds.len(), search(model, &[], usize::MAX, nothing).states);
        // What has been tells the first writer from the others; those two may change names.
        assert!(
            kinds.len() < known.len() && known.len() <= 2 * kinds.len(),
            "{} of {}",
            kinds.len(),
            known.len()
        );
        let mut other = start;
        other.nodes.swap(0, 1);
        assert_ne!(fingerprint(&start, 3), fingerprint(&other, 3), "who holds office is no name");
    }
}
