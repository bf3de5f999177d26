//! A disk in memory that loses power: [`SimDisk`].
//!
//! Every file has the bytes a process sees and the bytes that are on the platter; every directory
//! has the names a process sees and the names that are durable. [`SimDisk::crash`] throws away
//! what was not synced, or keeps it, or tears it at sector granularity, as a seeded generator
//! decides. [`SimDisk::kill`] ends the process only: everything written stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    fault::{Fault, cut, refuse},
    platter::{Change, Inode},
    space::Space,
};
use crate::disk::{Create, Disk, DiskFile, Durability, Io};

/// A simulated disk; clones are the same disk.
///
/// The handle from [`SimDisk::new`] is the experimenter's: it works at any time. A process under
/// test gets [`SimDisk::boot`]: a handle that, with every file opened through it, is dead after
/// the next crash or kill, so that tasks that outlive "their process" cannot touch the disk.
///
/// Making a directory is durable at once, as with the real disk. Operations happen when they are
/// submitted; the sync of a durable write happens when its latency is over.
#[derive(Clone)]
pub struct SimDisk {
    machine: Arc<Mutex<Machine>>,
    /// The process this handle belongs to, or none for the experimenter.
    life: Option<u64>,
}

/// How long calls take, in (simulated) tokio time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLatency {
    /// Of a read.
    pub read: Duration,
    /// Of a write that is not synced.
    pub write: Duration,
    /// Of a durable write and of the sync of a directory.
    pub sync: Duration,
    /// Of everything else.
    pub other: Duration,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    life: u64,
    stopped: bool,
    calls: u64,
    torn: u64,
    faults: Vec<Planted>,
    latency: DiskLatency,
    pub(super) space: Space,
    pub(super) inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    dirs: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names not yet synced, per directory, oldest first.
    renames: BTreeMap<PathBuf, Vec<NameChange>>,
}

#[derive(Debug, Clone, Copy)]
struct Planted {
    call: u64,
    fault: Fault,
    persistent: bool,
}

/// Names set or removed in one step.
type NameChange = Vec<(PathBuf, Option<u64>)>;

impl SimDisk {
    /// An empty disk without faults, latency or limit.
    pub fn new() -> Self {
        let machine = Machine { dirs: [PathBuf::from("/")].into(), ..Default::default() };
        Self { machine: Arc::new(Mutex::new(machine)), life: None }
    }

    /// A handle for one process: dead after the next crash or kill.
    pub fn boot(&self) -> Self {
        let life = self.lock().life;
        Self { machine: self.machine.clone(), life: Some(life) }
    }

    /// Another disk with the same content, faults and state.
    pub fn fork(&self) -> Self {
        let machine = self.lock().clone();
        Self { machine: Arc::new(Mutex::new(machine)), life: self.life }
    }

    /// Cuts the power: what was not synced is lost, kept or torn, decided by `seed`. Open files
    /// and booted handles are dead afterwards; planted faults are gone.
    pub fn crash(&self, seed: u64) {
        let mut machine = self.lock();
        let mut random = StdRng::seed_from_u64(seed);
        machine.end_life();
        let torn = machine.inodes.values_mut().filter_map(|inode| inode.crash(&mut random).then_some(()));
        let torn = torn.count() as u64;
        machine.torn += torn;
        let renames = std::mem::take(&mut machine.renames);
        for changes in renames.into_values() {
            let kept = random.random_range(0..=changes.len());
            for change in changes.into_iter().take(kept) {
                apply_names(&mut machine.durable_names, &change);
            }
        }
        machine.names = machine.durable_names.clone();
        let named: BTreeSet<u64> = machine.names.values().copied().collect();
        machine.inodes.retain(|number, _| named.contains(number));
    }

    /// Number of files that a power cut tore so far.
    pub fn torn(&self) -> u64 {
        self.lock().torn
    }

