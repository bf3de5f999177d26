//! A host with its machine: switching on and off, and what its end may be excused with.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};
use skeinmesh::{
    testing::DiskLatency,
    types::{ClusterId, NodeId},
};

use crate::{
    host::{Host, Life},
    invariants::i14,
    machine::Machine,
    platter,
};

/// One place in the network.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) host: Arc<Host>,
    pub(crate) machine: Machine,
    /// How long its disk takes when nothing is wrong with it.
    pub(crate) latency: DiskLatency,
    /// Not to be switched on before.
    pub(crate) off_until: Duration,
    /// The node that ran there last.
    pub(crate) known_as: Option<NodeId>,
    /// It was asked to stop.
    pub(crate) stopping: bool,
    /// A call to its disk may fail, or has failed, in this life.
    pub(crate) disk_fails: bool,
    /// A bit of its log has rotted: the node must say so, and be replaced.
    pub(crate) rotten: bool,
    /// The node has found that.
    pub(crate) rot_noticed: bool,
    /// How many calls its disk has refused for want of space, up to the end of the last such fault.
    pub(crate) refused: u64,
}

impl Station {
    pub(crate) fn new(host: Arc<Host>, sync_ms: u64) -> Self {
        let latency = DiskLatency { sync: Duration::from_millis(sync_ms), ..DiskLatency::default() };
        host.disk().set_latency(latency);
        Self {
            host,
            machine: Machine::default(),
            latency,
            off_until: Duration::ZERO,
            known_as: None,
            stopping: false,
            disk_fails: false,
            rotten: false,
            rot_noticed: false,
            refused: 0,
        }
    }

    pub(crate) fn switch_on(&mut self) {
        *self.host.now.lock().unwrap() = Life::default();
        (self.stopping, self.disk_fails) = (false, false);
        self.machine.start(self.host.clone().live());
    }

    /// Ends the process: it is killed, or the power goes, as `dice` says. What it had applied is
    /// noted, and what its disk comes back with is judged. True if a write may be torn.
    pub(crate) fn switch_off(
        &mut self,
        dice: Option<u64>,
        cluster: Option<ClusterId>,
        random: &mut StdRng,
    ) -> bool {
        self.machine.stop();
        let disk = self.host.disk();
        let torn = disk.torn();
        match dice {
            Some(dice) => disk.crash(dice),
            None => disk.kill(),
        }
        let torn = disk.torn() > torn;
        let mut life = std::mem::take(&mut *self.host.now.lock().unwrap());
        let mut ledger = self.host.common.ledger.lock().unwrap();
        if let Some(engine) = life.engine.take() {
            ledger.observe_contents(self.host.name, &engine);
        }
        ledger.host_died(self.host.name);
        let Some(cluster) = cluster else { return torn };
        match platter::recoveries(&disk, &self.host.dir(), cluster, dice.is_some(), random) {
            Ok(seen) => {
                ledger.violations.extend(i14::judge(self.host.name, &seen));
                let status = life.status.filter(|_| !self.rotten);
                let found = status.and_then(|status| i14::stated(self.host.name, &status, &seen.first));
                ledger.violations.extend(found);
            }
            Err(_) if self.rotten => {}
            Err(error) => {
                ledger.violated(format!("I14: the log of {} does not open: {error}", self.host.name))
            }
        }
        torn
    }

    /// Somebody puts an empty disk in.
    pub(crate) fn new_disk(&mut self) {
        self.host.new_disk();
        self.host.disk().set_latency(self.latency);
        (self.rotten, self.rot_noticed, self.known_as, self.refused) = (false, false, None, 0);
        *self.host.token.lock().unwrap() = None;
    }

    /// Whether the node says now, and did not before, that its log is damaged.
    pub(crate) fn notices_rot(&mut self) -> bool {
        let life = self.host.now.lock().unwrap();
        let says = life.status.as_ref().is_some_and(|it| it.repairing.is_some() || it.quarantined > 0);
        let first = self.rotten && !self.rot_noticed && says;
        self.rot_noticed |= first;
        first
    }

    /// Flips a bit of a record that has long been durable: in a segment behind which another one was
    /// begun. False if there is none.
    pub(crate) fn rot(&mut self, dice: u64) -> bool {
        let (disk, dir) = (self.host.disk(), self.host.dir().join("wal"));
        let first_seq = |path: &PathBuf| {
            let name = path.strip_prefix(&dir).ok()?.to_str()?;
            name.strip_suffix(".wal")?.parse::<u64>().ok()
        };
        let mut segments: Vec<_> =
            disk.files().into_iter().filter_map(|path| Some((first_seq(&path)?, path))).collect();
        segments.sort();
        segments.pop();
        let Some((_, path)) = segments.get(dice as usize % segments.len().max(1)) else { return false };
        self.rotten = disk.rot(path, dice).is_some();
        if let Some(node) = self.known_as.filter(|_| self.rotten) {
            self.host.common.ledger.lock().unwrap().epochs.rotted(node);
        }
        self.rotten
    }
}

/// A power cut or a kill.
pub(crate) fn dice(random: &mut StdRng, killed: bool) -> Option<u64> {
    let dice = random.random();
    (!killed).then_some(dice)
}
