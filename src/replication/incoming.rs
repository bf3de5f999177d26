//! The files of an engine snapshot while they are fetched.
//!
//! A file that is whole has its name; one of which a part has come has the head of its hash in its
//! name too, so that what comes later is never put behind another file's beginning. Nothing else is
//! written down: after a restart, or with another offer of the same source, the files themselves tell
//! what is there. Whatever an offer does not name goes before anything is fetched.
//!
//! A file gets its name when it is on disk, so its name is the mark that it is. A part is believed by
//! nobody: a sync that failed may have left it readable and marked clean, so that the next sync of it
//! succeeds and writes nothing (also one of the next process, for the page cache is the kernel's). So
//! what is there of it is written again before the rest is put behind it ([`Incoming::go_on`]).

use std::{
    collections::BTreeSet,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};

use crate::{
    disk::{Create, Disk, DiskFile, Durability, remove_files_but},
    protocol::{frame::MAX_CHUNK, replication::SnapshotOffer},
    transport::RecvStream,
};

use super::catch_up::CatchUpError;

/// Most files of one snapshot.
const MAX_FILES: usize = 100_000;
/// Longest name of one.
const MAX_NAME: usize = 512;
/// Bytes of a hash.
const HASH: usize = 32;
/// Bytes that may be in the page cache only: a sync of all of a large file at once is felt elsewhere.
const UNSYNCED: u64 = 16 << 20;

/// Where the files are put.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    disk: Arc<dyn Disk>,
    /// Holds nothing else.
    pub(super) dir: PathBuf,
    /// Most bytes of a file that are written and not synced.
    unsynced: u64,
}

/// A file while it comes.
pub(super) struct Coming<'a> {
    disk: &'a dyn Disk,
    file: &'a OfferedFile,
    open: Arc<dyn DiskFile>,
    hash: Context,
    /// How much of it is here, written by this process.
    at: u64,
    synced: u64,
    unsynced: u64,
}

/// One file of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfferedFile {
    pub(super) name: String,
    path: PathBuf,
    part: PathBuf,
    pub(super) len: u64,
    /// `None` from a source that tells none.
    hash: Option<[u8; HASH]>,
}

impl OfferedFile {
    /// The files of an offer, to be put below `dir`; or what is wrong with them.
    pub(super) fn of(offer: &SnapshotOffer, dir: &Path) -> Result<Vec<Self>, String> {
        let (files, hashes) = (&offer.files, offer.hashes.as_chunks::<HASH>());
        if files.len() > MAX_FILES {
            return Err(format!("{} files are offered, {MAX_FILES} at most are taken", files.len()));
        }
        if !offer.hashes.is_empty() && (hashes.0.len() != files.len() || !hashes.1.is_empty()) {
            return Err("the offer does not tell the hash of each file".into());
        }
        let total = files.iter().try_fold(0_u64, |total, (_, len)| total.checked_add(*len));
        total.ok_or("the offered files are longer than any disk")?;
        let mut names = BTreeSet::new();
        let mut listed = Vec::with_capacity(files.len());
        for (at, (name, len)) in files.iter().enumerate() {
            let path = safe_path(dir, name).filter(|_| names.insert(name));
            let path = path.ok_or_else(|| format!("the snapshot names a file {name:?}"))?;
            let hash = hashes.0.get(at).copied();
            let head = HEXLOWER.encode(hash.unwrap_or_default().first_chunk::<8>().unwrap_or(&[0; 8]));
            let mut part = path.clone().into_os_string();
            part.push(format!(".{head}.part"));
            listed.push(Self { name: name.clone(), path, part: part.into(), len: *len, hash });
        }
        Ok(listed)
    }
}

