//! The image tokens of training pictures: stored by `encode`, or encoded during training.
//!
//! Stage 2 of the paper crops and encodes each picture again whenever it is read (§B.2, listing 2),
//! so that a picture hardly ever has the same tokens twice. Stored tokens are those of the same few
//! crops in every epoch, and need no encoding during training.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use tessera_base::pixels::to_floats;
use tessera_base::random::{below, chance, uniform};
use tessera_base::{random::Purpose, random::item_rng};
use tessera_data::{Augment, CodeSet, augment};
use tessera_eval::codes_of;
use tessera_model::dvae::{Dvae, DvaeConfig};
use tessera_text::caption_words;

use crate::same_run::{Input, NO_SCENES, SCENES};
use crate::samples::TrainSamples;

/// The source of a prior's image tokens.
pub(crate) enum TokenSource {
    /// Codes that `encode` wrote.
    Stored(CodeSet),
    /// Pictures, each cropped and encoded whenever it is read.
    Online(Box<OnlineEncoder>),
}

/// Encodes training pictures when they are read.
pub(crate) struct OnlineEncoder {
    samples: TrainSamples,
    dvae: Dvae,
    config: DvaeConfig,
}

impl OnlineEncoder {
    /// Makes an encoder of `samples`.
    ///
    /// # Errors
    /// If the codes do not fit in 16 bits.
    pub fn new(samples: TrainSamples, dvae: Dvae, config: DvaeConfig) -> Result<OnlineEncoder> {
        ensure!(config.vocab <= 1 << 16, "tokens have 16 bits; this dVAE has {} codes", config.vocab);
        Ok(OnlineEncoder { samples, dvae, config })
    }

    /// Crops and encodes `items`.
    fn encode(&self, items: &[usize], draws: Draws) -> Result<Vec<Example<'_>>> {
        let side = self.config.image_size as u32;
        let crop = |(slot, &item): (usize, &usize)| -> Result<(Cow<[String]>, Vec<f32>)> {
            let mut rng = draws.rng(Purpose::Augment, slot);
            let sample = self.samples.get(item)?;
            let image = augment(&sample.image, side, Augment::Stage2, &mut rng);
            let image = to_floats(&image.with_context(|| format!("picture {}", sample.key))?);
            let captions = match sample {
                Cow::Borrowed(sample) => Cow::Borrowed(sample.captions.as_slice()),
                Cow::Owned(sample) => Cow::Owned(sample.captions),
            };
            Ok((captions, image))
        };
        let crops = items.par_iter().enumerate().map(crop).collect::<Result<Vec<_>>>()?;
        let (captions, crops): (Vec<_>, Vec<_>) = crops.into_iter().unzip();
        let codes = codes_of(&self.dvae, &self.config, &crops);
        let codes = codes.chunks(self.config.grid() * self.config.grid()).map(<[u16]>::to_vec);
        Ok(captions.into_iter().zip(codes).map(|(captions, codes)| Example { captions, codes }).collect())
    }
}

/// A training picture, as read in one step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Example<'a> {
    /// The captions of the picture.
    pub captions: Cow<'a, [String]>,
    /// The image tokens of the picture.
    pub codes: Vec<u16>,
}

/// Identifies the random numbers of a micro-batch: those of `step`, from position `first_slot` of
/// its batch on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws {
    /// The seed of the run.
    pub seed: u64,
    /// The training step.
    pub step: u64,
    /// The position in the batch of the first sample of the micro-batch.
    pub first_slot: usize,
}

impl Draws {
    /// Returns the random number generator of sample `slot` of the micro-batch.
    pub fn rng(self, purpose: Purpose, slot: usize) -> ChaCha8Rng {
        item_rng(self.seed, purpose, self.step, (self.first_slot + slot) as u64)
    }
}

impl TokenSource {
    /// Returns the number of training pictures.
    pub fn len(&self) -> usize {
        match self {
            TokenSource::Stored(codes) => codes.len(),
            TokenSource::Online(encoder) => encoder.samples.len(),
        }
    }

