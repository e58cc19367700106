//! Inception v3 as a network of features: what FID and the Inception Score are measured by (paper §3).
//!
//! Two sets of weights are in use, and they give other figures: those that TensorFlow published in 2015, which nearly
//! every FID is by, and torchvision's, which the code that the paper took its FID from (DM-GAN's) is by. A file says
//! itself which it is, by the number of its classes.

mod graph;
mod resize;
mod weights;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;
use tessera_model::weights::{HostTensor, read_torch_file};

pub use self::resize::Convention;

use self::graph::Layer;
use self::resize::{SIDE, prepare};
use self::weights::{Conv, Weights};
use crate::features::{FeatureExtractor, Features};

/// Where the weights of 2015 are published.
pub const TF_2015_URL: &str = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth";
/// Where torchvision's weights are published.
pub const TORCHVISION_URL: &str = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth";

/// Numbers that the network has for a picture before it names classes.
const DIMS: usize = 2048;
/// Pictures that are looked at at a time, each by a thread of its own, which keeps threads busier than a batch does where
/// Burn's convolutions are not parallel. A bound, since each takes tens of megabytes on its way.
const TOGETHER: usize = 8;

/// How the weights of 2015 have pictures resized. torchvision's leave no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// As pytorch-fid.
    PytorchFid,
    /// As torch-fidelity, which follows TensorFlow 1.
    TorchFidelity,
    /// As DM-GAN's code, which resizes with Pillow before the graph of 2015 and before torchvision's.
    DmGan,
}

/// Whose weights a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// TensorFlow's of 2015-12-05, with 1008 classes.
    Tf2015,
    /// torchvision's, with ImageNet's 1000 classes.
    Torchvision,
}

impl Kind {
    /// Read off the classifier.
    fn of(weights: &Weights) -> Result<Kind> {
        match weights.shape("fc.weight") {
            Some([1008, DIMS]) => Ok(Kind::Tf2015),
            Some([1000, DIMS]) => Ok(Kind::Torchvision),
            Some([classes @ (50 | 51), _]) => bail!(
                "fc.weight has {classes} classes: StackGAN's Inception, fine-tuned on birds, is not supported"
            ),
            Some(shape) => bail!(
                "fc.weight has shape {shape:?}; wanted [1008, {DIMS}] (the weights of 2015) or [1000, {DIMS}] (torchvision's)"
            ),
            None => bail!("no weights of Inception v3: fc.weight is missing"),
        }
    }

    fn classes(self) -> usize {
        match self {
            Kind::Tf2015 => 1008,
            Kind::Torchvision => 1000,
        }
    }

    fn convention(self, resize: Resize) -> Result<Convention> {
        match (self, resize) {
            (Kind::Tf2015, Resize::PytorchFid) => Ok(Convention::PytorchFid),
            (Kind::Tf2015, Resize::TorchFidelity) => Ok(Convention::TorchFidelity),
            (Kind::Tf2015, Resize::DmGan) => Ok(Convention::DmGanScore),
            (Kind::Torchvision, Resize::PytorchFid | Resize::DmGan) => Ok(Convention::Torchvision),
            (Kind::Torchvision, Resize::TorchFidelity) => {
                bail!("torch-fidelity's resizing belongs to the weights of 2015; these are torchvision's")
            }
        }
    }
}

/// Inception v3 up to its last mean, and its classifier.
#[derive(Debug)]
pub struct Inception {
    convention: Convention,
    layers: Vec<Layer<Conv>>,
    /// `[D, C]`
    classifier: Tensor<2>,
    /// `[1, C]`, if it has a part in the scores.
    bias: Option<Tensor<2>>,
    device: Device,
}

