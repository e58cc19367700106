//! `tessera eval report`: runs all evaluations of a model on a data set, and writes one web page
//! with the results.

use std::path::Path;

use anyhow::Result;
use image::RgbImage;
use tessera_base::atomic;
use tessera_base::pixels::contact_sheet;
use tessera_data::{Dataset, Sample};
use tessera_eval::{
    Blurs, Embedding, Extraction, Figure, Page, Pairs, Protocol, Report, best_of, blur_curve, conditioning,
    drawing, held_out_captions, held_out_codes, held_out_pictures, held_out_subjects, overlap_report,
    pictures_in, plot_curve, recon, retrieval,
};
use tessera_model::Request;
use tessera_model::dvae::DvaeConfig;
use tessera_model::rerank::Reranker;

use super::drawn::Models;
use super::open;
use crate::args::{DrawnArgs, HeldOutDrawn};
use crate::commands::draw::{checked_sampling, enlarge};
use crate::commands::output::{Content, Outputs};
use crate::commands::{dvae_config, model_file};
use crate::reporter::Terminal;

/// The number of captions whose drawings are shown.
const SHOWN: usize = 16;
/// The radii of the blur in pixels (paper, figure 9).
const RADII: [f32; 5] = [0.0, 1.0, 2.0, 4.0, 8.0];
/// The height and width of the pictures that are blurred, as in the paper.
const SIZE: u32 = 256;
/// The cosine from which a held-out picture counts as equal to a training picture.
const SAME: f32 = 0.95;

/// Runs `tessera eval report`.
pub fn run(HeldOutDrawn { data, common: args, sampling }: &HeldOutDrawn, out: &Path) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Page)], false)?;
    let dataset = open(data)?;
    let captions = held_out_captions(&dataset, args.captions)?;
    let models = Models::open(args)?;
    let file = model_file(args.which.model.as_deref())?;
    let config = dvae_config(&file, args.which.model.as_deref())?;
    let name = args.which.model.as_ref().and_then(|path| path.file_name());
    let name = name.map_or("the embedded model".into(), |name| name.to_string_lossy());
    let mut page = Page::new(&format!("Evaluation of {name}"));

    let sampling = checked_sampling(sampling, &models.tessera)?;
    let request = Request { n: 4, seed: args.seed, sampling, previews: false, ..Request::default() };
    stages(&mut page, &models, &dataset.val, config, &request)?;
    ranker(&mut page, &models, &dataset)?;
    if let Some(judge) = models.judge() {
        judged(&mut page, &models, judge, (data, &dataset), (args, &captions, &request.sampling))?;
    }
    let network = models.judge().or(models.tessera.reranker.as_ref());
    if let Some(network) = network.map(|network| Embedding::new::<&str>(network, &[])).transpose()? {
        overlap(&mut page, &network, &dataset)?;
    }
    atomic::write(out, page.to_html().as_bytes())?;
    outputs.say(out.display())
}

/// Adds the evaluations that need a judge: of the best among candidates, and of blurred drawings.
fn judged(
    page: &mut Page,
    models: &Models,
    judge: &Reranker,
    (data, dataset): (&Path, &Dataset),
    (args, captions, sampling): (&DrawnArgs, &[String], &tessera_model::Sampling),
) -> Result<()> {
    let curve = models.curve_of(dataset, args, sampling)?;
    page.section(
        "Choosing among candidates",
        "Each held-out caption is drawn many times. The model's own contrastive model selects the best drawing, and another one, which \
         never ranks, judges it (paper, figure 9c).",
    );
    page.plot(&plot_curve(&curve)?, "Results by the number of candidates of which the best is kept.");
    if let Some(last) = curve.last() {
        page.figures(&last.figures);
        page.picture(
            &sheet(dataset, captions, last.best_of, args)?,
            "Real picture, first candidate, best candidate.",
        )?;
    }
    let network = Embedding::new::<&str>(judge, &[])?;
    page.section(
        "Blurred pictures",
        "Distances between the best drawings and real pictures when both are blurred, which removes fine details (paper, figures 9a and \
         9b).",
    );
    let best = best_of(&args.drawings, curve.last().map_or(1, |point| point.best_of));
    let blurs = Blurs { radii: &RADII, size: SIZE };
    let terminal = Terminal::default();
    let extraction = Extraction { work: None, reporter: &terminal };
    let (figures, plot) = blur_curve(Protocol::One(&network), [data, &best], blurs, extraction)?;
    page.plot(&plot, "Results by the radius of the blur in pixels, for pictures of 256 × 256.");
    page.figures(&figures);
    Ok(())
}

