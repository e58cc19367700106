//! Writes the results of `draw`: a sheet or single files, an animation if requested, and a line or
//! JSON.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, RgbImage};
use serde_json::json;
use tessera_base::atomic;
use tessera_base::label::{labelled_sheet, with_text_below};
use tessera_base::pixels::contact_sheet;
use tessera_model::{Parameters, Picture};

use super::picture_files;
use super::render::Renderer;
use crate::args::Draw;
use crate::commands::output::{Outputs, write_picture};
use crate::commands::say;

/// The number of steps in which an animation shows the tokens. It has one frame more.
const FRAMES: usize = 36;
/// The duration of a frame in milliseconds.
const FRAME_MS: u32 = 80;
/// The duration of the last frame in milliseconds.
const LAST_MS: u32 = 2500;
/// The maximum number of lines of a label.
const LINES: usize = 3;

/// Writes the pictures to the files that the flags name, and prints the names or JSON. `given` is
/// the tokens of the picture prompt.
pub fn save(
    args: &Draw,
    outputs: &Outputs,
    renderer: &Renderer,
    given: &[Option<u32>],
    pictures: &[Picture],
    parameters: &Parameters,
) -> Result<()> {
    let large =
        pictures.iter().map(|picture| with_score(renderer, picture, args)).collect::<Result<Vec<_>>>()?;
    let square = (parameters.n as f64).sqrt().ceil() as usize;
    let columns = if parameters.prompts.len() == 1 { square } else { parameters.n };
    let mut files = picture_files(args, pictures.len());
    if args.separate {
        for (index, (path, picture)) in files.iter().zip(pictures).enumerate() {
            let prompt = index / parameters.n;
            let label = args.labels.then(|| parameters.asked[prompt].as_str());
            let labelled = label.map(|label| with_text_below(&large[index], label, LINES));
            write(path, labelled.as_ref().unwrap_or(&large[index]), &parameters.of_picture(picture, prompt))?;
        }
    } else {
        let sheet = match args.labels {
            true => {
                let prompts = parameters.asked.iter().map(String::as_str);
                labelled_sheet(prompts.zip(large.chunks(parameters.n)), columns, LINES)
            }
            false => contact_sheet(&large, columns),
        };
        let alone = pictures.first().filter(|_| pictures.len() == 1);
        let parameters =
            alone.map_or_else(|| parameters.clone(), |picture| parameters.of_picture(picture, 0));
        write(&args.out, &sheet, &parameters)?;
        if std::io::stdout().is_terminal() && !args.json && outputs.stdout_is_free() {
            show(sheet);
        }
    }
    if let Some(path) = &args.gif {
        write_gif(path, renderer, given, pictures, columns)?;
        files.push(path.clone());
    }
    match args.json {
        true => say(described(&files, pictures, parameters)?),
        false => outputs.say(line(&files, parameters.seed)),
    }
}

/// Returns the enlarged picture, with its score below it if scores are wanted.
fn with_score(renderer: &Renderer, picture: &Picture, args: &Draw) -> Result<RgbImage> {
    let large = renderer.finished(picture)?;
    Ok(match picture.score {
        Some(score) if args.scores => with_text_below(&large, &format!("{score:.3}"), 1),
        _ => large,
    })
}

/// Returns the line with the names of the files and the seed.
fn line(files: &[PathBuf], seed: u64) -> String {
    match files {
        [first, .., last] if files.len() > 2 => {
            format!("{} to {} (seed {seed})", first.display(), last.display())
        }
        _ => {
            let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            format!("{} (seed {seed})", names.join(" and "))
        }
    }
}

fn described(files: &[PathBuf], pictures: &[Picture], parameters: &Parameters) -> Result<serde_json::Value> {
    let picture = |(place, picture): (usize, &Picture)| {
        let Picture { index, tokens, score, .. } = picture;
        let prompt = &parameters.prompts[place / parameters.n];
        json!({ "prompt": prompt, "index": index, "score": score, "tokens": tokens })
    };
    let mut value = serde_json::to_value(parameters)?;
    value["files"] = json!(files);
    value["pictures"] = pictures.iter().enumerate().map(picture).collect();
    Ok(value)
}

/// Writes `image`, with its parameters if the format is PNG.
fn write(path: &Path, image: &RgbImage, parameters: &Parameters) -> Result<()> {
    write_picture(path, image, Some(serde_json::to_string(parameters)?))
}

/// Writes an animation in which tokens appear one after another. Cells that are not drawn yet are
/// white, except given ones.
fn write_gif(
    path: &Path,
    renderer: &Renderer,
    given: &[Option<u32>],
    pictures: &[Picture],
    columns: usize,
) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 10);
    encoder.set_repeat(Repeat::Infinite).with_context(cannot)?;
    let len = pictures.first().map_or(0, |picture| picture.tokens.len());
    let first_drawn = given.iter().position(Option::is_none).unwrap_or(0);
    for frame in 0..=FRAMES {
        let drawn = first_drawn + (len - first_drawn) * frame / FRAMES;
        let known = |picture: &Picture| {
            let given_at = |at: usize| given.get(at).copied().flatten();
            (0..len).map(|at| if at < drawn { Some(picture.tokens[at]) } else { given_at(at) }).collect()
        };
        let images = renderer.unfinished(&pictures.iter().map(known).collect::<Vec<_>>())?;
        let sheet = DynamicImage::from(contact_sheet(&images, columns)).into_rgba8();
        let delay = Delay::from_numer_denom_ms(if frame == FRAMES { LAST_MS } else { FRAME_MS }, 1);
        encoder.encode_frame(Frame::from_parts(sheet, 0, 0, delay)).with_context(cannot)?;
    }
    drop(encoder);
    atomic::write(path, &bytes)
}

/// Shows the sheet in the terminal.
fn show(sheet: RgbImage) {
    let config = viuer::Config {
        absolute_offset: false,
        width: Some(60),
        // To detect a picture protocol, viuer would wait for an answer of the terminal, which may
        // never come.
        use_kitty: false,
        use_iterm: false,
        ..viuer::Config::default()
    };
    // An error is ignored, since the file is already written.
    let _ = viuer::print(&DynamicImage::ImageRgb8(sheet), &config);
}

/// Adds a number to the name of a file: `dir/name.png` becomes `dir/name-3.png`.
pub fn numbered(out: &Path, number: usize) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension = out.extension().map_or("png".into(), |e| e.to_string_lossy());
    out.with_file_name(format!("{stem}-{number}.{extension}"))
}
