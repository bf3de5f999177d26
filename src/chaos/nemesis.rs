//! Makes faults, one after the other, as a seed decides: every kind once before any comes again.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use rustix::process::{Pid, Signal, kill_process};
use skeinmesh::cli::Failure;
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::{
    check::Violation,
    cluster::{Cluster, DISK},
    commands,
    faults::Kind,
    network,
    process::Process,
    weather::{Disturbance, between},
};

/// Share of other faults during which the network is bad too.
const BAD_WEATHER: f64 = 0.3;
/// How often every kind comes before one that never acted is a violation.
const TRIED: usize = 2;

/// See the module.
pub struct Nemesis {
    rng: StdRng,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    strikes: usize,
    /// Faults that were made and seen to act.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Nemesis {
    pub fn new(kinds: Vec<Kind>, seed: u64) -> Self {
        let counts = kinds.iter().map(|kind| (kind.word(), 0)).collect();
        Self { rng: StdRng::seed_from_u64(seed), kinds, deck: Vec::new(), strikes: 0, counts }
    }

    /// One fault from its beginning to its end, and a pause.
    pub async fn strike(&mut self, cluster: &mut Cluster) -> Result<(), Failure> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.rng);
        }
        let nothing = || Failure::new("none of the faults asked for can be made here");
        let kind = self.deck.pop().ok_or_else(nothing)?;
        self.strikes += 1;
        let companion = !kind.is_network() && self.rng.random_bool(BAD_WEATHER);
        let companion = companion.then(|| self.weather()).map(|disturbance| {
            cluster.timeline.say(&format!("{kind}, in bad weather: {disturbance:?}"));
            cluster.relay.weather().add(disturbance)
        });
        let done = if kind.is_network() {
            self.disturb(cluster, kind).await
        } else {
            self.strike_nodes(cluster, kind).await
        };
        if let Some(id) = companion {
            cluster.relay.weather().lift(id);
        }
        if done? {
            *self.counts.entry(kind.word()).or_default() += 1;
        } else {
            cluster.timeline.say(&format!("  {kind} did not act"));
        }
        cluster.revive().await?;
        let calm = self.between(200, 2_000);
        sleep(calm).await;
        Ok(())
    }

    /// Kinds of faults that were tried again and again, and never acted: nothing was tested with them.
    pub fn never_acted(&self) -> Vec<Violation> {
        let tried = self.strikes / self.kinds.len().max(1) >= TRIED;
        let never = self.counts.iter().filter(|(_, count)| tried && **count == 0);
        never.map(|(kind, _)| Violation::new("unseen", format!("the fault {kind} never acted"))).collect()
    }

    async fn disturb(&mut self, cluster: &mut Cluster, kind: Kind) -> Result<bool, Failure> {
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        let (one, others) = match kind {
            Kind::IsolateWriter => split(&all, self.writer(cluster).await),
            _ => split(&all, self.any(cluster)),
        };
        let disturbance = match kind {
            Kind::Isolate | Kind::IsolateWriter => Disturbance::Cut(between(&one, &others)),
            Kind::Deaf => Disturbance::Cut(
                between(&one, &others).into_iter().filter(|(_, to)| one.contains(to)).collect(),
            ),
            Kind::Mute => Disturbance::Cut(
                between(&one, &others).into_iter().filter(|(from, _)| one.contains(from)).collect(),
            ),
            Kind::Halves => {
                let mut mixed = all.clone();
                mixed.shuffle(&mut self.rng);
                let (left, right) = mixed.split_at(all.len() / 2);
                Disturbance::Cut(between(left, right))
            }
            Kind::Bridge => {
                let mut sides = others.clone();
                sides.shuffle(&mut self.rng);
                let (left, right) = sides.split_at(sides.len() / 2);
                Disturbance::Cut(between(left, right))
            }
            Kind::Ring => Disturbance::Cut(ring(all.len())),
            Kind::Loss => Disturbance::Loss(self.rng.random_range(0.05..0.3)),
            Kind::Delay => Disturbance::Delay(self.between(20, 150), self.between(10, 150)),
            Kind::Twice => Disturbance::Twice(self.rng.random_range(0.05..0.5)),
            _ => Disturbance::Flip(self.rng.random_range(0.001..0.05)),
        };
        let hold = self.between(1_000, 8_000);
        cluster.timeline.say(&format!("{kind} for {hold:?}: {disturbance:?}"));
        let before = cluster.relay.counts().disturbed(&disturbance);
        let id = cluster.relay.weather().add(disturbance.clone());
        sleep(hold).await;
        cluster.relay.weather().lift(id);
        Ok(cluster.relay.counts().disturbed(&disturbance) > before)
    }

    async fn strike_nodes(&mut self, cluster: &mut Cluster, kind: Kind) -> Result<bool, Failure> {
        let n = match kind {
            Kind::KillWriter | Kind::PauseWriter => self.writer(cluster).await,
            _ => self.any(cluster),
        };
        let name = network::name(n);
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        match kind {
            Kind::Kill | Kind::KillWriter => {
                let hold = self.between(0, 3_000);
                cluster.timeline.say(&format!("{kind} {name}, away for {hold:?}"));
                cluster.kill(&[n]).await?;
                sleep(hold).await;
                cluster.start(&[n]).await?;
                Ok(true)
            }
            Kind::KillAll => {
                cluster.timeline.say(&format!("{kind}"));
                cluster.kill(&all).await?;
                cluster.start(&all).await?;
                Ok(true)
            }
            Kind::Pause | Kind::PauseWriter => {
                let hold = self.between(500, 8_000);
                cluster.timeline.say(&format!("{kind} {name} for {hold:?}"));
                signal(cluster, n, Signal::STOP);
                sleep(hold).await;
                signal(cluster, n, Signal::CONT);
                Ok(true)
            }
            Kind::Full => self.fill(cluster, n).await,
            Kind::Rolling => {
                cluster.timeline.say(&format!("{kind} restart"));
                for n in all {
                    cluster.stop(n).await?;
                    cluster.start(&[n]).await?;
                }
                Ok(true)
            }
            Kind::Replace => {
                cluster.timeline.say(&format!("{kind} {name}"));
                cluster.replace(n).await
            }
            Kind::PowerLoss => {
                let hold = self.between(0, 2_000);
                cluster.timeline.say(&format!("{kind} of {name}, away for {hold:?}"));
                self.lose_power(cluster, &[n], hold).await
            }
            Kind::PowerLossAll => {
                cluster.timeline.say(&format!("{kind}"));
                self.lose_power(cluster, &all, Duration::ZERO).await
            }
            Kind::SyncError | Kind::SyncDelay => self.trace(cluster, kind, n).await,
            _ => self.skew(cluster, n).await,
        }
    }

    async fn fill(&mut self, cluster: &mut Cluster, n: usize) -> Result<bool, Failure> {
        let hold = self.between(2_000, 6_000);
        cluster.timeline.say(&format!("full disk of {} for {hold:?}", network::name(n)));
        if let Some(node) = cluster.nodes.get(n) {
            node.disk.fill()?;
            sleep(hold).await;
            node.disk.free()?;
        }
        Ok(true)
    }

    async fn lose_power(
        &self,
        cluster: &mut Cluster,
        which: &[usize],
        hold: Duration,
    ) -> Result<bool, Failure> {
        for n in which {
            if let Some(node) = cluster.nodes.get(*n) {
                // See power_loss.rs.
                node.freeze().await?;
                node.disk.lose_power()?;
            }
        }
        cluster.kill(which).await?;
        for n in which {
            if let Some(node) = cluster.nodes.get(*n) {
                node.disk.power_up()?;
            }
        }
        sleep(hold).await;
        cluster.start(which).await?;
        Ok(true)
    }

    /// Syncs fail, or take long, by way of strace.
    async fn trace(&mut self, cluster: &mut Cluster, kind: Kind, n: usize) -> Result<bool, Failure> {
        let Some(pid) = cluster.nodes.get(n).and_then(Process::pid) else { return Ok(false) };
        let (inject, hold) = if kind == Kind::SyncError {
            ("error=EIO".to_owned(), Duration::ZERO)
        } else {
            (format!("delay_enter={}", self.rng.random_range(20_000..400_000)), self.between(2_000, 6_000))
        };
        cluster.timeline.say(&format!("{kind} at {}: {inject}", network::name(n)));
        let mut strace = strace(pid, &inject)?;
        if kind == Kind::SyncError {
            cluster.ends(n, "whose syncs fail", DISK).await?;
            strace.kill().await?;
            cluster.start(&[n]).await?;
            return Ok(true);
        }
        sleep(hold).await;
        let traced = cluster.nodes.get(n).is_some_and(Process::is_traced);
        // SIGINT lets go of the node; SIGKILL might leave it stopped.
        if let Some(pid) = strace.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        strace.wait().await?;
        Ok(traced)
    }

    async fn skew(&mut self, cluster: &mut Cluster, n: usize) -> Result<bool, Failure> {
        let minutes = self.rng.random_range(1..50) * if self.rng.random_bool(0.5) { 1 } else { -1 };
        let hold = self.between(2_000, 6_000);
        let library = commands::faketime().unwrap_or_default();
        cluster.timeline.say(&format!("skew of {} by {minutes} min for {hold:?}", network::name(n)));
        cluster.kill(&[n]).await?;
        if let Some(node) = cluster.nodes.get_mut(n) {
            let only_the_wall = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"];
            node.before = only_the_wall.map(str::to_owned).to_vec();
            node.before.push(format!("LD_PRELOAD={}", library.display()));
            node.before.push(format!("FAKETIME={minutes:+}m"));
        }
        cluster.start(&[n]).await?;
        sleep(hold).await;
        let skewed = cluster.nodes.get(n).is_some_and(|node| node.has_loaded(&library.to_string_lossy()));
        cluster.kill(&[n]).await?;
        if let Some(node) = cluster.nodes.get_mut(n) {
            node.before.clear();
        }
        cluster.start(&[n]).await?;
        Ok(skewed)
    }

    /// What a node must come through and heal in, as long as it takes: round trips stay below the
    /// heartbeat, as the profile asks for (docs/operations.md). Longer ones come as a fault that ends.
    fn weather(&mut self) -> Disturbance {
        match self.rng.random_range(0..3) {
            0 => Disturbance::Loss(self.rng.random_range(0.01..0.15)),
            1 => Disturbance::Delay(self.between(5, 20), self.between(5, 20)),
            _ => Disturbance::Twice(self.rng.random_range(0.05..0.3)),
        }
    }

    fn any(&mut self, cluster: &Cluster) -> usize {
        self.rng.random_range(0..cluster.nodes.len())
    }

    /// The writer; if there is none, anybody.
    async fn writer(&mut self, cluster: &Cluster) -> usize {
        let any = self.any(cluster);
        cluster.writer().await.unwrap_or(any)
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least..=most))
    }
}

