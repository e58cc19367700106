//! Drawing (paper §2.6): a caption in, a stream of events out: tokens, previews, pictures.
//!
//! Library, command and tests all consume the same iterator.

mod batch;
mod generate;
mod int8;
mod logits;
mod mosaic;
mod parameters;
mod prefix_pool;
mod rank;
mod request;
mod sampler;

pub use batch::{Batch, Job};
pub use generate::Drawing;
pub use int8::int8_nats_per_token;
pub use logits::choose;
pub use mosaic::mosaics;
pub use parameters::Parameters;
pub use rank::Ranking;
pub use request::{
    DEFAULT_GUIDANCE, DEFAULT_STRENGTH, DEFAULT_TOP_P, Event, Picture, Request, Sampling, Token,
    default_guidance, random_seed, trained_for_guidance,
};
pub use sampler::{KvSlots, Next, PrefixCache, Sampler};

#[cfg(test)]
mod tests;
