//! Pairs of a picture and its caption, embedded by a contrastive model.

use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::Reporter;
use tessera_data::{Captioned, Pictures, Sample, evenly};
use tessera_model::rerank::Reranker;

use crate::embedding::Embedding;
use crate::features::FeatureExtractor;
use crate::set::{BATCH, report_skipped};
use crate::vectors::Vectors;

/// The number of held-out pairs with which retrieval is measured.
const HELD_OUT_PAIRS: usize = 100;

/// The embeddings of pictures and their captions.
pub struct Pairs {
    /// The embeddings of the pictures.
    pub images: Vectors,
    /// The embeddings of the captions, in the same order.
    pub texts: Vectors,
    /// The number of captions that were truncated because they are too long for the text encoder.
    truncated: usize,
}

impl Pairs {
    /// Embeds pairs, one batch at a time.
    ///
    /// # Errors
    /// If a pair cannot be read or embedded.
    pub fn embed(
        reranker: &Reranker,
        pairs: impl Iterator<Item = Result<(RgbImage, String)>>,
    ) -> Result<Pairs> {
        let name = Embedding::new::<&str>(reranker, &[])?.name();
        let [images, texts] = [(); 2].map(|()| Vectors::new(&name, reranker.clip.config().embed));
        let mut embedded = Pairs { images, texts, truncated: 0 };
        let mut pairs = pairs.peekable();
        while pairs.peek().is_some() {
            let (pictures, captions): (Vec<RgbImage>, Vec<String>) =
                pairs.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?.into_iter().unzip();
            embedded.images.push_all(&reranker.pictures(&pictures)?.concat())?;
            for caption in reranker.captions(&captions)? {
                embedded.texts.push_all(&caption.embedding)?;
                embedded.truncated += usize::from(caption.dropped_tokens > 0);
            }
        }
        Ok(embedded)
    }

    /// Embeds evenly chosen held-out pictures with their first captions.
    ///
    /// # Errors
    /// As for [`Pairs::embed`].
    pub fn held_out(reranker: &Reranker, val: &[Sample]) -> Result<Pairs> {
        let pair = |i: usize| Ok((val[i].middle(), val[i].caption()?.to_string()));
        Pairs::embed(reranker, evenly(HELD_OUT_PAIRS, val.len()).map(pair))
    }

    /// Embeds all pictures of the folder `dir` that have a caption, and reports how many have none.
    ///
    /// # Errors
    /// As for [`Pairs::embed`], and if no picture has a caption.
    pub fn of_folder(reranker: &Reranker, dir: &Path, reporter: &dyn Reporter) -> Result<Pairs> {
        let pictures = Pictures::open(dir)?;
        let mut without = 0;
        let mut reader = pictures.from(0);
        let pairs = reader.by_ref().filter_map(|picture| match picture {
            Ok(Captioned { image, caption: Some(caption) }) => Some(Ok((image, caption))),
            Ok(Captioned { caption: None, .. }) => {
                without += 1;
                None
            }
            Err(error) => Some(Err(error)),
        });
        let pairs = Pairs::embed(reranker, pairs)?;
        report_skipped(dir, reader.skipped(), reporter);
        let shown = dir.display();
        ensure!(
            !pairs.images.is_empty(),
            "no picture in {shown} has a caption; wanted NAME.txt beside NAME.png"
        );
        if without > 0 {
            reporter.note(&format!("{shown}: skipped {without} pictures without a caption"));
        }
        if pairs.truncated > 0 {
            reporter.note(&format!(
                "{} captions are too long for the text encoder; their ends are ignored",
                pairs.truncated
            ));
        }
        Ok(pairs)
    }
}
