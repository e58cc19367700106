//! The model file, `*.tessera.safetensors`: one file with the weights, and with the config and the
//! tokenizer in the metadata.
//!
//! All parts (dVAE, tokenizer, prior, contrastive model) are optional, so that each training stage
//! writes the same kind of file. Weights in memory are f32. A file stores them exactly unless
//! [`StorageDtype`] says otherwise: in a file for distribution, the matrices of the prior and of
//! the contrastive model have 8 bits, and each 32 values share a scale. Every file has a checksum
//! (`tessera_container`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tessera_container::{Contents, Kind, Newer, Origin};

use super::encoding::{Encoded, SCALES, decode};
use super::stand_in::refuse_stand_in;
use super::{HostTensor, StorageDtype};
use crate::dvae::DvaeConfig;
use crate::prior::PriorConfig;
use crate::rerank::ClipConfig;

/// The key of the file's header, and the format versions. Since version 2 files have a checksum and
/// an origin.
const KIND: Kind = Kind { key: "tessera.model", name: "a Tessera model", format: 2, checked: 2 };

/// The fixed header with which weights are hashed to a fingerprint, so that the fingerprint does
/// not depend on a file's own header.
const FINGERPRINTED: &str = r#"{"format":1,"config":{},"tokenizer":null,"notes":{}}"#;

/// The metadata of a model file, as JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    config: ModelConfig,
    tokenizer: Option<String>,
    notes: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    origin: Option<Origin>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    caption_drop: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    int8_nats_per_token: Option<f64>,
    /// Whether the file has the prior of the embedded model, whose card has the metrics of 8-bit
    /// weights.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    int8_in_card: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    words: Option<BTreeSet<String>>,
}

/// The architecture of the parts that a file contains.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Sizes of the dVAE.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dvae: Option<DvaeConfig>,
    /// Sizes of the prior.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prior: Option<PriorConfig>,
    /// Sizes of the contrastive model.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rerank: Option<ClipConfig>,
}

/// How much 8-bit weights change the prior's distribution of the next token, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Int8Change {
    /// It was not measured.
    #[default]
    Unknown,
    /// The card of the embedded model has the metrics.
    InCard,
    /// The mean Kullback-Leibler divergence in nats per token, as measured by `tessera pack`.
    NatsPerToken(f64),
}

impl Int8Change {
    /// Whether the change was measured.
    pub fn is_known(self) -> bool {
        self != Int8Change::Unknown
    }

    /// The measured divergence that a file stores.
    pub fn nats_per_token(self) -> Option<f64> {
        match self {
            Int8Change::NatsPerToken(nats) => Some(nats),
            Int8Change::Unknown | Int8Change::InCard => None,
        }
    }
}

/// The contents of a model file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelFile {
    /// The architecture of the parts.
    pub config: ModelConfig,
    /// The contents of `tokenizer.json`, if the file has a tokenizer.
    pub tokenizer: Option<String>,
    /// Weights of the dVAE; empty if there is none.
    pub dvae: Vec<HostTensor>,
    /// Weights of the prior; empty if there is none.
    pub prior: Vec<HostTensor>,
    /// Weights of the contrastive model; empty if there is none.
    pub rerank: Vec<HostTensor>,
    /// How the weights are stored.
    pub storage: StorageDtype,
    /// Settings and results of the training, for users to read: name → text.
    pub notes: BTreeMap<String, String>,
    /// Hashes of the config and the data with which the last part was trained; `None` if it was not
    /// trained by Tessera.
    pub origin: Option<Origin>,
    /// Whether the file was read without verification, because it has no checksum.
    pub unverified: bool,
    /// The fraction of captions that were dropped in training the prior; guidance needs more than
    /// 0. `None` if the file does not say, which holds for files of earlier versions.
    pub caption_drop: Option<f32>,
    /// How much 8-bit weights change the prior's predictions.
    pub int8: Int8Change,
    /// The words of the captions that the prior was trained on. `None` if the file does not list
    /// them, which holds for files of earlier versions.
    pub words: Option<BTreeSet<String>>,
}

