//! Multi-head scaled dot-product attention over an additive mask: the reference that faster kernels are held to.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

/// `[B, T, H·K]` → `[B, H, T, K]`
pub fn split_heads(x: Tensor<3>, n_heads: usize) -> Tensor<4> {
    let [b, t, d] = x.dims();
    x.reshape([b, t, n_heads, d / n_heads]).swap_dims(1, 2)
}

/// `[B, H, T, K]` → `[B, T, H·K]`
pub fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    let [b, h, t, k] = x.dims();
    x.swap_dims(1, 2).reshape([b, t, h * k])
}

/// `softmax(q kᵀ / √K + mask) v`: one softmax over text and image keys together (paper §B.1).
///
/// `q` is `[B, H, Tq, K]`, `k` and `v` are `[B, H, Tk, K]`, `mask` is `[1, 1, Tq, Tk]` with 0 where a query may look
/// and a large negative number where it may not. Returns `[B, H, Tq, K]`.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Tensor<4>) -> Tensor<4> {
    let scale = 1.0 / (q.dims()[3] as f64).sqrt();
    let scores = (q * scale).matmul(k.swap_dims(2, 3)) + mask; // [B, H, Tq, Tk]
    softmax(scores, 3).matmul(v)
}
