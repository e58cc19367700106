//! `tessera eval fid` and its like: figures of sets of pictures, by an Inception or a contrastive model.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::{Captioned, Dataset, Pictures, Purpose, Sample, item_rng};
use tessera_eval::{
    Embedding, Features, Frame, Inception, InceptionScore, OverlapSearch, Report, Resize, Store, Vectors,
    XAxis, blur, clip_score, cmmd, fid, kid, line_plots, precision_recall, retrieval, split_by_overlap,
};
use tessera_model::rerank::Reranker;
use tessera_model::weights::ModelFile;
use tessera_train::grid;

use crate::args::{Network, Pair, Resizing};
use crate::commands::{model_file, say};

/// Pairs on a sheet of overlaps, and of them in a row.
const SHEET: [usize; 2] = [24, 6];
/// Held-out pairs among which retrieval is measured.
const AMONG: usize = 100;

/// Runs `measure` with the network that the flags name.
pub fn with_network<T>(flags: &Network, measure: impl FnOnce(&dyn Features) -> Result<T>) -> Result<T> {
    match &flags.inception {
        Some(path) => {
            let resize = match flags.resize {
                Resizing::PytorchFid => Resize::PytorchFid,
                Resizing::TorchFidelity => Resize::TorchFidelity,
            };
            measure(&Inception::read(path, resize)?)
        }
        None => {
            let classes = match &flags.classes {
                None => Vec::new(),
                Some(path) => lines(path)?,
            };
            measure(&Embedding::new(&reranker(flags.rerank.as_deref())?, &classes)?)
        }
    }
}

/// The contrastive model in a file, or the embedded one.
pub fn reranker(path: Option<&Path>) -> Result<Reranker> {
    let file = match path {
        Some(path) => ModelFile::read(path)?,
        None => model_file(None)?,
    };
    let named = || path.map_or("the embedded model".to_string(), |path| path.display().to_string());
    Reranker::new(&file, &Default::default()).with_context(named)
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect())
}

