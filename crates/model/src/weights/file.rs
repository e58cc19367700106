//! A model is one file: `*.tessera.safetensors`, weights in f16, its config and tokenizer in the metadata.
//!
//! The parts (dVAE, tokenizer, prior, contrastive model) are optional, so that each training stage writes the same kind of
//! file. Weights are computed on in f32; the matrices of the prior and of the contrastive model may be stored in 8 bits, 32
//! values sharing a scale, to halve a file that is shipped. Every file has a checksum (`tessera_container`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tessera_container::{Contents, Kind, Newer, Origin};

use super::HostTensor;
use crate::dvae::DvaeConfig;
use crate::prior::PriorConfig;
use crate::rerank::ClipConfig;

/// The file's header and versions: 2 has a checksum and an origin.
const KIND: Kind = Kind { key: "tessera.model", name: "a Tessera model", format: 2, checked: 2 };

/// The header under which weights are hashed to a fingerprint, whatever a file's own header is.
const FINGERPRINTED: &str = r#"{"format":1,"config":{},"tokenizer":null,"notes":{}}"#;

/// Values that share one scale in 8-bit storage.
const BLOCK: usize = 32;
/// Ends the name of a tensor of scales.
const SCALES: &str = "#scales";

/// How a file stores the matrices of the prior and of the contrastive model; everything else is f16.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Storage {
    /// Half precision.
    #[default]
    F16,
    /// Signed bytes, each block of 32 with an f16 scale.
    Int8,
}

#[derive(Serialize, Deserialize)]
struct Header {
    config: ModelConfig,
    tokenizer: Option<String>,
    notes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    origin: Option<Origin>,
}

/// Architecture of the parts that a file holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The discrete VAE.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dvae: Option<DvaeConfig>,
    /// The transformer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prior: Option<PriorConfig>,
    /// The contrastive model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rerank: Option<ClipConfig>,
}

/// A model as a file holds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelFile {
    /// Architecture.
    pub config: ModelConfig,
    /// `tokenizer.json`, if the file holds one.
    pub tokenizer: Option<String>,
    /// Weights of the dVAE; empty if there is none.
    pub dvae: Vec<HostTensor>,
    /// Weights of the prior; empty if there is none.
    pub prior: Vec<HostTensor>,
    /// Weights of the contrastive model; empty if there is none.
    pub rerank: Vec<HostTensor>,
    /// How the matrices of the prior and of the contrastive model are stored.
    pub storage: Storage,
    /// Settings and facts of the training that made it, for people: name → text.
    pub notes: BTreeMap<String, String>,
    /// Hashes of the config and the data that the last part was trained with, if it was trained here.
    pub origin: Option<Origin>,
    /// Whether the file that was read has no checksum, so that damage to it may go unnoticed.
    pub unverified: bool,
}

/// A tensor as a file has it: name, type, shape, bytes.
type Encoded = (String, Dtype, Vec<usize>, Vec<u8>);

/// A short name of a model file's bytes: the same seed draws the same pictures only with the same file.
pub fn model_id(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

impl ModelFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it is missing, damaged, cut short, or written by a newer version.
    pub fn read(path: &Path) -> Result<ModelFile> {
        let bytes =
            fs::read(path).with_context(|| format!("cannot read the model file {}", path.display()))?;
        ModelFile::from_file(&bytes, path)
    }

    /// Reads the bytes of the file at `path`, which errors name.
    pub fn from_file(bytes: &[u8], path: &Path) -> Result<ModelFile> {
        let shown = path.display();
        ModelFile::from_bytes(bytes).map_err(|error| match error.is::<Newer>() {
            true => error.context(shown.to_string()),
            false => error.context(format!("{shown} is not a whole Tessera model")),
        })
    }

    /// Reads the bytes of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<ModelFile> {
        let Contents { header, tensors, verified } = KIND.read(bytes)?;
        let Header { config, tokenizer, notes, origin } = header;
        let unverified = !verified;
        let mut file = ModelFile { config, tokenizer, notes, origin, unverified, ..ModelFile::default() };
        for (full, view) in tensors.iter().filter(|(full, _)| !full.ends_with(SCALES)) {
            let Some((part, name)) = full.split_once('.') else {
                bail!("weight {full} belongs to no part of a model")
            };
            let values = match view.dtype() {
                Dtype::F16 => floats(view.data()),
                Dtype::I8 => {
                    file.storage = Storage::Int8;
                    let scales = tensors.tensor(&format!("{full}{SCALES}")).context("scales are missing")?;
                    dequantize(view.data(), &floats(scales.data())).with_context(|| full.to_string())?
                }
                other => bail!("weight {full} is {other:?}; wanted F16 or I8"),
            };
            let tensor = HostTensor { name: name.to_string(), shape: view.shape().to_vec(), values };
            match part {
                "dvae" => file.dvae.push(tensor),
                "prior" => file.prior.push(tensor),
                "rerank" => file.rerank.push(tensor),
                _ => bail!("weight {full} belongs to no part of a model"),
            }
        }
        Ok(file)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            notes: self.notes.clone(),
            origin: self.origin.clone(),
        };
        KIND.write(&header, views(&self.encoded())?)
    }

    fn encoded(&self) -> Vec<Encoded> {
        let mut encoded = Vec::new();
        for (part, tensors) in [("dvae", &self.dvae), ("prior", &self.prior), ("rerank", &self.rerank)] {
            for tensor in tensors {
                let name = format!("{part}.{}", tensor.name);
                if part != "dvae" && self.storage == Storage::Int8 && tensor.shape.len() > 1 {
                    let (bytes, scales) = quantize(&tensor.values);
                    encoded.push((
                        format!("{name}{SCALES}"),
                        Dtype::F16,
                        vec![scales.len()],
                        f16_bytes(&scales),
                    ));
                    encoded.push((name, Dtype::I8, tensor.shape.clone(), bytes));
                } else {
                    encoded.push((name, Dtype::F16, tensor.shape.clone(), f16_bytes(&tensor.values)));
                }
            }
        }
        encoded
    }

    /// A short name of the dVAE's weights: codes made by another dVAE mean something else.
    pub fn fingerprint(&self) -> Result<String> {
        let only = ModelFile { dvae: self.dvae.clone(), ..ModelFile::default() };
        let header = HashMap::from([(KIND.key.to_string(), FINGERPRINTED.to_string())]);
        let bytes = safetensors::serialize(views(&only.encoded())?, Some(header))?;
        Ok(format!("{:08x}", crc32fast::hash(&bytes)))
    }
}

