//! The layers that the models share (linear, layer norm, convolution), their initialisation, and
//! their parameters as host arrays, each with a role.
//!
//! Only layers are shared. `dvae`, `prior` and `rerank` each define their own architecture.

mod compute;
mod conv;
mod init;
mod linear;
mod norm;
mod params;
mod role;
mod stored;

pub use compute::Compute;
pub use conv::Conv2d;
pub use init::Init;
pub use linear::Linear;
pub use norm::LayerNorm;
pub(crate) use params::check_count;
pub use params::{Collected, HostTensor, export, gradients, import};
pub use role::{Role, roles};
pub use stored::stored;
