//! Bringing the world from one set of faults to another.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use skeinmesh::testing::{DiskLatency, Fault as DiskFault};

use crate::{
    churn::Churn,
    clients::Order,
    faults::{Fault, Kind},
    network::Weather,
    world::World,
};

impl World {
    /// From now on these faults last, and no others.
    pub(crate) fn change(&mut self, after: Vec<Fault>) {
        if after == self.active {
            return;
        }
        let before = std::mem::replace(&mut self.active, after.clone());
        for fault in before.iter().filter(|fault| !after.contains(fault)) {
            self.end(fault.kind);
        }
        for fault in after.iter().filter(|fault| !before.contains(fault)) {
            tracing::info!(at = ?crate::machine::now(), ?fault, "begins");
            if self.begin(fault.kind) {
                self.counts.add(fault.kind.name(), 1);
            }
        }
        for (place, it) in self.stations.iter().enumerate() {
            let slow = after.iter().find_map(|fault| match fault.kind {
                Kind::SlowDisk(host, sync) if host == place => Some(DiskLatency { sync, ..it.latency }),
                _ => None,
            });
            it.host.disk().set_latency(slow.unwrap_or(it.latency));
        }
        let places = 0..self.stations.len();
        let pairs = places.clone().flat_map(|from| places.clone().map(move |to| (from, to)));
        let blocks = |pair: &(usize, usize)| after.iter().any(|fault| fault.kind.blocks(pair.0, pair.1));
        self.common.network.set_blocked(pairs.filter(blocks).collect::<BTreeSet<_>>());
        let mut weather = Weather::default();
        for fault in &after {
            match fault.kind {
                Kind::Loss(loss) => weather.loss = weather.loss.max(loss),
                Kind::Twice(twice) => weather.twice = weather.twice.max(twice),
                Kind::Reorder(held_up) => weather.held_up = weather.held_up.max(held_up),
                _ => {}
            }
        }
        self.common.network.set_weather(weather);
    }

    /// False if it cannot strike now.
    fn begin(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::PowerLoss(place) => self.strike(place, false),
            Kind::Kill(place) => self.strike(place, true),
            Kind::PowerLossOfAll => {
                (0..self.stations.len()).fold(false, |any, it| self.strike(it, false) | any)
            }
            Kind::BitFlip(place, dice) => {
                // One at a time, and nobody else leaves meanwhile: what is left must be whole.
                let others = self.churning.is_some() || self.stations.iter().any(|it| it.rotten);
                !others && self.strike(place, false) && self.stations[place].rot(dice)
            }
            Kind::Restart(place) => {
                let it = &mut self.stations[place];
                let mut life = it.host.now.lock().unwrap();
                it.stopping |= life.engine.is_some();
                if life.engine.is_some() {
                    life.orders.push_back(Order::Stop);
                }
                life.engine.is_some()
            }
            Kind::Replace(place) => {
                let free = self.churning.is_none() && self.stations.iter().all(|it| !it.rotten);
                let Some(id) = self.stations[place].host.node().filter(|_| free) else { return false };
                self.churning = Some(Churn::replace(place, id));
                true
            }
            Kind::Full(place, more) => {
                let disk = self.stations[place].host.disk();
                disk.set_limit(Some(disk.used() + more));
                true
            }
            Kind::Eio(place, after, all) => {
                let it = &mut self.stations[place];
                if it.machine.is_on() {
                    let disk = it.host.disk();
                    disk.fail_at(disk.calls() + after, DiskFault::Eio, all);
                    it.disk_fails = true;
                }
                it.machine.is_on()
            }
            Kind::Clock(place, seconds) => {
                let off = &self.stations[place].host.clock_off;
                off.store(seconds * 1_000_000_000, Ordering::Relaxed);
                true
            }
            Kind::OneWay(mouth, ear) => mouth != ear,
            Kind::Halves(_) => {
                let places = 0..self.stations.len();
                places.clone().any(|from| places.clone().any(|to| kind.blocks(from, to)))
            }
            _ => true,
        }
    }

    fn end(&mut self, kind: Kind) {
        match kind {
            Kind::Full(place, _) => {
                let disk = self.stations[place].host.disk();
                disk.set_limit(None);
                // Of this fault: a disk keeps count, and may have been exchanged.
                let refused = disk.refused();
                let before = std::mem::replace(&mut self.stations[place].refused, refused);
                self.counts.add("disk-refused", refused.saturating_sub(before));
            }
            Kind::Eio(place, ..) => self.stations[place].host.disk().clear_faults(),
            // Every other one stays wrong.
            Kind::Clock(place, seconds) if seconds % 2 == 0 => {
                self.stations[place].host.clock_off.store(0, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn strike(&mut self, place: usize, killed: bool) -> bool {
        let runs = self.stations[place].machine.is_on();
        self.switch_off(place, killed);
        runs
    }
}
