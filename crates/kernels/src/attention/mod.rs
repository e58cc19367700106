//! Multi-head attention over a sparse pattern (paper §B.1).
//!
//! The kernels multiply only the blocks of keys that at least one query may attend to. Scores exist
//! for one block of queries at a time; the forward pass keeps one value per query for the backward
//! pass, the log-sum-exp of its scores.

pub(crate) mod head;
pub(crate) mod plan;

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use half::bf16;
use rayon::prelude::*;

pub use plan::AttentionPlan;

use crate::composed::{narrowed, widened};
use crate::cpu::Cpu;
use crate::gemm::{Out, with_micro};
use crate::math::Number;
use crate::memory::filled;
use crate::op::{Input, Op, apply, dims, is_bf16, numbers, tensor};
use head::{Backward, Forward, Head, Layout};

/// Computes `softmax(q kᵀ / √K + mask) v` for each head. `qkv` is `[B, T, 3 · H · K]` with queries,
/// keys and values side by side; the output is `[B, T, H · K]`, in bf16 on the CPU if `cpu`
/// multiplies bf16.
///
/// # Panics
/// If `T` is not the plan's length, or the width is not a positive multiple of `3 · H`.
pub fn pattern_attention(cpu: Cpu, qkv: Tensor<3>, n_heads: usize, plan: &Arc<AttentionPlan>) -> Tensor<3> {
    let [b, t, width] = qkv.dims();
    assert!(
        t == plan.len() && n_heads > 0 && width > 0 && width.is_multiple_of(3 * n_heads),
        "pattern_attention: qkv [{b}, {t}, {width}], wanted [.., {}, a multiple of 3 · {n_heads} heads]",
        plan.len()
    );
    match Input::new(qkv.clone()) {
        Some(input) => apply(Attention { cpu, n_heads, plan: plan.clone() }, [input]),
        None => pattern_attention_composed(cpu, qkv, n_heads, plan),
    }
}

/// Computes [`pattern_attention`] with Burn's operations and the dense mask.
pub fn pattern_attention_reference(qkv: Tensor<3>, n_heads: usize, plan: &AttentionPlan) -> Tensor<3> {
    let [b, t, width] = qkv.dims();
    let d = width / 3;
    let mask = plan.mask(&qkv.device());
    let heads =
        |i: usize| qkv.clone().narrow(2, i * d, d).reshape([b, t, n_heads, d / n_heads]).swap_dims(1, 2);
    let [q, k, v] = [heads(0), heads(1), heads(2)]; // [B, H, T, K]
    let scale = 1.0 / ((d / n_heads) as f64).sqrt();
    let scores = (q * scale).matmul(k.swap_dims(2, 3)) + mask; // [B, H, T, T]
    softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([b, t, d])
}

/// Computes [`pattern_attention`] on devices other than the CPU. It goes through the plan's blocks
/// of queries and multiplies each with the keys that any of them may attend to, so memory grows
/// with the number of visible pairs and not with `T²`.
fn pattern_attention_composed(cpu: Cpu, qkv: Tensor<3>, n_heads: usize, plan: &AttentionPlan) -> Tensor<3> {
    let [b, t, width] = qkv.dims();
    let d = width / 3;
    let masks = plan.device_masks(&qkv.device());
    let qkv = masks.to_working_order(narrowed(cpu, qkv));
    let heads =
        |i: usize| qkv.clone().narrow(2, i * d, d).reshape([b, t, n_heads, d / n_heads]).swap_dims(1, 2);
    let [q, k, v] = [heads(0), heads(1), heads(2)]; // [B, H, T, K]
    let (q, k) = (q / ((d / n_heads) as f64).sqrt(), k.swap_dims(2, 3));
    let attend = |(block, mask): (&plan::Block, Tensor<4>)| {
        let scores = q.clone().narrow(2, block.first, block.rows).matmul(block.keys(&k, 3, t));
        softmax_into(cpu, widened(scores) + mask).matmul(block.keys(&v, 2, t))
    };
    let attended = plan.blocks.iter().zip(masks.blocks.iter().cloned()).map(attend);
    let attended = Tensor::cat(attended.collect(), 2).swap_dims(1, 2).reshape([b, t, d]);
    masks.to_stream_order(attended)
}

/// Returns the softmax of f32 scores, in the dtype that is multiplied next.
fn softmax_into(cpu: Cpu, scores: Tensor<4>) -> Tensor<4> {
    narrowed(cpu, softmax(scores, 3))
}

#[derive(Debug, Clone)]
struct Attention {
    cpu: Cpu,
    n_heads: usize,
    plan: Arc<AttentionPlan>,
}

impl Op<1> for Attention {
    /// The output, and the log-sum-exps `[B · H, T]` in the plan's working order.
    type Saved = (FlexTensor, Vec<f32>);

    fn forward(&self, [qkv]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<Self::Saved>) {
        let (output, sums) = match self.cpu.bf16() {
            true => self.run::<bf16>(qkv),
            false => self.run::<f32>(qkv),
        };
        (output.clone(), keep.then_some((output, sums)))
    }

