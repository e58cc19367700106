//! `tessera draw`: a sentence in, a grid of pictures out.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use image::imageops::FilterType;
use image::{DynamicImage, RgbImage, imageops};
use indicatif::{ProgressBar, ProgressStyle};
use tessera_kernels::{Cpu, Isa};
use tessera_model::rerank::Reranker;
use tessera_model::weights::ModelFile;
use tessera_model::{Event, Picture, Request, Sampling, Tessera};
use tessera_train::grid;

use super::{model_file, say};
use crate::args::{self, Draw};
use crate::digits::labelled;
use crate::png_text::{Parameters, write_png};

/// Most pictures of one call: a limit against slips of the finger.
const MAX_PICTURES: usize = 4096;

/// Pictures that are shown of a prompt unless told otherwise.
const SHOWN: usize = 9;
/// Candidates for each of them.
const CANDIDATES: usize = 4;

/// How many pictures of each prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    shown: usize,
    /// What they are the best of, if they are ranked.
    of: Option<usize>,
}

impl Count {
    /// What the flags mean for a model that has a reranker, or has none.
    fn new(args: &Draw, has_reranker: bool) -> Result<Count> {
        let count = match (args.n, args.best, args.of) {
            (Some(n), _, _) => Count { shown: n, of: None },
            (None, None, None) if !has_reranker => Count { shown: SHOWN, of: None },
            (None, best, of) => {
                let shown = best.unwrap_or(SHOWN.min(of.unwrap_or(SHOWN)));
                Count { shown, of: Some(of.unwrap_or(shown.saturating_mul(CANDIDATES))) }
            }
        };
        let flag = match (args.n, args.best, args.of) {
            (Some(n), _, _) => format!("-n {n}"),
            (None, _, _) => format!("--best {} --of {}", count.shown, count.drawn()),
        };
        ensure!(
            count.shown > 0 && count.drawn().saturating_mul(args.prompts.len()) <= MAX_PICTURES,
            "{flag}: wanted 1 to {MAX_PICTURES} pictures in all"
        );
        ensure!(count.shown <= count.drawn(), "{flag}: wanted no more than are drawn");
        ensure!(
            count.of.is_none() || has_reranker,
            "{flag}: the model has no reranker; name one with --rerank, or draw with -n"
        );
        ensure!(
            count.of.is_some() || !args.scores,
            "--scores: only ranked pictures have scores; use --best and --of"
        );
        Ok(count)
    }

    fn drawn(self) -> usize {
        self.of.unwrap_or(self.shown)
    }
}

pub fn run(args: &Draw) -> Result<()> {
    ensure!((1..=64).contains(&args.scale), "--scale {}: wanted 1 to 64", args.scale);
    check_writable(&args.out)?;
    let seed = args.seed.unwrap_or_else(clock_seed);
    let mut tessera = Tessera::new(&model_file(args.model.as_deref())?, &Default::default())?;
    if let Some(path) = &args.rerank {
        let reranker = Reranker::new(&ModelFile::read(path)?, &Default::default());
        tessera.reranker = Some(reranker.with_context(|| path.display().to_string())?);
    }
    let count = Count::new(args, tessera.reranker.is_some())?;
    let mut parameters = Parameters {
        program: format!("tessera {}", env!("CARGO_PKG_VERSION")),
        prompts: Vec::new(),
        n: count.shown,
        of: count.of,
        scores: Vec::new(),
        reranker: args.rerank.as_deref().map(name),
        seed,
        sampling: meant(&args.sampling),
        model: args.model.as_deref().map_or("embedded".into(), name),
    };
    if Cpu::current().isa() == Isa::Portable {
        eprintln!("this processor has neither AVX2 nor AVX-512: computing without them, which is slower");
    }
    let mut pictures = Vec::new();
    for prompt in &args.prompts {
        let read = tessera.read_prompt(prompt)?;
        if read.truncated {
            eprintln!("warning: the prompt is too long; the model reads only up to: …{:?}", tail(&read.text));
        }
        if let (Some(_), Some(reranker)) = (count.of, &tessera.reranker) {
            let dropped = reranker.captions(&[prompt])?[0].dropped_tokens;
            if dropped > 0 {
                eprintln!(
                    "warning: the prompt is too long; the reranker does not read its last {dropped} tokens"
                );
            }
        }
        parameters.prompts.push(read.text);
        let request = Request {
            prompt: prompt.clone(),
            n: count.drawn(),
            best: count.of.map(|_| count.shown),
            seed,
            sampling: parameters.sampling.clone(),
            previews: false,
            ..Request::default()
        };
        pictures.extend(draw(&tessera, request)?);
    }
    parameters.scores = pictures.iter().filter_map(|picture| picture.score).collect();
    save(args, &pictures, &parameters)
}