    /// Returns the fingerprint of the scenes, as an input of a run.
    pub fn scenes(&self) -> Result<Input> {
        match self {
            TokenSource::Stored(_) => Ok((SCENES, NO_SCENES.to_string())),
            TokenSource::Online(encoder) => encoder.samples.scenes(),
        }
    }

    /// Returns the side of the token grid and the size of the codebook.
    pub fn sizes(&self) -> (usize, usize) {
        match self {
            TokenSource::Stored(codes) => (codes.grid, codes.vocab),
            TokenSource::Online(encoder) => (encoder.config.grid(), encoder.config.vocab),
        }
    }

    /// Returns the captions of all pictures that are in memory.
    pub fn captions_mut(&mut self) -> Vec<&mut String> {
        match self {
            TokenSource::Stored(codes) => {
                codes.items.iter_mut().flat_map(|item| &mut item.captions).collect()
            }
            TokenSource::Online(encoder) => encoder.samples.captions_mut(),
        }
    }

    /// Returns the words of the captions of all pictures.
    pub fn words(&self) -> BTreeSet<String> {
        match self {
            TokenSource::Stored(codes) => caption_words(codes.items.iter().flat_map(|item| &item.captions)),
            TokenSource::Online(encoder) => encoder.samples.words(),
        }
    }

