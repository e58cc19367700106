//! Zero-shot evaluation of a model of scenes on combinations that are not in the training data
//! (paper §3.3): whether a judge finds the true picture that belongs to the drawing, whether simple
//! attributes are right, how well a given upper panel is continued, and how much the drawings of
//! one caption differ.
//!
//! The judge and the probes make mistakes too. Each figure is therefore reported together with its
//! value for true pictures and, where it exists, its value by chance.

mod figures;
mod panels;
mod probes;
mod retrieval;
mod variety;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use tessera_base::pixels::psnr;
use tessera_data::sources::scenes::Difference;
use tessera_data::sources::{CombinationKind, HeldOutCase, Scenes};
use tessera_model::rerank::Reranker;
use tessera_model::{Event, Request, Sampling, Tessera};

use self::panels::{lower_half, upper_tokens};
use self::probes::probe;
use self::retrieval::find;
use self::variety::mean_pairwise_distance;
use crate::drawn::SEEDS_APART;

pub use figures::{KindFigures, Mistakes, ZeroShotFigure, zero_shot_figures};
pub use probes::Probe;
pub use retrieval::Found;

/// The maximum number of drawings of a caption that are kept, and the number of true pictures that
/// they are compared with.
const SHOWN: usize = 9;
/// This offset is added to the index of a case for the seed of its second drawing, which continues
/// a panel.
const CONTINUED: u64 = 1 << 32;

/// A zero-shot evaluation: the model, the judge, the scenes and the sampling settings.
pub struct ZeroShot<'a> {
    tessera: &'a Tessera,
    judge: &'a Reranker,
    scenes: &'a Scenes,
    request: Request,
}

/// The result for one held-out combination.
#[derive(Debug, Clone, Serialize)]
pub struct CaseResult {
    /// The index in the held-out list.
    pub index: usize,
    /// The kind of the combination.
    pub kind: CombinationKind,
    /// The caption that was drawn.
    pub caption: String,
    /// The retrieval of the true picture with the best drawing as the query.
    pub drawn: Found,
    /// How the nearest wrong picture differs, if the true picture is not the nearest.
    pub mistaken_for: Option<Difference>,
    /// The retrieval of the true picture with another true picture as the query.
    pub real: Found,
    /// The results of the probes.
    pub probes: Vec<Probed>,
    /// The continuation of the upper panel. `None` unless the combination is a panel.
    pub panel: Option<PanelResult>,
    /// How much the kept drawings differ. `None` if there is only one.
    pub variety: Option<Variety>,
    /// A true picture, the best drawing, and the wrong picture that is nearest to the drawing.
    #[serde(skip)]
    pub pictures: [RgbImage; 3],
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Probed {
    /// The probe.
    pub probe: Probe,
    /// Whether the best drawing passes.
    pub drawn: bool,
    /// Whether a true picture passes.
    pub real: bool,
    /// The fraction of unrelated pictures that pass.
    pub unrelated: f64,
}

/// The result for a lower panel that was drawn below the true upper panel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PanelResult {
    /// The PSNR of the drawn lower panel in dB.
    pub psnr_db: f64,
    /// The PSNR of the dVAE's reconstruction of the true lower panel in dB.
    pub tokens_psnr_db: f64,
    /// The retrieval of the true lower panel with the drawn one as the query.
    pub drawn: Found,
    /// The retrieval of the true lower panel with the dVAE's reconstruction of it as the query.
    pub tokens: Found,
}

/// The mean pairwise distance between the pictures of one caption.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Variety {
    /// The value for the kept drawings.
    pub drawn: f64,
    /// The value for the same number of true pictures.
    pub real: f64,
}

