//! The protocol by which FID and IS are measured: with one network, or as in DM-GAN's code, which
//! the paper used.
//!
//! DM-GAN's code (paper §3) computes FID with torchvision's Inception and IS with the graph of
//! 2015, both on pictures that Pillow resized to 299 × 299. Its FID reads pictures in batches of 64
//! and ignores an incomplete last batch. Its IS is the mean over ten splits in the order of the
//! files.

use anyhow::{Context, Result, bail, ensure};

use crate::features::FeatureExtractor;
use crate::inception::{Convention, Inception, TF_2015_URL, TORCHVISION_URL};
use crate::store::Store;
use crate::{Gaussian, Report};

/// The batch size of DM-GAN's FID.
const BATCH: usize = 64;

/// The protocol by which FID and IS of a set of pictures are measured.
#[derive(Clone, Copy)]
pub enum Protocol<'a> {
    /// One network computes features and logits, and every picture counts.
    One(&'a dyn FeatureExtractor),
    /// DM-GAN's protocol.
    DmGan(&'a DmGan),
}

/// The networks of DM-GAN's code whose weights are available.
#[derive(Debug)]
pub struct DmGan {
    distance: Option<Inception>,
    score: Option<Inception>,
}

impl DmGan {
    /// Assigns networks, in any order, that were read with
    /// [`Resize::DmGan`](crate::Resize::DmGan).
    ///
    /// # Errors
    /// If two networks have the same weights, or one uses another convention.
    pub fn new(networks: Vec<Inception>) -> Result<DmGan> {
        let mut dm_gan = DmGan { distance: None, score: None };
        for network in networks {
            let target = match network.convention() {
                Convention::Torchvision => &mut dm_gan.distance,
                Convention::DmGanScore => &mut dm_gan.score,
                Convention::PytorchFid | Convention::TorchFidelity => {
                    bail!("{} is not a network of DM-GAN's protocol", network.name())
                }
            };
            ensure!(
                target.is_none(),
                "the same weights twice; wanted torchvision's for FID and those of 2015 for IS"
            );
            *target = Some(network);
        }
        Ok(dm_gan)
    }

    /// The network for FID.
    ///
    /// # Errors
    /// If its weights are missing.
    pub fn distance(&self) -> Result<&Inception> {
        self.distance.as_ref().with_context(|| {
            format!(
                "DM-GAN's FID is by torchvision's Inception: pass {TORCHVISION_URL} with --inception FILE"
            )
        })
    }

    /// The network for IS on MS-COCO.
    ///
    /// # Errors
    /// If its weights are missing.
    pub fn score(&self) -> Result<&Inception> {
        self.score.as_ref().with_context(|| {
            format!("DM-GAN's IS is by the Inception of 2015: pass {TF_2015_URL} with --inception FILE")
        })
    }

    /// Checks that no IS was requested for CUB, because its network is not supported.
    ///
    /// # Errors
    /// If the network for IS on MS-COCO was given.
    pub fn without_birds(&self) -> Result<()> {
        ensure!(
            self.score.is_none(),
            "DM-GAN's IS of CUB is by StackGAN's Inception, fine-tuned on birds (birds_valid299, a checkpoint of TensorFlow), \
             which is not supported; pass torchvision's weights alone, for FID"
        );
        Ok(())
    }
}

impl<'a> Protocol<'a> {
    /// The network whose features FID compares.
    ///
    /// # Errors
    /// If its weights are missing.
    pub fn distance(self) -> Result<&'a dyn FeatureExtractor> {
        match self {
            Protocol::One(network) => Ok(network),
            Protocol::DmGan(dm_gan) => Ok(dm_gan.distance()?),
        }
    }

    /// The mean and covariance of the features that [`Protocol::distance`] extracted.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn gaussian(self, features: &Store) -> Result<Gaussian> {
        match self {
            Protocol::One(_) => features.gaussian(),
            Protocol::DmGan(_) => features.gaussian_of(features.len() / BATCH * BATCH),
        }
    }

    /// The Inception Score of a set of pictures, or `None` if the protocol has no classifier.
    /// `features` are those that [`Protocol::distance`] extracted. `extract` extracts the features
    /// of the same pictures with another network, if the protocol needs one.
    ///
    /// # Errors
    /// If the pictures or the store cannot be read.
    pub fn inception_score(
        self,
        features: &Store,
        extract: impl FnOnce(&dyn FeatureExtractor) -> Result<Store>,
    ) -> Result<Option<Report>> {
        match self {
            Protocol::One(_) => features.inception_score(),
            Protocol::DmGan(DmGan { score: Some(network), .. }) => extract(network)?.inception_score(),
            Protocol::DmGan(DmGan { score: None, .. }) => Ok(None),
        }
    }

    /// Checks that `n` pictures are enough for DM-GAN's FID, so that a study fails before it draws
    /// them.
    ///
    /// # Errors
    /// If `n` is too small, or the weights of the network for FID are missing.
    pub fn ensure_enough(self, n: usize) -> Result<()> {
        match self {
            Protocol::One(_) => Ok(()),
            Protocol::DmGan(dm_gan) => {
                let least = (dm_gan.distance()?.dims() + 1).next_multiple_of(BATCH);
                ensure!(
                    n >= least,
                    "{n} captions: DM-GAN's FID wants at least {least}, in batches of {BATCH}"
                );
                Ok(())
            }
        }
    }
}
