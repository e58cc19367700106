//! The contrastive model as a feature extractor. With it every metric can be measured without a
//! download.

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_model::rerank::Reranker;

use crate::features::{FeatureExtractor, Features};

/// A contrastive model as a feature extractor. The features are the picture embeddings before
/// normalization, as in CLIP-FID (Kynkäänniemi et al. 2023). The logits are the cosines with one
/// caption per class, times the model's logit scale.
pub struct Embedding<'a> {
    reranker: &'a Reranker,
    name: String,
    /// The embeddings of the captions, `[C, E]`, of length 1.
    classes: Vec<Vec<f32>>,
}

impl<'a> Embedding<'a> {
    /// Creates a feature extractor from `reranker`. `classes` are captions, one per class; empty if
    /// no logits are needed.
    ///
    /// # Errors
    /// If a caption cannot be embedded.
    pub fn new<S: AsRef<str>>(reranker: &'a Reranker, classes: &[S]) -> Result<Embedding<'a>> {
        let name = match classes.len() {
            0 => format!("contrastive model {}", reranker.fingerprint()),
            n => format!("contrastive model {}, {n} captions as classes", reranker.fingerprint()),
        };
        let classes = reranker.captions(classes)?.into_iter().map(|caption| caption.embedding).collect();
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