    /// Another disk with what is on the platter of this one and nothing else: as after a power cut
    /// that lost everything that was not synced.
    pub fn platter(&self) -> Self {
        let disk = self.fork();
        let mut machine = disk.lock();
        machine.end_life();
        machine.renames.clear();
        machine.names = machine.durable_names.clone();
        for inode in machine.inodes.values_mut() {
            inode.unsynced.clear();
            inode.seen = inode.durable.clone();
        }
        drop(machine);
        Self { life: None, ..disk }
    }

    /// Ends the process as `kill -9` does: everything written stays, synced or not. Open files
    /// and booted handles are dead afterwards; planted faults are gone.
    pub fn kill(&self) {
        self.lock().end_life();
    }

    /// Number of calls so far, failed ones included.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Lets the call with that number fail (the first is 1; see [`SimDisk::calls`]); with
    /// `persistent`, every call from it on.
    pub fn fail_at(&self, call: u64, fault: Fault, persistent: bool) {
        self.lock().faults.push(Planted { call, fault, persistent });
    }

    /// Forgets planted faults.
    pub fn clear_faults(&self) {
        let mut machine = self.lock();
        machine.faults.clear();
        machine.stopped = false;
    }

    /// Sets how long calls take.
    pub fn set_latency(&self, latency: DiskLatency) {
        self.lock().latency = latency;
    }

    /// The bytes of a file as a process sees them.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        self.lock().named(path).map(|inode| inode.seen.clone())
    }

    /// Every file there is, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one call: counts it, lets faults strike, does it, and lets time pass.
    fn call<T: Send + 'static>(
        &self,
        took: impl FnOnce(&DiskLatency) -> Duration,
        action: impl FnOnce(&mut Machine, Option<Fault>) -> io::Result<T>,
    ) -> Io<T> {
        let mut machine = self.lock();
        let result = machine.enter(self.life).and_then(|fault| action(&mut machine, fault));
        let (pause, life) = (took(&machine.latency), machine.life);
        drop(machine);
        if pause.is_zero() || result.is_err() {
            return Box::pin(std::future::ready(result));
        }
        let disk = Self { machine: self.machine.clone(), life: Some(life) };
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            disk.lock().alive(disk.life)?;
            result
        })
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("life", &self.life).finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: Create) -> Io<Arc<dyn DiskFile>> {
        let disk = self.clone();
        self.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                let number = match (machine.names.get(path).copied(), how) {
                    (Some(_), Create::New) => return Err(io::ErrorKind::AlreadyExists.into()),
                    (None, Create::No) => return Err(io::ErrorKind::NotFound.into()),
                    (Some(number), Create::No) => number,
                    (None, Create::New) => {
                        machine.parent_of(path)?;
                        let number = machine.next_inode;
                        machine.next_inode += 1;
                        machine.inodes.insert(number, Inode::default());
                        machine.change_names(vec![(path.to_owned(), Some(number))])?;
                        number
                    }
                };
                cut(fault)?;
                let disk = Self { machine: disk.machine, life: Some(machine.life) };
                Ok(Arc::new(SimFile { disk, number }) as Arc<dyn DiskFile>)
            },
        )
    }

    fn list(&self, dir: &Path) -> Io<Vec<String>> {
        self.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                cut(fault)?;
                if !machine.dirs.contains(dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inside = machine.names.keys().chain(&machine.dirs).filter(|p| p.parent() == Some(dir));
                let names: BTreeSet<String> =
                    inside.filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned())).collect();
                Ok(names.into_iter().collect())
            },
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> Io<()> {
        self.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                let number = *machine.names.get(from).ok_or(io::ErrorKind::NotFound)?;
                machine.parent_of(to)?;
                let (leave, enter) = ((from.to_owned(), None), (to.to_owned(), Some(number)));
                if from.parent() == to.parent() {
                    machine.change_names(vec![leave, enter])?;
                } else {
                    machine.change_names(vec![enter])?;
                    machine.change_names(vec![leave])?;
                }
                cut(fault)
            },
        )
    }

    fn remove(&self, path: &Path) -> Io<()> {
        self.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                if !machine.names.contains_key(path) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                machine.change_names(vec![(path.to_owned(), None)])?;
                cut(fault)
            },
        )
    }

    fn create_dir(&self, dir: &Path) -> Io<()> {
        self.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                machine.dirs.extend(dir.ancestors().map(Path::to_owned));
                cut(fault)
            },
        )
    }

    fn sync_dir(&self, dir: &Path) -> Io<()> {
        self.call(
            |l| l.sync,
            |machine, fault| {
                refuse(fault)?;
                cut(fault)?;
                if !machine.dirs.contains(dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                for change in machine.renames.remove(dir).unwrap_or_default() {
                    apply_names(&mut machine.durable_names, &change);
                }
                Ok(())
            },
        )
    }
}

