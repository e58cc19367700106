//! `tessera eval fid` and its like: figures of sets of pictures, by an Inception or a contrastive model.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::{
    Captioned, Dataset, Pictures, Purpose, Sample, atomic, evenly, item_rng, read_text, text_lines,
};
use tessera_eval::{
    Embedding, Features, Frame, Inception, InceptionScore, OverlapSearch, Point, Report, Resize, Store,
    Vectors, XAxis, blur, clip_score, cmmd, fid, kid, line_plots, precision_recall, retrieval,
    split_by_overlap,
};
use tessera_model::rerank::Reranker;
use tessera_train::grid;

use crate::args::{Network, Pair, Resizing};
use crate::commands::output::{Content, Outputs, write_picture};
use crate::commands::{model_file, say};
use crate::stderr::note;

/// Pairs on a sheet of overlaps, and of them in a row.
const SHEET: [usize; 2] = [24, 6];
/// Held-out pairs among which retrieval is measured.
const AMONG: usize = 100;
/// Pairs that are embedded together.
const TOGETHER: usize = 32;

/// Runs `measure` with the network that the flags name.
pub fn with_network<T>(flags: &Network, measure: impl FnOnce(&dyn Features) -> Result<T>) -> Result<T> {
    match &flags.inception {
        Some(path) => measure(&inception(path, flags.resize)?),
        None => {
            let classes = match &flags.classes {
                None => Vec::new(),
                Some(path) => text_lines(&read_text(path)?),
            };
            measure(&Embedding::new(&reranker(flags.rerank.as_deref())?, &classes)?)
        }
    }
}

/// The Inception in a file.
pub fn inception(path: &Path, resize: Resizing) -> Result<Inception> {
    let resize = match resize {
        Resizing::PytorchFid => Resize::PytorchFid,
        Resizing::TorchFidelity => Resize::TorchFidelity,
    };
    Inception::read(path, resize)
}

/// The contrastive model in a file, or the embedded one.
pub fn reranker(path: Option<&Path>) -> Result<Reranker> {
    let file = model_file(path)?;
    let named = || path.map_or("the embedded model".to_string(), |path| path.display().to_string());
    file.reranker(&Default::default()).with_context(named)
}

/// What a network sees in the pictures under `path`, each first changed by `change`, which `changed` names.
fn seen(
    work: Option<&Path>,
    network: &dyn Features,
    path: &Path,
    (changed, change): (&str, &(dyn Fn(RgbImage) -> RgbImage + Sync)),
) -> Result<Store> {
    let pictures = Pictures::open(path)?;
    if pictures.other_files() > 0 {
        note!("{}: passed over {} files that are no pictures", path.display(), pictures.other_files());
    }
    let source = format!("{} {changed}", pictures.fingerprint()?);
    let mut store = Store::open(work, &source, network)?;
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
    let of = |path: &Path| seen(pair.network.work.as_deref(), network, path, ("", &unchanged));
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
        let store = seen(flags.work.as_deref(), network, dir, ("", &unchanged))?;
        let splits = InceptionScore::SPLITS;
        let score = store.inception_score()?;
        print(flags, &[score.with_context(|| format!("{} pictures; wanted at least {splits}", store.len()))?])
    })
}

pub fn measure_blur(pair: &Pair, radii: &[f32], out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Plot)], pair.network.json)?;
    with_network(&pair.network, |network| {
        let work = pair.network.work.as_deref();
        let (figures, plot) = blur_figures(network, &pair.real, &pair.fake, radii, work)?;
        atomic::write(out, plot.as_bytes())?;
        print_beside(&outputs, &pair.network, &figures)
    })
}

/// FID (of too few pictures KID) and IS by the radius of the blur, and their plot (paper §3, figure 9).
pub fn blur_figures(
    network: &dyn Features,
    real: &Path,
    fake: &Path,
    radii: &[f32],
    work: Option<&Path>,
) -> Result<(Vec<Report>, String)> {
    ensure!(
        !radii.is_empty() && radii.iter().all(|radius| (0.0..=100.0).contains(radius)),
        "--radii {radii:?}: wanted 0 to 100 pixels"
    );
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    let mut figures = Vec::new();
    for &radius in radii {
        let named = format!("blurred by {radius}");
        let blurred = |picture: RgbImage| blur(&picture, radius);
        let of = |path: &Path| seen(work, network, path, (&named, &blurred));
        let [real, fake] = [of(real)?, of(fake)?];
        for figure in [Some(distance(&real, &fake)?), fake.inception_score()?].into_iter().flatten() {
            let point = (f64::from(radius), figure.value, figure.plus_minus);
            match lines.iter_mut().find(|(name, _)| *name == figure.name) {
                Some((_, points)) => points.push(point),
                None => lines.push((figure.name.clone(), vec![point])),
            }
            figures.push(Report { name: format!("{}, {named}", figure.name), ..figure });
        }
    }
    let x_label = "radius of the blur, pixels";
    let panel = |line: &(String, Vec<Point>)| vec![line.clone()];
    let frame = |title| Frame { title, x_label, y_label: "", x_axis: XAxis::Linear };
    let panels: Vec<_> = lines.iter().map(|line| (frame(line.0.as_str()), panel(line))).collect();
    Ok((figures, line_plots(&panels)?))
}

