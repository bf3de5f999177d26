//! `skein inspect raft`.

use serde::Serialize;

use super::PlaceArgs;
use crate::{
    cli::{
        Failure, output,
        table::{or_dash, render, text},
    },
    raft::{LogAt, RaftSurvey, survey},
    types::{ClusterView, Member},
};

pub(super) async fn run(args: PlaceArgs) -> Result<(), Failure> {
    let (dir, disk) = args.open()?;
    let raft = dir.path().join("raft");
    if !raft.is_dir() {
        return Err(Failure::new(format!("{} holds no raft log", dir.path().display())));
    }
    let survey = survey(disk, &raft).await.map_err(|e| Failure::disk(e.to_string()))?;
    if args.json { output::json(&Report::of(&survey)) } else { output::print(&show(&survey)) }
}

fn show(survey: &RaftSurvey) -> String {
    let at = |place: Option<LogAt>| or_dash(place.map(|(term, index)| format!("{index} (term {term})")));
    let mut out = format!(
        "vote       {}\nfirst      {}\nlast       {}\ncommitted  {}\npurged     {}\nsnapshot   {}\n",
        or_dash(survey.vote.as_deref()),
        at(survey.first),
        at(survey.last),
        at(survey.committed),
        at(survey.purged),
        at(survey.snapshot.as_ref().and_then(|snapshot| snapshot.at)),
    );
    if survey.torn > 0 {
        out.push_str(&format!("torn end   {} bytes, cut at the next start\n", survey.torn));
    }
    out.push('\n');
    out.push_str(&show_cluster(&survey.cluster));
    out
}

/// The cluster as some entry made it.
pub(super) fn show_cluster(view: &ClusterView) -> String {
    let writer =
        view.writer.map(|office| format!("{}, epoch {}, boot {:?}", office.node, office.epoch, office.boot));
    let mut out = format!(
        "cluster    {} ({})\nmembership {}\nwriter     {}\n",
        view.name,
        view.cluster,
        view.membership,
        or_dash(writer)
    );
    for id in view.removed.keys() {
        out.push_str(&format!("removed    {id}\n"));
    }
    let columns = [text("MEMBER"), text("NAME"), text("ROLE"), text("WANTS"), text("DRAINED")];
    let row = |member: &Member| {
        let role = view.role(member);
        let drained = if view.drained.contains(&member.id) { "yes" } else { "" };
        let (id, name) = (member.id.to_string(), member.name.clone());
        vec![id, name, role.to_string(), member.role.to_string(), drained.to_owned()]
    };
    out.push('\n');
    out.push_str(&render(&columns, &view.members.values().map(row).collect::<Vec<_>>()));
    out
}

#[derive(Debug, Serialize)]
struct Report {
    vote: Option<String>,
    first: Option<EntryLine>,
    last: Option<EntryLine>,
    committed: Option<EntryLine>,
    purged: Option<EntryLine>,
    snapshot: Option<EntryLine>,
    torn_bytes: u64,
    cluster: ClusterReport,
}

/// A place in the raft log.
#[derive(Debug, Serialize)]
pub(super) struct EntryLine {
    term: u64,
    index: u64,
}

impl EntryLine {
    pub(super) fn of((term, index): LogAt) -> Self {
        Self { term, index }
    }
}

/// The cluster as some entry made it.
#[derive(Debug, Serialize)]
pub(super) struct ClusterReport {
    cluster: String,
    name: String,
    membership: String,
    voters: Vec<Vec<String>>,
    members: Vec<MemberLine>,
    removed: Vec<String>,
    writer: Option<WriterLine>,
}

#[derive(Debug, Serialize)]
struct MemberLine {
    id: String,
    name: String,
    wants: String,
    voter: bool,
    drained: bool,
}

#[derive(Debug, Serialize)]
struct WriterLine {
    node: String,
    epoch: u64,
}

impl ClusterReport {
    pub(super) fn of(view: &ClusterView) -> Self {
        let members = view.members.values().map(|member| MemberLine {
            id: member.id.to_string(),
            name: member.name.clone(),
            wants: member.role.to_string(),
            voter: view.is_voter(member.id),
            drained: view.drained.contains(&member.id),
        });
        Self {
            cluster: view.cluster.to_string(),
            name: view.name.clone(),
            membership: view.membership.to_string(),
            voters: view.voters.iter().map(|set| set.iter().map(ToString::to_string).collect()).collect(),
            members: members.collect(),
            removed: view.removed.keys().map(ToString::to_string).collect(),
            writer: view
                .writer
                .map(|office| WriterLine { node: office.node.to_string(), epoch: office.epoch }),
        }
    }
}

impl Report {
    fn of(survey: &RaftSurvey) -> Self {
        Self {
            vote: survey.vote.clone(),
            first: survey.first.map(EntryLine::of),
            last: survey.last.map(EntryLine::of),
            committed: survey.committed.map(EntryLine::of),
            purged: survey.purged.map(EntryLine::of),
            snapshot: survey.snapshot.as_ref().and_then(|snapshot| snapshot.at).map(EntryLine::of),
            torn_bytes: survey.torn,
            cluster: ClusterReport::of(&survey.cluster),
        }
    }
}
