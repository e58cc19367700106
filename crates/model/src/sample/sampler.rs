//! The sampler: a prior that computes the logits of many candidates together, one position at a
//! time.
//!
//! A caption runs once, through the same blocks as in training; all its candidates share its KV
//! cache. For a picture, each layer caches only the positions that its attention pattern can still
//! reach ([`Pattern::cache_rows`]). Candidates in the same step may be at different positions. A
//! test checks that the logits equal those of [`Prior::forward`].
//!
//! On the processor the weights are packed ([`Packed`]); on other devices a step composes Burn's
//! operations ([`Tensors`]).
//!
//! [`Pattern::cache_rows`]: crate::prior::Pattern::cache_rows

use anyhow::{Result, ensure};
use burn::module::Param;
use burn::tensor::{Device, FloatDType, Tensor};
use tessera_base::{DeviceFailed, Internal};
use tessera_kernels::Cpu;
use tessera_kernels::decode::{KvCache, Weights};

use super::packed::{Packed, Work};
use super::tensors::{TensorCache, Tensors};
use crate::prior::{Prior, PriorConfig, Stream, caption_slots};

/// A prior that is ready for sampling.
pub struct Sampler {
    prior: Prior,
    engine: Engine,
}

/// What computes a step.
enum Engine {
    Packed(Box<Packed>),
    Tensors(Box<Tensors>),
}

/// The KV caches of all layers.
enum Caches {
    Packed(Vec<KvCache>),
    Tensors(Vec<TensorCache>),
}

/// The keys and values of captions, one cache per layer. A caption is one sequence of each cache.
pub struct PrefixCache(Caches);

/// The keys and values of pictures in progress, one cache per layer. A slot is one sequence of each
/// cache.
pub struct KvSlots {
    caches: Caches,
    n: usize,
    work: Work,
}

/// One row of a step: the next token of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The index of the slot's caption in the prefix cache.
    pub caption: usize,
    /// The index of the slot. Earlier steps must have processed all earlier positions of its
    /// picture.
    pub slot: usize,
    /// The position of the next token in raster order. At 0 the slot starts a new picture.
    pub at: usize,
    /// The token before this position; ignored at position 0.
    pub previous: u32,
}

impl Next {
    /// Rows for position `at` of the first slots, one for each token of `previous`. Slot `i` has
    /// caption `i`.
    pub fn all(at: usize, previous: &[u32]) -> Vec<Next> {
        let next = |(slot, &previous)| Next { caption: slot, slot, at, previous };
        previous.iter().enumerate().map(next).collect()
    }

    /// The token that the model reads: the previous one, or the start token.
    pub(super) fn input(&self, config: &PriorConfig) -> usize {
        if self.at == 0 { config.image_vocab } else { self.previous as usize }
    }
}

impl Sampler {
    /// Prepares `prior` for sampling on its device. `weights` is the precision in which the processor
    /// stores the matrices of the layers and of the head. Other devices multiply what the prior
    /// holds.
    ///
    /// # Errors
    /// If the weights cannot be read from their device.
    pub fn new(prior: &Prior, weights: Weights) -> Result<Sampler> {
        match prior.device() == Device::flex() {
            true => {
                let engine = Engine::Packed(Box::new(Packed::new(prior, weights)?));
                Ok(Sampler { engine, prior: prior.clone() })
            }
            false => Ok(Sampler::of_tensors(prior)),
        }
    }

    /// Prepares `prior` for sampling with Burn's operations.
    pub(super) fn of_tensors(prior: &Prior) -> Sampler {
        let prior = prior.clone().narrowed();
        Sampler { engine: Engine::Tensors(Box::new(Tensors::new(&prior))), prior }
    }

    /// Whether steps run on the processor, by its packed kernels.
    pub(super) fn is_on_cpu(&self) -> bool {
        matches!(self.engine, Engine::Packed(_))
    }

    /// The instructions and the precision that the processor computes with.
    pub fn cpu(&self) -> Cpu {
        self.prior.cpu()
    }

    /// The sizes of the prior.
    pub fn config(&self) -> &PriorConfig {
        self.prior.config()
    }

