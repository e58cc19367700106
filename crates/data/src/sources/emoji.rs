//! Builds a set of captioned pictures from six public emoji sets, which are available as packages.
//!
//! A *concept* is an emoji of emojibase ("red apple"), and a *style* is one of six icon sets that
//! draw it. Concepts and styles form a grid whose cells can be held out, to measure generalisation
//! to unseen combinations as the paper does, at a small scale. `runs/fetch_emoji.sh` fetches the
//! packages; this module reads them, renders the icons and writes shards.

pub(in crate::sources) mod captions;
pub(in crate::sources) mod catalog;
pub(in crate::sources) mod package;
mod render;
mod split;
pub(in crate::sources) mod style;
mod world;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::catalog::Catalog;
use self::package::{Emoji, Tone};
use self::split::Holdout;
use self::world::Concept;
use super::Counts;
use super::output::{self, Fingerprints, Opened};
use crate::shard::{Meta, Packed, Sample, Split};
use crate::share::Share;
use crate::skipped::Skipped;

pub use style::Style;
pub use world::World;

/// The number of pictures that are rendered in parallel between two progress reports.
const BATCH: usize = 64;
/// The maximum number of blank drawings whose names are reported.
const NAMED_BLANKS: usize = 8;
/// The number of emojibase's group "animals & nature".
const ANIMALS: u32 = 3;

/// The options of [`build_emoji`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmojiOptions {
    /// The folder into which `runs/fetch_emoji.sh` put the packages.
    #[serde(skip)]
    pub packages: PathBuf,
    /// The width and height of the pictures in pixels.
    pub size: u32,
    /// The concepts: a few hundred everyday things, or all emoji.
    pub world: World,
    /// The background colour.
    pub background: [u8; 3],
    /// The probability that a combination of concept and style is held out.
    #[serde(rename = "holdout_percent")]
    pub holdout: Share,
    /// The seed for the choice of held-out combinations.
    pub seed: u64,
    /// The maximum number of concepts, which are evenly spaced over the world. Used for small
    /// fixtures.
    pub max_concepts: Option<usize>,
}

impl EmojiOptions {
    /// Returns options for the small world on white, with 8% of the combinations held out.
    pub fn new(packages: &Path, size: u32) -> Self {
        Self {
            packages: packages.to_path_buf(),
            size,
            world: World::Small,
            background: [255; 3],
            holdout: Share::percent(8),
            seed: 0,
            max_concepts: None,
        }
    }
}

/// Renders the set into `out` and calls `progress(done, total)` before each batch and at the end.
///
/// A folder that already contains the same set is not changed. A folder with other content is an
/// error.
pub fn build_emoji(options: &EmojiOptions, out: &Path, progress: &dyn Fn(u64, u64)) -> Result<Counts> {
    ensure!((8..=4096).contains(&options.size), "--size {}: wanted 8 to 4096 pixels", options.size);
    ensure!(options.holdout <= Share::percent(50), "--holdout {}: wanted at most 50%", options.holdout);
    let recipe = json!({ "emoji": options, "packages": catalog::versions(&options.packages)? });
    let mut output = match output::open(out, recipe, &Fingerprints::default())? {
        Opened::Complete(counts, _) => return Ok(counts),
        Opened::Ready(output) => output,
    };
    let catalog = Catalog::read(&options.packages)?;
    let concepts = options.world.pick(&catalog.emoji, options.max_concepts)?;
    let drawings = list_drawings(&catalog, &concepts, options);
    ensure!(!drawings.is_empty(), "no icon matches a concept of the {:?} world", options.world);

    let mut counts = Counts { concepts: concepts.len() as u64, ..Counts::default() };
    for (style, unmatched) in catalog.unmatched() {
        counts.row(style.name()).unmatched = unmatched;
    }
    for (batch_idx, batch) in drawings.chunks(BATCH).enumerate() {
        progress((batch_idx * BATCH) as u64, drawings.len() as u64);
        let drawn: Vec<Option<Packed>> = batch
            .par_iter()
            .enumerate()
            .map(|(n, drawing)| drawing.draw(&catalog, options, batch_idx * BATCH + n))
            .collect::<Result<_>>()?;
        for (drawing, packed) in batch.iter().zip(drawn) {
            match packed {
                Some(packed) => {
                    output.write(drawing.split, &packed)?;
                    counts.add_picture(drawing.style.name(), drawing.split, drawing.captions.len());
                }
                None => note_blank(&mut counts, drawing),
            }
        }
    }
    progress(drawings.len() as u64, drawings.len() as u64);
    output.finish(&counts, &Skipped::default())?;
    Ok(counts)
}

