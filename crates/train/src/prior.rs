//! `train prior`: stage 2 (paper §2.2, §B.2), on code shards.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use image::RgbImage;
use rand_chacha::rand_core::Rng;
use tessera_container::hash;
use tessera_data::loader::{below, chance, uniform};
use tessera_data::{CodeItem, CodeSet, Purpose, Split, batch_indices, item_rng};
use tessera_eval::{LabelledCodes, conditioning};
use tessera_kernels::decode::Weights;
use tessera_model::dvae::Dvae;
use tessera_model::prior::{MixedPrecision, Prior, PriorConfig, PriorGradients, Stream, caption_slots};
use tessera_model::weights::{ModelConfig, ModelFile, export};
use tessera_model::{Decoder, Drawing, Event, Request};
use tessera_text::{Bpe, normalise};

use crate::capacity::Stage;
use crate::config::Config;
use crate::encode::DVAE_FILE;
use crate::fit::{Outcome, Task, fit};
use crate::gradient::{Gradient, Loss};
use crate::log::Metrics;
use crate::picture::grid;
use crate::precision::{Rules, Scales};
use crate::reporter::{Control, Reporter};
use crate::rerank::read_tokenizer;
use crate::run_dir::{Initial, RunDir, RunOptions, read_model, warn_unverified};

/// Held-out captions that are drawn at each validation, and drawings of each.
const SHOWN: [usize; 2] = [6, 4];

struct PriorTask<'a> {
    config: &'a Config,
    seed: u64,
    bpe: &'a Bpe,
    codes: &'a CodeSet,
    val: Vec<LabelledCodes>,
    dvae: Dvae,
}

/// Trains a prior on the codes at `data` with the tokenizer in `bpe_file`; writes the whole model to
/// `RUN/model.tessera.safetensors` when it finishes or is stopped.
///
/// # Errors
/// If the codes, the tokenizer and the config disagree on sizes.
pub fn train_prior(
    config: &Config,
    data: &Path,
    bpe_file: &Path,
    options: &RunOptions,
    control: Control,
) -> Result<Outcome> {
    let (bpe, json) = read_tokenizer(bpe_file)?;
    let codes = read_codes(data, Split::Train, control.reporter)?;
    let val = read_codes(data, Split::Val, control.reporter)?;
    ensure!(
        (&val.dvae, &val.origin) == (&codes.dvae, &codes.origin),
        "{} holds the splits of different sets of codes; make it again with `tessera encode`",
        data.display()
    );
    let val = labelled_codes(&val, &bpe)?;
    let dvae_file = read_model(&data.join(DVAE_FILE), control.reporter)?;
    check_sizes(config, &codes, &bpe, &dvae_file)?;
    let device = Device::default();
    let dvae = dvae_file.dvae(&device)?;
    let seed = options.seed;
    let (initial, named) = options.initial(control.reporter)?;
    let inputs = [("codes", codes.fingerprint()), ("tokenizer", hash(&json)), ("dVAE", codes.dvae.clone())];
    let inputs: Vec<_> = inputs.into_iter().chain(named).collect();
    let task = PriorTask { config, seed, bpe: &bpe, codes: &codes, val, dvae };
    let random = || Prior::new(&config.prior, seed, &device);
    let model = match initial {
        Initial::Random => random(),
        Initial::Checkpoint(checkpoint) => {
            checkpoint.averaged(random(), Stage::Prior, &inputs, &["tokenizer", "dVAE"])?
        }
        Initial::Model(file) => {
            // What logits compute in is no size of a weight.
            let theirs =
                file.config.prior.clone().map(|prior| PriorConfig { logits: config.prior.logits, ..prior });
            ensure!(
                theirs.as_ref() == Some(&config.prior),
                "--init holds a prior of {theirs:?}, wanted {:?}",
                config.prior
            );
            ensure!(file.fingerprint()? == codes.dvae, "--init was trained on the codes of another dVAE");
            ensure!(file.tokenizer.as_ref() == Some(&json), "--init was trained with another tokenizer");
            ModelFile { config: ModelConfig { prior: theirs, ..file.config.clone() }, ..*file }
                .prior(&device)?
        }
    };
    let run = RunDir::start(options, Stage::Prior, &inputs, config, control.reporter)?;
    let (model, outcome) = fit(&task, model, &config.train_prior, &run, control)?;
    let file = ModelFile {
        config: ModelConfig {
            dvae: dvae_file.config.dvae.clone(),
            prior: Some(config.prior.clone()),
            ..ModelConfig::default()
        },
        tokenizer: Some(json),
        dvae: dvae_file.dvae,
        prior: export(&model),
        origin: Some(run.origin()),
        ..ModelFile::default()
    };
    run.write_model(&file, "model.tessera.safetensors")?;
    Ok(outcome)
}

