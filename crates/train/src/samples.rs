//! Training samples by index: those of a data set in memory, or scenes that are composed whenever they are read.
//!
//! Scenes are a function of (seed, index), so that a run can train on new ones in every epoch and still resume exactly.

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tessera_data::Sample;
use tessera_data::sources::{Scenes, ScenesOptions, Shares};

use crate::same_run::{Input, NO_SCENES, SCENES};

/// How many different scenes a run chooses from: more than any run reads.
const N_SCENES: usize = 1 << 32;

/// Scenes that are composed in training (`data.scenes`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenesConfig {
    /// Where `runs/fetch_emoji.sh` put the packages.
    pub packages: PathBuf,
    /// Width and height of the pictures in pixels.
    pub size: u32,
    /// Decides every scene.
    #[serde(default)]
    pub seed: u64,
    /// How often each kind of scene is drawn.
    #[serde(default)]
    pub shares: Shares,
}

/// Where training samples come from.
pub(crate) enum TrainSamples {
    /// A data set, read into memory.
    Stored(Vec<Sample>),
    /// Composed when they are read.
    Scenes(Box<Scenes>),
}

impl TrainSamples {
    /// The scenes of the config if it asks for some, else the `stored` samples of the data set.
    pub fn open(scenes: Option<&ScenesConfig>, stored: Vec<Sample>) -> Result<Self> {
        let Some(config) = scenes else { return Ok(Self::Stored(stored)) };
        let ScenesConfig { packages, size, seed, shares } = config.clone();
        let options = ScenesOptions { seed, shares, ..ScenesOptions::new(&packages, size) };
        Ok(Self::Scenes(Box::new(Scenes::open(options).context("data.scenes")?)))
    }

    /// What the scenes are, as an input of a run.
    pub fn scenes(&self) -> Result<Input> {
        Ok(match self {
            Self::Stored(_) => (SCENES, NO_SCENES.to_string()),
            Self::Scenes(scenes) => (SCENES, scenes.fingerprint()?),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(samples) => samples.len(),
            Self::Scenes(_) => N_SCENES,
        }
    }

    /// The samples in memory; scenes have none.
    pub fn stored(&self) -> &[Sample] {
        match self {
            Self::Stored(samples) => samples,
            Self::Scenes(_) => &[],
        }
    }

    /// The samples in memory, to be changed.
    pub fn stored_mut(&mut self) -> &mut [Sample] {
        match self {
            Self::Stored(samples) => samples,
            Self::Scenes(_) => &mut [],
        }
    }

    /// Sample `index`.
    pub fn get(&self, index: usize) -> Result<Cow<'_, Sample>> {
        match self {
            Self::Stored(samples) => samples.get(index).map(Cow::Borrowed).context("no such sample"),
            Self::Scenes(scenes) => scenes.train(index as u64).map(Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_samples_are_read_by_index_and_no_further() {
        let sample = |key: &str| Sample {
            key: key.to_string(),
            image: image::RgbImage::new(1, 1),
            captions: Vec::new(),
            meta: tessera_data::Meta::default(),
        };
        let samples = TrainSamples::open(None, vec![sample("a"), sample("b")]).unwrap();
        assert_eq!((samples.len(), samples.get(1).unwrap().key.as_str()), (2, "b"));
        assert!(samples.get(2).is_err());
    }

    #[test]
    fn scenes_without_their_packages_say_how_to_get_them() {
        let config = ScenesConfig {
            packages: PathBuf::from("/nowhere"),
            size: 128,
            seed: 0,
            shares: Shares::default(),
        };
        let error = format!("{:#}", TrainSamples::open(Some(&config), Vec::new()).err().unwrap());
        assert!(error.starts_with("data.scenes: ") && error.contains("runs/fetch_emoji.sh"), "{error}");
    }
}
