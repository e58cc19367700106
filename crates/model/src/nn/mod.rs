//! The few tensor operations that the models share: linear, layer norm, same-padding convolution, init; and their
//! parameters as host arrays, each with its role.
//!
//! Operations are shared here; architectures are not: `dvae` and `prior` each spell out their own.

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
