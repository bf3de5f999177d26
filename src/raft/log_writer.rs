//! Writes the raft log: one group of records, one write and fdatasync, then the callbacks.
//!
//! Jobs are done strictly in the order in which they were queued, the vote among them: openraft
//! needs vote and log never reordered. The first error is final (the page cache may have dropped
//! what it could not write): every later job fails too, and the node must stop.
//!
//! A full disk is no such error. Space is allocated ahead of what is written: while the disk has none
//! to give, the log goes on in its [`RESERVE`]. So a node whose disk is full elects and is elected,
//! follows, and learns who writes. It says what is left ([`Room`]), and the last part is kept from
//! everybody but raft itself; only what comes when that is used up too waits.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Duration, Instant, sleep, timeout},
};

use super::{
    log_record::{self, HEADER, MAGIC},
    room::Room,
    type_config::{TypeConfig, Vote},
    vote::VoteFile,
};
use crate::{
    disk::{Create, Disk, DiskFile, Durability, is_full, past_undoing, replace_allocated},
    telemetry::Histogram,
};

/// Bytes allocated behind the end of the log at least, while the disk has space: thousands of
/// entries. Elections and offices take two or three entries each.
pub(super) const RESERVE: u64 = 1024 * 1024;
/// Of the reserve, this part is for raft itself: thousands of terms.
const OWN: u64 = 4;
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// Bytes of one group, about: more jobs wait for the next one.
const GROUP_BYTES: usize = 1024 * 1024;
/// A committed position that no other record took along is written after this long.
const COMMITTED_DELAY: Duration = Duration::from_millis(100);

/// Work for the writer.
pub(super) enum Job {
    /// Append records.
    Append {
        /// Encoded records.
        payloads: Vec<Bytes>,
        /// Who hears of it.
        done: Done,
    },
    /// Replace the whole log by these records.
    Rewrite {
        /// Encoded records.
        payloads: Vec<Bytes>,
        /// The record to append when the disk has no space for a second file.
        instead: Bytes,
        /// Who hears of it.
        done: Done,
    },
    /// Write the vote.
    Vote {
        /// For whom.
        vote: Vote,
        /// Who hears of it.
        done: Done,
    },
    /// The newest committed position: goes along with the next group, or soon on its own.
    Committed(Bytes),
}

/// Whom to tell that a job is durable, or failed.
pub(super) enum Done {
    /// openraft's callback of an append.
    Flushed(IOFlushed<TypeConfig>),
    /// A caller that waits.
    Waiter(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: Result<(), &io::Error>) {
        let result = result.map_err(|e| io::Error::new(e.kind(), e.to_string()));
        match self {
            Self::Flushed(callback) => callback.io_completed(result),
            // A caller that went away does not need the answer.
            Self::Waiter(waiter) => drop(waiter.send(result)),
        }
    }
}

/// What the driver writes.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    /// Path of the log.
    pub(super) log: PathBuf,
    /// The log.
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) vote: VoteFile,
}

/// The driver of the raft log; the only one that writes its files.
pub(super) struct LogWriter {
    files: Files,
    /// Where the next group begins.
    end: u64,
    /// Where the space ends that the log has.
    allocated: u64,
    reserve: u64,
    /// Set while the disk has no space to give: when it is asked again.
    retry_at: Option<Instant>,
    jobs: mpsc::UnboundedReceiver<Job>,
    room: watch::Sender<Room>,
    /// How long writing and syncing a group takes.
    pub(super) group_seconds: Histogram,
    failed: watch::Sender<Option<String>>,
}

impl LogWriter {
    pub(super) fn new(
        files: Files,
        (end, allocated): (u64, u64),
        reserve: u64,
        jobs: mpsc::UnboundedReceiver<Job>,
        failed: watch::Sender<Option<String>>,
    ) -> Self {
        let room = watch::Sender::new(Room { full: false, left: allocated - end, own: reserve / OWN });
        let group_seconds = Histogram::new(Histogram::FINE_SECONDS);
        Self { files, end, allocated, reserve, retry_at: None, jobs, room, group_seconds, failed }
    }