impl<'a> ZeroShot<'a> {
    /// Prepares an evaluation that draws `candidates` per caption and measures the best. `judge`
    /// must not be the model that ranks them.
    ///
    /// # Errors
    /// If there are no candidates, the model cannot rank several, or its grid has no upper half.
    pub fn new(
        tessera: &'a Tessera,
        judge: &'a Reranker,
        scenes: &'a Scenes,
        (candidates, seed): (usize, u64),
        sampling: Sampling,
    ) -> Result<ZeroShot<'a>> {
        ensure!(candidates > 0, "0 candidates of each caption; wanted at least 1");
        ensure!(
            candidates == 1 || tessera.reranker.is_some(),
            "the best of {candidates} candidates: the model has no reranker; `tessera pack --rerank` adds one"
        );
        let grid = tessera.prior.config().grid;
        ensure!(
            grid.is_multiple_of(2),
            "the model has {grid} rows of tokens; wanted an even number, for two panels"
        );
        let best = (candidates > 1).then_some(SHOWN.min(candidates));
        let request = Request { n: candidates, best, seed, sampling, previews: false, ..Request::default() };
        Ok(ZeroShot { tessera, judge, scenes, request })
    }

    /// Draws and measures the held-out combination `index`.
    ///
    /// # Errors
    /// If there is no such combination, or its true pictures or drawings cannot be created.
    pub fn measure(&self, index: usize) -> Result<CaseResult> {
        let case = self.scenes.held_out_case(index, self.request.seed, SHOWN)?;
        let shown = self.draw(&case.caption, index as u64, Vec::new())?;
        let best = &shown[0];
        let pictures: Vec<RgbImage> =
            [best, &case.real[0], &case.real[1]].into_iter().chain(wrong(&case)).cloned().collect();
        let embeddings = self.embed(&pictures)?;
        let found = |query: usize| find(&embeddings[query], &embeddings[1], &embeddings[3..]);
        let drawn = found(0)?;
        let (nearest, nearest_wrong) = &case.wrong[drawn.nearest_wrong];
        let is_panel = case.kind == CombinationKind::Panel;
        Ok(CaseResult {
            index,
            kind: case.kind,
            caption: case.caption.clone(),
            drawn,
            mistaken_for: (drawn.rank > 0).then_some(*nearest),
            real: found(2)?,
            probes: probed(best, &case),
            panel: is_panel.then(|| self.continue_panel(&case, index as u64)).transpose()?,
            variety: variety(&shown, &case.real),
            pictures: [case.real[0].clone(), best.clone(), nearest_wrong.clone()],
        })
    }

    /// Draws `caption` with the `given` tokens fixed, and returns the pictures, best first. The
    /// seed depends on `number`.
    fn draw(&self, caption: &str, number: u64, given: Vec<Option<u32>>) -> Result<Vec<RgbImage>> {
        let seed = self.request.seed.wrapping_add(number.wrapping_mul(SEEDS_APART));
        let request = Request { prompt: caption.to_string(), seed, given, ..self.request.clone() };
        let mut pictures = Vec::new();
        for event in self.tessera.draw(request)? {
            if let Event::Picture(picture) = event? {
                pictures.push(picture.image);
            }
        }
        ensure!(!pictures.is_empty(), "nothing was drawn of {caption:?}");
        Ok(pictures)
    }

    /// Embeds pictures with the judge. The pictures are distributed over the threads.
    fn embed(&self, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let per_thread = pictures.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts: Result<Vec<_>> =
            pictures.par_chunks(per_thread).map(|pictures| self.judge.pictures(pictures)).collect();
        Ok(parts?.into_iter().flatten().collect())
    }

    /// Draws the lower panel below the true upper panel, and measures it.
    fn continue_panel(&self, case: &HeldOutCase, number: u64) -> Result<PanelResult> {
        let real = &case.real[0];
        let tokens = self.tessera.encode(real)?;
        let given = upper_tokens(&tokens, self.tessera.prior.config().grid);
        let drawn = self.draw(&case.caption, number + CONTINUED, given)?.swap_remove(0);
        let restored = self.tessera.decode(&[tokens.into_iter().map(Some).collect()])?;
        let restored = restored.first().context("no picture of the tokens")?;
        let pictures = [&drawn, restored, real].into_iter().chain(wrong(case));
        let lower: Vec<RgbImage> = pictures.map(lower_half).collect();
        let embeddings = self.embed(&lower)?;
        let found = |query: usize| find(&embeddings[query], &embeddings[2], &embeddings[3..]);
        Ok(PanelResult {
            psnr_db: psnr(&lower[0], &lower[2]),
            tokens_psnr_db: psnr(&lower[1], &lower[2]),
            drawn: found(0)?,
            tokens: found(1)?,
        })
    }
}

fn wrong(case: &HeldOutCase) -> impl Iterator<Item = &RgbImage> {
    case.wrong.iter().map(|(_, picture)| picture)
}

/// Applies every probe of the case to the drawing, a true picture and the unrelated pictures.
fn probed(drawing: &RgbImage, case: &HeldOutCase) -> Vec<Probed> {
    let passed = |picture: &RgbImage, real: &[RgbImage]| probe(picture, &case.facts, real);
    let unrelated = case.wrong.iter().filter(|(difference, _)| *difference == Difference::Unrelated);
    let unrelated: Vec<Vec<(Probe, bool)>> =
        unrelated.map(|(_, picture)| passed(picture, &case.real)).collect();
    let both = passed(drawing, &case.real).into_iter().zip(passed(&case.real[0], &case.real[1..]));
    let share = |n: usize| {
        let n_passed = unrelated.iter().filter(|passed| passed[n].1).count();
        n_passed as f64 / unrelated.len().max(1) as f64
    };
    both.enumerate()
        .map(|(n, ((probe, drawn), (_, real)))| Probed { probe, drawn, real, unrelated: share(n) })
        .collect()
}

fn variety(shown: &[RgbImage], real: &[RgbImage]) -> Option<Variety> {
    let real = mean_pairwise_distance(&real[..shown.len().min(real.len())])?;
    mean_pairwise_distance(shown).map(|drawn| Variety { drawn, real })
}
