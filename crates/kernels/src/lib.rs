//! Operations that take most of the time of training and generation, written for the CPU.
//!
//! Every differentiable operation takes and returns Burn tensors and has two implementations:
//! kernels for tensors in CPU memory, and a composition of Burn's own operations for any other
//! device. The composition is also the reference: tests compare each kernel with it, forward and
//! backward. Generation ([`decode`]) and noise work on plain arrays.

mod adamw;
mod attention;
mod composed;
mod conv;
mod cpu;
mod cross_entropy;
pub mod decode;
mod dot;
mod gemm;
#[cfg(all(any(feature = "vulkan", feature = "webgpu"), not(target_os = "macos")))]
mod gpu_memory;
mod gumbel;
mod linear;
mod math;
mod memory;
mod norm;
mod op;
mod peak;
mod philox;
mod pool;
mod scratch;
#[cfg(test)]
mod shapes;
mod small_float;
mod stored;
#[cfg(test)]
mod testing;
mod update;

pub use adamw::AdamWStep;
pub use attention::{AttentionPlan, pattern_attention, pattern_attention_reference};
pub use composed::{narrowed, widened};
pub use conv::{OutputDtype, PreActivation, conv2d, conv2d_add, conv2d_reference};
pub use cpu::{Cpu, Isa, Precision, Supported};
pub use cross_entropy::{cross_entropy, cross_entropy_reference};
pub use dot::{dot, dot_reference};
#[cfg(all(any(feature = "vulkan", feature = "webgpu"), not(target_os = "macos")))]
pub use gpu_memory::gpu_memory_bytes;
pub use gumbel::{
    GumbelNoise, gumbel_softmax, gumbel_softmax_drawn, gumbel_softmax_drawn_reference,
    gumbel_softmax_reference, kl_to_uniform, kl_to_uniform_reference,
};
pub use linear::{Activation, linear, linear_add, linear_f32, linear_reference};
pub use norm::{layer_norm, layer_norm_reference};
pub use peak::peak_gflops;
pub use pool::{max_pool2, max_pool2_reference, upsample2, upsample2_reference};
pub use small_float::SmallFloat;
pub use stored::{stored, stored_reference};
pub use update::{
    adamw_, adamw_reference, add_, all_finite, changed, divide_, ema_, ema_reference, read, sum_of_squares,
};
