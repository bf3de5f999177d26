//! Clients that write one row after the other, and remember what was acknowledged.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    http::{Target, send},
    process::Process,
};

/// How long these clients wait for an answer: Telegraf's time.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Running clients, one per node. Row `n` has `n` as its time, its client as tag, in table `feed`
/// of database `it`.
pub struct Feed {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Sent>>,
}

/// What was sent, and what became of it.
#[derive(Debug, Default)]
pub struct Sent {
    pub acked: BTreeSet<u64>,
    /// Not acknowledged: refused, or of unknown outcome. Each number once, never sent again.
    pub failed: Vec<(u64, String)>,
    /// Of the last acknowledgement.
    pub last_ack: Option<Instant>,
    /// Longest time from a request to its acknowledgement.
    pub slowest: Duration,
}

impl Feed {
    /// Clients of these nodes; `series` tells the rows of several feeds apart.
    pub fn at<'a>(nodes: impl IntoIterator<Item = &'a Process>, series: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acked = Arc::new(AtomicU64::new(0));
        let clients = nodes
            .into_iter()
            .zip(0..)
            .map(|(node, client)| {
                let (target, stop, acked) = (node.tcp(), stop.clone(), acked.clone());
                let first = series * 1_000_000_000 + client * 1_000_000 + 1;
                std::thread::spawn(move || write(&target, client, first, &stop, &acked))
            })
            .collect();
        Self { stop, acked, clients }
    }

    /// Waits until so many more rows are acknowledged.
    #[track_caller]
    pub fn more(&self, rows: u64) {
        let wanted = self.acked.load(Ordering::Relaxed) + rows;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.acked.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "{rows} more rows are not acknowledged after 30 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets the clients finish their last request.
    pub fn finish(mut self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Sent::default();
        for client in self.clients.drain(..) {
            let sent = client.join().unwrap();
            all.acked.extend(sent.acked);
            all.failed.extend(sent.failed);
            all.last_ack = all.last_ack.max(sent.last_ack);
            all.slowest = all.slowest.max(sent.slowest);
        }
        all
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(target: &Target, client: u64, first: u64, stop: &AtomicBool, acked: &AtomicU64) -> Sent {
    let mut sent = Sent::default();
    for n in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let row = format!("feed,client=c{client} n={n}u {n}\n");
        let path = "/api/v3/write_lp?db=it&precision=nanosecond";
        let began = Instant::now();
        match send(target, "POST", path, &[], row.as_bytes(), PATIENCE) {
            Ok(answer) if answer.status == 204 => {
                sent.acked.insert(n);
                sent.last_ack = Some(Instant::now());
                sent.slowest = sent.slowest.max(began.elapsed());
                acked.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => sent.failed.push((n, format!("{} {}", answer.status, answer.body))),
            Err(error) => sent.failed.push((n, format!("{error} after {:?}", began.elapsed()))),
        }
        // A few hundred rows per second leave the machine to the nodes.
        std::thread::sleep(Duration::from_millis(5));
    }
    sent
}

impl Sent {
    /// Everything acknowledged is found at the node, once, and nothing that was never sent.
    #[track_caller]
    pub fn must_be_at(&self, node: &Process) {
        let rows = node.numbers("SELECT n FROM feed");
        let found: BTreeSet<u64> = rows.iter().copied().collect();
        let missing: Vec<_> = self.acked.difference(&found).collect();
        assert!(
            missing.is_empty(),
            "{} lacks {} of {} acknowledged rows: {:?} ..",
            node.name,
            missing.len(),
            self.acked.len(),
            &missing[..missing.len().min(10)]
        );
        assert_eq!(rows.len(), found.len(), "{} has rows twice", node.name);
        let sent: BTreeSet<u64> =
            self.acked.iter().copied().chain(self.failed.iter().map(|(n, _)| *n)).collect();
        let foreign: Vec<_> = found.difference(&sent).collect();
        assert!(foreign.is_empty(), "{} has rows that nobody sent: {foreign:?}", node.name);
    }

    /// No request failed.
    #[track_caller]
    pub fn must_be_whole(&self) {
        let first = &self.failed[..self.failed.len().min(5)];
        assert!(
            self.failed.is_empty(),
            "{} of {} writes failed: {first:?}",
            self.failed.len(),
            self.acked.len()
        );
    }

    /// Both feeds' rows together.
    pub fn and(mut self, other: Self) -> Self {
        self.acked.extend(other.acked);
        self.failed.extend(other.failed);
        self
    }
}
