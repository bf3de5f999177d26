//! A checkpoint in one file: [`ImageFile`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{EngineError, ExportFile};
use crate::{
    disk::{Create, Disk, read_file, replace_file},
    types::Lsn,
};

/// Largest image that is read back, in bytes.
const MAX_IMAGE: u64 = 1 << 30;
/// Its name in the engine's directory and in an export.
const IMAGE: &str = "IMAGE";

/// A value in one file behind its checksum, replaced as a whole: the simplest way for an engine whose
/// content fits into memory to keep its checkpoint.
#[derive(Debug, Clone)]
pub struct ImageFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl ImageFile {
    /// The file in `dir`, which is made if it is not there, and what was saved last; the default at first.
    ///
    /// # Errors
    /// The disk fails, or the image there does not verify.
    pub async fn open<T>(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<(Self, T), EngineError>
    where
        T: Default + DeserializeOwned,
    {
        disk.create_dir(&dir).await?;
        let saved = match read(&*disk, &dir.join(IMAGE)).await {
            Err(EngineError::Io(e)) if e.kind() == io::ErrorKind::NotFound => T::default(),
            read => {
                let saved = read?;
                #[cfg(feature = "testing")]
                if crate::types::planted::is("believe_the_page_cache") {
                    return Ok((Self { disk, dir }, saved));
                }
                // A process that was killed may have renamed it and not synced that.
                disk.sync_dir(&dir).await?;
                saved
            }
        };
        Ok((Self { disk, dir }, saved))
    }

    /// Replaces what was saved: after a crash the one or the other is there.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn save<T: Serialize>(&self, image: &T) -> Result<(), EngineError> {
        Ok(replace_file(&*self.disk, &self.dir.join(IMAGE), encode(image)?).await?)
    }

    /// A copy for an export, which no later [`Self::save`] touches.
    ///
    /// # Errors
    /// The disk fails.
    pub async fn export<T: Serialize>(&self, image: &T, position: Lsn) -> Result<ExportFile, EngineError> {
        let copy = self.dir.join(format!("export-{position}"));
        let bytes = encode(image)?;
        replace_file(&*self.disk, &copy, bytes.clone()).await?;
        Ok(ExportFile::of(IMAGE, copy, &bytes))
    }

    /// Saves what an export holds whose file lies under `from`, and returns it.
    ///
    /// # Errors
    /// The disk fails, or the image does not verify: nothing is changed then.
    pub async fn install<T>(&self, from: &Path) -> Result<T, EngineError>
    where
        T: Serialize + DeserializeOwned,
    {
        let image = read(&*self.disk, &from.join(IMAGE)).await?;
        self.save(&image).await?;
        Ok(image)
    }
}

/// The image behind its checksum.
fn encode<T: Serialize>(image: &T) -> Result<Bytes, EngineError> {
    let body = rmp_serde::to_vec_named(image).map_err(|e| EngineError::Broken(e.to_string()))?;
    let mut bytes = crc32c::crc32c(&body).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

async fn read<T: DeserializeOwned>(disk: &dyn Disk, path: &Path) -> Result<T, EngineError> {
    let damaged = |why: String| EngineError::Damaged(path.display().to_string(), why);
    // Asked for by name first, so that "not there" is told from every other failure.
    disk.open(path, Create::No).await?;
    let bytes = read_file(disk, path, MAX_IMAGE).await?;
    let (sum, body) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut off".into()))?;
    if u32::from_le_bytes(*sum) != crc32c::crc32c(body) {
        return Err(damaged("its checksum does not match".into()));
    }
    rmp_serde::from_slice(body).map_err(|e| damaged(e.to_string()))
}
