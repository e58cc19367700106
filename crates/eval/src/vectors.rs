//! Vectors that one network made, kept as they are: what distances between sets, neighbours and rankings are measured on.
//!
//! A set knows whose vectors it holds, as a [`Gaussian`](crate::Gaussian) does, and only finite numbers get in, so no measurement
//! has to ask. [`for_blocks`] is how two sets meet: products of all pairs never lie in memory at once.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Vectors of a block of products, on either side.
const BLOCK: usize = 256;
/// Rows of a block that one thread multiplies.
const STRIPE: usize = 64;

/// `n` vectors of `D` features.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    features: String,
    dims: usize,
    values: Vec<f32>,
}

impl Vectors {
    /// Of no vectors of `dims` features, which `features` names: a network, its weights, a layer.
    pub fn new(features: &str, dims: usize) -> Vectors {
        Vectors { features: features.to_string(), dims, values: Vec::new() }
    }

    /// Adds vectors, `[B, D]`.
    ///
    /// # Errors
    /// If they are no whole number of vectors or a feature is not finite.
    pub fn push_all(&mut self, vectors: &[f32]) -> Result<()> {
        check(vectors, self.dims)?;
        self.values.extend_from_slice(vectors);
        Ok(())
    }

    /// Whose features they are, to be reported beside every figure.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// `D`
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// `n`
    pub fn len(&self) -> usize {
        self.values.len() / self.dims.max(1)
    }

    /// Whether it holds no vectors.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// `[n, D]`
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Vector `i`, `[D]`
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.dims..][..self.dims]
    }

    /// That two sets may be measured against each other: `least` vectors or more, of the same network.
    pub(crate) fn comparable(&self, other: &Vectors, least: usize) -> Result<()> {
        let (n, m) = (self.len(), other.len());
        ensure!(n >= least && m >= least, "{n} and {m} feature vectors; wanted at least {least} of each");
        ensure!(self.dims == other.dims, "{} features and {}; wanted the same", self.dims, other.dims);
        let (a, b) = (&self.features, &other.features);
        ensure!(a == b, "features of {a} and of {b} cannot be compared; wanted both from one network");
        Ok(())
    }
}

/// That `vectors` are `[B, dims]` and finite.
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

/// Vectors at a length of 1, `[n, D]`.
///
/// # Errors
/// If they are no vectors of `dims` finite features, or one has a length of 0 and so no direction.
pub(crate) fn unit(vectors: &[f32], dims: usize) -> Result<Vec<f32>> {
    check(vectors, dims)?;
    let mut unit = Vec::with_capacity(vectors.len());
    for (i, vector) in vectors.chunks_exact(dims).enumerate() {
        let length = square(vector).sqrt();
        ensure!(length > 0.0, "vector {i} has a length of 0, and so no direction; wanted another");
        unit.extend(vector.iter().map(|&x| (f64::from(x) / length) as f32));
    }
    Ok(unit)
}

/// Inner product, always summed in the same order.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Squared length.
pub(crate) fn square(a: &[f32]) -> f64 {
    dot(a, a)
}

/// Inner products of some vectors of one set with some of another.
pub(crate) struct Block<'a, T> {
    /// The first vector of the one.
    pub row: usize,
    /// The first vector of the other.
    pub column: usize,
    /// Vectors of the other.
    pub width: usize,
    /// `[rows, width]`
    pub products: &'a [T],
}

