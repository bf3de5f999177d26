//! Section `storage`: WAL and columnar engine.

use std::time::Duration;

use super::{ByteSize, duration_text, section::section};

section! {
    /// WAL and columnar engine.
    Storage in "storage" {
        /// Rows in memory from which on they are flushed to Parquet.
        flush_bytes: ByteSize = ByteSize::mib(64),
        /// Age of the oldest row in memory from which on they are flushed.
        #[serde(with = "duration_text")]
        flush_age: Duration = Duration::from_secs(60),
        /// Memory that the compaction of small files in the background may take, about; 0 for no compaction.
        compaction_memory: ByteSize = ByteSize::mib(128),
        /// Series of a database from which on this node refuses points of others; 0 for no limit. The same on
        /// every node, or the writer refuses what others took.
        max_series: usize = 0,
        /// Length of a WAL segment file.
        wal_segment: ByteSize = ByteSize::mib(64),
        /// Flushed WAL kept for replicas that were away: one that is further behind fetches a snapshot.
        wal_keep_bytes: ByteSize = ByteSize::mib(1024),
        /// In this time everything stored is read again and verified, over and over; 0s for never.
        #[serde(with = "duration_text")]
        scrub_interval: Duration = Duration::from_secs(7 * 24 * 3600),
        /// Bytes per second that this reads at most.
        scrub_rate: ByteSize = ByteSize::mib(16),
    }
}

/// Shortest segment: smaller ones would be mostly heads and fsyncs.
const SEGMENT_MIN: ByteSize = ByteSize(64 * 1024);
/// Least memory in which two files of some size can be put together.
const COMPACTION_MIN: ByteSize = ByteSize::mib(64);

impl Storage {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.wal_segment < SEGMENT_MIN || self.wal_segment > ByteSize::mib(4096) {
            return Err(format!("storage.wal_segment: from {SEGMENT_MIN} to 4GiB, not {}", self.wal_segment));
        }
        if self.flush_bytes.0 == 0 || self.flush_age.is_zero() {
            return Err("storage.flush_bytes and storage.flush_age: more than 0".to_owned());
        }
        if self.compaction_memory.0 != 0 && self.compaction_memory < COMPACTION_MIN {
            let given = self.compaction_memory;
            return Err(format!("storage.compaction_memory: 0 or from {COMPACTION_MIN}, not {given}"));
        }
        if self.scrub_rate.0 == 0 {
            return Err(
                "storage.scrub_rate: more than 0; storage.scrub_interval = 0s switches it off".to_owned()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_bounds() {
        assert!(Storage::default().check().is_ok());
        assert!(Storage { wal_segment: ByteSize(1), ..Storage::default() }.check().is_err());
        assert!(Storage { flush_bytes: ByteSize(0), ..Storage::default() }.check().is_err());
        assert!(Storage { compaction_memory: ByteSize(1), ..Storage::default() }.check().is_err());
        assert!(Storage { compaction_memory: ByteSize(0), ..Storage::default() }.check().is_ok());
        assert!(Storage { scrub_rate: ByteSize(0), ..Storage::default() }.check().is_err());
    }
}
