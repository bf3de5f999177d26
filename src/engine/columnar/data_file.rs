//! One Parquet file: what the manifest says of it, where it lies, and how it gets there.
//!
//! A file is never changed. Its name holds its positions and a part of its content hash, so two
//! files with different content never have one name. Layout: `data/DATABASE/TABLE/DAY-LSN-HASH.parquet`.
//!
//! Nothing of a file is believed that was not compared with what was written (`verify.rs`).

#[cfg(feature = "sql")]
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use parquet::file::FOOTER_SIZE;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    parquet::{tail_len, tail_rows},
    verify::block_sums,
};
use crate::{
    disk::{Create, Disk, DiskFile, Durability},
    engine::EngineError,
    types::Lsn,
};

/// Name of the directory that holds the files, under the engine's.
pub(super) const DATA: &str = "data";
/// What a file under construction ends with.
const UNFINISHED: &str = ".tmp";
/// Bytes that are on their way to the disk at a time.
const PIECE: usize = 256 << 10;
/// The same where the disk takes [`LONG`] for less: with small ones flushes might not keep up there.
const LARGE_PIECE: usize = 1 << 20;
const LONG: Duration = Duration::from_millis(10);
/// Nanoseconds of a day.
pub(super) const DAY: i64 = 86_400_000_000_000;
/// Most others of which a file remembers whether they share points with it.
#[cfg(feature = "sql")]
const MOST_APART: usize = 4_096;

/// What the manifest says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// Whose file it is.
    pub(super) database: String,
    /// Which table's.
    pub(super) table: String,
    /// How many points.
    pub(super) rows: u64,
    /// Time of the first.
    pub(super) min_time: i64,
    /// Time of the last.
    pub(super) max_time: i64,
    /// No record before this one is in the file.
    pub(super) min_lsn: Lsn,
    /// No record behind this one is in the file.
    pub(super) max_lsn: Lsn,
    /// Length in bytes.
    pub(super) size: u64,
    /// SHA-256 of the content.
    pub(super) hash: [u8; 32],
    /// First times of its windows: a file that was compacted has one per row group, no two with a
    /// time in common, and in each its rows are by tags and then by time. None: all are by time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) windows: Vec<i64>,
}

/// A file that is there. It is removed only while nothing else holds this value.
#[derive(Debug)]
pub(super) struct DataFile {
    /// What the manifest says, or will say.
    pub(super) entry: FileEntry,
    /// Where it lies.
    pub(super) path: PathBuf,
    /// Set once its content was found to be another than what was written.
    pub(super) damaged: OnceLock<()>,
    /// A compaction reads it, or has found that it is better left alone: nobody else puts it together
    /// with others.
    pub(super) claimed: AtomicBool,
    /// CRC-32C of each block of its content, once that was whole as this process saw it.
    pub(super) sums: tokio::sync::OnceCell<Vec<u32>>,
    /// Its Parquet metadata, once read.
    #[cfg(feature = "sql")]
    pub(super) metadata: tokio::sync::OnceCell<Arc<parquet::file::metadata::ParquetMetaData>>,
    /// Of files with a greater hash: whether the two have no point in common.
    #[cfg(feature = "sql")]
    apart: Mutex<BTreeMap<[u8; 32], bool>>,
}

impl FileEntry {
    /// Path under the engine's directory, with `/` between parts. Made from the fields alone, so
    /// it never leads out of the directory, whoever made them.
    pub(super) fn name(&self) -> String {
        let day = self.min_time.div_euclid(DAY);
        // 1970-01-01 is Julian day 2440588; 64 bits of nanoseconds stay within the calendar.
        let date = i32::try_from(day + 2_440_588).ok().and_then(|day| time::Date::from_julian_day(day).ok());
        let (year, month, day) =
            date.map_or((0, 0, 0), |date| (date.year(), u8::from(date.month()), date.day()));
        let hash = HEXLOWER.encode(self.hash.first_chunk::<8>().unwrap_or(&[0; 8]));
        let (database, table, lsn) = (escape(&self.database), escape(&self.table), self.max_lsn);
        format!("{DATA}/{database}/{table}/{year:04}-{month:02}-{day:02}-{lsn}-{hash}.parquet")
    }
}

impl DataFile {
    /// The file of an entry under the engine's directory.
    pub(super) fn new(dir: &Path, entry: FileEntry) -> Self {
        let path = dir.join(entry.name());
        Self {
            entry,
            path,
            damaged: OnceLock::new(),
            claimed: AtomicBool::new(false),
            sums: tokio::sync::OnceCell::new(),
            #[cfg(feature = "sql")]
            metadata: tokio::sync::OnceCell::new(),
            #[cfg(feature = "sql")]
            apart: Mutex::default(),
        }
    }