impl Incoming {
    /// Files go to `dir`, which holds nothing else.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir, unsynced: UNSYNCED }
    }

    /// Removes everything that is not a part of these files.
    pub(super) async fn keep(&self, files: &[OfferedFile]) -> io::Result<()> {
        self.disk.create_dir(&self.dir).await?;
        let keep = files.iter().filter(|file| file.hash.is_some()).flat_map(|file| [&file.path, &file.part]);
        remove_files_but(&*self.disk, &self.dir, &keep.cloned().collect()).await
    }

    /// From which byte on the file is missing; `None` if it is whole, and durable.
    pub(super) async fn missing(&self, file: &OfferedFile) -> io::Result<Option<u64>> {
        if let Some(open) = self.open(&file.path).await? {
            let whole = open.len().await? == file.len
                && Some(digest(&*open, file.len).await?.finish().as_ref())
                    == file.hash.as_ref().map(|h| &h[..]);
            if whole {
                // It may be whole in the page cache only.
                open.write(file.len, Vec::new(), Durability::Now).await?;
                return Ok(None);
            }
            self.disk.remove(&file.path).await?;
        }
        let Some(part) = self.open(&file.part).await? else { return Ok(Some(0)) };
        let len = part.len().await?;
        if len > file.len {
            self.disk.remove(&file.part).await?;
            return Ok(Some(0));
        }
        Ok(Some(len))
    }

    /// Takes the file from byte `from` on, as [`Incoming::missing`] said, and makes it durable;
    /// `came` hears of every piece. False for what is not the file that was offered; it is removed.
    pub(super) async fn take(
        &self,
        file: &OfferedFile,
        from: u64,
        recv: &mut RecvStream,
        mut came: impl FnMut(u64),
    ) -> Result<bool, CatchUpError> {
        let mut coming = self.go_on(file, from).await?;
        while coming.at < file.len {
            let chunk = recv.read_frame(MAX_CHUNK).await?;
            let len = chunk.len() as u64;
            if len == 0 || len > file.len - coming.at {
                return Err(CatchUpError::Retry(format!("{} is not as long as offered", file.name)));
            }
            coming.put(chunk).await?;
            came(len);
        }
        Ok(coming.finish().await?)
    }

    /// Begins with the file, or goes on with its first `from` bytes, which are there: those are written
    /// again.
    async fn go_on<'a>(&'a self, file: &'a OfferedFile, from: u64) -> io::Result<Coming<'a>> {
        let disk = &*self.disk;
        disk.create_dir(file.path.parent().unwrap_or(&self.dir)).await?;
        let open = match self.open(&file.part).await? {
            Some(open) => open,
            None => disk.open(&file.part, Create::New).await?,
        };
        let hash = Context::new(&SHA256);
        let mut coming = Coming { disk, file, open, hash, at: 0, synced: 0, unsynced: self.unsynced };
        while coming.at < from {
            let len = usize::try_from(from - coming.at).unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
            let here = coming.open.read(coming.at, len).await?;
            if here.is_empty() {
                break;
            }
            coming.put(here).await?;
        }
        Ok(coming)
    }

    /// Removes everything.
    pub(super) async fn clear(&self) -> io::Result<()> {
        self.keep(&[]).await
    }

    async fn open(&self, path: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match self.disk.open(path, Create::No).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }
}

