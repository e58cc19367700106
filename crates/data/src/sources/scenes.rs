//! Scenes: captioned pictures composed from the emoji sets, as many as are asked for.
//!
//! A scene is one thing or several: in a style, in a colour, as an x-ray, beside another thing, dressed, or twice in
//! two panels. It is a function of (seed, index), so that a set needs no storage, and any number of scenes can be made
//! without showing a combination of the held-out list: those are the validation split (paper §3.3: what can a model
//! draw that it never saw?).

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
use crate::loader::{Purpose, item_rng};
use crate::shard::{Meta, Packed, Sample, Split};
use crate::skipped::Skipped;

pub use cases::{Difference, Facts, Halves, HeldOutCase, WRONG, background_colours};
pub use held_out::CombinationKind;
pub use lot::Shares;
pub use placeholder::write_placeholder_packages;

/// Pictures that are painted at once, between two reports of progress.
const BATCH: usize = 64;
/// How often a scene with a blank drawing is drawn anew before that is an error.
const MOST_BLANK: u64 = 20;

/// What is composed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenesOptions {
    /// Where `runs/fetch_emoji.sh` put the packages.
    #[serde(skip)]
    pub packages: PathBuf,
    /// Width and height of the pictures in pixels, an even number.
    pub size: u32,
    /// Decides every scene.
    pub seed: u64,
    /// How often each kind of scene is drawn.
    pub shares: Shares,
    /// Held-out combinations, one a line; the embedded model's list if absent.
    pub held_out: Option<String>,
}

impl ScenesOptions {
    /// Pictures of `size` pixels with the default shares and the embedded model's held-out list.
    pub fn new(packages: &Path, size: u32) -> Self {
        Self { packages: packages.to_path_buf(), size, seed: 0, shares: Shares::default(), held_out: None }
    }
}

/// A source of scenes without end.
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

    /// A short name of all that decides the scenes; others have another one. Where the packages lie does not count.
    ///
    /// # Errors
    /// If the packages do not say their versions.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.options, &catalog::versions(&self.options.packages)?))
    }

    /// How many combinations are held out.
    pub fn n_held_out(&self) -> usize {
        self.held_out.list.len()
    }

    /// Every word that captions of these scenes can have.
    pub fn words(&self) -> BTreeSet<String> {
        let lot = Lot::new(&self.world, &self.options.shares);
        caption_words(captions::texts(&self.world, &lot.all_parts()))
    }

    /// Training scene number `index`: it shows no held-out combination.
    pub fn train(&self, index: u64) -> Result<Sample> {
        let lot = Lot::new(&self.world, &self.options.shares);
        self.sample(Split::Train, index, |rng| lot.draw(&self.held_out, rng))
    }

    /// Validation scene number `index`: it shows held-out combination `index` modulo their number.
    pub fn held_out(&self, index: u64) -> Result<Sample> {
        let lot = Lot::new(&self.world, &self.options.shares);
        let list = &self.held_out.list;
        ensure!(!list.is_empty(), "nothing is held out");
        let combination = list[(index % list.len() as u64) as usize];
        self.sample(Split::Val, index, |rng| Ok(lot.showing(combination, rng)))
    }

    fn sample(
        &self,
        split: Split,
        index: u64,
        draw: impl Fn(&mut ChaCha8Rng) -> Result<Scene>,
    ) -> Result<Sample> {
        for attempt in 0..MOST_BLANK {
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
        None.with_context(|| format!("scene {index} was blank {MOST_BLANK} times"))
    }

    /// What the scene shows apart from its style: the kinds of its combinations and its first thing.
    fn concept(&self, scene: &Scene) -> String {
        let kind = scene.combinations().last().map_or("style", |combination| combination.kind().name());
        format!("{kind}: {}", self.world.things[scene.content.first()].name)
    }
}

/// A short name of options and of the packages' versions.
fn fingerprint(options: &ScenesOptions, versions: &BTreeMap<String, String>) -> String {
    let held_out = options.held_out.as_deref().unwrap_or(held_out::LIST);
    let decides = json!({ "packages": versions, "scenes": options, "held_out": held_out });
    format!("{:08x}", crc32fast::hash(decides.to_string().as_bytes()))
}

/// Paints `count` training scenes and `val` validation scenes into `out`, calling `progress(done, total)` now and then.
///
/// A folder that already holds this very set is left as it is; one that holds anything else is an error.
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
