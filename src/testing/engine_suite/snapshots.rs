//! Exports, and installing them.

use bytes::Bytes;

use super::{
    Outcome, Subject, ensure,
    rig::{DATABASE, Rig, at, went},
    skip,
};
use crate::{
    engine::{Operation, StorageEngine},
    testing::{Fault, sweep},
};

/// Disk calls after which a sweep takes it that something goes on for ever.
const MOST_CALLS: u64 = 20_000;
/// Rounds of work in the background after which it is taken to go on for ever.
pub(super) const ROUNDS: usize = 1_000;

/// Runs the background work to its end.
pub(super) async fn maintain<E: StorageEngine>(engine: &E) -> Outcome {
    for _ in 0..ROUNDS {
        if !engine.maintain().await.map_err(went("maintenance failed"))? {
            return Ok(());
        }
    }
    Err(format!("maintenance has more to do after {ROUNDS} rounds").into())
}

pub(super) async fn exports_the_last_checkpoint<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let source = rig.begun("source").await?;
    rig.apply(&source, 4..=5)?;
    let export = rig.export(&source).await?;
    ensure!(
        export.position == at(3) && &export.sidecar[..] == b"one",
        "the last checkpoint was {}, the export says {}",
        at(3),
        export.position
    );
    ensure!(!export.files.is_empty(), "an export without files");
    let from = rig.deliver(&rig.contents(&export).await?, "incoming").await?;
    drop(export);
    let engine = rig.open("engine").await?;
    let position = engine.install(from).await.map_err(went("the install failed"))?;
    ensure!(position == at(3), "an export of {} was installed as {position}", at(3));
    rig.expect_recovered(&engine, 3, "one", "installed").await?;
    rig.apply(&engine, 4..=6)?;
    rig.expect(&engine, 6, 6, "applied behind an install").await?;
    // Before the machine of both is started again.
    rig.expect(&source, 5, 5, "the source").await?;
    let engine = rig.reopen("engine", engine, 4).await?;
    rig.expect_recovered(&engine, 3, "one", "installed and restarted").await?;
    rig.apply(&engine, 4..=6)?;
    rig.checkpoint(&engine, "two").await?;
    let engine = rig.reopen("engine", engine, 5).await?;
    rig.expect_recovered(&engine, 6, "two", "a checkpoint behind an install").await?;
    Ok(())
}

pub(super) async fn installs_over_anything<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let source = rig.begun("source").await?;
    let files = rig.contents(&rig.export(&source).await?).await?;
    // Further on than the export, with points that it does not have, some in a checkpoint.
    let engine = rig.open("engine").await?;
    for (seq, point) in [(1, 1), (2, 60), (3, 61), (4, 62), (5, 63)] {
        engine.apply(at(seq), &rig.record(point)).map_err(went("a record"))?;
        if seq == 4 {
            rig.checkpoint(&engine, "other").await?;
        }
    }
    let from = rig.deliver(&files, "incoming").await?;
    engine.install(from).await.map_err(went("the install failed"))?;
    rig.expect_recovered(&engine, 3, "one", "installed over a later position").await?;
    rig.apply(&engine, 4..=8)?;
    rig.expect(&engine, 8, 8, "the records behind it again").await?;
    let engine = rig.reopen("engine", engine, 6).await?;
    rig.expect_recovered(&engine, 3, "one", "restarted").await?;
    Ok(())
}

pub(super) async fn keeps_an_export_while_it_is_held<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let source = rig.begun("source").await?;
    let export = rig.export(&source).await?;
    let before = rig.contents(&export).await?;
    for seq in 4..=9 {
        rig.apply(&source, [seq])?;
        rig.checkpoint(&source, "later").await?;
    }
    maintain(&*source).await?;
    if rig.subject.has_databases() {
        let drop = Operation::DropDatabase { database: DATABASE.into() };
        source.apply(at(10), &drop).map_err(went("a database is dropped"))?;
        rig.checkpoint(&source, "dropped").await?;
    }
    let after = rig.contents(&export).await?;
    ensure!(before == after, "the files of an export changed while it was held");
    let from = rig.deliver(&after, "incoming").await?;
    let engine = rig.open("engine").await?;
    engine.install(from).await.map_err(went("the install failed"))?;
    rig.expect_recovered(&engine, 3, "one", "installed from an older export").await?;
    Ok(())
}

