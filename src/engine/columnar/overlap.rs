//! Where in time the parts of a table overlap. Only there can a point be in two of them.

use std::collections::BTreeSet;

/// A stretch of time, both ends included, and which parts have rows in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    /// First nanosecond.
    pub(super) from: i64,
    /// Last nanosecond.
    pub(super) to: i64,
    /// Indices into the given ranges, ascending. One: these rows can be read as they are.
    pub(super) parts: Vec<usize>,
}

/// Cuts time into stretches with one part, and stretches with several that must be merged.
/// `ranges` are the first and last time of each part.
pub(super) fn stretches(ranges: &[(i64, i64)]) -> Vec<Stretch> {
    // A part is there from its first nanosecond up to, not including, the one behind its last;
    // 128 bits because the last may be the last there is.
    let mut edges: Vec<(i128, bool, usize)> = Vec::with_capacity(ranges.len() * 2);
    for (part, &(first, last)) in ranges.iter().enumerate() {
        edges.push((first.into(), true, part));
        edges.push((i128::from(last) + 1, false, part));
    }
    edges.sort_unstable();
    let mut here = BTreeSet::new();
    let mut found: Vec<Stretch> = Vec::new();
    let mut since = i128::MIN;
    for (at, begins, part) in edges {
        if at > since && !here.is_empty() {
            note(&mut found, since as i64, (at - 1) as i64, &here);
        }
        since = at;
        if begins {
            here.insert(part);
        } else {
            here.remove(&part);
        }
    }
    found
}

/// Adds a stretch, or widens the last one where both need merging and touch.
fn note(found: &mut Vec<Stretch>, from: i64, to: i64, here: &BTreeSet<usize>) {
    if let Some(last) = found.last_mut()
        && here.len() > 1
        && last.parts.len() > 1
        && last.to.checked_add(1) == Some(from)
    {
        let both: BTreeSet<usize> = last.parts.iter().chain(here).copied().collect();
        last.parts = both.into_iter().collect();
        last.to = to;
        return;
    }
    found.push(Stretch { from, to, parts: here.iter().copied().collect() });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(ranges: &[(i64, i64)]) -> Vec<(i64, i64, Vec<usize>)> {
        stretches(ranges).into_iter().map(|s| (s.from, s.to, s.parts)).collect()
    }

    #[test]
    fn disjoint_parts_stay_whole() {
        assert_eq!(
            cut(&[(10, 19), (0, 9), (30, 30)]),
            [(0, 9, vec![1]), (10, 19, vec![0]), (30, 30, vec![2])]
        );
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[(i64::MIN, i64::MAX)]), [(i64::MIN, i64::MAX, vec![0])]);
    }

    #[test]
    fn only_what_overlaps_is_merged() {
        assert_eq!(
            cut(&[(0, 10), (8, 20), (20, 25)]),
            [
                (0, 7, vec![0]),
                (8, 10, vec![0, 1]),
                (11, 19, vec![1]),
                (20, 20, vec![1, 2]),
                (21, 25, vec![2])
            ]
        );
        // Touching stretches that both need merging become one.
        assert_eq!(cut(&[(0, 9), (0, 4), (5, 9)]), [(0, 9, vec![0, 1, 2])]);
        // A part may be in several stretches.
        assert_eq!(cut(&[(0, 9), (4, 4)]), [(0, 3, vec![0]), (4, 4, vec![0, 1]), (5, 9, vec![0])]);
    }
}
