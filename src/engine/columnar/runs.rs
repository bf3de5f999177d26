//! Rows that come in runs within which time rises. What many clients write at once is, in the order of
//! arrival, long runs whose times interlace here and there: to put those in order no row is looked at but
//! by its time, most not even by that, and no tag at all.

use std::{cmp::Reverse, collections::BinaryHeap};

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, SchemaRef};
use arrow_select::concat::concat_batches;

use super::merge::BATCH_ROWS;

/// Pieces that are shorter than this on average are not worth it.
const WORTH_ROWS: usize = 32;

/// Some rows of a batch one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    batch: usize,
    start: usize,
    len: usize,
}

/// The rows of `batches` by time, if no two have one time (so that no two are one point) and they come
/// in pieces that are not too short. `None` else.
///
/// # Errors
/// A column does not have its type.
pub(super) fn in_order(
    schema: &SchemaRef,
    batches: &[&RecordBatch],
    times: &[&[i64]],
) -> Result<Option<Vec<RecordBatch>>, ArrowError> {
    let rows: usize = times.iter().map(|times| times.len()).sum();
    let most = rows / WORTH_ROWS;
    let Some(pieces) = runs(times, most).and_then(|runs| interlace(times, runs, most)) else {
        return Ok(None);
    };
    let (mut merged, mut part, mut room) = (Vec::new(), Vec::new(), BATCH_ROWS);
    for Piece { batch, mut start, mut len } in pieces {
        let Some(batch) = batches.get(batch) else { return Ok(None) };
        while len > 0 {
            let some = len.min(room);
            part.push(batch.slice(start, some));
            (start, len, room) = (start + some, len - some, room - some);
            if room == 0 {
                merged.push(concat_batches(schema, &std::mem::take(&mut part))?);
                room = BATCH_ROWS;
            }
        }
    }
    if !part.is_empty() {
        merged.push(concat_batches(schema, &part)?);
    }
    Ok(Some(merged))
}

/// The longest pieces within which time rises; `None` if there are more than so many.
fn runs(times: &[&[i64]], most: usize) -> Option<Vec<Piece>> {
    let mut runs = Vec::new();
    for (batch, times) in times.iter().enumerate() {
        let mut start = 0;
        for run in times.chunk_by(|a, b| a < b) {
            if runs.len() >= most {
                return None;
            }
            runs.push(Piece { batch, start, len: run.len() });
            start += run.len();
        }
    }
    Some(runs)
}

/// Runs cut into pieces so that these are in order; `None` if two rows have one time, or if there are
/// more than `most`.
fn interlace(times: &[&[i64]], runs: Vec<Piece>, most: usize) -> Option<Vec<Piece>> {
    let of = |run: Piece| times.get(run.batch)?.get(run.start..run.start + run.len);
    let mut next = BinaryHeap::with_capacity(runs.len());
    for run in runs {
        next.push(Reverse((*of(run)?.first()?, run)));
    }
    let mut pieces = Vec::with_capacity(next.len());
    while let Some(Reverse((first, run))) = next.pop() {
        if pieces.len() >= most {
            return None;
        }
        let len = match next.peek() {
            None => run.len,
            Some(Reverse((other, _))) if *other == first => return None,
            // Found from its front in steps that double: mostly all of a run is before the others.
            Some(Reverse((other, _))) => before(of(run)?, *other),
        };
        pieces.push(Piece { len, ..run });
        if len < run.len {
            let rest = Piece { start: run.start + len, len: run.len - len, ..run };
            next.push(Reverse((*of(rest)?.first()?, rest)));
        }
    }
    Some(pieces)
}