/// An open file of a [`SimDisk`]; its handle always belongs to one life.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    number: u64,
}

impl DiskFile for SimFile {
    fn write(&self, offset: u64, parts: Vec<Bytes>, durability: Durability) -> Io<()> {
        let number = self.number;
        let now = durability == Durability::Now;
        let mut machine = self.disk.lock();
        let pause = if now { machine.latency.sync } else { machine.latency.write };
        let submitted = machine.enter(self.disk.life).and_then(|fault| {
            if fault == Some(Fault::Enospc) || (fault == Some(Fault::Eio) && !now) {
                return refuse(fault);
            }
            let len = parts.iter().map(|p| p.len() as u64).sum::<u64>();
            machine.room_for(number, offset + len)?;
            let inode = machine.inode(number)?;
            let mut at = offset;
            let end = if fault == Some(Fault::Short) { offset + len / 2 } else { offset + len };
            for mut part in parts {
                part.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
                if part.is_empty() {
                    continue;
                }
                let change = Change::Write(at, part.clone());
                at += part.len() as u64;
                change.apply(&mut inode.seen);
                inode.unsynced.push(change);
            }
            if fault == Some(Fault::Eio) {
                // fsyncgate: the pages stay readable and count as clean.
                inode.unsynced.clear();
            }
            refuse(fault)?;
            cut(fault)
        });
        drop(machine);
        let disk = self.disk.clone();
        let finish = move || {
            let mut machine = disk.lock();
            machine.alive(disk.life)?;
            if now {
                machine.inode(number)?.sync();
            }
            Ok(())
        };
        match submitted {
            Err(e) => Box::pin(std::future::ready(Err(e))),
            Ok(()) if pause.is_zero() => Box::pin(std::future::ready(finish())),
            Ok(()) => Box::pin(async move {
                tokio::time::sleep(pause).await;
                finish()
            }),
        }
    }

    fn read(&self, offset: u64, len: usize) -> Io<Bytes> {
        let number = self.number;
        self.disk.call(
            |l| l.read,
            |machine, fault| {
                refuse(fault)?;
                cut(fault)?;
                let seen = &machine.inode(number)?.seen;
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(seen.len());
                let to = from.saturating_add(len).min(seen.len());
                Ok(Bytes::copy_from_slice(&seen[from..to]))
            },
        )
    }

    fn len(&self) -> Io<u64> {
        let number = self.number;
        self.disk.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                cut(fault)?;
                Ok(machine.inode(number)?.seen.len() as u64)
            },
        )
    }

    fn resize(&self, len: u64) -> Io<()> {
        let number = self.number;
        self.disk.call(
            |l| l.other,
            |machine, fault| {
                refuse(fault)?;
                machine.room_for(number, len)?;
                let inode = machine.inode(number)?;
                Change::Resize(len).apply(&mut inode.seen);
                inode.unsynced.push(Change::Resize(len));
                cut(fault)
            },
        )
    }
}

impl Machine {
    /// Counts a call and says which fault strikes it.
    fn enter(&mut self, life: Option<u64>) -> io::Result<Option<Fault>> {
        self.alive(life)?;
        self.calls += 1;
        let call = self.calls;
        let struck = |p: &&Planted| p.call == call || (p.persistent && p.call < call);
        let fault = self.faults.iter().find(struck).map(|p| p.fault);
        self.stopped = fault == Some(Fault::PowerCut);
        Ok(fault)
    }

