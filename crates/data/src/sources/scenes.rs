//! Scenes: an unlimited number of captioned pictures, composed from the drawings of the emoji sets.
//!
//! A scene shows one or more things: in a style, in a colour, as an x-ray, next to another thing,
//! dressed, or twice in two panels. It is a function of (seed, index), so a set needs no storage.
//! Training scenes never show a combination of the held-out list; the scenes that do are the
//! validation split. They test whether a model can draw what it has not seen (paper §3.3).

mod captions;
mod cases;
mod chinese;
mod effects;
mod english;
mod garments;
mod held_out;
mod layer;
mod lot;
mod paint;
mod placeholder;
mod scene;
mod words;
mod world;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tessera_text::caption_words;

use self::held_out::HeldOut;
use self::lot::Lot;
use self::paint::Painter;
use self::scene::Scene;
use self::world::World;
use super::Counts;
use super::emoji::catalog;
use super::output::{self, Fingerprints, Opened};
use crate::shard::{Meta, Packed, Sample, Split};
use crate::skipped::Skipped;
use tessera_base::random::{Purpose, item_rng};

pub use cases::{Difference, Facts, Halves, HeldOutCase, WRONG, background_colours};
pub use held_out::CombinationKind;
pub use lot::Shares;
pub use placeholder::write_placeholder_packages;

/// The number of pictures that are painted in parallel between two progress reports.
const BATCH: usize = 64;
/// The maximum number of attempts to sample a scene without a blank drawing.
const MAX_BLANK: u64 = 20;

/// The options of [`Scenes`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenesOptions {
    /// The folder into which `runs/fetch_emoji.sh` put the packages.
    #[serde(skip)]
    pub packages: PathBuf,
    /// The width and height of the pictures in pixels, an even number.
    pub size: u32,
    /// The seed of all scenes.
    pub seed: u64,
    /// The relative frequency of each kind of scene.
    pub shares: Shares,
    /// The held-out combinations, one per line. If absent, the list of the embedded model is used.
    pub held_out: Option<String>,
}

impl ScenesOptions {
    /// Returns options for pictures of `size` pixels, with the default shares and the held-out list
    /// of the embedded model.
    pub fn new(packages: &Path, size: u32) -> Self {
        Self { packages: packages.to_path_buf(), size, seed: 0, shares: Shares::default(), held_out: None }
    }
}

/// An unlimited source of scenes.
#[derive(Debug)]
pub struct Scenes {
    options: ScenesOptions,
    world: World,
    held_out: HeldOut,
    painter: Painter,
}

impl Scenes {
    /// Reads the packages and the held-out list.
    pub fn open(options: ScenesOptions) -> Result<Self> {
        let size = options.size;
        ensure!(
            (16..=1024).contains(&size) && size.is_multiple_of(2),
            "size is {size}, wanted an even number of 16 to 1024"
        );
        options.shares.check()?;
        let world = World::read(&options.packages)?;
        let held_out = HeldOut::parse(options.held_out.as_deref().unwrap_or(held_out::LIST), &world)?;
        held_out.check(&world)?;
        let painter = Painter::new(&world, size)?;
        Ok(Self { options, world, held_out, painter })
    }

