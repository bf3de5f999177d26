//! `skein status --watch`: the status again every second, until Ctrl-C.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Client, ClientError, Failure, output, start::Stop, status::show};
use crate::{
    node::ClusterStatus,
    types::{NodeHealth, NodeId},
};

const PERIOD: Duration = Duration::from_secs(1);

/// Home; the cursor stays hidden while it jumps.
const BEGIN: &str = "\x1b[?25l\x1b[H\x1b[2J";
const HOME: &str = "\x1b[H";
/// To the end of the line, and of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const END: &str = "\x1b[?25h";

/// How it is shown.
enum Form {
    /// On a terminal: drawn over what was there.
    Screen { widths: Vec<usize>, begun: bool },
    /// A line for each change of what matters.
    Lines { last: String },
    /// A line of JSON every second.
    Json,
}

/// Runs until SIGINT or SIGTERM. A node that does not answer is waited for: whoever watches wants to see it
/// come back.
pub(super) async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let mut form = match (json, output::is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Screen { widths: Vec::new(), begun: false },
        (false, false) => Form::Lines { last: String::new() },
    };
    let mut beat = tokio::time::interval(PERIOD);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = async {
            beat.tick().await;
            client.get::<ClusterStatus>("/api/v1/cluster").await
        };
        tokio::select! {
            asked = next => output::print(&form.next(asked)?)?,
            () = stop.asked() => break,
        }
    }
    if matches!(form, Form::Screen { begun: true, .. }) { output::print(END) } else { Ok(()) }
}

impl Form {
    fn next(&mut self, asked: Result<ClusterStatus, ClientError>) -> Result<String, Failure> {
        match self {
            Self::Screen { widths, begun } => {
                let shown = match &asked {
                    Ok(status) => show(status, widths),
                    Err(error) => format!("{error}\n"),
                };
                let start = if std::mem::replace(begun, true) { HOME } else { BEGIN };
                Ok(frame(start, &shown))
            }
            Self::Lines { last } => {
                let line = asked.map_or_else(|error| error.to_string(), |status| line(&status));
                if line == *last {
                    return Ok(String::new());
                }
                let now = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
                let now = now.and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default();
                last.clone_from(&line);
                Ok(format!("{now} {line}\n"))
            }
            Self::Json => {
                let status = asked?;
                let line = serde_json::to_string(&status).map_err(|e| Failure::new(e.to_string()))?;
                Ok(format!("{line}\n"))
            }
        }
    }
}

/// Over what is there, line by line, so that nothing flickers.
fn frame(start: &str, shown: &str) -> String {
    let lines: String = shown.lines().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{start}{lines}{CLEAR_BELOW}")
}

/// What matters of a status, in one line: not what changes all the time.
fn line(status: &ClusterStatus) -> String {
    let name = |id: Option<NodeId>| {
        let node = status.nodes.iter().find(|node| Some(node.id) == id);
        node.map_or_else(|| "none".to_owned(), |node| node.name.clone())
    };
    let state = |state| match state {
        NodeHealth::Up => "up",
        NodeHealth::Down => "down",
        NodeHealth::Joining => "joining",
        NodeHealth::Draining => "draining",
    };
    let nodes: Vec<String> = status
        .nodes
        .iter()
        .map(|node| format!("{} {} {}", node.name, node.role, state(node.state)))
        .collect();
    let epoch = status.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
    let mut out = format!(
        "writer {} epoch {epoch} leader {}; {}",
        name(status.writer),
        name(status.leader),
        nodes.join(", ")
    );
    for warning in &status.warnings {
        out.push_str("; ");
        out.push_str(warning);
    }
    out.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClusterId;

    fn status(commit: u64) -> ClusterStatus {
        ClusterStatus {
            cluster_id: ClusterId([3; 16]),
            cluster_name: "home".into(),
            node_id: NodeId([1; 16]),
            leader: None,
            writer: None,
            epoch: Some(3),
            commit: Some(crate::types::Lsn::new(3, commit)),
            generation: 0,
            nodes: vec![],
            terms: vec![],
            ca: Default::default(),
            upgrade: Default::default(),
            warnings: vec!["Two voters: losing either stops writes.".into()],
        }
    }

    #[test]
    fn a_line_for_each_change_and_none_for_what_only_grows() {
        let mut lines = Form::Lines { last: String::new() };
        let first = lines.next(Ok(status(7))).unwrap();
        assert!(
            first.ends_with("Z writer none epoch 3 leader none; ; Two voters: losing either stops writes.\n"),
            "{first}"
        );
        assert_eq!(lines.next(Ok(status(8))).unwrap(), "");
        let gone = lines.next(Err(ClientError::Target("nobody".into()))).unwrap();
        assert!(gone.ends_with(" nobody\n"), "{gone}");
        assert!(lines.next(Ok(status(8))).unwrap().contains("epoch 3"));
    }

    #[test]
    fn a_screen_is_cleared_once_and_then_drawn_over() {
        let mut screen = Form::Screen { widths: vec![], begun: false };
        assert!(screen.next(Ok(status(7))).unwrap().starts_with(BEGIN));
        let again = screen.next(Ok(status(8))).unwrap();
        assert!(again.starts_with(HOME) && !again.contains("\x1b[2J") && again.ends_with(CLEAR_BELOW));
        assert!(again.contains("commit   3.8\x1b[K\n"), "{again:?}");
    }
}
