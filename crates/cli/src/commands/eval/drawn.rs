//! `tessera eval rerank-curve`, `coco` and `cub`: many captions are drawn, and the drawings measured.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::sources::{COCO_CAPTIONS, Described, coco_captions, cub_captions};
use tessera_data::{Dataset, atomic, evenly, picture};
use tessera_eval::{CurvePoint, Draws, Embedding, Features, Store, draw_each, plot_curve, rerank_curve};
use tessera_model::Tessera;
use tessera_model::rerank::Reranker;

use super::sets::{inception, reranker};
use crate::args::Drawn;
use crate::commands::draw::meant;
use crate::commands::output::{Content, Outputs};
use crate::commands::{model_file, say};

/// Candidates of each caption in the paper.
const PAPER: usize = 512;
/// Most candidates of a curve unless told otherwise.
const CURVE: usize = 32;

pub fn curve(data: &Path, args: &Drawn, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], args.json)?;
    let models = Models::open(args)?;
    let curve = models.curve_of(&Dataset::open(data)?, args)?;
    atomic::write(out, plot_curve(&curve)?.as_bytes())?;
    print(args, &curve, &outputs)
}

pub fn coco(dir: &Path, args: &Drawn) -> Result<()> {
    // The sample is the same for all models, whatever they are drawn with.
    published(coco_captions(dir, args.captions.unwrap_or(COCO_CAPTIONS), 0)?, args)
}

pub fn cub(dir: &Path, args: &Drawn) -> Result<()> {
    let all = cub_captions(dir)?;
    published(evenly(args.captions.unwrap_or(all.len()), all.len()).map(|i| all[i].clone()).collect(), args)
}

/// Draws captions of a published set and measures the drawings against the pictures that the captions describe.
fn published(described: Vec<Described>, args: &Drawn) -> Result<()> {
    let models = Models::open(args)?;
    let (files, captions): (Vec<_>, Vec<String>) =
        described.into_iter().map(|d| (d.image, d.caption)).unzip();
    let unlike: BTreeSet<_> = files.iter().collect();
    let pictures = unlike.into_iter().map(|file| {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        picture::decode(&bytes).with_context(|| file.display().to_string())
    });
    // Captions as classes would be thousands; IS is for an Inception here.
    let none: [&str; 0] = [];
    let curve = models.measure(&captions, &none, pictures, &[args.of.unwrap_or(PAPER)], args)?;
    print(args, &curve, &Outputs::default())
}

/// What draws, and what judges.
pub struct Models {
    pub tessera: Tessera,
    name: String,
    pub judge: Reranker,
}

impl Models {
    /// Reads both, and sees that the judge does not judge its own choice.
    pub fn open(args: &Drawn) -> Result<Models> {
        let tessera = Tessera::new(&model_file(args.model.as_deref())?, &Default::default())?;
        let judge = reranker(Some(&args.judge))?;
        let shown = args.judge.display();
        let own = tessera.reranker.as_ref().is_some_and(|ranker| ranker.fingerprint() == judge.fingerprint());
        ensure!(
            !own,
            "--judge {shown} is the model that ranks, and would praise what it chose; train one with another --seed"
        );
        let name = args.model.as_ref().map_or("embedded".into(), |path| path.display().to_string());
        Ok(Models { tessera, name, judge })
    }

    /// The curve of a data set's held-out captions.
    pub fn curve_of(&self, dataset: &Dataset, args: &Drawn) -> Result<Vec<CurvePoint>> {
        let captions = held_out_captions(dataset, args.captions)?;
        let all = || dataset.train.iter().chain(&dataset.val);
        // A thing is a class, whatever its style.
        let classes: BTreeSet<&str> = all().map(|sample| sample.meta.concept.as_str()).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        let pictures = all().map(|sample| Ok(sample.image.clone()));
        self.measure(&captions, &classes, pictures, &doublings(args.of.unwrap_or(CURVE)), args)
    }

    fn measure(
        &self,
        captions: &[String],
        classes: &[&str],
        real: impl Iterator<Item = Result<RgbImage>>,
        best_of: &[usize],
        args: &Drawn,
    ) -> Result<Vec<CurvePoint>> {
        let most = best_of.last().copied().unwrap_or(1);
        ensure!(
            most == 1 || self.tessera.reranker.is_some(),
            "--of {most}: the model has no reranker; `tessera pack --rerank` adds one"
        );
        let draws = Draws { best_of: best_of.to_vec(), seed: args.seed, sampling: meant(&args.sampling) };
        let bar = ProgressBar::new(captions.len() as u64);
        bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} captions eta {eta}")?);
        let model = (&self.tessera, self.name.as_str());
        draw_each(model, captions, &draws, &args.drawings, |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let network: Box<dyn Features> = match &args.inception {
            Some(path) => Box::new(inception(path, args.resize)?),
            None => Box::new(Embedding::new(&self.judge, classes)?),
        };
        let mut store = Store::open(None, "", &*network)?;
        store.see(&*network, real, |_| ())?;
        rerank_curve(&args.drawings, best_of, captions, &store, &*network, &self.judge)
    }
}

/// The first captions of `n` held-out pictures, evenly chosen; of all if `n` is none.
pub fn held_out_captions(dataset: &Dataset, n: Option<usize>) -> Result<Vec<String>> {
    let val = &dataset.val;
    ensure!(!val.is_empty(), "the data set holds out no pictures; make it with --holdout 5");
    let chosen = evenly(n.unwrap_or(val.len()).max(1), val.len());
    chosen.map(|i| val[i].captions.first().cloned().context("a picture has no caption")).collect()
}

/// 1, 2, 4 … and `most`.
fn doublings(most: usize) -> Vec<usize> {
    let below = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k < most);
    below.chain([most.max(1)]).collect()
}

fn print(args: &Drawn, curve: &[CurvePoint], outputs: &Outputs) -> Result<()> {
    if args.json {
        return say(serde_json::to_string_pretty(curve)?);
    }
    curve.iter().try_for_each(|CurvePoint { best_of, figures }| {
        outputs.say(format_args!("best of {best_of}"))?;
        figures.iter().try_for_each(|figure| outputs.say(format_args!("  {figure}")))
    })
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
}
