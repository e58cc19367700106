//! What a network sees in a picture: the vectors that distances between sets of pictures are measured by.

use anyhow::Result;
use image::RgbImage;

/// What a network made of a batch of `B` pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// `[B, D]`
    pub features: Vec<f32>,
    /// `[B, C]` scores of `C` classes before the softmax; empty if the network knows no classes.
    pub logits: Vec<f32>,
}

/// A network that sees pictures.
pub trait FeatureExtractor: Sync {
    /// Its name, its weights and the layer that is read: figures by other features are other figures.
    fn name(&self) -> String;
    /// `D`, numbers a picture.
    fn dims(&self) -> usize;
    /// `C`, classes that it has scores of.
    fn classes(&self) -> usize;
    /// Looks at `pictures`, which may have any sizes: each is brought to the network's own by the network's own rule.
    fn extract(&self, pictures: &[RgbImage]) -> Result<Features>;
}
