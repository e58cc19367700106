//! Draws many captions and measures the drawings, for several numbers of candidates (paper §3,
//! §3.4).

use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::{Progress, Reporter};
use tessera_data::{Dataset, evenly};
use tessera_model::rerank::Reranker;
use tessera_model::{Sampling, Tessera};

use crate::drawn::{Draws, draw_each};
use crate::protocol::Protocol;
use crate::rerank_curve::{CurvePoint, Real, rerank_curve};
use crate::statistics::read_statistics;
use crate::store::Store;

/// A study of one model's drawings.
pub struct DrawnStudy<'a> {
    /// The model that draws.
    pub tessera: &'a Tessera,
    /// The name of the model, which is recorded with the drawings.
    pub model: &'a str,
    /// The contrastive model that evaluates the drawings. It must not be the one that ranks them.
    pub judge: &'a Reranker,
    /// The folder of the drawings. Drawings that it already contains are reused.
    pub drawings: &'a Path,
    /// The numbers of candidates, the seed and the sampling settings.
    pub draws: Draws,
    /// A file of statistics that replaces the real pictures, if any.
    pub reference: Option<&'a Path>,
    /// Receives the progress.
    pub reporter: &'a dyn Reporter,
}

impl DrawnStudy<'_> {
    /// Draws the captions that are missing in the folder, and measures all drawings against the
    /// pictures `real`. The reference file is read before drawing starts, so that an invalid one
    /// fails early.
    ///
    /// # Errors
    /// If several candidates are drawn but the model has no reranker, or something cannot be read,
    /// drawn or measured.
    pub fn measure(
        &self,
        captions: &[String],
        real: impl Iterator<Item = Result<RgbImage>>,
        protocol: Protocol,
    ) -> Result<Vec<CurvePoint>> {
        let network = protocol.distance()?;
        let reference = self.reference.map(|file| read_statistics(file, network)).transpose()?;
        self.draw(captions)?;
        let real = match reference {
            Some(gaussian) => Real { gaussian, vectors: None },
            None => {
                let mut store = Store::open(None, "", network)?;
                store.extract(network, real, |_| ())?;
                Real { gaussian: protocol.gaussian(&store)?, vectors: Some(store.vectors()?) }
            }
        };
        rerank_curve(self.drawings, &self.draws.best_of, captions, &real, protocol, self.judge)
    }

    fn draw(&self, captions: &[String]) -> Result<()> {
        let most = self.draws.best_of.last().copied().unwrap_or(1);
        ensure!(
            most == 1 || self.tessera.reranker.is_some(),
            "--of {most}: the model has no reranker; `tessera pack --rerank` adds one"
        );
        let total = captions.len() as u64;
        draw_each((self.tessera, self.model), captions, &self.draws, self.drawings, |done| {
            let done = done as u64;
            self.reporter.progress(Progress { task: "drawing captions", done, total, detail: "" });
        })
    }
}

/// Returns the powers of two below `most`, then `most`.
pub fn doublings(most: usize) -> Vec<usize> {
    let below = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < most);
    below.chain([most.max(1)]).collect()
}

/// Returns the first captions of `n` evenly chosen held-out pictures, or of all if `n` is `None`.
///
/// # Errors
/// If nothing is held out, or a picture has no caption.
pub fn held_out_captions(dataset: &Dataset, n: Option<usize>) -> Result<Vec<String>> {
    let val = &dataset.val;
    ensure!(!val.is_empty(), "the data set holds out no pictures; make it with --holdout 5");
    let chosen = evenly(n.unwrap_or(val.len()).max(1), val.len());
    chosen.map(|i| Ok(val[i].caption()?.to_string())).collect()
}

/// Returns one line that describes how tokens were sampled.
pub fn describe_sampling(sampling: &Sampling) -> String {
    let Sampling { temperature, top_k, top_p, guidance } = sampling;
    let top_k = top_k.map(|k| format!("top-k {k}"));
    let top_p = top_p.filter(|p| *p < 1.0).map(|p| format!("top-p {p}"));
    let guidance = sampling.is_guided().then(|| format!("guidance {guidance}"));
    let changes: Vec<String> = [top_k, top_p, guidance].into_iter().flatten().collect();
    match (changes.is_empty(), *temperature == 1.0) {
        (true, true) => "sampled as in the paper: temperature 1, all tokens, no guidance".into(),
        (true, false) => format!("sampled at temperature {temperature}, all tokens, no guidance"),
        (false, _) => format!("sampled at temperature {temperature}, {}", changes.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doublings_end_with_the_largest_number() {
        assert_eq!(doublings(1), [1]);
        assert_eq!(doublings(32), [1, 2, 4, 8, 16, 32]);
        assert_eq!(doublings(36), [1, 2, 4, 8, 16, 32, 36]);
    }

    #[test]
    fn sampling_line_names_the_differences_from_the_paper() {
        let line = |sampling| describe_sampling(&sampling);
        assert!(line(Sampling::paper()).starts_with("sampled as in the paper: temperature 1"));
        let own = Sampling { top_p: Some(0.7), guidance: 1.5, ..Sampling::paper() };
        assert_eq!(line(own), "sampled at temperature 1, top-p 0.7, guidance 1.5");
        let cold = Sampling { temperature: 0.5, top_p: Some(1.0), ..Sampling::paper() };
        assert_eq!(line(cold), "sampled at temperature 0.5, all tokens, no guidance");
    }
}
