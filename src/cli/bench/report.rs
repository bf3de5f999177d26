//! What the benches found: figures, one struct per bench for `--json`, and its table for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use super::{bodies::Format, spread::Spread};
use crate::cli::table;

/// A line about work that takes long, on standard error.
pub(super) fn progress(text: &str) {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// What a figure means nothing without.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Setting {
    pub(super) version: &'static str,
    /// `debug` or `release`.
    pub(super) build: &'static str,
    pub(super) cores: usize,
    /// Of the last minute, before the bench.
    pub(super) load_average: f64,
    pub(super) nodes: usize,
    /// True when the nodes are processes of this command, on the same cores as it is.
    pub(super) own_nodes: bool,
    /// Timeouts of own nodes.
    pub(super) profile: Option<String>,
}

impl Setting {
    pub(super) fn line(&self) -> String {
        let whose = match &self.profile {
            Some(profile) => format!("on this machine (profile {profile})"),
            None => "already running".to_owned(),
        };
        format!(
            "skein {} ({} build), {} nodes {whose}, {} cores, load {:.2} before\n",
            self.version, self.build, self.nodes, self.cores, self.load_average
        )
    }
}

/// Errors by what they were.
pub(super) type Errors = BTreeMap<String, u64>;

/// Rows per second at one node.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Load {
    pub(super) node: String,
    /// `writer` or `other`, or what else is different.
    pub(super) place: &'static str,
    /// As the node says of each write.
    pub(super) ack: String,
    pub(super) format: Format,
    pub(super) connections: u16,
    pub(super) rows_per_request: u32,
    /// Requests that were due per second, if they were not sent one behind the other: times count
    /// from when a request was due.
    pub(super) requests_per_s_wanted: Option<u32>,
    pub(super) seconds: f64,
    /// Acknowledged ones.
    pub(super) requests: u64,
    /// How many of these another node wrote.
    pub(super) forwarded: u64,
    pub(super) rows_per_s: f64,
    pub(super) mb_per_s: f64,
    pub(super) request: Option<Spread>,
    pub(super) errors: Errors,
    /// Per process; empty for nodes that are not of this command.
    pub(super) cpu: Vec<Cpu>,
    /// Of all nodes together.
    pub(super) nodes_cpu_ns_per_row: Option<f64>,
}

impl Load {
    /// Processor time of a node per row, in nanoseconds.
    pub(super) fn cpu_of(&self, node: &str) -> Option<f64> {
        self.cpu.iter().find(|cpu| cpu.process == node).map(|cpu| cpu.ns_per_row)
    }
}

/// Processor time of a process under a load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cpu {
    /// A node's name, or `bench` for this command.
    pub(super) process: String,
    pub(super) ns_per_row: f64,
    /// Cores it kept busy.
    pub(super) cores: f64,
}

/// `skein bench write`.
#[derive(Debug, Serialize)]
pub(super) struct WriteReport {
    pub(super) bench: &'static str,
    #[serde(flatten)]
    pub(super) setting: Setting,
    pub(super) writer: Load,
}

impl WriteReport {
    pub(super) fn table(&self) -> String {
        format!("{}\n{}", self.setting.line(), loads(&[&self.writer]))
    }
}

/// `skein bench forward`.
#[derive(Debug, Serialize)]
pub(super) struct ForwardReport {
    pub(super) bench: &'static str,
    #[serde(flatten)]
    pub(super) setting: Setting,
    pub(super) writer: Load,
    pub(super) other: Load,
    /// Rows per second at the other node by those at the writer.
    pub(super) rows_ratio: f64,
    /// Processor time per row, of all nodes together, likewise.
    pub(super) cpu_ratio: Option<f64>,
}

impl ForwardReport {
    pub(super) fn table(&self) -> String {
        let cpu = self.cpu_ratio.map(|ratio| format!(", at {ratio:.2} times the processor time per row"));
        format!(
            "{}\n{}\nthe other node takes {:.0} % of the rows per second of the writer{}\n",
            self.setting.line(),
            loads(&[&self.writer, &self.other]),
            self.rows_ratio * 1e2,
            cpu.unwrap_or_default()
        )
    }
}