    /// Returns a hash of everything that determines the scenes. It does not depend on the location
    /// of the packages.
    ///
    /// # Errors
    /// If the version of a package cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.options, &catalog::versions(&self.options.packages)?))
    }

    /// Returns the number of held-out combinations.
    pub fn n_held_out(&self) -> usize {
        self.held_out.list.len()
    }

    /// Returns all words that can occur in captions of these scenes.
    pub fn words(&self) -> BTreeSet<String> {
        let lot = Lot::new(&self.world, &self.options.shares);
        caption_words(captions::texts(&self.world, &lot.all_parts()))
    }

    /// Returns training scene number `index`, which shows no held-out combination.
    pub fn train(&self, index: u64) -> Result<Sample> {
        let lot = Lot::new(&self.world, &self.options.shares);
        self.sample(Split::Train, index, |rng| lot.draw(&self.held_out, rng))
    }

    /// Returns validation scene number `index`. It shows the held-out combination with the number
    /// `index` modulo the length of the list.
    pub fn held_out(&self, index: u64) -> Result<Sample> {
        let lot = Lot::new(&self.world, &self.options.shares);
        let list = &self.held_out.list;
        ensure!(
            !list.is_empty(),
            "the list of held-out combinations is empty; add lines to the file of --held-out, or use --val 0"
        );
        let combination = list[(index % list.len() as u64) as usize];
        self.sample(Split::Val, index, |rng| Ok(lot.showing(combination, rng)))
    }

    fn sample(
        &self,
        split: Split,
        index: u64,
        draw: impl Fn(&mut ChaCha8Rng) -> Result<Scene>,
    ) -> Result<Sample> {
        for attempt in 0..MAX_BLANK {
            let step = 2 * attempt + u64::from(split == Split::Val);
            let mut rng = item_rng(self.options.seed, Purpose::Scene, step, index);
            let scene = draw(&mut rng)?;
            let captions = captions::captions(&self.world, &scene, &mut rng);
            let Some(image) = self.painter.paint(&self.world, &scene, &mut rng)? else { continue };
            let meta = Meta {
                source: "scenes".to_string(),
                licence: scene.style.licence().to_string(),
                concept: self.concept(&scene),
                style: scene.style.name().to_string(),
                split,
                author: Some(scene.style.author().to_string()),
                url: Some(scene.style.url().to_string()),
            };
            return Ok(Sample { key: format!("{index:09}"), image, captions, meta });
        }
        None.with_context(|| format!("scene {index} was blank {MAX_BLANK} times"))
    }

    /// Returns the scene's concept for its metadata: the kind of its last combination and its first
    /// thing.
    fn concept(&self, scene: &Scene) -> String {
        let kind = scene.combinations().last().map_or("style", |combination| combination.kind().name());
        format!("{kind}: {}", self.world.things[scene.content.first()].name)
    }
}

/// Returns a hash of the options and the versions of the packages.
fn fingerprint(options: &ScenesOptions, versions: &BTreeMap<String, String>) -> String {
    let held_out = options.held_out.as_deref().unwrap_or(held_out::LIST);
    let inputs = json!({ "packages": versions, "scenes": options, "held_out": held_out });
    format!("{:08x}", crc32fast::hash(inputs.to_string().as_bytes()))
}

/// Paints `count` training scenes and `val` validation scenes into `out`, and calls
/// `progress(done, total)` before each batch and at the end.
///
/// A folder that already contains the same set is not changed. A folder with other content is an
/// error.
pub fn build_scenes(
    options: &ScenesOptions,
    [count, val]: [u64; 2],
    out: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Counts> {
    let recipe = json!({ "scenes": options, "count": count, "val": val, "packages": catalog::versions(&options.packages)? });
    let mut output = match output::open(out, recipe, &Fingerprints::default())? {
        Opened::Complete(counts, _) => return Ok(counts),
        Opened::Ready(output) => output,
    };
    let scenes = Scenes::open(options.clone())?;
    let mut counts = Counts { concepts: scenes.world.things.len() as u64, ..Counts::default() };
    let indices: Vec<(Split, u64)> =
        (0..count).map(|n| (Split::Train, n)).chain((0..val).map(|n| (Split::Val, n))).collect();
    for (batch_idx, batch) in indices.chunks(BATCH).enumerate() {
        progress((batch_idx * BATCH) as u64, count + val);
        let painted: Vec<(Sample, Packed)> = batch
            .par_iter()
            .map(|&(split, index)| {
                let mut sample = match split {
                    Split::Train => scenes.train(index)?,
                    Split::Val => scenes.held_out(index)?,
                };
                if split == Split::Val {
                    sample.key = format!("{:09}", count + index);
                }
                let packed = Packed::new(&sample)?;
                Ok((sample, packed))
            })
            .collect::<Result<_>>()?;
        for (sample, packed) in painted {
            output.write(sample.meta.split, &packed)?;
            counts.add_picture(&sample.meta.style, sample.meta.split, sample.captions.len());
        }
    }
    progress(count + val, count + val);
    output.finish(&counts, &Skipped::default())?;
    Ok(counts)
}
