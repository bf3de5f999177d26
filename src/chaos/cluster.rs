//! The nodes together: forming them, what they say of themselves, replacing one, and healing.

use std::{path::Path, time::Duration};

use hyper::Method;
use rustix::process::Signal;
use serde_json::Value;
use skeinmesh::{
    cli::{ClientError, Failure},
    node::ClusterStatus,
    types::{NodeHealth, Role},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    check::Violation,
    disk::{self, Disk},
    http::Connections,
    network,
    process::{Ended, Process},
    relay::Relay,
    timeline::Timeline,
};

/// Until a started node is a member and answers.
const READY: Duration = Duration::from_secs(60);
/// Until a new node votes.
const VOTES: Duration = Duration::from_secs(60);
/// Until a node that was told to stop, or has to, has ended.
const STOP: Duration = Duration::from_secs(25);
/// After the last fault: until every node takes a write (I10).
const WRITES: Duration = Duration::from_secs(10);
/// After the last fault: until all nodes hold the same (I10).
const LEVEL: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
/// The exit code of a node whose disk failed.
pub const DISK: i32 = 74;

/// See the module.
pub struct Cluster {
    pub nodes: Vec<Process>,
    pub relay: Relay,
    pub timeline: Timeline,
    /// Found beside what the clients saw.
    pub violations: Vec<Violation>,
    patience: f64,
}

impl Cluster {
    /// Disks and relay of so many nodes, none of which runs.
    pub fn prepare(
        count: usize,
        home: &Path,
        disks: disk::Kind,
        relay: Relay,
        patience: f64,
    ) -> Result<Self, Failure> {
        let make = |n| Ok(Process::new(n, Disk::make(home, &network::name(n), disks)?, home));
        let nodes = (0..count).map(make).collect::<Result<_, Failure>>()?;
        Ok(Self { nodes, relay, timeline: Timeline::new(home)?, violations: Vec::new(), patience })
    }

    /// Makes one cluster of them.
    pub async fn form(&mut self) -> Result<(), Failure> {
        let ready = self.scaled(READY);
        if let Some(first) = self.nodes.first_mut() {
            first.launch(&["--new-cluster"], None).await?;
            first.ready(ready).await?;
        }
        for n in 1..self.nodes.len() {
            self.join(n, 0).await?;
        }
        let voters = self.until(self.scaled(VOTES), async |cluster| {
            let status = cluster.status(0).await?;
            let voters = status.nodes.iter().filter(|node| node.role == Role::Voter).count();
            (status.writer.is_some() && voters == cluster.nodes.len()).then_some(())
        });
        voters.await.ok_or_else(|| Failure::new("the nodes did not form a cluster"))
    }

    /// An API token that may do everything, made at the first node and known to every one.
    pub async fn admin_token(&self) -> Result<String, Failure> {
        let (path, name) = ("/api/v1/auth/tokens", "chaos");
        let ask = serde_json::json!({ "name": name, "scopes": ["admin"] }).to_string();
        let first = self.nodes.first().ok_or_else(|| Failure::new("no such node"))?;
        let answer: Value = first.admin().send(Method::POST, path, ask).await?.json().await?;
        let known = self.until(self.scaled(VOTES), async |cluster| {
            for node in &cluster.nodes {
                let listed = node.admin().send(Method::GET, path, String::new()).await.ok()?;
                let listed: Value = listed.json().await.ok()?;
                listed["tokens"].as_array()?.iter().find(|token| token["name"] == name)?;
            }
            Some(())
        });
        known.await.ok_or_else(|| Failure::new("an API token did not come to every node"))?;
        answer["token"].as_str().map(str::to_owned).ok_or_else(|| Failure::new("no API token was made"))
    }

    /// Starts a node without data, with a token from `door`.
    async fn join(&mut self, n: usize, door: usize) -> Result<(), Failure> {
        let ready = self.scaled(READY);
        let ask = serde_json::json!({ "role": "voter", "ttl": "10m", "uses": 1 }).to_string();
        let at = self.nodes.get(door).ok_or_else(|| Failure::new("no such node"))?;
        let answer: Value = at.admin().send(Method::POST, "/api/v1/tokens", ask).await?.json().await?;
        let token = answer["token"].as_str().unwrap_or_default().to_owned();
        let seeds: Vec<String> = (0..self.nodes.len())
            .filter(|other| *other != n)
            .map(|other| network::mesh(other).to_string())
            .collect();
        let mut flags = vec!["--join", "-"];
        seeds.iter().for_each(|seed| flags.extend(["--seed", seed.as_str()]));
        let Some(node) = self.nodes.get_mut(n) else { return Ok(()) };
        node.launch(&flags, Some(&token)).await?;
        node.ready(ready).await
    }

