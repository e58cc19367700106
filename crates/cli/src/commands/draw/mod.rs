//! `tessera draw`: draws a grid of pictures for each caption.

mod prompt;
mod render;
mod save;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use image::RgbImage;
use indicatif::ProgressStyle;
use tessera_data::{picture, read_text, text_lines};
use tessera_kernels::Isa;
use tessera_model::sample::{CANDIDATES_EACH, DEFAULT_N, Ranking, random_seed};
use tessera_model::{Batch, Event, Job, Picture, Request, Sampling, Tessera};
use tessera_prompt::{Model, parameters};
use tessera_text::{Unknown, normalise, unknown_words};

use self::render::Renderer;
use super::output::{Content, Outputs, is_file};
use super::{model_name, tessera, warn_without_guidance};
use crate::args::{self, Draw};
use crate::reporter::progress_bar;
use crate::stderr::note;

/// The maximum number of pictures of one command, as a protection against typing errors.
const MAX_PICTURES: usize = 4096;

/// The number of pictures per prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    shown: usize,
    /// The number of candidates of which these are the best, if they are ranked.
    of: Option<usize>,
}

impl Count {
    /// Computes the numbers from the flags and the number of prompts. `unrankable` is the reason
    /// why pictures cannot be ranked, if there is one.
    fn new(args: &Draw, prompts: usize, unrankable: Option<&str>) -> Result<Count> {
        let count = match (args.n, args.best, args.of) {
            (Some(n), _, _) => Count { shown: n, of: None },
            (None, None, None) if unrankable.is_some() => Count { shown: DEFAULT_N, of: None },
            (None, best, of) => {
                let shown = best.unwrap_or(DEFAULT_N.min(of.unwrap_or(DEFAULT_N)));
                Count { shown, of: Some(of.unwrap_or(shown.saturating_mul(CANDIDATES_EACH))) }
            }
        };
        let flag = match (args.n, args.best, args.of) {
            (Some(n), _, _) => format!("-n {n}"),
            (None, _, _) => format!("--best {} --of {}", count.shown, count.drawn()),
        };
        ensure!(
            count.shown > 0 && count.drawn().saturating_mul(prompts) <= MAX_PICTURES,
            "{flag}: wanted 1 to {MAX_PICTURES} pictures in all"
        );
        ensure!(count.shown <= count.drawn(), "{flag}: --best must not exceed --of");
        if let (Some(_), Some(reason)) = (count.of, unrankable) {
            bail!("{flag}: {reason}, or use -n N to draw without ranking");
        }
        ensure!(
            count.of.is_some() || !args.scores,
            "--scores: only ranked pictures have scores; use --best and --of"
        );
        Ok(count)
    }

    /// The number of pictures that are drawn, including candidates that are not kept.
    fn drawn(self) -> usize {
        self.of.unwrap_or(self.shown)
    }
}

/// Runs `tessera draw`.
pub fn run(args: &Draw) -> Result<()> {
    ensure!((1..=64).contains(&args.scale), "--scale {}: wanted 1 to 64", args.scale);
    check_outputs(args, 1)?;
    let mut prompts = prompts(args)?;
    let seed = args.seed.unwrap_or_else(random_seed);
    let (tessera, model_id) = tessera(&args.which, args.rerank.as_deref())?;
    let picture = prompt::read(&args.picture, &tessera, &model_id)?;
    if prompts.is_empty() {
        prompts.push(picture.as_ref().and_then(|picture| picture.drawn_from.clone()).unwrap_or_default());
    }
    let unrankable = match &tessera.reranker {
        None => Some("the model has no reranker; name one with --rerank"),
        Some(_) if prompts.iter().any(|prompt| normalise(prompt).is_empty()) => {
            Some("there are no words to rank by; give a prompt")
        }
        Some(_) => None,
    };
    let count = Count::new(args, prompts.len(), unrankable)?;
    let outputs = check_outputs(args, count.shown * prompts.len())?;
    if tessera.cpu().isa() == Isa::Portable {
        note!("this processor has neither AVX2 nor AVX-512: computing without them, which is slower");
    }
    let request = Request {
        negative: args.negative.clone(),
        n: count.drawn(),
        best: count.of.map(|_| count.shown),
        seed,
        sampling: checked_sampling(&args.sampling, &tessera)?,
        given: picture.as_ref().map_or_else(Vec::new, |picture| picture.tokens.clone()),
        strength: if args.picture.variations { args.picture.strength } else { 0.0 },
        previews: false,
        ..Request::default()
    };
    let (read, jobs) = read_prompts(&tessera, &prompts, &request)?;
    if let Some(line) = tessera.words.as_ref().and_then(|known| unknown_line(&prompts, known)) {
        note!("{line}");
    }
    let model = Model { name: &model_name(args.which.model.as_deref()), id: &model_id };
    let mut parameters =
        parameters(&request, [prompts, read], count.shown, model, picture.as_ref(), args.picture.variations);
    parameters.reranker = args.rerank.as_deref().map(|path| model_name(Some(path)));
    let pictures = draw(&tessera, jobs)?;
    parameters.scores = pictures.iter().filter_map(|picture| picture.score).collect();
    let renderer = Renderer::new(args, &tessera, &request.given, &pictures)?;
    save::save(args, &outputs, &renderer, &request.given, &pictures, &parameters)
}

