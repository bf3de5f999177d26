//! What happens to a datagram between two nodes: a sum of disturbances, decided without I/O.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use rand::Rng;

/// One thing that is wrong with the network.
#[derive(Debug, Clone, PartialEq)]
pub enum Disturbance {
    /// Nothing passes from the first to the second of these pairs, silently.
    Cut(BTreeSet<(usize, usize)>),
    /// So large a share vanishes.
    Loss(f64),
    /// Everything takes so long, and up to the second figure longer: what was sent later may arrive
    /// earlier.
    Delay(Duration, Duration),
    /// So large a share arrives twice.
    Twice(f64),
    /// So large a share arrives with one bit flipped.
    Flip(f64),
}

/// What becomes of one datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// When each copy goes on; none if it is lost.
    pub copies: Vec<Duration>,
    /// The bit to flip, of those it has.
    pub flip: Option<usize>,
}

/// Everything that is wrong at the moment.
#[derive(Debug, Default)]
pub struct Weather {
    active: BTreeMap<u64, Disturbance>,
    next: u64,
}

impl Weather {
    /// Something more is wrong, until it is lifted.
    pub fn add(&mut self, disturbance: Disturbance) -> u64 {
        self.next += 1;
        self.active.insert(self.next, disturbance);
        self.next
    }

    pub fn lift(&mut self, id: u64) {
        self.active.remove(&id);
    }

    /// Nothing is wrong any more.
    pub fn clear(&mut self) {
        self.active.clear();
    }

    /// What becomes of a datagram of so many bytes.
    pub fn fate(&self, from: usize, to: usize, len: usize, rng: &mut impl Rng) -> Fate {
        let mut fate = Fate { copies: vec![Duration::ZERO], flip: None };
        for disturbance in self.active.values() {
            match disturbance {
                Disturbance::Cut(pairs) if pairs.contains(&(from, to)) => fate.copies.clear(),
                Disturbance::Loss(share) if rng.random_bool(*share) => fate.copies.clear(),
                Disturbance::Twice(share) if rng.random_bool(*share) => {
                    fate.copies.extend(fate.copies.first().copied());
                }
                Disturbance::Flip(share) if len > 0 && rng.random_bool(*share) => {
                    fate.flip = Some(rng.random_range(0..len * 8));
                }
                Disturbance::Delay(least, spread) => {
                    for copy in &mut fate.copies {
                        *copy += *least + spread.mul_f64(rng.random());
                    }
                }
                _ => {}
            }
        }
        fate
    }
}

/// Both directions between every node of one side and every node of the other.
pub fn between(one: &[usize], other: &[usize]) -> BTreeSet<(usize, usize)> {
    one.iter().flat_map(|a| other.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn disturbances_add_up_and_are_lifted() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut weather = Weather::default();
        let clear = Fate { copies: vec![Duration::ZERO], flip: None };
        assert_eq!(weather.fate(0, 1, 100, &mut rng), clear);
        let cut = weather.add(Disturbance::Cut([(0, 1)].into()));
        assert!(weather.fate(0, 1, 100, &mut rng).copies.is_empty());
        assert_eq!(weather.fate(1, 0, 100, &mut rng), clear);
        weather.lift(cut);
        assert_eq!(weather.fate(0, 1, 100, &mut rng), clear);
        weather.add(Disturbance::Twice(1.0));
        weather.add(Disturbance::Delay(20 * MS, 10 * MS));
        weather.add(Disturbance::Flip(1.0));
        let fate = weather.fate(0, 1, 4, &mut rng);
        assert_eq!(fate.copies.len(), 2);
        assert!(fate.copies.iter().all(|d| (20 * MS..=30 * MS).contains(d)), "{fate:?}");
        assert!(fate.flip.unwrap() < 32);
        weather.clear();
        assert_eq!(weather.fate(0, 1, 100, &mut rng), clear);
    }

    #[test]
    fn loss_is_a_share() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut weather = Weather::default();
        weather.add(Disturbance::Loss(0.2));
        let arrived = (0..10_000).filter(|_| !weather.fate(0, 1, 9, &mut rng).copies.is_empty()).count();
        assert!((7_800..8_200).contains(&arrived), "{arrived}");
    }

    #[test]
    fn sides_are_cut_in_both_directions() {
        assert_eq!(between(&[0], &[1, 2]), [(0, 1), (1, 0), (0, 2), (2, 0)].into());
    }
}