    /// Whether this file and another have no point in common; `None` if nobody compared them.
    #[cfg(feature = "sql")]
    pub(super) fn apart_from(&self, other: &Self) -> Option<bool> {
        let (at, of) = if self.entry.hash < other.entry.hash { (self, other) } else { (other, self) };
        at.apart.lock().unwrap_or_else(PoisonError::into_inner).get(&of.entry.hash).copied()
    }

    /// Remembers whether this file and another have no point in common.
    #[cfg(feature = "sql")]
    pub(super) fn note_apart(&self, other: &Self, apart: bool) {
        let (at, of) = if self.entry.hash < other.entry.hash { (self, other) } else { (other, self) };
        let mut known = at.apart.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST_APART {
            known.insert(of.entry.hash, apart);
        }
    }

    /// Writes a file: beside it, fsync, footer read back, rename. Its name is durable only after
    /// [`sync_names`]. `entry` has everything but size and hash.
    ///
    /// # Errors
    /// The disk fails, or does not give back what was written.
    pub(super) async fn write(
        disk: &dyn Disk,
        dir: &Path,
        entry: FileEntry,
        bytes: Bytes,
    ) -> Result<Self, EngineError> {
        let hash = sha256(&bytes);
        let mut file = Self::new(dir, FileEntry { size: bytes.len() as u64, hash, ..entry });
        file.sums = tokio::sync::OnceCell::new_with(Some(block_sums(&bytes)));
        let Some(parent) = file.path.parent() else {
            return Err(EngineError::Broken("a data file has no directory".into()));
        };
        disk.create_dir(parent).await?;
        let mut beside = file.path.clone().into_os_string();
        beside.push(UNFINISHED);
        let beside = PathBuf::from(beside);
        remove(disk, &beside).await?;
        let written = async {
            let open = disk.open(&beside, Create::New).await?;
            write_piece_by_piece(&*open, bytes).await?;
            drop(open);
            file.check_footer(disk, &beside).await?;
            Ok::<(), EngineError>(disk.rename(&beside, &file.path).await?)
        };
        if let Err(error) = written.await {
            // Space that a full disk is short of; the next start would find it too.
            let _ = remove(disk, &beside).await;
            return Err(error);
        }
        Ok(file)
    }

    /// Checks that the file is there with its length.
    ///
    /// # Errors
    /// The disk fails; [`EngineError::Damaged`] if it is missing or of another length.
    pub(super) async fn check_len(&self, disk: &dyn Disk) -> Result<(), EngineError> {
        let damaged = |why: String| EngineError::Damaged(self.path.display().to_string(), why);
        let open = match disk.open(&self.path, Create::No).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged("the manifest names it and it is not there".into()));
            }
            open => open?,
        };
        let len = open.len().await?;
        if len != self.entry.size {
            return Err(damaged(format!("it is {len} bytes long, the manifest says {}", self.entry.size)));
        }
        Ok(())
    }

    /// The whole content.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) async fn read(&self, disk: &dyn Disk) -> Result<Bytes, EngineError> {
        Ok(crate::disk::read_file(disk, &self.path, self.entry.size).await?)
    }

    /// The whole content, compared with what was written.
    ///
    /// # Errors
    /// The disk fails; [`EngineError::Damaged`] if the content is another.
    pub(super) async fn read_checked(&self, disk: &dyn Disk) -> Result<Bytes, EngineError> {
        let content = self.read(disk).await?;
        if digest(&SHA256, &content).as_ref() != self.entry.hash {
            let name = self.path.display().to_string();
            return Err(EngineError::Damaged(name, "its content is not what the manifest says".into()));
        }
        Ok(content)
    }

    async fn check_footer(&self, disk: &dyn Disk, path: &Path) -> Result<(), EngineError> {
        let open = disk.open(path, Create::No).await?;
        let size = open.len().await?;
        let damaged = |why: String| EngineError::Damaged(path.display().to_string(), why);
        let footer = open.read(size.saturating_sub(FOOTER_SIZE as u64), FOOTER_SIZE).await?;
        let tail = tail_len(&footer).map_err(|e| damaged(e.to_string()))?;
        let start = size.checked_sub(tail).ok_or_else(|| damaged("its footer is too long".into()))?;
        let rows = tail_rows(&open.read(start, tail as usize).await?).map_err(|e| damaged(e.to_string()))?;
        if rows != self.entry.rows || size != self.entry.size {
            return Err(damaged("it reads back otherwise than it was written".into()));
        }
        Ok(())
    }
}

/// Writes a new file so that the disk has no more than a piece of it to do at any time. A group of the log waits
/// behind what is there already, and every acknowledgement with it: behind a whole file that is tens of milliseconds.
async fn write_piece_by_piece(file: &dyn DiskFile, mut rest: Bytes) -> std::io::Result<()> {
    let (mut at, mut size) = (0, PIECE);
    while !rest.is_empty() {
        let piece = rest.split_to(size.min(rest.len()));
        let (len, began) = (piece.len() as u64, Instant::now());
        file.write(at, vec![piece], Durability::Now).await?;
        at += len;
        size = if began.elapsed() < LONG { PIECE } else { LARGE_PIECE.min(2 * size) };
    }
    Ok(())
}

