//! What a manifest says and whether its files are there, for people who look: read, never changed.

use std::{collections::BTreeMap, path::Path};

use super::{data_file::DataFile, manifest::Manifest};
use crate::{disk::Disk, engine::EngineError, types::Lsn};

/// A checkpoint as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestSurvey {
    /// Last record in it.
    pub position: Lsn,
    /// Bytes of the table of applied batch ids.
    pub sidecar: u64,
    /// Every table that has files, by database and name.
    pub tables: BTreeMap<(String, String), TableSurvey>,
    /// Files that are missing, not as long as they were or, if that was looked at, of other content.
    pub damage: Vec<String>,
}

/// The files of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSurvey {
    /// How many.
    pub files: u64,
    /// Points in them.
    pub rows: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Time of the first and of the last point, ns since 1970.
    pub times: Option<(i64, i64)>,
}

/// Looks at the manifest in `dir`; `None` if there is none. The engine must not be open. `verify`: reads
/// every file and compares it with what was written, not only its length.
///
/// # Errors
/// The disk fails, or the manifest does not verify.
pub async fn survey(
    disk: &dyn Disk,
    dir: &Path,
    verify: bool,
) -> Result<Option<ManifestSurvey>, EngineError> {
    let Some(manifest) = Manifest::read(disk, dir).await? else { return Ok(None) };
    let (mut tables, mut damage) = (BTreeMap::<_, TableSurvey>::new(), Vec::new());
    for entry in &manifest.files {
        let table = tables.entry((entry.database.clone(), entry.table.clone())).or_default();
        table.files += 1;
        table.rows += entry.rows;
        table.bytes += entry.size;
        let (from, to) = table.times.unwrap_or((entry.min_time, entry.max_time));
        table.times = Some((from.min(entry.min_time), to.max(entry.max_time)));
        let file = DataFile::new(dir, entry.clone());
        let mut checked = file.check_len(disk).await;
        if verify && checked.is_ok() {
            checked = file.check_content(disk, &file.path).await;
        }
        damage.extend(checked.err().map(|error| error.to_string()));
    }
    let sidecar = manifest.sidecar.len() as u64;
    Ok(Some(ManifestSurvey { position: manifest.position, sidecar, tables, damage }))
}