fn views<'a>(encoded: &'a [Encoded]) -> Result<Vec<(String, TensorView<'a>)>> {
    let view = |(name, dtype, shape, bytes): &'a Encoded| {
        Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
    };
    encoded.iter().map(view).collect()
}

fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// Signed bytes as the file holds them, and a scale for each block: its largest magnitude is 127 of them.
fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let scale = |block: &[f32]| {
        let largest = block.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        f16::from_f32(largest / 127.0).to_f32()
    };
    let scales: Vec<f32> = values.chunks(BLOCK).map(scale).collect();
    let byte =
        |(v, scale): (&f32, f32)| (v / scale.max(f32::MIN_POSITIVE)).round().clamp(-127.0, 127.0) as i8 as u8;
    let blocks = values.chunks(BLOCK).zip(&scales);
    (blocks.flat_map(|(block, &scale)| block.iter().map(move |v| byte((v, scale)))).collect(), scales)
}

fn dequantize(bytes: &[u8], scales: &[f32]) -> Result<Vec<f32>> {
    ensure!(
        scales.len() == bytes.len().div_ceil(BLOCK),
        "{} scales for {} values",
        scales.len(),
        bytes.len()
    );
    let blocks = bytes.chunks(BLOCK).zip(scales);
    Ok(blocks.flat_map(|(block, &scale)| block.iter().map(move |&b| f32::from(b as i8) * scale)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> ModelFile {
        let weight =
            HostTensor { name: "a.b".into(), shape: vec![2, 2], values: vec![0.5, -1.0, 0.0, 65504.0] };
        ModelFile { dvae: vec![weight], tokenizer: Some("{}".into()), ..ModelFile::default() }
    }

    #[test]
    fn round_trip() {
        let bytes = small().to_bytes().unwrap();
        assert_eq!(ModelFile::from_bytes(&bytes).unwrap(), small());
        assert_eq!(small().to_bytes().unwrap(), bytes);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = small().to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(ModelFile::from_bytes(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn a_file_from_before_checksums_is_read_and_known_as_unverified() {
        let header = r#"{"format":1,"config":{},"tokenizer":"{}","notes":{}}"#.to_string();
        let meta = HashMap::from([("tessera.model".to_string(), header)]);
        let bytes = safetensors::serialize(views(&small().encoded()).unwrap(), Some(meta)).unwrap();
        assert_eq!(ModelFile::from_bytes(&bytes).unwrap(), ModelFile { unverified: true, ..small() });
        assert!(ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap().unverified);
    }

    #[test]
    fn a_damaged_file_and_one_of_a_newer_version_are_told_apart() {
        let said = |bytes: &[u8]| format!("{:#}", ModelFile::from_file(bytes, Path::new("x")).unwrap_err());
        let mut bytes = small().to_bytes().unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(
            said(&bytes).starts_with("x is not a whole Tessera model: it is damaged: "),
            "{}",
            said(&bytes)
        );
        let newer = Kind { format: KIND.format + 1, ..KIND };
        let bytes = newer.write(&BTreeMap::from([("other", 1)]), views(&small().encoded()).unwrap()).unwrap();
        assert!(said(&bytes).starts_with("x: a Tessera model of format version 3, written by a newer"));
    }

    /// Codes name the dVAE that made them: this must not change with the layout of the file.
    #[test]
    fn the_fingerprint_of_a_dvae_is_what_it_always_was() {
        let fingerprint = small().fingerprint().unwrap();
        let noted = ModelFile { origin: Some(Origin::default()), ..small() };
        assert_eq!(
            (fingerprint.as_str(), noted.fingerprint().unwrap().as_str()),
            ("333355ed", fingerprint.as_str())
        );
    }

    #[test]
    fn eight_bits_stay_within_half_a_step_of_their_block() {
        let values: Vec<f32> =
            (0..100).map(|i| (i as f32 * 0.9).sin() * if i < 32 { 1e-3 } else { 5.0 }).collect();
        let weight = HostTensor { name: "w".into(), shape: vec![10, 10], values: values.clone() };
        let file = ModelFile { prior: vec![weight], storage: Storage::Int8, ..ModelFile::default() };
        let again = ModelFile::from_bytes(&file.to_bytes().unwrap()).unwrap();
        assert_eq!(again.storage, Storage::Int8);
        for (i, (a, b)) in again.prior[0].values.iter().zip(&values).enumerate() {
            let largest =
                values[i / 32 * 32..(i / 32 * 32 + 32).min(100)].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            assert!((a - b).abs() <= largest / 127.0 * 0.51, "{a} for {b}");
        }
    }
}