/// What a network sees in the pictures under `path`, each first changed by `change`, which `changed` names.
fn seen(
    flags: &Network,
    network: &dyn Features,
    path: &Path,
    (changed, change): (&str, &(dyn Fn(RgbImage) -> RgbImage + Sync)),
) -> Result<Store> {
    let pictures = Pictures::open(path)?;
    if pictures.other_files() > 0 {
        eprintln!("{}: passed over {} files that are no pictures", path.display(), pictures.other_files());
    }
    let source = format!("{} {changed}", pictures.fingerprint()?);
    let mut store = Store::open(flags.work.as_deref(), &source, network)?;
    let bar = ProgressBar::new(pictures.count().unwrap_or_default() as u64);
    let name = path.display().to_string().replace('{', "{{").replace('}', "}}");
    let template = format!("{name} {{bar:30}} {{pos}}/{{len}} pictures {{per_sec}} eta {{eta}}");
    bar.set_style(ProgressStyle::with_template(&template)?);
    bar.set_position(store.len() as u64);
    let rest = pictures.from(store.len()).map(|picture| Ok(change(picture?.image)));
    store.see(network, rest, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(store)
}

fn unchanged(picture: RgbImage) -> RgbImage {
    picture
}

/// Both sets of a pair, as they are.
fn both(pair: &Pair, network: &dyn Features) -> Result<[Store; 2]> {
    let of = |path: &Path| seen(&pair.network, network, path, ("", &unchanged));
    Ok([of(&pair.real)?, of(&pair.fake)?])
}

pub fn measure_fid(pair: &Pair) -> Result<()> {
    with_network(&pair.network, |network| {
        let [real, fake] = both(pair, network)?;
        print(&pair.network, &[fid(&real.gaussian()?, &fake.gaussian()?)?])
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
    with_network(flags, |network| {
        ensure!(
            network.classes() > 1,
            "the contrastive model knows no classes: name a file of captions with --classes, or weights with --inception"
        );
        let store = seen(flags, network, dir, ("", &unchanged))?;
        let splits = InceptionScore::SPLITS;
        let score = store.inception_score()?;
        print(flags, &[score.with_context(|| format!("{} pictures; wanted at least {splits}", store.len()))?])
    })
}

/// FID and IS by the radius of the blur (paper §3, figure 9).
pub fn measure_blur(pair: &Pair, radii: &[f32], out: &Path) -> Result<()> {
    ensure!(
        radii.iter().all(|radius| (0.0..=100.0).contains(radius)),
        "--radii {radii:?}: wanted 0 to 100 pixels"
    );
    crate::commands::draw::check_writable(out)?;
    with_network(&pair.network, |network| {
        let (mut reports, mut points) = (Vec::new(), vec![Vec::new(); 2]);
        for &radius in radii {
            let named = format!("blurred by {radius}");
            let blurred = |picture: RgbImage| blur(&picture, radius);
            let of = |path: &Path| seen(&pair.network, network, path, (&named, &blurred));
            let [real, fake] = [of(&pair.real)?, of(&pair.fake)?];
            let distance = fid(&real.gaussian()?, &fake.gaussian()?)?;
            for (points, report) in points.iter_mut().zip([Some(distance), fake.inception_score()?]) {
                if let Some(report) = report {
                    points.push((f64::from(radius), report.value, report.plus_minus));
                    reports.push(Report { name: format!("{}, {named}", report.name), ..report });
                }
            }
        }
        let panels = ["FID", "IS"].into_iter().zip(points).filter(|(_, points)| !points.is_empty());
        let panels = panels.map(|(name, points)| {
            let x_label = "radius of the blur, pixels";
            (
                Frame { title: name, x_label, y_label: "", x_axis: XAxis::Linear },
                vec![(name.to_string(), points)],
            )
        });
        std::fs::write(out, line_plots(&panels.collect::<Vec<_>>())?)
            .with_context(|| format!("cannot write {}", out.display()))?;
        print(&pair.network, &reports)
    })
}

/// Vectors of pictures and captions, pair by pair.
fn embedded(reranker: &Reranker, pairs: &[(RgbImage, String)]) -> Result<[Vectors; 2]> {
    let name = Embedding::new::<&str>(reranker, &[])?.name();
    let [mut images, mut texts] = [(); 2].map(|()| Vectors::new(&name, reranker.clip.config().embed));
    for pairs in pairs.chunks(32) {
        let (pictures, captions): (Vec<RgbImage>, Vec<String>) = pairs.iter().cloned().unzip();
        images.push_all(&reranker.pictures(&pictures)?.concat())?;
        reranker.captions(&captions)?.iter().try_for_each(|read| texts.push_all(&read.embedding))?;
    }
    Ok([images, texts])
}

pub fn measure_clip_score(dir: &Path, flags: &Network) -> Result<()> {
    ensure!(
        flags.inception.is_none(),
        "--inception: captions are scored by a contrastive model; use --rerank"
    );
    let reranker = reranker(flags.rerank.as_deref())?;
    let pictures = Pictures::open(dir)?;
    let (mut pairs, mut without) = (Vec::new(), 0);
    for picture in pictures.from(0) {
        match picture? {
            Captioned { image, caption: Some(caption) } => pairs.push((image, caption)),
            Captioned { caption: None, .. } => without += 1,
        }
    }
    if without > 0 {
        eprintln!("{}: passed over {without} pictures without a caption", dir.display());
    }
    ensure!(
        !pairs.is_empty(),
        "no picture in {} has a caption; wanted NAME.txt beside NAME.png",
        dir.display()
    );
    let captions: Vec<&String> = pairs.iter().map(|(_, caption)| caption).collect();
    let cut = reranker.captions(&captions)?.iter().filter(|read| read.dropped_tokens > 0).count();
    if cut > 0 {
        eprintln!("{cut} captions are longer than the text tower reads; their ends do not count");
    }
    let [images, texts] = embedded(&reranker, &pairs)?;
    print(flags, &[clip_score(&images, &texts)?])
}

/// A data set's held-out pictures with their first captions.
fn held_out(data: &Path) -> Result<Vec<(RgbImage, String)>> {
    let pair = |sample: Sample| Ok((sample.image, sample.captions.into_iter().next().context("no caption")?));
    super::held_out_of(data)?.into_iter().map(pair).collect()
}

pub fn measure_retrieval(data: &Path, flags: &Network) -> Result<()> {
    let pairs = held_out(data)?;
    let every = (pairs.len() / AMONG).max(1);
    let pairs: Vec<_> = pairs.into_iter().step_by(every).take(AMONG).collect();
    let [images, texts] = embedded(&reranker(flags.rerank.as_deref())?, &pairs)?;
    print(flags, &retrieval(&images, &texts, None)?)
}

/// What of a data set's held-out part training has seen (paper §3).
pub fn measure_overlap(
    data: &Path,
    flags: &Network,
    threshold: f32,
    fake: Option<&Path>,
    out: &Path,
) -> Result<()> {
    crate::commands::draw::check_writable(out)?;
    let Dataset { train, val, .. } = Dataset::open(data)?;
    ensure!(!val.is_empty(), "{} holds out no pictures", data.display());
    with_network(flags, |network| {
        let of = |samples: &[Sample]| -> Result<Vectors> {
            let mut vectors = Vectors::new(&network.name(), network.dims());
            for samples in samples.chunks(32) {
                let pictures: Vec<RgbImage> = samples.iter().map(|sample| sample.image.clone()).collect();
                vectors.push_all(&network.see(&pictures)?.features)?;
            }
            Ok(vectors)
        };
        let real = of(&val)?;
        let mut search = OverlapSearch::new(&real)?;
        search.push_all(of(&train)?.values())?;
        let overlaps = search.overlaps()?;
        let cells =
            overlaps.iter().take(SHEET[0]).flat_map(|pair| [&val[pair.val].image, &train[pair.train].image]);
        let cells: Vec<RgbImage> = cells.cloned().collect();
        grid(&cells, 2 * SHEET[1]).save(out).with_context(|| format!("cannot write {}", out.display()))?;
        let (with, without) = split_by_overlap(&overlaps, f64::from(threshold));
        let share = 100.0 * with.len() as f64 / val.len() as f64;
        let name = format!("overlaps, cosine ≥ {threshold}");
        let mut reports = vec![Report {
            unit: "%".into(),
            features: network.name(),
            ..Report::new(&name, share, val.len())
        }];
        if let Some(fake) = fake {
            let fake = seen(flags, network, fake, ("", &unchanged))?.vectors()?;
            let mut rest = Vectors::new(&network.name(), network.dims());
            let row = |i: usize| &real.values()[i * network.dims()..(i + 1) * network.dims()];
            without.iter().try_for_each(|&i| rest.push_all(row(i)))?;
            for (what, real) in [("all", &real), ("without overlaps", &rest)] {
                let report = kid(real, &fake, &mut item_rng(0, Purpose::Subset, 0, 0))?;
                reports.push(Report { name: format!("{}, {what}", report.name), ..report });
            }
        }
        print(flags, &reports)
    })
}

/// A line a figure, or JSON.
pub fn print(flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => say(serde_json::to_string_pretty(reports)?),
        false => reports.iter().try_for_each(say),
    }
}
