//! What a node's identity leaves on disk: keys, its place in a cluster, the tombstone.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::keys::{IdentityError, NodeKey, SealKey};
use crate::{
    disk::{Create, Disk, Durability, read_file, replace_file},
    types::{ClusterId, ClusterView, NodeId, Recovery, TokenId},
};

const NODE_KEY: &str = "node.key";
const SEAL_KEY: &str = "seal.key";
const CLUSTER: &str = "cluster.json";
const VIEW: &str = "view.bin";
const PLEDGE: &str = "pledge.json";
const REMOVED: &str = "removed";
const SUPERSEDED: &str = "superseded.json";

/// Files that only their owner may read.
pub(super) const SECRET_FILES: [&str; 2] = [NODE_KEY, SEAL_KEY];
/// Longest file of this store that is read.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A failure to read or write an identity file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} is damaged ({reason}); restore it from a backup, or start with an empty data directory and join again", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A node's place in a cluster, as it survives restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterRecord {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, for people.
    pub name: String,
    /// Root certificates (DER).
    pub roots: Vec<Vec<u8>>,
    /// This node's certificate (DER).
    pub certificate: Vec<u8>,
    /// Where other members were last seen: hints for a restart.
    pub peers: Vec<SocketAddr>,
    /// The recovery this node has come through with its cluster: which world it is of. Fixed while
    /// the process runs.
    pub recovery: Option<Recovery>,
    /// True for a gateway: it has no raft state, no log and no data to come back to. Fixed when it joins.
    pub gateway: bool,
}

/// The text form of [`ClusterRecord`].
#[derive(Serialize, Deserialize)]
struct ClusterFile {
    version: u32,
    cluster: String,
    name: String,
    roots: Vec<String>,
    certificate: String,
    #[serde(default)]
    peers: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recovery: Option<RecoveryFile>,
    #[serde(default, skip_serializing_if = "is_false")]
    gateway: bool,
}

/// Left out, so that the bytes of others are those of before there were gateways.
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The text form of [`Recovery`].
#[derive(Serialize, Deserialize)]
struct RecoveryFile {
    generation: u64,
    by: String,
    nonce: u64,
    kept: String,
    signature: String,
}

impl RecoveryFile {
    fn new(recovery: &Recovery) -> Self {
        Self {
            generation: recovery.generation,
            by: recovery.by.to_string(),
            nonce: recovery.nonce,
            kept: recovery.kept.to_string(),
            signature: BASE64.encode(&recovery.signature),
        }
    }

    fn read(self) -> Result<Recovery, String> {
        Ok(Recovery {
            generation: self.generation,
            by: self.by.parse().map_err(|e: crate::types::IdParseError| e.to_string())?,
            nonce: self.nonce,
            kept: self.kept.parse().map_err(|e: crate::types::LsnParseError| e.to_string())?,
            signature: BASE64.decode(self.signature.as_bytes()).map_err(|e| e.to_string())?,
        })
    }
}

/// Whom this node has pledged itself to, when several make a cluster together.
#[derive(Serialize, Deserialize)]
struct PledgeFile {
    version: u32,
    token: String,
    to: String,
}

