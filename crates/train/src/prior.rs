//! `train prior`: training of the prior, stage 2 (paper §2.2, §B.2).
//!
//! It reads stored codes, or pictures that are encoded during training.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use tessera_base::Reporter;
use tessera_base::label::labelled_sheet;
use tessera_base::random::Purpose;
use tessera_base::random::{below, chance};
use tessera_container::hash;
use tessera_data::{CodeSet, Split, batch_indices};
use tessera_eval::{LabelledCodes, conditioning, held_out_codes, labelled_codes};
use tessera_kernels::Cpu;
use tessera_kernels::decode::Weights;
use tessera_model::dvae::Dvae;
use tessera_model::nn::{Compute, GradientSink};
use tessera_model::prior::{
    Block, ChainOptions, MixedPrecision, Prior, PriorBackward, PriorConfig, Stream, caption_slots,
};
use tessera_model::sample::default_guidance;
use tessera_model::weights::{ModelConfig, ModelFile, export, import};
use tessera_model::{Drawing, Event, Request, Sampler, Sampling};
use tessera_text::Bpe;

use crate::capacity::Stage;
use crate::captions::{cut_captions, training_tokens, unread_figure};
use crate::config::{Config, Encoding};
use crate::control::Control;
use crate::dist::powersgd::PowerSgdSettings;
use crate::encode::DVAE_FILE;
use crate::fit::{Outcome, Task, Update, Validation};
use crate::gradient::{Loss, Sums};
use crate::precision::{Rules, Scales};
use crate::rerank::read_tokenizer;
use crate::run_dir::{RunOptions, read_model, warn_unverified};
use crate::samples::{TrainSamples, ensure_large_enough, index_dataset, warn_about};
use crate::slots::Slots;
use crate::stage::{StageTask, ensure_same_architecture, train};
use crate::tokens::{Draws, Example, OnlineEncoder, TokenSource};

/// The number of held-out captions on the sample sheet, and the number of drawings for each.
const SHOWN: [usize; 2] = [6, 4];
/// The maximum number of lines of a caption on a sample sheet.
pub(crate) const LABEL_LINES: usize = 2;

struct PriorTask {
    config: Config,
    seed: u64,
    bpe: Bpe,
    /// The tokenizer file.
    tokenizer: String,
    tokens: TokenSource,
    val: Vec<LabelledCodes>,
    dvae: Dvae,
    /// The file of the dVAE.
    dvae_file: ModelFile,
    /// The words of the training captions, and those that the initial model lists already.
    words: BTreeSet<String>,
    compute: Compute,
}

/// The inputs of the training of a prior.
#[derive(Debug, Clone, Copy)]
pub struct PriorInputs<'a> {
    /// A folder of codes or, with `data.encode = "online"`, a data set.
    pub data: &'a Path,
    /// The tokenizer that `train bpe` wrote.
    pub bpe: &'a Path,
    /// A model file with the dVAE that encodes the pictures, only with `data.encode = "online"`.
    pub dvae: Option<&'a Path>,
}

