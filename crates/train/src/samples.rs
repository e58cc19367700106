//! Access to training samples by index: samples of a data set, in memory or in files, or scenes that
//! are composed whenever they are read.
//!
//! A scene is a function of seed and index. A run can therefore train on new scenes in every epoch
//! and still resume exactly.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tessera_base::Reporter;
use tessera_data::sources::{Scenes, ScenesOptions, Shares};
use tessera_data::{DatasetIndex, IndexedSample, ReadSample, Sample, counted};
use tessera_text::caption_words;

use crate::same_run::{Input, NO_SCENES, SCENES};

/// The number of different scenes that a run chooses from. It is more than any run reads.
const N_SCENES: usize = 1 << 32;

/// The minimum number of training pictures without a warning. A model overfits to fewer.
const MIN_PICTURES: usize = 50;

/// The maximum number of characters of a caption in a warning.
const SHOWN_CHARS: usize = 60;

/// Scenes that are composed in training (`data.scenes`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenesConfig {
    /// The folder to which `runs/fetch_emoji.sh` wrote the packages.
    pub packages: PathBuf,
    /// Width and height of the pictures in pixels.
    pub size: u32,
    /// The seed of all scenes.
    #[serde(default)]
    pub seed: u64,
    /// The relative frequency of each kind of scene.
    #[serde(default)]
    pub shares: Shares,
}

/// The source of training samples.
pub(crate) enum TrainSamples {
    /// Samples of a data set, in memory.
    Stored(Vec<Sample>),
    /// Samples of a data set, each read whenever it is needed.
    Indexed(Vec<IndexedSample>),
    /// Scenes, composed when they are read.
    Scenes(Box<Scenes>),
}

impl From<Vec<Sample>> for TrainSamples {
    fn from(samples: Vec<Sample>) -> Self {
        Self::Stored(samples)
    }
}

impl From<Vec<IndexedSample>> for TrainSamples {
    fn from(samples: Vec<IndexedSample>) -> Self {
        Self::Indexed(samples)
    }
}

/// Indexes a data set, and reports the items that had to be skipped.
pub(crate) fn index_dataset(data: &Path, reporter: &dyn Reporter) -> Result<DatasetIndex> {
    let dataset = DatasetIndex::open(data)?;
    if dataset.skipped.total() > 0 {
        reporter.note(&format!("{}: {}", data.display(), dataset.skipped));
    }
    Ok(dataset)
}

impl TrainSamples {
    /// Opens the scenes of the config or, without any, takes the `stored` samples of the data set.
    /// The model's pictures are `side` pixels wide and high.
    ///
    /// # Errors
    /// If pictures are smaller than the model's, or the scenes' packages cannot be read.
    pub fn open(scenes: Option<&ScenesConfig>, stored: impl Into<Self>, side: u32) -> Result<Self> {
        let Some(config) = scenes else {
            let stored = stored.into();
            match &stored {
                Self::Stored(samples) => ensure_large_enough(samples, side)?,
                Self::Indexed(samples) => ensure_large_enough(samples, side)?,
                Self::Scenes(_) => {}
            }
            return Ok(stored);
        };
        ensure!(
            config.size >= side,
            "data.scenes: size = {}: wanted at least {side}, the width of the model's pictures",
            config.size
        );
        let ScenesConfig { packages, size, seed, shares } = config.clone();
        let options = ScenesOptions { seed, shares, ..ScenesOptions::new(&packages, size) };
        Ok(Self::Scenes(Box::new(Scenes::open(options).context("data.scenes")?)))
    }

    /// Returns the fingerprint of the scenes, as an input of a run.
    pub fn scenes(&self) -> Result<Input> {
        Ok(match self {
            Self::Stored(_) | Self::Indexed(_) => (SCENES, NO_SCENES.to_string()),
            Self::Scenes(scenes) => (SCENES, scenes.fingerprint()?),
        })
    }

    /// Returns the number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(samples) => samples.len(),
            Self::Indexed(samples) => samples.len(),
            Self::Scenes(_) => N_SCENES,
        }
    }

    /// Returns the captions of all samples. Those of scenes are not in memory.
    pub fn captions_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::Stored(samples) => samples.iter_mut().flat_map(|sample| &mut sample.captions).collect(),
            Self::Indexed(samples) => samples.iter_mut().flat_map(|sample| &mut sample.captions).collect(),
            Self::Scenes(_) => Vec::new(),
        }
    }

    /// Returns the words of all captions.
    pub fn words(&self) -> BTreeSet<String> {
        match self {
            Self::Stored(samples) => caption_words(samples.iter().flat_map(|sample| &sample.captions)),
            Self::Indexed(samples) => caption_words(samples.iter().flat_map(|sample| &sample.captions)),
            Self::Scenes(scenes) => scenes.words(),
        }
    }

    /// Returns sample `index`.
    pub fn get(&self, index: usize) -> Result<Cow<'_, Sample>> {
        match self {
            Self::Stored(samples) => samples.get(index).map(Cow::Borrowed).context("no such sample"),
            Self::Indexed(samples) => samples.get(index).context("no such sample")?.sample(),
            Self::Scenes(scenes) => scenes.train(index as u64).map(Cow::Owned),
        }
    }
}

/// Reports what a user should know about a set of this size before training begins. `captions` are
/// those of the training pictures, or empty if captions do not matter.
pub(crate) fn warn_about(
    n_train: usize,
    n_held_out: usize,
    captions: &BTreeSet<String>,
    reporter: &dyn Reporter,
) {
    warnings(n_train, n_held_out, captions)
        .iter()
        .for_each(|warning| reporter.note(&format!("warning: {warning}")));
}

