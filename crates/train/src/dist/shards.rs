//! How a parameter is divided among the ranks of a shard group (paper §2.5, §E.1): each rank holds a
//! range of its columns or, for the second matrix of an MLP, of its rows.

use std::ops::Range;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tessera_model::nn::Role;

use super::comm::part;

/// The division of one parameter. Ranges differ by at most one row or column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The shape of the complete parameter.
    pub shape: Vec<usize>,
    /// The dimension that is divided.
    axis: usize,
    /// The number of ranks.
    ranks: usize,
}

impl Cut {
    /// Divides a parameter of this shape and role among `ranks` ranks.
    ///
    /// # Errors
    /// If a rank would get nothing.
    pub fn new(name: &str, shape: &[usize], role: Role, ranks: usize) -> Result<Cut> {
        if ranks == 1 {
            return Ok(Cut::whole(shape));
        }
        let axis = role.shard_axis(shape.len());
        ensure!(
            shape[axis] >= ranks,
            "{name} has {} rows or columns and cannot be divided among {ranks} ranks; use smaller nodes",
            shape[axis]
        );
        Ok(Cut { shape: shape.to_vec(), axis, ranks })
    }

    /// The division among one rank.
    pub fn whole(shape: &[usize]) -> Cut {
        Cut { shape: shape.to_vec(), axis: 0, ranks: 1 }
    }

    /// Returns the shape of a rank's shard.
    pub fn shard_shape(&self, rank: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[self.axis] = self.range(rank).len();
        shape
    }

    /// Returns the number of values of a rank's shard.
    pub fn len(&self, rank: usize) -> usize {
        self.shard_shape(rank).iter().product()
    }

    /// Returns a rank's shard of the `values` of the complete parameter.
    pub fn shard<T: Copy>(&self, values: &[T], rank: usize) -> Vec<T> {
        let (range, row) = (self.range(rank), self.shape[self.axis] * self.inner());
        let columns = range.start * self.inner()..range.end * self.inner();
        values.chunks_exact(row).flat_map(|row| &row[columns.clone()]).copied().collect()
    }

    /// Returns the complete parameter, given the shards of all ranks.
    ///
    /// # Panics
    /// If a shard has another size.
    pub fn join<T: Copy>(&self, shards: &[&[T]]) -> Vec<T> {
        assert_eq!(shards.len(), self.ranks, "the shards of {} ranks are needed", self.ranks);
        let rows = self.shape[..self.axis].iter().product::<usize>();
        let width = |rank: usize| self.range(rank).len() * self.inner();
        let of_row = |row: usize| {
            (0..self.ranks).flat_map(move |rank| &shards[rank][row * width(rank)..(row + 1) * width(rank)])
        };
        (0..rows).flat_map(of_row).copied().collect()
    }

    /// Like [`Cut::join`], for shards that were read from files.
    ///
    /// # Errors
    /// If a shard is missing or has another size.
    pub fn joined<T: Copy>(&self, shards: &[Vec<T>]) -> Result<Vec<T>> {
        let sizes: Vec<usize> = shards.iter().map(Vec::len).collect();
        let wanted: Vec<usize> = (0..self.ranks).map(|rank| self.len(rank)).collect();
        ensure!(sizes == wanted, "shards of {sizes:?} values, wanted {wanted:?}");
        Ok(self.join(&shards.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    /// The rows or columns of a rank.
    fn range(&self, rank: usize) -> Range<usize> {
        part(self.shape[self.axis], rank, self.ranks)
    }

    /// The number of neighbouring values that belong to one row or column.
    fn inner(&self) -> usize {
        self.shape[self.axis + 1..].iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_columns_or_rows_and_join_to_the_whole() {
        let values: Vec<usize> = (0..12).collect();
        let columns = Cut::new("w", &[2, 6], Role::Matrix, 3).unwrap();
        assert_eq!(columns.shard(&values, 1), [2, 3, 8, 9]);
        assert_eq!(columns.shard_shape(1), [2, 2]);
        let rows = Cut::new("w", &[6, 2], Role::RowMatrix, 3).unwrap();
        assert_eq!(rows.shard(&values, 1), [4, 5, 6, 7]);
        let uneven = Cut::new("b", &[12], Role::Vector, 5).unwrap();
        assert_eq!((0..5).map(|rank| uneven.len(rank)).collect::<Vec<_>>(), [2, 2, 3, 2, 3]);
        for (cut, ranks) in [(columns, 3), (rows, 3), (uneven, 5)] {
            let shards: Vec<Vec<usize>> = (0..ranks).map(|rank| cut.shard(&values, rank)).collect();
            assert!((0..ranks).all(|rank| shards[rank].len() == cut.len(rank)));
            assert_eq!(cut.join(&shards.iter().map(Vec::as_slice).collect::<Vec<_>>()), values);
        }
    }

    #[test]
    fn rank_without_a_share_is_an_error() {
        let error = Cut::new("w", &[2, 3], Role::Head, 4).unwrap_err().to_string();
        assert!(error.contains("w has 3 rows or columns and cannot be divided among 4 ranks"), "{error}");
    }
}