    /// Follows the space that is left.
    pub(super) fn room(&self) -> watch::Receiver<Room> {
        self.room.subscribe()
    }

    /// Runs until every handle of the log is dropped. After an error it only refuses jobs.
    pub(super) async fn run(mut self) {
        let mut committed = None;
        loop {
            let patience = match (&committed, self.retry_at) {
                (Some(_), _) => Some(COMMITTED_DELAY),
                (None, Some(_)) => Some(FULL_RETRY),
                (None, None) => None,
            };
            let job = match patience {
                Some(patience) => match timeout(patience, self.jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => {
                        self.idle(committed.take()).await;
                        continue;
                    }
                },
                None => self.jobs.recv().await,
            };
            let Some(job) = job else { break };
            self.serve(job, &mut committed).await;
        }
        self.group(committed.into_iter().collect(), Vec::new()).await;
    }

    /// Writes a committed position that nothing took along, and looks whether there is space again.
    async fn idle(&mut self, committed: Option<Bytes>) {
        match committed {
            Some(committed) => self.group(vec![committed], Vec::new()).await,
            None if self.refusal().is_none() => {
                let room = self.make_room(0).await;
                self.settle(room, Vec::new(), "log");
            }
            None => self.retry_at = None,
        }
    }

    /// Does `job` and what is queued behind it, as few writes as order allows.
    async fn serve(&mut self, first: Job, committed: &mut Option<Bytes>) {
        let (mut payloads, mut bytes, mut waiting) = (Vec::new(), 0, Vec::new());
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Append { payloads: more, done } => {
                    bytes += more.iter().map(Bytes::len).sum::<usize>();
                    payloads.extend(more);
                    waiting.push(done);
                }
                Job::Committed(record) => *committed = Some(record),
                Job::Vote { vote, done } => {
                    self.group(std::mem::take(&mut payloads), std::mem::take(&mut waiting)).await;
                    let result = match self.refusal() {
                        Some(refusal) => Err(refusal),
                        None => self.files.vote.write(vote).await,
                    };
                    self.settle(result, vec![done], "vote");
                }
                Job::Rewrite { payloads: all, instead, done } => {
                    self.group(std::mem::take(&mut payloads), std::mem::take(&mut waiting)).await;
                    let result = match self.refusal() {
                        Some(refusal) => Err(refusal),
                        None => self.rewrite(all).await,
                    };
                    #[cfg(feature = "testing")]
                    let result = match result {
                        Err(_) if crate::types::planted::is("old_log_after_rename") => {
                            Err(io::ErrorKind::StorageFull.into())
                        }
                        result => result,
                    };
                    match result {
                        Err(error) if is_full(&error) => self.group(vec![instead], vec![done]).await,
                        result => self.settle(result, vec![done], "log"),
                    }
                }
            }
            if bytes < GROUP_BYTES {
                next = self.jobs.try_recv().ok();
            }
        }
        if !payloads.is_empty() {
            payloads.extend(committed.take());
        }
        self.group(payloads, waiting).await;
    }

    /// One write, one fdatasync.
    async fn group(&mut self, payloads: Vec<Bytes>, waiting: Vec<Done>) {
        if payloads.is_empty() && waiting.is_empty() {
            return;
        }
        let result = match self.refusal() {
            Some(refusal) => Err(refusal),
            None => {
                let (parts, len) = laid_out(payloads, self.end, false);
                self.write(parts, len).await
            }
        };
        self.settle(result, waiting, "log");
    }

    async fn write(&mut self, parts: Vec<Bytes>, len: u64) -> io::Result<()> {
        self.make_room(len).await?;
        let began = Instant::now();
        self.files.file.write(self.end, parts, Durability::Now).await?;
        self.group_seconds.observe_duration(began.elapsed());
        self.end += len;
        self.tell_room();
        Ok(())
    }

    /// Returns when `len` bytes behind the end are allocated. While the disk has space, the reserve
    /// is too; without any, the reserve is what these bytes are taken from, and when it is used up
    /// this waits for space.
    async fn make_room(&mut self, len: u64) -> io::Result<()> {
        let end = self.end + len;
        while self.allocated < end + self.reserve {
            if self.retry_at.is_none_or(|at| at <= Instant::now()) {
                let wanted = end + 2 * self.reserve;
                match self.files.file.resize(wanted).await {
                    Ok(()) => {
                        self.allocated = wanted;
                        self.note_full(false);
                        break;
                    }
                    Err(error) if is_full(&error) => self.note_full(true),
                    Err(error) => return Err(error),
                }
            }
            if self.allocated >= end {
                break;
            }
            if self.jobs.is_closed() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            sleep(FULL_RETRY).await;
        }
        Ok(())
    }

    fn note_full(&mut self, full: bool) {
        let was = self.retry_at.is_some();
        self.retry_at = full.then(|| Instant::now() + FULL_RETRY);
        if full && !was {
            let left = self.allocated.saturating_sub(self.end);
            tracing::warn!(left, "disk full: the raft log goes on in what is allocated");
        } else if was && !full {
            tracing::info!("space for the raft log again");
        }
        self.tell_room();
    }

    fn tell_room(&self) {
        let left = self.allocated.saturating_sub(self.end);
        self.room.send_modify(|room| (room.full, room.left) = (self.retry_at.is_some(), left));
    }

    /// The new file has its reserve before the old one is given up. For want of space ([`is_full`])
    /// nothing has changed.
    async fn rewrite(&mut self, payloads: Vec<Bytes>) -> io::Result<()> {
        let Files { disk, log, .. } = &self.files;
        let content = whole_file(payloads);
        let end = content.len() as u64;
        let allocated = end + 2 * self.reserve;
        replace_allocated(&**disk, log, content, allocated).await?;
        self.files.file = disk.open(log, Create::No).await.map_err(past_undoing)?;
        (self.end, self.allocated) = (end, allocated);
        self.note_full(false);
        Ok(())
    }

    /// The error to answer with once something has failed.
    fn refusal(&self) -> Option<io::Error> {
        self.failed.borrow().as_ref().map(|first| io::Error::other(first.clone()))
    }

    fn settle(&mut self, result: io::Result<()>, waiting: Vec<Done>, what: &str) {
        if let Err(error) = &result {
            self.failed.send_if_modified(|failed| {
                let first = failed.is_none();
                if first {
                    tracing::error!(%error, what, "raft storage failed; this node must stop");
                    *failed = Some(format!("raft {what} could not be written: {error}"));
                }
                first
            });
        }
        for done in waiting {
            done.tell(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(error),
            });
        }
    }
}

/// A log file of these records.
pub(super) fn whole_file(payloads: Vec<Bytes>) -> Bytes {
    let (parts, len) = laid_out(payloads, MAGIC.len() as u64, true);
    let mut content = Vec::with_capacity(MAGIC.len() + len as usize);
    content.extend(MAGIC);
    parts.iter().for_each(|part| content.extend_from_slice(part));
    content.into()
}

/// Headers and payloads in turn, and their length. `alone` makes every record a group of its own,
/// for a file that is durable as a whole before anyone sees it.
fn laid_out(payloads: Vec<Bytes>, start: u64, alone: bool) -> (Vec<Bytes>, u64) {
    let mut parts = Vec::with_capacity(payloads.len() * 2);
    let mut len = 0;
    for payload in payloads {
        let group = if alone { start + len } else { start };
        let header = log_record::header(&payload, group);
        len += (HEADER + payload.len()) as u64;
        parts.push(Bytes::copy_from_slice(&header));
        parts.push(payload);
    }
    (parts, len)
}
