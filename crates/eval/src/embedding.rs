//! The contrastive model as a network of features: what makes every measurement possible without a download.

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_model::rerank::Reranker;

use crate::features::{FeatureExtractor, Features};

/// A contrastive model's picture embeddings, before they are given unit length as in CLIP-FID (Kynkäänniemi et al. 2023), and as
/// scores of classes its cosines with their captions, times its temperature.
pub struct Embedding<'a> {
    reranker: &'a Reranker,
    name: String,
    /// `[C, E]`, of unit length.
    classes: Vec<Vec<f32>>,
}

impl<'a> Embedding<'a> {
    /// The features of `reranker`; `classes` are captions, a class each, or none if no scores of classes are wanted.
    pub fn new<S: AsRef<str>>(reranker: &'a Reranker, classes: &[S]) -> Result<Embedding<'a>> {
        let name = match classes.len() {
            0 => format!("contrastive model {}", reranker.fingerprint()),
            n => format!("contrastive model {}, {n} captions as classes", reranker.fingerprint()),
        };
        let classes = reranker.captions(classes)?.into_iter().map(|read| read.embedding).collect();
        Ok(Embedding { reranker, name, classes })
    }
}

impl FeatureExtractor for Embedding<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn dims(&self) -> usize {
        self.reranker.clip.config().embed
    }

    fn classes(&self) -> usize {
        self.classes.len()
    }

    fn extract(&self, pictures: &[RgbImage]) -> Result<Features> {
        let (dims, scale) = (self.dims(), self.reranker.scale());
        let features = self.reranker.states(pictures)?;
        let logits = features.chunks(dims).flat_map(|row| {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            let cosine_similarity =
                move |class: &Vec<f32>| row.iter().zip(class).map(|(a, b)| a * b).sum::<f32>() / length;
            self.classes.iter().map(move |class| scale * cosine_similarity(class))
        });
        let logits: Vec<f32> = logits.collect();
        ensure!(
            features.len() == pictures.len() * dims,
            "{} features for {} pictures",
            features.len(),
            pictures.len()
        );
        Ok(Features { features, logits })
    }
}
