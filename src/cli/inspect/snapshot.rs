//! `skein inspect snapshot`: the raft snapshot, and what has come of an engine snapshot that is
//! being fetched.

use serde::Serialize;

use super::{PlaceArgs, manifest, raft};
use crate::{
    cli::{Failure, output},
    engine::columnar::survey::{ManifestSurvey, survey as checkpoint},
    raft::{SnapshotSurvey, survey},
};

pub(super) async fn run(args: PlaceArgs) -> Result<(), Failure> {
    let (dir, disk) = args.open()?;
    let (raft, incoming) = (dir.path().join("raft"), dir.path().join("incoming"));
    let taken = match raft.is_dir() {
        true => survey(disk.clone(), &raft).await.map_err(|e| Failure::disk(e.to_string()))?.snapshot,
        false => None,
    };
    let fetched = checkpoint(&*disk, &incoming, false).await.map_err(|e| Failure::disk(e.to_string()))?;
    if args.json {
        output::json(&Report::of(taken.as_ref(), fetched.as_ref()))
    } else {
        output::print(&show(taken.as_ref(), fetched.as_ref()))
    }
}

fn show(taken: Option<&SnapshotSurvey>, fetched: Option<&ManifestSurvey>) -> String {
    let mut out = match taken {
        None => "no raft snapshot\n".to_owned(),
        Some(snapshot) => {
            let (term, index) = snapshot.at.unwrap_or_default();
            format!(
                "raft snapshot\nat         {index} (term {term})\nbytes      {}\ntokens     {} to join, {} for the \
                 API\nCA key     sealed for {} members\n{}",
                snapshot.bytes,
                snapshot.tokens,
                snapshot.api_tokens,
                snapshot.sealed_ca,
                raft::show_cluster(&snapshot.cluster)
            )
        }
    };
    if let Some(fetched) = fetched {
        out.push_str("\nengine snapshot under way\n");
        out.push_str(&manifest::show(fetched));
    }
    out
}

#[derive(Debug, Serialize)]
struct Report {
    raft: Option<RaftLine>,
    incoming: Option<manifest::Report>,
}

#[derive(Debug, Serialize)]
struct RaftLine {
    at: Option<raft::EntryLine>,
    bytes: u64,
    tokens: usize,
    api_tokens: usize,
    sealed_ca: usize,
    cluster: raft::ClusterReport,
}

impl Report {
    fn of(taken: Option<&SnapshotSurvey>, fetched: Option<&ManifestSurvey>) -> Self {
        let raft = taken.map(|snapshot| RaftLine {
            at: snapshot.at.map(raft::EntryLine::of),
            bytes: snapshot.bytes,
            tokens: snapshot.tokens,
            api_tokens: snapshot.api_tokens,
            sealed_ca: snapshot.sealed_ca,
            cluster: raft::ClusterReport::of(&snapshot.cluster),
        });
        Self { raft, incoming: fetched.map(manifest::Report::of) }
    }
}
