//! The cluster that is measured: node processes of this command, or nodes that run already.

use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::time::timeout;

use crate::{
    cli::{Client, Failure, Target, processes::Nodes},
    node::ClusterStatus,
    types::Role,
};

use super::{
    ClusterArgs,
    report::{Setting, progress},
};

/// Until the nodes have formed a cluster.
const FORMED: Duration = Duration::from_secs(60);
/// Until a node has said what it sees.
const ANSWER: Duration = Duration::from_secs(5);

/// Nodes so told keep no log for who was away. Short segments, because the one being written stays.
pub(super) const NO_OLD_LOG: [(&str, &str); 2] =
    [("SKEIN_STORAGE_WAL_KEEP_BYTES", "0"), ("SKEIN_STORAGE_WAL_SEGMENT", "8MiB")];

/// See the module.
pub(super) struct Cluster {
    nodes: Option<Nodes>,
    authorities: Vec<String>,
    token: Option<String>,
    /// Of processes of this command.
    profile: Option<String>,
    /// Nodes let in as voters; those behind them are readers.
    voters: usize,
    /// A process whose processor time counts too, and what it is called.
    watched: Option<(String, u32)>,
}

/// A node's HTTP edge.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edge {
    /// The node's name.
    pub(super) name: String,
    /// Host and port.
    pub(super) authority: String,
    /// What goes into `Authorization`.
    pub(super) token: Option<String>,
}

/// Where writes can go.
pub(super) struct Places {
    pub(super) writer: Edge,
    /// A node that is not the writer.
    pub(super) other: Option<Edge>,
}

/// Processor time that each process has used so far.
pub(super) type CpuTimes = Vec<(String, Duration)>;

impl Cluster {
    /// The one that the flags name.
    pub(super) fn of(args: &ClusterArgs) -> Result<Self, Failure> {
        if args.url.is_empty() {
            return Self::own(args.nodes, &args.profile);
        }
        let authority = |url: &String| match Target::parse(url)? {
            Target::Tcp { authority } => Ok::<_, Failure>(authority),
            Target::Tls { .. } => Err(Failure::usage(format!("{url}: the bench speaks plain HTTP only"))),
            Target::Socket(path) => Err(Failure::usage(format!("{} is no URL", path.display()))),
        };
        let authorities: Vec<String> = args.url.iter().map(authority).collect::<Result<_, _>>()?;
        let token = std::env::var("SKEIN_API_TOKEN").ok().filter(|token| !token.is_empty());
        Ok(Self { nodes: None, voters: authorities.len(), authorities, token, profile: None, watched: None })
    }

    /// Processes of this command, not started yet.
    pub(super) fn own(count: u16, profile: &str) -> Result<Self, Failure> {
        let nodes = Nodes::prepare(count, "bench")?;
        let authorities: Vec<String> = (0..count.into()).map(|node| nodes.authority(node)).collect();
        let (voters, profile) = (authorities.len(), Some(profile.to_owned()));
        Ok(Self { nodes: Some(nodes), authorities, token: None, profile, voters, watched: None })
    }

    /// Another program's server, and the process that it is.
    pub(super) fn foreign(edge: &Edge, pid: Option<u32>) -> Self {
        let watched = pid.map(|pid| (edge.name.clone(), pid));
        let authorities = vec![edge.authority.clone()];
        Self { nodes: None, authorities, token: None, profile: None, voters: 0, watched }
    }

    /// Nodes that a bench starts itself, where these addresses are.
    pub(super) fn elsewhere(authorities: Vec<String>, profile: &str) -> Self {
        let (voters, profile) = (authorities.len(), Some(profile.to_owned()));
        Self { nodes: None, authorities, token: None, profile, voters, watched: None }
    }

    /// As [`Self::own`], and the log goes as soon as it is flushed, so that a newcomer needs a snapshot.
    pub(super) fn without_an_old_log(count: u16, profile: &str) -> Result<Self, Failure> {
        let mut cluster = Self::own(count, profile)?;
        cluster.nodes()?.set(&NO_OLD_LOG);
        Ok(cluster)
    }

    /// The processor time of that process counts too.
    pub(super) fn watch(&mut self, name: &str, pid: Option<u32>) {
        self.watched = pid.map(|pid| (name.to_owned(), pid));
    }