    fn backward(
        &self,
        [qkv]: [&FlexTensor; 1],
        saved: &Self::Saved,
        gradient: &FlexTensor,
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [Some(match is_bf16(qkv) {
            true => self.run_backward::<bf16>(qkv, saved, gradient),
            false => self.run_backward::<f32>(qkv, saved, gradient),
        })]
    }
}

impl Attention {
    fn layout(&self, qkv: &FlexTensor) -> Layout {
        let shape = dims(qkv);
        let d = shape[2] / 3;
        Layout { batch: shape[0], len: shape[1], n_heads: self.n_heads, width: d / self.n_heads }
    }

    fn run<T: Number>(&self, qkv: &FlexTensor) -> (FlexTensor, Vec<f32>) {
        let layout = self.layout(qkv);
        let mut sums = vec![0.0; layout.heads() * layout.len];
        // SAFETY: each head writes its own columns of its sequence's rows; together the heads write
        // every value.
        #[allow(unsafe_code)]
        let output = unsafe {
            filled(layout.rows() * layout.d(), |output: &mut [MaybeUninit<T>]| {
                let output = Out::new(output, layout.d());
                let heads = sums.par_chunks_mut(layout.len.max(1)).enumerate();
                heads.for_each(|(head, sums)| {
                    let head = Head::new(&self.plan, layout, head, numbers(qkv));
                    with_micro!(self.cpu, S => {
                        self.cpu.supported().run(Forward::<S, T> { head, output, sums, simd: PhantomData });
                    });
                });
            })
        };
        (tensor(output, &[layout.batch, layout.len, layout.d()]), sums)
    }

    fn run_backward<T: Number>(
        &self,
        qkv: &FlexTensor,
        saved: &(FlexTensor, Vec<f32>),
        gradient: &FlexTensor,
    ) -> FlexTensor {
        let layout = self.layout(qkv);
        let (output, sums) = saved;
        // SAFETY: each head writes its own columns of the gradients of queries, keys and values, in
        // its sequence's rows; together the heads write every value.
        #[allow(unsafe_code)]
        let d_qkv = unsafe {
            filled(layout.rows() * 3 * layout.d(), |d_qkv: &mut [MaybeUninit<T>]| {
                let d_qkv = Out::new(d_qkv, 3 * layout.d());
                let heads = sums.par_chunks(layout.len.max(1)).enumerate();
                heads.for_each(|(head, sums)| {
                    let head = Head::new(&self.plan, layout, head, numbers(qkv));
                    let [output, gradient] = [output, gradient].map(numbers);
                    with_micro!(self.cpu, S => {
                        let simd = PhantomData;
                        self.cpu.supported().run(Backward::<S, T> { head, d_qkv, sums, output, gradient, simd });
                    });
                });
            })
        };
        tensor(d_qkv, &dims(qkv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    fn hold(plan: AttentionPlan, n_heads: usize, width: usize) {
        let plan = Arc::new(plan);
        hold_equal(
            || leaf([2, plan.len(), 3 * n_heads * width], 5) * 3.0,
            |cpu, qkv| pattern_attention(cpu, qkv.clone(), n_heads, &plan),
            |qkv| pattern_attention_reference(qkv.clone(), n_heads, &plan),
            |_, _| Vec::new(),
        );
        type Body<'a> = &'a dyn Fn(Cpu, Tensor<3>) -> Tensor<3>;
        let bodies: [Body; 2] = [&|cpu, qkv| pattern_attention(cpu, qkv, n_heads, &plan), &|cpu, qkv| {
            pattern_attention_composed(cpu, qkv, n_heads, &plan)
        }];
        for body in bodies {
            hold_equal(
                || leaf([2, plan.len(), 3 * n_heads * width], 5),
                |cpu, qkv| body(cpu, qkv.clone() * 3.0),
                |qkv| pattern_attention_reference(qkv.clone() * 3.0, n_heads, &plan),
                |qkv, g| vec![grad(qkv, g)],
            );
        }
    }

    #[test]
    fn causal_attention_at_awkward_sizes_matches_reference() {
        for (len, n_heads, width) in [(1, 1, 1), (17, 2, 5), (130, 1, 16), (70, 3, 20)] {
            hold(AttentionPlan::new((0..len).collect(), |query, key| key <= query), n_heads, width);
        }
    }

    #[test]
    fn bidirectional_attention_matches_reference() {
        for (len, n_heads, width) in [(1, 1, 1), (37, 3, 8), (65, 2, 16), (130, 1, 5)] {
            hold(AttentionPlan::new((0..len).collect(), |_, _| true), n_heads, width);
        }
    }

    #[test]
    fn sparse_attention_in_another_order_matches_reference() {
        let column =
            |query: usize, key: usize| key <= query && (key < 10 || (query - key).is_multiple_of(12));
        let order = (0..10).chain((0..144).map(|place| 10 + place % 12 * 12 + place / 12)).collect();
        hold(AttentionPlan::new(order, column), 2, 8);
    }
}
