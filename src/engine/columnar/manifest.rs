//! The manifest: which files there are and up to where the log is in them.
//!
//! Replacing it commits a checkpoint: a file that it does not name does not count. Layout: magic,
//! format version, length and CRC-32C of the body, the body (MessagePack with named fields).

use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    data_file::FileEntry,
    retention::Retentions,
    schema::{Schemas, check_database_name, check_table_name},
};
use crate::{
    disk::{Create, Disk, read_file, replace_file},
    engine::EngineError,
    types::Lsn,
};

/// Name of the manifest in the engine's directory and in an export.
pub(super) const NAME: &str = "MANIFEST";
/// Largest manifest that is read, in bytes.
const MAX_LEN: u64 = 1 << 30;
const MAGIC: [u8; 4] = *b"SKMF";
/// Format of a manifest that has what the first versions of the program know, and of one that has more
/// (retention, windows): they would read it and answer wrongly, so they must not.
const VERSIONS: [u32; 2] = [1, 2];
const HEAD_LEN: usize = 20;

/// What the last finished checkpoint holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Last record that is in the files.
    pub(super) position: Lsn,
    /// The caller's bytes.
    #[serde(with = "serde_bytes")]
    pub(super) sidecar: Vec<u8>,
    /// The columns of every table at that position.
    pub(super) schemas: Schemas,
    /// What databases were told to keep.
    #[serde(default, skip_serializing_if = "Retentions::is_empty")]
    pub(super) retention: Retentions,
    /// The files; those of one table in the order in which their rows were written.
    pub(super) files: Vec<FileEntry>,
}