    /// Starts these nodes again, together. One that does not come up is a violation, and is tried
    /// once more, so that the run can go on.
    pub async fn start(&mut self, which: &[usize]) -> Result<(), Failure> {
        let patience = self.scaled(READY);
        for n in which {
            if let Some(node) = self.nodes.get_mut(*n) {
                node.launch(&[], None).await?;
            }
        }
        for n in which {
            let Some(node) = self.nodes.get_mut(*n) else { continue };
            if let Err(error) = node.ready(patience).await {
                let says = format!("{} does not come back: {error}", network::name(*n));
                self.violated("I10", says);
                let Some(node) = self.nodes.get_mut(*n) else { continue };
                node.kill().await?;
                node.launch(&[], None).await?;
                node.ready(patience).await?;
            }
        }
        Ok(())
    }

    /// Ends these processes at once. One that had ended though nobody ended it is a violation.
    pub async fn kill(&mut self, which: &[usize]) -> Result<(), Failure> {
        which.iter().filter_map(|n| self.nodes.get(*n)).for_each(|node| node.signal(Signal::KILL));
        for n in which {
            let Some(node) = self.nodes.get_mut(*n) else { continue };
            if let Some(ended) = node.kill().await? {
                self.ended_by_itself(*n, &ended);
            }
        }
        Ok(())
    }

    fn ended_by_itself(&mut self, n: usize, ended: &Ended) {
        let says = format!("{} ended by itself with code {:?}: {}", network::name(n), ended.code, ended.said);
        self.violated("exit", says);
    }

    /// Every node runs; one that ended though nobody ended it is a violation, and is started again.
    pub async fn revive(&mut self) -> Result<(), Failure> {
        for n in 0..self.nodes.len() {
            let Some(node) = self.nodes.get_mut(n) else { continue };
            if let Some(ended) = node.ended(Duration::from_millis(1)).await {
                self.ended_by_itself(n, &ended);
            }
            if self.nodes.get(n).is_some_and(|node| !node.runs()) {
                self.start(&[n]).await?;
            }
        }
        Ok(())
    }

    /// Waits until a node has ended with that code; anything else is a violation, and it is killed.
    pub async fn ends(&mut self, n: usize, why: &str, code: i32) -> Result<(), Failure> {
        let patience = self.scaled(STOP);
        let Some(node) = self.nodes.get_mut(n) else { return Ok(()) };
        let name = network::name(n);
        match node.ended(patience).await {
            Some(ended) if ended.code == Some(code) => Ok(()),
            Some(ended) => {
                self.violated(
                    "exit",
                    format!("{name}, {why}, ended with code {:?}: {}", ended.code, ended.said),
                );
                Ok(())
            }
            None => {
                node.kill().await?;
                self.violated("exit", format!("{name}, {why}, still ran after {patience:?}"));
                Ok(())
            }
        }
    }

    /// SIGTERM, and the end it should come to.
    pub async fn stop(&mut self, n: usize) -> Result<(), Failure> {
        if let Some(node) = self.nodes.get(n) {
            node.signal(Signal::TERM);
        }
        self.ends(n, "told to stop", 0).await
    }

