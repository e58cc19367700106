//! How many held-out pictures of a data set also occur in its training part, and how that affects
//! the FID and KID of generated pictures (paper §3).

use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::pixels::contact_sheet;
use tessera_base::{random::Purpose, random::item_rng};
use tessera_data::{Dataset, Sample};

use crate::features::FeatureExtractor;
use crate::frechet::{Gaussian, fid};
use crate::kid::kid;
use crate::overlap::{OverlapSearch, split_by_overlap};
use crate::report::Report;
use crate::set::{Change, Extraction, features_of};
use crate::vectors::Vectors;

/// The number of pairs on the contact sheet.
const PAIRS: usize = 24;
/// The number of pairs in a row of the contact sheet.
const PAIRS_PER_ROW: usize = 6;

/// Figures about overlaps, and a contact sheet of the closest pairs.
pub struct OverlapReport {
    /// The percentage of held-out pictures with an overlap, and the FID and KID of generated
    /// pictures if they were given.
    pub figures: Vec<Report>,
    /// The closest pairs: each held-out picture is followed by its nearest training picture.
    pub sheet: RgbImage,
}

/// Finds the nearest training picture of each held-out picture. With `fake`, a folder of generated
/// pictures, it also measures their FID and KID against all held-out pictures, and against those
/// whose cosine similarity to every training picture is below `threshold`.
///
/// # Errors
/// If nothing is held out, or fewer than two held-out pictures have no overlap.
pub fn overlap_report(
    network: &dyn FeatureExtractor,
    Dataset { train, val, .. }: &Dataset,
    threshold: f32,
    fake: Option<&Path>,
    extraction: Extraction,
) -> Result<OverlapReport> {
    ensure!(!val.is_empty(), "the data set holds out no pictures; make it with --holdout 5");
    let real = features_of(network, val)?;
    let mut search = OverlapSearch::new(&real)?;
    search.push_all(features_of(network, train)?.values())?;
    let overlaps = search.overlaps()?;
    let side = val[0].middle().width();
    let cell = |sample: &Sample| image::imageops::thumbnail(&sample.middle(), side, side);
    let closest = overlaps.iter().take(PAIRS).flat_map(|pair| [&val[pair.val], &train[pair.train]]);
    let cells: Vec<RgbImage> = closest.map(cell).collect();
    let (with, without) = split_by_overlap(&overlaps, f64::from(threshold));
    let share = 100.0 * with.len() as f64 / val.len() as f64;
    let name = format!("overlaps, cosine ≥ {threshold}");
    let mut figures =
        vec![Report { unit: "%".into(), features: network.name(), ..Report::new(&name, share, val.len()) }];
    if let Some(fake) = fake {
        let fake = extraction.features(fake, network, Change::NONE)?.vectors()?;
        let mut rest = Vectors::new(&network.name(), network.dims());
        without.iter().try_for_each(|&i| rest.push_all(real.row(i)))?;
        ensure!(
            rest.len() > 1,
            "without overlaps {} held-out pictures are left; wanted at least 2: raise --threshold",
            rest.len()
        );
        for (real, which) in [(&real, "all"), (&rest, "without overlaps")] {
            figures.extend(distances(real, &fake, which, extraction)?);
        }
    }
    Ok(OverlapReport { figures, sheet: contact_sheet(&cells, 2 * PAIRS_PER_ROW) })
}

/// Returns the FID and KID of `fake` against the held-out pictures that `which` names. If there are
/// too few pictures for FID, it reports the reason and returns only the KID.
fn distances(real: &Vectors, fake: &Vectors, which: &str, extraction: Extraction) -> Result<Vec<Report>> {
    let found = fid(&gaussian(real)?, &gaussian(fake)?);
    if let Err(error) = &found {
        extraction.reporter.note(&format!("no FID, {which}: {error}"));
    }
    let kid = kid(real, fake, &mut item_rng(0, Purpose::Subset, 0, 0))?;
    let named = |figure: Report| Report { name: format!("{}, {which}", figure.name), ..figure };
    Ok(found.into_iter().chain([kid]).map(named).collect())
}

fn gaussian(vectors: &Vectors) -> Result<Gaussian> {
    let mut gaussian = Gaussian::new(vectors.features(), vectors.dims());
    gaussian.push_all(vectors.values())?;
    Ok(gaussian)
}
