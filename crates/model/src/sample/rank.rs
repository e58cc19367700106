//! Reranking (paper §2.6): of many candidates, keeps the few that fit the caption best according to
//! a contrastive model.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use image::RgbImage;
use rayon::prelude::*;

use super::Picture;
use crate::rerank::{EncodedCaption, Reranker, cosine_similarity};

/// Keeps the best pictures of a stream. It stores only these, however many it scores.
pub struct Ranking<'a> {
    reranker: &'a Reranker,
    caption: EncodedCaption,
    /// The caption's embedding, of unit length; computed when the first picture comes.
    embedding: Option<Vec<f32>>,
    /// The number of pictures to keep.
    keep: usize,
    /// The best pictures so far, best first.
    best: Vec<Picture>,
}

impl<'a> Ranking<'a> {
    /// A ranking that keeps the best `keep` pictures of `caption`.
    ///
    /// # Errors
    /// If `keep` is 0, or the caption cannot be encoded.
    pub fn new(reranker: &'a Reranker, caption: &str, keep: usize) -> Result<Ranking<'a>> {
        ensure!(keep > 0, "the best 0 pictures: wanted at least 1");
        let caption = reranker.encode(caption)?;
        Ok(Ranking { reranker, caption, embedding: None, keep, best: Vec::new() })
    }

    /// The number of tokens at the end of the caption that the reranker does not read.
    pub fn dropped_tokens(&self) -> usize {
        self.caption.dropped_tokens
    }

    /// Scores new pictures of several rankings and keeps the best of each. Each reranker embeds all
    /// its pictures together. If it has to embed the caption of one ranking, it embeds those of
    /// all, also of rankings without new pictures, because that is faster.
    pub(super) fn add(additions: &mut [(&mut Ranking, Vec<Picture>)]) -> Result<()> {
        for together in additions.chunk_by_mut(|(a, _), (b, _)| std::ptr::eq(a.reranker, b.reranker)) {
            let reranker = together[0].0.reranker;
            let unread = |(ranking, pictures): &(&mut Ranking, Vec<Picture>)| {
                ranking.embedding.is_none() && !pictures.is_empty()
            };
            if together.iter().any(unread) {
                read_captions(reranker, together)?;
            }
            let images: Vec<RgbImage> = together
                .iter()
                .flat_map(|(_, pictures)| pictures.iter().map(|picture| picture.image.clone()))
                .collect();
            let mut embeddings = embed(reranker, &images)?.into_iter();
            for (ranking, pictures) in together {
                let pictures = std::mem::take(pictures);
                let embeddings = embeddings.by_ref().take(pictures.len());
                ranking.keep_best(pictures.into_iter().zip(embeddings));
            }
        }
        Ok(())
    }

    /// Merges scored pictures into the best ones. Of identical pictures only the first is kept,
    /// unless there are fewer than `keep` different ones.
    fn keep_best(&mut self, pictures: impl Iterator<Item = (Picture, Vec<f32>)>) {
        let caption = self.embedding.as_deref().unwrap_or_default();
        let scored = pictures.map(|(picture, embedding)| {
            let score = Some(cosine_similarity(&embedding, caption));
            Picture { score, ..picture }
        });
        self.best.extend(scored);
        best_first(&mut self.best);
        let mut seen = BTreeSet::new();
        let (mut differing, repeated): (Vec<Picture>, Vec<Picture>) = std::mem::take(&mut self.best)
            .into_iter()
            .partition(|picture| seen.insert(picture.tokens.clone()));
        differing.extend(repeated);
        differing.truncate(self.keep);
        self.best = differing;
    }

    /// Takes the best pictures, best first.
    pub(super) fn take(&mut self) -> Vec<Picture> {
        best_first(&mut self.best);
        std::mem::take(&mut self.best)
    }
}

/// Sorts pictures by score, best first. Of equal scores the smaller index comes first, so that the
/// result does not depend on the order in which pictures are finished.
fn best_first(pictures: &mut [Picture]) {
    let score = |picture: &Picture| picture.score.unwrap_or(f32::NEG_INFINITY);
    pictures.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.index.cmp(&b.index)));
}

/// Embeds the captions that are not embedded yet.
fn read_captions(reranker: &Reranker, rankings: &mut [(&mut Ranking, Vec<Picture>)]) -> Result<()> {
    let mut unread: Vec<&mut Ranking> = rankings
        .iter_mut()
        .map(|(ranking, _)| &mut **ranking)
        .filter(|ranking| ranking.embedding.is_none())
        .collect();
    let captions: Vec<&EncodedCaption> = unread.iter().map(|ranking| &ranking.caption).collect();
    let embeddings = reranker.embed(&captions)?;
    unread.iter_mut().zip(embeddings).for_each(|(ranking, embedding)| ranking.embedding = Some(embedding));
    Ok(())
}

/// Embeds pictures, to unit length each. The pictures are divided among the threads.
fn embed(reranker: &Reranker, images: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
    let together = images.len().div_ceil(rayon::current_num_threads()).max(1);
    let parts: Result<Vec<_>> = images.par_chunks(together).map(|images| reranker.pictures(images)).collect();
    Ok(parts?.into_iter().flatten().collect())
}
