//! Readings of this machine as line protocol, sent to all nodes in turn, and the ledger of what
//! was acknowledged.

use std::{
    collections::BTreeSet,
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::Method;
use sysinfo::{Disks, Networks, System};
use tokio::time::{Instant, timeout};

use crate::cli::{Client, Failure, processes::Nodes};

/// A client that can wait this long should see no failure.
const WAIT: Duration = Duration::from_secs(5);

/// Sends and counts.
pub(super) struct Feed {
    clients: Vec<Option<Client>>,
    sent: Vec<u64>,
    acked: Vec<u64>,
    /// Serial numbers of acknowledged rows.
    ledger: BTreeSet<u64>,
    serial: u64,
    failed: u64,
    turn: usize,
    last_ns: i64,
    machine: System,
    disks: Disks,
    networks: Networks,
}

impl Feed {
    pub(super) fn begin(clients: Vec<Client>) -> Result<Self, Failure> {
        let nodes = clients.len();
        let unreadable = |e: sysinfo::Error| Failure::new(format!("cannot read this machine's sensors: {e}"));
        Ok(Self {
            clients: clients.into_iter().map(Some).collect(),
            sent: vec![0; nodes],
            acked: vec![0; nodes],
            ledger: BTreeSet::new(),
            serial: 0,
            failed: 0,
            turn: 0,
            last_ns: 0,
            machine: System::new_all().map_err(unreadable)?,
            disks: Disks::new_with_refreshed_list().map_err(unreadable)?,
            networks: Networks::new_with_refreshed_list().map_err(unreadable)?,
        })
    }

    pub(super) fn acked(&self) -> u64 {
        self.ledger.len() as u64
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// That node was killed: its turn goes to the others.
    pub(super) fn lost(&mut self, node: usize) {
        if let Some(client) = self.clients.get_mut(node) {
            *client = None;
        }
    }

    pub(super) fn found_again(&mut self, node: usize, client: Client) {
        if let Some(slot) = self.clients.get_mut(node) {
            *slot = Some(client);
        }
    }

    /// One reading, sent to the node whose turn it is. What it does not answer goes to the next one:
    /// the same points, so that arriving twice changes nothing. True when it was acknowledged.
    pub(super) async fn once(&mut self, nodes: &Nodes) -> bool {
        let (body, rows) = self.reading();
        let deadline = Instant::now() + WAIT;
        while Instant::now() < deadline {
            let node = self.turn % self.clients.len().max(1);
            self.turn += 1;
            let Some(client) = self.clients.get(node).and_then(Clone::clone) else { continue };
            if !nodes.is_alive(node) {
                continue;
            }
            let count = rows.clone().count() as u64;
            if let Some(sent) = self.sent.get_mut(node) {
                *sent += count;
            }
            let send =
                client.send(Method::POST, "/api/v3/write_lp?db=demo&precision=nanosecond", body.clone());
            if let Ok(Ok(_)) = timeout(WAIT, send).await {
                if let Some(acked) = self.acked.get_mut(node) {
                    *acked += count;
                }
                self.ledger.extend(rows);
                return true;
            }
        }
        self.failed += 1;
        false
    }

    /// Sends until something is acknowledged; how long after `since` that was.
    pub(super) async fn until_acknowledged(
        &mut self,
        nodes: &Nodes,
        since: Instant,
        patience: Duration,
    ) -> Result<Duration, Failure> {
        while since.elapsed() < patience {
            if self.once(nodes).await {
                return Ok(since.elapsed());
            }
        }
        Err(Failure::new("no write was acknowledged after the writer was killed"))
    }

    /// Processor, memory, disks and network as line protocol, each row with a serial number `n`.
    fn reading(&mut self) -> (String, std::ops::Range<u64>) {
        self.machine.refresh_cpu_usage();
        self.machine.refresh_memory();
        self.networks.refresh(true);
        self.disks.refresh(true);
        let host = escape(&System::host_name().unwrap_or_else(|_| "here".to_owned()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX).max(self.last_ns + 1);
        self.last_ns = now;
        let first = self.serial;
        let mut body = String::new();
        let mut row = |table: &str, tags: &str, fields: &str| {
            // Writing to a String does not fail.
            let _ = writeln!(body, "{table},host={host}{tags} {fields},n={}u {now}", self.serial);
            self.serial += 1;
        };
        for (core, cpu) in self.machine.cpus().iter().enumerate() {
            row("cpu", &format!(",core={core}"), &format!("usage={:.2}", cpu.usage()));
        }
        row(
            "mem",
            "",
            &format!("used={}i,total={}i", self.machine.used_memory(), self.machine.total_memory()),
        );
        let mut mounts = BTreeSet::new();
        for disk in &self.disks {
            let mount = escape(&disk.mount_point().to_string_lossy());
            if !mount.is_empty() && mounts.insert(mount.clone()) {
                let (free, all) = (disk.available_space(), disk.total_space());
                row("disk", &format!(",mount={mount}"), &format!("free={free}i,total={all}i"));
            }
        }
        for (name, data) in &self.networks {
            let (rx, tx) = (data.total_received(), data.total_transmitted());
            row(
                "net",
                &format!(",interface={}", escape(&name.to_string_lossy())),
                &format!("rx={rx}i,tx={tx}i"),
            );
        }
        (body, first..self.serial)
    }

    pub(super) fn head(&self) -> String {
        let mut head = format!("{:>6}", "writer");
        for node in 1..=self.clients.len() {
            let _ = write!(head, "  {:>20}", format!("n{node} sent/acked/lag"));
        }
        head
    }

    pub(super) async fn line(&self, nodes: &Nodes) -> String {
        let status = nodes.any_status().await;
        let of = |node: usize| {
            let name = nodes.name(node).to_owned();
            status.as_ref().and_then(|s| s.nodes.iter().find(|n| n.name == name))
        };
        let writer = status.as_ref().and_then(|s| s.nodes.iter().find(|n| n.is_writer));
        let mut line = format!("{:>6}", writer.map_or("-", |w| w.name.as_str()));
        for node in 0..self.clients.len() {
            let cell = if nodes.is_alive(node) {
                let lag = of(node).and_then(|n| n.lag_records).map_or("-".to_owned(), |lag| lag.to_string());
                let count = |counts: &[u64]| counts.get(node).copied().unwrap_or(0);
                format!("{}/{}/{lag}", count(&self.sent), count(&self.acked))
            } else {
                "killed".to_owned()
            };
            let _ = write!(line, "  {cell:>20}");
        }
        line
    }

    /// A question to that node, answered as a table.
    pub(super) async fn ask(&self, node: usize) -> Result<String, Failure> {
        let sql = "select core, count(*) as readings, round(avg(usage), 2) as avg_usage, max(usage) as max_usage \
                   from cpu group by core order by core";
        let answer = self.query(node, sql, "pretty").await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// How many of the acknowledged rows that node finds, at linearizable consistency.
    pub(super) async fn count_found(&self, node: usize) -> Result<u64, Failure> {
        let mut found = 0;
        for table in ["cpu", "mem", "disk", "net"] {
            let answer = self.query(node, &format!("select n from {table}"), "jsonl").await;
            let answer = match answer {
                Ok(answer) => answer,
                // A machine may have no disk or network to read.
                Err(error) if error.to_string().contains("not found") => continue,
                Err(error) => return Err(error),
            };
            for line in answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let row: serde_json::Value = serde_json::from_slice(line)
                    .map_err(|e| Failure::new(format!("the node's answer is no JSON: {e}")))?;
                found += u64::from(row["n"].as_u64().is_some_and(|n| self.ledger.contains(&n)));
            }
        }
        Ok(found)
    }

    async fn query(&self, node: usize, sql: &str, format: &str) -> Result<bytes::Bytes, Failure> {
        let Some(client) = self.clients.get(node).and_then(Option::as_ref) else {
            return Err(Failure::new("that node is not running"));
        };
        let ask =
            serde_json::json!({ "db": "demo", "q": sql, "format": format, "consistency": "linearizable" });
        Ok(client.send(Method::POST, "/api/v3/query_sql", ask.to_string()).await?.bytes().await?)
    }
}

/// A tag value.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control()) {
        if matches!(c, ' ' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
