//! The disk seam: everything that must survive goes through [`Disk`].
//!
//! Completion-based: a call submits work and returns a future that resolves when the work is
//! done. The real disk runs it on a thread; the simulated one (feature `testing`) runs it inline
//! on simulated time. WAL, raft log, promise, manifest, Parquet files and identity use it.
//!
//! It stands in the lowest layer, not under `wal/`, because `engine`, `raft` and `identity` need
//! it too and none of them may import `wal`.

mod real;
mod slots;

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures::future::BoxFuture;

pub use real::RealDisk;
pub(crate) use slots::{SLOTS_LEN, Slots, SlotsError, Values as SlotValues};

/// The pending result of a submitted operation. Dropping it does not cancel the operation: what
/// was submitted may still happen.
pub type Io<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// A file system. Paths are absolute or relative to the process; a simulated disk treats them as
/// opaque keys with `/` between parts.
///
/// An error of [`DiskFile::write`] or of a directory sync on an open log is final: the page cache
/// may have dropped the data and a second fsync would wrongly succeed. Callers fail-stop.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing. `Create::New` fails if it exists and makes it with
    /// mode 0600; its name is durable only after [`Disk::sync_dir`].
    fn open(&self, path: &Path, how: Create) -> Io<Arc<dyn DiskFile>>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> Io<Vec<String>>;
    /// Moves a file over another, atomically; durable after [`Disk::sync_dir`] of the directory. A real
    /// disk moves a directory too, to a name that is not there.
    fn rename(&self, from: &Path, to: &Path) -> Io<()>;
    /// Removes a file; durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> Io<()>;
    /// Makes a directory (mode 0700) and its parents; nothing happens if it exists.
    fn create_dir(&self, dir: &Path) -> Io<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Io<()>;
}

/// How [`Disk::open`] treats a file that is or is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It must exist.
    No,
    /// It must not exist.
    New,
}

/// An open file. Operations on one file that overlap in time may run in any order: a caller that
/// needs an order awaits the first.
#[expect(clippy::len_without_is_empty, reason = "asking costs a call to the disk; nobody needs it twice")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Writes `parts` one behind the other from `offset`, then makes data and length durable if
    /// asked for [`Durability::Now`]. Resolves after that. No partial success is reported.
    fn write(&self, offset: u64, parts: Vec<Bytes>, durability: Durability) -> Io<()>;
    /// Reads up to `len` bytes from `offset`; shorter only at the end of the file.
    fn read(&self, offset: u64, len: usize) -> Io<Bytes>;
    /// Length in bytes.
    fn len(&self) -> Io<u64>;
    /// Sets the length; new bytes read as zero, and their space is allocated.
    fn resize(&self, len: u64) -> Io<()>;
}

/// True for an error that says that the device cannot give back what lies there: EIO.
pub fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Whether a write is durable when it resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is not.
    Later,
    /// fdatasync came back without error.
    Now,
}

/// Reads a whole file of at most `limit` bytes; a longer one is `InvalidData`.
pub async fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Bytes> {
    let file = disk.open(path, Create::No).await?;
    let len = file.len().await?;
    if len > limit {
        let what = format!("{} is {len} bytes long, more than the {limit} allowed", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    file.read(0, len as usize).await
}

/// No space, as opposed to a broken disk.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Replaces `path` by a file with these bytes so that after a crash either the old or the new
/// content is there, whole: write beside it, fdatasync, rename, fsync the directory.
pub async fn replace_file(disk: &dyn Disk, path: &Path, bytes: Bytes) -> io::Result<()> {
    let len = bytes.len() as u64;
    replace_allocated(disk, path, bytes, len).await
}

/// The error of a call after which it is too late to go on as before: never [`is_full`], which callers
/// take for leave to. A directory that cannot be synced for want of space ends a node as any other failed
/// sync does.
pub(crate) fn past_undoing(error: io::Error) -> io::Error {
    if is_full(&error) { io::Error::other(format!("too late to undo: {error}")) } else { error }
}

/// As [`replace_file`], with a file of `len` bytes at least, allocated, zeros behind `bytes`. For
/// want of space ([`is_full`]) it leaves everything as it was.
pub async fn replace_allocated(disk: &dyn Disk, path: &Path, bytes: Bytes, len: u64) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file path with a parent is needed"));
    };
    let mut beside = name.to_os_string();
    beside.push(".tmp");
    let beside = dir.join(beside);
    // What a crash left half-written under this name was never renamed, so nothing refers to it.
    match disk.remove(&beside).await {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = async {
        let file = disk.open(&beside, Create::New).await?;
        if len > bytes.len() as u64 {
            file.resize(len).await?;
        }
        file.write(0, vec![bytes], Durability::Now).await?;
        disk.rename(&beside, path).await
    };
    if let Err(error) = written.await {
        if is_full(&error) {
            // What was written takes space that somebody else needs; the error that counts is known.
            let _ = disk.remove(&beside).await;
        }
        return Err(error);
    }
    disk.sync_dir(dir).await.map_err(past_undoing)
}

/// Removes every file below a directory, and leaves the directories. A directory that is not there
/// has none.
pub fn remove_files_below<'a>(disk: &'a dyn Disk, dir: &Path) -> BoxFuture<'a, io::Result<()>> {
    const NONE: &BTreeSet<PathBuf> = &BTreeSet::new();
    remove_files_but(disk, dir, NONE)
}

/// As [`remove_files_below`], but for the files at these paths.
pub fn remove_files_but<'a>(
    disk: &'a dyn Disk,
    dir: &Path,
    keep: &'a BTreeSet<PathBuf>,
) -> BoxFuture<'a, io::Result<()>> {
    let dir = dir.to_path_buf();
    Box::pin(async move {
        let names = match disk.list(&dir).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for path in names.into_iter().map(|name| dir.join(name)).filter(|path| !keep.contains(path)) {
            // What cannot be removed as a file is a directory.
            if disk.remove(&path).await.is_err() {
                remove_files_but(disk, &path, keep).await?;
            }
        }
        disk.sync_dir(&dir).await
    })
}
