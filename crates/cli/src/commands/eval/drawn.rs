//! `tessera eval rerank-curve`, `coco` and `cub`: many captions are drawn, and the drawings measured.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tessera_data::sources::{COCO_CAPTIONS, Described, coco_captions, cub_captions};
use tessera_data::{Dataset, atomic, evenly, picture};
use tessera_eval::{
    CurvePoint, Draws, Embedding, FeatureExtractor, Protocol, Real, Store, draw_each, plot_curve,
    read_statistics, rerank_curve,
};
use tessera_model::rerank::Reranker;
use tessera_model::{Sampling, Tessera};

use super::protocol::{dm_gan, inception, reranker};
use super::{measured_tessera, open};
use crate::args::{self, DrawnArgs, PrecisionFlag};
use crate::commands::draw::meant;
use crate::commands::output::{Content, Outputs};
use crate::commands::{model_file, say};

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
    let best_of = [args.of.unwrap_or(PAPER)];
    let measured =
        |protocol: Protocol<'_>| models.measure(&captions, pictures, &best_of, args, sampling, protocol);
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
        // A thing is a class, whatever its style.
        let classes: BTreeSet<&str> = all().map(|sample| sample.meta.concept.as_str()).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let pictures = all().map(|sample| Ok(sample.middle()));
        let best_of = doublings(args.of.unwrap_or(CURVE));
        self.with_network(args, &classes, |network| {
            self.measure(&captions, pictures, &best_of, args, sampling, Protocol::One(network))
        })
    }

    /// Draws what is not drawn yet.
    fn draw(
        &self,
        captions: &[String],
        best_of: &[usize],
        args: &DrawnArgs,
        sampling: &Sampling,
    ) -> Result<()> {
        let most = best_of.last().copied().unwrap_or(1);
        ensure!(
            most == 1 || self.tessera.reranker.is_some(),
            "--of {most}: the model has no reranker; `tessera pack --rerank` adds one"
        );
        let draws = Draws { best_of: best_of.to_vec(), seed: args.seed, sampling: sampling.clone() };
        let bar = ProgressBar::new(captions.len() as u64);
        bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} captions eta {eta}")?);
        let model = (&self.tessera, self.name.as_str());
        draw_each(model, captions, &draws, &args.drawings, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        Ok(())
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

    /// Draws what is not drawn yet and measures it. What can be wrong is read before anything slow happens.
    fn measure(
        &self,
        captions: &[String],
        real: impl Iterator<Item = Result<RgbImage>>,
        best_of: &[usize],
        args: &DrawnArgs,
        sampling: &Sampling,
        protocol: Protocol,
    ) -> Result<Vec<CurvePoint>> {
        let network = protocol.distance()?;
        let reference = args.reference.as_ref().map(|file| read_statistics(file, network)).transpose()?;
        self.draw(captions, best_of, args, sampling)?;
        let real = match reference {
            Some(gaussian) => Real { gaussian, vectors: None },
            None => {
                let mut store = Store::open(None, "", network)?;
                store.extract(network, real, |_| ())?;
                Real { gaussian: protocol.gaussian(&store)?, vectors: Some(store.vectors()?) }
            }
        };
        rerank_curve(&args.drawings, best_of, captions, &real, protocol, &self.judge)
    }
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

/// The first captions of `n` held-out pictures, evenly chosen; of all if `n` is none.
pub fn held_out_captions(dataset: &Dataset, n: Option<usize>) -> Result<Vec<String>> {
    let val = &dataset.val;
    ensure!(!val.is_empty(), "the data set holds out no pictures; make it with --holdout 5");
    let chosen = evenly(n.unwrap_or(val.len()).max(1), val.len());
    chosen.map(|i| Ok(val[i].caption()?.to_string())).collect()
}

/// 1, 2, 4 … and `most`.
fn doublings(most: usize) -> Vec<usize> {
    let below = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < most);
    below.chain([most.max(1)]).collect()
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
    outputs.say(described(sampling))?;
    curve.iter().try_for_each(|CurvePoint { best_of, figures }| {
        outputs.say(format_args!("best of {best_of}"))?;
        figures.iter().try_for_each(|figure| outputs.say(format_args!("  {figure}")))
    })
}

/// A line about how tokens were picked.
pub fn described(sampling: &Sampling) -> String {
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
    fn a_curve_doubles_up_to_what_was_asked_for() {
        assert_eq!(doublings(1), [1]);
        assert_eq!(doublings(32), [1, 2, 4, 8, 16, 32]);
        assert_eq!(doublings(36), [1, 2, 4, 8, 16, 32, 36]);
    }

    #[test]
    fn how_tokens_were_picked_is_said() {
        assert!(described(&Sampling::paper()).starts_with("sampled as in the paper: temperature 1"));
        let own = Sampling { top_p: Some(0.7), guidance: 1.5, ..Sampling::paper() };
        assert_eq!(described(&own), "sampled at temperature 1, top-p 0.7, guidance 1.5");
        let cold = Sampling { temperature: 0.5, top_p: Some(1.0), ..Sampling::paper() };
        assert_eq!(described(&cold), "sampled at temperature 0.5, all tokens, no guidance");
    }
}
