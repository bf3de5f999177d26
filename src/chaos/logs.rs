//! What the nodes' own logs tell that no client sees: which process took office in which epoch, and
//! alarms that must never ring.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use skeinmesh::types::Epoch;

use crate::history::History;

/// Of the name of a node's log; before it stands the name of the node and its disk.
pub const EXTENSION: &str = "log";
/// How a node says that it holds an office.
const OFFICE: &str = "took office as writer";
/// Words of which each means that something happened that never may.
const ALARMS: [&str; 5] = [
    // Any panic, also one that ended a task and not the process.
    "panicked at",
    // A commit position that no report covers.
    "refusing to name a writer",
    "a batch is in the log a second time",
    // Chain values that differ, told by the writer.
    "follower refused",
    // A cut below what is applied.
    "refusing to serve",
];
/// Alarms that are told.
const TOLD: usize = 20;

/// Reads all logs in that directory.
pub fn read(home: &Path, history: &mut History) -> io::Result<()> {
    let mut logs: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        if is_node(&path) {
            logs.push(path);
        }
    }
    logs.sort();
    for log in logs {
        let holder = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // Also what a crash cut short.
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        note(&holder, &text, &mut history.offices, &mut history.alarms);
    }
    history.alarms.truncate(TOLD);
    Ok(())
}

/// Not the timeline, which tells again what the logs say.
fn is_node(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(EXTENSION).and_then(|it| it.strip_suffix('.'));
    stem.and_then(|it| it.strip_prefix('n')).is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()))
}

fn note(holder: &str, log: &str, offices: &mut BTreeMap<Epoch, Vec<String>>, alarms: &mut Vec<String>) {
    for line in log.lines() {
        if ALARMS.iter().any(|alarm| line.contains(alarm)) {
            alarms.push(format!("{holder}: {line}"));
        }
        if line.contains(OFFICE)
            && let Ok(said) = serde_json::from_str::<Value>(line)
            && let Some(epoch) = said["epoch"].as_u64().filter(|_| said["message"] == OFFICE)
        {
            offices.entry(epoch).or_default().push(holder.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offices_and_alarms_are_found() {
        let log = r#"{"timestamp":"t","level":"INFO","message":"following","epoch":4,"target":"a"}
{"timestamp":"t","level":"INFO","message":"took office as writer","epoch":5,"start":"5.12","target":"b"}
thread 'main' panicked at src/a.rs:7:5:
{"timestamp":"t","level":"ERROR","error":"the log of n2 has diverged","message":"follower refused"}
{"timestamp":"t","level":"INFO","message":"took office as wri"#;
        let (mut offices, mut alarms) = (BTreeMap::new(), Vec::new());
        note("n1", log, &mut offices, &mut alarms);
        note("n1-2", log, &mut offices, &mut alarms);
        assert_eq!(offices, [(5, vec!["n1".to_owned(), "n1-2".to_owned()])].into());
        assert_eq!(alarms.len(), 4);
        assert!(is_node(Path::new("/x/n1.log")) && is_node(Path::new("/x/n1-2.log")));
        assert!(!is_node(Path::new("/x/timeline.log")) && !is_node(Path::new("/x/n1.img")));
        assert!(
            alarms[0].contains("n1: thread 'main' panicked") && alarms[1].contains("diverged"),
            "{alarms:?}"
        );
    }
}
