//! `tessera eval fid` and its like: figures of sets of pictures, by an Inception or a contrastive model.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::{Captioned, Pictures, Purpose, Sample, Skipped, atomic, evenly, item_rng};
use tessera_eval::{
    Embedding, FeatureExtractor, Frame, InceptionScore, Point, Protocol, Report, Store, Vectors, XAxis,
    blur_at, clip_score, cmmd, fid, kid, line_plots, precision_recall, retrieval,
};
use tessera_model::rerank::Reranker;

use super::protocol::{gaussian, is_statistics, network_of, with_network, with_protocol};
use crate::args::{Network, Pair};
use crate::commands::output::{Content, Outputs};
use crate::commands::say;
use crate::stderr::note;

/// Held-out pairs among which retrieval is measured.
const AMONG: usize = 100;
/// Pairs that are embedded together.
pub const TOGETHER: usize = 32;

/// What a network sees in the pictures under `path`, each first changed by `change`, which `changed` names.
pub fn seen(
    work: Option<&Path>,
    network: &dyn FeatureExtractor,
    path: &Path,
    (changed, change): (&str, &(dyn Fn(RgbImage) -> RgbImage + Sync)),
) -> Result<Store> {
    let pictures = Pictures::open(path)?;
    let source = format!("{} {changed}", pictures.fingerprint()?);
    let mut store = Store::open(work, &source, network)?;
    let bar = ProgressBar::new(pictures.count().unwrap_or_default() as u64);
    let name = path.display().to_string().replace('{', "{{").replace('}', "}}");
    let template = format!("{name} {{bar:30}} {{pos}}/{{len}} pictures {{per_sec}} eta {{eta}}");
    bar.set_style(ProgressStyle::with_template(&template)?);
    bar.set_position(store.len() as u64);
    let mut rest = pictures.from(store.len());
    let changed = rest.by_ref().map(|picture| Ok(change(picture?.image)));
    store.extract(network, changed, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    tell_skipped(path, rest.skipped());
    Ok(store)
}

/// Says what of a set was not measured.
fn tell_skipped(path: &Path, skipped: &Skipped) {
    if skipped.total() > 0 {
        note!("{}: {skipped}", path.display());
    }
}

/// The change of a picture that stays as it is.
pub fn unchanged(picture: RgbImage) -> RgbImage {
    picture
}

/// Both sets of a pair, as they are.
fn both(pair: &Pair, network: &dyn FeatureExtractor) -> Result<[Store; 2]> {
    let of = |path: &Path| seen(pair.network.work.as_deref(), network, path, ("", &unchanged));
    Ok([of(&pair.real)?, of(&pair.fake)?])
}

pub fn measure_fid(pair: &Pair) -> Result<()> {
    with_protocol(&pair.network, |protocol| {
        let look = |path: &Path, network: &dyn FeatureExtractor| {
            seen(pair.network.work.as_deref(), network, path, ("", &unchanged))
        };
        let real = gaussian(&pair.real, protocol, look)?;
        print(&pair.network, &[fid(&real, &gaussian(&pair.fake, protocol, look)?)?])
    })
}

/// A measurement of two sets of vectors.
pub fn measure_vectors(
    pair: &Pair,
    figures: impl FnOnce(&Vectors, &Vectors) -> Result<Vec<Report>>,
) -> Result<()> {
    with_network(&pair.network, |network| {
        let [real, fake] = both(pair, network)?;
        print(&pair.network, &figures(&real.vectors()?, &fake.vectors()?)?)
    })
}

pub fn measure_kid(pair: &Pair) -> Result<()> {
    measure_vectors(pair, |real, fake| Ok(vec![kid(real, fake, &mut item_rng(0, Purpose::Subset, 0, 0))?]))
}

pub fn measure_cmmd(pair: &Pair) -> Result<()> {
    measure_vectors(pair, |real, fake| Ok(vec![cmmd(real, fake)?]))
}

pub fn measure_precision_recall(pair: &Pair) -> Result<()> {
    measure_vectors(pair, |real, fake| Ok(precision_recall(real, fake)?.into()))
}

pub fn measure_is(dir: &Path, flags: &Network) -> Result<()> {
    let measure = |network: &dyn FeatureExtractor| {
        ensure!(
            network.classes() > 1,
            "the contrastive model knows no classes: name a file of captions with --classes, or weights with --inception"
        );
        let store = seen(flags.work.as_deref(), network, dir, ("", &unchanged))?;
        let splits = InceptionScore::SPLITS;
        let score = store.inception_score()?;
        print(flags, &[score.with_context(|| format!("{} pictures; wanted at least {splits}", store.len()))?])
    };
    with_protocol(flags, |protocol| match protocol {
        Protocol::One(network) => measure(network),
        Protocol::DmGan(own) => measure(own.score()?),
    })
}

/// How pictures are blurred.
pub struct Blurs<'a> {
    /// Standard deviations in pixels.
    pub radii: &'a [f32],
    /// Height and width that all pictures are brought to first.
    pub size: u32,
}

pub fn measure_blur(pair: &Pair, blurs: &Blurs, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], pair.network.json)?;
    for set in [&pair.real, &pair.fake] {
        let shown = set.display();
        ensure!(!is_statistics(set), "{shown}: statistics cannot be blurred; wanted a folder of pictures");
    }
    with_protocol(&pair.network, |protocol| {
        if let Protocol::DmGan(own) = protocol {
            own.score()?; // before anything slow happens
        }
        let work = pair.network.work.as_deref();
        let (figures, plot) = blur_figures(protocol, &pair.real, &pair.fake, blurs, work)?;
        atomic::write(out, plot.as_bytes())?;
        print_beside(&outputs, &pair.network, &figures)
    })
}