    fn alive(&self, life: Option<u64>) -> io::Result<()> {
        if self.stopped || life.is_some_and(|life| life != self.life) {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        Ok(())
    }

    fn end_life(&mut self) {
        self.life += 1;
        self.stopped = false;
        self.faults.clear();
    }

    pub(super) fn inode(&mut self, number: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&number).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn named(&mut self, path: &Path) -> Option<&mut Inode> {
        let number = *self.names.get(path)?;
        self.inodes.get_mut(&number)
    }

    fn parent_of(&self, path: &Path) -> io::Result<PathBuf> {
        let parent = path.parent().filter(|dir| self.dirs.contains(*dir));
        parent.map(Path::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        if let Some((path, _)) = change.first() {
            let dir = self.parent_of(path)?;
            apply_names(&mut self.names, &change);
            self.renames.entry(dir).or_default().push(change);
        }
        Ok(())
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, change: &[(PathBuf, Option<u64>)]) {
    for (path, number) in change {
        match number {
            Some(number) => names.insert(path.clone(), *number),
            None => names.remove(path),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{super::platter::SECTOR, *};

    fn bytes(byte: u8, len: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![byte; len])]
    }

    #[tokio::test]
    async fn a_crash_keeps_what_was_synced_and_may_lose_or_tear_the_rest() {
        let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let disk = SimDisk::new();
            let process = disk.boot();
            process.create_dir(dir).await.unwrap();
            let file = process.open(path, Create::New).await.unwrap();
            process.sync_dir(dir).await.unwrap();
            file.write(0, bytes(1, 2048), Durability::Now).await.unwrap();
            file.write(1024, bytes(2, 2048), Durability::Later).await.unwrap();
            process.open(Path::new("/d/lost"), Create::New).await.unwrap();
            disk.crash(seed);
            assert!(file.len().await.is_err() && process.list(dir).await.is_err());
            let content = disk.content(path).unwrap();
            assert_eq!(content[..1024], [1; 1024]);
            assert!(content.len() >= 2048 && content.chunks(512).all(|c| c.iter().all(|b| *b == c[0])));
            outcomes.insert((content.iter().filter(|b| **b == 2).count(), disk.files().len()));
        }
        assert!(outcomes.contains(&(0, 1)) && outcomes.contains(&(2048, 2)));
        assert!(outcomes.iter().any(|o| o.0 > 0 && o.0 < 2048), "nothing was torn: {outcomes:?}");
    }

    #[tokio::test]
    async fn a_kill_keeps_everything_and_a_failed_sync_is_not_healed_by_the_next() {
        let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
        let disk = SimDisk::new();
        disk.create_dir(dir).await.unwrap();
        let file = disk.open(path, Create::New).await.unwrap();
        disk.sync_dir(dir).await.unwrap();
        file.write(0, bytes(1, 10), Durability::Later).await.unwrap();
        disk.kill();
        assert!(file.len().await.is_err());
        let file = disk.open(path, Create::No).await.unwrap();
        assert_eq!(file.read(0, 99).await.unwrap().len(), 10);
        disk.fail_at(disk.calls() + 1, Fault::Eio, false);
        assert!(file.write(10, bytes(2, 10), Durability::Now).await.is_err());
        file.write(0, Vec::new(), Durability::Now).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 20);
        let fork = disk.fork();
        disk.crash(1);
        assert_eq!(disk.content(path).unwrap(), Vec::<u8>::new());
        assert_eq!(fork.content(path).unwrap().len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn space_runs_out_and_time_passes() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("/f"), Create::New).await.unwrap();
        disk.set_limit(Some(100));
        file.resize(100).await.unwrap();
        assert_eq!(disk.refused(), 0);
        assert_eq!(file.resize(101).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.refused(), 1);
        file.write(0, bytes(1, 100), Durability::Now).await.unwrap();
        disk.set_latency(DiskLatency { sync: Duration::from_millis(4), ..Default::default() });
        let start = tokio::time::Instant::now();
        file.write(0, bytes(1, 1), Durability::Now).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(4));
        disk.fail_at(disk.calls() + 1, Fault::Enospc, true);
        assert!(file.len().await.is_err() && file.len().await.is_err());
        disk.clear_faults();
        assert!(disk.flip(Path::new("/f"), 3, 0));
        assert_eq!(disk.content(Path::new("/f")).unwrap()[3], 0);
    }

