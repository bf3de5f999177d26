//! The machines that rows tell of, and the tables that the rows go to.

use rand::{Rng, seq::SliceRandom};

/// See the module.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) tables: Names,
    pub(super) hosts: Names,
}

/// A name for each row.
#[derive(Debug)]
pub(super) struct Names {
    word: &'static str,
    /// Of the number behind the word: as many for each name, so that rows are as long whichever it is.
    digits: usize,
    which: Which,
}

#[derive(Debug)]
enum Which {
    /// The word is the name.
    Only,
    /// One of so many, by lot.
    Drawn(u32),
    /// Each once before one comes again, for so many rows: those from `left` on have been dealt, the last of
    /// them for `rest` more rows.
    Dealt { all: Vec<u32>, left: usize, rows: u32, rest: u32 },
}

impl Fleet {
    /// A thousand hosts, by lot, in one table.
    pub(super) const fn of_a_thousand() -> Self {
        Self {
            tables: Names { word: "cpu", digits: 0, which: Which::Only },
            hosts: Names { word: "server", digits: 3, which: Which::Drawn(1000) },
        }
    }

    /// The same thousand hosts, their rows dealt out to so many tables, so many `rows` at a time.
    pub(super) fn of_tables(count: u32, rows: u32) -> Self {
        Self { tables: Names::dealt("cpu", count, 5, rows), ..Self::of_a_thousand() }
    }

    /// One table, its rows dealt out to so many hosts.
    pub(super) fn of_hosts(count: u32) -> Self {
        Self { hosts: Names::dealt("server", count, 7, 1), ..Self::of_a_thousand() }
    }
}

impl Names {
    fn dealt(word: &'static str, count: u32, digits: usize, rows: u32) -> Self {
        Self { word, digits, which: Which::Dealt { all: (0..count).collect(), left: 0, rows, rest: 0 } }
    }

    /// The name of the next row.
    pub(super) fn next(&mut self, rng: &mut impl Rng) -> String {
        let number = match &mut self.which {
            Which::Only => return self.word.to_owned(),
            Which::Drawn(count) => rng.random_range(0..*count),
            Which::Dealt { all, left, rows, rest } => {
                if *rest == 0 {
                    if *left == 0 {
                        all.shuffle(rng);
                        *left = all.len();
                    }
                    *left = left.saturating_sub(1);
                    *rest = *rows;
                }
                *rest = rest.saturating_sub(1);
                all.get(*left).copied().unwrap_or_default()
            }
        };
        format!("{}{number:0width$}", self.word, width = self.digits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn each_is_dealt_once_before_one_comes_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut names = Fleet::of_tables(10, 1).tables;
        let mut orders = BTreeSet::new();
        for _ in 0..3 {
            let order: Vec<String> = (0..10).map(|_| names.next(&mut rng)).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).map(|at| format!("cpu{at:05}")).collect::<Vec<_>>());
            orders.insert(order);
        }
        assert_eq!(orders.len(), 3, "{orders:?}");
        let mut names = Fleet::of_tables(2, 3).tables;
        let order: Vec<String> = (0..6).map(|_| names.next(&mut rng)).collect();
        assert!(order[..3] == [&*order[0]; 3] && order[3..] == [&*order[3]; 3], "{order:?}");
        assert_ne!(order[0], order[3]);
        assert_eq!(Fleet::of_hosts(1).hosts.next(&mut rng), "server0000000");
        assert_eq!(Fleet::of_hosts(1).tables.next(&mut rng), "cpu");
    }
}
