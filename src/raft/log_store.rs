//! The raft log and the vote, durable: what openraft's storage contract asks of a log.
//!
//! Two files: `log`, which only grows until a purge makes it worth rewriting, with space allocated
//! behind its end, and `vote` ([`super::vote`]). Entries that are not purged are kept in memory too;
//! the log of a control plane is small. Writing is [`super::log_writer`]'s; here is the memory, and
//! what the files say at start.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::RangeBounds,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    log_record::{self, Damage, MAGIC, MAX_PAYLOAD, Record, Scan},
    log_writer::{self, Done, Job, LogWriter, RESERVE},
    room::Room,
    type_config::{Entry, LogId, TypeConfig, Vote},
    vote,
};
use crate::{
    disk::{Create, Disk, Durability, read_file, replace_allocated, replace_file},
    protocol::frame,
    telemetry::Histogram,
};

/// Longest log file that is read: far more than rewriting ever lets it become.
const MAX_FILE: u64 = 1 << 30;
/// Encoded bytes of the entries of one read for replication; a message holds twice that.
const MAX_READ: u64 = frame::MAX_RAFT as u64 / 2;
/// A log file is rewritten when it holds this much more than what is still needed.
const GARBAGE: u64 = 1024 * 1024;

/// Why the raft log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("cannot read or write the raft log in {dir}: {source}")]
    Io {
        /// Directory of the log.
        dir: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// A newer version of this software wrote it.
    #[error(
        "the raft log in {dir} holds what this version does not know ({reason}): a newer one wrote it. Start that one \
         again; nothing was changed"
    )]
    Newer {
        /// Directory of the log.
        dir: PathBuf,
        /// What is not understood.
        reason: String,
    },
    /// The files are not what was written. Starting would break promises made with them.
    #[error(
        "the raft log in {dir} is damaged: {reason}; restore the disk, or remove this node from the \
         cluster and let it join again with an empty data directory"
    )]
    Damaged {
        /// Directory of the log.
        dir: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Handle of the log; every clone reads and writes the same one.
#[derive(Clone)]
pub(super) struct LogStore {
    memory: Arc<Mutex<Memory>>,
    jobs: mpsc::UnboundedSender<Job>,
    room: watch::Receiver<Room>,
    group_seconds: Histogram,
}

#[derive(Default)]
pub(super) struct Memory {
    pub(super) entries: BTreeMap<u64, Held>,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// Bytes of payloads queued since the file was begun, and of those still needed.
    written: u64,
    live: u64,
}

/// A job that lacks only who waits for it.
type MakeJob = Box<dyn FnOnce(Done) -> Job + Send>;

pub(super) struct Held {
    pub(super) entry: Entry,
    bytes: u64,
}

impl LogStore {
    /// Opens the log in `dir`, making it if nothing is there. The writer must be run for anything
    /// but reading to come back; `failed` hears the first error of a write.
    pub(super) async fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        failed: watch::Sender<Option<String>>,
    ) -> Result<(Self, LogWriter), LogError> {
        Self::open_with(disk, dir, RESERVE, failed).await
    }

    /// As [`Self::open`], keeping `reserve` bytes for a disk that is full.
    async fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        reserve: u64,
        failed: watch::Sender<Option<String>>,
    ) -> Result<(Self, LogWriter), LogError> {
        let io = |source| LogError::Io { dir: dir.to_owned(), source };
        let log = dir.join("log");
        disk.create_dir(dir).await.map_err(io)?;
        let Content { memory, vote, end, written, doubtful, len } = Content::read(&*disk, dir).await?;
        let allocated = match len {
            Some(len) => len,
            None => {
                let len = MAGIC.len() as u64 + 2 * reserve;
                replace_allocated(&*disk, &log, Bytes::from_static(&MAGIC), len).await.map_err(io)?;
                len
            }
        };
        let file = disk.open(&log, Create::No).await.map_err(io)?;
        if end < written {
            let torn = written - end;
            tracing::warn!(bytes = torn, dir = %dir.display(), "cut the torn end of the raft log");
            // Overwritten, for space that is given up may not come back.
            let zeros = vec![Bytes::from(vec![0; torn])];
            file.write(end as u64, zeros, Durability::Now).await.map_err(io)?;
        }
        // The page cache is not the disk: nothing read here counts before it is durable. The last group
        // is written again, because the sync that a former life died of may have marked it clean.
        let again = end - doubtful.len();
        file.write(again as u64, vec![doubtful], Durability::Now).await.map_err(io)?;
        let vote = vote::open(&*disk, dir, vote).await.map_err(io)?;
        disk.sync_dir(dir).await.map_err(io)?;
        let (jobs, queue) = mpsc::unbounded_channel();
        let files = log_writer::Files { disk, log, file, vote };
        let writer = LogWriter::new(files, (end as u64, allocated), reserve, queue, failed);
        let (room, group_seconds) = (writer.room(), writer.group_seconds.clone());
        Ok((Self { memory: Arc::new(Mutex::new(memory)), jobs, room, group_seconds }, writer))
    }

    /// How long writing and syncing a group takes.
    pub(super) fn group_seconds(&self) -> Histogram {
        self.group_seconds.clone()
    }

    /// Follows the space that the log has.
    pub(super) fn room(&self) -> watch::Receiver<Room> {
        self.room.clone()
    }

    /// What was purged must be in the snapshot, or state is lost.
    pub(super) fn check_snapshot(&self, applied: Option<&LogId>) -> Result<(), String> {
        let memory = self.memory();
        match &memory.purged {
            Some(purged) if applied < Some(purged) => {
                Err(format!("entries up to {purged} were purged, but the snapshot does not reach there"))
            }
            _ => Ok(()),
        }
    }

    /// The vote, the entries that are not purged, and the last position, for a node that does not run.
    pub(super) fn content(&self) -> (Option<Vote>, Vec<Entry>, Option<LogId>) {
        let memory = self.memory();
        let entries = memory.entries.values().map(|held| held.entry.clone()).collect();
        (memory.vote, entries, memory.last())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the memory and queues the job it makes, in one step, so that both see one order;
    /// then waits until the job is durable.
    async fn durably(&self, change: impl FnOnce(&mut Memory) -> MakeJob) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        {
            let mut memory = self.memory();
            let job = change(&mut memory)(Done::Waiter(done));
            self.jobs.send(job).map_err(|_| stopped())?;
        }
        wait.await.map_err(|_| stopped())?
    }
}

