//! What queries may take to sort, join, group and make text: each its own share, and all of them together no
//! more than one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use datafusion::{
    error::{DataFusionError, Result},
    execution::memory_pool::{GreedyMemoryPool, MemoryLimit, MemoryPool, MemoryReservation},
};

/// Bytes that all queries of a node may take together. Clones are the same.
#[derive(Debug, Clone)]
pub struct QueryMemory(Arc<Together>);

#[derive(Debug)]
struct Together {
    limit: usize,
    taken: AtomicUsize,
}

/// Why a query that is within its own limit gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the queries of this node take {taken} of the {limit} bytes that all of them may (http.queries_memory); ask later or \
     another node"
)]
pub(super) struct AllTaken {
    taken: usize,
    limit: usize,
}

impl QueryMemory {
    /// For so many bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Together { limit, taken: AtomicUsize::new(0) }))
    }

    /// Bytes that are taken now.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> Result<(), AllTaken> {
        let Together { limit, taken } = &*self.0;
        let more = |taken: usize| taken.checked_add(bytes).filter(|taken| taken <= limit);
        match taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(taken) => Err(AllTaken { taken, limit: *limit }),
        }
    }

    fn add(&self, bytes: usize) {
        self.0.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.0.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The pool of one query. What a reservation holds it gives back when it is dropped, so nothing is left of a
/// query that ends, however it does.
#[derive(Debug)]
pub(super) struct QueryPool {
    own: GreedyMemoryPool,
    limit: usize,
    all: QueryMemory,
}

impl QueryPool {
    pub(super) fn new(limit: usize, all: QueryMemory) -> Self {
        Self { own: GreedyMemoryPool::new(limit), limit, all }
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query({} of {} bytes)", self.own.reserved(), self.limit)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.all.add(additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.all.give_back(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.own.try_grow(reservation, additional)?;
        self.all.take(additional).map_err(|none| {
            self.own.shrink(reservation, additional);
            DataFusionError::External(Box::new(none))
        })
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::MemoryConsumer;

    use super::*;

    #[test]
    fn a_query_has_its_share_and_all_have_theirs() {
        let all = QueryMemory::new(100);
        let pools: Vec<Arc<dyn MemoryPool>> =
            (0..3).map(|_| Arc::new(QueryPool::new(60, all.clone())) as Arc<dyn MemoryPool>).collect();
        let hold = |at: usize| MemoryConsumer::new("a").register(&pools[at]);
        let (first, second, third) = (hold(0), hold(1), hold(2));
        first.try_grow(60).unwrap();
        let own = first.try_grow(1).unwrap_err();
        assert!(matches!(own.find_root(), DataFusionError::ResourcesExhausted(_)), "{own}");
        second.try_grow(30).unwrap();
        let none = second.try_grow(11).unwrap_err().to_string();
        assert!(none.contains("take 90 of the 100 bytes"), "{none}");
        assert_eq!((pools[1].reserved(), all.taken()), (30, 90), "what is refused is not taken");
        third.try_grow(10).unwrap();
        // What a query cannot do without is counted too, and holds up others.
        third.grow(20);
        assert_eq!(all.taken(), 120);
        drop(first);
        second.try_grow(30).unwrap();
        drop((second, third));
        assert_eq!((all.taken(), pools[2].reserved()), (0, 0));
    }
}
