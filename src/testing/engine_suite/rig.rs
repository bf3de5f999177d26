//! One check's ground: opens engines, feeds them records of a fixed log, compares what they hold.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{Ended, Ground, Subject};
use crate::{
    disk::{Create, Disk, Durability, RealDisk, read_file},
    engine::{EngineError, Export, ExportFile, Operation, StorageEngine},
    testing::SimDisk,
    types::Lsn,
};

/// Where the suite's points are.
pub(super) const DATABASE: &str = "suite";
/// Time of the first point, ns.
pub(super) const BEGAN: i64 = 1_700_000_000_000_000_000;
/// Longest file of an export that is copied, in bytes.
const LONGEST: u64 = 1 << 30;

pub(super) struct Rig<'a, S: Subject> {
    pub(super) subject: &'a S,
    /// The disk, if it is one that loses power.
    pub(super) sim: Option<SimDisk>,
    base: PathBuf,
}

/// Position of the suite's record with that number: epochs change on the way.
pub(super) fn at(seq: u64) -> Lsn {
    Lsn::new(1 + seq / 4 * 2, seq)
}

/// What a failed call is to the suite.
pub(super) fn went(what: &str) -> impl Fn(EngineError) -> Ended + '_ {
    move |error| Ended::Failed(format!("{what}: {error}"))
}

impl<'a, S: Subject> Rig<'a, S> {
    pub(super) fn new(subject: &'a S, ground: &Ground, check: &str) -> Self {
        let (sim, base) = match ground {
            Ground::Simulated => (Some(SimDisk::new()), PathBuf::from("ground")),
            Ground::Directory(dir) => (None, dir.join(check)),
        };
        Self { subject, sim, base }
    }

    /// The same ground for another try, with nothing on it.
    pub(super) fn anew(&self) -> Self {
        Self { subject: self.subject, sim: Some(SimDisk::new()), base: self.base.clone() }
    }

    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        match &self.sim {
            Some(sim) => Arc::new(sim.clone()),
            None => Arc::new(RealDisk),
        }
    }

    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Opens the engine `name`: a new process, as far as the disk goes.
    pub(super) async fn open(&self, name: &str) -> Result<Arc<S::Engine>, Ended> {
        let disk: Arc<dyn Disk> = match &self.sim {
            Some(sim) => Arc::new(sim.boot()),
            None => Arc::new(RealDisk),
        };
        self.subject.open(disk, self.dir(name)).await.map_err(went("the engine does not open"))
    }

    /// Ends the process and opens the engine again; on a simulated disk by a power cut.
    pub(super) async fn reopen(
        &self,
        name: &str,
        engine: Arc<S::Engine>,
        seed: u64,
    ) -> Result<Arc<S::Engine>, Ended> {
        drop(engine);
        if let Some(sim) = &self.sim {
            sim.crash(seed);
        }
        self.open(name).await
    }

    /// The record with that number: a batch of one point.
    pub(super) fn record(&self, seq: u64) -> Operation {
        let (encoding, payload) = self.subject.batch(DATABASE, seq, BEGAN + seq as i64);
        Operation::Batch { encoding, payload }
    }

    /// Applies the records of a range.
    pub(super) fn apply(
        &self,
        engine: &S::Engine,
        records: impl IntoIterator<Item = u64>,
    ) -> Result<(), Ended> {
        for seq in records {
            engine.apply(at(seq), &self.record(seq)).map_err(went(&format!("record {}", at(seq))))?;
        }
        Ok(())
    }

    /// A checkpoint that must come about.
    pub(super) async fn checkpoint(&self, engine: &S::Engine, sidecar: &'static str) -> Result<Lsn, Ended> {
        engine.checkpoint(Bytes::from_static(sidecar.as_bytes())).await.map_err(went("the checkpoint failed"))
    }

    pub(super) async fn held(&self, engine: &S::Engine, database: &str) -> Result<Vec<u64>, Ended> {
        self.subject.held(engine, database).await.map_err(went("what is held cannot be read"))
    }

    /// The engine stands behind the record `last` and holds the points 1 to `points`, once each.
    pub(super) async fn expect(
        &self,
        engine: &S::Engine,
        last: u64,
        points: u64,
        when: &str,
    ) -> Result<(), Ended> {
        let (applied, wanted) = (engine.applied(), if last == 0 { Lsn::ZERO } else { at(last) });
        if applied != wanted {
            return Err(format!("{when}: applied is {applied}, not {wanted}").into());
        }
        let held = self.held(engine, DATABASE).await?;
        if !held.iter().copied().eq(1..=points) {
            return Err(format!("{when}: the points 1 to {points} were applied, {held:?} are held").into());
        }
        Ok(())
    }

    /// The engine came back to that checkpoint, and to nothing behind it.
    pub(super) async fn expect_recovered(
        &self,
        engine: &S::Engine,
        last: u64,
        sidecar: &str,
        when: &str,
    ) -> Result<(), Ended> {
        let (position, found) = engine.recovered();
        let wanted = if last == 0 { Lsn::ZERO } else { at(last) };
        if position != wanted || found != sidecar.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            let says = format!(
                "{when}: recovered {position} with {found:?}, the checkpoint was {wanted} with {sidecar:?}"
            );
            return Err(says.into());
        }
        self.expect(engine, last, last, when).await
    }

    /// An engine with a checkpoint "one" of records 1 to 3.
    pub(super) async fn begun(&self, name: &str) -> Result<Arc<S::Engine>, Ended> {
        let engine = self.open(name).await?;
        self.apply(&engine, 1..=3)?;
        self.checkpoint(&engine, "one").await?;
        Ok(engine)
    }

    pub(super) async fn export(&self, engine: &S::Engine) -> Result<Export, Ended> {
        engine.export().await.map_err(went("the export failed"))
    }

    /// The content of an exported file, if it is what the export says.
    pub(super) async fn exported(&self, file: &ExportFile) -> Result<Bytes, Ended> {
        let name = &file.name;
        if name.is_empty() || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{name:?} is no name for a file of an export").into());
        }
        let content = read_file(&*self.disk(), &file.path, LONGEST).await;
        let content = content.map_err(|e| format!("exported {name} cannot be read: {e}"))?;
        if *file != ExportFile::of(name.as_str(), file.path.clone(), &content) {
            return Err(format!("exported {name} is not of the length and hash that were said").into());
        }
        Ok(content)
    }

    /// Brings the files of an export to where an engine can take them over.
    pub(super) async fn deliver(&self, files: &[(String, Bytes)], to: &str) -> Result<PathBuf, Ended> {
        let dir = self.dir(to);
        let disk = self.disk();
        for (name, content) in files {
            put(&*disk, &dir.join(name), content).await.map_err(|e| format!("cannot bring {name}: {e}"))?;
        }
        Ok(dir)
    }

    /// The files of an export with their content.
    pub(super) async fn contents(&self, export: &Export) -> Result<Vec<(String, Bytes)>, Ended> {
        let mut files = Vec::new();
        for file in &export.files {
            files.push((file.name.clone(), self.exported(file).await?));
        }
        Ok(files)
    }
}

async fn put(disk: &dyn Disk, path: &Path, content: &Bytes) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        disk.create_dir(parent).await?;
    }
    let file = disk.open(path, Create::New).await?;
    file.write(0, vec![content.clone()], Durability::Now).await?;
    match path.parent() {
        Some(parent) => disk.sync_dir(parent).await,
        None => Ok(()),
    }
}
