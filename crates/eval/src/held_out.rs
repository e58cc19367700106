//! Converts held-out samples to the inputs of the metrics: pictures, labelled tokens, and subjects.

use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;
use tessera_base::pixels::to_floats;
use tessera_base::{random::Purpose, random::item_rng};
use tessera_data::{Augment, CodeItem, CodeSet, ReadSample, Sample, augment};
use tessera_model::dvae::{Dvae, DvaeConfig};
use tessera_text::{Bpe, Prompt};

use crate::conditioning::LabelledCodes;
use crate::drawing::Subject;

/// The batch size of the encoder.
const BATCH: usize = 32;

/// Returns the centre crop of a sample's picture at `side` × `side` pixels.
///
/// # Errors
/// If the picture is smaller than that.
pub fn centre_crop(sample: &Sample, side: u32) -> Result<RgbImage> {
    let mut unused = item_rng(0, Purpose::Augment, 0, 0);
    augment(&sample.image, side, Augment::CentreOnly, &mut unused)
        .with_context(|| format!("picture {}", sample.key))
}

/// Returns the centre crops of `samples` at the dVAE's size, `[3, S, S]` in [0, 1] each, for
/// [`recon`](crate::recon()).
///
/// # Errors
/// As for [`centre_crop`], and if a picture cannot be read.
pub fn held_out_pictures<S: ReadSample>(samples: &[S], config: &DvaeConfig) -> Result<Vec<Vec<f32>>> {
    let side = config.image_size as u32;
    let picture = |sample: &S| Ok(to_floats(&centre_crop(&*sample.sample()?, side)?));
    samples.iter().map(picture).collect()
}

/// Returns the tokens of the centre crops of `samples` with their canonical captions, for
/// [`conditioning`](crate::conditioning()).
///
/// # Errors
/// As for [`centre_crop`], and if a picture cannot be read or a caption cannot be encoded.
pub fn held_out_codes<S: ReadSample>(
    samples: &[S],
    dvae: &Dvae,
    config: &DvaeConfig,
    bpe: &Bpe,
) -> Result<Vec<LabelledCodes>> {
    let mut labelled = Vec::new();
    let side = config.image_size as u32;
    for batch in samples.chunks(BATCH) {
        let samples = batch.par_iter().map(S::sample).collect::<Result<Vec<_>>>()?;
        let crops = samples.par_iter().map(|sample| Ok(to_floats(&centre_crop(sample, side)?)));
        let codes = codes_of(dvae, config, &crops.collect::<Result<Vec<_>>>()?);
        for (sample, codes) in samples.iter().zip(codes.chunks(config.grid() * config.grid())) {
            labelled.push(label(codes, &code_item(sample), bpe)?);
        }
    }
    Ok(labelled)
}

/// Returns the centre crops of `samples` with their captions, for [`drawing`](crate::drawing()).
///
/// # Errors
/// As for [`centre_crop`], and if a sample has no caption.
pub fn held_out_subjects(samples: &[Sample], side: u32, bpe: &Bpe) -> Result<Vec<Subject>> {
    let subject = |sample: &Sample| {
        Ok(Subject {
            caption: bpe.encode(&Prompt::new(sample.caption()?).text)?,
            style: sample.meta.style.clone(),
            image: centre_crop(sample, side)?,
        })
    };
    samples.iter().map(subject).collect()
}

/// Returns each picture of `codes` with the tokens of its canonical caption.
///
/// # Errors
/// If a picture has no caption, or the set has changed since it was opened.
pub fn labelled_codes(codes: &CodeSet, bpe: &Bpe) -> Result<Vec<LabelledCodes>> {
    let items = codes.items.iter().enumerate();
    items.map(|(index, item)| label(&codes.tokens(index, 0)?, item, bpe)).collect()
}

/// Returns the tokens of a picture with those of its canonical caption.
fn label(codes: &[u16], item: &CodeItem, bpe: &Bpe) -> Result<LabelledCodes> {
    let caption = item.captions.first().context("a picture has no caption")?;
    Ok(LabelledCodes {
        codes: codes.iter().map(|&code| u32::from(code)).collect(),
        caption: bpe.encode(&Prompt::new(caption).text)?,
        style: item.style.clone(),
    })
}

/// Returns the tokens of `pictures`, `[3, S, S]` in [0, 1] each, one picture after another.
pub fn codes_of(dvae: &Dvae, config: &DvaeConfig, pictures: &[Vec<f32>]) -> Vec<u16> {
    let side = config.image_size;
    let data = TensorData::new(pictures.concat(), [pictures.len(), 3, side, side]);
    let tokens: Tensor<3, Int> = dvae.encode(Tensor::from_data(data, &dvae.device()));
    tokens.into_data().iter::<i64>().map(|code| code as u16).collect()
}

/// Returns the entry of a sample in a code set.
pub fn code_item(sample: &Sample) -> CodeItem {
    CodeItem {
        key: sample.key.clone(),
        captions: sample.captions.clone(),
        concept: sample.meta.concept.clone(),
        style: sample.meta.style.clone(),
    }
}
