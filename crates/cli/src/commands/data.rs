//! `tessera data`: captioned pictures into shards.

use anyhow::{Context, Result};
use indicatif::ProgressStyle;
use tessera_data::sources::{
    CaptionOptions, Counts, EmojiOptions, FolderOptions, ScenesOptions, Shares, Small, World, build_emoji,
    build_folder, build_scenes,
};
use tessera_data::{Share, Split, read_text};

use super::say;
use super::train::resolve;
use crate::args::{self, DataSource};
use crate::reporter::progress_bar;
use crate::stderr::note;

/// Runs `tessera data`.
pub fn run(source: DataSource) -> Result<()> {
    match source {
        DataSource::Emoji { packages, out, size, world, background, holdout, max_concepts, seed } => {
            let world = match world {
                args::World::Small => World::Small,
                args::World::Full => World::Full,
            };
            let background = colour(&background)?;
            let options = EmojiOptions { packages, size, world, background, holdout, seed, max_concepts };
            say(with_bar(|progress| build_emoji(&options, &out, progress))?)?;
        }
        DataSource::Scenes { packages, out, size, count, val, held_out, shares, seed } => {
            let held_out = held_out.map(|file| {
                read_text(&file).with_context(|| format!("cannot read the held-out list {}", file.display()))
            });
            let options = ScenesOptions {
                packages,
                size,
                seed,
                shares: shares_of(&shares)?,
                held_out: held_out.transpose()?,
            };
            say(with_bar(|progress| build_scenes(&options, [count, val], &out, progress))?)?;
        }
        DataSource::Folder { dir, captions, out, settings, stage, size, enlarge, holdout, seed } => {
            let side = resolve(&settings)?.dvae.image_size as u32;
            let size = size.unwrap_or(side * eighths(stage) / 8);
            let small = if enlarge { Small::Enlarged } else { Small::LeftOut };
            // A set of smaller pictures than the config's is for another model, of that size.
            let captions = CaptionOptions {
                table: captions.captions,
                image_column: captions.image_column,
                text_column: captions.text_column,
                folder_names: captions.folder_names,
            };
            let options =
                FolderOptions { size, least: side.min(size), small, val_share: holdout, seed, captions };
            let (counts, skipped) = build_folder(&dir, &out, &options)?;
            let held_out = counts.in_split(Split::Val);
            say(counts)?;
            if skipped.total() > 0 {
                say(skipped)?;
            }
            if holdout > Share::percent(0) && held_out < MIN_HELD_OUT {
                let held_out = match held_out {
                    0 => "no picture is".to_string(),
                    1 => "only 1 picture is".to_string(),
                    n => format!("only {n} pictures are"),
                };
                note!(
                    "warning: {held_out} held out; evaluation needs {MIN_HELD_OUT}. More pictures, or a larger --holdout of \
                     `tessera data folder`, would help"
                );
            }
        }
    }
    Ok(())
}

/// The minimum number of held-out pictures for meaningful evaluation results.
const MIN_HELD_OUT: u64 = 20;

/// Returns the maximum size to which a stage's crops are scaled, in eighths of the model's pictures
/// (listings 1 and 2 of the paper).
fn eighths(stage: args::Stage) -> u32 {
    match stage {
        args::Stage::First => 12,
        args::Stage::Second => 9,
    }
}

/// Runs `build` with a progress bar.
fn with_bar(build: impl FnOnce(&dyn Fn(u64, u64)) -> Result<Counts>) -> Result<Counts> {
    let style = ProgressStyle::with_template("rendering {bar:30} {pos}/{len} {per_sec} eta {eta}")?;
    let bar = progress_bar(0).with_style(style);
    let counts = build(&|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(counts)
}

/// Parses `plain=0.3`, `panels=0.2` and so on. Kinds that are not named keep their default.
fn shares_of(pairs: &[String]) -> Result<Shares> {
    let mut shares = Shares::default();
    for pair in pairs {
        let (kind, weight) =
            pair.split_once('=').with_context(|| format!("--shares {pair:?}: wanted KIND=WEIGHT"))?;
        let weight =
            weight.trim().parse().with_context(|| format!("--shares {pair:?}: the weight isn't a number"))?;
        *shares.of(kind.trim())? = weight;
    }
    Ok(shares)
}

/// Parses `RRGGBB`, with or without `#`.
fn colour(text: &str) -> Result<[u8; 3]> {
    let hex = text.trim_start_matches('#');
    let number = (hex.len() == 6).then(|| u32::from_str_radix(hex, 16).ok()).flatten();
    let number =
        number.with_context(|| format!("--background {text:?}: wanted six hex digits, as in ffffff"))?;
    Ok([(number >> 16) as u8, (number >> 8) as u8, number as u8])
}
