//! Reranking (paper §2.6): of many candidates the few are kept that a contrastive model finds likest to the caption.

use anyhow::{Result, ensure};
use image::RgbImage;

use super::Picture;
use crate::rerank::{Reranker, cosine};

/// Keeps the best of a stream of pictures; holds no more than it keeps, whatever it is shown.
pub struct Ranking<'a> {
    reranker: &'a Reranker,
    /// The caption's embedding, of unit length.
    caption: Vec<f32>,
    keep: usize,
    /// Best first.
    best: Vec<Picture>,
}

impl<'a> Ranking<'a> {
    /// Will keep `keep` pictures of `caption`.
    ///
    /// # Errors
    /// If `keep` is 0.
    pub fn new(reranker: &'a Reranker, caption: &str, keep: usize) -> Result<Ranking<'a>> {
        ensure!(keep > 0, "the best 0 pictures: wanted at least 1");
        let caption = reranker.captions(&[caption])?.remove(0).embedding;
        Ok(Ranking { reranker, caption, keep, best: Vec::new() })
    }

    /// Scores pictures together and keeps the best so far. Of equal ones that with the smaller index is better, so that the order
    /// does not depend on how they come.
    pub(super) fn add(&mut self, pictures: Vec<Picture>) -> Result<()> {
        let (images, rest): (Vec<RgbImage>, Vec<_>) =
            pictures.into_iter().map(|picture| (picture.image, (picture.index, picture.tokens))).unzip();
        let embeddings = self.reranker.pictures(&images)?;
        for ((image, (index, tokens)), embedding) in images.into_iter().zip(rest).zip(embeddings) {
            let score = Some(cosine(&embedding, &self.caption));
            self.best.push(Picture { index, tokens, image, score });
        }
        let order = |a: &Picture, b: &Picture| {
            let score = |picture: &Picture| picture.score.unwrap_or(f32::NEG_INFINITY);
            score(b).total_cmp(&score(a)).then(a.index.cmp(&b.index))
        };
        self.best.sort_by(order);
        self.best.truncate(self.keep);
        Ok(())
    }

    /// The pictures kept, best first.
    pub(super) fn take(&mut self) -> Vec<Picture> {
        std::mem::take(&mut self.best)
    }
}
