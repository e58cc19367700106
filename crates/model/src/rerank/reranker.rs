//! A contrastive model with its tokenizer: pictures and sentences in, how well they fit out.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use tessera_text::{Bpe, Prompt};

use super::{Cleaning, Clip, patches};
use crate::nn::export;

/// Pictures and captions that are embedded at once.
const BATCH: usize = 32;

/// Scores pictures by a sentence.
pub struct Reranker {
    /// The two towers.
    pub clip: Clip,
    /// What captions are cut by.
    pub bpe: Bpe,
}

/// A caption as the text tower reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedCaption {
    /// As many ids as the tower has positions.
    pub ids: Vec<u32>,
    /// Tokens behind the text tower's last position.
    pub dropped_tokens: usize,
}

/// A caption's embedding and what of it was not read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadCaption {
    /// `[E]`, of unit length.
    pub embedding: Vec<f32>,
    /// Tokens behind the text tower's last position.
    pub dropped_tokens: usize,
}

impl Reranker {
    /// A contrastive model with its tokenizer.
    ///
    /// # Errors
    /// If the two do not fit each other.
    pub fn new(clip: Clip, bpe: Bpe) -> Result<Reranker> {
        let (words, vocab) = (bpe.vocab_size(), clip.config().text_vocab);
        // CLIP's vocabulary lists its two marks among its tokens, ours does not.
        let marks = if clip.config().cleaning == Cleaning::Clip { 0 } else { 2 };
        ensure!(
            words + marks <= vocab,
            "the tokenizer has {words} tokens, the text tower {vocab} with two marks"
        );
        Ok(Reranker { clip, bpe })
    }

    /// The tokens of a caption, cleaned as the model was trained.
    pub fn tokens(&self, caption: &str) -> Result<Vec<u32>> {
        match self.clip.config().cleaning {
            Cleaning::Tessera => self.bpe.encode(&Prompt::new(caption).text),
            Cleaning::Clip => self.bpe.encode(&tessera_text::clean_for_clip(caption)),
        }
    }

    /// Embeddings of captions; a caption that is too long is cut.
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

    /// A caption as ids; one that is too long is cut.
    pub fn encode(&self, caption: &str) -> Result<EncodedCaption> {
        let (ids, dropped_tokens) = self.clip.config().slots(&self.tokens(caption)?);
        Ok(EncodedCaption { ids, dropped_tokens })
    }

    /// Embeddings of captions, `[E]` each, of unit length.
    pub fn embed(&self, captions: &[&EncodedCaption]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::with_capacity(captions.len());
        for batch in captions.chunks(BATCH) {
            let ids: Vec<u32> = batch.iter().flat_map(|caption| caption.ids.iter().copied()).collect();
            embeddings.extend(rows(self.clip.embed_texts(&ids))?);
        }
        Ok(embeddings)
    }

    /// Embeddings of pictures of any sizes, `[E]` each, of unit length.
    pub fn pictures(&self, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        self.each(pictures, |patches| self.clip.embed_images(patches))
    }

    /// The same before they are given unit length, `[B, E]`.
    pub fn states(&self, pictures: &[RgbImage]) -> Result<Vec<f32>> {
        Ok(self.each(pictures, |patches| self.clip.image_states(patches))?.concat())
    }

    fn each(&self, pictures: &[RgbImage], embed: impl Fn(Tensor<3>) -> Tensor<2>) -> Result<Vec<Vec<f32>>> {
        let config = self.clip.config();
        let mut embeddings = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(BATCH) {
            let shape = [batch.len(), config.n_patches(), 3 * config.patch * config.patch];
            let data = TensorData::new(patches(batch, config), shape);
            embeddings.extend(rows(embed(Tensor::from_data(data, &self.clip.device())))?);
        }
        Ok(embeddings)
    }

    /// What cosines are multiplied by in training.
    pub fn scale(&self) -> f32 {
        self.clip.scale().into_scalar::<f32>()
    }

    /// A short name of the weights: figures by another model's features are other figures.
    pub fn fingerprint(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for weight in export(&self.clip) {
            hasher.update(weight.name.as_bytes());
            weight.values.iter().for_each(|value| hasher.update(&value.to_le_bytes()));
        }
        format!("{:08x}", hasher.finalize())
    }
}

/// `[B, E]` as rows on the host.
fn rows(x: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, e] = x.dims();
    let values: Vec<f32> = x.into_data().iter().collect();
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "an embedding is not finite; are the weights damaged?"
    );
    Ok(values.chunks(e).map(<[f32]>::to_vec).collect())
}

/// The cosine of two embeddings of unit length.
pub fn cosine_similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