impl Coming<'_> {
    /// Writes the next bytes.
    async fn put(&mut self, chunk: Bytes) -> io::Result<()> {
        let len = chunk.len() as u64;
        self.hash.update(&chunk);
        let due = self.at + len - self.synced >= self.unsynced;
        let durability = if due { Durability::Now } else { Durability::Later };
        self.open.write(self.at, vec![chunk], durability).await?;
        self.at += len;
        if due {
            self.synced = self.at;
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name. False for what is not the file that was offered; it
    /// is removed.
    async fn finish(self) -> io::Result<bool> {
        let Self { disk, file, open, hash, at, .. } = self;
        open.write(at, Vec::new(), Durability::Now).await?;
        if file.hash.is_some_and(|wanted| hash.finish().as_ref() != wanted) {
            disk.remove(&file.part).await?;
            return Ok(false);
        }
        disk.rename(&file.part, &file.path).await?;
        if let Some(dir) = file.path.parent() {
            disk.sync_dir(dir).await?;
        }
        Ok(true)
    }
}

/// The hash, so far, of the first `len` bytes.
async fn digest(file: &dyn DiskFile, len: u64) -> io::Result<Context> {
    let (mut hash, mut at) = (Context::new(&SHA256), 0);
    while at < len {
        let part = file.read(at, MAX_CHUNK.min(usize::try_from(len - at).unwrap_or(MAX_CHUNK))).await?;
        if part.is_empty() {
            break;
        }
        at += part.len() as u64;
        hash.update(&part);
    }
    Ok(hash)
}

/// The path below `dir` that `name` means, unless it would lead out of it.
fn safe_path(dir: &Path, name: &str) -> Option<PathBuf> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty() && name.len() <= MAX_NAME).then(|| dir.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_names_stay_below_the_directory() {
        let dir = Path::new("/data/incoming");
        assert!(safe_path(dir, "db/cpu/1.parquet").is_some());
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "./a"] {
            assert_eq!(safe_path(dir, bad), None, "{bad}");
        }
    }

    fn offer(files: &[(&str, u64)], hashes: usize) -> SnapshotOffer {
        let files = files.iter().map(|(name, len)| ((*name).to_owned(), *len)).collect();
        SnapshotOffer { files, hashes: vec![7; hashes], ..SnapshotOffer::default() }
    }

    #[test]
    fn an_offer_is_taken_whole_or_not_at_all() {
        let dir = Path::new("/in");
        let read = |files: &[(&str, u64)], hashes| OfferedFile::of(&offer(files, hashes), dir);
        let files = read(&[("a/b", 3), ("c", 0)], 2 * HASH).unwrap();
        assert_eq!(files[0].part, Path::new("/in/a/b.0707070707070707.part"));
        assert!(read(&[("a", 3)], 0).unwrap()[0].hash.is_none(), "of an older version");
        for (files, hashes) in [
            (&[("a", 1)][..], HASH - 1),
            (&[("a", 1)], 2 * HASH),
            (&[("a", 1), ("a", 2)], 2 * HASH),
            (&[("a", u64::MAX), ("b", 1)], 2 * HASH),
            (&[("../a", 1)], HASH),
        ] {
            assert!(read(files, hashes).is_err(), "{files:?}");
        }
    }

    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn what_is_whole_is_kept_a_beginning_goes_on_and_the_rest_goes() {
        use crate::testing::SimDisk;
        let disk = SimDisk::new();
        let incoming = Incoming::new(Arc::new(disk.boot()), "/in".into());
        let hash_of = |bytes: &[u8]| ring::digest::digest(&SHA256, bytes).as_ref().to_vec();
        let contents: [(&str, &[u8]); 4] =
            [("whole", b"12345"), ("begun", b"abcdef"), ("bent", b"xyz"), ("new", b"n")];
        let files = contents.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.len() as u64)).collect();
        let hashes = contents.iter().flat_map(|(_, bytes)| hash_of(bytes)).collect();
        let offer = SnapshotOffer { files, hashes, ..SnapshotOffer::default() };
        let listed = OfferedFile::of(&offer, &incoming.dir).unwrap();
        disk.create_dir(Path::new("/in/other")).await.unwrap();
        let former = PathBuf::from("/in/begun.0000000000000000.part");
        for (path, bytes) in [
            (listed[0].path.clone(), &b"12345"[..]),
            (listed[1].part.clone(), b"abc"),
            (listed[2].path.clone(), b"xyZ"),
            ("/in/other/file".into(), b"of another offer"),
            (former, b"of another file"),
        ] {
            let file = disk.open(&path, Create::New).await.unwrap();
            file.write(0, vec![bytes.into()], Durability::Later).await.unwrap();
        }
        incoming.keep(&listed).await.unwrap();
        let mut missing = Vec::new();
        for file in &listed {
            missing.push(incoming.missing(file).await.unwrap());
        }
        assert_eq!(missing, [None, Some(3), Some(0), Some(0)]);
        assert_eq!(disk.files(), [listed[1].part.clone(), listed[0].path.clone()]);
        let durable = disk.platter();
        assert_eq!(durable.content(&listed[0].path).unwrap(), b"12345", "what counts as there is on disk");
        incoming.clear().await.unwrap();
        assert!(disk.files().is_empty());
    }

    /// What came in one life of a process.
    #[cfg(feature = "testing")]
    async fn life(disk: &crate::testing::SimDisk, files: &[(OfferedFile, Vec<u8>)]) -> io::Result<bool> {
        let incoming = Incoming { unsynced: 6, ..Incoming::new(Arc::new(disk.boot()), "/in".into()) };
        let listed: Vec<OfferedFile> = files.iter().map(|file| file.0.clone()).collect();
        incoming.keep(&listed).await?;
        for (file, bytes) in files {
            let Some(from) = incoming.missing(file).await? else { continue };
            let mut coming = incoming.go_on(file, from).await?;
            for chunk in bytes[from as usize..].chunks(4) {
                coming.put(Bytes::copy_from_slice(chunk)).await?;
            }
            if !coming.finish().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Each call of two lives fails once, or loses power; what the third takes for whole is on disk.
    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn what_is_taken_for_whole_is_on_disk_whatever_failed_before() {
        use crate::testing::{Fault, SimDisk};
        let contents: [(&str, &[u8]); 2] = [("first", b"0123456789"), ("sub/second", b"abc")];
        let offer = SnapshotOffer {
            files: contents.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.len() as u64)).collect(),
            hashes: contents
                .iter()
                .flat_map(|(_, bytes)| ring::digest::digest(&SHA256, bytes).as_ref().to_vec())
                .collect(),
            ..SnapshotOffer::default()
        };
        let listed = OfferedFile::of(&offer, Path::new("/in")).unwrap();
        let files: Vec<_> = listed.into_iter().zip(contents.map(|(_, bytes)| bytes.to_vec())).collect();
        let fail = async |disk: &SimDisk, fault, call| {
            disk.fail_at(disk.calls() + call, fault, false);
            let ended = life(disk, &files).await;
            // A full disk ends no process: the same one goes on.
            match fault {
                Fault::PowerCut => disk.crash(call),
                Fault::Eio => disk.kill(),
                Fault::Enospc | Fault::Short => disk.clear_faults(),
            }
            ended
        };
        let faults = [Fault::Eio, Fault::PowerCut, Fault::Enospc, Fault::Short];
        let (mut resumed, mut again) = (0, 0);
        for (first, second) in faults.iter().flat_map(|first| faults.map(|second| (*first, second))) {
            for call in 1.. {
                let disk = SimDisk::new();
                if fail(&disk, first, call).await.is_ok() {
                    break;
                }
                for call in 1.. {
                    let disk = disk.fork();
                    let whole = fail(&disk, second, call).await;
                    resumed += 1;
                    let what = format!("{first:?}, {second:?} at {call}");
                    // A beginning that lost power in pieces comes once more from its first byte.
                    while !life(&disk, &files).await.unwrap_or_else(|error| panic!("{what}: {error}")) {
                        again += 1;
                    }
                    let platter = disk.platter();
                    for (file, bytes) in &files {
                        assert_eq!(platter.content(&file.path).as_ref(), Some(bytes), "{what}");
                    }
                    if whole.is_ok() {
                        break;
                    }
                }
            }
        }
        assert!(resumed > 1000 && again > 0, "{resumed} {again}");
    }
}