pub(super) fn loads(loads: &[&Load]) -> String {
    let columns = [
        table::text("AT"),
        table::text("IS"),
        table::text("ACK"),
        table::text("FORMAT"),
        table::number("ROWS/S"),
        table::number("MB/S"),
        table::number("REQUESTS"),
        table::number("FORWARDED"),
        table::number("P50 MS"),
        table::number("P99 MS"),
        table::number("MAX MS"),
        table::number("ERRORS"),
    ];
    let row = |load: &&Load| {
        let mut row =
            vec![load.node.clone(), load.place.to_owned(), load.ack.clone(), load.format.as_str().into()];
        row.extend([format!("{:.0}", load.rows_per_s), format!("{:.2}", load.mb_per_s)]);
        row.extend([load.requests.to_string(), load.forwarded.to_string()]);
        row.extend(spread(load.request.as_ref()));
        row.push(load.errors.values().sum::<u64>().to_string());
        row
    };
    let mut out = table::render(&columns, &loads.iter().map(row).collect::<Vec<_>>());
    let mut rows = Vec::new();
    for load in loads {
        for cpu in &load.cpu {
            let (ns, cores) = (format!("{:.0}", cpu.ns_per_row), format!("{:.2}", cpu.cores));
            rows.push(vec![load.node.clone(), cpu.process.clone(), ns, cores]);
        }
        if let Some(ns) = load.nodes_cpu_ns_per_row {
            let cores: f64 = load.cpu.iter().filter(|cpu| cpu.process != "bench").map(|cpu| cpu.cores).sum();
            rows.push(vec![load.node.clone(), "all nodes".into(), format!("{ns:.0}"), format!("{cores:.2}")]);
        }
    }
    if !rows.is_empty() {
        let columns = [
            table::text("AT"),
            table::text("PROCESS"),
            table::number("CPU NS/ROW"),
            table::number("CORES BUSY"),
        ];
        out.push('\n');
        out.push_str(&table::render(&columns, &rows));
    }
    for load in loads {
        out.push_str(&errors(&load.node, &load.errors));
    }
    out
}

pub(super) fn errors(at: &str, errors: &Errors) -> String {
    errors.iter().map(|(what, count)| format!("{at}: {count} x {what}\n")).collect()
}

pub(super) fn spread(spread: Option<&Spread>) -> [String; 3] {
    match spread {
        Some(spread) => [spread.p50_ms, spread.p99_ms, spread.max_ms].map(|ms| format!("{ms:.2}")),
        None => ["-", "-", "-"].map(str::to_owned),
    }
}

/// One write after another at one node.
#[derive(Debug, Serialize)]
pub(super) struct Single {
    pub(super) node: String,
    pub(super) place: &'static str,
    pub(super) ack: String,
    pub(super) write: Option<Spread>,
    pub(super) errors: Errors,
}

/// `skein bench latency`.
#[derive(Debug, Serialize)]
pub(super) struct LatencyReport {
    pub(super) bench: &'static str,
    #[serde(flatten)]
    pub(super) setting: Setting,
    pub(super) places: Vec<Single>,
}

impl LatencyReport {
    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("AT"),
            table::text("IS"),
            table::text("ACK"),
            table::number("WRITES"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
            table::number("ERRORS"),
        ];
        let row = |single: &Single| {
            let count = single.write.as_ref().map_or(0, |write| write.count);
            let mut row =
                vec![single.node.clone(), single.place.into(), single.ack.clone(), count.to_string()];
            row.extend(spread(single.write.as_ref()));
            row.push(single.errors.values().sum::<u64>().to_string());
            row
        };
        let rows: Vec<_> = self.places.iter().map(row).collect();
        let mut out = format!("{}\n{}", self.setting.line(), table::render(&columns, &rows));
        self.places.iter().for_each(|single| out.push_str(&errors(&single.node, &single.errors)));
        out
    }
}

/// `skein bench failover`.
#[derive(Debug, Serialize)]
pub(super) struct FailoverReport {
    pub(super) bench: &'static str,
    #[serde(flatten)]
    pub(super) setting: Setting,
    pub(super) ack: String,
    /// From SIGKILL to the first write that a later writer acknowledged.
    pub(super) failover: Option<Spread>,
    pub(super) failovers_ms: Vec<f64>,
    /// From the start of the killed node to all voters level.
    pub(super) level_again: Option<Spread>,
    pub(super) acked_rows: u64,
    /// How many of these each node lacks at the end.
    pub(super) missing_rows: BTreeMap<String, u64>,
    /// Of writes to nodes that were not killed.
    pub(super) errors: Errors,
}

impl FailoverReport {
    /// Acknowledged rows that some node lacks: the most of any.
    pub(super) fn missing(&self) -> u64 {
        self.missing_rows.values().copied().max().unwrap_or(0)
    }

