//! Sets of feature vectors of one network, for metrics that need pairs of vectors: kernel
//! distances, nearest neighbours and rankings.
//!
//! A set records its feature extractor, as a [`Gaussian`](crate::Gaussian) does, and accepts only
//! finite numbers. [`for_blocks`] computes the inner products of two sets in blocks, so that the
//! products of all pairs are never in memory together.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// The maximum number of rows and columns of a block of inner products.
const BLOCK: usize = 256;
/// The number of rows of a block that one thread computes.
const STRIPE: usize = 64;

/// `n` vectors of `D` features.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    features: String,
    dims: usize,
    values: Vec<f32>,
}

impl Vectors {
    /// Creates an empty set for vectors of `dims` features. `features` names the feature extractor:
    /// the network, its weights and the layer.
    pub fn new(features: &str, dims: usize) -> Vectors {
        Vectors { features: features.to_string(), dims, values: Vec::new() }
    }

    /// Adds vectors, `[B, D]`.
    ///
    /// # Errors
    /// If the length is not a multiple of `D` or a feature is not finite.
    pub fn push_all(&mut self, vectors: &[f32]) -> Result<()> {
        check(vectors, self.dims)?;
        self.values.extend_from_slice(vectors);
        Ok(())
    }

    /// A set of vectors that do not name their feature extractor, `[B, D]`, for tests.
    #[cfg(test)]
    pub(crate) fn of(vectors: &[f32], dims: usize) -> Vectors {
        let mut set = Vectors::new("", dims);
        set.push_all(vectors).expect("whole vectors of finite features");
        set
    }

    /// The name of the feature extractor. It is part of every report.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// `D`, the number of features.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// `n`, the number of vectors.
    pub fn len(&self) -> usize {
        self.values.len() / self.dims.max(1)
    }

    /// Whether the set contains no vectors.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All vectors, `[n, D]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Vector `i`, `[D]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dims..][..self.dims]
    }

    /// Checks that two sets can be compared: that both have at least `least` vectors, of the same
    /// network.
    pub(crate) fn comparable(&self, other: &Vectors, least: usize) -> Result<()> {
        let (n, m) = (self.len(), other.len());
        ensure!(n >= least && m >= least, "{n} and {m} feature vectors; wanted at least {least} of each");
        ensure!(self.dims == other.dims, "{} features and {}; wanted the same", self.dims, other.dims);
        let (a, b) = (&self.features, &other.features);
        ensure!(a == b, "features of {a} and of {b} cannot be compared; wanted both from one network");
        Ok(())
    }
}

/// Checks that `vectors` are `[B, dims]` and finite.
pub(crate) fn check(vectors: &[f32], dims: usize) -> Result<()> {
    let n = vectors.len();
    ensure!(dims > 0, "vectors of no features; wanted at least 1");
    ensure!(
        n.is_multiple_of(dims),
        "{n} features in all; wanted a whole number of vectors of {dims} features"
    );
    if let Some(i) = vectors.iter().position(|value| !value.is_finite()) {
        let (vector, feature) = (i / dims, i % dims);
        anyhow::bail!("feature {feature} of vector {vector} is {}, not finite; wanted a number", vectors[i]);
    }
    Ok(())
}

/// Returns `vectors`, `[n, dims]`, scaled to length 1.
///
/// # Errors
/// If they are not vectors of `dims` finite features, or one has length 0.
pub(crate) fn unit(vectors: &[f32], dims: usize) -> Result<Vec<f32>> {
    check(vectors, dims)?;
    let mut unit = Vec::with_capacity(vectors.len());
    for (i, vector) in vectors.chunks_exact(dims).enumerate() {
        let length = square(vector).sqrt();
        ensure!(length > 0.0, "vector {i} has a length of 0; wanted a vector with a direction");
        unit.extend(vector.iter().map(|&x| (f64::from(x) / length) as f32));
    }
    Ok(unit)
}

/// The inner product. The order of the summation is fixed.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The squared length.
pub(crate) fn square(a: &[f32]) -> f64 {
    dot(a, a)
}

