//! What `skein bench growth` found, as table, JSON and plot.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::{Failure, table};

use super::super::{
    plot::{self, Axes, Line},
    report::{Errors, Load, Setting, errors, spread},
    spread::Spread,
};

#[derive(Debug, Serialize)]
pub(in super::super) struct GrowthReport {
    bench: &'static str,
    #[serde(flatten)]
    setting: Setting,
    /// Rows of one table that came together.
    together: u32,
    /// By how many tables rows went to.
    pub(super) tables: Vec<Point>,
    /// By how many hosts wrote to one table.
    pub(super) series: Vec<Point>,
    pub(super) voters: Vec<Quorum>,
}

/// Rows of so many tables or hosts.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    count: u32,
    #[serde(flatten)]
    cost: Option<Cost>,
    /// Processor time per row, by that of the first point.
    ratio: Option<f64>,
    /// Why there is no cost: this does not keep the other points from being told.
    failed: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cost {
    /// Of the node, while rows went to tables and hosts that it knew.
    pub(super) cpu_ns_per_row: Option<f64>,
    /// The same before, when each body was sent for the first time.
    pub(super) first_cpu_ns_per_row: Option<f64>,
    /// Memory of the node at the end, in MiB.
    pub(super) rss_mib: Option<f64>,
    pub(super) load: Load,
}

/// A cluster of so many voters.
#[derive(Debug, Serialize)]
pub(super) struct Quorum {
    pub(super) voters: u16,
    /// Of one row, at the writer, acknowledged at level quorum.
    pub(super) write: Option<Spread>,
    /// p50 by that of the first point.
    pub(super) ratio: Option<f64>,
    pub(super) errors: Errors,
    /// `None` without a follower.
    pub(super) idle: Option<Idle>,
}

/// What the leader sends to each follower while nothing is written: frames, before QUIC makes packets of them.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    pub(super) seconds: f64,
    /// Raft, and what else is as urgent.
    pub(super) consensus_bytes_per_s: f64,
    pub(super) all_bytes_per_s: f64,
    /// By lane.
    pub(super) bytes_per_s: BTreeMap<String, f64>,
}