/// What the files say.
pub(super) struct Content {
    pub(super) memory: Memory,
    vote: Option<vote::Found>,
    /// Where the log's records end.
    pub(super) end: usize,
    /// Where the last of its bytes is that was written; zeros follow.
    pub(super) written: usize,
    /// The group of the last record, up to `end`: nobody may have been told that it is durable.
    doubtful: Bytes,
    /// Length of the file; `None` for a directory that holds no log yet.
    len: Option<u64>,
}

impl Content {
    /// Reads the files in `dir`, which exists; changes nothing.
    pub(super) async fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, LogError> {
        let io = |source| LogError::Io { dir: dir.to_owned(), source };
        let damaged = |reason: String| LogError::Damaged { dir: dir.to_owned(), reason };
        let names = disk.list(dir).await.map_err(io)?;
        let there = |name: &str| names.iter().any(|n| n == name);
        let vote = if there(vote::VOTE) {
            let found = vote::read(disk, dir).await.map_err(io)?;
            Some(found.ok_or_else(|| damaged("the vote file does not verify".into()))?)
        } else {
            None
        };
        let mut memory = Memory { vote: vote.and_then(|found| found.vote), ..Memory::default() };
        if !there("log") {
            if vote.is_some() {
                return Err(damaged("there is a vote but no log".into()));
            }
            let (end, doubtful) = (MAGIC.len(), Bytes::new());
            return Ok(Self { memory, vote, end, written: end, doubtful, len: None });
        }
        let content = read_file(disk, &dir.join("log"), MAX_FILE).await.map_err(io)?;
        if !content.starts_with(&MAGIC) {
            return Err(damaged("the log does not begin as a log of this version does".into()));
        }
        let written = log_record::written(&content);
        let Scan { payloads, end, last_group } =
            log_record::scan(&content, written).map_err(|e: Damage| damaged(e.to_string()))?;
        for payload in payloads {
            // Its checksum is right.
            let record = frame::decode(payload, MAX_PAYLOAD)
                .map_err(|e| LogError::Newer { dir: dir.to_owned(), reason: e.to_string() })?;
            memory.play(record, payload.len() as u64).map_err(damaged)?;
        }
        memory.check_vote().map_err(damaged)?;
        let (doubtful, len) = (content.slice(last_group..end), Some(content.len() as u64));
        Ok(Self { memory, vote, end, written: written.max(end), doubtful, len })
    }
}

impl Memory {
    /// Where the next entry goes, if that is certain.
    fn next_index(&self) -> Option<u64> {
        let last = self.entries.keys().next_back().copied();
        last.or(self.purged.as_ref().map(|id| id.index)).map(|index| index + 1)
    }

    fn push(&mut self, entry: Entry, bytes: u64) -> Result<(), String> {
        let index = entry.log_id.index;
        if self.next_index().is_some_and(|next| next != index) {
            return Err(format!("entry {index} does not follow the one before it"));
        }
        self.live += bytes;
        self.entries.insert(index, Held { entry, bytes });
        Ok(())
    }

