//! Into an empty directory, as the data of a cluster that is founded on it.
//!
//! Files first, each durable before its name is; then the manifest, which makes them count; then the
//! word that all of it is there. Until that word the directory starts nothing, and the command given again
//! goes on.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde_json::json;

use crate::{
    cli::{Failure, archive::Archive, output, progress::Progress},
    disk::{Create, Disk, Durability, RealDisk, replace_file},
    engine::columnar::saved::{Saved, SavedFile},
    identity::DataDir,
    node::{RESTORED_FILE, Restored},
    protocol::archive::MANIFEST,
};

/// What the directory of a restore that was cut short may hold besides the lock: its own, and what a start
/// that was refused leaves.
const OWN: [&str; 4] = [RESTORED_FILE, "restored.json.tmp", "engine", "skein.sock"];
/// Bytes that are compared at once.
const PIECE: usize = 1 << 20;

/// A backup on its way into a directory.
pub(super) struct Restoring<'a> {
    pub(super) archive: &'a Archive,
    pub(super) saved: &'a Saved,
    pub(super) backup: &'a Path,
    pub(super) dir: &'a Path,
}

impl Restoring<'_> {
    pub(super) async fn run(&self, wanted: Option<&BTreeSet<String>>, as_json: bool) -> Result<(), Failure> {
        let held = DataDir::open(self.dir).map_err(|e| Failure::disk(e.to_string()))?;
        let disk: &dyn Disk = &RealDisk;
        let failed = |e: io::Error| {
            Failure::disk(format!(
                "cannot restore into {}: {e}; give the command again, it goes on",
                self.dir.display()
            ))
        };
        self.must_be_free(disk).await?;
        let mut restored = Restored {
            whole: false,
            backup: self.backup.display().to_string(),
            position: self.archive.contents.position,
            epochs: self.archive.contents.epochs.clone(),
        };
        restored.save(disk, held.path()).await.map_err(failed)?;

        let engine = held.path().join("engine");
        let kept = wanted.is_none().then(|| self.archive.find(MANIFEST)).flatten();
        let manifest = match kept {
            Some(whole) => self.archive.read(whole)?,
            // Keys of clients speak of writes into the others too.
            None => {
                self.saved.pick(wanted, Bytes::new()).to_bytes().map_err(|e| Failure::new(e.to_string()))?
            }
        };
        let files = self.saved.pick(wanted, Bytes::new()).files();
        let mut progress = Progress::new("restoring", files.iter().map(|file| file.bytes).sum());
        let mut dirs = BTreeSet::from([engine.clone()]);
        disk.create_dir(&engine).await.map_err(failed)?;
        for file in &files {
            let path = engine.join(&file.name);
            let below = path.ancestors().skip(1).take_while(|dir| dir.starts_with(&engine));
            dirs.extend(below.map(Path::to_path_buf));
            if !is_there(disk, &path, file).await.map_err(failed)? {
                self.copy(disk, &path, file).await?;
            }
            progress.add(file.bytes);
        }
        progress.end();
        for dir in &dirs {
            disk.sync_dir(dir).await.map_err(failed)?;
        }
        replace_file(disk, &engine.join(MANIFEST), manifest).await.map_err(failed)?;
        restored.whole = true;
        restored.save(disk, held.path()).await.map_err(failed)?;
        self.tell(&files, as_json)
    }

    /// Nothing is there, or what an earlier try of this has left.
    async fn must_be_free(&self, disk: &dyn Disk) -> Result<(), Failure> {
        let (dir, failed) = (self.dir.display(), |e: io::Error| Failure::disk(e.to_string()));
        let before = Restored::find(disk, self.dir).await.map_err(failed)?;
        if before.as_ref().is_some_and(|before| before.whole) {
            return Err(Failure::usage(format!(
                "{dir} holds a whole restored backup already: start it (skein start --data-dir {dir} --new-cluster), or \
                 empty it"
            )));
        }
        let names = disk.list(self.dir).await.map_err(failed)?;
        let own = |name: &String| name == "lock" || (before.is_some() && OWN.contains(&name.as_str()));
        match names.iter().find(|name| !own(name)) {
            None => Ok(()),
            Some(name) => Err(Failure::usage(format!(
                "{dir} is not empty ({name}): a new cluster wants a directory of its own"
            ))),
        }
    }

    async fn copy(&self, disk: &dyn Disk, path: &Path, file: &SavedFile) -> Result<(), Failure> {
        let failed = |e: io::Error| {
            Failure::disk(format!("cannot write {}: {e}; give the command again, it goes on", path.display()))
        };
        let index = self.archive.find(&file.name);
        let index = index.ok_or_else(|| Failure::new(format!("the backup has no {}", file.name)))?;
        if let Some(parent) = path.parent() {
            disk.create_dir(parent).await.map_err(failed)?;
        }
        let beside: PathBuf = path.with_extension("parquet.tmp");
        for old in [&beside, &path.to_path_buf()] {
            match disk.remove(old).await {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
                _ => {}
            }
        }
        let open = disk.open(&beside, Create::New).await.map_err(failed)?;
        let mut pieces = Vec::new();
        self.archive.read_to(index, |piece| {
            pieces.push(Bytes::copy_from_slice(piece));
            Ok(())
        })?;
        open.write(0, pieces, Durability::Now).await.map_err(failed)?;
        disk.rename(&beside, path).await.map_err(failed)
    }

    fn tell(&self, files: &[SavedFile], as_json: bool) -> Result<(), Failure> {
        let (rows, bytes) =
            (files.iter().map(|f| f.rows).sum::<u64>(), files.iter().map(|f| f.bytes).sum::<u64>());
        let (dir, position) = (self.dir.display(), self.archive.contents.position);
        if as_json {
            return output::json(&json!({
                "data_dir": dir.to_string(), "position": position.to_string(), "files": files.len(), "rows": rows,
                "bytes": bytes,
            }));
        }
        output::print(&format!(
            "{} in {dir}, as of {position}. It is no cluster yet. Found one on it:\n\n  \
             skein start --data-dir {dir} --new-cluster\n\nThe other nodes join that one and get the data from it. Tokens and \
             members are new.\n",
            what_is_there(rows, files.len() as u64)
        ))
    }
}

fn what_is_there(rows: u64, files: u64) -> String {
    let (in_files, are) = (output::counted(files, "file", "files"), if rows == 1 { "is" } else { "are" });
    format!("{} in {in_files} {are}", output::counted(rows, "row", "rows"))
}

/// Whether an earlier try has brought this file.
async fn is_there(disk: &dyn Disk, path: &Path, file: &SavedFile) -> io::Result<bool> {
    let open = match disk.open(path, Create::No).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        open => open?,
    };
    if open.len().await? != file.bytes {
        return Ok(false);
    }
    let (mut hash, mut at) = (Context::new(&SHA256), 0);
    while at < file.bytes {
        let piece = open.read(at, PIECE).await?;
        if piece.is_empty() {
            return Ok(false);
        }
        hash.update(&piece);
        at += piece.len() as u64;
    }
    Ok(HEXLOWER.encode(hash.finish().as_ref()) == HEXLOWER.encode(&file.hash))
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_row_is_and_two_are() {
        assert_eq!(super::what_is_there(1, 1), "1 row in 1 file is");
        assert_eq!(super::what_is_there(51, 1), "51 rows in 1 file are");
        assert_eq!(super::what_is_there(0, 2), "0 rows in 2 files are");
    }
}
