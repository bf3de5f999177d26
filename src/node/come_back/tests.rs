//! Giving way in a real directory, cut short at any call.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::*;
use crate::{
    disk::{Create, DiskFile, Io, RealDisk},
    types::{ClusterId, Lsn, MembershipId, NodeId},
};

const FILES: [&str; 6] =
    ["raft/log", "raft/vote", "wal/1.wal", "wal/orphan/1", "engine/MANIFEST", "engine/data/db/t/a.parquet"];

/// The real disk for so many calls; then the process is dead.
#[derive(Debug)]
struct Mortal(AtomicU64);

impl Mortal {
    fn call<T: Send + 'static>(&self, call: impl FnOnce() -> Io<T>) -> Io<T> {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.0.store(0, Ordering::Relaxed);
            return Box::pin(std::future::ready(Err(io::Error::other("killed"))));
        }
        call()
    }
}

impl Disk for Mortal {
    fn open(&self, path: &Path, how: Create) -> Io<Arc<dyn DiskFile>> {
        self.call(|| RealDisk.open(path, how))
    }

    fn list(&self, dir: &Path) -> Io<Vec<String>> {
        self.call(|| RealDisk.list(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> Io<()> {
        self.call(|| RealDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> Io<()> {
        self.call(|| RealDisk.remove(path))
    }

    fn create_dir(&self, dir: &Path) -> Io<()> {
        self.call(|| RealDisk.create_dir(dir))
    }

    fn sync_dir(&self, dir: &Path) -> Io<()> {
        self.call(|| RealDisk.sync_dir(dir))
    }
}

fn on(disk: Arc<dyn Disk>) -> Surroundings {
    Surroundings { disk, ..Surroundings::real() }
}

fn recovery() -> Recovery {
    Recovery { generation: 1, by: NodeId([1; 16]), nonce: 7, kept: Lsn::new(3, 9), signature: vec![1; 64] }
}

async fn lay_down(dir: &Path) -> Store {
    for name in FILES {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), name).unwrap();
    }
    let store = Store::new(Arc::new(RealDisk), dir);
    let record = ClusterRecord { cluster: ClusterId([9; 16]), name: "home".into(), ..Default::default() };
    store.set_cluster(&record).await.unwrap();
    let view = ClusterView {
        cluster: record.cluster,
        membership: MembershipId { term: 9, index: 9 },
        applied_index: 9,
        ..Default::default()
    };
    store.set_view(&view).await.unwrap();
    store
}

#[tokio::test]
async fn whoever_heard_of_nothing_keeps_everything() {
    let home = tempfile::tempdir().unwrap();
    let store = lay_down(home.path()).await;
    let dir = DataDir::open(home.path()).unwrap();
    assert_eq!(come_back(&dir, &Surroundings::real()).await.unwrap(), None);
    assert!(FILES.iter().all(|name| fs::read(home.path().join(name)).unwrap() == name.as_bytes()));
    assert_eq!(store.cluster().await.unwrap().unwrap().recovery, None);
}

#[tokio::test]
async fn an_end_at_any_call_is_finished_by_the_next_start() {
    let mut cut_short = 0;
    for calls in 0.. {
        let home = tempfile::tempdir().unwrap();
        let store = lay_down(home.path()).await;
        store.set_superseded(&recovery()).await.unwrap();
        let dir = DataDir::open(home.path()).unwrap();
        let first = come_back(&dir, &on(Arc::new(Mortal(AtomicU64::new(calls))))).await;
        let finished = first.is_ok();
        if !finished {
            cut_short += 1;
            come_back(&dir, &Surroundings::real()).await.unwrap_or_else(|e| panic!("call {calls}: {e}"));
        }
        assert_eq!(store.superseded().await.unwrap(), None, "call {calls}");
        let record = store.cluster().await.unwrap().unwrap();
        assert_eq!((record.name.as_str(), record.recovery), ("home", Some(recovery())), "call {calls}");
        let view = store.view().await.unwrap().unwrap();
        assert_eq!((view.applied_index, view.recovery), (0, Some(recovery())), "call {calls}");
        for name in FILES {
            let (part, rest) = name.split_once('/').unwrap();
            let aside = home.path().join(format!("{part}.before-recovery-1")).join(rest);
            assert_eq!(fs::read(aside).unwrap(), name.as_bytes(), "call {calls}");
            assert!(!home.path().join(part).exists(), "call {calls}: {part} is still there");
        }
        if finished {
            break;
        }
    }
    assert!(cut_short > 15, "{cut_short}");
}
