//! Disks that remember every write and every flush in the order in which they came: files of a FUSE file
//! system, of which loop devices are made. From that follow the images that a crash could have left.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use rand::{Rng, rngs::StdRng};

use crate::{history::Nanos, ledger::Ledger};

const BLOCK: usize = 4096;
/// What a device writes whole.
const SECTOR: usize = 512;
/// Nothing of it is ever changed behind the kernel.
const FOREVER: Duration = Duration::from_secs(86_400);

/// What a disk holds; what was never written is zeros.
#[derive(Debug, Clone, Default)]
pub struct Blocks(BTreeMap<u64, Arc<[u8; BLOCK]>>);

/// What a disk was told to do.
#[derive(Debug, Clone)]
pub enum Event {
    Write {
        when: Nanos,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// What was written before it is on the platter.
    Flush {
        when: Nanos,
    },
}

/// A disk from what it held on: everything it was told.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    before: Blocks,
    events: Vec<Event>,
}

/// The file system.
#[derive(Debug)]
pub struct Recorder {
    at: PathBuf,
    disks: Arc<Disks>,
    _session: BackgroundSession,
}

/// One disk of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(u64);

impl Blocks {
    /// The bytes of a file.
    pub fn of(file: &[u8]) -> Self {
        let mut blocks = Self::default();
        for (n, piece) in (0..).zip(file.chunks(BLOCK)) {
            if piece.iter().any(|byte| *byte != 0) {
                blocks.write(n * BLOCK as u64, piece);
            }
        }
        blocks
    }

    fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        let (mut block, mut from) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(BLOCK - from));
            let whole = self.0.entry(block).or_insert_with(|| Arc::new([0; BLOCK]));
            if let Some(place) = Arc::make_mut(whole).get_mut(from..from + piece.len()) {
                place.copy_from_slice(piece);
            }
            (bytes, block, from) = (rest, block + 1, 0);
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let first = offset / BLOCK as u64;
        let skip = (offset % BLOCK as u64) as usize;
        let blocks = (skip + len).div_ceil(BLOCK) as u64;
        let whole = (first..first + blocks).flat_map(|n| self.0.get(&n).map_or([0; BLOCK], |block| **block));
        whole.skip(skip).take(len).collect()
    }

    /// As a file, to be looked at.
    pub fn dump(&self, path: &Path, size: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(path)?;
        file.set_len(size)?;
        for (n, block) in &self.0 {
            file.write_all_at(&**block, n * BLOCK as u64)?;
        }
        Ok(())
    }
}

impl Event {
    const fn when(&self) -> Nanos {
        match self {
            Self::Write { when, .. } | Self::Flush { when } => *when,
        }
    }
}

impl Recording {
    /// How much has come so far.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// What a crash right behind event `at` may leave, and when that event came: everything up to the last
    /// flush, and of what was written after it all, nothing, or some, of which some is torn.
    pub fn crash(&self, at: usize, rng: &mut StdRng) -> (Blocks, Nanos) {
        let events = self.events.get(..=at).unwrap_or(&self.events);
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flush { .. })).unwrap_or(0);
        let (safe, open) = events.split_at(flushed);
        let mut blocks = self.before.clone();
        for event in safe {
            if let Event::Write { offset, bytes, .. } = event {
                blocks.write(*offset, bytes);
            }
        }
        let (kept, torn) = [(1.0, 0.0), (0.0, 0.0), (0.5, 0.2), (0.9, 0.5)][rng.random_range(0..4)];
        for event in open {
            let Event::Write { offset, bytes, .. } = event else { continue };
            if !rng.random_bool(kept) {
                continue;
            }
            // ext4 writes its superblock in place, with a checksum over two sectors, and so do all who use it.
            let tear = *offset >= BLOCK as u64 && rng.random_bool(torn);
            for (n, sector) in (0..).zip(bytes.chunks(SECTOR)) {
                if !tear || rng.random_bool(0.5) {
                    blocks.write(offset + n * SECTOR as u64, sector);
                }
            }
        }
        (blocks, events.last().map_or(0, Event::when))
    }
}

impl Recorder {
    /// Mounts it at `at`, for disks of `size` bytes.
    pub fn mount(at: &Path, size: u64, clock: &Arc<Ledger>) -> io::Result<Self> {
        fs::create_dir_all(at)?;
        let disks = Arc::new(Disks { size, clock: Arc::clone(clock), all: Mutex::default() });
        let session = fuser::spawn_mount(Served(Arc::clone(&disks)), at, &Config::default())?;
        Ok(Self { at: at.to_owned(), disks, _session: session })
    }

