//! Inception v3 as a feature extractor, for FID and the Inception Score (paper §3).
//!
//! Two sets of weights are in use, and they give different results: those that TensorFlow published
//! in 2015, which nearly every published FID uses, and torchvision's, which DM-GAN's code uses and
//! therefore also the paper. The number of classes in a file tells which set it contains.

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

/// The URL of the weights of 2015.
pub const TF_2015_URL: &str = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth";
/// The URL of torchvision's weights.
pub const TORCHVISION_URL: &str = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth";

/// The number of features per picture: the input size of the classifier.
const DIMS: usize = 2048;
/// The maximum number of pictures that are processed in parallel, one per thread. This uses the
/// threads better than batches do where Burn's convolutions are not parallel. The number is limited
/// because the activations of a picture take tens of megabytes.
const PARALLEL: usize = 8;

/// How pictures are resized for the weights of 2015. torchvision's weights always use Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// As in pytorch-fid.
    PytorchFid,
    /// As in torch-fidelity, which follows TensorFlow 1.
    TorchFidelity,
    /// As in DM-GAN's code, which resizes with Pillow for both sets of weights.
    DmGan,
}

/// The set of weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// TensorFlow's weights of 2015-12-05, with 1008 classes.
    Tf2015,
    /// torchvision's weights, with ImageNet's 1000 classes.
    Torchvision,
}

impl Kind {
    /// Detects the set of weights from the shape of the classifier.
    fn detect(weights: &Weights) -> Result<Kind> {
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

/// Inception v3: the layers up to global average pooling, and the classifier.
#[derive(Debug)]
pub struct Inception {
    convention: Convention,
    layers: Vec<Layer<Conv>>,
    /// `[D, C]`
    classifier: Tensor<2>,
    /// `[1, C]`. `None` if the logits are computed without a bias.
    bias: Option<Tensor<2>>,
    device: Device,
}

impl Inception {
    /// Reads a weight file in PyTorch's format, for computations on `device`.
    ///
    /// # Errors
    /// If the file is missing (the error says where to download it), damaged, or contains the
    /// weights of another network.
    pub fn read(path: &Path, resize: Resize, device: &Device) -> Result<Inception> {
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
        Inception::new(tensors, resize, device).with_context(|| shown.to_string())
    }

    /// Builds the network from the tensors of a weight file.
    ///
    /// # Errors
    /// If they are not the weights of Inception v3, or do not support `resize`.
    pub fn new(tensors: Vec<HostTensor>, resize: Resize, device: &Device) -> Result<Inception> {
        let (mut weights, device) = (Weights::new(tensors), device.clone());
        let kind = Kind::detect(&weights)?;
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
            // The graph with which the Inception Score was originally measured omits the bias.
            bias: (kind == Kind::Torchvision).then(|| Tensor::from_data(bias, &device)),
            device,
        })
    }

    /// The set of weights, and how pictures are resized and normalized.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Extracts the features and logits of one picture.
    fn extract_one(&self, picture: &RgbImage) -> Features {
        let x = TensorData::new(prepare(picture, self.convention), [1, 3, SIDE, SIDE]);
        let [features, logits] = self.forward(Tensor::from_data(x, &self.device)).map(Tensor::into_data);
        Features { features: features.iter::<f32>().collect(), logits: logits.iter::<f32>().collect() }
    }

    /// `[B, 3, SIDE, SIDE]` → features `[B, D]` and logits `[B, C]`.
    fn forward(&self, x: Tensor<4>) -> [Tensor<2>; 2] {
        let maps = graph::run(&self.layers, x, &Conv::forward);
        let features: Tensor<2> = maps.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        let logits = features.clone().matmul(self.classifier.clone());
        let logits = match &self.bias {
            Some(bias) => logits + bias.clone(),
            None => logits,
        };
        [features, logits]
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
        let mut all = Features::default();
        for pictures in pictures.chunks(PARALLEL) {
            let batch: Vec<Features> = pictures.par_iter().map(|picture| self.extract_one(picture)).collect();
            for one in batch {
                all.features.extend(one.features);
                all.logits.extend(one.logits);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests;
