//! The few tensor operations that the models share: linear, layer norm, same-padding convolution, init.
//!
//! Operations are shared here; architectures are not: `dvae` and `prior` each spell out their own.

mod conv;
mod init;
mod linear;
mod norm;
mod stored;

pub use conv::Conv2d;
pub use init::Init;
pub use linear::Linear;
pub use norm::LayerNorm;
pub use stored::stored;
