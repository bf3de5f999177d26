//! The files of a checkpoint for another node, and taking them over there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::{Duration, Instant};

use super::{
    Inner,
    data_file::{DataFile, sha256, sync_names},
    manifest::{self, Manifest},
    recovery::EXPORT,
    state::State,
};
use crate::{
    engine::{EngineError, Export, ExportFile},
    types::Lsn,
};

/// How often files are read again because a checkpoint is asked for again.
const REVERIFY: Duration = Duration::from_secs(600);

/// The files of the last finished checkpoint. The manifest goes along as a copy, since the next
/// checkpoint replaces the original.
pub(super) async fn export(inner: &Inner) -> Result<Export, EngineError> {
    let (manifest, files, copy, again) = {
        let mut state = inner.state();
        if let Some(file) = state.committed.iter().find(|file| file.damaged.get().is_some()) {
            let why = "it has to be replaced before this node can give a snapshot";
            return Err(EngineError::Damaged(file.path.display().to_string(), why.into()));
        }
        let path = inner.dir.join(format!("{EXPORT}{}-{}", state.manifest.position, state.version));
        let known = state.exports.iter().find(|copy| ***copy == path).cloned();
        let again = known.is_some() && state.reverified.is_none_or(|at| at.elapsed() > REVERIFY);
        if again {
            state.reverified = Some(Instant::now());
        }
        let copy = known.unwrap_or_else(|| {
            let copy = Arc::new(path);
            state.exports.push(copy.clone());
            copy
        });
        (state.manifest.clone(), state.committed.clone(), copy, again)
    };
    if again {
        // Perhaps because what was given before did not verify where it came to.
        for file in &files {
            file.verify(&*inner.disk, None).await?;
        }
    }
    let bytes = manifest.write(&*inner.disk, &copy).await?;
    let mut listed = vec![ExportFile {
        name: manifest::NAME.to_owned(),
        path: copy.as_path().to_owned(),
        len: bytes.len() as u64,
        hash: sha256(&bytes),
    }];
    listed.extend(files.iter().map(|file| ExportFile {
        name: file.entry.name(),
        path: file.path.clone(),
        len: file.entry.size,
        hash: file.entry.hash,
    }));
    Ok(Export {
        position: manifest.position,
        sidecar: manifest.sidecar.clone().into(),
        files: listed,
        hold: Box::new((files, copy)),
    })
}

/// Takes over the export under `from`, which lies on the same file system. Every file is checked
/// before anything is changed; the manifest is replaced last and at once.
pub(super) async fn install(inner: &Inner, from: &Path) -> Result<Lsn, EngineError> {
    let disk = &*inner.disk;
    let _committing = inner.committing.lock().await;
    let Some(manifest) = Manifest::read(disk, from).await? else {
        let what = from.join(manifest::NAME).display().to_string();
        return Err(EngineError::Damaged(what, "it is not there, so the export is not whole".into()));
    };
    let files: Vec<_> =
        manifest.files.iter().map(|entry| Arc::new(DataFile::new(&inner.dir, entry.clone()))).collect();
    for file in &files {
        let copy = from.join(file.entry.name());
        match file.check_content(disk, &copy).await {
            Err(EngineError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => {
                let why = "it is not there, so the export is not whole".into();
                return Err(EngineError::Damaged(copy.display().to_string(), why));
            }
            checked => checked?,
        }
    }
    for file in &files {
        if let Some(parent) = file.path.parent() {
            disk.create_dir(parent).await?;
        }
        // A file of that name that is there already has the same content.
        disk.rename(&from.join(file.entry.name()), &file.path).await?;
    }
    sync_names(disk, &inner.dir, &files).await?;
    manifest.write(disk, &inner.dir.join(manifest::NAME)).await?;
    let position = manifest.position;
    {
        let mut state = inner.state();
        let before = std::mem::replace(&mut *state, State::of(&inner.dir, manifest));
        // What was shown stays: no query is answered before it is applied again.
        state.floor = before.floor.max(before.applied);
        state.exports = before.exports;
        state.version = before.version + 1;
        state.removable = before.removable;
        state.retire(before.committed);
        inner.assigned().reset(&state.schemas);
        if let Some(series) = &inner.series {
            series.reset(&state);
        }
    }
    inner.remove_unheld().await;
    Ok(position)
}

impl Inner {
    /// Removes files that nothing needs. A failure is only logged: they are found again when the
    /// engine is opened.
    pub(super) async fn remove_unheld(&self) {
        let paths: Vec<PathBuf> = self.state().unheld();
        for path in paths {
            if let Err(error) = super::data_file::remove(&*self.disk, &path).await {
                tracing::warn!(file = %path.display(), %error, "cannot remove a file that is no longer needed");
            }
        }
    }
}
