//! `tessera eval rerank-curve`, `coco` and `cub`: many captions are drawn, and the drawings measured.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tessera_base::atomic;
use tessera_data::sources::{COCO_CAPTIONS, Described, coco_captions, cub_captions};
use tessera_data::{Dataset, evenly, picture};
use tessera_eval::{
    CurvePoint, DrawnStudy, Draws, Embedding, FeatureExtractor, Protocol, describe_sampling, doublings,
    held_out_captions, plot_curve,
};
use tessera_model::rerank::Reranker;
use tessera_model::{Sampling, Tessera};

use super::protocol::{dm_gan, inception, reranker};
use super::{measured_tessera, open};
use crate::args::{self, DrawnArgs, PrecisionFlag};
use crate::commands::draw::meant;
use crate::commands::output::{Content, Outputs};
use crate::commands::{model_file, say};
use crate::reporter::Terminal;

/// Candidates of each caption in the paper.
const PAPER: usize = 512;
/// Most candidates of a curve unless told otherwise.
const CURVE: usize = 32;

pub fn curve(data: &Path, args: &DrawnArgs, sampling: &args::Sampling, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], args.json)?;
    let models = Models::open(args)?;
    let sampling = meant(sampling, &models.tessera)?;
    let curve = models.curve_of(&open(data)?, args, &sampling)?;
    atomic::write(out, plot_curve(&curve)?.as_bytes())?;
    print(args, &sampling, &curve, &outputs)
}

pub fn coco(dir: &Path, args: &DrawnArgs, sampling: Sampling) -> Result<()> {
    // The sample is the same for all models, whatever they are drawn with.
    let described = coco_captions(dir, args.captions.unwrap_or(COCO_CAPTIONS), 0)?;
    match args.protocol {
        None => published(described, args, &sampling, None),
        Some(args::Protocol::DmGan) => {
            let networks = dm_gan(&args.inception)?;
            networks.score()?;
            published(described, args, &sampling, Some(Protocol::DmGan(&networks)))
        }
    }
}

pub fn cub(dir: &Path, args: &DrawnArgs, sampling: Sampling) -> Result<()> {
    let all = cub_captions(dir)?;
    let described = evenly(args.captions.unwrap_or(all.len()), all.len()).map(|i| all[i].clone()).collect();
    match args.protocol {
        None => published(described, args, &sampling, None),
        Some(args::Protocol::DmGan) => {
            let networks = dm_gan(&args.inception)?;
            networks.without_birds()?;
            published(described, args, &sampling, Some(Protocol::DmGan(&networks)))
        }
    }
}

/// Draws captions of a published set and measures the drawings against the pictures that the captions describe.
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
    let unlike: BTreeSet<_> = files.iter().collect();
    let pictures = unlike.into_iter().map(|file| {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        picture::decode(&bytes).with_context(|| file.display().to_string())
    });
    let draws = draws(args, vec![args.of.unwrap_or(PAPER)], sampling);
    let terminal = Terminal::default();
    let measured =
        |protocol: Protocol<'_>| models.study(args, draws, &terminal).measure(&captions, pictures, protocol);
    // Captions as classes would be thousands; IS is for an Inception here.
    let none: [&str; 0] = [];
    let curve = match protocol {
        Some(protocol) => measured(protocol),
        None => models.with_network(args, &none, |network| measured(Protocol::One(network))),
    };
    print(args, sampling, &curve?, &Outputs::default())
}

/// What draws, and what judges.
pub struct Models {
    pub tessera: Tessera,
    name: String,
    pub judge: Reranker,
}

impl Models {
    /// Reads both, and sees that the judge does not judge its own choice.
    pub fn open(args: &DrawnArgs) -> Result<Models> {
        let tessera =
            measured_tessera(&model_file(args.model.as_deref())?, args.weights, PrecisionFlag::Auto)?;
        let judge = judge(&args.judge, &tessera)?;
        let name = args.model.as_ref().map_or("embedded".into(), |path| path.display().to_string());
        Ok(Models { tessera, name, judge })
    }

    /// The curve of a data set's held-out captions.
    pub fn curve_of(
        &self,
        dataset: &Dataset,
        args: &DrawnArgs,
        sampling: &Sampling,
    ) -> Result<Vec<CurvePoint>> {
        ensure!(args.protocol.is_none(), "--protocol is for `eval coco` and `eval cub`; leave it out here");
        let captions = held_out_captions(dataset, args.captions)?;
        let all = || dataset.train.iter().chain(&dataset.val);
        // A concept is a class, in all styles.
        let classes: BTreeSet<&str> = all().map(|sample| sample.meta.concept.as_str()).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let pictures = all().map(|sample| Ok(sample.middle()));
        let draws = draws(args, doublings(args.of.unwrap_or(CURVE)), sampling);
        let terminal = Terminal::default();
        self.with_network(args, &classes, |network| {
            self.study(args, draws, &terminal).measure(&captions, pictures, Protocol::One(network))
        })
    }

    /// Runs `measure` with the Inception that the flags name, or with the judge.
    fn with_network<T>(
        &self,
        args: &DrawnArgs,
        classes: &[&str],
        measure: impl FnOnce(&dyn FeatureExtractor) -> Result<T>,
    ) -> Result<T> {
        match inception(&args.inception, args.resize)? {
            Some(network) => measure(&network),
            None => measure(&Embedding::new(&self.judge, classes)?),
        }
    }

    fn study<'a>(&'a self, args: &'a DrawnArgs, draws: Draws, reporter: &'a Terminal) -> DrawnStudy<'a> {
        DrawnStudy {
            tessera: &self.tessera,
            model: &self.name,
            judge: &self.judge,
            drawings: &args.drawings,
            draws,
            reference: args.reference.as_deref(),
            reporter,
        }
    }
}

fn draws(args: &DrawnArgs, best_of: Vec<usize>, sampling: &Sampling) -> Draws {
    Draws { best_of, seed: args.seed, sampling: sampling.clone() }
}

/// The contrastive model in a file, to judge what `tessera` draws.
///
/// # Errors
/// If it is the model that ranks.
pub fn judge(path: &Path, tessera: &Tessera) -> Result<Reranker> {
    let judge = reranker(Some(path), tessera.cpu())?;
    let shown = path.display();
    let own = tessera.reranker.as_ref().is_some_and(|ranker| ranker.fingerprint() == judge.fingerprint());
    ensure!(
        !own,
        "--judge {shown} is the model that ranks, and would praise what it chose; train one with another --seed"
    );
    Ok(judge)
}

/// The figures of one number of candidates, and how they were sampled.
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