/// Shows `extract` the inner products of all vectors of `a`, `[n, dims]`, with all of `b`, `[m, dims]`, a block at a time: blocks of the
/// same rows one after another, from left to right. In f64 where a figure is a difference of products, in f32 where they only
/// point to what is worth a second look.
pub(crate) fn for_blocks<T: ComplexField + Copy + From<f32>>(
    a: &[f32],
    b: &[f32],
    dims: usize,
    extract: impl FnMut(Block<'_, T>),
) {
    for_blocks_where(a, b, dims, |_, _| true, extract);
}

/// [`for_blocks`] for those whose first row and first column are `wanted`.
fn for_blocks_where<T: ComplexField + Copy + From<f32>>(
    a: &[f32],
    b: &[f32],
    dims: usize,
    wanted: impl Fn(usize, usize) -> bool,
    mut extract: impl FnMut(Block<'_, T>),
) {
    let mut products = Vec::new();
    let wide = |vectors: &[f32]| vectors.iter().map(|&x| T::from(x)).collect::<Vec<T>>();
    for (i, left) in a.chunks(BLOCK * dims).enumerate() {
        let left = wide(left);
        let height = left.len() / dims;
        for (j, right) in b.chunks(BLOCK * dims).enumerate() {
            if !wanted(i * BLOCK, j * BLOCK) {
                continue;
            }
            let right = wide(right);
            let width = right.len() / dims;
            products.resize(height * width, T::from(0.0));
            multiply(&left, &right, dims, &mut products);
            extract(Block { row: i * BLOCK, column: j * BLOCK, width, products: &products });
        }
    }
}

/// Inner products of `a`, `[n, dims]`, with `b`, `[m, dims]`, into `[n, m]`: a few rows a thread. Threads that share one product wait for
/// each other, which on a busy machine takes three times as long.
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

/// Sum of `kernel(i, j, aᵢ · bⱼ)` over all vectors of `a`, `[n, dims]`, and of `b`, `[m, dims]`; the same for any number of threads.
pub(crate) fn sum_over_pairs(
    a: &[f32],
    b: &[f32],
    dims: usize,
    kernel: impl Fn(usize, usize, f64) -> f64 + Sync,
) -> f64 {
    let mut total = 0.0;
    for_blocks(a, b, dims, |block| total += sum_of(&block, &kernel));
    total
}

/// [`sum_over_pairs`] of a set with itself, for a kernel that is the same from either side: half of the blocks are mirrored.
pub(crate) fn sum_over_own_pairs(
    a: &[f32],
    dims: usize,
    kernel: impl Fn(usize, usize, f64) -> f64 + Sync,
) -> f64 {
    let mut total = 0.0;
    let above = |row: usize, column: usize| column >= row;
    for_blocks_where(a, a, dims, above, |block| {
        let times = if block.column > block.row { 2.0 } else { 1.0 };
        total += times * sum_of(&block, &kernel);
    });
    total
}

/// Sum of the kernel over a block, row by row.
fn sum_of(block: &Block<'_, f64>, kernel: &(impl Fn(usize, usize, f64) -> f64 + Sync)) -> f64 {
    let of_row = |(i, row): (usize, &[f64])| -> f64 {
        let of_pair = |(j, &product)| kernel(block.row + i, block.column + j, product);
        row.iter().enumerate().map(of_pair).sum()
    };
    let rows: Vec<f64> = block.products.par_chunks(block.width).enumerate().map(of_row).collect();
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` vectors that nothing repeats.
    fn some(n: usize, dims: usize) -> Vec<f32> {
        (0..n * dims).map(|i| (i as f32 * 12.9898).sin()).collect()
    }

    #[test]
    fn blocks_hold_every_product_once_and_in_its_place() {
        let (n, m, dims) = (BLOCK + 3, BLOCK * 2 + 1, 5);
        let (a, b) = (some(n, dims), some(m, dims));
        let mut seen = vec![0; n * m];
        for_blocks(&a, &b, dims, |block: Block<'_, f64>| {
            for (i, row) in block.products.chunks(block.width).enumerate() {
                for (j, &product) in row.iter().enumerate() {
                    let (i, j) = (block.row + i, block.column + j);
                    let wanted = dot(&a[i * dims..][..dims], &b[j * dims..][..dims]);
                    assert!((product - wanted).abs() < 1e-12, "{i} {j}: {product}, wanted {wanted}");
                    seen[i * m + j] += 1;
                }
            }
        });
        assert!(seen.iter().all(|&times| times == 1));
        let all: f64 = a.chunks(dims).flat_map(|a| b.chunks(dims).map(|b| dot(a, b).powi(2))).sum();
        let sum = sum_over_pairs(&a, &b, dims, |_, _, product| product * product);
        assert!((sum / all - 1.0).abs() < 1e-12, "{sum}, wanted {all}");
        let kernel = |i: usize, j: usize, product: f64| product * product + (i + j) as f64;
        let (own, whole) = (sum_over_own_pairs(&a, dims, kernel), sum_over_pairs(&a, &a, dims, kernel));
        assert!((own / whole - 1.0).abs() < 1e-12, "{own}, wanted {whole}");
    }

    #[test]
    fn only_whole_finite_vectors_get_in_and_only_one_networks_are_compared() {
        let error = |values: &[f32]| Vectors::new("", 2).push_all(values).unwrap_err().to_string();
        assert!(error(&[1.0; 3]).contains("3 features in all; wanted a whole number of vectors of 2"));
        assert!(error(&[0.0, 1.0, 2.0, f32::NAN]).contains("feature 1 of vector 1 is NaN"));
        assert!(Vectors::new("", 0).push_all(&[]).is_err());
        let set = |features, dims, n| {
            let mut set = Vectors::new(features, dims);
            set.push_all(&some(n, dims)).unwrap();
            set
        };
        let against = |b: &Vectors| set("one", 2, 4).comparable(b, 3).unwrap_err().to_string();
        assert!(against(&set("one", 2, 2)).contains("4 and 2 feature vectors; wanted at least 3"));
        assert!(against(&set("one", 3, 4)).contains("2 features and 3"));
        assert!(against(&set("other", 2, 4)).contains("of one and of other"));
        assert!(set("one", 2, 4).comparable(&set("one", 2, 3), 3).is_ok());
    }

    #[test]
    fn a_direction_has_a_length_of_1_and_nothing_has_none() {
        let unit_of = unit(&[3.0, 4.0, 0.0, -1e-30], 2).unwrap();
        assert_eq!(unit_of, [0.6, 0.8, 0.0, -1.0]);
        assert!(
            unit(&[1.0, 0.0, 0.0, 0.0], 2).unwrap_err().to_string().contains("vector 1 has a length of 0")
        );
    }
}
