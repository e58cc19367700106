//! `tessera eval rerank-curve`, `coco` and `cub`: draws many captions and evaluates the drawings.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tessera_base::atomic;
use tessera_data::sources::{COCO_CAPTIONS, Described, coco_captions, cub_captions};
use tessera_data::{Dataset, evenly, picture};
use tessera_eval::{
    CurvePoint, DmGan, DrawnStudy, Draws, Embedding, FeatureExtractor, Protocol, describe_sampling,
    doublings, held_out_captions, plot_curve,
};
use tessera_model::nn::Compute;
use tessera_model::rerank::Reranker;
use tessera_model::{Sampling, Tessera};

use super::protocol::{dm_gan, inception, reranker};
use super::{measured_tessera, open};
use crate::args::{self, DrawnArgs, HeldOutDrawn, OnDevice, PrecisionFlag};
use crate::commands::draw::checked_sampling;
use crate::commands::output::{Content, Outputs};
use crate::commands::{model_file, say};
use crate::reporter::Terminal;

/// The number of candidates per caption in the paper.
const PAPER: usize = 512;
/// The default of the largest number of candidates in a rerank curve.
const CURVE: usize = 32;

/// Runs `tessera eval rerank-curve`.
pub fn curve(HeldOutDrawn { data, common: args, sampling }: &HeldOutDrawn, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], args.json)?;
    let models = Models::open(args)?;
    let sampling = checked_sampling(sampling, &models.tessera)?;
    let curve = models.curve_of(&open(data)?, args, &sampling)?;
    atomic::write(out, plot_curve(&curve)?.as_bytes())?;
    print(args, &sampling, &curve, &outputs)
}

/// Runs `tessera eval coco`.
pub fn coco(dir: &Path, args: &DrawnArgs, sampling: Sampling) -> Result<()> {
    // The seed is constant: all models draw the same captions.
    let described = coco_captions(dir, args.captions.unwrap_or(COCO_CAPTIONS), 0)?;
    by_protocol(described, args, &sampling, |networks| networks.score().map(drop))
}

/// Runs `tessera eval cub`.
pub fn cub(dir: &Path, args: &DrawnArgs, sampling: Sampling) -> Result<()> {
    let all = cub_captions(dir)?;
    let described = evenly(args.captions.unwrap_or(all.len()), all.len()).map(|i| all[i].clone()).collect();
    by_protocol(described, args, &sampling, |networks| networks.without_birds().map(drop))
}

/// Opens the networks of `--protocol`, checks them, and evaluates a published set.
fn by_protocol(
    described: Vec<Described>,
    args: &DrawnArgs,
    sampling: &Sampling,
    check: fn(&DmGan) -> Result<()>,
) -> Result<()> {
    match args.protocol {
        None => published(described, args, sampling, None),
        Some(args::Protocol::DmGan) => {
            let networks = dm_gan(&args.inception, args.which.on)?;
            check(&networks)?;
            published(described, args, sampling, Some(Protocol::DmGan(&networks)))
        }
    }
}

/// Draws captions of a published set, and compares the drawings with the pictures that the captions
/// describe.
fn published(
    described: Vec<Described>,
    args: &DrawnArgs,
    sampling: &Sampling,
    protocol: Option<Protocol>,
) -> Result<()> {
    protocol.map_or(Ok(()), |protocol| protocol.ensure_enough(described.len()))?;
    let models = Models::open(args)?;
    models.tessera.guidance(Some(sampling.guidance))?;
    let (files, captions): (Vec<_>, Vec<String>) =
        described.into_iter().map(|d| (d.image, d.caption)).unzip();
    let distinct: BTreeSet<_> = files.iter().collect();
    let pictures = distinct.into_iter().map(|file| {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        picture::decode(&bytes).with_context(|| file.display().to_string())
    });
    let draws = draws(args, vec![args.of.unwrap_or(PAPER)], sampling);
    let terminal = Terminal::default();
    let study = models.study(args, draws, &terminal)?;
    let measure = |protocol: Protocol<'_>| study.measure(&captions, pictures, protocol);
    // The contrastive model gets no classes, so IS needs an Inception: thousands of captions are no
    // useful classes.
    let no_classes: [&str; 0] = [];
    let curve = match protocol {
        Some(protocol) => measure(protocol),
        None => models.with_network(args, &no_classes, |network| measure(Protocol::One(network))),
    };
    print(args, sampling, &curve?, &Outputs::default())
}

/// The model that draws, and the contrastive model that judges its drawings.
pub struct Models {
    /// The model that draws and ranks.
    pub tessera: Tessera,
    name: String,
    judge: Option<Reranker>,
}