/// How many of `times`, which rise, are before that time.
fn before(times: &[i64], time: i64) -> usize {
    if times.last().is_some_and(|last| *last < time) {
        return times.len();
    }
    let mut far = 1;
    while times.get(far).is_some_and(|at| *at < time) {
        far *= 2;
    }
    let near = far / 2;
    let between = times.get(near..far.min(times.len())).unwrap_or_default();
    near + between.partition_point(|at| *at < time)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, TimestampNanosecondArray};
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::{
        super::{
            merge::{self, merge},
            schema::{ColumnKind, FieldType, TableSchema},
        },
        *,
    };

    fn schema() -> SchemaRef {
        TableSchema::new([("v".to_owned(), ColumnKind::Field(FieldType::Int))]).unwrap().to_arrow()
    }

    fn batch(times: &[i64]) -> RecordBatch {
        let values: Vec<i64> = times.iter().map(|time| time * 10).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampNanosecondArray::from(times.to_vec())),
            Arc::new(Int64Array::from(values)),
        ];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    fn ordered(batches: &[RecordBatch]) -> Option<Vec<RecordBatch>> {
        let borrowed: Vec<_> = batches.iter().collect();
        let times: Vec<_> = batches.iter().map(|batch| merge::times(batch).unwrap()).collect();
        in_order(&schema(), &borrowed, &times).unwrap()
    }

    #[test]
    fn interlaced_runs_come_out_as_the_merge_of_single_rows_does() {
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..5 {
            // A few hundred thousand rows, so that more than one batch comes out.
            let mut from = 0;
            let mut runs: Vec<Vec<i64>> = Vec::new();
            for _ in 0..rng.random_range(1..400) {
                let len = rng.random_range(33..1_000);
                runs.push((from..from + len).collect());
                from += len + rng.random_range(0..3);
            }
            runs.shuffle(&mut rng);
            let batches: Vec<_> = runs.chunks(7).map(|runs| batch(&runs.concat())).collect();
            let merged = ordered(&batches).unwrap();
            let mut wanted = runs.concat();
            wanted.sort_unstable();
            let got: Vec<i64> =
                merged.iter().flat_map(|batch| merge::times(batch).unwrap().to_vec()).collect();
            assert_eq!(got, wanted);
            assert!(merged.iter().rev().skip(1).all(|batch| batch.num_rows() == BATCH_ROWS));
            // Values follow their rows, and `merge` takes this path.
            let all: Vec<_> = wanted.chunks(BATCH_ROWS).map(batch).collect();
            assert_eq!(merged, all);
            if runs.len() > 1 && !runs.is_sorted() {
                assert_eq!(merge(&schema(), &batches).unwrap(), all);
            }
        }
    }

    #[test]
    fn before_counts_what_is_before() {
        let times: Vec<i64> = (0..50).map(|n| n * 2).collect();
        for len in 0..times.len() {
            for time in -1..101 {
                let wanted = times[..len].iter().filter(|at| **at < time).count();
                assert_eq!(before(&times[..len], time), wanted, "{time} in {len}");
            }
        }
    }

    #[test]
    fn what_overlaps_or_comes_row_by_row_is_left_to_others() {
        let run = |from: i64| (from..from + 100).collect::<Vec<_>>();
        assert!(ordered(&[batch(&run(100)), batch(&run(0))]).is_some());
        // One time twice: it may be one point.
        assert!(ordered(&[batch(&run(99)), batch(&run(0))]).is_none());
        assert!(ordered(&[batch(&run(0)), batch(&[50])]).is_none());
        // Two rows in a gap of a run.
        let gap = [run(0), run(200)].concat();
        let merged = ordered(&[batch(&gap), batch(&[150, 151])]).unwrap();
        assert_eq!(merged, [batch(&[run(0), vec![150, 151], run(200)].concat())]);
        // Every other row from the other batch.
        let (even, odd): (Vec<i64>, Vec<i64>) = (0..200).partition(|time| time % 2 == 0);
        assert!(ordered(&[batch(&even), batch(&odd)]).is_none());
        let falling: Vec<i64> = run(0).into_iter().rev().collect();
        assert!(ordered(&[batch(&falling)]).is_none());
    }
}