impl Point {
    pub(super) fn of(count: u32, cost: Result<Cost, Failure>, first: Option<&Self>) -> Self {
        let (cost, failed) = match cost {
            Ok(cost) => (Some(cost), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        let mut point = Self { count, cost, ratio: None, failed };
        let of = first.unwrap_or(&point).ns();
        point.ratio = point.ns().zip(of).map(|(ns, of)| ns / of);
        point
    }

    fn ns(&self) -> Option<f64> {
        self.cost.as_ref()?.cpu_ns_per_row
    }

    fn row(&self) -> Vec<String> {
        let whole = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
        let cost = self.cost.as_ref();
        let load = cost.map(|cost| &cost.load);
        let mut row = vec![
            self.count.to_string(),
            whole(self.ns()),
            times(self.ratio),
            whole(load.map(|load| load.rows_per_s)),
            whole(cost.and_then(|cost| cost.first_cpu_ns_per_row)),
            whole(cost.and_then(|cost| cost.rss_mib)),
        ];
        row.extend(spread(load.and_then(|load| load.request.as_ref())).into_iter().take(2));
        row.push(table::or_dash(load.map(|load| load.errors.values().sum::<u64>())));
        row
    }

    fn notes(&self, of: &str) -> String {
        let name = format!("{} {of}", self.count);
        let mut out = self.failed.as_ref().map_or_else(String::new, |why| format!("{name}: {why}\n"));
        out.extend(self.cost.as_ref().map(|cost| errors(&name, &cost.load.errors)));
        out
    }
}

impl Quorum {
    /// With its ratio to the first.
    pub(super) fn against(self, first: Option<&Self>) -> Self {
        let p50 = |quorum: &Self| quorum.write.as_ref().map(|write| write.p50_ms);
        let ratio = p50(&self).zip(p50(first.unwrap_or(&self))).map(|(p50, of)| p50 / of);
        Self { ratio, ..self }
    }
}

impl GrowthReport {
    pub(super) const fn new(setting: Setting, together: u32) -> Self {
        Self {
            bench: "growth",
            setting,
            together,
            tables: Vec::new(),
            series: Vec::new(),
            voters: Vec::new(),
        }
    }

    pub(in super::super) fn table(&self) -> String {
        let mut out = self.setting.line();
        if self.together > 1 && !self.tables.is_empty() {
            out.push_str(&format!("rows of one table come {} at a time\n", self.together));
        }
        for (head, of, points) in [("TABLES", "tables", &self.tables), ("SERIES", "series", &self.series)] {
            if !points.is_empty() {
                let columns = [
                    table::number(head),
                    table::number("CPU NS/ROW"),
                    table::number("RATIO"),
                    table::number("ROWS/S"),
                    table::number("AT FIRST NS/ROW"),
                    table::number("MIB"),
                    table::number("P50 MS"),
                    table::number("P99 MS"),
                    table::number("ERRORS"),
                ];
                let rows: Vec<_> = points.iter().map(Point::row).collect();
                out.push_str(&format!("\n{}", table::render(&columns, &rows)));
                out.extend(points.iter().map(|point| point.notes(of)));
            }
        }
        if !self.voters.is_empty() {
            out.push_str(&format!("\n{}", self.quorums()));
        }
        out
    }

    fn quorums(&self) -> String {
        let columns = [
            table::number("VOTERS"),
            table::number("WRITES"),
            table::number("P50 MS"),
            table::number("RATIO"),
            table::number("P99 MS"),
            table::number("MAX MS"),
            table::number("ERRORS"),
            table::number("IDLE RAFT B/S"),
            table::number("IDLE ALL B/S"),
        ];
        let row = |quorum: &Quorum| {
            let count = quorum.write.as_ref().map_or(0, |write| write.count);
            let [p50, p99, max] = spread(quorum.write.as_ref());
            let idle = |bytes: fn(&Idle) -> f64| {
                table::or_dash(quorum.idle.as_ref().map(|idle| format!("{:.0}", bytes(idle))))
            };
            let mut row =
                vec![quorum.voters.to_string(), count.to_string(), p50, times(quorum.ratio), p99, max];
            row.push(quorum.errors.values().sum::<u64>().to_string());
            row.extend([idle(|idle| idle.consensus_bytes_per_s), idle(|idle| idle.all_bytes_per_s)]);
            row
        };
        let rows: Vec<_> = self.voters.iter().map(row).collect();
        let mut out = table::render(&columns, &rows);
        let notes = |quorum: &Quorum| errors(&format!("{} voters", quorum.voters), &quorum.errors);
        out.extend(self.voters.iter().map(notes));
        out.push_str(
            "idle: bytes of frames per second that the leader sends to each follower, without QUIC's own\n",
        );
        out
    }

    /// The cost of a row, and below it that of a write among voters.
    pub(super) fn plot(&self) -> String {
        let rows = |name: &str, points: &[Point]| Line {
            name: name.to_owned(),
            points: points.iter().filter_map(|at| Some((f64::from(at.count), at.ns()?))).collect(),
        };
        let writes = |name: &str, ms: fn(&Spread) -> f64| Line {
            name: name.to_owned(),
            points: self
                .voters
                .iter()
                .filter_map(|at| Some((f64::from(at.voters), ms(at.write.as_ref()?))))
                .collect(),
        };
        let cost = Axes { title: "Processor time of a row", x: "tables, or series", y: "ns", log_x: true };
        let quorum =
            Axes { title: "One row, acknowledged by a majority", x: "voters", y: "ms", log_x: false };
        let mut plots = Vec::new();
        if !(self.tables.is_empty() && self.series.is_empty()) {
            let lines = [rows("tables", &self.tables), rows("series of one table", &self.series)];
            let shown: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
            plots.push(plot::svg(cost, &shown));
        }
        if !self.voters.is_empty() {
            plots.push(plot::svg(quorum, &[writes("p50", |at| at.p50_ms), writes("p99", |at| at.p99_ms)]));
        }
        plot::stacked(&plots)
    }
}

fn times(ratio: Option<f64>) -> String {
    table::or_dash(ratio.map(|ratio| format!("{ratio:.2}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::super::report::tests::{load, setting},
        *,
    };

    fn cost(ns: f64) -> Cost {
        Cost {
            cpu_ns_per_row: Some(ns),
            first_cpu_ns_per_row: Some(ns * 2.0),
            rss_mib: Some(99.7),
            load: load("n1", "tables"),
        }
    }

    fn quorum(voters: u16, ms: u64, bytes: Option<f64>) -> Quorum {
        let idle = |bytes| Idle {
            seconds: 10.0,
            consensus_bytes_per_s: bytes,
            all_bytes_per_s: bytes + 50.0,
            bytes_per_s: BTreeMap::from([("consensus".to_owned(), bytes), ("request".to_owned(), 50.0)]),
        };
        let write = Spread::of(vec![Duration::from_millis(ms)]);
        Quorum { voters, write, ratio: None, errors: Errors::new(), idle: bytes.map(idle) }
    }

    #[test]
    fn growth_as_table_json_and_plot() {
        let mut report = GrowthReport::new(setting(), 1);
        for (count, found) in
            [(1, Ok(cost(500.0))), (1000, Ok(cost(1250.0))), (10_000, Err(Failure::new("no")))]
        {
            report.tables.push(Point::of(count, found, report.tables.first()));
        }
        for one in [quorum(1, 2, None), quorum(3, 3, Some(340.4))] {
            report.voters.push(one.against(report.voters.first()));
        }
        let table = report.table();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines[..4],
            [
                "TABLES  CPU NS/ROW  RATIO  ROWS/S  AT FIRST NS/ROW  MIB  P50 MS  P99 MS  ERRORS",
                "     1         500   1.00   12300             1000  100    1.00    2.00       2",
                "  1000        1250   2.50   12300             2500  100    1.00    2.00       2",
                " 10000           -      -       -                -    -       -       -       -",
            ]
        );
        assert_eq!(
            lines[4..7],
            ["1 tables: 2 x 503 unavailable", "1000 tables: 2 x 503 unavailable", "10000 tables: no"]
        );
        assert_eq!(
            lines[8..11],
            [
                "VOTERS  WRITES  P50 MS  RATIO  P99 MS  MAX MS  ERRORS  IDLE RAFT B/S  IDLE ALL B/S",
                "     1       1    2.00   1.00    2.00    2.00       0              -             -",
                "     3       1    3.00   1.50    3.00    3.00       0            340           390",
            ]
        );
        assert!(!table.contains("SERIES"), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["tables"][1]["ratio"], &json["tables"][1]["count"]), (&2.5.into(), &1000.into()));
        assert_eq!((&json["tables"][2]["failed"], &json["series"]), (&"no".into(), &serde_json::json!([])));
        assert_eq!(json["together"], 1);
        assert_eq!(json["voters"][1]["idle"]["bytes_per_s"]["request"], 50.0);
        let plot = report.plot();
        assert_eq!(plot.matches("<polyline").count(), 3, "{plot}");
        assert!(plot.contains(">tables<") && !plot.contains("series of one table"), "{plot}");
    }
}
