//! How long a database keeps its points, and which of them are gone by now.
//!
//! A point is gone when it is older than the **horizon** of its database. The horizon moves only
//! with records of the log, so it is the same on every replica at one position, and it never goes
//! back: when a database is told to keep longer, or for ever, the old horizon becomes a **cut** that
//! holds for what was written up to then, and later writes of such times count again.
//!
//! What is gone is not returned from that position on; its files go with the next checkpoint.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::ArrowError;
use arrow_select::filter::filter_record_batch;
use serde::{Deserialize, Serialize};

use super::{data_file::FileEntry, merge::times};
use crate::types::Lsn;

/// Before it is nothing.
pub(super) const BEGINNING: i64 = i64::MIN;
/// Least and most by which a horizon moves at a time, ns: a second and a minute.
const STEPS: (i64, i64) = (1_000_000_000, 60_000_000_000);
/// A horizon moves by this part of what is kept, within [`STEPS`].
const STEPS_OF_KEEP: i64 = 100;

/// What one database keeps. The default is everything, for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retention {
    /// Age from which on points are gone, ns; `None` for ever.
    pub(super) keep_ns: Option<i64>,
    /// Points before it are gone; `None` while none are.
    pub(super) horizon: Option<i64>,
    /// Horizons that were in force when something else was set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cuts: Vec<Cut>,
}

/// What was written up to `upto` and is before `before` is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Cut {
    before: i64,
    upto: Lsn,
}

impl Retention {
    /// Sets what is kept. Returns the horizon that became a cut: the rows in memory before it are
    /// the caller's to remove, for memory does not know by which record a row came.
    pub(super) fn set(&mut self, at: Lsn, keep_ns: Option<i64>) -> Option<i64> {
        if self.keep_ns == keep_ns {
            return None;
        }
        self.keep_ns = keep_ns;
        let before = self.horizon.take()?;
        self.cuts.retain(|cut| cut.before > before);
        self.cuts.push(Cut { before, upto: at });
        Some(before)
    }

    /// The writer's clock said `now`. Monotonic in effect: an earlier time moves nothing.
    pub(super) fn expire(&mut self, now: i64) {
        if let Some(due) = self.due(now) {
            self.horizon = Some(self.horizon.map_or(due, |horizon| horizon.max(due)));
        }
    }

    /// Where the horizon would be at that time, if that is worth a record.
    pub(super) fn next_horizon(&self, now: i64) -> Option<i64> {
        let step = (self.keep_ns? / STEPS_OF_KEEP).clamp(STEPS.0, STEPS.1);
        let due = self.due(now)?;
        self.horizon.is_none_or(|horizon| due >= horizon.saturating_add(step)).then_some(due)
    }

    fn due(&self, now: i64) -> Option<i64> {
        Some(now.saturating_sub(self.keep_ns?))
    }

    /// Rows in memory before this time are gone.
    pub(super) fn floor_of_rows(&self) -> i64 {
        self.horizon.unwrap_or(BEGINNING)
    }

    /// Rows of this file before this time are gone.
    pub(super) fn floor_of(&self, file: &FileEntry) -> i64 {
        // A file that has rows from before a cut and from behind it was made of rows that were
        // filtered before they met.
        let cuts = self.cuts.iter().filter(|cut| file.max_lsn <= cut.upto).map(|cut| cut.before);
        cuts.fold(self.floor_of_rows(), i64::max)
    }

    /// Forgets cuts that concern none of these files.
    pub(super) fn forget_idle_cuts<'a>(&mut self, files: impl Iterator<Item = &'a FileEntry> + Clone) {
        self.cuts
            .retain(|cut| files.clone().any(|file| file.max_lsn <= cut.upto && file.min_time < cut.before));
    }
}

/// What each database keeps that was ever told to. A clone is a snapshot and costs one reference
/// count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Retentions(Arc<BTreeMap<String, Retention>>);

impl Retentions {
    /// What a database keeps.
    pub(super) fn of(&self, database: &str) -> Retention {
        self.0.get(database).cloned().unwrap_or_default()
    }

