//! The driver: writes queued records in groups, one group in flight, and does everything else
//! that changes files, one thing at a time.

use std::{io, path::Path, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant, sleep_until},
};

use super::{
    CutReport, Debt, WalConfig, WalError,
    ahead::Ahead,
    base::Base,
    record::Record,
    segment::{SEGMENT_HEADER, Segment, SegmentHeader, segment_name},
    state::Shared,
    watermark::{Promise, Watermark},
};
use crate::{
    disk::{Create, Disk, DiskFile, Durability, Slots, is_full},
    types::{ClusterId, Epoch, Lsn},
};

/// Name of the segment allocated in advance.
pub(super) const SPARE: &str = "spare.wal";
/// How late the watermark may be; with the write itself it stays under a second.
const WATERMARK_LATE: Duration = Duration::from_millis(800);
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Writes the log. Run it as a task; it ends when every [`super::Wal`] is dropped, or with the
/// error that made the log fail. If it is dropped before, the log has failed.
pub struct WalDriver {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: WalConfig,
    pub(super) cluster: ClusterId,
    pub(super) watermark: Slots,
    pub(super) spare: Option<Arc<dyn DiskFile>>,
    /// What the file `base.next` says.
    pub(super) announced: Option<Base>,
    promise: Slots,
    nonce: Nonces,
    commands: mpsc::Receiver<Command>,
    ahead: Ahead,
    /// When the watermark has to be written.
    watermark_at: Option<Instant>,
    /// When a full disk is to be tried again.
    retry_at: Option<Instant>,
}

/// What draws segment nonces.
pub(super) type Nonces = Box<dyn FnMut() -> u64 + Send + Sync>;

type Reply<T> = oneshot::Sender<Result<T, WalError>>;

/// What a handle asks of the driver.
pub(super) enum Command {
    Promise { epoch: Epoch, reply: Reply<()> },
    ClearDebt { reply: Reply<()> },
    Cut { keep: u64, reply: Reply<CutReport> },
    Announce { base: Base, reply: Reply<()> },
    BeginAnew { reached: Lsn, alone: bool, reply: Reply<Option<Lsn>> },
    Retire { through: u64, reply: Reply<u64> },
    DropQueued { below: Epoch, reply: Reply<u64> },
    SetAside { seq: u64, reply: Reply<Option<Debt>> },
}

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: WalConfig,
    pub(super) cluster: ClusterId,
    pub(super) watermark: Slots,
    pub(super) promise: Slots,
    pub(super) spare: Option<Arc<dyn DiskFile>>,
    pub(super) announced: Option<Base>,
    pub(super) nonce: Nonces,
}

impl WalDriver {
    /// Writes until every handle is dropped (what is queued by then is written too) or a write
    /// fails.
    pub async fn run(mut self) -> Result<(), WalError> {
        let outcome = self.serve().await;
        if let Err(error) = &outcome {
            self.shared.fail(&error.to_string());
            tracing::error!(%error, "the log stops");
        }
        outcome
    }

