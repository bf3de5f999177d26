//! What lies on a disk, read by opening copies of it beside the machines.

use std::{path::Path, sync::Arc};

use rand::{Rng, rngs::StdRng};
use skeinmesh::{
    engine::{MemoryEngine, StorageEngine},
    testing::{Fault, SimDisk},
    types::{ClusterId, EpochTable, Lsn},
    wal::{RecordKind, Recovered, Wal, WalConfig, WalError},
};

use crate::{
    host::SEGMENT_BYTES,
    invariants::i14::Recoveries,
    ledger::{Contents, payloads},
    machine::aside,
};

/// A log as its recovery found it.
pub(crate) struct Log {
    pub(crate) recovered: Recovered,
    pub(crate) epochs: EpochTable,
    wal: Wal,
    /// While it lives the log can be read.
    _driver: skeinmesh::wal::WalDriver,
}

impl Log {
    /// Recovers the log on that disk, which recovery changes.
    pub(crate) fn open(disk: &SimDisk, dir: &Path, cluster: ClusterId) -> Result<Self, WalError> {
        let config = WalConfig { segment_bytes: SEGMENT_BYTES, ..WalConfig::new(dir.join("wal")) };
        let mut nonce = 1_u64;
        let nonces = Box::new(move || {
            nonce += 1;
            nonce
        });
        let (wal, driver, recovered) = aside(Wal::open(Arc::new(disk.boot()), config, cluster, nonces))?;
        Ok(Self { recovered, epochs: wal.epochs(), wal, _driver: driver })
    }

    /// Whether the record at that position is in it, or in the snapshot that it begins behind.
    pub(crate) fn holds(&self, at: Lsn) -> bool {
        self.epochs.holds(at, self.recovered.end.seq)
    }

    /// The chain value at a position.
    pub(crate) fn chain(&self, at: Lsn) -> Option<u32> {
        aside(self.wal.chain_at(at.seq)).ok().flatten()
    }

    /// The batches behind `from`, up to and with `to`.
    fn batches(&self, from: Lsn, to: Lsn) -> Result<Contents, String> {
        let mut found = Contents::new();
        let mut reader = self.wal.reader(from.seq + 1);
        while reader.position() <= to.seq {
            let records = aside(reader.read(1 << 20)).map_err(|error| error.to_string())?;
            if records.is_empty() {
                return Err(format!("the log ends before {to}"));
            }
            let batches = records.into_iter().filter(|r| r.kind == RecordKind::Batch && r.lsn.seq <= to.seq);
            found.extend(batches.map(|record| (record.lsn, record.payload)));
        }
        Ok(found)
    }
}

/// What the disk of a node makes of itself up to that position: its checkpoint and the log behind it.
/// A batch that is in the log twice counts once, as when it is applied.
pub(crate) fn rebuild(disk: &SimDisk, dir: &Path, log: &Log, to: Lsn) -> Result<Contents, String> {
    let engine = aside(MemoryEngine::open(Arc::new(disk.boot()), dir.join("engine")));
    let engine = engine.map_err(|error| error.to_string())?;
    let mut contents = payloads(&engine);
    let behind = log.batches(engine.recovered().0, to)?;
    for (at, payload) in behind {
        if !contents.values().any(|there| *there == payload) {
            contents.insert(at, payload);
        }
    }
    Ok(contents)
}

/// Recovers copies of the disk of a machine that has just stopped, once and again, with power cuts.
pub(crate) fn recoveries(
    disk: &SimDisk,
    dir: &Path,
    cluster: ClusterId,
    all_synced: bool,
    random: &mut StdRng,
) -> Result<Recoveries, WalError> {
    let copy = || {
        let copy = disk.fork();
        copy.kill();
        copy.set_limit(None);
        copy.clear_faults();
        copy.set_latency(Default::default());
        copy
    };
    let whole = copy();
    let before = whole.calls();
    let first = Log::open(&whole, dir, cluster)?.recovered;
    let calls = whole.calls() - before;
    let after_cut = Log::open(&whole.platter(), dir, cluster)?.recovered;
    whole.kill();
    let again = Log::open(&whole, dir, cluster)?.recovered;
    let on_platter = Log::open(&copy().platter(), dir, cluster)?.recovered;
    let inside = copy();
    inside.fail_at(inside.calls() + random.random_range(1..=calls.max(1)), Fault::PowerCut, false);
    // It fails, or the cut came too late to be noticed.
    let _ = Log::open(&inside, dir, cluster);
    inside.crash(random.random());
    let after_cut_inside = Log::open(&inside, dir, cluster)?.recovered;
    Ok(Recoveries { first, again, after_cut, after_cut_inside, on_platter, all_synced })
}
