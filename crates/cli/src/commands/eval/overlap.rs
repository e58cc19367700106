//! `tessera eval overlap`: held-out pictures that training has seen, and what they change in the figures.

use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::pixels::contact_sheet;
use tessera_data::{Dataset, Purpose, Sample, item_rng};
use tessera_eval::{FeatureExtractor, Gaussian, OverlapSearch, Report, Vectors, fid, kid, split_by_overlap};

use super::open;
use super::protocol::with_network;
use super::sets::{TOGETHER, print_beside, seen, unchanged};
use crate::args::Network;
use crate::commands::output::{Content, Outputs, write_picture};
use crate::stderr::note;

/// Pairs on a sheet of overlaps, and of them in a row.
const SHEET: [usize; 2] = [24, 6];

pub fn measure_overlap(
    data: &Path,
    flags: &Network,
    threshold: f32,
    fake: Option<&Path>,
    out: &Path,
) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Picture)], flags.json)?;
    let dataset = open(data)?;
    with_network(flags, |network| {
        let Overlaps { figures, sheet } =
            overlaps(network, &dataset, threshold, fake, flags.work.as_deref())?;
        write_picture(out, &sheet, None)?;
        print_beside(&outputs, flags, &figures)
    })
}

/// How much of a data set's held-out part training has seen.
pub struct Overlaps {
    pub figures: Vec<Report>,
    /// The closest pairs.
    pub sheet: RgbImage,
}

/// The training pictures that held-out ones are nearest to; with `fake` also the distances of these pictures from the held-out ones,
/// with and without those that overlap (paper §3).
pub fn overlaps(
    network: &dyn FeatureExtractor,
    Dataset { train, val, .. }: &Dataset,
    threshold: f32,
    fake: Option<&Path>,
    work: Option<&Path>,
) -> Result<Overlaps> {
    ensure!(!val.is_empty(), "the data set holds out no pictures; make it with --holdout 5");
    let real = vectors_of(network, val)?;
    let mut search = OverlapSearch::new(&real)?;
    search.push_all(vectors_of(network, train)?.values())?;
    let overlaps = search.overlaps()?;
    let pairs = overlaps.iter().take(SHEET[0]);
    let side = val[0].middle().width();
    let cell = |sample: &Sample| image::imageops::thumbnail(&sample.middle(), side, side);
    let cells: Vec<RgbImage> =
        pairs.flat_map(|pair| [&val[pair.val], &train[pair.train]]).map(cell).collect();
    let (with, without) = split_by_overlap(&overlaps, f64::from(threshold));
    let share = 100.0 * with.len() as f64 / val.len() as f64;
    let name = format!("overlaps, cosine ≥ {threshold}");
    let mut figures =
        vec![Report { unit: "%".into(), features: network.name(), ..Report::new(&name, share, val.len()) }];
    if let Some(fake) = fake {
        let fake = seen(work, network, fake, ("", &unchanged))?.vectors()?;
        let mut rest = Vectors::new(&network.name(), network.dims());
        without.iter().try_for_each(|&i| rest.push_all(real.row(i)))?;
        ensure!(
            rest.len() > 1,
            "without overlaps {} held-out pictures are left; wanted at least 2: raise --threshold",
            rest.len()
        );
        figures.extend(distances(&real, &fake, "all")?);
        figures.extend(distances(&rest, &fake, "without overlaps")?);
    }
    Ok(Overlaps { figures, sheet: contact_sheet(&cells, 2 * SHEET[1]) })
}

/// FID and KID of `fake` to the held-out pictures that `which` names; of too few pictures KID only, and a line says so.
fn distances(real: &Vectors, fake: &Vectors, which: &str) -> Result<Vec<Report>> {
    let found = fid(&gaussian(real)?, &gaussian(fake)?);
    if let Err(error) = &found {
        note!("no FID, {which}: {error}");
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

fn vectors_of(network: &dyn FeatureExtractor, samples: &[Sample]) -> Result<Vectors> {
    let mut vectors = Vectors::new(&network.name(), network.dims());
    for samples in samples.chunks(TOGETHER) {
        let pictures: Vec<RgbImage> = samples.iter().map(Sample::middle).collect();
        vectors.push_all(&network.extract(&pictures)?.features)?;
    }
    Ok(vectors)
}
