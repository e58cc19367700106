//! FID and IS of blurred pictures by the radius of the blur (paper §3, figures 9a and 9b).

use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::{random::Purpose, random::item_rng};

use crate::blur::blur_at;
use crate::features::FeatureExtractor;
use crate::frechet::fid;
use crate::kid::kid;
use crate::plot::{Frame, Point, XAxis, line_plots};
use crate::protocol::Protocol;
use crate::report::Report;
use crate::set::{Change, Extraction};
use crate::store::Store;

/// The settings of a blur curve.
#[derive(Debug, Clone, Copy)]
pub struct Blurs<'a> {
    /// The radii of the blurs: standard deviations in pixels.
    pub radii: &'a [f32],
    /// The height and width to which all pictures are resized before they are blurred.
    pub size: u32,
}

/// Measures FID (KID for sets that are too small for FID) and IS for each radius. Returns the
/// figures and their plot as SVG.
///
/// # Errors
/// If a radius is not in 0 to 100 pixels, or a set cannot be measured.
pub fn blur_curve(
    protocol: Protocol,
    [real, fake]: [&Path; 2],
    Blurs { radii, size }: Blurs,
    extraction: Extraction,
) -> Result<(Vec<Report>, String)> {
    ensure!(
        !radii.is_empty() && radii.iter().all(|radius| (0.0..=100.0).contains(radius)),
        "--radii {radii:?}: wanted 0 to 100 pixels"
    );
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    let mut figures = Vec::new();
    for &radius in radii {
        let name = format!("at {size} pixels blurred by {radius}");
        let blurred = |picture: RgbImage| blur_at(&picture, size, radius);
        let change = Change { name: &name, apply: &blurred };
        let extract =
            |path: &Path, network: &dyn FeatureExtractor| extraction.features(path, network, change);
        let network = protocol.distance()?;
        let stores = [extract(real, network)?, extract(fake, network)?];
        let score = protocol.inception_score(&stores[1], |network| extract(fake, network))?;
        for figure in [Some(distance(protocol, &stores)?), score].into_iter().flatten() {
            let point = (f64::from(radius), figure.value, figure.plus_minus);
            match lines.iter_mut().find(|(name, _)| *name == figure.name) {
                Some((_, points)) => points.push(point),
                None => lines.push((figure.name.clone(), vec![point])),
            }
            figures.push(Report { name: format!("{}, {name}", figure.name), ..figure });
        }
    }
    let x_label = &format!("radius of the blur, pixels of {size}");
    let panel = |line: &(String, Vec<Point>)| vec![line.clone()];
    let frame = |title| Frame { title, x_label, y_label: "", x_axis: XAxis::Linear };
    let panels: Vec<_> = lines.iter().map(|line| (frame(line.0.as_str()), panel(line))).collect();
    Ok((figures, line_plots(&panels)?))
}

/// Returns the FID, or the KID if the sets are too small for FID. DM-GAN's protocol has no KID.
fn distance(protocol: Protocol, [real, fake]: &[Store; 2]) -> Result<Report> {
    let found = fid(&protocol.gaussian(real)?, &protocol.gaussian(fake)?);
    match (found, protocol) {
        (Ok(figure), _) => Ok(figure),
        (Err(error), Protocol::DmGan(_)) => Err(error),
        (Err(_), Protocol::One(_)) => {
            kid(&real.vectors()?, &fake.vectors()?, &mut item_rng(0, Purpose::Subset, 0, 0))
        }
    }
}
