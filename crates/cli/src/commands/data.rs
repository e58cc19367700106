//! `tessera data`: captioned pictures into shards.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use tessera_data::sources::{EmojiOptions, World, build_emoji, build_folder};

use super::say;
use crate::args::{self, DataSource};

pub fn run(source: DataSource) -> Result<()> {
    match source {
        DataSource::Emoji { packages, out, size, world, background, holdout, max_concepts, seed } => {
            let world = match world {
                args::World::Small => World::Small,
                args::World::Full => World::Full,
            };
            let background = colour(&background)?;
            let options = EmojiOptions {
                packages,
                size,
                world,
                background,
                holdout_percent: holdout,
                seed,
                max_concepts,
            };
            let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
                "rendering {bar:30} {pos}/{len} {per_sec} eta {eta}",
            )?);
            let counts = build_emoji(&options, &out, &|done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            bar.finish_and_clear();
            say(counts)?;
        }
        DataSource::Folder { dir, out, size, holdout, seed } => {
            let (counts, skipped) = build_folder(&dir, &out, size, holdout, seed)?;
            say(counts)?;
            if skipped.total() > 0 {
                say(skipped)?;
            }
        }
    }
    Ok(())
}

/// `RRGGBB`, with or without `#`.
fn colour(text: &str) -> Result<[u8; 3]> {
    let hex = text.trim_start_matches('#');
    let number = (hex.len() == 6).then(|| u32::from_str_radix(hex, 16).ok()).flatten();
    let number =
        number.with_context(|| format!("background {text:?}: wanted six hex digits, as in ffffff"))?;
    Ok([(number >> 16) as u8, (number >> 8) as u8, number as u8])
}
