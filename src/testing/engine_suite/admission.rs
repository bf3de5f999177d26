//! What is let in, and what is applied.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{
    Outcome, Subject, ensure,
    rig::{BEGAN, DATABASE, Rig, at, went},
};
use crate::{
    engine::{Operation, StorageEngine},
    testing::sweep,
    types::Lsn,
};

pub(super) async fn starts_empty<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    rig.expect_recovered(&engine, 0, "", "a new engine").await?;
    let engine = rig.reopen("engine", engine, 1).await?;
    rig.expect_recovered(&engine, 0, "", "a new engine, opened again").await?;
    Ok(())
}

pub(super) async fn applies_each_record_once<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    for seq in 1..=12 {
        rig.apply(&engine, [seq])?;
        rig.expect(&engine, seq, seq, "record by record").await?;
    }
    engine.apply(at(13), &Operation::Nothing).map_err(went("a record with nothing for the engine"))?;
    rig.expect(&engine, 13, 12, "a record with nothing for the engine moves the position").await?;
    ensure!(engine.recovered().0 == Lsn::ZERO, "recovered moved without a checkpoint");
    Ok(())
}

pub(super) async fn refuses_what_was_applied<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    rig.apply(&engine, 1..=5)?;
    for (seq, record) in [(5, 5), (3, 3), (3, 99), (1, 99)] {
        let again = engine.apply(at(seq), &rig.record(record));
        ensure!(again.is_err(), "record {} was applied again behind {}", at(seq), at(5));
        rig.expect(&engine, 5, 5, "after a refused record").await?;
    }
    rig.apply(&engine, 6..=6)?;
    rig.expect(&engine, 6, 6, "after refused records").await?;
    Ok(())
}

pub(super) async fn is_asked_from_any_thread<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    let done = AtomicBool::new(false);
    let went_back = std::thread::scope(|scope| {
        let look = || {
            let (mut last, mut back) = (Lsn::ZERO, None);
            while !done.load(Ordering::Acquire) {
                let now = engine.applied();
                if now < last {
                    back = Some((last, now));
                }
                last = now;
                let _ = (engine.recovered(), engine.files(), engine.damaged(), engine.checkpoint_due());
                let _ = engine.expiry_due(BEGAN);
            }
            back
        };
        let lookers = [scope.spawn(look), scope.spawn(look)];
        let applied = rig.apply(&engine, 1..=300);
        done.store(true, Ordering::Release);
        let seen: Vec<_> = lookers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        applied.map(|()| seen)
    })?;
    for seen in went_back {
        let Ok(seen) = seen else { return Err("a thread that only looks panicked".to_owned().into()) };
        ensure!(seen.is_none(), "applied went back: {seen:?}");
    }
    rig.expect(&engine, 300, 300, "while others look").await?;
    Ok(())
}

pub(super) async fn applies_what_it_admits<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    // As the writer does: some are let in before the first of them is applied.
    for batch in [[1, 2, 3], [4, 5, 6]] {
        for point in batch {
            let (encoding, payload) = rig.subject.batch(DATABASE, point, BEGAN + point as i64);
            let validated = engine.validate(encoding, &payload);
            ensure!(validated.is_ok(), "point {point} is not valid: {validated:?}");
            let admitted = engine.admit(encoding, &payload);
            ensure!(admitted.is_ok(), "point {point} is not admitted: {admitted:?}");
        }
        rig.apply(&engine, batch)?;
        rig.expect(&engine, batch[2], batch[2], "what was admitted").await?;
    }
    Ok(())
}

pub(super) async fn takes_back_what_it_reserved<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    rig.apply(&engine, 1..=2)?;
    let (encoding, payload) = rig.subject.batch(DATABASE, 50, BEGAN);
    for round in 0..3 {
        let admitted = engine.admit(encoding, &payload);
        ensure!(admitted.is_ok(), "round {round}, after a withdrawal: {admitted:?}");
        engine.withdraw(encoding, &payload);
    }
    for round in 0..3 {
        let admitted = engine.admit(encoding, &payload);
        ensure!(admitted.is_ok(), "round {round}, after everything was forgotten: {admitted:?}");
        engine.forget_reservations();
    }
    rig.expect(&engine, 2, 2, "what is admitted only is not there").await?;
    let admitted = engine.admit(encoding, &payload);
    ensure!(admitted.is_ok(), "in the end: {admitted:?}");
    rig.apply(&engine, 3..=4)?;
    rig.expect(&engine, 4, 4, "what others brought").await?;
    Ok(())
}

pub(super) async fn answers_whatever_bytes<S: Subject>(rig: &Rig<'_, S>) -> Outcome {
    let engine = rig.open("engine").await?;
    rig.apply(&engine, 1..=2)?;
    let (encoding, good) = rig.subject.batch(DATABASE, 70, BEGAN);
    let mut payloads: Vec<(u8, Bytes)> = (0..=255).map(|other| (other, good.clone())).collect();
    payloads.extend([(encoding, Bytes::new()), (encoding, Bytes::from(vec![255; 1000]))]);
    payloads.extend(
        sweep::cuts(good.len() as u64, 40).into_iter().map(|len| (encoding, good.slice(..len as usize))),
    );
    for (byte, bit) in sweep::bits(good.len() as u64, 200) {
        let mut flipped = good.to_vec();
        if let Some(byte) = flipped.get_mut(byte as usize) {
            *byte ^= 1 << bit;
        }
        payloads.push((encoding, flipped.into()));
    }
    let mut seq = 2;
    for (encoding, payload) in payloads {
        if engine.validate(encoding, &payload).is_err() || engine.admit(encoding, &payload).is_err() {
            continue;
        }
        seq += 1;
        let operation = Operation::Batch { encoding, payload };
        let applied = engine.apply(at(seq), &operation);
        ensure!(applied.is_ok(), "{operation:?} was let in and is not applied: {applied:?}");
    }
    seq += 1;
    rig.apply(&engine, [seq])?;
    let held = rig.held(&engine, DATABASE).await?;
    ensure!([1, 2, seq].iter().all(|point| held.contains(point)), "after rubbish only {held:?} are held");
    Ok(())
}