/// FID (of too few pictures KID) and IS by the radius of the blur, and their plot (paper §3, figure 9).
pub fn blur_figures(
    protocol: Protocol,
    real: &Path,
    fake: &Path,
    Blurs { radii, size }: &Blurs,
    work: Option<&Path>,
) -> Result<(Vec<Report>, String)> {
    ensure!(
        !radii.is_empty() && radii.iter().all(|radius| (0.0..=100.0).contains(radius)),
        "--radii {radii:?}: wanted 0 to 100 pixels"
    );
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    let mut figures = Vec::new();
    for &radius in *radii {
        let named = format!("at {size} pixels blurred by {radius}");
        let blurred = |picture: RgbImage| blur_at(&picture, *size, radius);
        let look =
            |path: &Path, network: &dyn FeatureExtractor| seen(work, network, path, (&named, &blurred));
        let network = protocol.distance()?;
        let stores = [look(real, network)?, look(fake, network)?];
        let score = protocol.inception_score(&stores[1], |network| look(fake, network))?;
        for figure in [Some(distance(protocol, &stores)?), score].into_iter().flatten() {
            let point = (f64::from(radius), figure.value, figure.plus_minus);
            match lines.iter_mut().find(|(name, _)| *name == figure.name) {
                Some((_, points)) => points.push(point),
                None => lines.push((figure.name.clone(), vec![point])),
            }
            figures.push(Report { name: format!("{}, {named}", figure.name), ..figure });
        }
    }
    let x_label = &format!("radius of the blur, pixels of {size}");
    let panel = |line: &(String, Vec<Point>)| vec![line.clone()];
    let frame = |title| Frame { title, x_label, y_label: "", x_axis: XAxis::Linear };
    let panels: Vec<_> = lines.iter().map(|line| (frame(line.0.as_str()), panel(line))).collect();
    Ok((figures, line_plots(&panels)?))
}

/// FID, or of sets that are too small for it KID, of which DM-GAN's protocol knows nothing.
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

/// Embeddings of pictures and captions, pair by pair.
pub struct Embedded {
    pub images: Vectors,
    pub texts: Vectors,
    /// Captions whose ends the text tower does not read.
    cut: usize,
}

/// Embeds pairs as they come, some at a time.
pub fn embedded(
    reranker: &Reranker,
    pairs: impl Iterator<Item = Result<(RgbImage, String)>>,
) -> Result<Embedded> {
    let name = Embedding::new::<&str>(reranker, &[])?.name();
    let [images, texts] = [(); 2].map(|()| Vectors::new(&name, reranker.clip.config().embed));
    let mut embedded = Embedded { images, texts, cut: 0 };
    let mut pairs = pairs.peekable();
    while pairs.peek().is_some() {
        let (pictures, captions): (Vec<RgbImage>, Vec<String>) =
            pairs.by_ref().take(TOGETHER).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        embedded.images.push_all(&reranker.pictures(&pictures)?.concat())?;
        for read in reranker.captions(&captions)? {
            embedded.texts.push_all(&read.embedding)?;
            embedded.cut += usize::from(read.dropped_tokens > 0);
        }
    }
    Ok(embedded)
}

/// Sees that no Inception is named, which reads no captions.
fn ensure_contrastive(flags: &Network) -> Result<()> {
    ensure!(
        flags.inception.is_empty(),
        "--inception: pictures and captions are compared by a contrastive model; use --rerank"
    );
    Ok(())
}

pub fn measure_clip_score(dir: &Path, flags: &Network) -> Result<()> {
    ensure_contrastive(flags)?;
    let pictures = Pictures::open(dir)?;
    let mut without = 0;
    let mut reader = pictures.from(0);
    let pairs = reader.by_ref().filter_map(|picture| match picture {
        Ok(Captioned { image, caption: Some(caption) }) => Some(Ok((image, caption))),
        Ok(Captioned { caption: None, .. }) => {
            without += 1;
            None
        }
        Err(error) => Some(Err(error)),
    });
    let Embedded { images, texts, cut } = embedded(&network_of(flags)?, pairs)?;
    tell_skipped(dir, reader.skipped());
    let shown = dir.display();
    ensure!(!images.is_empty(), "no picture in {shown} has a caption; wanted NAME.txt beside NAME.png");
    if without > 0 {
        note!("{shown}: passed over {without} pictures without a caption");
    }
    if cut > 0 {
        note!("{cut} captions are longer than the text tower reads; their ends do not count");
    }
    print(flags, &[clip_score(&images, &texts)?])
}

/// Of a data set's held-out pictures with their first captions as many as retrieval is measured among, evenly chosen.
pub fn held_out_pairs(val: &[Sample]) -> impl Iterator<Item = Result<(RgbImage, String)>> + '_ {
    evenly(AMONG, val.len()).map(|i| {
        let sample = &val[i];
        Ok((sample.middle(), sample.caption()?.to_string()))
    })
}

pub fn measure_retrieval(data: &Path, flags: &Network) -> Result<()> {
    ensure_contrastive(flags)?;
    let val = super::held_out_of(data)?;
    let Embedded { images, texts, .. } = embedded(&network_of(flags)?, held_out_pairs(&val))?;
    print(flags, &retrieval(&images, &texts, None)?)
}

/// A line a figure, or JSON.
pub fn print(flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => say(serde_json::to_string_pretty(reports)?),
        false => reports.iter().try_for_each(say),
    }
}

/// The same beside files, one of which may be standard output.
pub fn print_beside(outputs: &Outputs, flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => print(flags, reports),
        false => reports.iter().try_for_each(|report| outputs.say(report)),
    }
}