    /// As [`Self::own`], with one node more, a reader.
    pub(super) fn with_a_reader(voters: u16, profile: &str) -> Result<Self, Failure> {
        Ok(Self { voters: voters.into(), ..Self::own(voters + 1, profile)? })
    }

    /// Starts the processes, if they are of this command.
    pub(super) async fn start(&mut self) -> Result<(), Failure> {
        let Some(nodes) = &mut self.nodes else { return Ok(()) };
        progress(&format!("starting {} nodes in {}", self.authorities.len(), nodes.home().display()));
        nodes.start_first(self.profile.as_deref().unwrap_or("lan")).await?;
        nodes.join(1..self.voters, Role::Voter).await?;
        nodes.join(self.voters..self.authorities.len(), Role::Reader).await?;
        nodes.wait_until_formed(FORMED).await
    }

    /// Stops what [`Self::start`] started.
    pub(super) async fn stop(&mut self) {
        if let Some(nodes) = &mut self.nodes {
            nodes.stop().await;
        }
    }

    /// The processes, for who must kill them.
    pub(super) fn nodes(&mut self) -> Result<&mut Nodes, Failure> {
        self.nodes.as_mut().ok_or_else(|| Failure::new("the nodes are not this command's to kill"))
    }

    /// What a figure means nothing without.
    pub(super) fn setting(&self) -> Result<Setting, Failure> {
        let load = System::load_average().map_err(unreadable)?;
        Ok(Setting {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            load_average: load.one,
            nodes: self.authorities.len(),
            own_nodes: self.profile.is_some(),
            profile: self.profile.clone(),
        })
    }

    /// Asks every node who writes.
    pub(super) async fn places(&self) -> Result<Places, Failure> {
        let (mut writer, mut other, mut elsewhere) = (None, None, None);
        for authority in &self.authorities {
            let client = Client::new(Target::Tcp { authority: authority.clone() }, self.token.clone());
            let status: ClusterStatus = timeout(ANSWER, client.get("/api/v1/cluster"))
                .await
                .map_err(|_| Failure::new(format!("http://{authority} does not answer")))??;
            let me = status.nodes.iter().find(|node| node.id == status.node_id);
            let name = me.map_or_else(|| authority.clone(), |node| node.name.clone());
            let edge = Edge { name, authority: authority.clone(), token: self.token.clone() };
            if status.writer == Some(status.node_id) {
                writer = Some(edge);
            } else {
                elsewhere = status.nodes.iter().find(|node| node.is_writer).map(|node| node.name.clone());
                other.get_or_insert(edge);
            }
        }
        match (writer, elsewhere) {
            (Some(writer), _) => Ok(Places { writer, other }),
            (None, Some(name)) => {
                Err(Failure::new(format!("the writer is {name}: give its --url too (see skein status)")))
            }
            (None, None) => Err(Failure::new("the cluster has no writer; see skein status")),
        }
    }

    /// Processor time of each node and of this command; `None` for nodes of somebody else.
    pub(super) fn cpu(&self) -> Result<Option<CpuTimes>, Failure> {
        let mut wanted = self.nodes.as_ref().map_or_else(Vec::new, Nodes::processes);
        wanted.extend(self.watched.clone());
        if wanted.is_empty() {
            return Ok(None);
        }
        wanted.push(("bench".to_owned(), std::process::id()));
        let pids: Vec<Pid> = wanted.iter().map(|(_, pid)| Pid::from_u32(*pid)).collect();
        let mut system = System::new().map_err(unreadable)?;
        let kind = ProcessRefreshKind::nothing().with_cpu();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, kind);
        let time = |(name, pid): (String, u32)| {
            let process = system.process(Pid::from_u32(pid))?;
            Some((name, Duration::from_millis(process.accumulated_cpu_time())))
        };
        Ok(Some(wanted.into_iter().filter_map(time).collect()))
    }
}

impl ClusterArgs {
    /// Of a bench that has a cluster of its own in any case.
    pub(super) fn own(nodes: u16, profile: &str, ack: &str) -> Self {
        let (profile, ack, database) = (profile.to_owned(), ack.to_owned(), "bench".to_owned());
        Self { url: Vec::new(), nodes, profile, database, ack, json: false }
    }
}

pub(super) fn unreadable(error: sysinfo::Error) -> Failure {
    Failure::new(format!("cannot read what this machine does: {error}"))
}
