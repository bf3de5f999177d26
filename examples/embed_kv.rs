//! A key-value store on three nodes: an engine of one's own; agreement, log and failover are Skein's.
//!
//!     cargo run --no-default-features --example embed_kv
use std::{collections::BTreeMap, error::Error, path::PathBuf, sync::Arc, sync::Mutex, time::Duration};

use bytes::Bytes;
use skeinmesh::disk::{Disk, RealDisk};
use skeinmesh::engine::{EngineError, Export, ImageFile, Operation, Refused, StorageEngine, Work};
use skeinmesh::node::{Consistency, Node, NodeConfig, Surroundings, Write};
use skeinmesh::{identity::DataDir, types::Lsn};

/// Position, sidecar, content.
type Image = (Lsn, Vec<u8>, BTreeMap<String, String>);

/// Keys and values; a batch is the text `KEY=VALUE`.
#[derive(Debug)]
pub struct Kv {
    live: Arc<Mutex<Image>>,
    saved: Arc<Mutex<Image>>,
    file: ImageFile,
}

impl Kv {
    pub async fn open(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Arc<Self>, EngineError> {
        let (file, image) = ImageFile::open::<Image>(disk, dir).await?;
        let (live, saved) = (Arc::new(Mutex::new(image.clone())), Arc::new(Mutex::new(image)));
        Ok(Arc::new(Self { live, saved, file }))
    }
    pub fn get(&self, key: &str) -> Option<String> {
        self.live.lock().expect("no panic").2.get(key).cloned()
    }
}

fn entry(payload: &[u8]) -> Option<(String, String)> {
    let (key, value) = std::str::from_utf8(payload).ok()?.split_once('=')?;
    Some((key.to_owned(), value.to_owned()))
}

impl StorageEngine for Kv {
    fn recovered(&self) -> (Lsn, Bytes) {
        let saved = self.saved.lock().expect("no panic");
        (saved.0, saved.1.clone().into())
    }
    fn applied(&self) -> Lsn {
        self.live.lock().expect("no panic").0
    }
    fn admit(&self, _: u8, payload: &Bytes) -> Result<(), Refused> {
        entry(payload).map(drop).ok_or_else(|| Refused::Invalid("want KEY=VALUE".into()))
    }
    fn apply(&self, at: Lsn, operation: &Operation) -> Result<(), EngineError> {
        let mut live = self.live.lock().expect("no panic");
        if at <= live.0 {
            return Err(EngineError::Broken(format!("record {at} behind {}", live.0)));
        }
        if let Operation::Batch { payload, .. } = operation {
            live.2.extend(entry(payload));
        }
        live.0 = at;
        Ok(())
    }
    fn checkpoint_due(&self) -> bool {
        self.applied().seq >= self.recovered().0.seq + 1_000
    }
    fn checkpoint(&self, sidecar: Bytes) -> Work<Lsn> {
        let (at, _, content) = self.live.lock().expect("no panic").clone();
        let (image, saved, file) = ((at, sidecar.to_vec(), content), self.saved.clone(), self.file.clone());
        Box::pin(async move {
            file.save(&image).await?;
            *saved.lock().expect("no panic") = image;
            Ok(at)
        })
    }
    fn export(&self) -> Work<Export> {
        let (image, file) = (self.saved.lock().expect("no panic").clone(), self.file.clone());
        Box::pin(async move {
            let files = vec![file.export(&image, image.0).await?];
            Ok(Export { position: image.0, sidecar: image.1.into(), files, hold: Box::new(()) })
        })
    }
    fn install(&self, from: PathBuf) -> Work<Lsn> {
        let (live, saved, file) = (self.live.clone(), self.saved.clone(), self.file.clone());
        Box::pin(async move {
            let image: Image = file.install(&from).await?;
            *saved.lock().expect("no panic") = image.clone();
            *live.lock().expect("no panic") = image.clone();
            Ok(image.0)
        })
    }
}

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let mut nodes: Vec<(Node, Arc<Kv>)> = Vec::new();
    for name in ["a", "b", "c"] {
        let dir = home.path().join(name);
        let engine = Kv::open(Arc::new(RealDisk), dir.join("kv")).await?;
        let config = NodeConfig::on_loopback(DataDir::open(&dir)?, nodes.first().map(|first| &first.0))?;
        nodes.push((Node::start(config, Surroundings::real(), engine.clone()).await?, engine));
    }
    // Written at one, read at the next, at once.
    for (n, (node, _)) in nodes.iter().enumerate() {
        node.submit(Write::new(1, format!("from-{n}=hello"), Duration::from_secs(10))).await?;
        let (next, engine) = &nodes[(n + 1) % nodes.len()];
        next.read_point(Consistency::Linearizable, Duration::from_secs(10)).await?;
        println!("{} has from-{n}={}", next.id(), engine.get(&format!("from-{n}")).ok_or("it is lost")?);
    }
    for (node, _) in &nodes {
        node.shutdown().await;
    }
    Ok(())
}
