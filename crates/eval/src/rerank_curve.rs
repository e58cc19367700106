//! The effect of the number of candidates: metrics of the best of 1, 2, 4 … candidates per caption
//! (paper §3.4, figure 9c).
//!
//! The judge is another contrastive model than the one that ranked the candidates, because a model
//! is biased towards its own choice.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use tessera_base::random::{Purpose, item_rng};
use tessera_model::rerank::Reranker;

use crate::drawn::{best_of, pictures_in};
use crate::embedding::Embedding;
use crate::features::FeatureExtractor;
use crate::plot::{Frame, XAxis, line_plots};
use crate::store::Store;
use crate::vectors::Vectors;
use crate::{Gaussian, Protocol, Report, clip_score, fid, kid};

/// The figures for one number of candidates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurvePoint {
    /// The number of candidates per caption, of which the best was kept.
    pub best_of: usize,
    /// CLIPScore, how often the best candidate is preferred to the first one, IS, KID, and FID if
    /// there are enough pictures.
    pub figures: Vec<Report>,
}

/// The real pictures that the drawings are compared with.
#[derive(Debug)]
pub struct Real {
    /// The mean and covariance of their features, for FID.
    pub gaussian: Gaussian,
    /// Their features, for KID. `None` if only the statistics are available.
    pub vectors: Option<Vectors>,
}

/// Measures the drawings of `captions` in the folder `drawings`, which
/// [`draw_each`](crate::draw_each) created, for each number of candidates in `ks`: how well they
/// match their captions according to `judge`, and their distances from `real`, whose features are
/// those of the protocol's network.
///
/// # Errors
/// If drawings are missing, or the features of `real` come from another network.
pub fn rerank_curve(
    drawings: &Path,
    ks: &[usize],
    captions: &[String],
    real: &Real,
    protocol: Protocol,
    judge: &Reranker,
) -> Result<Vec<CurvePoint>> {
    let judge_network = Embedding::new::<&str>(judge, &[])?;
    let mut texts = Vectors::new(&judge_network.name(), judge_network.dims());
    judge.captions(captions)?.iter().try_for_each(|caption| texts.push_all(&caption.embedding))?;
    let extract = |folder: &Path, network: &dyn FeatureExtractor| -> Result<Store> {
        let mut store = Store::open(None, "", network)?;
        store.extract(network, pictures_in(folder, captions.len()), |_| ())?;
        Ok(store)
    };
    let mut first: Option<Vec<f64>> = None;
    let mut curve = Vec::new();
    for &k in ks {
        let folder = best_of(drawings, k);
        let images = extract(&folder, &judge_network)?.vectors()?;
        let scores = cosines(&images, &texts);
        let first = first.get_or_insert_with(|| scores.clone());
        let mut figures = vec![Report { name: "score by the judge".into(), ..clip_score(&images, &texts)? }];
        figures.extend(preferred(&scores, first, texts.features()));
        let features = extract(&folder, protocol.distance()?)?;
        figures.extend(protocol.inception_score(&features, |network| extract(&folder, network))?);
        if let Some(vectors) = &real.vectors {
            figures.push(kid(vectors, &features.vectors()?, &mut item_rng(0, Purpose::Subset, 0, 0))?);
        }
        // With too few drawings for FID, the other figures are still useful.
        figures.extend(fid(&real.gaussian, &protocol.gaussian(&features)?).ok());
        curve.push(CurvePoint { best_of: k, figures });
    }
    Ok(curve)
}

/// The cosine of picture `i` and caption `i`, for each pair. The captions have length 1.
fn cosines(pictures: &Vectors, texts: &Vectors) -> Vec<f64> {
    let pairs = pictures.values().chunks(pictures.dims()).zip(texts.values().chunks(texts.dims()));
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    pairs.map(|(picture, text)| product(picture, text) / product(picture, picture).sqrt()).collect()
}

/// How often the judge prefers the best candidate to the first one. A tie counts as half. `None` if
/// all scores are equal.
fn preferred(scores: &[f64], first: &[f64], network: &str) -> Option<Report> {
    if scores == first {
        return None;
    }
    let win = |(best, first): (&f64, &f64)| match best.total_cmp(first) {
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 1.0,
    };
    let n = scores.len();
    let share = scores.iter().zip(first).map(win).sum::<f64>() / n as f64;
    Some(Report {
        unit: "%".into(),
        plus_minus: Some(100.0 * (share * (1.0 - share) / n as f64).sqrt()),
        features: network.to_string(),
        ..Report::new("preferred to the first", 100.0 * share, n)
    })
}

/// Plots the curve as an SVG with one panel per figure. The axis of the number of candidates is
/// logarithmic.
///
/// # Errors
/// If `curve` is empty or cannot be plotted.
pub fn plot_curve(curve: &[CurvePoint]) -> Result<String> {
    let names = curve.last().context("a curve without points")?.figures.iter();
    let panel = |figure| {
        let Report { name, unit, .. }: &Report = figure;
        let points = curve.iter().filter_map(|point| {
            let found = point.figures.iter().find(|other| other.name == *name)?;
            Some((point.best_of as f64, found.value, found.plus_minus))
        });
        let frame = Frame { title: name, x_label: "best of", y_label: unit, x_axis: XAxis::Log2 };
        (frame, vec![(name.clone(), points.collect())])
    };
    line_plots(&names.map(panel).collect::<Vec<_>>())
}