impl Manifest {
    /// Reads the manifest in `dir`, or `None` if there is none.
    ///
    /// # Errors
    /// The disk fails, or the bytes do not verify.
    pub(super) async fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, EngineError> {
        let path = dir.join(NAME);
        match disk.open(&path, Create::No).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => drop(opened?),
        }
        let bytes = read_file(disk, &path, MAX_LEN).await?;
        let read = Self::decode(&bytes);
        read.map(Some).map_err(|why| EngineError::Damaged(path.display().to_string(), why))
    }

    /// Writes the manifest as `path`, durably and whole or not at all, and returns its bytes.
    ///
    /// # Errors
    /// The disk fails; the former manifest is then still in force, or this one is.
    pub(super) async fn write(&self, disk: &dyn Disk, path: &Path) -> Result<Bytes, EngineError> {
        let bytes = self.encode()?;
        replace_file(disk, path, bytes.clone()).await?;
        Ok(bytes)
    }

    pub(super) fn encode(&self) -> Result<Bytes, EngineError> {
        let body =
            rmp_serde::to_vec_named(self).map_err(|e| EngineError::Broken(format!("manifest: {e}")))?;
        let mut bytes = Vec::with_capacity(HEAD_LEN + body.len());
        bytes.extend_from_slice(&MAGIC);
        let has_more = !self.retention.is_empty() || self.files.iter().any(|file| !file.windows.is_empty());
        let [plain, more] = VERSIONS;
        bytes.extend_from_slice(&if has_more { more } else { plain }.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes.into())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "it is cut off".to_owned();
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (len, rest) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let (sum, body) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let version = u32::from_le_bytes(*version);
        if *magic != MAGIC {
            return Err("it is not a manifest".into());
        }
        if !VERSIONS.contains(&version) {
            return Err(format!("it has format version {version}, this program knows {VERSIONS:?}"));
        }
        if u64::from_le_bytes(*len) != body.len() as u64 || u32::from_le_bytes(*sum) != crc32c::crc32c(body) {
            return Err("its length or checksum does not match".into());
        }
        let manifest: Self = rmp_serde::from_slice(body).map_err(|e| e.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What the rest relies on, also where the manifest comes from another node.
    fn check(&self) -> Result<(), String> {
        let mut paths = std::collections::BTreeSet::new();
        for file in &self.files {
            check_database_name(&file.database)
                .and_then(|()| check_table_name(&file.table))
                .map_err(|e| e.to_string())?;
            if self.schemas.get(&file.database, &file.table).is_none() {
                return Err(format!("it lists a file of table {:?} without schema", file.table));
            }
            if file.max_lsn > self.position || file.min_lsn > file.max_lsn || file.min_time > file.max_time {
                return Err(format!("its file {} has impossible bounds", file.name()));
            }
            let within = |time: &i64| (file.min_time..=file.max_time).contains(time);
            if !file.windows.is_sorted_by(|a, b| a < b) || !file.windows.iter().all(within) {
                return Err(format!("its file {} has impossible windows", file.name()));
            }
            if !paths.insert(file.name()) {
                return Err(format!("it lists {} twice", file.name()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::columnar::schema::TableSchema;

    fn sample() -> Manifest {
        let mut schemas = Schemas::default();
        schemas.merge("db", "t", &TableSchema::default().into()).unwrap();
        let file = FileEntry {
            database: "db".into(),
            table: "t".into(),
            rows: 3,
            min_time: -5,
            max_time: 9,
            min_lsn: Lsn::new(1, 1),
            max_lsn: Lsn::new(2, 7),
            size: 100,
            hash: [7; 32],
            windows: Vec::new(),
        };
        let retention = Retentions::default();
        Manifest { position: Lsn::new(2, 8), sidecar: vec![1, 2], schemas, retention, files: vec![file] }
    }

    #[test]
    fn comes_back_and_every_flipped_bit_is_seen() {
        let manifest = sample();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for end in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    /// Of 500 files, each bit and each length.
    #[test]
    fn every_flipped_bit_and_every_cut_of_64_kib_is_seen() {
        let mut manifest = sample();
        manifest.files = (0..500u64)
            .map(|n| FileEntry {
                min_lsn: Lsn::new(1, n),
                hash: std::array::from_fn(|byte| (n >> (8 * (byte % 8))) as u8),
                ..sample().files[0].clone()
            })
            .collect();
        let mut bytes = manifest.encode().unwrap().to_vec();
        assert!(bytes.len() > 64 << 10, "{}", bytes.len());
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for end in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn the_bytes_are_those_of_format_1() {
        let manifest = sample();
        crate::testing::fixture("engine/MANIFEST", &manifest.encode().unwrap());
        assert_eq!(Manifest::decode(&crate::testing::read_fixture("engine/MANIFEST")).unwrap(), manifest);

        // A database that keeps for a day, whose horizon was another before.
        let mut keeps = sample();
        keeps.retention.change("db", |db| {
            db.set(Lsn::new(1, 1), Some(1_000));
            db.expire(1_700_000_000_000_000_000);
            db.set(Lsn::new(2, 5), Some(86_400_000_000_000));
            db.expire(1_700_000_600_000_000_000);
        });
        crate::testing::fixture("engine/MANIFEST.retention", &keeps.encode().unwrap());
        let kept = crate::testing::read_fixture("engine/MANIFEST.retention");
        assert_eq!(Manifest::decode(&kept).unwrap(), keeps);

        let mut compacted = sample();
        compacted.files[0].windows = vec![-5, 3];
        crate::testing::fixture("engine/MANIFEST.windows", &compacted.encode().unwrap());
        let kept = crate::testing::read_fixture("engine/MANIFEST.windows");
        assert_eq!(Manifest::decode(&kept).unwrap(), compacted);
    }

    #[test]
    fn impossible_manifests_are_refused() {
        let bad: [fn(&mut Manifest); 6] = [
            |m| m.files[0].windows = vec![-5, -5],
            |m| m.files[0].windows = vec![-5, 10],
            |m| m.files[0].table = "other".into(),
            |m| m.files[0].max_lsn = Lsn::new(3, 0),
            |m| m.files[0].min_time = 10,
            |m| m.files.push(m.files[0].clone()),
        ];
        for spoil in bad {
            let mut manifest = sample();
            spoil(&mut manifest);
            assert!(Manifest::decode(&manifest.encode().unwrap()).is_err());
        }
    }
}
