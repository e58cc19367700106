//! Attention over a KV cache on devices other than the CPU.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

use crate::composed::{narrowed, widened};
use crate::cpu::Cpu;

/// Keys and values that queries attend to.
#[derive(Debug, Clone)]
pub struct CachedKeys {
    /// `[n, R, H, K]`, or `[1, R, H, K]` if all `n` queries have the same.
    pub keys: Tensor<4>,
    /// The values, with the shape of `keys`.
    pub values: Tensor<4>,
    /// `[n, R]`: true for rows that a query does not attend to; `None` if it attends to all.
    pub hidden: Option<Tensor<2, Bool>>,
}

/// Computes the attention of one query per sequence, `[n, H, K]`, over all rows of `cached` together
/// → `[n, H · K]`. Scores and softmax are f32. This is [`super::attend`] for other devices.
pub fn attend_composed(cpu: Cpu, queries: Tensor<3>, cached: &[CachedKeys]) -> Tensor<2> {
    let [n, n_heads, width] = queries.dims();
    let queries = queries.reshape([n, n_heads, 1, width]) / (width as f64).sqrt();
    let scores = |cached: &CachedKeys| {
        // [n, H, K, R]
        let keys = cached.keys.clone().permute([0, 2, 3, 1]);
        let scores = widened(queries.clone().matmul(keys));
        match &cached.hidden {
            None => scores,
            Some(hidden) => {
                let [_, rows] = hidden.dims();
                let hidden = hidden.clone().reshape([n, 1, 1, rows]).expand([n, n_heads, 1, rows]);
                scores.mask_fill(hidden, f32::NEG_INFINITY)
            }
        }
    };
    let scores = Tensor::cat(cached.iter().map(scores).collect(), 3);
    let weights = narrowed(cpu, softmax(scores, 3));
    let mut first = 0;
    let parts = cached.iter().map(|cached| {
        let rows = cached.values.dims()[1];
        let weights = weights.clone().narrow(3, first, rows);
        first += rows;
        weights.matmul(cached.values.clone().swap_dims(1, 2)) // [n, H, 1, K]
    });
    let sum = parts.map(widened).reduce(|sum, part| sum + part).expect("at least one cache");
    narrowed(cpu, sum.reshape([n, n_heads * width]))
}
