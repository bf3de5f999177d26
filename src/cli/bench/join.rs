//! `skein bench join`: real processes with real sockets and disks that join a cluster of three, one after
//! the other and many at once; and, by [`lan`](super::lan), three that find each other.
//!
//! A join counts from the start of the process until it says that it is ready: by then it has made its
//! keys, was admitted by a majority, holds its certificate and has opened its log.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    cli::{Failure, processes::Joined, table},
    types::Role,
};

use super::{
    JoinArgs,
    cluster::Cluster,
    lan::{self, Lan},
    report::{Setting, progress, spread},
    spread::Spread,
};

/// A line of progress after so many joins.
const LINE: u16 = 10;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct JoinReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    role: Role,
    /// Each when the one before it was in, and out again.
    one_by_one: Option<Spread>,
    /// All started at the same time, with one token.
    at_once: Option<AtOnce>,
    /// From nothing to three voters.
    lan: Option<Lan>,
    /// Why there is no `lan`.
    lan_skipped: Option<String>,
}

/// Nodes that joined together.
#[derive(Debug, Serialize)]
struct AtOnce {
    /// How often the one token could be used: as many as there were nodes.
    uses: u16,
    each: Option<Spread>,
    /// From the first start to the last that was in, in milliseconds.
    all_ms: f64,
}

pub(super) async fn measure(
    args: &JoinArgs,
    cluster: &mut Cluster,
    setting: Setting,
) -> Result<JoinReport, Failure> {
    let role = if args.role == "voter" { Role::Voter } else { Role::Reader };
    let nodes = cluster.nodes()?;
    let mut single = Vec::new();
    for turn in 1..=args.joins {
        for Joined { node, took } in nodes.join_at_once(1, role).await? {
            single.push(took);
            nodes.remove(node).await?;
        }
        if turn % LINE == 0 && turn < args.joins {
            progress(&format!("{turn} of {} have joined", args.joins));
        }
    }
    let mut at_once = None;
    if args.at_once > 0 {
        progress(&format!("{} nodes at once, with one token of as many uses", args.at_once));
        let began = Instant::now();
        let joined = nodes.join_at_once(args.at_once, role).await?;
        let all_ms = began.elapsed().as_secs_f64() * 1e3;
        let each: Vec<Duration> = joined.iter().map(|joined| joined.took).collect();
        at_once = Some(AtOnce { uses: args.at_once, each: Spread::of(each), all_ms });
    }
    // Nothing else is to run while a cluster is made.
    cluster.stop().await;
    let (lan, lan_skipped) = match lan::skipped(args.no_lan) {
        Some(why) => (None, Some(why)),
        None => (Some(lan::measure().await?), None),
    };
    Ok(JoinReport { bench: "join", setting, role, one_by_one: Spread::of(single), at_once, lan, lan_skipped })
}

impl JoinReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("START TO READY"),
            table::number("COUNT"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let row = |what: String, times: Option<&Spread>| {
            let count = times.map_or(0, |times| times.count);
            let mut row = vec![what, count.to_string()];
            row.extend(spread(times));
            row
        };
        let each = self.at_once.as_ref();
        let rows: Vec<_> = [
            self.one_by_one.as_ref().map(|times| row("one after the other".to_owned(), Some(times))),
            each.map(|all| row(format!("{} at once, one token", all.uses), all.each.as_ref())),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut out = format!("{}\n{}", self.setting.line(), table::render(&columns, &rows));
        if let Some(all) = each {
            out.push_str(&format!("\nall {} were in after {:.2} s\n", all.uses, all.all_ms / 1e3));
        }
        match (&self.lan, &self.lan_skipped) {
            (Some(lan), _) => out.push_str(&format!("\n{}", lan.text())),
            (None, Some(why)) => out.push_str(&format!("\nSKIPPED: three nodes on a LAN: {why}\n")),
            (None, None) => {}
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::report::tests::setting;

    #[test]
    fn joins_as_table_and_json() {
        let ms = |all: &[u64]| Spread::of(all.iter().map(|ms| Duration::from_millis(*ms)).collect());
        let lan = Lan { commands: 3, copied: 1, first_s: 2.25, ready_s: 3.5, voters_s: 7.04 };
        let mut report = JoinReport {
            bench: "join",
            setting: setting(),
            role: Role::Reader,
            one_by_one: ms(&[300, 400, 350]),
            at_once: Some(AtOnce { uses: 2, each: ms(&[900, 1_000]), all_ms: 1_012.5 }),
            lan: Some(lan),
            lan_skipped: None,
        };
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[2], "START TO READY        COUNT  P50 MS   P99 MS   MAX MS");
        assert_eq!(lines[3], "one after the other       3  350.00   400.00   400.00");
        assert_eq!(lines[4], "2 at once, one token      2  900.00  1000.00  1000.00");
        assert_eq!(lines[6], "all 2 were in after 1.01 s");
        assert!(table.contains("3 commands, 1 string copied, no address"), "{table}");
        assert!(table.ends_with("ready after 2.25 s, all three after 3.50 s, three voters after 7.04 s\n"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["one_by_one"]["p50_ms"], 350.0);
        assert_eq!((&json["lan"]["voters_s"], &json["role"]), (&7.04.into(), &"reader".into()));
        (report.lan, report.lan_skipped, report.at_once) = (None, Some("it needs root".into()), None);
        assert!(report.table().ends_with("\nSKIPPED: three nodes on a LAN: it needs root\n"));
    }
}