/// Makes the names of these files durable, those of the directories above them too.
///
/// # Errors
/// The disk fails.
pub(super) async fn sync_names(
    disk: &dyn Disk,
    dir: &Path,
    files: &[Arc<DataFile>],
) -> Result<(), EngineError> {
    let above = files.iter().flat_map(|file| file.path.ancestors().skip(1));
    let dirs: BTreeSet<&Path> = above.filter(|above| above.starts_with(dir)).collect();
    // Deepest first: a name counts only if every name above it does.
    for dir in dirs.into_iter().rev() {
        disk.sync_dir(dir).await?;
    }
    Ok(())
}

/// SHA-256 of some bytes.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Removes a file; that it is not there is no error.
pub(super) async fn remove(disk: &dyn Disk, path: &Path) -> Result<(), EngineError> {
    match disk.remove(path).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// A name as one path part that every file system takes.
fn escape(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => part.push(byte.into()),
            b'.' if !part.is_empty() => part.push('.'),
            _ => {
                let _ = write!(part, "%{byte:02X}");
            }
        }
    }
    if part.len() > LONGEST {
        part.truncate(LONGEST);
        let hash = digest(&SHA256, name.as_bytes());
        let _ = write!(part, "~{}", HEXLOWER.encode(hash.as_ref().first_chunk::<8>().unwrap_or(&[0; 8])));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{DiskLatency, Fault, SimDisk};

    fn entry(table: &str, min_time: i64) -> FileEntry {
        FileEntry {
            database: "db".into(),
            table: table.into(),
            rows: 1,
            min_time,
            max_time: min_time,
            min_lsn: Lsn::new(1, 1),
            max_lsn: Lsn::new(1, 2),
            size: 0,
            hash: [0xab; 32],
            windows: Vec::new(),
        }
    }

    #[test]
    fn names_say_the_day_and_never_lead_out() {
        let name = |table: &str, time| entry(table, time).name();
        assert_eq!(name("cpu", 0), "data/db/cpu/1970-01-01-1.2-abababababababab.parquet");
        assert_eq!(name("cpu", -1), "data/db/cpu/1969-12-31-1.2-abababababababab.parquet");
        assert!(name("cpu", 1_709_164_800_000_000_000).contains("/2024-02-29-"));
        assert!(name("..", 0).starts_with("data/db/%2E./1970"));
        assert!(name("a/b c.ä", 0).starts_with("data/db/a%2Fb%20c.%C3%A4/1970"));
        assert!(name("", i64::MIN).starts_with("data/db//1677-09-21-"));
        let (a, b) = ("x".repeat(255), format!("{}y", "x".repeat(254)));
        assert!(name(&a, 0).len() < 200);
        assert_ne!(name(&a, 0), name(&b, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_is_durable_before_the_next_is_written() {
        let (disk, path) = (SimDisk::new(), Path::new("/file"));
        let content: Bytes = (0..7 * PIECE + 9).map(|n| (n / 1_000) as u8).collect::<Vec<_>>().into();
        let file = disk.open(path, Create::New).await.unwrap();
        disk.sync_dir(Path::new("/")).await.unwrap();
        let before = disk.calls();
        disk.fail_at(before + 2, Fault::Eio, false);
        write_piece_by_piece(&*file, content.clone()).await.unwrap_err();
        assert_eq!(disk.platter().content(path).unwrap(), content[..PIECE]);
        write_piece_by_piece(&*file, content.clone()).await.unwrap();
        assert_eq!(disk.platter().content(path).unwrap(), content);
        assert_eq!(disk.calls() - before, 2 + 8);

        disk.set_latency(DiskLatency { sync: LONG, ..DiskLatency::default() });
        write_piece_by_piece(&*file, content.clone()).await.unwrap();
        assert_eq!(disk.platter().content(path).unwrap(), content);
        // One, two and four of the small ones; and 9 bytes.
        assert_eq!(disk.calls() - before, 2 + 8 + 4);

        // As soon as the disk is quick again they are small again: one, two, four, and three alone.
        let (content, before) = (Bytes::from(vec![1; 10 * PIECE]), disk.calls());
        let quick = async {
            tokio::time::sleep(LONG * 3 / 2).await;
            disk.set_latency(DiskLatency::default());
        };
        let (written, ()) = tokio::join!(write_piece_by_piece(&*file, content.clone()), quick);
        written.unwrap();
        assert_eq!(disk.calls() - before, 3 + 3);
    }
}
