//! Which samples of a batch a process trains on.

use std::ops::Range;

/// A range of sample slots of an update's batch. A slot decides which picture is read, and with
/// which random numbers, so a batch is the same whatever ranges it is divided into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// The first slot.
    pub first: usize,
    /// The number of slots.
    pub len: usize,
}

impl Slots {
    /// Divides `batch` slots evenly among `ranks` processes and returns those of process `rank`, as
    /// `micro_batches` ranges.
    ///
    /// # Panics
    /// If there is no such process, or the slots cannot be divided evenly.
    pub fn of_rank(batch: usize, micro_batches: usize, rank: usize, ranks: usize) -> Vec<Slots> {
        assert!(rank < ranks, "rank {rank}: there are {ranks}");
        let len = batch / (ranks * micro_batches);
        assert_eq!(len * ranks * micro_batches, batch, "{batch} slots cannot be divided evenly");
        let first = rank * micro_batches * len;
        (0..micro_batches).map(|part| Slots { first: first + part * len, len }).collect()
    }

    /// Returns the slots.
    pub fn range(self) -> Range<usize> {
        self.first..self.first + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_micro_batches_cover_a_batch_once() {
        for (ranks, micro_batches) in [(1, 1), (1, 6), (3, 1), (2, 3), (4, 3)] {
            let all = (0..ranks).flat_map(|rank| Slots::of_rank(12, micro_batches, rank, ranks));
            let all: Vec<usize> = all.flat_map(Slots::range).collect();
            assert_eq!(all, (0..12).collect::<Vec<_>>(), "{ranks} ranks, {micro_batches} micro-batches");
        }
    }

    #[test]
    #[should_panic(expected = "12 slots cannot be divided evenly")]
    fn uneven_division_panics() {
        Slots::of_rank(12, 5, 0, 1);
    }
}
