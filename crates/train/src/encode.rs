//! `encode`: pictures → code shards, several differently cropped copies of each training picture.
//!
//! The output folder also gets the dVAE, since codes mean nothing without it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use tessera_container::{Origin, hash};
use tessera_data::{Augment, CodeItem, CodeSet, Purpose, Sample, Split, atomic, augment, item_rng};
use tessera_eval::{LabelledCodes, Subject};
use tessera_model::dvae::{Dvae, DvaeConfig};
use tessera_text::{Bpe, normalise};

use crate::config::DataConfig;
use crate::dvae::{centre, open_dataset};
use crate::picture::{from_floats, to_floats};
use crate::prior::labelled_codes;
use crate::reporter::{Progress, Reporter, Silent};
use crate::run_dir::read_model;

/// Pictures encoded at once.
const BATCH: usize = 32;

/// File name of the dVAE in a folder of codes.
pub(crate) const DVAE_FILE: &str = "dvae.tessera.safetensors";

/// What is encoded, and how.
#[derive(Debug, Clone, Copy)]
pub struct EncodeInputs<'a> {
    /// The data set.
    pub data: &'a Path,
    /// A model file with the dVAE.
    pub dvae: &'a Path,
    /// Seed of the random crops.
    pub seed: u64,
}

/// Encodes both splits of a data set into `out`. Returns (pictures, tokens).
pub fn encode(
    data_config: &DataConfig,
    EncodeInputs { data, dvae, seed }: EncodeInputs,
    out: &Path,
    reporter: &dyn Reporter,
) -> Result<(usize, usize)> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let file = read_model(dvae, reporter)?;
    let device = Device::default();
    let dvae = file.dvae(&device)?;
    let config = file.config.dvae.clone().context("the file holds no dVAE")?;
    ensure!(config.vocab <= 1 << 16, "code shards hold 16-bit codes; this dVAE has {}", config.vocab);
    let dataset = open_dataset(data, reporter)?;
    let (mut pictures, mut tokens) = (0, 0);
    for split in Split::ALL {
        let samples = dataset.split(split);
        let copies = if split == Split::Train { data_config.copies } else { 1 };
        let views = views(samples, config.image_size as u32, copies, seed)?;
        let codes = codes_of(&dvae, &config, &views, reporter)?;
        let items = samples.iter().map(item).collect();
        let set = CodeSet {
            grid: config.grid(),
            vocab: config.vocab,
            copies,
            codes,
            items,
            dvae: file.fingerprint()?,
            origin: Some(Origin {
                config: hash(&toml::to_string(data_config)?),
                data: dataset.fingerprint(),
            }),
            unverified: false,
        };
        (pictures, tokens) = (pictures + samples.len(), tokens + set.codes.len());
        set.write(&out.join(split.name()))?;
    }
    atomic::write(&out.join(DVAE_FILE), &file.to_bytes()?)?;
    Ok((pictures, tokens))
}

/// `copies` views of each picture: its centre, then random crops (paper §B.2, Listing 2).
fn views(samples: &[Sample], side: u32, copies: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
    let mut views = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        views.push(centre(sample, side)?);
        for copy in 1..copies {
            let mut rng = item_rng(seed, Purpose::Augment, copy as u64, index as u64);
            views.push(to_floats(&augment(&sample.image, side, Augment::Stage2, &mut rng)?));
        }
    }
    Ok(views)
}

/// The centres of `samples` at the dVAE's size, as `eval::recon` takes them.
pub fn held_out_pictures(samples: &[Sample], config: &DvaeConfig) -> Result<Vec<Vec<f32>>> {
    views(samples, config.image_size as u32, 1, 0)
}

/// `samples` as tokens with their canonical captions, as `eval::conditioning` takes them.
pub fn held_out_codes(
    samples: &[Sample],
    dvae: &Dvae,
    config: &DvaeConfig,
    bpe: &Bpe,
) -> Result<Vec<LabelledCodes>> {
    let views = held_out_pictures(samples, config)?;
    let codes = codes_of(dvae, config, &views, &Silent)?;
    let items = samples.iter().map(item).collect();
    let (grid, vocab) = (config.grid(), config.vocab);
    labelled_codes(&CodeSet { grid, vocab, copies: 1, codes, items, ..CodeSet::default() }, bpe)
}

/// `samples` as `eval::drawing` takes them.
pub fn held_out_subjects(samples: &[Sample], side: u32, bpe: &Bpe) -> Result<Vec<Subject>> {
    let subject = |sample: &Sample| {
        let caption = sample.captions.first().context("a picture has no caption")?;
        let image = from_floats(&centre(sample, side)?, side);
        Ok(Subject { caption: bpe.encode(&normalise(caption))?, style: sample.meta.style.clone(), image })
    };
    samples.iter().map(subject).collect()
}

fn codes_of(
    dvae: &Dvae,
    config: &DvaeConfig,
    views: &[Vec<f32>],
    reporter: &dyn Reporter,
) -> Result<Vec<u16>> {
    let side = config.image_size;
    let total = views.len() as u64;
    let mut codes = Vec::new();
    for (index, batch) in views.chunks(BATCH).enumerate() {
        let data = TensorData::new(batch.concat(), [batch.len(), 3, side, side]);
        let tokens: Tensor<3, Int> = dvae.encode(Tensor::from_data(data, &dvae.device()));
        codes.extend(tokens.into_data().iter::<i64>().map(|code| code as u16));
        let done = (index * BATCH + batch.len()) as u64;
        reporter.progress(Progress { task: "encoding", done, total, detail: "" });
    }
    Ok(codes)
}

fn item(sample: &Sample) -> CodeItem {
    CodeItem {
        key: sample.key.clone(),
        captions: sample.captions.clone(),
        concept: sample.meta.concept.clone(),
        style: sample.meta.style.clone(),
    }
}