/// The tokens of training and held-out pictures, and the dVAE that encodes them.
struct Source {
    tokens: TokenSource,
    val: Vec<LabelledCodes>,
    dvae_file: ModelFile,
    /// The kind of the data, `codes` or `data`, and its fingerprint.
    name: (&'static str, String),
}

/// Trains a prior. Writes the complete model to `RUN/model.tessera.safetensors` when the run
/// finishes or is stopped.
///
/// # Errors
/// If the codes, the tokenizer and the config disagree on sizes, or `--dvae` is missing with
/// `data.encode = "online"` or given with `"stored"`.
pub fn train_prior(
    config: &Config,
    inputs: PriorInputs,
    options: &RunOptions,
    control: Control,
) -> Result<Outcome> {
    let (bpe, json) = read_tokenizer(inputs.bpe)?;
    let compute = config.training_compute(options.device, Stage::Prior)?;
    let Source { mut tokens, val, dvae_file, name } =
        source(config, inputs, &bpe, &compute, control.reporter)?;
    check_sizes(config, &tokens, &bpe)?;
    cut_captions(tokens.captions_mut().into_iter(), &bpe, config.prior.max_caption(), control.reporter)?;
    let captions = tokens.captions_mut().into_iter().map(|caption| caption.clone()).collect();
    warn_about(tokens.len(), val.len(), &captions, control.reporter);
    let dvae = dvae_file.dvae(&compute)?;
    let inputs = vec![name, tokens.scenes()?, ("tokenizer", hash(&json)), ("dVAE", dvae_file.fingerprint()?)];
    let task = PriorTask {
        config: config.clone(),
        seed: options.seed,
        bpe,
        tokenizer: json,
        words: tokens.words(),
        tokens,
        val,
        dvae,
        dvae_file,
        compute,
    };
    train(task, inputs, options, control)
}

/// Says what becomes of a prior that starts from one for the tokens of another dVAE.
const OTHER_TOKENS: &str = "--init was trained on the tokens of another dVAE: the image embeddings and the image head start \
                            with random weights, all other weights are kept";

/// Returns the prior in a model file.
///
/// # Errors
/// If its architecture is not that of `config`.
fn trained_prior(file: ModelFile, config: &PriorConfig, compute: &Compute) -> Result<Prior> {
    // The precision of the logits may differ, because no weight depends on it.
    let theirs = file.config.prior.clone().map(|prior| PriorConfig { logits: config.logits, ..prior });
    ensure_same_architecture("prior", "prior", theirs.as_ref(), config)?;
    let config = ModelConfig { prior: theirs, ..file.config.clone() };
    ModelFile { config, ..file }.prior(compute)
}

/// Returns `prior` with all weights of `trained` except those that depend on the codebook: the
/// embeddings of image tokens and the head that predicts them.
fn with_text_side_of(trained: &Prior, prior: Prior) -> Result<Prior> {
    let of_codebook = |name: &str| name == "embed.image" || name.starts_with("image_head.");
    let own = export(&prior);
    let weights = export(trained).into_iter().zip(own);
    let chosen = weights.map(|(trained, own)| if of_codebook(&own.name) { own } else { trained });
    import(prior, &chosen.collect::<Vec<_>>())
}

/// Opens the data that `data.encode` needs.
///
/// # Errors
/// If `--dvae` is missing for it or not used by it, or the data cannot be read.
fn source(
    config: &Config,
    inputs: PriorInputs,
    bpe: &Bpe,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<Source> {
    match (config.data.encode, inputs.dvae) {
        (Encoding::Stored, None) => stored(inputs.data, bpe, reporter),
        (Encoding::Online, Some(dvae)) => online(config, inputs.data, dvae, bpe, compute, reporter),
        (Encoding::Stored, Some(_)) => bail!(
            "--dvae: data.encode = \"stored\" reads codes that `tessera encode` wrote, with their dVAE; leave --dvae out, or encode pictures in training with --set data.encode='online'"
        ),
        (Encoding::Online, None) => bail!(
            "data.encode = \"online\" encodes the pictures of a data set in training: wanted --data DATASET and --dvae FILE; to train on codes that `tessera encode` wrote, add --set data.encode='stored'"
        ),
    }
}

/// Opens the codes that `encode` wrote to the folder `data`, with their dVAE.
fn stored(data: &Path, bpe: &Bpe, reporter: &dyn Reporter) -> Result<Source> {
    let codes = read_codes(data, Split::Train, reporter)?;
    let val = read_codes(data, Split::Val, reporter)?;
    ensure!(
        (&val.dvae, &val.origin) == (&codes.dvae, &codes.origin),
        "{} holds the splits of different sets of codes; make it again with `tessera encode`",
        data.display()
    );
    let val = labelled_codes(&val, bpe)?;
    let dvae_file = read_model(&data.join(DVAE_FILE), reporter)?;
    ensure!(
        codes.dvae == dvae_file.fingerprint()?,
        "the codes were made by another dVAE than the one in the same folder"
    );
    let name = ("codes", codes.fingerprint());
    Ok(Source { tokens: TokenSource::Stored(codes), val, dvae_file, name })
}

/// Opens the pictures of the data set `data`, and the dVAE that encodes them during training.
fn online(
    config: &Config,
    data: &Path,
    dvae: &Path,
    bpe: &Bpe,
    compute: &Compute,
    reporter: &dyn Reporter,
) -> Result<Source> {
    let scenes = config.data.scenes.as_ref();
    let dvae_file = read_model(dvae, reporter)?;
    let config = dvae_file.config.dvae.clone().with_context(|| {
        format!("--dvae {} has no dVAE; use a file of `train dvae` or `train prior`", dvae.display())
    })?;
    let dvae = dvae_file.dvae(compute)?;
    let dataset = index_dataset(data, reporter)?;
    let name = ("data", dataset.fingerprint().to_string());
    ensure_large_enough(&dataset.val, config.image_size as u32)?;
    let val = held_out_codes(&dataset.val, &dvae, &config, bpe)?;
    let samples = TrainSamples::open(scenes, dataset.train, config.image_size as u32)?;
    let tokens = TokenSource::Online(Box::new(OnlineEncoder::new(samples, dvae, config)?));
    Ok(Source { tokens, val, dvae_file, name })
}

fn read_codes(data: &Path, split: Split, reporter: &dyn Reporter) -> Result<CodeSet> {
    let stem = data.join(split.name());
    let codes = CodeSet::open(&stem)?;
    warn_unverified(codes.unverified, &stem, reporter);
    Ok(codes)
}

fn check_sizes(config: &Config, tokens: &TokenSource, bpe: &Bpe) -> Result<()> {
    let (prior, (grid, vocab)) = (&config.prior, tokens.sizes());
    ensure!(
        (grid, vocab) == (prior.grid, prior.image_vocab),
        "the codes are {grid}×{grid} of {vocab}; the config's prior.grid is {} and prior.image_vocab {}",
        prior.grid,
        prior.image_vocab
    );
    ensure!(
        bpe.vocab_size() <= prior.text_vocab,
        "the tokenizer has {} tokens; prior.text_vocab is {}",
        bpe.vocab_size(),
        prior.text_vocab
    );
    ensure!(tokens.len() > 0, "there are no training pictures");
    Ok(())
}

impl PriorTask {
    /// Chooses one of a picture's captions and returns its text slots, and the number of its tokens
    /// for which there is no slot. With probability `data.caption_drop`, the caption is empty
    /// instead.
    fn caption(&self, captions: &[String], rng: impl Fn(Purpose) -> ChaCha8Rng) -> Result<(Vec<u32>, usize)> {
        let caption = below(&mut rng(Purpose::CaptionChoice), captions.len() as u64) as usize;
        let caption = captions.get(caption).context("a picture has no caption")?;
        let (tokens, unread) = match chance(&mut rng(Purpose::CaptionDrop), self.config.data.caption_drop) {
            true => (Vec::new(), 0),
            false => {
                let (most, dropout) = (self.config.prior.max_caption(), self.config.data.bpe_dropout);
                training_tokens(caption, &self.bpe, most, dropout, &mut rng(Purpose::BpeDropout))?
            }
        };
        Ok((caption_slots(&tokens, &self.config.prior).0, unread))
    }
}

impl StageTask for PriorTask {
    const STAGE: Stage = Stage::Prior;
    const SAME_INPUTS: &'static [&'static str] = &["tokenizer", "dVAE"];

    fn config(&self) -> &Config {
        &self.config
    }

    fn with_config(self, config: Config) -> PriorTask {
        PriorTask { config, ..self }
    }

    fn cpu(&self) -> Cpu {
        self.compute.cpu
    }

    fn batch(&self, step: u64, slots: Slots) -> Result<Self::Batch> {
        let config = &self.config.train_prior;
        let indices = batch_indices(self.tokens.len(), config.batch, step, self.seed);
        let draws = Draws { seed: self.seed, step, first_slot: slots.first };
        let items = &indices[slots.range()];
        let examples = self.tokens.read(items, draws)?;
        let [mut text, mut image, mut inputs] = [const { Vec::new() }; 3];
        let mut unread = 0;
        for (slot, Example { captions, codes }) in examples.iter().enumerate() {
            let mut noise = draws.rng(Purpose::TokenNoise, slot);
            let (words, beyond) = self.caption(captions, |purpose| draws.rng(purpose, slot))?;
            text.extend(words);
            unread += beyond;
            image.extend(codes.iter().map(|&code| u32::from(code)));
            inputs.extend(self.tokens.disturbed(
                codes,
                &examples,
                self.config.data.token_noise,
                &mut noise,
            )?);
        }
        let stream = Stream::new(slots.len, text, image, &self.config.prior)?;
        Ok((stream.seeing(inputs, &self.config.prior)?, unread))
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

    fn powersgd(&self) -> Option<PowerSgdSettings> {
        self.config.powersgd.settings(self.config.prior.d_model, self.seed)
    }

    fn may_be_shared(&self) -> bool {
        true
    }

    fn random(&self) -> Prior {
        Prior::new(&self.config.prior, self.seed, &self.compute)
    }

    fn of_file(&mut self, file: ModelFile, control: Control) -> Result<Prior> {
        self.words.extend(file.words.iter().flatten().cloned());
        let same_tokens = file.fingerprint()? == self.dvae_file.fingerprint()?;
        let same_tokenizer = file.tokenizer.as_ref() == Some(&self.tokenizer);
        let trained = trained_prior(file, &self.config.prior, &self.compute)?;
        ensure!(same_tokenizer, "--init was trained with another tokenizer; give its file to --bpe too");
        if same_tokens {
            return Ok(trained);
        }
        control.reporter.note(OTHER_TOKENS);
        with_text_side_of(&trained, self.random())
    }

    fn file(&self, model: &Prior) -> ModelFile {
        ModelFile {
            config: ModelConfig {
                dvae: self.dvae_file.config.dvae.clone(),
                prior: Some(self.config.prior.clone()),
                ..ModelConfig::default()
            },
            tokenizer: Some(self.tokenizer.clone()),
            dvae: self.dvae_file.dvae.clone(),
            prior: export(model),
            caption_drop: Some(self.config.data.caption_drop),
            words: Some(self.words.clone()),
            ..ModelFile::default()
        }
    }
}

impl Task for PriorTask {
    type Model = Prior;
    /// Token sequences, and the number of caption tokens for which there was no slot.
    type Batch = (Stream, usize);

    fn accumulate(
        &self,
        model: &Prior,
        parts: Vec<Self::Batch>,
        Update { scales, layers, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        let storage = self.config.train_prior.storage.format();
        let mixed = scales.map(|scales| MixedPrecision { storage, scales });
        let options = ChainOptions { activations: self.config.chain.activations, mixed };
        let mut sums = Sums::default();
        for (stream, unread) in parts {
            let PriorBackward { loss, overflowed, gradient_log2 } =
                model.backward(&stream, layers.unwrap_or(&model.blocks()), sink, options)?;
            let figures = vec![
                ("text_nats_per_token", loss.text_per_token),
                ("image_nats_per_token", loss.image_per_token),
            ];
            let (loss, mut metrics) = Loss { total: loss.loss, figures }.values();
            metrics.push(unread_figure(unread, stream.batch));
            sums.add(Sums { overflowed, gradient_log2, ..Sums::of_part(loss, metrics) });
        }
        Ok(sums)
    }

    fn layers(model: &Prior) -> &[Block] {
        model.blocks()
    }

    fn validate(&self, model: &Prior, _step: u64) -> Result<Validation> {
        if self.val.len() < 2 {
            return Ok(Validation::default());
        }
        let figures = conditioning(model, None, &self.val)?;
        let metrics = vec![
            ("image_nats_per_token", figures.true_caption.mean),
            ("same_style_gap_nats", figures.gap.same_style.mean),
            ("shuffled_gap_nats", figures.gap.shuffled.mean),
            ("no_caption_gap_nats", figures.gap.none.mean),
        ];
        Ok(Validation { metrics, loss: Some(figures.true_caption.mean), warning: None })
    }

    fn sample(&self, model: &Prior) -> Result<Option<RgbImage>> {
        let [captions, drawings] = SHOWN;
        let sampler = Sampler::new(model, Weights::Full)?;
        let mut groups = Vec::new();
        for item in self.val.iter().step_by(self.val.len().div_ceil(captions).max(1)) {
            let guidance = default_guidance(Some(self.config.data.caption_drop));
            let sampling = Sampling { guidance, ..Sampling::default() };
            let request =
                Request { n: drawings, seed: self.seed, sampling, previews: false, ..Request::default() };
            let mut cells = Vec::new();
            for event in Drawing::new(&sampler, &self.dvae, &item.caption, request)? {
                if let Event::Picture(picture) = event? {
                    cells.push(picture.image);
                }
            }
            groups.push((self.bpe.decode(&item.caption)?, cells));
        }
        Ok(Some(labelled_sheet(
            groups.iter().map(|(caption, cells)| (caption.as_str(), &cells[..])),
            drawings,
            LABEL_LINES,
        )))
    }
}

#[cfg(test)]
mod tests {
    use tessera_base::random::item_rng;
    use tessera_data::{CodeItem, CodeLayout, CodeWriter};

    use super::*;

    /// "a" is one token, made by one merge. If the merge is skipped, there are two tokens.
    #[test]
    fn training_skips_merges_at_the_configured_rate() {
        let bpe = Bpe::train(["a b"; 60].iter(), 300).unwrap();
        let (dir, captions) = (tempfile::tempdir().unwrap(), vec!["a".to_string()]);
        let layout = CodeLayout { grid: 8, vocab: 64, copies: 1, ..CodeLayout::default() };
        let mut writer = CodeWriter::create(&dir.path().join("train"), layout).unwrap();
        writer.add_codes(&[0; 64]).unwrap();
        writer.add_item(&CodeItem { captions: captions.clone(), ..CodeItem::default() }).unwrap();
        writer.finish().unwrap();
        let codes = || CodeSet::open(&dir.path().join("train")).unwrap();
        let held_out = labelled_codes(&codes(), &bpe).unwrap();
        assert_eq!(held_out[0].caption.len(), 1);
        let mut config = Config::resolve("tiny", &[]).unwrap();
        config.data.caption_drop = 0.0;
        let dvae = Dvae::new(&config.dvae, 1, Cpu::best());
        for (dropout, expected) in [(0.0, 0), (0.1, 500), (0.5, 2_500)] {
            config.data.bpe_dropout = dropout;
            let (tokens, val) = (TokenSource::Stored(codes()), Vec::new());
            let task = PriorTask {
                config: config.clone(),
                seed: 0,
                bpe: bpe.clone(),
                tokenizer: String::new(),
                tokens,
                val,
                dvae: dvae.clone(),
                dvae_file: ModelFile::default(),
                words: BTreeSet::new(),
                compute: Cpu::best().into(),
            };
            let is_split = |step: &u64| {
                let rng = |purpose| item_rng(0, purpose, *step, 0);
                let (slots, _) = task.caption(&captions, rng).unwrap();
                (slots[1] as usize) < config.prior.text_vocab // not a pad token
            };
            let split = (0..5_000).filter(is_split).count();
            assert!(split.abs_diff(expected) < 120, "{split} of 5,000 split at {dropout}");
        }
    }
}