impl Inception {
    /// Reads a file of weights as PyTorch writes it.
    ///
    /// # Errors
    /// If there is none, and then where to get one; or if it is damaged or another network's.
    pub fn read(path: &Path, resize: Resize) -> Result<Inception> {
        let shown = path.display();
        let bytes = fs::read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!(
                "{shown}: there is no such file; download {TF_2015_URL} (most FIDs) or {TORCHVISION_URL} (the paper's) \
                 and pass it with --inception FILE"
            ),
            _ => anyhow!("{shown}: {error}"),
        })?;
        let tensors = read_torch_file(&bytes, |name| !name.ends_with(".num_batches_tracked"))
            .with_context(|| shown.to_string())?;
        drop(bytes);
        Inception::new(tensors, resize).with_context(|| shown.to_string())
    }

    /// Of the tensors of such a file.
    ///
    /// # Errors
    /// If they are not those of Inception v3.
    pub fn new(tensors: Vec<HostTensor>, resize: Resize) -> Result<Inception> {
        let (mut weights, device) = (Weights::new(tensors), Device::flex());
        let kind = Kind::of(&weights)?;
        let convention = kind.convention(resize)?;
        let take = &mut |spec, n_in| Conv::take(&mut weights, spec, n_in, &device);
        let (layers, n_out) = graph::build(graph::inception(kind), 3, take)?;
        ensure!(n_out == DIMS, "{n_out} features; wanted {DIMS}");
        let classes = kind.classes();
        let classifier = TensorData::new(weights.take("fc.weight", &[classes, DIMS])?, [classes, DIMS]);
        let bias = TensorData::new(weights.take("fc.bias", &[classes])?, [1, classes]);
        weights.ensure_used()?;
        Ok(Inception {
            convention,
            layers,
            classifier: Tensor::<2>::from_data(classifier, &device).transpose(),
            // The graph that the Inception Score was first measured by leaves it out.
            bias: (kind == Kind::Torchvision).then(|| Tensor::from_data(bias, &device)),
            device,
        })
    }

    /// How pictures are resized, and whose weights these are.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// What it makes of one picture.
    fn extract_one(&self, picture: &RgbImage) -> Features {
        let x = TensorData::new(prepare(picture, self.convention), [1, 3, SIDE, SIDE]);
        let [features, logits] = self.forward(Tensor::from_data(x, &self.device)).map(Tensor::into_data);
        Features { features: features.iter::<f32>().collect(), logits: logits.iter::<f32>().collect() }
    }

    /// The features `[B, D]` and scores `[B, C]` of `[B, 3, SIDE, SIDE]`.
    fn forward(&self, x: Tensor<4>) -> [Tensor<2>; 2] {
        let maps = graph::run(&self.layers, x, &Conv::forward);
        let features: Tensor<2> = maps.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        let scores = features.clone().matmul(self.classifier.clone());
        let scores = match &self.bias {
            Some(bias) => scores + bias.clone(),
            None => scores,
        };
        [features, scores]
    }
}

impl FeatureExtractor for Inception {
    fn name(&self) -> String {
        let (weights, resized) = match self.convention {
            Convention::PytorchFid => ("Inception v3 of 2015-12-05", "pytorch-fid"),
            Convention::TorchFidelity => ("Inception v3 of 2015-12-05", "torch-fidelity"),
            Convention::DmGanScore => ("Inception v3 of 2015-12-05", "DM-GAN's code"),
            Convention::Torchvision => ("torchvision's Inception v3", "DM-GAN's code"),
        };
        format!("{weights}, pool 3, resized as by {resized}")
    }

    fn dims(&self) -> usize {
        DIMS
    }

    fn classes(&self) -> usize {
        self.classifier.dims()[1]
    }

    fn extract(&self, pictures: &[RgbImage]) -> Result<Features> {
        let empty = pictures.iter().position(|picture| picture.width() == 0 || picture.height() == 0);
        ensure!(empty.is_none(), "picture {} of a batch has no pixels", empty.unwrap_or_default());
        let mut seen = Features::default();
        for pictures in pictures.chunks(TOGETHER) {
            let found: Vec<Features> = pictures.par_iter().map(|picture| self.extract_one(picture)).collect();
            for one in found {
                seen.features.extend(one.features);
                seen.logits.extend(one.logits);
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests;