    pub(super) fn table(&self) -> String {
        let columns = [
            table::text("TIME"),
            table::text("ACK"),
            table::number("COUNT"),
            table::number("P50 MS"),
            table::number("P99 MS"),
            table::number("MAX MS"),
        ];
        let row = |what: &str, times: &Option<Spread>| {
            let count = times.as_ref().map_or(0, |times| times.count);
            let mut row = vec![what.to_owned(), self.ack.clone(), count.to_string()];
            row.extend(spread(times.as_ref()));
            row
        };
        let rows = [
            row("kill to next acknowledged write", &self.failover),
            row("restart to all voters level", &self.level_again),
        ];
        let mut out = format!("{}\n{}", self.setting.line(), table::render(&columns, &rows));
        out.push_str(&format!("\n{} rows acknowledged", self.acked_rows));
        for (node, missing) in &self.missing_rows {
            out.push_str(&format!("; {missing} missing at {node}"));
        }
        out.push('\n');
        out.push_str(&errors("nodes that were not killed", &self.errors));
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    fn ms(all: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        all.into_iter().map(Duration::from_millis).collect()
    }

    pub(in super::super) fn setting() -> Setting {
        Setting {
            version: "0.1.0",
            build: "debug",
            cores: 2,
            load_average: 1.5,
            nodes: 3,
            own_nodes: true,
            profile: Some("lan".into()),
        }
    }

    pub(in super::super) fn load(node: &str, place: &'static str) -> Load {
        Load {
            node: node.into(),
            place,
            ack: "quorum".into(),
            format: Format::LineProtocol,
            connections: 12,
            rows_per_request: 1000,
            requests_per_s_wanted: None,
            seconds: 10.0,
            requests: 123,
            forwarded: 0,
            rows_per_s: 12_300.4,
            mb_per_s: 1.066,
            request: Spread::of(ms([1, 2])),
            errors: Errors::from([("503 unavailable".to_owned(), 2)]),
            cpu: vec![
                Cpu { process: "n1".into(), ns_per_row: 4000.0, cores: 1.2 },
                Cpu { process: "bench".into(), ns_per_row: 100.0, cores: 0.1 },
            ],
            nodes_cpu_ns_per_row: Some(4000.0),
        }
    }

    #[test]
    fn loads_as_table_and_json() {
        let (writer, other) = (load("n1", "writer"), load("n2", "other"));
        let report = ForwardReport {
            bench: "forward",
            setting: setting(),
            writer,
            other,
            rows_ratio: 0.774,
            cpu_ratio: Some(1.3),
        };
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0],
            "skein 0.1.0 (debug build), 3 nodes on this machine (profile lan), 2 cores, load 1.50 before"
        );
        assert_eq!(
            lines[2],
            "AT  IS      ACK     FORMAT         ROWS/S  MB/S  REQUESTS  FORWARDED  P50 MS  P99 MS  MAX MS  ERRORS"
        );
        assert_eq!(
            lines[3],
            "n1  writer  quorum  line-protocol   12300  1.07       123          0    1.00    2.00    2.00       2"
        );
        assert_eq!(
            lines[6..8],
            ["AT  PROCESS    CPU NS/ROW  CORES BUSY", "n1  n1               4000        1.20"]
        );
        assert!(table.contains("n2: 2 x 503 unavailable\n"), "{table}");
        let last = "the other node takes 77 % of the rows per second of the writer, at 1.30 times the processor time per row";
        assert_eq!(lines.last(), Some(&last));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((json["build"].as_str(), json["writer"]["ack"].as_str()), (Some("debug"), Some("quorum")));
        assert_eq!(json["other"]["request"]["p99_ms"], 2.0);
        assert_eq!(json["other"]["errors"]["503 unavailable"], 2);
    }

    #[test]
    fn failovers_as_table_and_json() {
        let report = FailoverReport {
            bench: "failover",
            setting: setting(),
            ack: "quorum".into(),
            failover: Spread::of(ms([700, 900, 800])),
            failovers_ms: vec![700.0, 900.0, 800.0],
            level_again: None,
            acked_rows: 5000,
            missing_rows: BTreeMap::from([("n1".to_owned(), 0), ("n2".to_owned(), 3)]),
            errors: Errors::new(),
        };
        assert_eq!(report.missing(), 3);
        let table = report.table();
        let row = "kill to next acknowledged write  quorum      3  800.00  900.00  900.00\n";
        assert!(table.contains(row), "{table}");
        assert!(
            table.contains("restart to all voters level      quorum      0       -       -       -\n"),
            "{table}"
        );
        assert!(table.ends_with("5000 rows acknowledged; 0 missing at n1; 3 missing at n2\n"), "{table}");
        assert_eq!(serde_json::to_value(&report).unwrap()["missing_rows"]["n2"], 3);
    }

    #[test]
    fn single_writes_as_table() {
        let single = Single {
            node: "n2".into(),
            place: "other",
            ack: "quorum".into(),
            write: Spread::of(ms([4, 5, 6])),
            errors: Errors::new(),
        };
        let report = LatencyReport { bench: "latency", setting: setting(), places: vec![single] };
        let table = report.table();
        assert!(table.ends_with("n2  other  quorum       3    5.00    6.00    6.00       0\n"), "{table}");
    }
}
