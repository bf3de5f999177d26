//! Whether a data file still is what was written.
//!
//! The manifest has the SHA-256 of each file. Parquet's own page checksums would be the other way, but
//! the writer we use does not make them, and they leave out headers and footer. So the first read of a
//! file in a process reads all of it and compares the hash, and remembers a checksum of each
//! [`BLOCK`]; from then on whatever is read is compared block by block. A file that this process wrote,
//! or took over from another node, has its checksums from then. They take 64 bytes per MiB of files.
//!
//! A file that is found to be damaged is marked for as long as the process lives or until it is
//! replaced: every read of it fails, whatever the disk gives the next time.

use std::{io, ops::Range, path::Path};

use bytes::Bytes;
use crc32c::crc32c;
use ring::digest::{Context, SHA256};

use super::data_file::DataFile;
use crate::{
    disk::{Create, Disk, DiskFile, is_unreadable},
    engine::{EngineError, Pace},
};

/// Bytes that are compared together.
pub(super) const BLOCK: usize = 64 << 10;
/// Bytes read at a time; a multiple of [`BLOCK`].
const STEP: usize = 1 << 20;

/// The checksum of each block of a content.
pub(super) fn block_sums(content: &[u8]) -> Vec<u32> {
    content.chunks(BLOCK).map(crc32c).collect()
}

/// What a whole read came to.
enum Content {
    Whole(Vec<u32>),
    Other(String),
}

impl DataFile {
    /// Compares the whole content of a copy at `path`, which is not yet part of the engine.
    ///
    /// # Errors
    /// The disk fails; [`EngineError::Damaged`] if the content is another.
    pub(super) async fn check_content(&self, disk: &dyn Disk, path: &Path) -> Result<(), EngineError> {
        match self.compare(disk, path, None).await? {
            Content::Whole(sums) => {
                // A second look at the same content came to the same.
                let _ = self.sums.set(sums);
                Ok(())
            }
            Content::Other(why) => Err(EngineError::Damaged(path.display().to_string(), why)),
        }
    }

    /// Reads all of the file and compares it. `pace` is awaited ahead of each piece.
    ///
    /// # Errors
    /// The disk fails; [`EngineError::Damaged`] if the content is another, is gone, or cannot be read
    /// at all: the file is marked then.
    pub(super) async fn verify(&self, disk: &dyn Disk, pace: Option<&Pace>) -> Result<Vec<u32>, EngineError> {
        match self.compare(disk, &self.path, pace).await {
            Ok(Content::Whole(sums)) => Ok(sums),
            Ok(Content::Other(why)) => Err(self.damage(&why)),
            Err(error) if is_lost(&error) => Err(self.damage(&format!("it cannot be read: {error}"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes of the file, compared with what was written. `open` is the file, opened.
    ///
    /// # Errors
    /// As [`Self::verify`], for the blocks read; a range outside of the file is one that no whole file
    /// asks for.
    #[cfg_attr(not(feature = "sql"), allow(dead_code, reason = "queries read so, and tests"))]
    pub(super) async fn read_range(
        &self,
        disk: &dyn Disk,
        open: &dyn DiskFile,
        range: Range<u64>,
    ) -> Result<Bytes, EngineError> {
        if self.damaged.get().is_some() {
            return Err(EngineError::Damaged(self.path.display().to_string(), "found before".into()));
        }
        let sums = self.sums.get_or_try_init(|| self.verify(disk, None)).await?;
        let block = BLOCK as u64;
        let outside = || EngineError::Broken(format!("{} does not reach {range:?}", self.path.display()));
        if range.start > range.end || range.end > self.entry.size {
            return Err(outside());
        }
        let (first, last) = (range.start / block, range.end.div_ceil(block));
        let (from, to) = (first * block, (last * block).min(self.entry.size));
        let index = |at: u64| usize::try_from(at).map_err(|_| outside());
        let bytes = match open.read(from, index(to.saturating_sub(from))?).await {
            Err(error) if is_lost(&error) => return Err(self.damage(&format!("it cannot be read: {error}"))),
            read => read?,
        };
        let wanted = sums.get(index(first)?..index(last)?).ok_or_else(outside)?;
        if bytes.len() as u64 != to.saturating_sub(from) {
            return Err(self.damage("it ends early"));
        }
        for (at, (chunk, sum)) in bytes.chunks(BLOCK).zip(wanted).enumerate() {
            if crc32c(chunk) != *sum {
                let at = from + at as u64 * block;
                return Err(self.damage(&format!("the block at {at} is not what was written")));
            }
        }
        Ok(bytes.slice(index(range.start - from)?..index(range.end - from)?))
    }

    /// Marks the file, and says so once.
    pub(super) fn damage(&self, why: &str) -> EngineError {
        if self.damaged.set(()).is_ok() {
            tracing::error!(
                file = %self.path.display(),
                why,
                "a data file is damaged: queries that need it fail until it is replaced from another node"
            );
        }
        EngineError::Damaged(self.path.display().to_string(), why.to_owned())
    }

    async fn compare(&self, disk: &dyn Disk, path: &Path, pace: Option<&Pace>) -> io::Result<Content> {
        let open = disk.open(path, Create::No).await?;
        let mut hash = Context::new(&SHA256);
        let (mut at, mut sums) = (0, Vec::new());
        while at < self.entry.size {
            if let Some(pace) = pace {
                pace((self.entry.size - at).min(STEP as u64)).await;
            }
            let part = open.read(at, STEP).await?;
            if part.is_empty() {
                break;
            }
            at += part.len() as u64;
            hash.update(&part);
            sums.extend(block_sums(&part));
        }
        if at != self.entry.size {
            return Ok(Content::Other(format!("it is {at} bytes long, not {}", self.entry.size)));
        }
        if hash.finish().as_ref() != self.entry.hash {
            return Ok(Content::Other("its content is not what the manifest says".into()));
        }
        Ok(Content::Whole(sums))
    }
}

/// True for what another read will not bring back: the file is not there, or its sectors are gone.
fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || is_unreadable(error)
}
