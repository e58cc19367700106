//! Drawing pictures (paper §2.6): a request with a caption goes in, a stream of events comes out:
//! tokens, previews, pictures.
//!
//! The library, the command line and the tests all use the same iterator of events.

mod batch;
mod generate;
mod int8;
mod logits;
mod mosaic;
mod packed;
mod parameters;
mod prefix_pool;
mod rank;
mod request;
mod sampler;
mod tensors;

pub use batch::{Batch, Job};
pub use generate::Drawing;
pub use int8::int8_nats_per_token;
pub use logits::choose;
pub use mosaic::{mosaics, tiles};
pub use parameters::Parameters;
pub use rank::Ranking;
pub use request::{
    CANDIDATES_EACH, DEFAULT_GUIDANCE, DEFAULT_N, DEFAULT_STRENGTH, DEFAULT_TOP_P, Event, Picture, Request,
    Sampling, Token, default_guidance, random_seed, trained_for_guidance,
};
pub use sampler::{KvSlots, Next, PrefixCache, Sampler};

#[cfg(test)]
mod tests;