fn warnings(n_train: usize, n_held_out: usize, captions: &BTreeSet<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    if n_train < MIN_PICTURES {
        warnings.push(format!(
            "{} for training: too few, so the model will repeat them instead of drawing new ones; wanted at least {MIN_PICTURES}",
            counted(n_train as u64, "picture")
        ));
    }
    if n_held_out == 0 {
        warnings.push(
            "no pictures are held out, so overfitting stays unnoticed; a data set of `tessera data folder --holdout 5` \
             holds some out"
                .to_string(),
        );
    }
    if captions.len() == 1 {
        warnings.push(format!(
            "all captions are {:?}, so the words of a prompt will not matter",
            captions.first().map_or(String::new(), |caption| shortened(caption))
        ));
    }
    warnings
}

/// Returns the beginning of a caption.
fn shortened(caption: &str) -> String {
    match caption.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &caption[..end]),
        None => caption.to_string(),
    }
}

/// Checks that no picture is smaller than the model's pictures of `side` x `side` pixels.
pub(crate) fn ensure_large_enough<S: ReadSample>(samples: &[S], side: u32) -> Result<()> {
    let is_small = |sample: &&S| {
        let (width, height) = sample.size();
        width.min(height) < side
    };
    let Some(first) = samples.iter().find(is_small) else { return Ok(()) };
    let (n, (width, height)) = (samples.iter().filter(is_small).count(), first.size());
    bail!(
        "{n} of {} pictures are smaller than the model's {side}x{side} pixels, first {} with {width}x{height}: make the data set \
         again with a --size of at least {side} and, if the pictures themselves are small, --enlarge; or choose a model of \
         smaller pictures",
        samples.len(),
        first.key()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: &str, [width, height]: [u32; 2]) -> Sample {
        Sample {
            key: key.to_string(),
            image: image::RgbImage::new(width, height),
            captions: Vec::new(),
            meta: tessera_data::Meta::default(),
        }
    }

    #[test]
    fn stored_samples_are_read_by_index() {
        let samples = TrainSamples::open(None, vec![sample("a", [1, 1]), sample("b", [1, 1])], 1).unwrap();
        assert_eq!((samples.len(), samples.get(1).unwrap().key.as_str()), (2, "b"));
        assert!(samples.get(2).is_err());
    }

    #[test]
    fn indexed_samples_equal_those_in_memory() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        let (index, set) = (DatasetIndex::open(&dir).unwrap(), tessera_data::Dataset::open(&dir).unwrap());
        let open = |samples: TrainSamples| TrainSamples::open(None, samples, 32).unwrap();
        let [mut indexed, mut stored] = [open(index.train.into()), open(set.train.into())];
        assert_eq!((indexed.len(), indexed.words()), (stored.len(), stored.words()));
        assert_eq!(indexed.scenes().unwrap(), stored.scenes().unwrap());
        for samples in [&mut indexed, &mut stored] {
            *samples.captions_mut()[0] = "cut".to_string();
        }
        assert_eq!(indexed.get(0).unwrap().captions[0], "cut");
        for item in [0, 1, 99] {
            assert!(indexed.get(item).unwrap() == stored.get(item).unwrap(), "sample {item}");
        }
        let too_large = TrainSamples::open(None, indexed, 4096).err().unwrap().to_string();
        assert_eq!(too_large, TrainSamples::open(None, stored, 4096).err().unwrap().to_string());
    }

    #[test]
    fn error_counts_pictures_smaller_than_the_models() {
        let samples = vec![sample("a", [32, 32]), sample("b", [60, 31]), sample("c", [16, 90])];
        let error = TrainSamples::open(None, samples, 32).err().unwrap().to_string();
        let expected = "2 of 3 pictures are smaller than the model's 32x32 pixels, first b with 60x31: make the data set again";
        assert!(error.starts_with(expected) && error.contains("--enlarge"), "{error}");
        let scenes = ScenesConfig { packages: PathBuf::new(), size: 16, seed: 0, shares: Shares::default() };
        let error = TrainSamples::open(Some(&scenes), Vec::<Sample>::new(), 32).err().unwrap().to_string();
        assert!(error.starts_with("data.scenes: size = 16: wanted at least 32"), "{error}");
    }

    #[test]
    fn small_or_uniform_sets_are_warned_about() {
        let captions = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        assert!(warnings(MIN_PICTURES, 1, &captions(&["a cat", "a dog"])).is_empty());
        assert!(warnings(MIN_PICTURES, 1, &BTreeSet::new()).is_empty());
        let found = warnings(1, 0, &captions(&["a cat"]));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("1 picture for training: too few") && found[2].contains("\"a cat\""));
        let long = &warnings(MIN_PICTURES, 1, &captions(&["ä".repeat(2000).as_str()]))[0];
        assert!(long.starts_with(&format!("all captions are \"{}...\", so", "ä".repeat(60))), "{long}");
    }

    #[test]
    fn error_without_packages_says_how_to_get_them() {
        let config = ScenesConfig {
            packages: PathBuf::from("/nowhere"),
            size: 128,
            seed: 0,
            shares: Shares::default(),
        };
        let error =
            format!("{:#}", TrainSamples::open(Some(&config), Vec::<Sample>::new(), 128).err().unwrap());
        assert!(error.starts_with("data.scenes: ") && error.contains("runs/fetch_emoji.sh"), "{error}");
    }
}