    #[tokio::test]
    async fn a_short_write_leaves_half_and_is_an_error() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("/f"), Create::New).await.unwrap();
        for (parts, written) in [(vec![10], 5), (vec![3, 4, 5], 6), (vec![1], 0), (vec![0, 8, 2], 5)] {
            file.resize(0).await.unwrap();
            disk.fail_at(disk.calls() + 1, Fault::Short, false);
            let parts = parts.into_iter().flat_map(|len| bytes(7, len)).collect();
            let error = file.write(0, parts, Durability::Now).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(disk.content(Path::new("/f")).unwrap(), vec![7; written]);
        }
        let fork = disk.fork();
        fork.sync_dir(Path::new("/")).await.unwrap();
        assert_eq!(
            fork.platter().content(Path::new("/f")).unwrap(),
            Vec::<u8>::new(),
            "nothing of it is synced"
        );
    }

    #[tokio::test]
    async fn the_platter_has_what_was_synced_and_nothing_else() {
        let disk = SimDisk::new();
        let file = disk.open(Path::new("/f"), Create::New).await.unwrap();
        file.write(0, bytes(1, 10), Durability::Now).await.unwrap();
        assert!(disk.platter().files().is_empty(), "its name is not durable");
        disk.sync_dir(Path::new("/")).await.unwrap();
        file.write(5, bytes(2, 10), Durability::Later).await.unwrap();
        disk.rename(Path::new("/f"), Path::new("/g")).await.unwrap();
        let platter = disk.platter();
        assert_eq!(platter.content(Path::new("/f")).unwrap(), vec![1; 10]);
        assert_eq!(platter.content(Path::new("/g")), None);
        assert_eq!(disk.content(Path::new("/g")).unwrap().len(), 15, "the disk itself goes on");
        file.write(0, bytes(3, 1), Durability::Now).await.unwrap();
    }

    #[tokio::test]
    async fn rot_strikes_durable_content_and_nothing_else() {
        let dir = Path::new("/d");
        let disk = SimDisk::new();
        disk.create_dir(dir).await.unwrap();
        assert_eq!(disk.rot(dir, 0), None);
        let file = disk.open(Path::new("/d/synced"), Create::New).await.unwrap();
        disk.open(Path::new("/other"), Create::New).await.unwrap();
        disk.sync_dir(dir).await.unwrap();
        file.resize(64 * SECTOR).await.unwrap();
        file.write(2 * SECTOR, bytes(7, SECTOR as usize), Durability::Now).await.unwrap();
        file.write(9 * SECTOR, bytes(7, SECTOR as usize), Durability::Later).await.unwrap();
        let fresh = disk.open(Path::new("/d/unnamed"), Create::New).await.unwrap();
        fresh.write(0, bytes(7, 10), Durability::Now).await.unwrap();
        let before = disk.content(Path::new("/d/synced")).unwrap();
        for dice in 0..64 {
            let (disk, twin) = (disk.fork(), disk.fork());
            let rot = disk.rot(dir, dice).unwrap();
            assert_eq!(
                (twin.rot(dir, dice).as_ref(), rot.path.as_path()),
                (Some(&rot), Path::new("/d/synced"))
            );
            assert!((2 * SECTOR..3 * SECTOR).contains(&rot.offset), "{rot:?}");
            disk.crash(0);
            let after = disk.content(&rot.path).unwrap()[rot.offset as usize];
            assert_eq!(after, before[rot.offset as usize] ^ (1 << rot.bit));
        }
    }
}