impl Models {
    /// Loads both models, and checks that the judge is not the model that ranks.
    pub fn open(args: &DrawnArgs) -> Result<Models> {
        let path = args.which.model.as_deref();
        let tessera = measured_tessera(&model_file(path)?, &args.which, PrecisionFlag::Auto)?;
        let judge = args.judge.as_ref().map(|path| judge(path, &tessera, args.which.on)).transpose()?;
        let name = args.which.model.as_ref().map_or("embedded".into(), |path| path.display().to_string());
        Ok(Models { tessera, name, judge })
    }

    /// Returns the judge.
    ///
    /// # Errors
    /// If the flags name none.
    fn needed_judge(&self) -> Result<&Reranker> {
        self.judge.as_ref().context(
            "wanted --judge FILE: a model file whose contrastive model judges the drawings; `tessera train rerank` with another \
             --seed makes one",
        )
    }

    /// Returns the judge, if the flags name one.
    pub fn judge(&self) -> Option<&Reranker> {
        self.judge.as_ref()
    }

    /// Measures the rerank curve on a data set's held-out captions.
    pub fn curve_of(
        &self,
        dataset: &Dataset,
        args: &DrawnArgs,
        sampling: &Sampling,
    ) -> Result<Vec<CurvePoint>> {
        ensure!(
            args.protocol.is_none(),
            "--protocol works only with `eval coco` and `eval cub`; leave it out"
        );
        let captions = held_out_captions(dataset, args.captions)?;
        let all = || dataset.train.iter().chain(&dataset.val);
        // A class is a concept in all styles.
        let classes: BTreeSet<&str> = all().map(|sample| sample.meta.concept.as_str()).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let pictures = all().map(|sample| Ok(sample.middle()));
        let draws = draws(args, doublings(args.of.unwrap_or(CURVE)), sampling);
        let terminal = Terminal::default();
        self.with_network(args, &classes, |network| {
            self.study(args, draws, &terminal)?.measure(&captions, pictures, Protocol::One(network))
        })
    }

    /// Runs `measure` with the Inception that the flags name, or else with the judge.
    fn with_network<T>(
        &self,
        args: &DrawnArgs,
        classes: &[&str],
        measure: impl FnOnce(&dyn FeatureExtractor) -> Result<T>,
    ) -> Result<T> {
        match inception(&args.inception, args.resize, args.which.on)? {
            Some(network) => measure(&network),
            None => measure(&Embedding::new(self.needed_judge()?, classes)?),
        }
    }

    fn study<'a>(
        &'a self,
        args: &'a DrawnArgs,
        draws: Draws,
        reporter: &'a Terminal,
    ) -> Result<DrawnStudy<'a>> {
        Ok(DrawnStudy {
            tessera: &self.tessera,
            model: &self.name,
            judge: self.needed_judge()?,
            drawings: &args.drawings,
            draws,
            reference: args.reference.as_deref(),
            reporter,
        })
    }
}

fn draws(args: &DrawnArgs, best_of: Vec<usize>, sampling: &Sampling) -> Draws {
    Draws { best_of, seed: args.seed, sampling: sampling.clone() }
}

/// Loads the contrastive model that judges the drawings of `tessera`.
///
/// # Errors
/// If it is the model that ranks them.
pub fn judge(path: &Path, tessera: &Tessera, on: OnDevice) -> Result<Reranker> {
    let compute = Compute { cpu: tessera.cpu(), device: on.device.open()? };
    let judge = reranker(Some(path), &compute)?;
    let shown = path.display();
    let ranks = tessera.reranker.as_ref().is_some_and(|ranker| ranker.fingerprint() == judge.fingerprint());
    ensure!(
        !ranks,
        "--judge {shown} is the model that ranks, which would favour its own choices; train one with another --seed"
    );
    Ok(judge)
}

/// The figures for one number of candidates, and the sampling settings.
#[derive(Serialize)]
struct Sampled<'a> {
    sampling: &'a Sampling,
    #[serde(flatten)]
    point: &'a CurvePoint,
}

fn print(args: &DrawnArgs, sampling: &Sampling, curve: &[CurvePoint], outputs: &Outputs) -> Result<()> {
    if args.json {
        let curve: Vec<Sampled> = curve.iter().map(|point| Sampled { sampling, point }).collect();
        return say(serde_json::to_string_pretty(&curve)?);
    }
    outputs.say(describe_sampling(sampling))?;
    curve.iter().try_for_each(|CurvePoint { best_of, figures }| {
        outputs.say(format_args!("best of {best_of}"))?;
        figures.iter().try_for_each(|figure| outputs.say(format_args!("  {figure}")))
    })
}
