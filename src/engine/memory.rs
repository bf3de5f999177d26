//! The reference engine: keeps every record as it came, by position. What another engine makes of
//! a log is compared with it; it is no store for real data.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EngineError, Export, ExportFile, Operation, Refused, StorageEngine, Work};
use crate::{
    disk::{Create, Disk, read_file, replace_file},
    types::Lsn,
};

/// Largest image that is read back, in bytes.
const MAX_IMAGE: u64 = 1 << 30;
/// Name of the image in the engine's directory and in an export.
const IMAGE: &str = "IMAGE";

/// Keeps batches in memory, and the last checkpoint in one file if it has a directory.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: Arc<Mutex<State>>,
    place: Option<(Arc<dyn Disk>, PathBuf)>,
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
        disk.create_dir(&dir).await?;
        let saved = match read_image(&*disk, &dir.join(IMAGE)).await {
            Err(EngineError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Image::default(),
            read => read?,
        };
        let state = State { live: saved.clone(), saved };
        Ok(Self { state: Arc::new(Mutex::new(state)), place: Some((disk, dir)) })
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

    fn forget_reservations(&self) {}

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
        let (state, place) = (self.state.clone(), self.place.clone());
        Box::pin(async move {
            if let Some((disk, dir)) = place {
                replace_file(&*disk, &dir.join(IMAGE), encode(&image)?).await?;
            }
            let position = image.position;
            lock(&state).saved = image;
            Ok(position)
        })
    }

    fn export(&self) -> Work<Export> {
        let (image, place) = (lock(&self.state).saved.clone(), self.place.clone());
        Box::pin(async move {
            let (disk, dir) = place.ok_or_else(|| broken("this engine has no directory to export from"))?;
            // The image itself is replaced by the next checkpoint, so a copy is handed out.
            let copy = dir.join(format!("export-{}", image.position));
            let bytes = encode(&image)?;
            let (len, hash) = (bytes.len() as u64, sha256(&bytes));
            replace_file(&*disk, &copy, bytes).await?;
            Ok(Export {
                position: image.position,
                sidecar: image.sidecar.into(),
                files: vec![ExportFile { name: IMAGE.into(), path: copy, len, hash }],
                hold: Box::new(()),
            })
        })
    }

    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let (state, place) = (self.state.clone(), self.place.clone());
        Box::pin(async move {
            let (disk, dir) = place.ok_or_else(|| broken("this engine has no directory to install into"))?;
            let image = read_image(&*disk, &from.join(IMAGE)).await?;
            replace_file(&*disk, &dir.join(IMAGE), encode(&image)?).await?;
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

/// The image behind its checksum.
fn encode(image: &Image) -> Result<Bytes, EngineError> {
    let body = rmp_serde::to_vec_named(image).map_err(|e| broken(&e.to_string()))?;
    let mut bytes = crc32c::crc32c(&body).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes.into())
}

async fn read_image(disk: &dyn Disk, path: &Path) -> Result<Image, EngineError> {
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

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    hash
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
