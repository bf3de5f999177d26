//! The reference engine: keeps every record as it came, by position. What another engine makes of
//! a log is compared with it; it is no store for real data.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EngineError, Export, ImageFile, Operation, Refused, StorageEngine, Work};
use crate::{disk::Disk, types::Lsn};

/// Keeps batches in memory, and the last checkpoint in one file if it has a directory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
    file: Option<ImageFile>,
}

#[derive(Debug, Default)]
struct State {
    live: Image,
    saved: Image,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Image {
    position: Lsn,
    #[serde(with = "serde_bytes")]
    sidecar: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    at: Lsn,
    /// Set for a dropped database, and for one told what to keep.
    database: Option<String>,
    /// Set for what a database was told to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<Keep>,
    /// Set for what the writer's clock said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    now_ns: Option<i64>,
    /// Set for a batch, with its encoding.
    encoding: Option<u8>,
    #[serde(with = "serde_bytes")]
    payload: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Keep {
    ns: Option<i64>,
}

impl MemoryEngine {
    /// An engine without a directory: a checkpoint lives as long as this value, and there is
    /// nothing to export.
    pub fn new() -> Self {
        Self::default()
    }

    /// An engine with its last checkpoint in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// The disk fails, or the image there does not decode.
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Self, EngineError> {
        let (file, saved) = ImageFile::open::<Image>(disk, dir).await?;
        let state = State { live: saved.clone(), saved };
        Ok(Self { state: Arc::new(Mutex::new(state)), file: Some(file) })
    }

    /// Every record that is held, by position.
    pub fn contents(&self) -> BTreeMap<Lsn, Operation> {
        lock(&self.state).live.records.iter().map(|record| (record.at, record.operation())).collect()
    }

    /// Forgets what the last checkpoint does not hold, as a crash would.
    pub fn crash(&self) {
        let mut state = lock(&self.state);
        state.live = state.saved.clone();
    }
}

impl StorageEngine for MemoryEngine {
    fn recovered(&self) -> (Lsn, Bytes) {
        let state = lock(&self.state);
        (state.saved.position, state.saved.sidecar.clone().into())
    }

    fn applied(&self) -> Lsn {
        lock(&self.state).live.position
    }

    fn admit(&self, _encoding: u8, _payload: &Bytes) -> Result<(), Refused> {
        Ok(())
    }

    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        let mut state = lock(&self.state);
        if at <= state.live.position {
            let last = state.live.position;
            return Err(EngineError::Broken(format!("record {at} was applied after {last}")));
        }
        state.live.position = at;
        state.live.records.extend(Record::of(at, operation));
        Ok(())
    }

    fn checkpoint_due(&self) -> bool {
        let state = lock(&self.state);
        state.live.records.len() >= state.saved.records.len() + 10_000
    }

    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        let mut image = lock(&self.state).live.clone();
        image.sidecar = sidecar.to_vec();
        let (state, file) = (self.state.clone(), self.file.clone());
        Box::pin(async move {
            if let Some(file) = file {
                file.save(&image).await?;
            }
            let position = image.position;
            lock(&state).saved = image;
            Ok(position)
        })
    }

    fn export(&self) -> Work<Export> {
        let (image, file) = (lock(&self.state).saved.clone(), self.file.clone());
        Box::pin(async move {
            let file = file.ok_or_else(|| broken("this engine has no directory to export from"))?;
            let files = vec![file.export(&image, image.position).await?];
            let (position, sidecar) = (image.position, image.sidecar.into());
            Ok(Export { position, sidecar, files, hold: Box::new(()) })
        })
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let (state, file) = (self.state.clone(), self.file.clone());
        Box::pin(async move {
            let file = file.ok_or_else(|| broken("this engine has no directory to install into"))?;
            let image: Image = file.install(&from).await?;
            let position = image.position;
            *lock(&state) = State { live: image.clone(), saved: image };
            Ok(position)
        })
    }
}

impl Record {
    fn of(at: Lsn, operation: &Operation) -> Option<Self> {
        let empty =
            Self { at, database: None, keep: None, now_ns: None, encoding: None, payload: Vec::new() };
        Some(match operation {
            Operation::Batch { encoding, payload } => {
                Self { encoding: Some(*encoding), payload: payload.to_vec(), ..empty }
            }
            Operation::DropDatabase { database } => Self { database: Some(database.clone()), ..empty },
            Operation::SetRetention { database, keep_ns } => {
                Self { database: Some(database.clone()), keep: Some(Keep { ns: *keep_ns }), ..empty }
            }
            Operation::Expire { now_ns } => Self { now_ns: Some(*now_ns), ..empty },
            Operation::Nothing => return None,
        })
    }

    fn operation(&self) -> Operation {
        match (&self.database, self.keep, self.now_ns, self.encoding) {
            (Some(database), Some(keep), ..) => {
                Operation::SetRetention { database: database.clone(), keep_ns: keep.ns }
            }
            (Some(database), None, ..) => Operation::DropDatabase { database: database.clone() },
            (None, _, Some(now_ns), _) => Operation::Expire { now_ns },
            (None, _, None, Some(encoding)) => {
                Operation::Batch { encoding, payload: self.payload.clone().into() }
            }
            (None, _, None, None) => Operation::Nothing,
        }
    }
}

fn broken(why: &str) -> EngineError {
    EngineError::Broken(why.to_owned())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(n: u8) -> Operation {
        Operation::Batch { encoding: 1, payload: Bytes::from(vec![n; 3]) }
    }

    #[tokio::test]
    async fn a_crash_goes_back_to_the_checkpoint() {
        let engine = MemoryEngine::new();
        engine.apply(Lsn::new(1, 1), &batch(1)).unwrap();
        let checkpoint = engine.checkpoint(Bytes::from_static(b"side"));
        engine.apply(Lsn::new(1, 2), &Operation::DropDatabase { database: "d".into() }).unwrap();
        assert_eq!(checkpoint.await.unwrap(), Lsn::new(1, 1), "fixed at the call");
        assert_eq!(engine.applied(), Lsn::new(1, 2));
        assert_eq!(engine.contents().len(), 2);
        engine.crash();
        assert_eq!(engine.recovered(), (Lsn::new(1, 1), Bytes::from_static(b"side")));
        assert_eq!(engine.contents(), BTreeMap::from([(Lsn::new(1, 1), batch(1))]));
        assert!(engine.apply(Lsn::new(1, 1), &Operation::Nothing).is_err(), "never backwards");
    }
}