/// A block of the matrix of inner products of two sets.
pub(crate) struct Block<'a, T> {
    /// The index of its first row: a vector of the first set.
    pub row: usize,
    /// The index of its first column: a vector of the second set.
    pub column: usize,
    /// The number of columns.
    pub width: usize,
    /// The inner products, `[rows, width]`.
    pub products: &'a [T],
}

/// Computes the inner products of all vectors of `a`, `[n, dims]`, with all of `b`, `[m, dims]`,
/// and calls `visit` for each block, in row-major order. Use f64 if a metric is a difference of
/// products. Use f32 if the products only select candidates that are then computed again.
pub(crate) fn for_blocks<T: ComplexField + Copy + From<f32>>(
    a: &[f32],
    b: &[f32],
    dims: usize,
    visit: impl FnMut(Block<'_, T>),
) {
    for_blocks_where(a, b, dims, |_, _| true, visit);
}

/// Like [`for_blocks`], but only for blocks whose first row and first column satisfy `is_wanted`.
fn for_blocks_where<T: ComplexField + Copy + From<f32>>(
    a: &[f32],
    b: &[f32],
    dims: usize,
    is_wanted: impl Fn(usize, usize) -> bool,
    mut visit: impl FnMut(Block<'_, T>),
) {
    let mut products = Vec::new();
    let converted = |vectors: &[f32]| vectors.iter().map(|&x| T::from(x)).collect::<Vec<T>>();
    for (i, left) in a.chunks(BLOCK * dims).enumerate() {
        let left = converted(left);
        let height = left.len() / dims;
        for (j, right) in b.chunks(BLOCK * dims).enumerate() {
            if !is_wanted(i * BLOCK, j * BLOCK) {
                continue;
            }
            let right = converted(right);
            let width = right.len() / dims;
            products.resize(height * width, T::from(0.0));
            multiply(&left, &right, dims, &mut products);
            visit(Block { row: i * BLOCK, column: j * BLOCK, width, products: &products });
        }
    }
}

/// Writes the inner products of `a`, `[n, dims]`, with `b`, `[m, dims]`, into `products`, `[n, m]`.
/// Each thread computes a few rows on its own. If the threads shared one matrix product, they would
/// wait for each other, which takes three times as long on a busy machine.
fn multiply<T: ComplexField + Copy + From<f32>>(a: &[T], b: &[T], dims: usize, products: &mut [T]) {
    let width = b.len() / dims;
    let columns = MatRef::from_row_major_slice(b, width, dims).transpose();
    let stripes = products.par_chunks_mut(STRIPE * width).zip(a.par_chunks(STRIPE * dims));
    stripes.for_each(|(products, rows)| {
        let height = rows.len() / dims;
        let out = MatMut::from_row_major_slice_mut(products, height, width);
        let rows = MatRef::from_row_major_slice(rows, height, dims);
        matmul(out, Accum::Replace, rows, columns, T::from(1.0), Par::Seq);
    });
}

/// Returns the sum of `kernel(i, j, aᵢ · bⱼ)` over all vectors of `a`, `[n, dims]`, and of `b`,
/// `[m, dims]`. It does not depend on the number of threads.
pub(crate) fn sum_over_pairs(
    a: &[f32],
    b: &[f32],
    dims: usize,
    kernel: impl Fn(usize, usize, f64) -> f64 + Sync,
) -> f64 {
    let mut total = 0.0;
    for_blocks(a, b, dims, |block| total += block_sum(&block, &kernel));
    total
}

/// Like [`sum_over_pairs`] for a set with itself. The kernel must be symmetric, because only half
/// of the blocks are computed.
pub(crate) fn sum_over_own_pairs(
    a: &[f32],
    dims: usize,
    kernel: impl Fn(usize, usize, f64) -> f64 + Sync,
) -> f64 {
    let mut total = 0.0;
    let upper_triangle = |row: usize, column: usize| column >= row;
    for_blocks_where(a, a, dims, upper_triangle, |block| {
        let factor = if block.column > block.row { 2.0 } else { 1.0 };
        total += factor * block_sum(&block, &kernel);
    });
    total
}

/// The sum of the kernel over a block. Rows are summed in parallel, then added in order.
fn block_sum(block: &Block<'_, f64>, kernel: &(impl Fn(usize, usize, f64) -> f64 + Sync)) -> f64 {
    let row_sum = |(i, row): (usize, &[f64])| -> f64 {
        let value = |(j, &product)| kernel(block.row + i, block.column + j, product);
        row.iter().enumerate().map(value).sum()
    };
    let rows: Vec<f64> = block.products.par_chunks(block.width).enumerate().map(row_sum).collect();
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` different vectors.
    fn noise(n: usize, dims: usize) -> Vec<f32> {
        (0..n * dims).map(|i| (i as f32 * 12.9898).sin()).collect()
    }

    #[test]
    fn blocks_contain_every_product_once_at_its_index() {
        let (n, m, dims) = (BLOCK + 3, BLOCK * 2 + 1, 5);
        let (a, b) = (noise(n, dims), noise(m, dims));
        let mut visits = vec![0; n * m];
        for_blocks(&a, &b, dims, |block: Block<'_, f64>| {
            for (i, row) in block.products.chunks(block.width).enumerate() {
                for (j, &product) in row.iter().enumerate() {
                    let (i, j) = (block.row + i, block.column + j);
                    let expected = dot(&a[i * dims..][..dims], &b[j * dims..][..dims]);
                    assert!((product - expected).abs() < 1e-12, "{i} {j}: {product}, expected {expected}");
                    visits[i * m + j] += 1;
                }
            }
        });
        assert!(visits.iter().all(|&times| times == 1));
        let expected: f64 = a.chunks(dims).flat_map(|a| b.chunks(dims).map(|b| dot(a, b).powi(2))).sum();
        let sum = sum_over_pairs(&a, &b, dims, |_, _, product| product * product);
        assert!((sum / expected - 1.0).abs() < 1e-12, "{sum}, expected {expected}");
        let kernel = |i: usize, j: usize, product: f64| product * product + (i + j) as f64;
        let (own, all) = (sum_over_own_pairs(&a, dims, kernel), sum_over_pairs(&a, &a, dims, kernel));
        assert!((own / all - 1.0).abs() < 1e-12, "{own}, expected {all}");
    }

    #[test]
    fn invalid_vectors_and_sets_of_different_networks_are_refused() {
        let error = |values: &[f32]| Vectors::new("", 2).push_all(values).unwrap_err().to_string();
        assert!(error(&[1.0; 3]).contains("3 features in all; wanted a whole number of vectors of 2"));
        assert!(error(&[0.0, 1.0, 2.0, f32::NAN]).contains("feature 1 of vector 1 is NaN"));
        assert!(Vectors::new("", 0).push_all(&[]).is_err());
        let set = |features, dims, n| {
            let mut set = Vectors::new(features, dims);
            set.push_all(&noise(n, dims)).unwrap();
            set
        };
        let against = |b: &Vectors| set("one", 2, 4).comparable(b, 3).unwrap_err().to_string();
        assert!(against(&set("one", 2, 2)).contains("4 and 2 feature vectors; wanted at least 3"));
        assert!(against(&set("one", 3, 4)).contains("2 features and 3"));
        assert!(against(&set("other", 2, 4)).contains("of one and of other"));
        assert!(set("one", 2, 4).comparable(&set("one", 2, 3), 3).is_ok());
    }

    #[test]
    fn unit_scales_to_length_1_and_refuses_length_0() {
        let scaled = unit(&[3.0, 4.0, 0.0, -1e-30], 2).unwrap();
        assert_eq!(scaled, [0.6, 0.8, 0.0, -1.0]);
        assert!(
            unit(&[1.0, 0.0, 0.0, 0.0], 2).unwrap_err().to_string().contains("vector 1 has a length of 0")
        );
    }
}