pub(super) async fn refuses_a_damaged_export<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let source = rig.begun("source").await?;
    let files = rig.contents(&rig.export(&source).await?).await?;
    let engine = rig.open("engine").await?;
    rig.apply(&engine, 1..=4)?;
    rig.checkpoint(&engine, "mine").await?;
    rig.apply(&engine, 5..=5)?;
    for (number, what, damaged) in damages(&files) {
        let from = rig.deliver(&damaged, &format!("incoming-{number}")).await?;
        let installed = engine.install(from).await;
        ensure!(installed.is_err(), "{what}: it was installed as {installed:?}");
        rig.expect(&engine, 5, 5, &what).await?;
        let (position, sidecar) = engine.recovered();
        ensure!(position == at(4) && &sidecar[..] == b"mine", "{what}: recovered is {position} now");
    }
    let from = rig.deliver(&files, "whole").await?;
    engine.install(from).await.map_err(went("a whole export behind damaged ones"))?;
    rig.expect_recovered(&engine, 3, "one", "a whole export behind damaged ones").await?;
    Ok(())
}

type Files = Vec<(String, Bytes)>;

/// Each file gone, cut and with flipped bits, one at a time.
fn damages(files: &Files) -> Vec<(usize, String, Files)> {
    let mut damaged: Vec<(String, Files)> = Vec::new();
    for (at, (name, content)) in files.iter().enumerate() {
        let mut change = |what: String, content: Option<Bytes>| {
            let mut files = files.clone();
            match content {
                Some(content) => files[at].1 = content,
                None => drop(files.remove(at)),
            }
            damaged.push((what, files));
        };
        change(format!("{name} is not there"), None);
        let len = content.len() as u64;
        for cut in sweep::cuts(len, 6) {
            change(format!("{name} is cut to {cut} of {len} bytes"), Some(content.slice(..cut as usize)));
        }
        for (byte, bit) in sweep::bits(len, 24) {
            let mut flipped = content.to_vec();
            if let Some(byte) = flipped.get_mut(byte as usize) {
                *byte ^= 1 << bit;
            }
            change(format!("bit {bit} of byte {byte} of {name} is flipped"), Some(flipped.into()));
        }
    }
    damaged.into_iter().enumerate().map(|(number, (what, files))| (number, what, files)).collect()
}

pub(super) async fn survives_a_power_cut_in_an_install<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    if rig.sim.is_none() {
        return skip("it needs the simulated disk");
    }
    for call in 1..MOST_CALLS {
        let rig = rig.anew();
        let Some(sim) = &rig.sim else { break };
        let source = rig.open("source").await?;
        rig.apply(&source, 1..=6)?;
        rig.checkpoint(&source, "theirs").await?;
        let files = rig.contents(&rig.export(&source).await?).await?;
        let engine = rig.begun("engine").await?;
        let from = rig.deliver(&files, "incoming").await?;
        let fault_at = sim.calls() + call;
        sim.fail_at(fault_at, Fault::PowerCut, false);
        let confirmed = engine.install(from).await.is_ok();
        if sim.calls() < fault_at {
            return if call == 1 { skip("the engine does not use the disk it is given") } else { Ok(()) };
        }
        let engine = rig.reopen("engine", engine, call).await?;
        let when = format!("power cut at call {call} of an install");
        let last = if engine.recovered().0 == at(3) && !confirmed { 3 } else { 6 };
        rig.expect_recovered(&engine, last, if last == 3 { "one" } else { "theirs" }, &when).await?;
        let next = engine.apply(at(7), &Operation::Nothing);
        ensure!(next.is_ok(), "{when}: {next:?}");
    }
    Err(format!("an install takes more than {MOST_CALLS} calls of the disk").into())
}
