//! What an engine finds when it opens its directory, and what it clears away.

use std::{collections::BTreeSet, io, path::Path};

use super::{
    data_file::{DATA, remove},
    manifest::Manifest,
    state::State,
};
use crate::{disk::Disk, engine::EngineError};

/// How the name of a manifest's copy for an export starts.
pub(super) const EXPORT: &str = "export-";

/// Reads the manifest, marks files that are not there with their length, and removes everything of a checkpoint
/// that did not finish.
pub(super) async fn recover(disk: &dyn Disk, dir: &Path) -> Result<State, EngineError> {
    disk.create_dir(&dir.join(DATA)).await?;
    let manifest = Manifest::read(disk, dir).await?;
    if manifest.is_some() {
        // It may have been renamed by a process that was killed before it could sync that. The log gives
        // up what it says is here, and the files of the one before are removed.
        disk.sync_dir(dir).await?;
    }
    let state = State::of(dir, manifest.unwrap_or_default());
    for file in &state.committed {
        match file.check_len(disk).await {
            // Only what needs it fails, and other nodes may have its points.
            Err(EngineError::Damaged(_, why)) => drop(file.damage(&why)),
            checked => checked?,
        }
    }
    remove_strays(disk, dir, &state).await?;
    Ok(state)
}

/// Removes files that the manifest does not name: they were written for a manifest that was never
/// committed, or could not be removed while in use.
async fn remove_strays(disk: &dyn Disk, dir: &Path, state: &State) -> Result<(), EngineError> {
    for name in list(disk, dir).await? {
        if name.starts_with(EXPORT) {
            remove(disk, &dir.join(name)).await?;
        }
    }
    let named: BTreeSet<&Path> = state.committed.iter().map(|file| file.path.as_path()).collect();
    let data = dir.join(DATA);
    for database in list(disk, &data).await? {
        let database = data.join(database);
        for table in list(disk, &database).await? {
            let table = database.join(table);
            for file in list(disk, &table).await? {
                let ours = file.ends_with(".parquet") || file.ends_with(".parquet.tmp");
                let file = table.join(file);
                if ours && !named.contains(file.as_path()) {
                    tracing::debug!(file = %file.display(), "removing a file that no manifest names");
                    remove(disk, &file).await?;
                }
            }
        }
    }
    Ok(())
}

/// The names in a directory; none if it is not there or no directory.
async fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, EngineError> {
    match disk.list(dir).await {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        names => Ok(names?),
    }
}