/// Checks that the files of `n` pictures can be written.
fn check_outputs(args: &Draw, n: usize) -> Result<Outputs> {
    ensure!(
        !args.separate || is_file(&args.out),
        "--separate: wanted the name of a file; {} is not one",
        args.out.display()
    );
    let pictures = picture_files(args, n);
    let pictures = pictures.iter().map(|path| (path.as_path(), Content::Picture));
    let animation = args.gif.iter().map(|path| (path.as_path(), Content::Animation));
    Outputs::check(&pictures.chain(animation).collect::<Vec<_>>(), args.json)
}

/// Returns the files for `n` pictures: one for each, or one for all.
fn picture_files(args: &Draw, n: usize) -> Vec<PathBuf> {
    match args.separate {
        true => (1..=n).map(|number| save::numbered(&args.out, number)).collect(),
        false => vec![args.out.clone()],
    }
}

/// Returns the prompts of the command line, then those of the file.
fn prompts(args: &Draw) -> Result<Vec<String>> {
    let mut prompts = args.prompts.clone();
    if let Some(path) = &args.prompts_file {
        prompts.extend(text_lines(&read_text(path)?));
        ensure!(!prompts.is_empty(), "{} holds no prompt: wanted one per line", path.display());
    }
    Ok(prompts)
}

/// Returns the prompts as the model reads them, and a job for each. Warns if a prompt is truncated.
fn read_prompts<'a>(
    tessera: &'a Tessera,
    prompts: &[String],
    request: &Request,
) -> Result<(Vec<String>, Vec<Job<'a>>)> {
    let read = |prompt: &String| {
        let read = tessera.read_prompt(prompt)?;
        let job = tessera.job_of(&read, Request { prompt: prompt.clone(), ..request.clone() })?;
        if read.truncated {
            note!("warning: the prompt is too long; the model reads only up to: …{:?}", tail(&read.text));
        }
        let dropped = job.ranking.as_ref().map_or(0, Ranking::dropped_tokens);
        if dropped > 0 {
            note!("warning: the prompt is too long; the reranker does not read its last {dropped} tokens");
        }
        Ok((read.text, job))
    };
    Ok(prompts.iter().map(read).collect::<Result<Vec<_>>>()?.into_iter().unzip())
}

/// Returns a note about the words of the prompts that are not `known`, if there are any.
fn unknown_line(prompts: &[String], known: &BTreeSet<String>) -> Option<String> {
    let named = |Unknown { word, suggestion }: &Unknown| match suggestion {
        Some(near) => format!("'{word}' (did you mean '{near}'?)"),
        None => format!("'{word}'"),
    };
    match &unknown_words(&prompts.join("\n"), known)[..] {
        [] => None,
        [Unknown { word, suggestion: Some(near) }] => {
            Some(format!("unknown word: '{word}'; did you mean '{near}'?"))
        }
        [one] => Some(format!("unknown word: {}", named(one))),
        many => Some(format!("unknown words: {}", many.iter().map(named).collect::<Vec<_>>().join(", "))),
    }
}

/// Converts the sampling flags, with the model's default of guidance.
///
/// # Errors
/// If they request guidance and the model was not trained for it.
pub fn checked_sampling(flags: &args::Sampling, tessera: &Tessera) -> Result<Sampling> {
    let args::Sampling { temperature, top_k, top_p, guidance } = *flags;
    if guidance.is_none() {
        warn_without_guidance(tessera);
    }
    Ok(Sampling { temperature, top_k, top_p: Some(top_p), guidance: tessera.guidance(guidance)? })
}

/// Draws all jobs in one batch, with a progress bar. Pictures are in the order of the jobs, and
/// those of one job in the order in which it returns them.
fn draw(tessera: &Tessera, jobs: Vec<Job>) -> Result<Vec<Picture>> {
    let bar = progress_bar(0);
    bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} tokens {per_sec} eta {eta}")?);
    let (n_jobs, mut batch) = (jobs.len(), tessera.batch(Batch::ROWS));
    for job in jobs {
        batch.add(job)?;
    }
    let mut pictures: Vec<(u64, Picture)> = Vec::new();
    while !batch.is_empty() {
        for (id, event) in batch.step()? {
            match event {
                Event::Tokens { new, total, .. } => {
                    bar.set_length((total * n_jobs) as u64);
                    bar.inc(new.len() as u64);
                }
                Event::Preview(_) => {}
                Event::Picture(picture) => pictures.push((id, picture)),
            }
        }
    }
    bar.finish_and_clear();
    pictures.sort_by_key(|(id, _)| *id);
    Ok(pictures.into_iter().map(|(_, picture)| picture).collect())
}

/// Returns `picture` with sides `scale` times as long.
pub fn enlarge(picture: &RgbImage, scale: u32) -> Result<RgbImage> {
    picture::enlarge(picture, [picture.width() * scale, picture.height() * scale])
}

/// Returns the last 30 characters.
fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(30);
    text.chars().skip(skip).collect()
}