    pub(super) fn new(parts: Parts, commands: mpsc::Receiver<Command>) -> Self {
        let Parts { shared, disk, config, cluster, watermark, promise, spare, announced, nonce } = parts;
        // A log that was opened without a spare must look for space as one that ran out of it does.
        let retry_at = shared.full.borrow().then(Instant::now);
        let watermark_at = None;
        Self {
            shared,
            disk,
            config,
            cluster,
            watermark,
            spare,
            announced,
            promise,
            nonce,
            commands,
            ahead: Ahead::default(),
            watermark_at,
            retry_at,
        }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    async fn serve(&mut self) -> Result<(), WalError> {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command).await?;
            }
            self.tick().await?;
            if self.write_group().await? {
                continue;
            }
            let alarm = self.watermark_at.into_iter().chain(self.retry_at).min();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await?,
                    None => return self.finish().await,
                },
                () = self.shared.work.notified() => self.shared.gather().await,
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
            }
        }
    }

    /// Does what a handle asked. `Err` only if the log has failed.
    async fn obey(&mut self, command: Command) -> Result<(), WalError> {
        match command {
            Command::Promise { epoch, reply } => {
                let done = self.set_promise(epoch).await;
                self.answer(reply, done)
            }
            Command::ClearDebt { reply } => {
                let done = self.clear_debt().await;
                self.answer(reply, done)
            }
            Command::Cut { keep, reply } => {
                let done = self.cut(keep).await;
                self.answer(reply, done)
            }
            Command::Announce { base, reply } => {
                let done = self.announce(base).await;
                self.answer(reply, done)
            }
            Command::BeginAnew { reached, alone, reply } => {
                let done =
                    if alone { self.begin_alone(reached).await } else { self.begin_anew(reached).await };
                self.answer(reply, done)
            }
            Command::Retire { through, reply } => {
                let done = self.retire(through).await;
                self.answer(reply, done)
            }
            Command::DropQueued { below, reply } => {
                let done = self.drop_queued(below);
                self.answer(reply, done)
            }
            Command::SetAside { seq, reply } => {
                let done = self.set_aside(seq).await;
                self.answer(reply, done)
            }
        }
    }

    fn answer<T>(&self, reply: Reply<T>, done: Result<T, WalError>) -> Result<(), WalError> {
        let failed = match &done {
            Err(WalError::Failed(reason)) => Err(WalError::Failed(reason.clone())),
            _ => Ok(()),
        };
        if let Err(error) = &failed {
            self.shared.fail(&error.to_string());
        }
        // Nobody waits any more: what was asked for has happened all the same.
        let _ = reply.send(done);
        failed
    }

    async fn set_promise(&mut self, epoch: Epoch) -> Result<(), WalError> {
        let (promised, debt) = {
            let state = self.shared.lock();
            (state.promise, state.debt)
        };
        if epoch > promised {
            #[cfg(feature = "testing")]
            if crate::types::planted::is("promise_not_persisted") {
                self.shared.lock().promise = epoch;
                return Ok(());
            }
            // Model: promise_fsynced
            self.write_promise(Promise { epoch, debt }).await?;
        }
        Ok(())
    }

    async fn clear_debt(&mut self) -> Result<(), WalError> {
        let promised = self.shared.lock().promise;
        self.write_promise(Promise { epoch: promised, debt: None }).await
    }

    pub(super) async fn write_promise(&mut self, promise: Promise) -> Result<(), WalError> {
        self.promise.write_both(promise.values()).await.map_err(failed("writing the promise"))?;
        let mut state = self.shared.lock();
        (state.promise, state.debt) = (promise.epoch, promise.debt);
        Ok(())
    }

    /// Writes the next group and says whether there was one that could be written.
    pub(super) async fn write_group(&mut self) -> Result<bool, WalError> {
        let need = {
            let state = self.shared.lock();
            match state.tail_from(state.durable.seq + 1).next() {
                Some(record) if record.stored_len() as u64 <= state.room() => 0,
                Some(record) => record.stored_len() as u64,
                None => return Ok(false),
            }
        };
        if need > 0 && !self.begin_segment(need).await? {
            return Ok(false);
        }
        let (group, active) = {
            let state = self.shared.lock();
            let mut left = (self.config.group_bytes as u64).min(state.room());
            let mut group: Vec<Record> = Vec::new();
            for record in state.tail_from(state.durable.seq + 1) {
                let len = record.stored_len() as u64;
                if len > left && !group.is_empty() {
                    break;
                }
                left = left.saturating_sub(len);
                group.push(record.clone());
            }
            (group, state.segments.back().map(|s| (s.file.clone(), s.header, s.end, s.len)))
        };
        let (Some((file, header, offset, len)), Some(first)) = (active, group.first()) else {
            return Ok(false);
        };
        let mut parts = header.group(first.lsn.seq, &group);
        let end = offset + group.iter().map(|record| record.stored_len() as u64).sum::<u64>();
        parts.extend(self.ahead.behind(header.first_seq, len, offset..end));
        debug_assert!(header.could_hold_all(offset, &group), "a torn tail could hide {}", first.lsn);
        #[cfg(feature = "testing")]
        if crate::types::planted::is("ack_before_fsync") {
            file.write(offset, parts, Durability::Later).await.map_err(failed("writing the log"))?;
            self.shared.written(&mut self.shared.lock(), &group);
            return Ok(true);
        }
        // Model: ack_after_fsync
        // Model: own_vote_after_fsync
        let written = self.shared.timed(file.write(offset, parts, Durability::Now)).await;
        #[cfg(feature = "testing")]
        let written = if written.is_err() && crate::types::planted::is("retry_fsync") {
            file.write(offset, Vec::new(), Durability::Now).await
        } else {
            written
        };
        written.map_err(failed("writing the log"))?;
        self.shared.written(&mut self.shared.lock(), &group);
        Ok(true)
    }

    /// Turns the spare into the active segment. False if there is no space for one.
    async fn begin_segment(&mut self, need: u64) -> Result<bool, WalError> {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            self.shared.stalled.send_replace(true);
            return Ok(false);
        }
        self.write_watermark(None).await?;
        let len = self.config.segment_bytes.max(SEGMENT_HEADER + need);
        if !self.make_spare().await? || !self.fit_spare(len).await? {
            self.note_full(true, true);
            return Ok(false);
        }
        let Some(file) = self.spare.take() else { return Ok(false) };
        let header = {
            let state = self.shared.lock();
            let before = state.durable;
            // The queue's first record carries the chain value before it.
            let chain = state.in_tail(before.seq + 1).map_or(state.digest, |record| record.chain);
            let (nonce, first_seq) = ((self.nonce)(), before.seq + 1);
            SegmentHeader { cluster: self.cluster, nonce, first_seq, epoch: before.epoch, chain }
        };
        let path = self.config.dir.join(segment_name(header.first_seq));
        let begin = async {
            file.write(0, vec![header.encode()], Durability::Now).await?;
            self.disk.rename(&self.config.dir.join(SPARE), &path).await?;
            #[cfg(feature = "testing")]
            if crate::types::planted::is("skip_dir_fsync") {
                return Ok(());
            }
            self.disk.sync_dir(&self.config.dir).await
        };
        begin.await.map_err(failed("beginning a log segment"))?;
        self.shared.lock().segments.push_back(Segment::new(path, file, header, len));
        let spare = self.make_spare().await?;
        self.note_full(!spare, false);
        Ok(true)
    }

    /// Allocates the spare if there is none. False if there is no space.
    async fn make_spare(&mut self) -> Result<bool, WalError> {
        if self.spare.is_none() {
            self.spare = allocate_spare(&*self.disk, &self.config)
                .await
                .map_err(failed("allocating a log segment"))?;
        }
        Ok(self.spare.is_some())
    }

    /// Gives the spare that length. False if there is no space.
    pub(super) async fn fit_spare(&mut self, len: u64) -> Result<bool, WalError> {
        let Some(spare) = &self.spare else { return Ok(false) };
        match resize(&**spare, len).await {
            Ok(()) => Ok(true),
            Err(e) if is_full(&e) => Ok(false),
            Err(e) => Err(failed("allocating a log segment")(e)),
        }
    }

    /// Gives up the spare so that something else has space. False if there is none.
    pub(super) async fn release_spare(&mut self) -> Result<bool, WalError> {
        if self.spare.take().is_none() {
            return Ok(false);
        }
        let path = self.config.dir.join(SPARE);
        self.disk.remove(&path).await.map_err(failed("releasing the spare log segment"))?;
        self.note_full(true, false);
        Ok(true)
    }

    /// `stalled`: what is queued cannot be written.
    pub(super) fn note_full(&mut self, full: bool, stalled: bool) {
        self.retry_at = full.then(|| Instant::now() + FULL_RETRY);
        let turned = self.shared.full.send_if_modified(|f| std::mem::replace(f, full) != full);
        self.shared.stalled.send_if_modified(|s| std::mem::replace(s, stalled) != stalled);
        if turned && full {
            tracing::warn!("disk full: no space for another log segment, batches are refused");
        } else if turned {
            tracing::info!("space for the log again");
        }
    }

    /// Does what is due by the clock.
    async fn tick(&mut self) -> Result<(), WalError> {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            let spare = self.make_spare().await?;
            let stalled = *self.shared.stalled.borrow();
            self.note_full(!spare, stalled && !spare);
        }
        let due = self.shared.lock().watermark_due;
        match self.watermark_at {
            // Written meanwhile, with a cut or a new beginning. An alarm without a cause would ring for ever.
            _ if !due => self.watermark_at = None,
            None => self.watermark_at = Some(now + WATERMARK_LATE),
            Some(at) if at <= now => self.write_watermark(None).await?,
            Some(_) => {}
        }
        Ok(())
    }

    /// Writes the watermark if it is behind, or in any case if it has an `end` to announce.
    pub(super) async fn write_watermark(&mut self, end: Option<Lsn>) -> Result<(), WalError> {
        self.watermark_at = None;
        let values = {
            let mut state = self.shared.lock();
            if !std::mem::take(&mut state.watermark_due) && end.is_none() {
                return Ok(());
            }
            let durable = end.unwrap_or(state.durable);
            Watermark { durable, commit: state.commit, end: end.map(|lsn| lsn.seq) }.values()
        };
        self.watermark.write(values).await.map_err(failed("writing the watermark"))
    }

    async fn finish(&mut self) -> Result<(), WalError> {
        while self.write_group().await? {}
        self.write_watermark(None).await
    }
}

impl Drop for WalDriver {
    fn drop(&mut self) {
        self.shared.fail("the driver of the log has ended");
    }
}

impl std::fmt::Debug for WalDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalDriver").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Makes the spare file, or takes the one that is there. `None` if there is no space.
pub(super) async fn allocate_spare(
    disk: &dyn Disk,
    config: &WalConfig,
) -> io::Result<Option<Arc<dyn DiskFile>>> {
    let path = config.dir.join(SPARE);
    match open_spare(disk, &path, config.segment_bytes).await {
        Ok(file) => Ok(Some(file)),
        Err(e) if is_full(&e) => {
            match disk.remove(&path).await {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

async fn open_spare(disk: &dyn Disk, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = match disk.open(path, Create::No).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => disk.open(path, Create::New).await?,
        opened => opened?,
    };
    resize(&*file, len).await?;
    Ok(file)
}

async fn resize(file: &dyn DiskFile, len: u64) -> io::Result<()> {
    if file.len().await? == len { Ok(()) } else { file.resize(len).await }
}

/// Turns an error of the disk into the end of the log.
pub(super) fn failed(what: &'static str) -> impl Fn(io::Error) -> WalError {
    move |error| WalError::Failed(format!("{what}: {error}"))
}
