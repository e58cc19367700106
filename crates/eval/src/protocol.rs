//! Whose rules FID and IS are measured by: those of one network, or those of the code that the paper's figures are by.
//!
//! DM-GAN's code (paper §3) takes FID from torchvision's Inception and IS from the graph of 2015, both on pictures that Pillow
//! brought to 299 × 299. Its FID reads pictures in batches of 64 and leaves out those that do not fill the last one; its IS is
//! the mean over ten splits in the order of the files.

use anyhow::{Context, Result, bail, ensure};

use crate::features::FeatureExtractor;
use crate::inception::{Convention, Inception, TF_2015_URL, TORCHVISION_URL};
use crate::store::Store;
use crate::{Gaussian, Report};

/// Pictures of a batch of DM-GAN's FID.
const BATCH: usize = 64;

/// How a set of pictures gets its FID and IS.
#[derive(Clone, Copy)]
pub enum Protocol<'a> {
    /// One network gives features and classes, and every picture counts.
    One(&'a dyn FeatureExtractor),
    /// As DM-GAN's code does.
    DmGan(&'a DmGan),
}

/// The networks of DM-GAN's code, as far as their weights are at hand.
#[derive(Debug)]
pub struct DmGan {
    distance: Option<Inception>,
    score: Option<Inception>,
}

impl DmGan {
    /// Of networks that were read with [`Resize::DmGan`](crate::Resize::DmGan), in any order.
    ///
    /// # Errors
    /// If two have the same weights, or one resizes pictures otherwise.
    pub fn new(networks: Vec<Inception>) -> Result<DmGan> {
        let mut own = DmGan { distance: None, score: None };
        for network in networks {
            let place = match network.convention() {
                Convention::Torchvision => &mut own.distance,
                Convention::DmGanScore => &mut own.score,
                Convention::PytorchFid | Convention::TorchFidelity => {
                    bail!("{} is not a network of DM-GAN's protocol", network.name())
                }
            };
            ensure!(
                place.is_none(),
                "the same weights twice; wanted torchvision's for FID and those of 2015 for IS"
            );
            *place = Some(network);
        }
        Ok(own)
    }

    /// The network of FID.
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

    /// The network of IS on MS-COCO.
    ///
    /// # Errors
    /// If its weights are missing.
    pub fn score(&self) -> Result<&Inception> {
        self.score.as_ref().with_context(|| {
            format!("DM-GAN's IS is by the Inception of 2015: pass {TF_2015_URL} with --inception FILE")
        })
    }

    /// Refuses an IS of CUB, whose network is not read.
    ///
    /// # Errors
    /// If the weights of another network are there for it.
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
    /// The network whose features are compared.
    ///
    /// # Errors
    /// If its weights are missing.
    pub fn distance(self) -> Result<&'a dyn FeatureExtractor> {
        match self {
            Protocol::One(network) => Ok(network),
            Protocol::DmGan(own) => Ok(own.distance()?),
        }
    }

    /// Mean and covariance of what [`Protocol::distance`] saw.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn gaussian(self, seen: &Store) -> Result<Gaussian> {
        match self {
            Protocol::One(_) => seen.gaussian(),
            Protocol::DmGan(_) => seen.gaussian_of(seen.len() / BATCH * BATCH),
        }
    }

    /// The inception score of the pictures that [`Protocol::distance`] has `seen`, if a network knows classes; `look` has another
    /// network look at them.
    ///
    /// # Errors
    /// If the pictures cannot be read.
    pub fn inception_score(
        self,
        seen: &Store,
        look: impl FnOnce(&dyn FeatureExtractor) -> Result<Store>,
    ) -> Result<Option<Report>> {
        match self {
            Protocol::One(_) => seen.inception_score(),
            Protocol::DmGan(DmGan { score: Some(network), .. }) => look(network)?.inception_score(),
            Protocol::DmGan(DmGan { score: None, .. }) => Ok(None),
        }
    }

    /// Refuses a set of `n` pictures that is too small for a FID, before they are drawn.
    ///
    /// # Errors
    /// If DM-GAN's FID would be refused.
    pub fn ensure_enough(self, n: usize) -> Result<()> {
        match self {
            Protocol::One(_) => Ok(()),
            Protocol::DmGan(own) => {
                let least = (own.distance()?.dims() + 1).next_multiple_of(BATCH);
                ensure!(
                    n >= least,
                    "{n} captions: DM-GAN's FID wants at least {least}, in batches of {BATCH}"
                );
                Ok(())
            }
        }
    }
}
