//! Replicas that differ only in when they do what, work in the background, files that rot, databases.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Outcome, Subject, ensure,
    rig::{BEGAN, DATABASE, Rig, at, went},
    skip,
    snapshots::maintain,
};
use crate::engine::{Operation, Pace, StorageEngine};

/// Bits of each file that are flipped, one after the other.
const FLIPS: u64 = 8;

pub(super) async fn comes_to_the_same_everywhere<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let plain = rig.open("plain").await?;
    let mut busy = rig.open("busy").await?;
    for seq in 1..=20 {
        rig.apply(&plain, [seq])?;
        rig.apply(&busy, [seq])?;
        if seq % 3 == 0 {
            rig.checkpoint(&busy, "often").await?;
            maintain(&*busy).await?;
        }
        if seq % 6 == 0 {
            drop(busy);
            busy = rig.open("busy").await?;
        }
        let (one, other) = (rig.held(&plain, DATABASE).await?, rig.held(&busy, DATABASE).await?);
        ensure!(one == other, "at {}: {one:?} without checkpoints, {other:?} with them", at(seq));
    }
    rig.expect(&busy, 20, 20, "with checkpoints, maintenance and restarts").await?;
    Ok(())
}

pub(super) async fn maintains_without_a_trace<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    for seq in 1..=12 {
        rig.apply(&engine, [seq])?;
        rig.checkpoint(&engine, "each").await?;
    }
    rig.apply(&engine, 13..=14)?;
    drop(engine.maintain());
    rig.expect(&engine, 14, 14, "maintenance that was dropped").await?;
    maintain(&*engine).await?;
    rig.expect(&engine, 14, 14, "maintenance").await?;
    let engine = rig.reopen("engine", engine, 7).await?;
    rig.expect_recovered(&engine, 12, "each", "restarted behind maintenance").await?;
    Ok(())
}

pub(super) async fn verifies_its_files<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.begun("engine").await?;
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let pace: Pace = Arc::new(move |bytes| {
        count.fetch_add(bytes, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    });
    let gone = engine.verify("no such file", pace.clone()).await.map_err(went("a file that is not there"))?;
    ensure!(gone, "a file that is not there any more is no damage");
    let files = engine.files();
    if files.is_empty() {
        return skip("the engine names no files that can be verified");
    }
    for (name, len) in &files {
        let before = asked.load(Ordering::Relaxed);
        let whole = engine.verify(name, pace.clone()).await.map_err(went("verifying"))?;
        ensure!(whole, "{name} is damaged as it was written");
        let read = asked.load(Ordering::Relaxed) - before;
        ensure!(read >= *len, "{name} has {len} bytes, {read} were announced before they were read");
    }
    ensure!(engine.damaged().is_empty(), "damaged from the start: {:?}", engine.damaged());
    let Some(sim) = &rig.sim else { return Ok(()) };
    let export = rig.export(&engine).await?;
    let contents = rig.contents(&export).await?;
    for (name, len) in &files {
        let Some(path) = find(sim.files(), &rig.dir("engine"), name) else {
            return Err(format!("{name} is no file below the engine's directory").into());
        };
        for flip in 0..FLIPS {
            let byte = flip * len.saturating_sub(1) / (FLIPS - 1);
            sim.flip(&path, byte, flip as u8);
            let engine = rig.open("engine").await?;
            let whole = engine.verify(name, pace.clone()).await.map_err(went("verifying a damaged file"))?;
            ensure!(!whole, "byte {byte} of {name} is another, and it verifies");
            ensure!(engine.damaged().contains(name), "{name} is damaged and not told of");
            let from = rig.deliver(&contents, &format!("incoming-{name}-{flip}")).await?;
            engine.install(from).await.map_err(went("mending by an install"))?;
            ensure!(engine.damaged().is_empty(), "damaged behind an install: {:?}", engine.damaged());
            rig.expect(&engine, 3, 3, "mended").await?;
        }
    }
    Ok(())
}

fn find(files: Vec<PathBuf>, below: &std::path::Path, name: &str) -> Option<PathBuf> {
    files.into_iter().find(|path| path.starts_with(below) && path.ends_with(name))
}

pub(super) async fn keeps_databases_apart<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    if !rig.subject.has_databases() {
        return skip("the engine has no databases");
    }
    const DAY: i64 = 86_400_000_000_000;
    let engine = rig.open("engine").await?;
    let batch = |database: &str, point: u64, time: i64| {
        let (encoding, payload) = rig.subject.batch(database, point, time);
        Operation::Batch { encoding, payload }
    };
    let old = "old".to_owned();
    let log = [
        batch("gone", 1, BEGAN),
        batch(DATABASE, 2, BEGAN),
        batch("old", 3, BEGAN),
        batch("old", 4, BEGAN + 9 * DAY),
        Operation::SetRetention { database: old.clone(), keep_ns: Some(3 * DAY) },
    ];
    for (operation, seq) in log.iter().zip(1..) {
        engine.apply(at(seq), operation).map_err(went("a record"))?;
    }
    let both = rig.held(&engine, "old").await?;
    ensure!(both == [3, 4], "only Expire moves what is gone, {both:?} are held");
    engine.apply(at(6), &Operation::Expire { now_ns: BEGAN + 10 * DAY }).map_err(went("an Expire"))?;
    engine.apply(at(7), &Operation::DropDatabase { database: "gone".into() }).map_err(went("a drop"))?;
    rig.checkpoint(&engine, "databases").await?;
    maintain(&*engine).await?;
    let again = rig.reopen("engine", engine, 8).await?;
    again.apply(at(8), &batch("gone", 5, BEGAN)).map_err(went("a database again"))?;
    for (database, wanted) in [("old", &[4][..]), (DATABASE, &[2][..]), ("gone", &[5][..]), ("none", &[][..])]
    {
        let held = rig.held(&again, database).await?;
        ensure!(held == wanted, "{database} should hold {wanted:?}, it holds {held:?}");
    }
    again
        .apply(at(9), &Operation::SetRetention { database: old, keep_ns: None })
        .map_err(went("keep all"))?;
    ensure!(!again.expiry_due(BEGAN + 90 * DAY), "expiry is due where everything is kept");
    Ok(())
}
