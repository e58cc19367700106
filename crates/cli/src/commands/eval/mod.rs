//! `tessera eval`: evaluates models and sets of pictures, and prints a table or JSON.

mod drawn;
mod human;
mod protocol;
mod report;
mod sets;
mod zero_shot;

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Result, ensure};
use image::RgbImage;
use tessera_base::atomic;
use tessera_base::pixels::contact_sheet;
use tessera_base::{Progress, Reporter};
use tessera_data::{Dataset, DatasetIndex, ReadSample, Sample, Skipped, counted};
use tessera_eval::{
    Blurs, Conditioning, DrawingReport, Figure, Recon, Subject, conditioning, curves, drawing, recon,
};
use tessera_eval::{held_out_codes, held_out_pictures, held_out_subjects};
use tessera_kernels::decode::Weights as Kept;
use tessera_model::weights::ModelFile;
use tessera_model::{Request, Sampling, Tessera};

use super::draw::{checked_sampling, enlarge};
use super::output::{Content, Outputs, write_picture};
use super::{compute, dvae_config, ensure_draws, model_file, say, tessera_of};
use crate::args::{self, Eval, EvalArgs, ModelArgs, PaperSampling, PrecisionFlag, Weights};
use crate::reporter::Terminal;
use crate::stderr::note;

/// The number of captions on a sheet of drawings.
const SHEET_ROWS: usize = 20;
/// The factor by which pictures on a sheet are enlarged.
const SHEET_SCALE: u32 = 2;

/// Builds the model of `file`, which the flags name, for evaluation. Unlike for drawing, 8-bit weights
/// are never the default.
fn measured_tessera(file: &ModelFile, which: &ModelArgs, precision: PrecisionFlag) -> Result<Tessera> {
    let ModelArgs { model, weights, on } = which;
    ensure_draws(file, model.as_deref())?;
    let compute = compute(*on, *weights, precision)?;
    match weights {
        Some(Weights::Int8) => tessera_of(file, *weights, &compute),
        Some(Weights::F32 | Weights::Bf16) | None => Tessera::with_weights(file, compute, Kept::Full),
    }
}

/// Runs an evaluation.
pub fn run(eval: Eval) -> Result<()> {
    match eval {
        Eval::Recon(args) => {
            let file = model_file(args.which.model.as_deref())?;
            let config = dvae_config(&file, args.which.model.as_deref())?;
            let dvae = file.dvae(compute(args.which.on, args.which.weights, args.precision)?)?;
            let pictures = held_out_pictures(&held_out(&args)?, config)?;
            report(&args, &recon(&dvae, config, &pictures), recon_table)
        }
        Eval::Conditioning(args) => {
            let file = model_file(args.which.model.as_deref())?;
            let config = dvae_config(&file, args.which.model.as_deref())?;
            let tessera = measured_tessera(&file, &args.which, args.precision)?;
            let items = held_out_codes(&held_out(&args)?, &tessera.dvae, config, &tessera.bpe)?;
            let found = conditioning(&tessera.prior, Some(&tessera.sampler), &items)?;
            report(&args, &found, conditioning_table)
        }
        Eval::Drawing { common, n, seed, sampling, sheet, trained } => {
            let sheet = sheet.as_deref();
            let files: Vec<_> = sheet.iter().map(|&path| (path, Content::Picture)).collect();
            let outputs = Outputs::check(&files, common.json)?;
            let found = judge(&common, n, seed, &sampling, (sheet, trained))?;
            match common.json {
                true => report(&common, &found, drawing_table),
                false => outputs.say(drawing_table(&found)),
            }
        }
        Eval::Retrieval { data, network } => sets::measure_retrieval(&data, &network),
        Eval::Fid(pair) => sets::measure_fid(&pair),
        Eval::Pair(measure) => sets::measure_pair(&measure),
        Eval::Is { dir, network } => sets::measure_is(&dir, &network),
        Eval::ClipScore { dir, network } => sets::measure_clip_score(&dir, &network),
        Eval::Blur { pair, radii, size, out } => {
            sets::measure_blur(&pair, Blurs { radii: &radii, size }, &out)
        }
        Eval::Overlap { data, network, threshold, fake, out } => {
            sets::measure_overlap(&data, &network, threshold, fake.as_deref(), &out)
        }
        Eval::RerankCurve { drawn, out } => drawn::curve(&drawn, &out),
        Eval::Coco { dir, drawn, sampling } => drawn::coco(&dir, &drawn, as_in_the_paper(&sampling)),
        Eval::Cub { dir, drawn, sampling } => drawn::cub(&dir, &drawn, as_in_the_paper(&sampling)),
        Eval::ZeroShot(args) => zero_shot::run(&args),
        Eval::Human(human) => human::run(&human),
        Eval::Report { drawn, out } => report::run(&drawn, &out),
        Eval::Curves { runs, metrics, out } => {
            let outputs = Outputs::check(&[(&out, Content::Plot)], false)?;
            atomic::write(&out, curves(&runs, &metrics)?.as_bytes())?;
            outputs.say(out.display())
        }
    }
}

/// Converts the sampling flags of evaluations whose defaults are those of the paper.
fn as_in_the_paper(flags: &PaperSampling) -> Sampling {
    let PaperSampling { temperature, top_k, top_p, guidance } = *flags;
    Sampling { temperature, top_k, top_p, guidance }
}

/// Opens a data set, and prints a note if files were skipped.
fn open(data: &Path) -> Result<Dataset> {
    let dataset = Dataset::open(data)?;
    note_skipped(data, &dataset.skipped);
    Ok(dataset)
}

