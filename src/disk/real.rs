//! The real disk: files of the operating system, each operation on a thread of tokio's blocking
//! pool, but for reads of what the system holds in memory.

#[cfg(target_os = "linux")]
use std::io::IoSliceMut;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{Create, Disk, DiskFile, Durability, Io};

/// Parts handed to one system call; below every system's IOV_MAX.
const PARTS_PER_CALL: usize = 512;
/// Most bytes that are copied out of the page cache where they are asked for: a millisecond at the worst.
const AT_ONCE: usize = 4 << 20;

/// Files of the operating system. Operations must be submitted from within a tokio runtime.
///
/// `create_dir` also syncs the parent of every directory it makes, so that a new directory is
/// durable when the call resolves.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Create) -> Io<Arc<dyn DiskFile>> {
        let path = path.to_owned();
        on_thread(move || {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            if how == Create::New {
                options.create_new(true).mode(0o600);
            }
            let file = Arc::new(options.open(&path)?);
            Ok(Arc::new(RealFile { path, file }) as Arc<dyn DiskFile>)
        })
    }

    fn list(&self, dir: &Path) -> Io<Vec<String>> {
        let dir = dir.to_owned();
        on_thread(move || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&dir)? {
                let name = entry?.file_name().into_string().map_err(|name| {
                    let what = format!("name {name:?} in {} is not UTF-8", dir.display());
                    io::Error::new(io::ErrorKind::InvalidData, what)
                })?;
                names.push(name);
            }
            names.sort();
            Ok(names)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Io<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        on_thread(move || std::fs::rename(from, to))
    }

    fn remove(&self, path: &Path) -> Io<()> {
        let path = path.to_owned();
        on_thread(move || std::fs::remove_file(path))
    }

    fn create_dir(&self, dir: &Path) -> Io<()> {
        let dir = dir.to_owned();
        on_thread(move || create_dir(&dir))
    }

    fn sync_dir(&self, dir: &Path) -> Io<()> {
        let dir = dir.to_owned();
        on_thread(move || sync_dir(&dir))
    }
}

/// An open file of [`RealDisk`].
#[derive(Debug)]
struct RealFile {
    path: PathBuf,
    file: Arc<File>,
}

impl DiskFile for RealFile {
    fn write(&self, offset: u64, parts: Vec<Bytes>, durability: Durability) -> Io<()> {
        let file = self.file.clone();
        on_thread(move || {
            write_all(&file, offset, &parts)?;
            match durability {
                Durability::Later => Ok(()),
                Durability::Now => file.sync_data(),
            }
        })
    }

    fn read(&self, offset: u64, len: usize) -> Io<Bytes> {
        let (file, path) = (self.file.clone(), self.path.clone());
        let failed = move |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let mut buffer = match buffer(&file, offset, len) {
            Ok(buffer) => buffer,
            Err(error) => return Box::pin(std::future::ready(Err(failed(error)))),
        };
        let there = if buffer.len() <= AT_ONCE { read_cached(&file, offset, &mut buffer) } else { 0 };
        if there == buffer.len() {
            return Box::pin(async move {
                // Who reads a whole file in a loop must not hold its thread until the end.
                tokio::task::yield_now().await;
                Ok(buffer.freeze())
            });
        }
        on_thread(move || {
            let mut filled = there;
            while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match file.read_at(rest, offset + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(failed(e)),
                }
            }
            buffer.truncate(filled);
            Ok(buffer.freeze())
        })
    }

    fn len(&self) -> Io<u64> {
        let file = self.file.clone();
        on_thread(move || Ok(file.metadata()?.len()))
    }

    fn resize(&self, len: u64) -> Io<()> {
        let file = self.file.clone();
        on_thread(move || {
            let old = file.metadata()?.len();
            if len <= old { file.set_len(len) } else { grow(&file, old, len) }
        })
    }
}

/// Room for what is to be read. The file's length bounds it, whatever length was asked for.
fn buffer(file: &File, offset: u64, len: usize) -> io::Result<BytesMut> {
    let there = file.metadata()?.len().saturating_sub(offset);
    Ok(BytesMut::zeroed(len.min(usize::try_from(there).unwrap_or(usize::MAX))))
}

/// Reads as much as the page cache has from `offset` on, without waiting for the disk: to hand that to a
/// thread and be woken costs more than to copy it. Nothing where the system or file system has no such read.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, offset: u64, buffer: &mut [u8]) -> usize {
    let mut into = [IoSliceMut::new(buffer)];
    // An error comes again on the thread, and is told there.
    rustix::io::preadv2(file, &mut into, offset, rustix::io::ReadWriteFlags::NOWAIT).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: u64, _: &mut [u8]) -> usize {
    0
}

/// Runs a blocking operation, submitted now, and resolves with what it returns.
fn on_thread<T: Send + 'static>(operation: impl FnOnce() -> io::Result<T> + Send + 'static) -> Io<T> {
    let task = tokio::task::spawn_blocking(operation);
    Box::pin(async move { task.await.map_err(io::Error::other)? })
}

/// Writes all parts one behind the other, through short writes and interrupts.
fn write_all(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let call = &rest[..rest.len().min(PARTS_PER_CALL)];
        match rustix::io::pwritev(file, call, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Grows a file with its space allocated.
fn grow(file: &File, old: u64, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    loop {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(file, FallocateFlags::empty(), old, len - old) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => break,
            Err(e) => return Err(e.into()),
        }
    }
    // A file system without fallocate: writing zeros is what allocates.
    file.set_len(len)?;
    let zeros = Bytes::from_static(&[0; 64 * 1024]);
    let mut at = old;
    while at < len {
        let part = zeros.slice(..zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX)));
        at += part.len() as u64;
        write_all(file, at - part.len() as u64, &[part])?;
    }
    Ok(())
}

/// Makes a directory and its parents, each durable in its parent.
fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(parent),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn writes_grows_reads_and_keeps_to_itself() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("a/b");
        let disk = RealDisk;
        disk.create_dir(&dir).await.unwrap();
        disk.create_dir(&dir).await.unwrap();
        let path = dir.join("file");
        assert_eq!(disk.open(&path, Create::No).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = disk.open(&path, Create::New).await.unwrap();
        assert_eq!(disk.open(&path, Create::New).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        file.resize(100_000).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 100_000);
        // More parts than fit into one system call, with empty ones between.
        let parts: Vec<Bytes> = (0..1500u32).map(|n| Bytes::from(vec![n as u8; (n % 3) as usize])).collect();
        let whole: Vec<u8> = parts.iter().flatten().copied().collect();
        file.write(7, parts, Durability::Now).await.unwrap();
        assert_eq!(file.read(7, whole.len()).await.unwrap(), whole);
        assert_eq!(file.read(99_999, 10).await.unwrap().len(), 1);
        assert!(file.read(200_000, usize::MAX).await.unwrap().is_empty());
        file.write(0, Vec::new(), Durability::Now).await.unwrap();
        file.resize(3).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 3);

        disk.rename(&path, &dir.join("other")).await.unwrap();
        disk.sync_dir(&dir).await.unwrap();
        assert_eq!(disk.list(&dir).await.unwrap(), ["other"]);
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.join("other")), mode(&dir)), (0o600, 0o700));
        disk.remove(&dir.join("other")).await.unwrap();
        assert!(disk.list(&dir).await.unwrap().is_empty());
    }

    #[test]
    fn the_fallback_of_growing_writes_zeros() {
        let file = tempfile::tempfile().unwrap();
        grow(&file, 0, 70_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 70_000);
    }
}