    /// Runs captions through the text positions and returns their keys and values. A caption is a
    /// slice of BPE tokens.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn read(&self, captions: &[&[u32]]) -> Result<PrefixCache> {
        let mut read = self.new_prefix_cache(captions.len());
        self.read_into(&mut read, &(0..captions.len()).collect::<Vec<_>>(), captions)?;
        Ok(read)
    }

    /// An empty cache for `n` captions, to be filled by [`Sampler::read_into`].
    pub fn new_prefix_cache(&self, n: usize) -> PrefixCache {
        PrefixCache(match &self.engine {
            Engine::Packed(packed) => Caches::Packed(packed.text_caches(n)),
            Engine::Tensors(tensors) => Caches::Tensors(tensors.text_caches(n)),
        })
    }

    /// Like [`Sampler::read`], but stores the keys and values of caption `i` as sequence
    /// `prefixes[i]` of `read`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    ///
    /// # Panics
    /// If `read` is of a sampler on another device.
    pub fn read_into(&self, read: &mut PrefixCache, prefixes: &[usize], captions: &[&[u32]]) -> Result<()> {
        let config = self.config();
        let slots = captions.iter().flat_map(|caption| caption_slots(caption, config).0).collect();
        let stream = Stream::new(captions.len(), slots, Vec::new(), config)?;
        match (&self.engine, &mut read.0) {
            (Engine::Packed(packed), Caches::Packed(caches)) => {
                packed.read_into(&self.prior, &stream, prefixes, caches)
            }
            (Engine::Tensors(tensors), Caches::Tensors(caches)) => {
                tensors.read_into(&self.prior, &stream, prefixes, caches);
                Ok(())
            }
            _ => panic!("{OTHER_DEVICE}"),
        }
    }

    /// A cache for `n` pictures in progress.
    pub fn new_slots(&self, n: usize) -> KvSlots {
        let caches = match &self.engine {
            Engine::Packed(packed) => Caches::Packed(packed.picture_caches(n)),
            Engine::Tensors(tensors) => Caches::Tensors(tensors.picture_caches(n)),
        };
        KvSlots { caches, n, work: Work::default() }
    }

    /// Computes the logits of the next tokens, `[rows, image_vocab]`, one row per entry of `next`.
    ///
    /// # Errors
    /// If a previous token is outside the vocabulary, a picture is already complete, there is no
    /// such slot, or the device fails.
    ///
    /// # Panics
    /// If `next` contains a slot twice, there is no such caption, or a cache is of a sampler on
    /// another device.
    pub fn step<'a>(&self, read: &PrefixCache, slots: &'a mut KvSlots, next: &[Next]) -> Result<&'a [f32]> {
        let config = self.config();
        for row in next {
            self.check(row, slots.n)?;
        }
        let KvSlots { caches, work, .. } = slots;
        match (&self.engine, &read.0, caches) {
            (Engine::Packed(packed), Caches::Packed(text), Caches::Packed(pictures)) => {
                // Starting parallel work has less overhead on a thread of the pool than outside of it.
                rayon::scope(|_| packed.step(text, pictures, work, next));
            }
            (Engine::Tensors(tensors), Caches::Tensors(text), Caches::Tensors(pictures)) => {
                let logits = floats(tensors.step(text, pictures, next));
                work.logits = logits.map_err(|error| DeviceFailed(error.to_string()))?;
                debug_assert_eq!(work.logits.len(), next.len() * config.image_vocab);
            }
            _ => panic!("{OTHER_DEVICE}"),
        }
        Ok(&work.logits)
    }

    /// Checks a row of a step with `n_slots` slots.
    fn check(&self, row: &Next, n_slots: usize) -> Result<()> {
        let config = self.config();
        ensure!(
            row.at < config.image_len(),
            "position {}: a picture has {} tokens",
            row.at,
            config.image_len()
        );
        ensure!(row.slot < n_slots, "slot {}: there are {n_slots} slots", row.slot);
        let known = row.at == 0 || (row.previous as usize) < config.image_vocab;
        ensure!(known, "picture token {}: wanted less than {}", row.previous, config.image_vocab);
        Ok(())
    }
}

const OTHER_DEVICE: &str = "a KV cache is of a sampler on another device";

pub(super) fn values<const D: usize>(param: &Param<Tensor<D>>) -> Result<Vec<f32>> {
    floats(param.val())
}

pub(super) fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.without_autodiff().cast(FloatDType::F32).try_into_data().map_err(Internal::debug)?;
    Ok(data.try_to_vec::<f32>().map_err(Internal::debug)?)
}
