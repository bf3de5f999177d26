//! What [`lanes`](super::lanes) found.

use serde::Serialize;

use crate::cli::table;

use super::{
    arrival::Arrival,
    pulse::Pulse,
    report::{Load, Setting, loads, spread},
};

/// `skein bench lanes`.
#[derive(Debug, Serialize)]
pub(super) struct LanesReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    felt: Option<Felt>,
    /// Why there is nothing.
    skipped: Option<String>,
}

/// Before the reader came and while it did.
#[derive(Debug, Serialize)]
pub(super) struct Felt {
    #[serde(flatten)]
    pub(super) filled: Filled,
    /// Whose lag it is.
    pub(super) follower: String,
    pub(super) before: Pulse,
    #[serde(rename = "while")]
    pub(super) meanwhile: Pulse,
    pub(super) ingest_before: Load,
    pub(super) ingest_while: Load,
    /// Voters that have voted in raft in between: more than 0 means elections.
    pub(super) votes_changed: usize,
    pub(super) arrival: Arrival,
    pub(super) fetched_mb_per_s: f64,
    /// While it fetched; `None` if all came at once.
    pub(super) writer_link: Option<LinkUse>,
}

/// What there was before.
#[derive(Debug, Serialize)]
pub(super) struct Filled {
    /// Of every link, in either direction.
    pub(super) link_mbit_per_s: f64,
    /// Written before.
    pub(super) rows: u64,
}

/// What the writer sent, of all kinds.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct LinkUse {
    pub(super) mbit_per_s: f64,
    /// Of what the link can carry.
    pub(super) share: f64,
    /// Packets that found its queue full.
    pub(super) dropped: u64,
}

impl LanesReport {
    /// Or why there is nothing.
    pub(super) fn new(setting: Setting, felt: Result<Felt, String>) -> Self {
        let (felt, skipped) = match felt {
            Ok(felt) => (Some(felt), None),
            Err(why) => (None, Some(why)),
        };
        Self { bench: "lanes", setting, felt, skipped }
    }

    pub(super) fn table(&self) -> String {
        let line = self.setting.line();
        match (&self.felt, &self.skipped) {
            (Some(felt), _) => format!("{line}\n{}", felt.text()),
            (None, why) => format!("{line}\nSKIPPED: {}\n", why.as_deref().unwrap_or_default()),
        }
    }
}

impl Felt {
    fn text(&self) -> String {
        let Self { filled, arrival, before, meanwhile, .. } = self;
        let columns = [
            table::text("TIME"),
            table::text("WHEN"),
            table::number("COUNT"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let lag = format!("acknowledged to applied at {}", self.follower);
        let mut rows = Vec::new();
        for (what, [then, now]) in [
            ("status of all, the slowest", [&before.round, &meanwhile.round]),
            ("majority confirms the writer", [&before.confirmed, &meanwhile.confirmed]),
            ("smoothed round trip to voters", [&before.smoothed, &meanwhile.smoothed]),
            (lag.as_str(), [&before.lag, &meanwhile.lag]),
        ] {
            for (when, times) in [("before", then), ("while", now)] {
                let count = times.as_ref().map_or(0, |times| times.count);
                let mut row = vec![what.to_owned(), when.to_owned(), count.to_string()];
                row.extend(spread(times.as_ref()));
                rows.push(row);
            }
        }
        let mut out = format!(
            "links of {:.0} Mbit/s; {} rows, then ingest before a reader comes and while it does\n\n{}\n{}\n",
            filled.link_mbit_per_s,
            filled.rows,
            table::render(&columns, &rows),
            loads(&[&self.ingest_before, &self.ingest_while])
        );
        out.push_str(&format!(
            "{} of the voters voted meanwhile; leader, writer or epoch changed {} times before and {} while; \
             unanswered {} and {}, unconfirmed {} and {}\n",
            self.votes_changed,
            before.changes,
            meanwhile.changes,
            before.unanswered,
            meanwhile.unanswered,
            before.unconfirmed,
            meanwhile.unconfirmed,
        ));
        let level =
            arrival.level_s.map_or_else(|| "not level".to_owned(), |s| format!("level after {s:.2} s"));
        out.push_str(&format!(
            "the reader was ready after {:.2} s, had {:.1} MB of files after {:.2} s ({:.1} MB/s) and was {level}\n",
            arrival.ready_s,
            arrival.bytes as f64 / 1e6,
            arrival.here_s,
            self.fetched_mb_per_s,
        ));
        if let Some(link) = &self.writer_link {
            out.push_str(&format!(
                "while it fetched, the writer sent {:.0} Mbit/s, {:.0} % of its link, and the queue dropped {} packets\n",
                link.mbit_per_s,
                link.share * 1e2,
                link.dropped
            ));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            report::tests::{load, setting},
            spread::Spread,
        },
        *,
    };

    #[test]
    fn felt_as_table_and_json() {
        let pulse = |ms: u64| Pulse {
            round: Spread::of(vec![Duration::from_millis(ms)]),
            confirmed: Spread::of(vec![Duration::from_millis(ms + 1)]),
            unanswered: ms,
            ..Pulse::default()
        };
        let felt = Felt {
            filled: Filled { link_mbit_per_s: 400.0, rows: 9 },
            follower: "n2".into(),
            before: pulse(1),
            meanwhile: pulse(7),
            ingest_before: load("n1", "before"),
            ingest_while: load("n1", "while"),
            votes_changed: 0,
            arrival: Arrival { ready_s: 0.5, bytes: 30_000_000, here_s: 2.0, level_s: None },
            fetched_mb_per_s: 20.0,
            writer_link: Some(LinkUse { mbit_per_s: 320.0, share: 0.8, dropped: 5 }),
        };
        let report = LanesReport::new(setting(), Ok(felt));
        let table = report.table();
        for part in [
            "\nlinks of 400 Mbit/s; 9 rows, ",
            "\nstatus of all, the slowest     while       1    7.00    7.00    7.00\n",
            "\nacknowledged to applied at n2  before      0       -       -       -\n",
            "\n0 of the voters voted meanwhile; leader, writer or epoch changed 0 times before and 0 while; unanswered 1 and 7, ",
            "\nthe reader was ready after 0.50 s, had 30.0 MB of files after 2.00 s (20.0 MB/s) and was not level\n",
            " 320 Mbit/s, 80 % of its link, and the queue dropped 5 packets\n",
        ] {
            assert!(table.contains(part), "{part} is not in {table}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["felt"]["while"]["confirmed"]["p99_ms"], 8.0);
        let skipped = LanesReport::new(setting(), Err("no root".into()));
        assert!(skipped.table().ends_with("\nSKIPPED: no root\n"));
    }
}