/// The [`model_id`] of the embedded model's file. The file is older than two entries of the header,
/// which it therefore gets when it is read: [`EMBEDDED_CAPTION_DROP`] and [`Int8Change::InCard`].
const EMBEDDED_ID: &str = "6ae8f7d7";
/// The fraction of captions that were dropped in training the embedded model's prior
/// (`data.caption_drop` of configs/emoji.toml).
const EMBEDDED_CAPTION_DROP: f32 = 0.1;

/// The name of the embedded model, in place of the path of a model file. A file of this name can be
/// written as `./embedded`.
pub const EMBEDDED: &str = "embedded";

/// The bytes of the model file at `path`, or of the embedded model if `path` is [`EMBEDDED`].
///
/// # Errors
/// If the file cannot be read.
pub fn model_bytes(path: &Path) -> Result<Cow<'static, [u8]>> {
    #[cfg(feature = "embedded")]
    if is_embedded(path) {
        return Ok(tessera_pretrained::MODEL.into());
    }
    let bytes = fs::read(path);
    Ok(bytes.with_context(|| format!("cannot read {}", path.display()))?.into())
}

/// Whether a path names the embedded model.
fn is_embedded(path: &Path) -> bool {
    cfg!(feature = "embedded") && path == Path::new(EMBEDDED)
}

/// A short hash of a model file's bytes. A seed gives the same pictures only with the same file.
pub fn model_id(bytes: &[u8]) -> String {
    format!("{:08x}", crc32fast::hash(bytes))
}

impl ModelFile {
    /// Reads the model file at `path`.
    ///
    /// # Errors
    /// If the file is missing, damaged, truncated, or written by a newer version.
    pub fn read(path: &Path) -> Result<ModelFile> {
        ModelFile::from_file(&model_bytes(path)?, path)
    }

    /// Whether these bytes begin as a model file does: with the length of a header in JSON.
    pub fn is_one(bytes: &[u8]) -> bool {
        let length = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
        length.is_some_and(|length| length < bytes.len() as u64) && bytes.get(8) == Some(&b'{')
    }

    /// Reads the bytes of a file. Errors name `path`.
    pub fn from_file(bytes: &[u8], path: &Path) -> Result<ModelFile> {
        let shown = path.display();
        let mut file = ModelFile::from_bytes(bytes).map_err(|error| match error.is::<Newer>() {
            true => error.context(shown.to_string()),
            false => error.context(format!("{shown} is not a complete Tessera model")),
        })?;
        // The embedded model is part of the program, not a file that can be damaged.
        file.unverified &= !is_embedded(path);
        Ok(file)
    }

    /// Reads the bytes of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<ModelFile> {
        refuse_stand_in(bytes)?;
        let Contents { header, tensors, verified }: Contents<Header> = KIND.read(bytes)?;
        let unmeasured = if header.int8_in_card { Int8Change::InCard } else { Int8Change::Unknown };
        let mut file = ModelFile {
            config: header.config,
            tokenizer: header.tokenizer,
            notes: header.notes,
            origin: header.origin,
            unverified: !verified,
            caption_drop: header.caption_drop,
            int8: header.int8_nats_per_token.map_or(unmeasured, Int8Change::NatsPerToken),
            words: header.words,
            ..ModelFile::default()
        };
        if model_id(bytes) == EMBEDDED_ID {
            file.caption_drop = Some(EMBEDDED_CAPTION_DROP);
            file.int8 = Int8Change::InCard;
        }
        for (full, view) in tensors.iter().filter(|(full, _)| !full.ends_with(SCALES)) {
            let Some((part, name)) = full.split_once('.') else {
                bail!("weight {full} belongs to no part of a model")
            };
            if view.dtype() == Dtype::I8 {
                file.storage = StorageDtype::Int8;
            }
            let values = decode(full, &view, &tensors)?;
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

    /// Returns the bytes of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            notes: self.notes.clone(),
            origin: self.origin.clone(),
            caption_drop: self.caption_drop,
            int8_nats_per_token: self.int8.nats_per_token(),
            int8_in_card: self.int8 == Int8Change::InCard,
            words: self.words.clone(),
        };
        KIND.write(&header, views(&self.encoded()?)?)
    }

    fn encoded(&self) -> Result<Vec<Encoded>> {
        let mut encoded = Vec::new();
        for (part, tensors) in [("dvae", &self.dvae), ("prior", &self.prior), ("rerank", &self.rerank)] {
            for tensor in tensors {
                encoded.extend(self.storage.encode(part, tensor)?);
            }
        }
        Ok(encoded)
    }

    /// A short hash of the dVAE's weights. Codes are valid only for the dVAE that encoded them.
    pub fn fingerprint(&self) -> Result<String> {
        let only = ModelFile { dvae: self.dvae.clone(), ..ModelFile::default() };
        let header = HashMap::from([(KIND.key.to_string(), FINGERPRINTED.to_string())]);
        let bytes = safetensors::serialize(views(&only.encoded()?)?, Some(header))?;
        Ok(format!("{:08x}", crc32fast::hash(&bytes)))
    }
}