/// Adds the overlap of the held-out pictures with the training set.
fn overlap(page: &mut Page, network: &Embedding, dataset: &Dataset) -> Result<()> {
    let terminal = Terminal::default();
    let extraction = Extraction { work: None, reporter: &terminal };
    page.section(
        "Overlap with the training set",
        "The held-out pictures that are nearest to a training picture, each next to that picture (paper §3).",
    );
    let overlaps = overlap_report(network, dataset, SAME, None, extraction)?;
    page.figures(&overlaps.figures);
    page.picture(&overlaps.sheet, "The closest pairs: the held-out picture, then the training picture.")
}

/// Adds the evaluations of the stages: reconstruction by the dVAE, the effect of captions on the
/// prior's loss, and unranked drawings.
fn stages(
    page: &mut Page,
    models: &Models,
    val: &[Sample],
    config: &DvaeConfig,
    request: &Request,
) -> Result<()> {
    let tessera = &models.tessera;
    let found = recon(&tessera.dvae, config, &held_out_pictures(val, config)?);
    let figure = |name: &str, value, unit: &str, error: Option<f64>| Report {
        unit: unit.into(),
        plus_minus: error,
        ..Report::new(name, value, val.len())
    };
    page.section("Reconstruction", "Held-out pictures, encoded into tokens and decoded again.");
    page.figures(&[
        figure("PSNR", found.psnr_db, "dB", Some(found.psnr_db_se)),
        figure(
            "−(NLL + KL), β = 1, of argmax tokens",
            found.argmax_objective_nats_per_value,
            "nats per value",
            None,
        ),
        figure("codes in use", found.codes_used as f64, "", None),
        figure("codebook perplexity", found.perplexity, "", None),
    ]);
    let words =
        conditioning(&tessera.prior, None, &held_out_codes(val, &tessera.dvae, config, &tessera.bpe)?)?;
    let nats = |name: &str, found: Figure| figure(name, found.mean, "nats per token", Some(found.se));
    page.section(
        "Captions",
        "The image loss of held-out pictures with their true caption, and its increase with another caption.",
    );
    page.figures(&[
        nats("with the true caption", words.true_caption),
        nats("increase with another of the same style", words.gap.same_style),
        nats("increase with any other", words.gap.shuffled),
        nats("increase without a caption", words.gap.none),
    ]);
    let subjects = held_out_subjects(val, config.image_size as u32, &tessera.bpe)?;
    let judged = drawing(&tessera.sampler, &tessera.dvae, &subjects, request, |_, _| ())?;
    page.section(
        "Unranked drawings",
        "How often the nearest of eight real pictures of the style, by layout and colour, is the one that the caption describes; chance \
         is 12.5 %.",
    );
    let right = figure("right", 100.0 * judged.right, "%", Some(100.0 * judged.right_se));
    page.figures(&[Report { n: judged.captions, ..right }]);
    Ok(())
}

/// Adds the retrieval metrics of the model that ranks and of the one that judges.
fn ranker(page: &mut Page, models: &Models, dataset: &Dataset) -> Result<()> {
    page.section(
        "Contrastive models",
        "How often a held-out caption retrieves its picture among others, and a picture its caption.",
    );
    for reranker in models.tessera.reranker.iter().chain(models.judge()) {
        let pairs = Pairs::held_out(reranker, &dataset.val)?;
        page.figures(&retrieval(&pairs.images, &pairs.texts, None)?);
    }
    Ok(())
}

/// Makes a sheet of some captions with the real picture, the first candidate and the best candidate
/// of each, three captions per row.
fn sheet(dataset: &Dataset, captions: &[String], k: usize, args: &DrawnArgs) -> Result<RgbImage> {
    let every = captions.len().div_ceil(SHOWN);
    let read = |k| pictures_in(&best_of(&args.drawings, k), captions.len()).collect::<Result<Vec<_>>>();
    let (first, best) = (read(1)?, read(k)?);
    let mut cells = Vec::new();
    for (i, caption) in captions.iter().enumerate().step_by(every) {
        let real = dataset.val.iter().find(|sample| sample.captions.first() == Some(caption));
        let side = first[i].width();
        let real = real.map(|sample| image::imageops::thumbnail(&sample.middle(), side, side));
        for picture in real.iter().chain([&first[i], &best[i]]) {
            cells.push(enlarge(picture, 2)?);
        }
    }
    Ok(contact_sheet(&cells, 12))
}
