//! The layers that the models share (linear, layer norm, convolution), their initialisation, and
//! their parameters as host arrays, each with a role.
//!
//! Only layers are shared. `dvae`, `prior` and `rerank` each define their own architecture.

mod compute;
mod conv;
mod gradients;
mod init;
mod linear;
mod norm;
mod params;
mod role;
mod stored;

pub use compute::Compute;
pub use conv::Conv2d;
#[cfg(test)]
pub(crate) use gradients::host_gradients;
pub use gradients::{GradientSink, GradientSums, ParamGradient, Part, take_gradients};
pub use init::Init;
pub use linear::Linear;
pub use norm::LayerNorm;
pub(crate) use params::check_count;
pub use params::{HostTensor, Parameter, export, import, parameters, with_values, without_values};
pub use role::Role;
pub use stored::stored;