    /// Removes a node by another, and brings it back as a new one with an empty disk. False if it was
    /// not removed.
    pub async fn replace(&mut self, n: usize) -> Result<bool, Failure> {
        let by = (n + 1) % self.nodes.len();
        let Some(id) = self.status(n).await.map(|status| status.node_id) else {
            self.timeline.say("  not replaced: it does not answer");
            return Ok(false);
        };
        let path = format!("/api/v1/nodes/{id}");
        let mut removed = false;
        for _ in 0..3 {
            let Some(node) = self.nodes.get(by) else { break };
            let answer = timeout(self.scaled(STOP), node.admin().send(Method::DELETE, &path, "")).await;
            // Asked again after an unknown outcome, there may be nobody left to remove.
            removed = match answer {
                Ok(Ok(_)) => true,
                Ok(Err(ClientError::Refused { status: 404, .. })) => true,
                Ok(Err(error)) => {
                    self.timeline.say(&format!("  not removed yet: {error}"));
                    false
                }
                Err(_) => false,
            };
            if removed {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        if !removed {
            // Not safe to take its disk: it may still be a member.
            self.timeline.say("  not replaced: the cluster did not let it go");
            return Ok(false);
        }
        self.ends(n, "removed", 1).await?;
        if let Some(node) = self.nodes.get_mut(n) {
            node.renew()?;
        }
        self.join(n, by).await?;
        let count = self.nodes.len();
        let votes = self.until(self.scaled(VOTES), async |cluster| {
            let status = cluster.status(by).await?;
            let voters = status.nodes.iter().filter(|node| node.role == Role::Voter).count();
            (voters == count).then_some(())
        });
        if votes.await.is_none() {
            self.violated("I10", format!("{} was replaced and does not vote", network::name(n)));
        }
        Ok(true)
    }

    /// What a node says of the cluster, if it answers soon.
    pub async fn status(&self, n: usize) -> Option<ClusterStatus> {
        let admin = self.nodes.get(n)?.admin();
        timeout(Duration::from_secs(2), admin.get("/api/v1/cluster")).await.ok()?.ok()
    }

    /// Which node writes, as the one with the highest epoch says.
    pub async fn writer(&self) -> Option<usize> {
        let mut newest: Option<ClusterStatus> = None;
        for n in 0..self.nodes.len() {
            let Some(status) = self.status(n).await else { continue };
            if newest.as_ref().is_none_or(|known| known.epoch < status.epoch) {
                newest = Some(status);
            }
        }
        let name = newest?.nodes.into_iter().find(|node| node.is_writer)?.name;
        (0..self.nodes.len()).find(|n| network::name(*n) == name)
    }

    /// After the last fault: every node takes a write soon. How long that took.
    pub async fn takes_writes(&mut self) -> Duration {
        let (began, limit) = (Instant::now(), self.scaled(WRITES));
        let mut connections = Connections::default();
        for n in 0..self.nodes.len() {
            loop {
                let line = format!("probe,at=n{n} v=1i\n");
                let sent = connections.write(n, &line, Some("quorum"), None, limit).await;
                // A write that is taken too late is no better than one that is not.
                let taken = sent.is_ok_and(|answer| answer.status == 204);
                if taken && began.elapsed() <= limit {
                    break;
                }
                if taken || began.elapsed() > limit {
                    let says = format!("{} takes no write {limit:?} after the last fault", network::name(n));
                    self.violated("I10", says);
                    break;
                }
                sleep(POLL).await;
            }
        }
        began.elapsed()
    }

    /// After the last fault, without writes: all nodes are up, vote and have applied the same. How
    /// long that took.
    pub async fn becomes_level(&mut self) -> Duration {
        let (began, limit) = (Instant::now(), self.scaled(LEVEL));
        let count = self.nodes.len();
        let level = self.until(limit, async |cluster| {
            let mut positions = Vec::new();
            for n in 0..count {
                let status = cluster.status(n).await?;
                let good = |node: &&skeinmesh::node::NodeReport| {
                    node.role == Role::Voter && node.state == NodeHealth::Up && node.applied == status.commit
                };
                let all = status.nodes.len() == count && status.nodes.iter().filter(good).count() == count;
                positions.push((status.writer, status.commit));
                if !all {
                    return None;
                }
            }
            positions.dedup();
            (positions.len() == 1).then_some(())
        });
        if level.await.is_none() {
            let mut says = format!("the nodes are not level {limit:?} after the last fault");
            for n in 0..count {
                let status = self.status(n).await;
                let nodes = status.map(|status| (status.epoch, status.commit, status.nodes));
                says.push_str(&format!("\n  {} says {nodes:?}", network::name(n)));
            }
            self.violated("I10", says);
        }
        began.elapsed()
    }

    pub fn violated(&mut self, check: &'static str, says: String) {
        let violation = Violation::new(check, says);
        self.timeline.say(&format!("VIOLATION {violation}"));
        self.violations.push(violation);
    }

    /// A bound on healing, on this machine.
    pub fn scaled(&self, bound: Duration) -> Duration {
        bound.mul_f64(self.patience)
    }

    async fn until<T>(&self, limit: Duration, ask: impl AsyncFn(&Self) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = ask(self).await {
                return Some(answer);
            }
            if Instant::now() > deadline {
                return None;
            }
            sleep(POLL).await;
        }
    }
}