fn read_codes(data: &Path, split: Split, reporter: &dyn Reporter) -> Result<CodeSet> {
    let stem = data.join(split.name());
    let codes = CodeSet::read(&stem)?;
    warn_unverified(codes.unverified, &stem, reporter);
    Ok(codes)
}

/// Each picture of `codes` with the tokens of its canonical caption: what conditioning is measured on.
pub fn labelled_codes(codes: &CodeSet, bpe: &Bpe) -> Result<Vec<LabelledCodes>> {
    let label = |(index, item): (usize, &CodeItem)| {
        let tokens = codes.tokens(index, 0).context("the code set is damaged")?;
        let caption = item.captions.first().context("a picture has no caption")?;
        Ok(LabelledCodes {
            codes: tokens.iter().map(|&code| u32::from(code)).collect(),
            caption: bpe.encode(&normalise(caption))?,
            style: item.style.clone(),
        })
    };
    codes.items.iter().enumerate().map(label).collect()
}

fn check_sizes(config: &Config, codes: &CodeSet, bpe: &Bpe, dvae: &ModelFile) -> Result<()> {
    let prior = &config.prior;
    ensure!(
        (codes.grid, codes.vocab) == (prior.grid, prior.image_vocab),
        "the codes are {0}×{0} of {1}; the config's prior.grid is {2} and prior.image_vocab {3}",
        codes.grid,
        codes.vocab,
        prior.grid,
        prior.image_vocab
    );
    ensure!(
        bpe.vocab_size() <= prior.text_vocab,
        "the tokenizer has {} tokens; prior.text_vocab is {}",
        bpe.vocab_size(),
        prior.text_vocab
    );
    ensure!(
        codes.dvae == dvae.fingerprint()?,
        "the codes were made by another dVAE than the one beside them"
    );
    ensure!(!codes.is_empty(), "there are no training pictures");
    Ok(())
}

/// One stream of a batch.
struct Example {
    /// Text slots.
    text: Vec<u32>,
    /// The picture's tokens.
    image: Vec<u32>,
    /// The tokens that are read in their places.
    seen: Vec<u32>,
}

impl PriorTask<'_> {
    /// A copy of the picture's codes, one of its captions, sometimes none.
    fn example(&self, item: usize, step: u64, slot: u64) -> Result<Example> {
        let rng = |purpose| item_rng(self.seed, purpose, step, slot);
        let captions = &self.codes.items[item].captions;
        let caption = below(&mut rng(Purpose::CaptionChoice), captions.len() as u64) as usize;
        let caption = captions.get(caption).context("a picture has no caption")?;
        let tokens = match chance(&mut rng(Purpose::CaptionDrop), self.config.data.caption_drop) {
            true => Vec::new(),
            false => {
                let dropout = self.config.data.bpe_dropout;
                self.bpe.encode_with_dropout(&normalise(caption), dropout, &mut rng(Purpose::BpeDropout))?
            }
        };
        let copy = below(&mut rng(Purpose::CopyChoice), self.codes.copies as u64) as usize;
        let codes = self.codes.tokens(item, copy).context("the code set is damaged")?;
        let noise = self.config.data.token_noise;
        Ok(Example {
            text: caption_slots(&tokens, &self.config.prior).0,
            image: codes.iter().map(|&code| u32::from(code)).collect(),
            seen: disturbed(codes, self.codes, noise, &mut rng(Purpose::TokenNoise))?,
        })
    }
}

/// `codes`, each with some probability that of any picture of `set` in the same place; the probability, at most `most`,
/// is drawn first.
fn disturbed(codes: &[u16], set: &CodeSet, most: f32, rng: &mut impl Rng) -> Result<Vec<u32>> {
    let noise = most * uniform(rng);
    let token = |(place, &code): (usize, &u16)| {
        if !chance(rng, noise) {
            return Ok(u32::from(code));
        }
        let other = below(rng, set.len() as u64) as usize;
        let token = set.tokens(other, 0).and_then(|codes| codes.get(place));
        token.map(|&code| u32::from(code)).context("the code set is damaged")
    };
    codes.iter().enumerate().map(token).collect()
}