fn note_blank(counts: &mut Counts, drawing: &Drawing) {
    counts.row(drawing.style.name()).blank += 1;
    if counts.blank_names.len() < NAMED_BLANKS {
        counts.blank_names.push(format!("{} {}", drawing.style.name(), drawing.icon));
    }
}

/// A picture to render, with its captions.
struct Drawing<'a> {
    style: Style,
    icon: &'a str,
    concept: &'a str,
    captions: Vec<String>,
    split: Split,
}

impl Drawing<'_> {
    /// Renders and encodes the picture. Returns `None` if it is blank.
    fn draw(&self, catalog: &Catalog, options: &EmojiOptions, number: usize) -> Result<Option<Packed>> {
        let svg = catalog.svg(self.style, self.icon)?;
        let image = render::render(&svg, options.size, options.background)
            .with_context(|| format!("cannot draw {} of {}", self.icon, self.style.folder()))?;
        let Some(image) = image else { return Ok(None) };
        let meta = Meta {
            source: format!("{}/{}", self.style.folder(), self.icon),
            licence: self.style.licence().to_string(),
            concept: self.concept.to_string(),
            style: self.style.name().to_string(),
            split: self.split,
            author: Some(self.style.author().to_string()),
            url: Some(self.style.url().to_string()),
        };
        let sample = Sample { key: format!("{number:09}"), image, captions: self.captions.clone(), meta };
        Packed::new(&sample).map(Some)
    }
}

/// Lists all pictures of the concepts in a fixed order: by concept, then skin tone, then style.
fn list_drawings<'a>(
    catalog: &'a Catalog,
    concepts: &'a [Concept<'a>],
    options: &EmojiOptions,
) -> Vec<Drawing<'a>> {
    let holdout = Holdout { share: options.holdout, seed: options.seed };
    let mut drawings = Vec::new();
    for Concept { name, emoji } in concepts {
        let styles: Vec<Style> = catalog.icons(emoji).map(|(style, _)| style).collect();
        let held_styles = holdout.styles(name, &styles);
        let skins = if options.world.has_skin_tones() { emoji.skins.as_slice() } else { &[] };
        let held_tone = holdout.tone(name, &single_tones(skins));
        let tags = catalog.tags(emoji);
        let toned = skins.iter().map(|skin| (captions::phrase(&skin.label), skin));
        for (full_name, variant) in std::iter::once((name.clone(), *emoji)).chain(toned) {
            let names = all_names(full_name, emoji);
            for (style, icon) in catalog.icons(variant) {
                let is_held = held_styles.contains(&style) || has_tone(variant, held_tone);
                drawings.push(Drawing {
                    style,
                    icon,
                    concept: name,
                    captions: captions::captions(&names, &tags, style),
                    split: if is_held { Split::Val } else { Split::Train },
                });
            }
        }
    }
    drawings
}

/// Returns the names of a picture: "cat face" and, because it is an animal, "cat".
fn all_names(full: String, concept: &Emoji) -> Vec<String> {
    let short = full.strip_suffix(" face").filter(|_| concept.group == Some(ANIMALS)).map(str::to_string);
    std::iter::once(full).chain(short).collect()
}

fn single_tones(skins: &[Emoji]) -> Vec<u8> {
    let tone = |skin: &Emoji| match skin.tone {
        Some(Tone::One(tone)) => Some(tone),
        Some(Tone::Several(_)) | None => None,
    };
    skins.iter().filter_map(tone).collect()
}

/// Whether any person in the picture has the held-out skin tone.
fn has_tone(variant: &Emoji, held: Option<u8>) -> bool {
    match (&variant.tone, held) {
        (Some(Tone::One(tone)), Some(held)) => *tone == held,
        (Some(Tone::Several(tones)), Some(held)) => tones.contains(&held),
        (None, _) | (_, None) => false,
    }
}
