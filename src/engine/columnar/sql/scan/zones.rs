//! The stretches of time in which points have to be merged, and what lies outside of them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow_array::{BooleanArray, RecordBatch};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Schema};
use datafusion::{
    common::cast::as_timestamp_nanosecond_array,
    error::{DataFusionError, Result},
    logical_expr::ColumnarValue,
    physical_expr::PhysicalExpr,
};

/// Stretches of time, ends included, in order, no two of which touch.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Zones(Vec<(i64, i64)>);

impl Zones {
    /// Of stretches in order.
    pub(super) fn new(zones: Vec<(i64, i64)>) -> Self {
        Self(zones)
    }

    /// Whether a stretch has a time in common with one of them.
    pub(super) fn touch(&self, first: i64, last: i64) -> bool {
        self.at_or_behind(first).is_some_and(|(from, _)| from <= last)
    }

    /// Whether a stretch is in one of them with all of its times.
    pub(super) fn cover(&self, first: i64, last: i64) -> bool {
        self.at_or_behind(first).is_some_and(|(from, to)| from <= first && last <= to)
    }

    /// The first that ends at a time or behind it.
    fn at_or_behind(&self, time: i64) -> Option<(i64, i64)> {
        self.0.get(self.0.partition_point(|zone| zone.1 < time)).copied()
    }

    /// Whether a time is in one of them, and up to which time, counted from it, that stays so.
    fn look(&self, time: i64) -> (bool, i64) {
        match self.at_or_behind(time) {
            Some((from, to)) if from <= time => (true, to),
            // The one behind it begins later, so there is a time ahead of that.
            Some((from, _)) => (false, from - 1),
            None => (false, i64::MAX),
        }
    }

    /// Whether each time is in none of them, and not before `floor` either.
    fn outside(&self, times: &[i64], floor: i64) -> BooleanBuffer {
        // Times that follow each other are mostly of one stretch.
        let (mut since, mut until, mut inside) = (0, -1, false);
        BooleanBuffer::collect_bool(times.len(), |row| {
            let Some(&time) = times.get(row) else { return false };
            if time < since || time > until {
                (inside, until) = self.look(time);
                since = time;
            }
            !inside && time >= floor
        })
    }
}

/// True for times outside of zones, and not before another one: of rows that this is true of no other part of the
/// table has the point.
#[derive(Debug, Clone, Eq)]
pub(super) struct Outside {
    pub(super) time: Arc<dyn PhysicalExpr>,
    pub(super) zones: Arc<Zones>,
    pub(super) floor: i64,
}

impl PartialEq for Outside {
    fn eq(&self, other: &Self) -> bool {
        self.time.eq(&other.time) && self.zones == other.zones && self.floor == other.floor
    }
}

impl Hash for Outside {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.time.hash(state);
        self.zones.hash(state);
        self.floor.hash(state);
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outside of {} zones", self.time, self.zones.0.len())
    }
}

impl PhysicalExpr for Outside {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let times = self.time.evaluate(batch)?.into_array(batch.num_rows())?;
        let times = as_timestamp_nanosecond_array(&times)?;
        let outside = self.zones.outside(times.values(), self.floor);
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(outside, None))))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.time]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        match children.as_slice() {
            [time] => Ok(Arc::new(Self { time: time.clone(), ..Self::clone(&self) })),
            _ => Err(DataFusionError::Internal("zones are of one column".into())),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_belong_to_a_zone() {
        let zones = Zones::new(vec![(i64::MIN, 3), (5, 5), (8, i64::MAX)]);
        assert!(zones.touch(3, 4) && zones.touch(4, 5) && zones.touch(0, 9) && !zones.touch(6, 7));
        assert!(zones.cover(1, 3) && zones.cover(5, 5) && !zones.cover(3, 4) && !zones.cover(5, 6));
        let times = [i64::MIN, 3, 4, 5, 6, 7, 8, i64::MAX, 7, 4];
        let outside: Vec<bool> = zones.outside(&times, i64::MIN).iter().collect();
        assert_eq!(outside, [false, false, true, false, true, true, false, false, true, true]);
        assert_eq!(zones.outside(&times, 6).count_set_bits(), 3);
        assert!(!Zones::default().touch(i64::MIN, i64::MAX));
        assert_eq!(Zones::default().outside(&times, i64::MIN).count_set_bits(), times.len());
    }

    proptest! {
        #[test]
        fn each_time_is_judged_as_if_it_were_alone(
            mut cuts in prop::collection::btree_set(-50_i64..50, 0..12),
            times in prop::collection::vec(-60_i64..60, 0..60),
        ) {
            if cuts.len() % 2 == 1 {
                cuts.pop_last();
            }
            let cuts: Vec<i64> = cuts.into_iter().collect();
            // Every other gap between cuts is a zone: its last time leaves one free ahead of the next.
            let zones: Vec<(i64, i64)> = cuts.chunks(2).map(|pair| (pair[0], pair[1] - 1)).collect();
            let inside = |time: i64| zones.iter().any(|(from, to)| (*from..=*to).contains(&time));
            let judged: Vec<bool> = Zones::new(zones.clone()).outside(&times, -10).iter().collect();
            let wanted: Vec<bool> = times.iter().map(|time| !inside(*time) && *time >= -10).collect();
            prop_assert_eq!(judged, wanted);
        }
    }
}
