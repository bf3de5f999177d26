//! A lone node on ext4 over a disk that remembers what it was told. From each recording many crashes
//! follow: the disk as it may lie there after one, mounted, repaired by ext4's journal, and the node
//! started on it. What was acknowledged before the crash must be there. Some of them crash again while
//! they recover.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::cli::Failure;
use tokio::time::sleep;

use crate::{
    check::{self, Violation},
    clients,
    disk::{BYTES, Disk},
    ledger::Ledger,
    logs, network,
    process::{PROGRAM, Process},
    recorder::{Blocks, Recorder, Recording},
    report::Report,
};

/// Clients, and their pause between two operations.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(4);
/// Until a node is there.
const READY: Duration = Duration::from_secs(60);
/// Crashes that are tried of one recording.
const OF_EACH: u32 = 20;
/// How many of them crash again in recovery.
const AGAIN: f64 = 0.25;

/// So many images. After each, everything acknowledged before its crash must be there.
pub async fn run(
    images: u32,
    home: &Path,
    seed: u64,
    ledger: &Arc<Ledger>,
    report: &mut Report,
) -> Result<(), Failure> {
    (report.chaos, report.nodes) = ("crash-images", 1);
    let recorder = Recorder::mount(&home.join("recorder"), BYTES, ledger).map_err(Failure::from);
    let tried = recorder.and_then(|recorder| Disk::try_ext4(home).map_err(Failure::new).map(|()| recorder));
    let recorder = match tried {
        Ok(recorder) => recorder,
        Err(why) => {
            // One line that a gate can show.
            eprintln!("SKIPPED: crash images: no FUSE, or no ext4 on loop devices here: {why}");
            report.skipped.insert("crash-image", "no FUSE, or no ext4 on loop devices here");
            return Ok(());
        }
    };
    // So nobody else takes office, and only what was acknowledged at `memory` may be lost.
    ledger.history().lone = true;
    network::make(1)?;
    let mut yard = Yard::new(home, &recorder)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut content = Blocks::of(&Disk::formatted(home)?);
    let (mut made, mut recordings) = (0, 0);
    while made < images {
        let session = seed.wrapping_add(recordings << 8);
        let (recording, from, after) =
            record(home, &recorder, content, ledger, session, recordings == 0, &mut rng).await?;
        (content, recordings) = (after, recordings + 1);
        for _ in 0..OF_EACH.min(images - made) {
            let (image, when) = recording.crash(rng.random_range(from..recording.len()), &mut rng);
            let recovery = yard.try_image(image, &ledger.until(when), report).await?;
            *report.faults.entry("crash-image").or_default() += 1;
            made += 1;
            if report.violations.is_empty() && rng.random_bool(AGAIN) && recovery.len() > 0 {
                let (image, _) = recovery.crash(rng.random_range(0..recovery.len()), &mut rng);
                yard.try_image(image, &ledger.until(when), report).await?;
                *report.faults.entry("crash-in-recovery").or_default() += 1;
                made += 1;
            }
            if !report.violations.is_empty() {
                eprintln!("{} violations in image {made}", report.violations.len());
                return Ok(());
            }
        }
    }
    if yard.forgotten == 0 {
        return Err(Failure::new("no crash lost what was never synced: this fault does not bite here"));
    }
    Ok(())
}

/// Clients write to a node for a while; what its disk was told meanwhile, from which event on a crash
/// leaves a node that has a cluster, and what the disk holds then.
async fn record(
    home: &Path,
    recorder: &Recorder,
    content: Blocks,
    ledger: &Arc<Ledger>,
    seed: u64,
    first: bool,
    rng: &mut StdRng,
) -> Result<(Recording, usize, Blocks), Failure> {
    let number = recorder.put(content);
    let disk = Disk::on(recorder.path(number), &home.join(network::name(0)))?;
    let mut node = Process::new(0, disk, home);
    node.launch(if first { &["--new-cluster"] } else { &[] }, None).await?;
    node.ready(READY).await?;
    let from = if first { recorder.recording(number).len() } else { 0 };
    ledger.resume();
    let mut clients = clients::feeds(CLIENTS, 1, PAUSE, ledger, seed);
    node.disk.set_canary()?;
    sleep(Duration::from_millis(rng.random_range(200..900))).await;
    node.freeze().await?;
    let recording = recorder.recording(number);
    ledger.stop();
    if let Some(ended) = node.kill().await? {
        return Err(Failure::new(format!("the node had ended with {:?}: {}", ended.code, ended.said)));
    }
    while clients.join_next().await.is_some() {}
    node.disk.unmount()?;
    drop(node);
    Ok((recording, from, recorder.take(number)))
}

/// Where images are tried, apart from the node that is recorded: each is a future of its own.
struct Yard<'a> {
    home: PathBuf,
    recorder: &'a Recorder,
    /// Images that lacked the file that was never synced.
    forgotten: u32,
}

impl<'a> Yard<'a> {
    fn new(home: &Path, recorder: &'a Recorder) -> Result<Self, Failure> {
        let yard = home.join("images");
        fs::create_dir_all(&yard)?;
        symlink(std::env::current_exe()?, yard.join(PROGRAM))?;
        Ok(Self { home: yard, recorder, forgotten: 0 })
    }

    /// Starts a node on it and judges what it shows by `ledger`; what recovery wrote.
    async fn try_image(
        &mut self,
        image: Blocks,
        ledger: &Ledger,
        report: &mut Report,
    ) -> Result<Recording, Failure> {
        let number = self.recorder.put(image.clone());
        let found = match self.start(self.recorder.path(number), ledger).await {
            Ok(found) => found,
            Err(failure) => vec![Violation::new("I10", format!("no node starts on an image: {failure}"))],
        };
        let recovery = self.recorder.recording(number);
        self.recorder.take(number);
        if !found.is_empty() {
            image.dump(&self.home.join("image"), BYTES)?;
            report.violations.extend(found);
        }
        Ok(recovery)
    }

    async fn start(&mut self, path: PathBuf, ledger: &Ledger) -> Result<Vec<Violation>, Failure> {
        let disk = Disk::on(path, &self.home.join(network::name(0)))?;
        self.forgotten += u32::from(!disk.take_canary());
        let mut node = Process::new(0, disk, &self.home);
        node.forget_log()?;
        node.launch(&[], None).await?;
        node.ready(READY).await?;
        clients::look_at_the_end(1, ledger).await;
        if let Some(ended) = node.kill().await? {
            return Err(Failure::new(format!("it ended with {:?}: {}", ended.code, ended.said)));
        }
        node.disk.unmount()?;
        let mut history = ledger.history();
        logs::read(&self.home, &mut history)?;
        Ok(check::check(&history))
    }
}
