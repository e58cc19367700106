//! Feature extractors: networks that map a picture to the feature vector on which the distances
//! between sets of pictures are measured.

use anyhow::Result;
use image::RgbImage;

/// The output of a network for a batch of `B` pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// The feature vectors, `[B, D]`.
    pub features: Vec<f32>,
    /// The logits of `C` classes, `[B, C]`. Empty if the network has no classifier.
    pub logits: Vec<f32>,
}

/// A network that extracts features from pictures.
pub trait FeatureExtractor: Sync {
    /// The name of the network, its weights and the layer of the features. Metrics are comparable
    /// only if this name is equal.
    fn name(&self) -> String;
    /// `D`, the number of features per picture.
    fn dims(&self) -> usize;
    /// `C`, the number of classes. 0 if the network has no classifier.
    fn classes(&self) -> usize;
    /// Extracts the features of `pictures`. They may have any size: the network resizes each
    /// picture to its input size.
    ///
    /// # Errors
    /// If a picture cannot be processed.
    fn extract(&self, pictures: &[RgbImage]) -> Result<Features>;
}
