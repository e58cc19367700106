//! A model is one file: `*.tessera.safetensors`, weights in f16, its config and tokenizer in the metadata.
//!
//! The parts (dVAE, tokenizer, prior) are optional, so that each training stage writes the same kind of file. Weights
//! are stored in f16, computed on in f32.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::HostTensor;
use crate::dvae::DvaeConfig;
use crate::prior::PriorConfig;

/// Version of the file's layout; a reader refuses others.
const FORMAT: u32 = 1;

/// The one entry of the safetensors metadata: a single key, because the format does not keep the order of several and
/// the same model should have the same bytes.
const HEADER_KEY: &str = "tessera.model";

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    config: ModelConfig,
    tokenizer: Option<String>,
    notes: BTreeMap<String, String>,
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
    /// Settings and facts of the training that made it, for people: name → text.
    pub notes: BTreeMap<String, String>,
}

impl ModelFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it is missing, truncated, of another format or version.
    pub fn read(path: &Path) -> Result<ModelFile> {
        let bytes = fs::read(path).with_context(|| format!("cannot read the model file {}", path.display()))?;
        ModelFile::from_bytes(&bytes).with_context(|| format!("{} is not a whole Tessera model", path.display()))
    }

    /// Reads the bytes of a file.
    pub fn from_bytes(bytes: &[u8]) -> Result<ModelFile> {
        let (_, header) = SafeTensors::read_metadata(bytes).context("not a safetensors file, or truncated")?;
        let header = header.metadata().as_ref().and_then(|meta| meta.get(HEADER_KEY));
        let header = header.context("a safetensors file without Tessera's metadata")?;
        let header: Header = serde_json::from_str(header).context("the metadata is damaged")?;
        let Header { format, config, tokenizer, notes } = header;
        ensure!(format == FORMAT, "format version {format}; this program reads version {FORMAT}");
        let mut file = ModelFile { config, tokenizer, notes, ..ModelFile::default() };
        let tensors = SafeTensors::deserialize(bytes).context("truncated or damaged weights")?;
        for (name, view) in tensors.iter() {
            match name.split_once('.') {
                Some(("dvae", name)) => file.dvae.push(host_tensor(name, &view)?),
                Some(("prior", name)) => file.prior.push(host_tensor(name, &view)?),
                _ => bail!("weight {name} belongs to no part of a model"),
            }
        }
        Ok(file)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let header = Header {
            format: FORMAT,
            config: self.config.clone(),
            tokenizer: self.tokenizer.clone(),
            notes: self.notes.clone(),
        };
        let meta = HashMap::from([(HEADER_KEY.to_string(), serde_json::to_string(&header)?)]);
        let parts = [("dvae", &self.dvae), ("prior", &self.prior)];
        let encoded: Vec<(String, Vec<usize>, Vec<u8>)> = parts
            .iter()
            .flat_map(|(part, tensors)| tensors.iter().map(move |t| (format!("{part}.{}", t.name), t)))
            .map(|(name, t)| (name, t.shape.clone(), f16_bytes(&t.values)))
            .collect();
        let views = encoded
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(safetensors::serialize(views, Some(meta))?)
    }

    /// A short name of the dVAE's weights: codes made by another dVAE mean something else.
    pub fn fingerprint(&self) -> Result<String> {
        let only = ModelFile { dvae: self.dvae.clone(), ..ModelFile::default() };
        Ok(format!("{:08x}", crc32fast::hash(&only.to_bytes()?)))
    }

    /// Writes the file whole or not at all: to a temporary name, synced, then renamed.
    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        let part = path.with_extension("part");
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&part)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().with_context(|| format!("cannot write the model file {}", path.display()))
    }
}

fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect()
}

fn host_tensor(name: &str, view: &TensorView) -> Result<HostTensor> {
    ensure!(view.dtype() == Dtype::F16, "weight {name} is {:?}; wanted F16", view.dtype());
    let values = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    Ok(HostTensor { name: name.to_string(), shape: view.shape().to_vec(), values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> ModelFile {
        let weight = HostTensor { name: "a.b".into(), shape: vec![2, 2], values: vec![0.5, -1.0, 0.0, 65504.0] };
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
}
