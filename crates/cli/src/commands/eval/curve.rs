//! `tessera eval rerank-curve`: what choosing from more candidates brings (the paper's figure 9c).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::Dataset;
use tessera_eval::{CurvePoint, Draws, Embedding, Store, draw_each, plot_curve, rerank_curve};
use tessera_model::Tessera;

use super::sets::reranker;
use crate::args::Drawn;
use crate::commands::draw::{check_writable, meant};
use crate::commands::{model_file, say};

pub fn run(args: &Drawn, out: &Path) -> Result<()> {
    check_writable(out)?;
    let tessera = Tessera::new(&model_file(args.model.as_deref())?, &Default::default())?;
    let ranker =
        tessera.reranker.as_ref().context("the model has no reranker; `tessera pack --rerank` adds one")?;
    let judge = reranker(Some(&args.judge))?;
    ensure!(
        judge.fingerprint() != ranker.fingerprint(),
        "--judge {} is the model that ranks, and would praise what it chose; train one with another --seed",
        args.judge.display()
    );
    let dataset = Dataset::open(&args.data)?;
    ensure!(!dataset.val.is_empty(), "{} holds out no pictures", args.data.display());
    let every = dataset.val.len() / args.captions.unwrap_or(dataset.val.len()).clamp(1, dataset.val.len());
    let held_out = dataset.val.iter().step_by(every).take(args.captions.unwrap_or(usize::MAX));
    let captions: Vec<String> = held_out.filter_map(|sample| sample.captions.first().cloned()).collect();
    let best_of: Vec<usize> =
        std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k <= args.of).collect();
    let draws = Draws { best_of, seed: args.seed, sampling: meant(&args.sampling) };
    let bar = ProgressBar::new(captions.len() as u64);
    bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} captions eta {eta}")?);
    let name = args.model.as_ref().map_or("embedded".into(), |path| path.display().to_string());
    draw_each((&tessera, &name), &captions, &draws, &args.drawings, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();

    let all = || dataset.train.iter().chain(&dataset.val);
    // A thing is a class, whatever its style.
    let classes: BTreeSet<&str> = all().map(|sample| sample.meta.concept.as_str()).collect();
    let network = Embedding::new(&judge, &classes.into_iter().collect::<Vec<_>>())?;
    let mut real = Store::open(None, &dataset.fingerprint(), &network)?;
    real.see(&network, all().map(|sample| Ok(sample.image.clone())), |_| ())?;
    let curve = rerank_curve(&args.drawings, &draws.best_of, &captions, &real, (&judge, &network), |_| ())?;
    std::fs::write(out, plot_curve(&curve)?).with_context(|| format!("cannot write {}", out.display()))?;
    match args.json {
        true => say(serde_json::to_string_pretty(&curve)?),
        false => curve.iter().try_for_each(|CurvePoint { best_of, figures }| {
            say(format_args!("best of {best_of}"))?;
            figures.iter().try_for_each(|figure| say(format_args!("  {figure}")))
        }),
    }
}