fn note_skipped(data: &Path, skipped: &Skipped) {
    if skipped.total() > 0 {
        note!("{}: {skipped}", data.display());
    }
}

fn held_out(args: &EvalArgs) -> Result<Vec<Sample>> {
    held_out_of(&args.data)
}

/// Reads the held-out part of a data set. The training pictures are not kept in memory.
fn held_out_of(data: &Path) -> Result<Vec<Sample>> {
    let dataset = DatasetIndex::open(data)?;
    note_skipped(data, &dataset.skipped);
    ensure!(
        !dataset.val.is_empty(),
        "{} holds out no pictures; make the data set with --holdout 5",
        data.display()
    );
    dataset.val.iter().map(|sample| sample.sample().map(Cow::into_owned)).collect()
}

/// Draws every held-out caption, or every training caption, and judges the drawings. With `sheet`,
/// it also writes the drawings of evenly chosen captions next to their real pictures, and lists the
/// captions.
fn judge(
    args: &EvalArgs,
    n: usize,
    seed: u64,
    sampling: &args::Sampling,
    (sheet, trained): (Option<&Path>, bool),
) -> Result<DrawingReport> {
    let file = model_file(args.which.model.as_deref())?;
    let side = dvae_config(&file, args.which.model.as_deref())?.image_size;
    let tessera = measured_tessera(&file, &args.which, args.precision)?;
    let sampling = checked_sampling(sampling, &tessera)?;
    let samples = if trained { open(&args.data)?.train } else { held_out(args)? };
    let subjects: Vec<Subject> = held_out_subjects(&samples, side as u32, &tessera.bpe)?;
    let every = subjects.len().div_ceil(SHEET_ROWS);
    let mut cells: Vec<RgbImage> = Vec::new();
    let mut captions = Vec::new();
    let (terminal, total) = (Terminal::default(), subjects.len() as u64);
    let request = Request { n, seed, sampling, previews: false, ..Request::default() };
    let found = drawing(&tessera.sampler, &tessera.dvae, &subjects, &request, |index, drawings| {
        let done = index as u64 + 1;
        terminal.progress(Progress { task: "drawing captions", done, total, detail: "" });
        if sheet.is_some() && index.is_multiple_of(every) {
            let row = std::iter::once(&subjects[index].image).chain(&drawings);
            cells.extend(row.cloned());
            captions.push(samples[index].captions[0].clone());
        }
    })?;
    if let Some(path) = sheet {
        let cells = cells.iter().map(|picture| enlarge(picture, SHEET_SCALE)).collect::<Result<Vec<_>>>()?;
        write_picture(path, &contact_sheet(&cells, n + 1), None)?;
        captions.iter().enumerate().for_each(|(row, caption)| note!("{:3}. {caption}", row + 1));
    }
    Ok(found)
}

fn report<R: serde::Serialize>(args: &EvalArgs, report: &R, table: fn(&R) -> String) -> Result<()> {
    match args.json {
        true => say(serde_json::to_string_pretty(report)?),
        false => say(table(report)),
    }
}

fn recon_table(r: &Recon) -> String {
    [
        format!("reconstruction of {}", counted(r.pictures as u64, "held-out picture")),
        format!("  PSNR             {:8.2} ± {:.2} dB", r.psnr_db, r.psnr_db_se),
        format!(
            "  −(NLL + KL)      {:8.4} nats per value (β = 1; from argmax tokens, so it is not a bound)",
            r.argmax_objective_nats_per_value
        ),
        format!("  log-likelihood   {:8.4} nats per value", -r.nll_nats_per_value),
        format!("  KL to uniform    {:8.3} nats per token", r.kl_nats_per_token),
        format!("  codes in use     {:8}", r.codes_used),
        format!("  perplexity       {:8.1}", r.perplexity),
    ]
    .join("\n")
}

fn conditioning_table(c: &Conditioning) -> String {
    let row = |name: &str, loss: Figure, gap: Option<Figure>| {
        let gap = gap.map_or(String::new(), |gap| format!("{:+.4} ± {:.4}", gap.mean, gap.se));
        format!("  {name:26} {:.4} ± {:.4}   {gap}", loss.mean, loss.se)
    };
    let mut rows = vec![
        format!(
            "image loss of {} held-out pictures in nats per token, and its difference from the true caption's",
            c.pictures
        ),
        row("true caption", c.true_caption, None),
        row("other caption, same style", c.loss.same_style, Some(c.gap.same_style)),
        row("other caption, any style", c.loss.shuffled, Some(c.gap.shuffled)),
        row("no caption", c.loss.none, Some(c.gap.none)),
    ];
    rows.extend(c.drawn.map(|drawn| row("true caption, by sampler", drawn.loss, Some(drawn.gap))));
    rows.join("\n")
}

fn drawing_table(d: &DrawingReport) -> String {
    let mut table = format!(
        "{} of each of {}: how often the nearest of eight real pictures of the style is the right one\n\
         \x20 right            {:8.1} ± {:.1} %\n  chance           {:8.1} %",
        counted(d.drawings_each as u64, "drawing"),
        counted(d.captions as u64, "caption"),
        100.0 * d.right,
        100.0 * d.right_se,
        100.0 * d.chance
    );
    if d.left_out > 0 {
        table += &format!(
            "\n  left out         {:8} captions: fewer than eight pictures have their style",
            d.left_out
        );
    }
    table
}