/// Encoded tensors in the form that safetensors writes.
fn views<'a>(encoded: &'a [Encoded]) -> Result<Vec<(String, TensorView<'a>)>> {
    let view = |(name, dtype, shape, bytes): &'a Encoded| {
        Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
    };
    encoded.iter().map(view).collect()
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
    fn header_entries_round_trip_and_old_files_lack_them() {
        let words = Some(["apple".to_string(), "éclair".to_string()].into());
        let int8 = Int8Change::NatsPerToken(0.002);
        let file = ModelFile { caption_drop: Some(0.1), int8, words, ..small() };
        assert_eq!(ModelFile::from_bytes(&file.to_bytes().unwrap()).unwrap(), file);
        let old = small().to_bytes().unwrap();
        let text = String::from_utf8_lossy(&old);
        assert!(!text.contains("caption_drop") && !text.contains("words"));
        let read = ModelFile::from_bytes(&old).unwrap();
        assert_eq!((read.caption_drop, read.words), (None, None));
        let embedded = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        assert_eq!(embedded.caption_drop, Some(0.1));
        assert_eq!((embedded.int8, small().int8), (Int8Change::InCard, Int8Change::Unknown));
        let rewritten = ModelFile::from_bytes(&embedded.to_bytes().unwrap()).unwrap();
        assert_eq!((rewritten.int8, rewritten.caption_drop), (Int8Change::InCard, Some(0.1)));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = small().to_bytes().unwrap();
        for len in 0..bytes.len() {
            assert!(ModelFile::from_bytes(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn file_without_checksum_is_read_as_unverified() {
        let header = r#"{"format":1,"config":{},"tokenizer":"{}","notes":{}}"#.to_string();
        let meta = HashMap::from([("tessera.model".to_string(), header)]);
        let bytes = safetensors::serialize(views(&small().encoded().unwrap()).unwrap(), Some(meta)).unwrap();
        assert_eq!(ModelFile::from_bytes(&bytes).unwrap(), ModelFile { unverified: true, ..small() });
        assert!(ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap().unverified);
    }

    #[test]
    fn damaged_file_and_newer_version_have_different_errors() {
        let error = |bytes: &[u8]| format!("{:#}", ModelFile::from_file(bytes, Path::new("x")).unwrap_err());
        let mut bytes = small().to_bytes().unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(
            error(&bytes).starts_with("x is not a complete Tessera model: it is damaged: "),
            "{}",
            error(&bytes)
        );
        let newer = Kind { format: KIND.format + 1, ..KIND };
        let bytes = newer
            .write(&BTreeMap::from([("other", 1)]), views(&small().encoded().unwrap()).unwrap())
            .unwrap();
        assert!(error(&bytes).starts_with("x: a Tessera model of format version 3, written by a newer"));
    }

    /// Stored codes refer to their dVAE by its fingerprint, so it must not change with the file
    /// format.
    #[test]
    fn dvae_fingerprint_is_stable() {
        let fingerprint = small().fingerprint().unwrap();
        let noted = ModelFile { origin: Some(Origin::default()), ..small() };
        assert_eq!(
            (fingerprint.as_str(), noted.fingerprint().unwrap().as_str()),
            ("333355ed", fingerprint.as_str())
        );
    }
}
