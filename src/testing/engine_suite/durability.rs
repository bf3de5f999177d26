//! Checkpoints, and what a restart finds.

use bytes::Bytes;

use super::{
    Outcome, Subject, ensure,
    rig::{Rig, at, went},
    skip,
};
use crate::{engine::StorageEngine, testing::Fault};

/// Disk calls after which a sweep takes it that something goes on for ever.
const MOST_CALLS: u64 = 20_000;

pub(super) async fn fixes_a_checkpoint_when_it_is_asked_for<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    rig.apply(&engine, 1..=4)?;
    let asked = engine.checkpoint(Bytes::from_static(b"one"));
    rig.apply(&engine, 5..=6)?;
    let position = asked.await.map_err(went("the checkpoint failed"))?;
    ensure!(position == at(4), "a checkpoint asked for at {} came to {position}", at(4));
    ensure!(engine.recovered().0 == at(4), "recovered does not tell of the last finished checkpoint");
    rig.expect(&engine, 6, 6, "after a checkpoint").await?;
    let engine = rig.reopen("engine", engine, 2).await?;
    rig.expect_recovered(&engine, 4, "one", "opened again").await?;
    Ok(())
}

pub(super) async fn keeps_the_sidecar<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let mut engine = rig.open("engine").await?;
    for (seq, len) in [(1, 1), (2, 70_000), (3, 0), (4, 300)] {
        rig.apply(&engine, [seq])?;
        let sidecar = Bytes::from(vec![seq as u8; len]);
        engine.checkpoint(sidecar.clone()).await.map_err(went("the checkpoint failed"))?;
        engine = rig.reopen("engine", engine, seq).await?;
        let (position, found) = engine.recovered();
        ensure!(
            position == at(seq) && found == sidecar,
            "a sidecar of {len} bytes came back as one of {} at {position}",
            found.len()
        );
    }
    Ok(())
}

pub(super) async fn goes_back_to_the_checkpoint<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let mut engine = rig.begun("engine").await?;
    for seed in 0..6 {
        rig.apply(&engine, 4..=9)?;
        rig.expect(&engine, 9, 9, "before the restart").await?;
        engine = rig.reopen("engine", engine, seed).await?;
        rig.expect_recovered(&engine, 3, "one", "restarted").await?;
    }
    rig.apply(&engine, 4..=9)?;
    rig.checkpoint(&engine, "two").await?;
    let engine = rig.reopen("engine", engine, 9).await?;
    rig.expect_recovered(&engine, 9, "two", "restarted behind a second checkpoint").await?;
    Ok(())
}

pub(super) async fn survives_a_dropped_checkpoint<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.begun("engine").await?;
    rig.apply(&engine, 4..=6)?;
    drop(engine.checkpoint(Bytes::from_static(b"dropped")));
    rig.expect(&engine, 6, 6, "after a checkpoint that nobody waited for").await?;
    rig.checkpoint(&engine, "two").await?;
    let engine = rig.reopen("engine", engine, 3).await?;
    rig.expect_recovered(&engine, 6, "two", "restarted").await?;
    Ok(())
}

pub(super) async fn survives_a_power_cut_in_a_checkpoint<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    if rig.sim.is_none() {
        return skip("it needs the simulated disk");
    }
    for call in 1..MOST_CALLS {
        let rig = rig.anew();
        let Some(sim) = &rig.sim else { break };
        let engine = rig.begun("engine").await?;
        rig.apply(&engine, 4..=6)?;
        let fault_at = sim.calls() + call;
        sim.fail_at(fault_at, Fault::PowerCut, false);
        let confirmed = engine.checkpoint(Bytes::from_static(b"two")).await.is_ok();
        if sim.calls() < fault_at {
            return if call == 1 { skip("the engine does not use the disk it is given") } else { Ok(()) };
        }
        let engine = rig.reopen("engine", engine, call).await?;
        let when = format!("power cut at call {call} of a checkpoint");
        let last = if engine.recovered().0 == at(3) && !confirmed { 3 } else { 6 };
        rig.expect_recovered(&engine, last, if last == 3 { "one" } else { "two" }, &when).await?;
        rig.apply(&engine, last + 1..=8)?;
        rig.checkpoint(&engine, "three").await?;
        let engine = rig.reopen("engine", engine, call + 1).await?;
        rig.expect_recovered(&engine, 8, "three", &format!("{when}, and the next checkpoint")).await?;
    }
    Err(format!("a checkpoint takes more than {MOST_CALLS} calls of the disk").into())
}

/// The log gives up what `recovered` tells of. So it must be on disk, also where the process before was
/// killed with its checkpoint in the page cache.
pub(super) async fn recovers_what_no_power_cut_takes_back<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    if rig.sim.is_none() {
        return skip("it needs the simulated disk");
    }
    for call in 1..MOST_CALLS {
        for seed in 0..4 {
            let rig = rig.anew();
            let Some(sim) = &rig.sim else { break };
            let engine = rig.begun("engine").await?;
            rig.apply(&engine, 4..=6)?;
            let fault_at = sim.calls() + call;
            sim.fail_at(fault_at, Fault::PowerCut, false);
            drop(engine.checkpoint(Bytes::from_static(b"two")).await);
            if sim.calls() < fault_at {
                return if call == 1 { skip("the engine does not use the disk it is given") } else { Ok(()) };
            }
            drop(engine);
            sim.kill();
            let engine = rig.open("engine").await?;
            let (told, _) = engine.recovered();
            let engine = rig.reopen("engine", engine, seed).await?;
            let when = format!("killed at call {call} of a checkpoint, started, and then a power cut");
            ensure!(
                engine.recovered().0 >= told,
                "{when}: {told} was recovered, {:?} is",
                engine.recovered()
            );
            let last = told.seq;
            rig.expect_recovered(&engine, last, if last == 3 { "one" } else { "two" }, &when).await?;
        }
    }
    Err(format!("a checkpoint takes more than {MOST_CALLS} calls of the disk").into())
}

pub(super) async fn survives_a_full_disk<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    if rig.sim.is_none() {
        return skip("it needs the simulated disk");
    }
    for call in 1..MOST_CALLS {
        let rig = rig.anew();
        let Some(sim) = &rig.sim else { break };
        let engine = rig.begun("engine").await?;
        rig.apply(&engine, 4..=6)?;
        let fault_at = sim.calls() + call;
        sim.fail_at(fault_at, Fault::Enospc, true);
        let confirmed = engine.checkpoint(Bytes::from_static(b"two")).await.is_ok();
        if sim.calls() < fault_at {
            return if call == 1 { skip("the engine does not use the disk it is given") } else { Ok(()) };
        }
        let when = format!("no space from call {call} of a checkpoint on");
        sim.clear_faults();
        rig.expect(&engine, 6, 6, &when).await?;
        // What it confirmed must be there, what it did not may be; and the next one comes about.
        rig.apply(&engine, 7..=7)?;
        let again = engine.checkpoint(Bytes::from_static(b"three")).await;
        ensure!(again.is_ok(), "{when}, then space again: {again:?} (confirmed before: {confirmed})");
        let engine = rig.reopen("engine", engine, call).await?;
        rig.expect_recovered(&engine, 7, "three", &format!("{when}, then space again")).await?;
    }
    Err(format!("a checkpoint takes more than {MOST_CALLS} calls of the disk").into())
}
