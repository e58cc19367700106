//! The pixel map φ and its inverse (paper §A.3): keeps pixels inside (0, 1), where the logit is finite.

use burn::tensor::Tensor;

/// Distance of mapped pixels from 0 and 1.
pub const EPS: f64 = 0.1;

/// φ: [0, 1] → [0.1, 0.9]
pub fn map_pixels<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x * (1.0 - 2.0 * EPS) + EPS
}

/// φ⁻¹, clamped to [0, 1]
pub fn unmap_pixels<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ((x - EPS) / (1.0 - 2.0 * EPS)).clamp(0.0, 1.0)
}