fn split(all: &[usize], one: usize) -> (Vec<usize>, Vec<usize>) {
    all.iter().partition(|n| **n == one)
}

/// Everything but between neighbours.
fn ring(count: usize) -> BTreeSet<(usize, usize)> {
    let neighbours = |a: usize, b: usize| (a + 1) % count == b || (b + 1) % count == a;
    let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
    pairs.filter(|(a, b)| a != b && !neighbours(*a, *b)).collect()
}

fn signal(cluster: &Cluster, n: usize, signal: Signal) {
    if let Some(node) = cluster.nodes.get(n) {
        node.signal(signal);
    }
}

fn strace(pid: u32, inject: &str) -> Result<Child, Failure> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"]);
    command.arg(format!("inject=fsync,fdatasync:{inject}")).args(["-p", &pid.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    Ok(command.spawn()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_never_acts_is_seen() {
        let mut nemesis = Nemesis::new(vec![Kind::Kill, Kind::Skew], 1);
        nemesis.counts.insert("kill", 2);
        nemesis.strikes = 3;
        assert_eq!(nemesis.never_acted(), []);
        nemesis.strikes = 4;
        assert_eq!(nemesis.never_acted(), [Violation::new("unseen", "the fault skew never acted")]);
        nemesis.counts.insert("skew", 1);
        assert_eq!(nemesis.never_acted(), []);
        assert_eq!(Nemesis::new(Vec::new(), 1).never_acted(), []);
    }

    #[test]
    fn in_a_ring_each_hears_two() {
        let cut = ring(5);
        for a in 0..5 {
            assert_eq!((0..5).filter(|b| *b != a && !cut.contains(&(a, *b))).count(), 2);
        }
        assert!(ring(3).is_empty());
        assert_eq!(split(&[0, 1, 2], 1), (vec![1], vec![0, 2]));
    }
}