/// FID, or of sets that are too small for it KID.
fn distance(real: &Store, fake: &Store) -> Result<Report> {
    match fid(&real.gaussian()?, &fake.gaussian()?) {
        Ok(figure) => Ok(figure),
        Err(_) => kid(&real.vectors()?, &fake.vectors()?, &mut item_rng(0, Purpose::Subset, 0, 0)),
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

pub fn measure_clip_score(dir: &Path, flags: &Network) -> Result<()> {
    let model = "captions are scored by a contrastive model; use --rerank";
    ensure!(flags.inception.is_none(), "--inception: {model}");
    let pictures = Pictures::open(dir)?;
    let mut without = 0;
    let pairs = pictures.from(0).filter_map(|picture| match picture {
        Ok(Captioned { image, caption: Some(caption) }) => Some(Ok((image, caption))),
        Ok(Captioned { caption: None, .. }) => {
            without += 1;
            None
        }
        Err(error) => Some(Err(error)),
    });
    let Embedded { images, texts, cut } = embedded(&reranker(flags.rerank.as_deref())?, pairs)?;
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
        let caption = sample.captions.first().context("a picture has no caption")?;
        Ok((sample.image.clone(), caption.clone()))
    })
}

pub fn measure_retrieval(data: &Path, flags: &Network) -> Result<()> {
    let val = super::held_out_of(data)?;
    let Embedded { images, texts, .. } = embedded(&reranker(flags.rerank.as_deref())?, held_out_pairs(&val))?;
    print(flags, &retrieval(&images, &texts, None)?)
}

pub fn measure_overlap(
    data: &Path,
    flags: &Network,
    threshold: f32,
    fake: Option<&Path>,
    out: &Path,
) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Picture)], flags.json)?;
    let dataset = Dataset::open(data)?;
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

/// The training pictures that held-out ones are nearest to; with `fake` also the distance of these pictures from the held-out ones, with and
/// without those that overlap (paper §3).
pub fn overlaps(
    network: &dyn Features,
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
    let cells: Vec<RgbImage> =
        pairs.flat_map(|pair| [&val[pair.val].image, &train[pair.train].image]).cloned().collect();
    let (with, without) = split_by_overlap(&overlaps, f64::from(threshold));
    let share = 100.0 * with.len() as f64 / val.len() as f64;
    let name = format!("overlaps, cosine ≥ {threshold}");
    let mut figures =
        vec![Report { unit: "%".into(), features: network.name(), ..Report::new(&name, share, val.len()) }];
    if let Some(fake) = fake {
        let fake = seen(work, network, fake, ("", &unchanged))?.vectors()?;
        let mut rest = Vectors::new(&network.name(), network.dims());
        let row = |i: usize| &real.values()[i * network.dims()..(i + 1) * network.dims()];
        without.iter().try_for_each(|&i| rest.push_all(row(i)))?;
        for (what, real) in [("all", &real), ("without overlaps", &rest)] {
            let figure = kid(real, &fake, &mut item_rng(0, Purpose::Subset, 0, 0))?;
            figures.push(Report { name: format!("{}, {what}", figure.name), ..figure });
        }
    }
    Ok(Overlaps { figures, sheet: grid(&cells, 2 * SHEET[1]) })
}

fn vectors_of(network: &dyn Features, samples: &[Sample]) -> Result<Vectors> {
    let mut vectors = Vectors::new(&network.name(), network.dims());
    for samples in samples.chunks(TOGETHER) {
        let pictures: Vec<RgbImage> = samples.iter().map(|sample| sample.image.clone()).collect();
        vectors.push_all(&network.see(&pictures)?.features)?;
    }
    Ok(vectors)
}

/// A line a figure, or JSON.
pub fn print(flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => say(serde_json::to_string_pretty(reports)?),
        false => reports.iter().try_for_each(say),
    }
}

/// The same beside files, one of which may be standard output.
fn print_beside(outputs: &Outputs, flags: &Network, reports: &[Report]) -> Result<()> {
    match flags.json {
        true => print(flags, reports),
        false => reports.iter().try_for_each(|report| outputs.say(report)),
    }
}
