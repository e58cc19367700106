//! A contrastive model with its tokenizer: it scores how well pictures fit a sentence.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use tessera_text::{Bpe, Prompt};

use super::{Cleaning, Clip, patches};
use crate::nn::export;

/// The number of pictures or captions that are embedded together.
const BATCH: usize = 32;

/// Embeds pictures and captions, so that their cosine similarity scores how well they fit.
pub struct Reranker {
    /// The contrastive model.
    pub clip: Clip,
    /// The tokenizer of captions.
    pub bpe: Bpe,
}

/// A caption as the text tower reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCaption {
    /// The ids, one per position of the text tower.
    pub ids: Vec<u32>,
    /// The number of tokens that did not fit the text tower.
    pub dropped_tokens: usize,
}

/// A caption's embedding, and how many of its tokens were not read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadCaption {
    /// The embedding, `[E]`, of unit length.
    pub embedding: Vec<f32>,
    /// The number of tokens that did not fit the text tower.
    pub dropped_tokens: usize,
}

impl Reranker {
    /// A contrastive model with its tokenizer.
    ///
    /// # Errors
    /// If the two do not fit each other.
    pub fn new(clip: Clip, bpe: Bpe) -> Result<Reranker> {
        let (words, vocab) = (bpe.vocab_size(), clip.config().text_vocab);
        // CLIP's vocabulary contains the begin and the end token, Tessera's does not.
        let marks = if clip.config().cleaning == Cleaning::Clip { 0 } else { 2 };
        ensure!(
            words + marks <= vocab,
            "the tokenizer has {words} tokens, the text tower {vocab} with two marks"
        );
        Ok(Reranker { clip, bpe })
    }

    /// The tokens of a caption, cleaned like the captions that the model was trained on.
    pub fn tokens(&self, caption: &str) -> Result<Vec<u32>> {
        match self.clip.config().cleaning {
            Cleaning::Tessera => self.bpe.encode(&Prompt::new(caption).text),
            Cleaning::Clip => self.bpe.encode(&tessera_text::clean_for_clip(caption)),
        }
    }

    /// Embeds captions. One that is too long is cut.
    pub fn captions<S: AsRef<str>>(&self, captions: &[S]) -> Result<Vec<ReadCaption>> {
        let encoded = captions.iter().map(|caption| self.encode(caption.as_ref()));
        let encoded = encoded.collect::<Result<Vec<_>>>()?;
        let embeddings = self.embed(&encoded.iter().collect::<Vec<_>>())?;
        let read = |(caption, embedding): (EncodedCaption, _)| ReadCaption {
            embedding,
            dropped_tokens: caption.dropped_tokens,
        };
        Ok(encoded.into_iter().zip(embeddings).map(read).collect())
    }

    /// Encodes a caption as ids. One that is too long is cut.
    pub fn encode(&self, caption: &str) -> Result<EncodedCaption> {
        let (ids, dropped_tokens) = self.clip.config().slots(&self.tokens(caption)?);
        Ok(EncodedCaption { ids, dropped_tokens })
    }

    /// Embeds encoded captions: `[E]` each, of unit length.
    pub fn embed(&self, captions: &[&EncodedCaption]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::with_capacity(captions.len());
        for batch in captions.chunks(BATCH) {
            let ids: Vec<u32> = batch.iter().flat_map(|caption| caption.ids.iter().copied()).collect();
            embeddings.extend(rows(self.clip.embed_texts(&ids))?);
        }
        Ok(embeddings)
    }

    /// Embeds pictures of any sizes: `[E]` each, of unit length.
    pub fn pictures(&self, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        self.embed_in_batches(pictures, |patches| self.clip.embed_images(patches))
    }

    /// Like [`Reranker::pictures`], but not scaled to unit length: `[B, E]`, flat.
    pub fn states(&self, pictures: &[RgbImage]) -> Result<Vec<f32>> {
        Ok(self.embed_in_batches(pictures, |patches| self.clip.image_states(patches))?.concat())
    }

    /// Preprocesses pictures and applies `embed` to one batch after another.
    fn embed_in_batches(
        &self,
        pictures: &[RgbImage],
        embed: impl Fn(Tensor<3>) -> Tensor<2>,
    ) -> Result<Vec<Vec<f32>>> {
        let config = self.clip.config();
        let mut embeddings = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(BATCH) {
            let shape = [batch.len(), config.n_patches(), 3 * config.patch * config.patch];
            let data = TensorData::new(patches(batch, config), shape);
            embeddings.extend(rows(embed(Tensor::from_data(data, &self.clip.device())))?);
        }
        Ok(embeddings)
    }

    /// The factor of cosine similarities in the contrastive loss.
    pub fn scale(&self) -> f32 {
        self.clip.scale().into_scalar::<f32>()
    }

    /// A short hash of the weights. Metrics that were computed with other weights are not
    /// comparable.
    pub fn fingerprint(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for weight in export(&self.clip) {
            hasher.update(weight.name.as_bytes());
            weight.values.iter().for_each(|value| hasher.update(&value.to_le_bytes()));
        }
        format!("{:08x}", hasher.finalize())
    }
}

/// Copies the rows of `[B, E]` to the host.
fn rows(x: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, e] = x.dims();
    let values: Vec<f32> = x.into_data().iter().collect();
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "an embedding is not finite; are the weights damaged?"
    );
    Ok(values.chunks(e).map(<[f32]>::to_vec).collect())
}

/// The cosine similarity of two embeddings of unit length.
pub fn cosine_similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