/// The identity files of one data directory, through the disk seam.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Store {
    /// The store in `dir`, which exists and is locked ([`super::DataDir`]).
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self { disk, dir: dir.to_path_buf() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's key and sealing key; made from `seeds` (two times 32 random bytes) on first use.
    /// A key that is there is never replaced, whatever state it is in.
    pub async fn keys(&self, seeds: [[u8; 32]; 2]) -> Result<(NodeKey, SealKey), StoreError> {
        let path = self.dir.join(NODE_KEY);
        let node = match self.read(NODE_KEY).await? {
            Some(bytes) => NodeKey::from_pkcs8(&bytes),
            None => {
                let key = NodeKey::from_seed(&seeds[0]).map_err(|e| damaged(&path, e))?;
                self.create(NODE_KEY, Bytes::copy_from_slice(key.pkcs8())).await?;
                Ok(key)
            }
        };
        let node = node.map_err(|e: IdentityError| damaged(&path, e))?;
        let seal = match self.read(SEAL_KEY).await? {
            Some(bytes) => <[u8; 32]>::try_from(&bytes[..])
                .map_err(|_| damaged(&self.dir.join(SEAL_KEY), format!("{} bytes, not 32", bytes.len())))?,
            None => {
                self.create(SEAL_KEY, Bytes::copy_from_slice(&seeds[1])).await?;
                seeds[1]
            }
        };
        Ok((node, SealKey::from_bytes(seal)))
    }

    /// Makes durable what is there: a process that was killed may have renamed a file and not synced that,
    /// and whoever acts on what it reads must find it again after a power cut. First thing at a start.
    pub async fn settle(&self) -> Result<(), StoreError> {
        match self.disk.sync_dir(&self.dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => {
                synced.map_err(|source| StoreError::Io { what: "sync", path: self.dir.clone(), source })
            }
        }
    }

    /// The node's place in a cluster, `None` before it has one.
    pub async fn cluster(&self) -> Result<Option<ClusterRecord>, StoreError> {
        let Some(bytes) = self.read(CLUSTER).await? else { return Ok(None) };
        ClusterFile::decode(&bytes).map(Some).map_err(|reason| damaged(&self.dir.join(CLUSTER), reason))
    }

    /// Replaces the node's place in a cluster, atomically and durably.
    pub async fn set_cluster(&self, record: &ClusterRecord) -> Result<(), StoreError> {
        self.replace(CLUSTER, ClusterFile::encode(record)).await
    }

    /// The view saved last. A node that is not in raft (a gateway) finds its way back with it. A
    /// damaged file counts as none: it holds nothing that the cluster does not have.
    pub async fn view(&self) -> Result<Option<ClusterView>, StoreError> {
        let Some(bytes) = self.read(VIEW).await? else { return Ok(None) };
        let view = bytes.split_at_checked(4).and_then(|(crc, body)| {
            (crc == crc32c::crc32c(body).to_be_bytes()).then(|| rmp_serde::from_slice(body).ok()).flatten()
        });
        Ok(view)
    }

    /// Saves the view, atomically and durably.
    pub async fn set_view(&self, view: &ClusterView) -> Result<(), StoreError> {
        let body = rmp_serde::to_vec_named(view).map_err(|e| damaged(&self.dir.join(VIEW), e))?;
        self.replace(VIEW, [&crc32c::crc32c(&body).to_be_bytes()[..], &body].concat()).await
    }

    /// The node that this one has pledged itself to by this join token, if it has: never another.
    pub async fn pledge(&self, token: TokenId) -> Result<Option<NodeId>, StoreError> {
        let Some(bytes) = self.read(PLEDGE).await? else { return Ok(None) };
        let (by, to) =
            PledgeFile::decode(&bytes).map_err(|reason| damaged(&self.dir.join(PLEDGE), reason))?;
        Ok((by == token).then_some(to))
    }

    /// Keeps a pledge, durably before it returns. One by another token is replaced: a cluster of that
    /// token will never be made here.
    pub async fn set_pledge(&self, token: TokenId, to: NodeId) -> Result<(), StoreError> {
        let file = PledgeFile { version: 1, token: token.to_string(), to: to.to_string() };
        // Strings and numbers always have a JSON form.
        self.replace(PLEDGE, serde_json::to_vec_pretty(&file).unwrap_or_default()).await
    }

    /// Why this identity is dead, if the cluster removed it.
    pub async fn tombstone(&self) -> Result<Option<String>, StoreError> {
        Ok(self.read(REMOVED).await?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Marks this identity as removed: it never starts again.
    pub async fn set_tombstone(&self, reason: &str) -> Result<(), StoreError> {
        self.replace(REMOVED, reason.as_bytes().to_vec()).await
    }

    /// The recovery that this node was left out of and has to give way to, if it has met one.
    pub async fn superseded(&self) -> Result<Option<Recovery>, StoreError> {
        let Some(bytes) = self.read(SUPERSEDED).await? else { return Ok(None) };
        let file = serde_json::from_slice::<RecoveryFile>(&bytes).map_err(|e| e.to_string());
        let recovery = file.and_then(RecoveryFile::read);
        recovery.map(Some).map_err(|reason| damaged(&self.dir.join(SUPERSEDED), reason))
    }

    /// Notes a recovery that this node has to give way to: it does so at its next start.
    pub async fn set_superseded(&self, recovery: &Recovery) -> Result<(), StoreError> {
        let file = RecoveryFile::new(recovery);
        // Numbers and strings always have a JSON form.
        self.replace(SUPERSEDED, serde_json::to_vec_pretty(&file).unwrap_or_default()).await
    }

    /// This node has given way.
    pub async fn clear_superseded(&self) -> Result<(), StoreError> {
        let path = self.dir.join(SUPERSEDED);
        let removed = async {
            match self.disk.remove(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.disk.sync_dir(&self.dir).await
        };
        removed.await.map_err(|source| StoreError::Io { what: "remove", path, source })
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let path = self.dir.join(name);
        match read_file(&*self.disk, &path, MAX_FILE).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { what: "read", path, source }),
        }
    }

    async fn replace(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let done = replace_file(&*self.disk, &path, bytes.into()).await;
        done.map_err(|source| StoreError::Io { what: "write", path, source })
    }

    /// Writes a key beside its place and renames it there: a crash leaves no half key behind,
    /// and the file is made new with mode 0600.
    async fn create(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let io = |source| StoreError::Io { what: "create", path: path.clone(), source };
        let beside = self.dir.join(format!("{name}.new"));
        match self.disk.remove(&beside).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let file = self.disk.open(&beside, Create::New).await.map_err(io)?;
        file.write(0, vec![bytes], Durability::Now).await.map_err(io)?;
        self.disk.rename(&beside, &path).await.map_err(io)?;
        self.disk.sync_dir(&self.dir).await.map_err(io)
    }
}

fn damaged(path: &Path, reason: impl ToString) -> StoreError {
    StoreError::Damaged { path: path.to_path_buf(), reason: reason.to_string() }
}

impl ClusterFile {
    fn encode(record: &ClusterRecord) -> Vec<u8> {
        let file = Self {
            version: 1,
            cluster: record.cluster.to_string(),
            name: record.name.clone(),
            roots: record.roots.iter().map(|root| BASE64.encode(root)).collect(),
            certificate: BASE64.encode(&record.certificate),
            peers: record.peers.clone(),
            recovery: record.recovery.as_ref().map(RecoveryFile::new),
            gateway: record.gateway,
        };
        // Strings, numbers and addresses always have a JSON form.
        serde_json::to_vec_pretty(&file).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Result<ClusterRecord, String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if file.version != 1 {
            return Err(format!("format version {}, this software knows 1", file.version));
        }
        let der = |text: &String| BASE64.decode(text.as_bytes()).map_err(|e| e.to_string());
        Ok(ClusterRecord {
            cluster: file.cluster.parse().map_err(|e: crate::types::IdParseError| e.to_string())?,
            name: file.name,
            roots: file.roots.iter().map(der).collect::<Result<_, _>>()?,
            certificate: der(&file.certificate)?,
            peers: file.peers,
            recovery: file.recovery.map(RecoveryFile::read).transpose()?,
            gateway: file.gateway,
        })
    }
}

impl PledgeFile {
    fn decode(bytes: &[u8]) -> Result<(TokenId, NodeId), String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if file.version != 1 {
            return Err(format!("format version {}, this software knows 1", file.version));
        }
        let wrong = |e: crate::types::IdParseError| e.to_string();
        Ok((file.token.parse().map_err(wrong)?, file.to.parse().map_err(wrong)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn store(dir: &Path) -> Store {
        Store::new(Arc::new(RealDisk), dir)
    }

    #[tokio::test]
    async fn keys_are_made_once_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (node, seal) = store(dir.path()).keys([[1; 32], [2; 32]]).await.unwrap();
        let (again, seal_again) = store(dir.path()).keys([[3; 32], [4; 32]]).await.unwrap();
        assert_eq!((node.id(), seal.bytes()), (again.id(), seal_again.bytes()));
        for name in SECRET_FILES {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        std::fs::write(dir.path().join(NODE_KEY), b"half a ke").unwrap();
        let error = store(dir.path()).keys([[5; 32], [6; 32]]).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read(dir.path().join(NODE_KEY)).unwrap(), b"half a ke");
    }

    #[tokio::test]
    async fn a_pledge_is_kept_for_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let (token, other, to) = (TokenId(7), TokenId(8), NodeId([3; 16]));
        assert_eq!(store.pledge(token).await.unwrap(), None);
        store.set_pledge(token, to).await.unwrap();
        assert_eq!(store.pledge(token).await.unwrap(), Some(to));
        assert_eq!(store.pledge(other).await.unwrap(), None);
        // Half a pledge is no licence to give another.
        std::fs::write(dir.path().join(PLEDGE), b"{").unwrap();
        assert!(matches!(store.pledge(token).await, Err(StoreError::Damaged { .. })));
    }

    /// A process was killed anywhere in a pledge. What the next one finds, and acts on, no power cut takes back.
    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn what_a_start_finds_is_durable() {
        use crate::testing::{Fault, SimDisk};
        let (dir, token, to) = (Path::new("/node"), TokenId(7), NodeId([3; 16]));
        let store = |disk: &SimDisk| Store::new(Arc::new(disk.boot()), dir);
        for (call, seed) in (1..9).flat_map(|call| (0..8).map(move |seed| (call, seed))) {
            let disk = SimDisk::new();
            disk.create_dir(dir).await.unwrap();
            disk.fail_at(disk.calls() + call, Fault::PowerCut, false);
            let _ = store(&disk).set_pledge(token, to).await;
            disk.kill();
            let next = store(&disk);
            next.settle().await.unwrap();
            let found = next.pledge(token).await.unwrap();
            disk.crash(seed);
            assert_eq!(
                store(&disk).pledge(token).await.unwrap(),
                found,
                "killed at call {call}, seed {seed}"
            );
        }
    }

    /// Format 1 of the small files, as a node of version 0.1.0 left them: they are read, and still written so.
    #[cfg(feature = "testing")]
    #[tokio::test]
    async fn the_files_of_format_1_are_read() {
        use crate::testing::{fixture, read_fixture};
        let dir = tempfile::tempdir().unwrap();
        let (store, token, to) = (store(dir.path()), TokenId(7), NodeId([3; 16]));
        let record = record();
        store.set_cluster(&record).await.unwrap();
        store.set_pledge(token, to).await.unwrap();
        store.set_superseded(record.recovery.as_ref().unwrap()).await.unwrap();
        for name in [CLUSTER, PLEDGE, SUPERSEDED] {
            let path = dir.path().join(name);
            let kept = format!("identity/{name}");
            fixture(&kept, &std::fs::read(&path).unwrap());
            std::fs::write(&path, read_fixture(&kept)).unwrap();
        }
        assert_eq!(store.cluster().await.unwrap(), Some(record.clone()));
        assert_eq!(store.pledge(token).await.unwrap(), Some(to));
        assert_eq!(store.superseded().await.unwrap(), record.recovery);
        // Of a later format nothing is guessed.
        for name in [CLUSTER, PLEDGE] {
            let path = dir.path().join(name);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replacen("1", "2", 1)).unwrap();
        }
        assert!(
            matches!(store.cluster().await, Err(StoreError::Damaged { reason, .. }) if reason.contains("version 2"))
        );
        assert!(matches!(store.pledge(token).await, Err(StoreError::Damaged { .. })));
    }

    fn record() -> ClusterRecord {
        ClusterRecord {
            cluster: ClusterId([4; 16]),
            name: "home".to_owned(),
            roots: vec![vec![1, 2, 3], vec![255; 700]],
            certificate: vec![9; 600],
            peers: vec!["10.0.0.1:7400".parse().unwrap(), "[fe80::1]:7400".parse().unwrap()],
            recovery: Some(Recovery {
                generation: 2,
                by: NodeId([5; 16]),
                nonce: u64::MAX,
                kept: crate::types::Lsn::new(3, 1 << 60),
                signature: vec![7; 64],
            }),
            gateway: true,
        }
    }

    #[tokio::test]
    async fn place_view_and_tombstone_survive() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(store.cluster().await.unwrap(), None);
        assert_eq!(store.view().await.unwrap(), None);
        assert_eq!(store.tombstone().await.unwrap(), None);
        let record = record();
        assert_eq!(store.superseded().await.unwrap(), None);
        store.set_superseded(record.recovery.as_ref().unwrap()).await.unwrap();
        assert_eq!(store.superseded().await.unwrap(), record.recovery);
        store.clear_superseded().await.unwrap();
        store.clear_superseded().await.unwrap();
        assert_eq!(store.superseded().await.unwrap(), None);
        store.set_cluster(&ClusterRecord::default()).await.unwrap();
        store.set_cluster(&record).await.unwrap();
        assert_eq!(store.cluster().await.unwrap(), Some(record));
        let view = ClusterView { cluster: ClusterId([4; 16]), term: 7, ..Default::default() };
        store.set_view(&view).await.unwrap();
        assert_eq!(store.view().await.unwrap(), Some(view));
        store.set_tombstone("removed by an operator").await.unwrap();
        assert_eq!(store.tombstone().await.unwrap().as_deref(), Some("removed by an operator"));

        std::fs::write(dir.path().join(CLUSTER), b"{").unwrap();
        assert!(matches!(store.cluster().await, Err(StoreError::Damaged { .. })));
        let mut bytes = std::fs::read(dir.path().join(VIEW)).unwrap();
        bytes[6] ^= 1;
        std::fs::write(dir.path().join(VIEW), bytes).unwrap();
        assert_eq!(store.view().await.unwrap(), None);
    }
}
