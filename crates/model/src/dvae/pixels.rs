//! The pixel map φ and its inverse (paper §A.3). φ maps pixels into the inside of (0, 1), where
//! their logit is finite.

use burn::tensor::Tensor;

/// The smallest distance of mapped pixels from 0 and 1.
pub const EPS: f64 = 0.1;

/// φ: maps [0, 1] to [0.1, 0.9].
pub fn map_pixels<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x * (1.0 - 2.0 * EPS) + EPS
}

/// φ⁻¹: maps [0.1, 0.9] to [0, 1], and clamps what is outside.
pub fn unmap_pixels<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ((x - EPS) / (1.0 - 2.0 * EPS)).clamp(0.0, 1.0)
}