impl Task for PriorTask<'_> {
    type Model = Prior;
    type Batch = Stream;

    fn batch(&self, step: u64, part: usize) -> Result<Stream> {
        let config = &self.config.train_prior;
        let share = config.batch / config.micro_batches;
        let indices = batch_indices(self.codes.len(), config.batch, step, self.seed);
        let [mut text, mut image, mut seen] = [const { Vec::new() }; 3];
        for (slot, &item) in indices.iter().enumerate().skip(part * share).take(share) {
            let example = self.example(item, step, slot as u64)?;
            text.extend(example.text);
            image.extend(example.image);
            seen.extend(example.seen);
        }
        Stream::new(share, text, image, &self.config.prior)?.seeing(seen, &self.config.prior)
    }

    fn scales(&self, model: &Prior) -> Option<Scales> {
        let format = self.config.train_prior.storage.format()?;
        let chain = &self.config.chain;
        let rules = Rules {
            scaling: chain.scaling,
            first: chain.scale_first,
            doubling: chain.scale_doubling,
            rest: chain.scale_rest,
        };
        Some(Scales::new(rules, model.n_resblocks(), format, 1))
    }

    fn gradient(&self, model: &Prior, batch: Stream, _step: u64, scales: Option<&[f32]>) -> Result<Gradient> {
        let storage = self.config.train_prior.storage.format();
        let mixed = scales.map(|scales| MixedPrecision { storage, scales });
        let PriorGradients { loss, gradients, overflowed, entering } =
            model.gradients(&batch, self.config.chain.activations, mixed)?;
        let figures = vec![
            ("text_nats_per_token", loss.text_per_token),
            ("image_nats_per_token", loss.image_per_token),
        ];
        let (loss, figures) = Loss { total: loss.loss, figures }.values();
        Ok(Gradient { values: gradients, loss, figures, overflowed, entering })
    }

    fn validate(&self, model: &Prior, _step: u64) -> Result<Metrics> {
        if self.val.len() < 2 {
            return Ok(Vec::new());
        }
        let figures = conditioning(model, None, &self.val)?;
        Ok(vec![
            ("image_nats_per_token", figures.true_caption.mean),
            ("same_style_gap_nats", figures.gap.same_style.mean),
            ("shuffled_gap_nats", figures.gap.shuffled.mean),
            ("no_caption_gap_nats", figures.gap.none.mean),
        ])
    }

    fn picture(&self, model: &Prior) -> Result<RgbImage> {
        let [captions, drawings] = SHOWN;
        let decoder = Decoder::new(model, Weights::Full)?;
        let mut cells = Vec::new();
        for item in self.val.iter().step_by(self.val.len().div_ceil(captions).max(1)) {
            let request = Request { n: drawings, seed: self.seed, previews: false, ..Request::default() };
            for event in Drawing::new(&decoder, &self.dvae, &item.caption, request)? {
                if let Event::Picture(picture) = event? {
                    cells.push(picture.image);
                }
            }
        }
        Ok(grid(&cells, drawings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_takes_tokens_from_the_same_place_of_other_pictures() {
        let item = || CodeItem {
            key: String::new(),
            captions: Vec::new(),
            concept: String::new(),
            style: String::new(),
        };
        // Three pictures of 64 tokens; those of place p are p, 64 + p and 128 + p.
        let codes = (0..3u16).flat_map(|picture| (0..64).map(move |place| 64 * picture + place)).collect();
        let items = vec![item(), item(), item()];
        let set = CodeSet { grid: 8, vocab: 192, copies: 1, codes, items, ..CodeSet::default() };
        let own = set.tokens(1, 0).unwrap();
        let read = |most, index| {
            disturbed(own, &set, most, &mut item_rng(0, Purpose::TokenNoise, 0, index)).unwrap()
        };
        assert!(read(0.0, 0).iter().zip(own).all(|(token, &own)| *token == u32::from(own)));
        let streams: Vec<Vec<u32>> = (0..1000).map(|index| read(0.6, index)).collect();
        assert!(streams.iter().all(|read| read.iter().zip(0..).all(|(token, place)| token % 64 == place)));
        // Of the tokens that are drawn anew, a third comes out as it was: up to 26 of 64 differ, evenly spread.
        let differ = |read: &Vec<u32>| read.iter().filter(|&&token| token / 64 != 1).count();
        let mut differing: Vec<usize> = streams.iter().map(differ).collect();
        differing.sort_unstable();
        let [few, middle, many] = [100, 500, 900].map(|rank| differing[rank]);
        let spread = (1..5).contains(&few) && (11..15).contains(&middle) && (20..27).contains(&many);
        assert!(spread, "{few}, {middle} and {many} of 64 differ in the 10th, 50th and 90th of 100 streams");
    }
}