    fn truncate_after(&mut self, last: Option<&LogId>) {
        let gone = self.entries.split_off(&last.map_or(0, |id| id.index + 1));
        self.live -= gone.values().map(|held| held.bytes).sum::<u64>();
    }

    fn purge(&mut self, upto: &LogId) {
        let kept = self.entries.split_off(&(upto.index + 1));
        let gone = std::mem::replace(&mut self.entries, kept);
        self.live -= gone.values().map(|held| held.bytes).sum::<u64>();
        if self.purged.as_ref() < Some(upto) {
            self.purged = Some(*upto);
        }
    }

    /// One record of the file, at start.
    fn play(&mut self, record: Record, bytes: u64) -> Result<(), String> {
        self.written += bytes;
        match record {
            Record::Entry(entry) => self.push(*entry, bytes)?,
            Record::TruncateAfter(last) => self.truncate_after(last.as_ref()),
            Record::Purge(upto) => self.purge(&upto),
            Record::Committed(committed) => self.committed = committed,
        }
        Ok(())
    }

    pub(super) fn last(&self) -> Option<LogId> {
        let entry = self.entries.values().next_back().map(|held| held.entry.log_id);
        entry.or(self.purged)
    }

    /// A log never holds a term that its node did not vote in or learn of first.
    fn check_vote(&self) -> Result<(), String> {
        let log = self.last().map_or(0, |id| id.leader_id.term);
        let voted = self.vote.as_ref().map_or(0, |vote| vote.leader_id.term);
        if log > voted {
            return Err(format!("the log reaches term {log}, but the vote file says {voted} or is missing"));
        }
        Ok(())
    }

    /// Everything that still counts, as records of a new file.
    fn all_records(&self) -> Vec<Bytes> {
        let purged = self.purged.map(Record::Purge);
        let committed = Record::Committed(self.committed);
        let entries = self.entries.values().map(|held| Record::Entry(Box::new(held.entry.clone())));
        purged.into_iter().chain(entries).chain([committed]).map(|record| frame::encode(&record)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self.memory().entries.range(range).map(|(_, held)| held.entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let memory = self.memory();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for held in memory.entries.range(start..end).map(|(_, held)| held) {
            bytes += held.bytes;
            if bytes > MAX_READ && !entries.is_empty() {
                break;
            }
            entries.push(held.entry.clone());
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.durably(move |_| Box::new(move |done| Job::Vote { vote, done })).await?;
        self.memory().vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut memory = self.memory();
        memory.committed = committed;
        let payload = frame::encode(&Record::Committed(committed));
        memory.written += payload.len() as u64;
        self.jobs.send(Job::Committed(payload)).map_err(|_| stopped())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut memory = self.memory();
        let mut payloads = Vec::new();
        for entry in entries {
            let record = Record::Entry(Box::new(entry));
            let payload = frame::encode(&record);
            if payload.len() > MAX_PAYLOAD {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "raft entry over the limit"));
            }
            if let Record::Entry(entry) = record {
                memory.push(*entry, payload.len() as u64).map_err(io::Error::other)?;
            }
            memory.written += payload.len() as u64;
            payloads.push(payload);
        }
        self.jobs.send(Job::Append { payloads, done: Done::Flushed(callback) }).map_err(|_| stopped())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.durably(move |memory| {
            memory.truncate_after(last.as_ref());
            let payload = frame::encode(&Record::TruncateAfter(last));
            memory.written += payload.len() as u64;
            Box::new(move |done| Job::Append { payloads: vec![payload], done })
        })
        .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.durably(move |memory| {
            memory.purge(&upto);
            let payload = frame::encode(&Record::Purge(upto));
            if memory.written > memory.live + GARBAGE.max(memory.live) {
                let payloads = memory.all_records();
                memory.written = payloads.iter().map(|p| p.len() as u64).sum();
                return Box::new(move |done| Job::Rewrite { payloads, instead: payload, done });
            }
            memory.written += payload.len() as u64;
            Box::new(move |done| Job::Append { payloads: vec![payload], done })
        })
        .await
    }
}

/// Replaces the log in `dir`, of a node that does not run, by one of which everything up to `at` is
/// in the snapshot.
pub(super) async fn replace_log(disk: &dyn Disk, dir: &Path, at: LogId) -> io::Result<()> {
    let memory = Memory { purged: Some(at), committed: Some(at), ..Memory::default() };
    replace_file(disk, &dir.join("log"), log_writer::whole_file(memory.all_records())).await
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the writer of the raft log has stopped")
}

#[cfg(test)]
mod tests;
