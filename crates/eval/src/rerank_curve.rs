//! What choosing from more candidates brings: figures of the best of 1, 2, 4 … of each caption (paper §3.4, figure 9c).
//!
//! A contrastive model judges that did not rank: the ranking one would like what it chose.

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

/// The figures of one number of candidates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Candidates of a caption, of which the best was kept.
    pub best_of: usize,
    /// CLIPScore, IS, KID, FID if there are enough pictures, and how often the best is preferred to the first candidate.
    pub figures: Vec<Report>,
}

/// The pictures that drawings are compared with.
#[derive(Debug)]
pub struct Real {
    /// Their mean and covariance, for FID.
    pub gaussian: Gaussian,
    /// Their features, for KID; absent if only statistics are at hand.
    pub vectors: Option<Vectors>,
}

/// Measures the drawings of `captions` in `drawings` (of [`draw_each`](crate::draw_each)) for each of `ks`: how well they fit by `judge`, and
/// their distances from `real`, which the network of the `protocol` has looked at.
///
/// # Errors
/// If drawings are missing, or another network looked at `real`.
pub fn rerank_curve(
    drawings: &Path,
    ks: &[usize],
    captions: &[String],
    real: &Real,
    protocol: Protocol,
    judge: &Reranker,
) -> Result<Vec<CurvePoint>> {
    let judging = Embedding::new::<&str>(judge, &[])?;
    let mut texts = Vectors::new(&judging.name(), judging.dims());
    judge.captions(captions)?.iter().try_for_each(|read| texts.push_all(&read.embedding))?;
    let extract = |folder: &Path, network: &dyn FeatureExtractor| -> Result<Store> {
        let mut store = Store::open(None, "", network)?;
        store.extract(network, pictures_in(folder, captions.len()), |_| ())?;
        Ok(store)
    };
    let mut first: Option<Vec<f64>> = None;
    let mut curve = Vec::new();
    for &k in ks {
        let folder = best_of(drawings, k);
        let judged = extract(&folder, &judging)?.vectors()?;
        let scores = cosines(&judged, &texts);
        let first = first.get_or_insert_with(|| scores.clone());
        let mut figures = vec![Report { name: "score by the judge".into(), ..clip_score(&judged, &texts)? }];
        figures.extend(preferred(&scores, first, texts.features()));
        let seen = extract(&folder, protocol.distance()?)?;
        figures.extend(protocol.inception_score(&seen, |network| extract(&folder, network))?);
        if let Some(vectors) = &real.vectors {
            figures.push(kid(vectors, &seen.vectors()?, &mut item_rng(0, Purpose::Subset, 0, 0))?);
        }
        // Too few drawings have no FID, and the others are figures all the same.
        figures.extend(fid(&real.gaussian, &protocol.gaussian(&seen)?).ok());
        curve.push(CurvePoint { best_of: k, figures });
    }
    Ok(curve)
}

/// Cosines of pictures and captions, pair by pair.
fn cosines(pictures: &Vectors, texts: &Vectors) -> Vec<f64> {
    let pairs = pictures.values().chunks(pictures.dims()).zip(texts.values().chunks(texts.dims()));
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    pairs.map(|(picture, text)| product(picture, text) / product(picture, picture).sqrt()).collect()
}

/// How often the judge finds the best of several likelier than the first candidate; a draw is half. Nothing if they are the same everywhere.
fn preferred(scores: &[f64], first: &[f64], network: &str) -> Option<Report> {
    if scores == first {
        return None;
    }
    let won = |(best, first): (&f64, &f64)| match best.total_cmp(first) {
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 1.0,
    };
    let n = scores.len();
    let share = scores.iter().zip(first).map(won).sum::<f64>() / n as f64;
    Some(Report {
        unit: "%".into(),
        plus_minus: Some(100.0 * (share * (1.0 - share) / n as f64).sqrt()),
        features: network.to_string(),
        ..Report::new("preferred to the first", 100.0 * share, n)
    })
}

/// The curve as an SVG picture: a panel a figure, the number of candidates doubling to the right.
///
/// # Errors
/// If it cannot be drawn.
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
