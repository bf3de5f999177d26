//! I14: recovery is idempotent: what it states is on the disk when it states it, so that opening the
//! log again, also after a power cut, during it or right behind it, states the same.

use skeinmesh::{protocol::status::NodeStatus, wal::Recovered};

/// What recoveries of the image of one stopped machine stated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recoveries {
    /// Of the image.
    pub(crate) first: Recovered,
    /// Of the same disk, again.
    pub(crate) again: Recovered,
    /// Of the same disk, after the power was cut right behind the first.
    pub(crate) after_cut: Recovered,
    /// Of another copy, after the power was cut in the middle of its first recovery.
    pub(crate) after_cut_inside: Recovered,
    /// Of what was on the platter of the image: as if the power had gone with the process.
    pub(crate) on_platter: Recovered,
    /// After a power loss everything that can be read is on the platter; after a kill some of it is
    /// not, and a cut inside the first recovery may still take that: records, or the end of a log that was
    /// cut or begun anew, which was longer before.
    pub(crate) all_synced: bool,
}

pub(crate) fn judge(host: &str, seen: &Recoveries) -> Vec<String> {
    let mut found = Vec::new();
    let stated = |it: &Recovered| (it.end, it.durable, it.promise, it.commit);
    for (when, other) in [("again", &seen.again), ("after a power cut behind it", &seen.after_cut)] {
        if stated(other) != stated(&seen.first) {
            found.push(format!("I14: recovery of {host} states {:?}, and {when} {other:?}", seen.first));
        }
    }
    let (inside, platter) = (&seen.after_cut_inside, &seen.on_platter);
    let may_end = if seen.all_synced { seen.first.end } else { seen.first.end.max(platter.end) };
    let may_promise =
        if seen.all_synced { seen.first.promise } else { seen.first.promise.max(platter.promise) };
    let more = inside.end > may_end || inside.promise > may_promise;
    let less = inside.end < seen.first.end || inside.promise < seen.first.promise;
    if more || (seen.all_synced && less) {
        found.push(format!("I14: recovery of {host} states {:?}, and cut short {inside:?}", seen.first));
    }
    found
}

/// What a process had stated as durable is there when it has ended, however it ended. A record of the
/// very epoch that it had promised can be cut only behind a higher promise.
pub(crate) fn stated(host: &str, status: &NodeStatus, found: &Recovered) -> Option<String> {
    let binding = status.durable.epoch == status.promise && found.promise == status.promise;
    (binding && found.end < status.durable).then(|| {
        format!("I14: {host} stated that {} was durable, and its disk ends at {}", status.durable, found.end)
    })
}

#[test]
fn a_recovery_that_states_something_else_is_seen() {
    use skeinmesh::types::Lsn;
    let at = |seq, promise| Recovered {
        end: Lsn::new(1, seq),
        durable: Lsn::new(1, seq),
        promise,
        commit: Lsn::ZERO,
        truncated: 0,
        empty: false,
        debt: None,
        quarantined: 0,
    };
    let fine = at(9, 2);
    let seen = Recoveries {
        first: fine,
        again: fine,
        after_cut: fine,
        after_cut_inside: fine,
        on_platter: fine,
        all_synced: true,
    };
    assert_eq!(judge("a", &seen), [""; 0]);
    assert_eq!(judge("a", &Recoveries { again: at(8, 2), ..seen }).len(), 1);
    assert_eq!(judge("a", &Recoveries { after_cut: at(9, 1), ..seen }).len(), 1);
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(8, 2), ..seen }).len(), 1);
    let killed = Recoveries { all_synced: false, ..seen };
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(8, 1), ..killed }), [""; 0]);
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(10, 2), ..killed }).len(), 1);
    // The process was killed while its log began anew: what was there before is there again, and no more.
    let anew = Recoveries { on_platter: at(12, 2), ..killed };
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(12, 2), ..anew }), [""; 0]);
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(13, 2), ..anew }).len(), 1);
    assert_eq!(judge("a", &Recoveries { after_cut_inside: at(12, 2), all_synced: true, ..anew }).len(), 1);
}

#[test]
fn a_durable_record_that_is_not_there_is_seen() {
    use skeinmesh::types::Lsn;
    let status = |promise, epoch, seq| NodeStatus {
        promise,
        durable: Lsn::new(epoch, seq),
        ..super::sample::status()
    };
    let found = |promise, epoch, seq| Recovered {
        end: Lsn::new(epoch, seq),
        durable: Lsn::new(epoch, seq),
        promise,
        commit: Lsn::ZERO,
        truncated: 0,
        empty: false,
        debt: None,
        quarantined: 0,
    };
    assert_eq!(stated("a", &status(2, 2, 9), &found(2, 2, 9)), None);
    assert_eq!(stated("a", &status(2, 2, 9), &found(2, 2, 12)), None);
    assert!(stated("a", &status(2, 2, 9), &found(2, 2, 8)).is_some());
    // A writer of epoch 3 may have cut it, before this process was looked at or after.
    assert_eq!(stated("a", &status(3, 2, 9), &found(3, 2, 8)), None);
    assert_eq!(stated("a", &status(2, 2, 9), &found(3, 2, 8)), None);
}
