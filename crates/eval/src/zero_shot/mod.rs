//! What a model of scenes draws of combinations that training never showed (paper §3.3): whether a judge finds the drawing's true picture,
//! whether simple attributes are right, how well a given upper panel is continued, and how much drawings of a caption differ.
//!
//! Each figure stands beside what true pictures give and, where there is one, what chance gives: a judge or a probe makes mistakes too.

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

/// Drawings of a caption that are shown to people, and true pictures that they are compared with.
const SHOWN: usize = 9;
/// Added to a case's number for the seed of its second drawing, the one that continues a panel.
const CONTINUED: u64 = 1 << 32;

/// What draws, what judges, and how.
pub struct ZeroShot<'a> {
    tessera: &'a Tessera,
    judge: &'a Reranker,
    scenes: &'a Scenes,
    request: Request,
}

/// What was found about one held-out combination.
#[derive(Debug, Clone, Serialize)]
pub struct CaseResult {
    /// Its place in the held-out list.
    pub index: usize,
    /// What is combined.
    pub kind: CombinationKind,
    /// What was drawn.
    pub caption: String,
    /// Where the judge finds the true picture of the best drawing.
    pub drawn: Found,
    /// What the drawing is taken for, if it is not the true picture.
    pub mistaken_for: Option<Difference>,
    /// Where the judge finds the true picture of another true picture.
    pub real: Found,
    /// Attributes of the best drawing.
    pub probes: Vec<Probed>,
    /// How the upper panel is continued; of panels only.
    pub panel: Option<PanelResult>,
    /// How much the shown drawings differ; absent if only one is shown.
    pub variety: Option<Variety>,
    /// A true picture, the best drawing, and the wrong picture that the judge finds nearest to it.
    #[serde(skip)]
    pub pictures: [RgbImage; 3],
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Probed {
    /// What is probed.
    pub probe: Probe,
    /// Whether the best drawing passes.
    pub drawn: bool,
    /// Whether a true picture passes.
    pub real: bool,
    /// Share of unrelated pictures that pass.
    pub unrelated: f64,
}

/// The lower panel, drawn below the true upper panel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PanelResult {
    /// PSNR of the drawn lower panel in dB.
    pub psnr_db: f64,
    /// PSNR of the true lower panel through the dVAE's tokens in dB.
    pub tokens_psnr_db: f64,
    /// Where the judge finds the true lower panel of the drawn one.
    pub drawn: Found,
    /// The same of the true one through the dVAE's tokens.
    pub tokens: Found,
}

/// Mean distances of the pictures of one caption.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Variety {
    /// Of the drawings that are shown.
    pub drawn: f64,
    /// Of as many true pictures.
    pub real: f64,
}

impl<'a> ZeroShot<'a> {
    /// Will draw `candidates` of each caption and measure the best; `judge` did not rank them.
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

    /// Draws and measures held-out combination number `index`.
    ///
    /// # Errors
    /// If there is no such combination, or it cannot be painted or drawn.
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

    /// Pictures of `caption` that go on from the `given` tokens, best first; other numbers have other candidates.
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

    /// The judge's embeddings; every thread looks at its own pictures.
    fn embed(&self, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let together = pictures.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts: Result<Vec<_>> =
            pictures.par_chunks(together).map(|pictures| self.judge.pictures(pictures)).collect();
        Ok(parts?.into_iter().flatten().collect())
    }

    /// Draws the lower panel below the true upper one.
    fn continue_panel(&self, case: &HeldOutCase, number: u64) -> Result<PanelResult> {
        let real = &case.real[0];
        let tokens = self.tessera.encode(real)?;
        let given = upper_tokens(&tokens, self.tessera.prior.config().grid);
        let drawn = self.draw(&case.caption, number + CONTINUED, given)?.swap_remove(0);
        let kept = self.tessera.decode(&[tokens.into_iter().map(Some).collect()])?;
        let kept = kept.first().context("no picture of the tokens")?;
        let pictures = [&drawn, kept, real].into_iter().chain(wrong(case));
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

/// Every probe of the case, of the drawing, of a true picture that the others are compared with, and of unrelated pictures.
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
