//! Writes the raft log: one group of records, one write and fdatasync, then the callbacks.
//!
//! Jobs are done strictly in the order in which they were queued, the vote among them: openraft
//! needs vote and log never reordered. The first error is final (the page cache may have dropped
//! what it could not write): every later job fails too, and the node must stop.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    log_record::{self, HEADER, MAGIC},
    type_config::TypeConfig,
};
use crate::disk::{Create, Disk, DiskFile, Durability, replace_file};

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
        /// Who hears of it.
        done: Done,
    },
    /// Replace the vote file.
    Vote {
        /// Content of the file.
        bytes: Bytes,
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

/// The driver of the raft log; the only one that writes its files.
pub(super) struct LogWriter {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: PathBuf,
    pub(super) vote: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Where the next group begins.
    pub(super) end: u64,
    pub(super) jobs: mpsc::UnboundedReceiver<Job>,
    pub(super) failed: watch::Sender<Option<String>>,
}

impl LogWriter {
    /// Runs until every handle of the log is dropped. After an error it only refuses jobs.
    pub(super) async fn run(mut self) {
        let mut committed = None;
        loop {
            let job = if committed.is_some() {
                match tokio::time::timeout(COMMITTED_DELAY, self.jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => {
                        self.group(committed.take().into_iter().collect(), Vec::new()).await;
                        continue;
                    }
                }
            } else {
                self.jobs.recv().await
            };
            let Some(job) = job else { break };
            self.serve(job, &mut committed).await;
        }
        self.group(committed.into_iter().collect(), Vec::new()).await;
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
                Job::Vote { bytes, done } => {
                    self.group(std::mem::take(&mut payloads), std::mem::take(&mut waiting)).await;
                    let result = match self.refusal() {
                        Some(refusal) => Err(refusal),
                        None => replace_file(&*self.disk, &self.vote, bytes).await,
                    };
                    self.settle(result, vec![done], "vote");
                }
                Job::Rewrite { payloads: all, done } => {
                    self.group(std::mem::take(&mut payloads), std::mem::take(&mut waiting)).await;
                    let result = match self.refusal() {
                        Some(refusal) => Err(refusal),
                        None => self.rewrite(all).await,
                    };
                    self.settle(result, vec![done], "log");
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
                let written = self.file.write(self.end, parts, Durability::Now).await;
                if written.is_ok() {
                    self.end += len;
                }
                written
            }
        };
        self.settle(result, waiting, "log");
    }

    async fn rewrite(&mut self, payloads: Vec<Bytes>) -> io::Result<()> {
        let content = whole_file(payloads);
        let end = content.len() as u64;
        replace_file(&*self.disk, &self.log, content).await?;
        self.file = self.disk.open(&self.log, Create::No).await?;
        self.end = end;
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