    /// Every database that was told, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Retention)> {
        self.0.iter().map(|(name, retention)| (name.as_str(), retention))
    }

    /// True when none was told.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// To change one; what is default afterwards is forgotten.
    pub(super) fn change<T>(&mut self, database: &str, change: impl FnOnce(&mut Retention) -> T) -> T {
        let all = Arc::make_mut(&mut self.0);
        let mut one = all.remove(database).unwrap_or_default();
        let result = change(&mut one);
        if one != Retention::default() {
            all.insert(database.to_owned(), one);
        }
        result
    }

    /// To change each.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&str, &mut Retention)) {
        if self.is_empty() {
            return;
        }
        let all = Arc::make_mut(&mut self.0);
        all.iter_mut().for_each(|(name, one)| change(name, one));
        all.retain(|_, one| *one != Retention::default());
    }

    /// Forgets what was told of a database.
    pub(super) fn remove(&mut self, database: &str) {
        if self.0.contains_key(database) {
            Arc::make_mut(&mut self.0).remove(database);
        }
    }
}

/// The rows that are not before `floor`. Nothing is copied if that is all of them.
///
/// # Errors
/// The batch has no time column.
pub(super) fn not_before(batch: &RecordBatch, floor: i64) -> Result<RecordBatch, ArrowError> {
    if floor == BEGINNING {
        return Ok(batch.clone());
    }
    let times = times(batch)?;
    if times.iter().all(|&time| time >= floor) {
        return Ok(batch.clone());
    }
    let kept: BooleanArray = times.iter().map(|&time| Some(time >= floor)).collect();
    filter_record_batch(batch, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(max_lsn: u64, min_time: i64) -> FileEntry {
        FileEntry {
            database: "db".into(),
            table: "t".into(),
            rows: 1,
            min_time,
            max_time: min_time + 10,
            min_lsn: Lsn::new(1, 1),
            max_lsn: Lsn::new(1, max_lsn),
            size: 1,
            hash: [0; 32],
            windows: Vec::new(),
        }
    }

    #[test]
    fn a_horizon_never_goes_back_for_what_was_there() {
        let mut db = Retention::default();
        assert_eq!(db.set(Lsn::new(1, 1), Some(100)), None);
        assert_eq!(db.floor_of_rows(), BEGINNING, "nothing is gone before a record says what time it is");
        db.expire(1_000);
        db.expire(500);
        assert_eq!((db.floor_of_rows(), db.floor_of(&file(5, 0))), (900, 900));
        assert_eq!(db.set(Lsn::new(1, 9), Some(100)), None, "the same again changes nothing");
        assert_eq!(db.set(Lsn::new(1, 9), None), Some(900));
        assert_eq!(db.floor_of_rows(), BEGINNING);
        assert_eq!(db.floor_of(&file(9, 0)), 900, "written by then: gone for ever");
        assert_eq!(db.floor_of(&file(10, 0)), BEGINNING, "written later");
        assert_eq!(db.set(Lsn::new(1, 12), Some(50)), None);
        db.expire(900);
        assert_eq!((db.floor_of(&file(9, 0)), db.floor_of(&file(11, 0))), (900, 850));
        assert_eq!(db.set(Lsn::new(1, 20), Some(70)), Some(850));
        assert_eq!((db.floor_of(&file(9, 0)), db.floor_of(&file(11, 0))), (900, 850));
        db.forget_idle_cuts([file(9, 899)].iter());
        assert_eq!((db.floor_of(&file(9, 0)), db.floor_of(&file(11, 0))), (900, BEGINNING));
        db.forget_idle_cuts([file(9, 900), file(10, 0)].iter());
        assert_eq!(db.floor_of(&file(9, 0)), BEGINNING);
    }

    #[test]
    fn a_horizon_moves_in_steps_worth_a_record() {
        let second = 1_000_000_000;
        let mut db = Retention { keep_ns: Some(1_000 * second), ..Retention::default() };
        assert_eq!(db.next_horizon(5_000 * second), Some(4_000 * second));
        db.expire(5_000 * second);
        assert_eq!(db.next_horizon(5_009 * second), None);
        assert_eq!(db.next_horizon(5_010 * second), Some(4_010 * second));
        db.keep_ns = Some(i64::MAX);
        assert_eq!(db.next_horizon(i64::MIN), None, "times do not wrap around");
        assert_eq!(Retention::default().next_horizon(5), None);
    }
}