    /// A disk that holds this; it is recorded from here on.
    pub fn put(&self, before: Blocks) -> Number {
        let mut all = self.disks.all();
        all.last += 1;
        let number = all.last;
        let recording = Recording { before: before.clone(), events: Vec::new() };
        all.disks.insert(number, (before, recording));
        Number(number)
    }

    /// Where it lies.
    pub fn path(&self, disk: Number) -> PathBuf {
        self.at.join(disk.0.to_string())
    }

    /// What it was told so far.
    pub fn recording(&self, disk: Number) -> Recording {
        self.disks.all().disks.get(&disk.0).map(|(_, recording)| recording.clone()).unwrap_or_default()
    }

    /// Ends it; what it holds.
    pub fn take(&self, disk: Number) -> Blocks {
        self.disks.all().disks.remove(&disk.0).map(|(blocks, _)| blocks).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Disks {
    size: u64,
    clock: Arc<Ledger>,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// Inode numbers and names are never used again, so that nothing is found in the kernel's cache
    /// that is another disk's.
    last: u64,
    disks: BTreeMap<u64, (Blocks, Recording)>,
}

impl Disks {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number and inode of a disk differ by what the root takes.
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let root = inode == INodeNo::ROOT;
        if !root && !self.all().disks.contains_key(&number(inode)) {
            return None;
        }
        let (kind, perm, size) =
            if root { (FileType::Directory, 0o700, 0) } else { (FileType::RegularFile, 0o600, self.size) };
        let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
        let (ino, blocks, nlink, uid, gid) = (inode, size.div_ceil(512), 1, 0, 0);
        Some(FileAttr {
            ino,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn number(inode: INodeNo) -> u64 {
    u64::from(inode).saturating_sub(1)
}

struct Served(Arc<Disks>);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        let found = number.and_then(|number| self.0.attributes(INodeNo(number + 1)));
        match found {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.0.size.saturating_sub(offset));
        let bytes =
            self.0.all().disks.get(&number(inode)).map(|(blocks, _)| blocks.read(offset, len as usize));
        match bytes {
            Some(bytes) => reply.data(&bytes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut all = self.0.all();
        let Some((blocks, recording)) = all.disks.get_mut(&number(inode)) else {
            return reply.error(Errno::ENOENT);
        };
        blocks.write(offset, data);
        recording.events.push(Event::Write { when: self.0.clock.now(), offset, bytes: data.into() });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some((_, recording)) = self.0.all().disks.get_mut(&number(inode)) {
            recording.events.push(Event::Flush { when: self.0.clock.now() });
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const AT: u64 = BLOCK as u64;

    fn write(when: Nanos, offset: u64, byte: u8, len: usize) -> Event {
        Event::Write { when, offset, bytes: vec![byte; len].into() }
    }

    #[test]
    fn a_disk_holds_what_was_written() {
        let mut blocks = Blocks::of(&[[0; BLOCK], [7; BLOCK]].concat());
        assert_eq!(blocks.0.len(), 1, "zeros take no space");
        blocks.write(BLOCK as u64 - 2, &[1, 2, 3]);
        assert_eq!(blocks.read(BLOCK as u64 - 3, 6), [0, 1, 2, 3, 7, 7]);
        assert_eq!(blocks.read(9 * BLOCK as u64, 2), [0, 0]);
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_any_of_the_rest() {
        let recording = Recording {
            before: Blocks::of(&[9; BLOCK + 512]),
            events: vec![
                write(1, AT, 1, 512),
                Event::Flush { when: 2 },
                write(3, AT + 512, 2, 1024),
                write(4, AT, 3, 512),
            ],
        };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (blocks, when) = recording.crash(2, &mut rng);
            assert_eq!(
                (blocks.read(AT, 512), when),
                (vec![1; 512], 3),
                "flushed, and what came later is not there"
            );
            let open = blocks.read(AT + 512, 1024);
            assert!(
                open.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])),
                "sectors are whole"
            );
            seen.insert((open[0], open[512]));
            let (blocks, when) = recording.crash(0, &mut rng);
            assert!([vec![9; 512], vec![1; 512]].contains(&blocks.read(AT, 512)) && when == 1);
        }
        assert_eq!(seen, [(0, 0), (0, 2), (2, 0), (2, 2)].into());
    }
}