/// A file's name alone: where it lies is nobody's business who gets the picture.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The sampling flags as the model takes them.
pub fn meant(flags: &args::Sampling) -> Sampling {
    let args::Sampling { temperature, top_k, top_p, guidance } = *flags;
    Sampling { temperature, top_k, top_p: Some(top_p), guidance }
}

/// Runs the request behind a bar.
fn draw(tessera: &Tessera, request: Request) -> Result<Vec<Picture>> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} tokens {per_sec} eta {eta}")?);
    let mut pictures = Vec::new();
    for event in tessera.draw(request)? {
        match event? {
            Event::Tokens { done, total, .. } => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            Event::Preview(_) => {}
            Event::Picture(picture) => pictures.push(picture),
        }
    }
    bar.finish_and_clear();
    Ok(pictures)
}

fn save(args: &Draw, pictures: &[Picture], parameters: &Parameters) -> Result<()> {
    let cell = |picture: &Picture| {
        let large = enlarge(&picture.image, args.scale);
        match picture.score {
            Some(score) if args.scores => labelled(&large, &format!("{score:.3}")),
            _ => large,
        }
    };
    let large: Vec<RgbImage> = pictures.iter().map(cell).collect();
    let square = (parameters.n as f64).sqrt().ceil() as usize;
    let sheet = grid(&large, if args.prompts.len() == 1 { square } else { parameters.n });
    if args.separate {
        for (index, picture) in large.iter().enumerate() {
            write_png(&numbered(&args.out, index + 1), picture, parameters)?;
        }
        let (first, last) = (numbered(&args.out, 1), numbered(&args.out, large.len()));
        say(format_args!("{} to {}", first.display(), last.display()))?;
    } else {
        write_png(&args.out, &sheet, parameters)?;
        say(format_args!("{} (seed {})", args.out.display(), parameters.seed))?;
    }
    if std::io::stdout().is_terminal() {
        let config = viuer::Config {
            absolute_offset: false,
            width: Some(60),
            // Asking a terminal whether it knows a picture protocol waits for an answer that may never come.
            use_kitty: false,
            use_iterm: false,
            ..viuer::Config::default()
        };
        // A terminal that cannot show pictures has its file all the same.
        let _ = viuer::print(&DynamicImage::ImageRgb8(sheet), &config);
    }
    Ok(())
}

pub fn enlarge(picture: &RgbImage, scale: u32) -> RgbImage {
    imageops::resize(picture, picture.width() * scale, picture.height() * scale, FilterType::CatmullRom)
}

/// Fails early: before anything is drawn.
pub fn check_writable(out: &Path) -> Result<()> {
    let existed = out.exists();
    std::fs::File::options()
        .append(true)
        .create(true)
        .open(out)
        .with_context(|| format!("cannot write {}; choose another --out", out.display()))?;
    if !existed {
        std::fs::remove_file(out)?;
    }
    Ok(())
}

/// `dir/name.png` → `dir/name-3.png`
fn numbered(out: &Path, number: usize) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension = out.extension().map_or("png".into(), |e| e.to_string_lossy());
    out.with_file_name(format!("{stem}-{number}.{extension}"))
}

fn tail(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(30);
    text.chars().skip(skip).collect()
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64 % 1_000_000)
}