    /// Reads each of `items`, with the tokens of one of its stored crops or of a new crop.
    pub fn read(&self, items: &[usize], draws: Draws) -> Result<Vec<Example<'_>>> {
        match self {
            TokenSource::Stored(set) => {
                let stored = |(slot, &item): (usize, &usize)| {
                    let copy = below(&mut draws.rng(Purpose::CopyChoice, slot), set.copies as u64) as usize;
                    let codes = set.tokens(item, copy)?;
                    Ok(Example { captions: Cow::Borrowed(&set.items[item].captions), codes })
                };
                items.iter().enumerate().map(stored).collect()
            }
            TokenSource::Online(encoder) => encoder.encode(items, draws),
        }
    }

    /// Returns `codes` with noise: some are replaced by another picture's code at the same
    /// position.
    ///
    /// The probability of replacement is drawn first, between 0 and `most`. Other pictures come
    /// from the complete data set if its tokens are stored, otherwise from the micro-batch.
    pub fn disturbed(
        &self,
        codes: &[u16],
        batch: &[Example],
        most: f32,
        rng: &mut impl Rng,
    ) -> Result<Vec<u32>> {
        let noise = most * uniform(rng);
        let token = |(place, &code): (usize, &u16)| {
            if !chance(rng, noise) {
                return Ok(u32::from(code));
            }
            let other = match self {
                TokenSource::Stored(codes) => {
                    codes.token(below(rng, codes.len() as u64) as usize, 0, place)?
                }
                TokenSource::Online(_) => {
                    let other = batch.get(below(rng, batch.len() as u64) as usize);
                    let token = other.and_then(|other| other.codes.get(place));
                    *token.context("the micro-batch has no token at this position")?
                }
            };
            Ok(u32::from(other))
        };
        codes.iter().enumerate().map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use image::RgbImage;
    use tessera_data::{CodeItem, CodeLayout, CodeWriter, Meta, Sample};

    use super::*;
    use crate::config::Config;

    #[test]
    fn noise_takes_tokens_at_the_same_position_of_other_pictures() {
        // Three pictures of 64 tokens; the tokens at position p are p, 64 + p and 128 + p.
        let codes: Vec<u16> = (0..192).collect();
        let dir = tempfile::tempdir().unwrap();
        let layout = CodeLayout { grid: 8, vocab: 192, copies: 1, ..CodeLayout::default() };
        let mut writer = CodeWriter::create(&dir.path().join("train"), layout).unwrap();
        writer.add_codes(&codes).unwrap();
        (0..3).for_each(|_| writer.add_item(&CodeItem::default()).unwrap());
        writer.finish().unwrap();
        let codes = CodeSet::open(&dir.path().join("train")).unwrap();
        let own = codes.tokens(1, 0).unwrap();
        let set = TokenSource::Stored(codes);
        let read = |most, index| {
            set.disturbed(&own, &[], most, &mut item_rng(0, Purpose::TokenNoise, 0, index)).unwrap()
        };
        assert!(read(0.0, 0).iter().zip(&own).all(|(token, &own)| *token == u32::from(own)));
        let streams: Vec<Vec<u32>> = (0..1000).map(|index| read(0.6, index)).collect();
        assert!(streams.iter().all(|read| read.iter().zip(0..).all(|(token, place)| token % 64 == place)));
        // A third of the replacements come from the same picture. So at most about 26 of 64 tokens
        // differ, and the number is spread evenly.
        let differ = |read: &Vec<u32>| read.iter().filter(|&&token| token / 64 != 1).count();
        let mut differing: Vec<usize> = streams.iter().map(differ).collect();
        differing.sort_unstable();
        let [few, middle, many] = [100, 500, 900].map(|rank| differing[rank]);
        let spread = (1..5).contains(&few) && (11..15).contains(&middle) && (20..27).contains(&many);
        assert!(spread, "{few}, {middle} and {many} of 64 differ in the 10th, 50th and 90th of 100 streams");
    }

    /// Returns twelve pictures of 56x44 pixels with different colours and an edge, for a dVAE with
    /// pictures of 32 pixels.
    fn wide() -> OnlineEncoder {
        let sample = |number: u8| Sample {
            key: format!("{number}"),
            image: RgbImage::from_fn(56, 44, |x, y| {
                image::Rgb([number * 20, (x * 4) as u8, if y > 20 { 250 } else { (y * 9) as u8 }])
            }),
            captions: vec![format!("picture {number}")],
            meta: Meta::default(),
        };
        let config = Config::resolve("tiny", &[]).unwrap().dvae;
        let dvae = Dvae::new(&config, 1, &Device::flex());
        OnlineEncoder::new(TrainSamples::Stored((0..12).map(sample).collect()), dvae, config).unwrap()
    }

    #[test]
    fn online_tokens_come_from_a_new_crop_in_each_step() {
        let encoder = wide();
        let (dvae, config) = (encoder.dvae.clone(), encoder.config.clone());
        let expected = |step: u64, slot: u64, item: usize| {
            let mut rng = item_rng(5, Purpose::Augment, step, slot);
            let crop =
                augment(&encoder.samples.get(item).unwrap().image, 32, Augment::Stage2, &mut rng).unwrap();
            codes_of(&dvae, &config, &[to_floats(&crop)])
        };
        let draws = |step, first_slot| Draws { seed: 5, step, first_slot };
        let items = [3, 7, 3, 11];
        let batch = encoder.encode(&items, draws(9, 0)).unwrap();
        for (slot, &item) in items.iter().enumerate() {
            assert_eq!(batch[slot].codes, expected(9, slot as u64, item), "slot {slot}");
            assert_eq!(*batch[slot].captions, [format!("picture {item}")]);
        }
        assert_ne!(batch[0].codes, batch[2].codes, "two crops of one picture in a batch are the same");
        assert_ne!(batch, encoder.encode(&items, draws(10, 0)).unwrap(), "two steps have the same crops");
        // A part of a batch has the same crops as the complete batch.
        assert_eq!(batch[2..], encoder.encode(&items[2..], draws(9, 2)).unwrap());
    }

    #[test]
    fn online_noise_takes_tokens_from_the_batch() {
        let source = TokenSource::Online(Box::new(wide()));
        let batch = [1, 2, 3].map(|code| Example { captions: Cow::Borrowed(&[]), codes: vec![code; 64] });
        let mut rng = item_rng(0, Purpose::TokenNoise, 0, 1);
        let seen: Vec<u32> =
            (0..50).flat_map(|_| source.disturbed(&batch[0].codes, &batch, 1.0, &mut rng).unwrap()).collect();
        let share = |code| seen.iter().filter(|&&seen| seen == code).count() as f64 / seen.len() as f64;
        assert!(
            (0.1..0.25).contains(&share(2)) && (0.1..0.25).contains(&share(3)),
            "{}, {}",
            share(2),
            share(3)
        );
        assert!((share(1) + share(2) + share(3) - 1.0).abs() < 1e-9);
    }
}
