//! Products and orthonormal columns of PowerSGD's matrices (paper §E.2, steps 3 to 6), in row-major
//! f32.
//!
//! Columns are made orthonormal by Householder reflections, because the Gram-Schmidt process was
//! unstable (step 5). A product of reflections is always orthogonal, so that dependent columns and
//! zero columns are no special case.

use rayon::prelude::*;

/// The number of rows of a product that one thread computes together. Each row of the right matrix
/// is read once for all of them.
const ROWS: usize = 8;
/// The minimum number of columns that one thread reflects.
const COLUMNS: usize = 8;
/// The number of partial sums of a dot product, which can be computed independently.
const LANES: usize = 8;

/// Returns the product `a b`, `[rows, columns]`, of `a`, `[rows, inner]`, and `b`, `[inner,
/// columns]`. Sums run in the order of `inner` with any number of threads.
///
/// # Panics
/// If the lengths do not fit `inner`.
pub fn product(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    assert!(a.len().is_multiple_of(inner) && b.len().is_multiple_of(inner), "product: not {inner} inside");
    let (rows, columns) = (a.len() / inner, b.len() / inner);
    let mut product = vec![0.0; rows * columns];
    product.par_chunks_mut(ROWS * columns).zip(a.par_chunks(ROWS * inner)).for_each(|(product, a)| {
        for (k, b) in b.chunks_exact(columns).enumerate() {
            for (product, a) in product.chunks_exact_mut(columns).zip(a.chunks_exact(inner)) {
                product.iter_mut().zip(b).for_each(|(sum, b)| *sum += a[k] * b);
            }
        }
    });
    product
}

/// Returns the transpose, `[columns, rows]`, of `a`, `[rows, columns]`.
pub fn transposed(a: &[f32], columns: usize) -> Vec<f32> {
    let rows = a.len() / columns;
    let mut transposed = vec![0.0; a.len()];
    transposed.par_chunks_mut(rows.max(1)).enumerate().for_each(|(j, column)| {
        column.iter_mut().zip(a.chunks_exact(columns)).for_each(|(to, row)| *to = row[j]);
    });
    transposed
}

/// Returns orthonormal columns, `[rows, columns]`. For each `j`, the first `j` of them span the
/// first `j` columns of `a`, as far as these are independent. The other columns, and the signs of
/// all columns, are arbitrary.
///
/// # Panics
/// If there are more columns than rows.
pub fn orthonormal(a: &[f32], columns: usize) -> Vec<f32> {
    let rows = a.len() / columns;
    assert!(columns <= rows, "orthonormal: {columns} columns of {rows} rows");
    let mut work: Vec<Vec<f64>> = (0..columns)
        .map(|j| a.iter().skip(j).step_by(columns).map(|&value| f64::from(value)).collect())
        .collect();
    let mut reflections = Vec::with_capacity(columns);
    for k in 0..columns {
        let reflection = Reflection::new(&work[k][k..]);
        reflection.apply(&mut work[k + 1..], k);
        reflections.push(reflection);
    }
    let unit = |j: usize| (0..rows).map(|i| f64::from(u8::from(i == j))).collect();
    let mut q: Vec<Vec<f64>> = (0..columns).map(unit).collect();
    for (k, reflection) in reflections.iter().enumerate().rev() {
        reflection.apply(&mut q[k..], k);
    }
    (0..rows * columns).map(|i| q[i % columns][i / columns] as f32).collect()
}

/// The reflection `1 − factor v vᵀ`.
struct Reflection {
    v: Vec<f64>,
    factor: f64,
}

impl Reflection {
    /// Makes the reflection that maps `x` to a vector whose elements are 0 except the first. If `x`
    /// is 0, it is the identity.
    fn new(x: &[f64]) -> Reflection {
        let mut v = x.to_vec();
        // This sign avoids cancellation.
        v[0] += dot(x, x).sqrt().copysign(x[0]);
        let squared = dot(&v, &v);
        Reflection { v, factor: if squared == 0.0 { 0.0 } else { 2.0 / squared } }
    }

    /// Reflects the part of each of `columns` from row `from` on.
    fn apply(&self, columns: &mut [Vec<f64>], from: usize) {
        columns.par_iter_mut().with_min_len(COLUMNS).for_each(|column| {
            let column = &mut column[from..];
            let share = self.factor * dot(&self.v, column);
            column.iter_mut().zip(&self.v).for_each(|(value, v)| *value -= share * v);
        });
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns pseudorandom numbers between −1 and 1.
    fn numbers(len: usize) -> Vec<f32> {
        (0..len as u64)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 2.0_f32.powi(23) - 1.0)
            .collect()
    }

    /// Returns the largest element of `|QᵀQ − 1|`.
    fn off_orthonormal(q: &[f32], columns: usize) -> f32 {
        let squares = product(&transposed(q, columns), q, q.len() / columns);
        let off =
            |(i, square): (usize, &f32)| (square - f32::from(u8::from(i / columns == i % columns))).abs();
        // f32::max would ignore NaN.
        squares.iter().enumerate().map(off).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
    }

    #[test]
    fn products_and_transposes_equal_values_computed_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 0.0, 1.0, 1.0, -1.0]);
        assert_eq!(product(&a, &b, 3), [4.0, -1.0, 10.0, -1.0]);
        assert_eq!(transposed(&a, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let (a, b) = (numbers(21 * 5), numbers(5 * 3)); // more rows than one thread computes together
        let expected = |i: usize| (0..5).map(|k| a[i / 3 * 5 + k] * b[k * 3 + i % 3]).sum::<f32>();
        let off = product(&a, &b, 5).iter().enumerate().any(|(i, got)| (got - expected(i)).abs() > 1e-6);
        assert!(!off);
    }

    #[test]
    fn columns_become_orthonormal_and_keep_their_span() {
        for (rows, columns) in [(1, 1), (7, 7), (50, 12), (200, 30)] {
            let a = numbers(rows * columns);
            let q = orthonormal(&a, columns);
            assert!(off_orthonormal(&q, columns) < 1e-5, "{rows} by {columns}");
            let within = product(&q, &product(&transposed(&q, columns), &a, rows), columns);
            assert!(within.iter().zip(&a).all(|(a, b)| (a - b).abs() < 1e-5), "{rows} by {columns}");
        }
    }

    /// The columns differ only by 1e-7 of their length, so that the Gram-Schmidt process would lose
    /// all digits.
    #[test]
    fn nearly_dependent_columns_become_orthonormal() {
        let (rows, columns) = (100, 10);
        let (base, noise) = (numbers(rows), numbers(rows * columns + 5));
        let a: Vec<f32> = (0..rows * columns).map(|i| base[i / columns] + 1e-7 * noise[i + 5]).collect();
        let off = off_orthonormal(&orthonormal(&a, columns), columns);
        assert!(off < 1e-5, "{off}");
    }

    #[test]
    fn dependent_and_zero_columns_become_orthonormal() {
        let (rows, columns) = (40, 6);
        let rank_1: Vec<f32> =
            (0..rows * columns).map(|i| ((i / columns + 1) * (i % columns)) as f32).collect();
        let tiny: Vec<f32> = numbers(rows * columns).iter().map(|value| value * 1e-38).collect();
        for a in [rank_1, vec![0.0; rows * columns], vec![1.0; rows * columns], tiny] {
            let off = off_orthonormal(&orthonormal(&a, columns), columns);
            assert!(off < 1e-5, "{off}");
        }
    }
}
