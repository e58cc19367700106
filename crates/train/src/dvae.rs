//! `train dvae`: training of the dVAE, stage 1 (paper §2.1).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use tessera_base::Internal;
use tessera_base::pixels::{contact_sheet, from_floats, to_floats};
use tessera_base::{random::Purpose, random::item_rng};
use tessera_data::{augment, batch_indices};
use tessera_eval::{centre_crop, held_out_pictures, recon, relaxation_gap};
use tessera_kernels::Cpu;
use tessera_model::dvae::{Dvae, DvaeConfig, GumbelNoise, elbo, gumbel_softmax_drawn, map_pixels};
use tessera_model::nn::{Compute, GradientSink};
use tessera_model::weights::{HostTensor, ModelConfig, ModelFile, export, import};

use crate::capacity::Stage;
use crate::config::Config;
use crate::control::Control;
use crate::fit::{Outcome, Task, Update, Validation};
use crate::gradient::{Loss, Sums, differentiate};
use crate::params::{ParamStore, Which};
use crate::precision::{Rules, Scales, Scaling};
use crate::run_dir::RunOptions;
use crate::samples::{TrainSamples, ensure_large_enough, index_dataset, warn_about};
use crate::slots::Slots;
use crate::split_codes::{Halves, Usage, balance, split_codes};
use crate::stage::{StageTask, ensure_same_architecture, train};

/// The number of columns of the sample sheet, in which originals are above their reconstructions.
const SAMPLES: usize = 16;
/// The number of training pictures that decide which codes are split, and the number of pictures
/// that are encoded together.
const SPLIT_PICTURES: usize = 256;
const SPLIT_BATCH: usize = 32;

/// If a smaller fraction of the codes is used, the codebook has collapsed.
const COLLAPSED: f64 = 0.02;

struct DvaeTask {
    config: Config,
    seed: u64,
    train: TrainSamples,
    /// Held-out pictures, each `[3·S·S]` with values in [0, 1].
    val: Vec<Vec<f32>>,
    compute: Compute,
}

/// Trains a dVAE on the data set at `data`. Writes `RUN/dvae.tessera.safetensors` when the run
/// finishes or is stopped.
pub fn train_dvae(config: &Config, data: &Path, options: &RunOptions, control: Control) -> Result<Outcome> {
    let dataset = index_dataset(data, control.reporter)?;
    let seed = options.seed;
    let side = config.dvae.image_size as u32;
    let n_held_out = dataset.val.len();
    let held_out = if dataset.val.is_empty() { &dataset.train } else { &dataset.val };
    ensure_large_enough(held_out, side)?;
    let val = held_out_pictures(held_out, &config.dvae)?;
    let fingerprint = dataset.fingerprint().to_string();
    let samples = TrainSamples::open(config.data.scenes.as_ref(), dataset.train, side)?;
    warn_about(samples.len(), n_held_out, &BTreeSet::new(), control.reporter);
    let compute = config.training_compute(options.device, Stage::Dvae)?;
    let task = DvaeTask { config: config.clone(), seed, train: samples, val, compute };
    let inputs = vec![("data", fingerprint), task.train.scenes()?];
    train(task, inputs, options, control)
}

impl DvaeTask {
    /// Returns the number of tokens of a picture.
    fn cells(&self) -> usize {
        self.config.dvae.grid() * self.config.dvae.grid()
    }

    /// Returns the Gumbel noise of step `step`, with one row for each token of each picture of the
    /// batch.
    fn noise(&self, purpose: Purpose, step: u64) -> GumbelNoise {
        GumbelNoise { seed: item_rng(self.seed, purpose, 0, 0).next_u64(), step, first_row: 0 }
    }

    /// Returns the training pictures that decide which codes are split, in batches of
    /// [`SPLIT_BATCH`].
    fn split_pictures(&self, step: u64) -> Result<Vec<Vec<f32>>> {
        let side = self.config.dvae.image_size as u32;
        let crop = |i: usize| {
            let sample = self.train.get((step as usize + i) % self.train.len())?;
            Ok(to_floats(&centre_crop(&sample, side)?))
        };
        let pictures = (0..SPLIT_PICTURES).into_par_iter().map(crop).collect::<Result<Vec<_>>>()?;
        Ok(pictures.chunks(SPLIT_BATCH).map(<[Vec<f32>]>::concat).collect())
    }

    /// Returns the dVAE with these weights.
    fn with_weights(&self, weights: &[HostTensor]) -> Result<Dvae> {
        import(Dvae::new(&self.config.dvae, self.seed, &self.compute), weights)
    }

    /// Measures how the dVAE with these weights uses its codes on `batches` of pictures. Also
    /// returns the likeliest code at each position of each batch.
    fn usage(&self, weights: &[HostTensor], batches: &[Vec<f32>]) -> Result<(Usage, Vec<Vec<usize>>)> {
        let (config, cells) = (&self.config.dvae, self.cells());
        let model = self.with_weights(weights)?;
        let mut usage = Usage { counts: vec![0; config.vocab], errors: vec![0.0; config.vocab] };
        let mut positions = Vec::new();
        let (side, factor) = (config.image_size, config.factor());
        for pictures in batches {
            let codes = model.encode(self.pictures(pictures.clone()));
            let restored: Vec<f32> = model.decode(codes.clone()).into_data().iter().collect();
            let codes: Vec<usize> = codes.into_data().iter::<i64>().map(|code| code as usize).collect();
            codes.iter().for_each(|&code| usage.counts[code] += 1);
            for (i, (a, b)) in pictures.iter().zip(&restored).enumerate() {
                let (picture, y, x) = (i / (3 * side * side), i / side % side, i % side);
                let code = codes[picture * cells + y / factor * config.grid() + x / factor];
                usage.errors[code] += f64::from(a - b).powi(2);
            }
            positions.push(codes);
        }
        Ok((usage, positions))
    }

    /// Splits codes of the dVAE with these weights. Then balances the two halves, so that each is
    /// the likelier one about equally often at the positions of the split code. `positions`
    /// contains the code of each position of `batches` before the split.
    fn split(
        &self,
        weights: &mut [HostTensor],
        splits: &[Halves],
        (batches, positions): (&[Vec<f32>], &[Vec<usize>]),
        step: u64,
    ) -> Result<()> {
        split_codes(weights, splits, &mut item_rng(self.seed, Purpose::CodeSplit, step, 0))?;
        let model = self.with_weights(weights)?;
        let vocab = self.config.dvae.vocab;
        let mut partners = vec![None; vocab];
        splits.iter().for_each(|&(code, unused)| partners[code] = Some(unused));
        let mut excess = vec![(0.0_f64, 0_u32); vocab];
        for (pictures, codes) in batches.iter().zip(positions) {
            let x = map_pixels(self.pictures(pictures.clone()));
            let logits: Vec<f32> = model.encoder.forward(x).into_data().iter().collect();
            for (row, &code) in logits.chunks(vocab).zip(codes) {
                let Some(partner) = partners[code] else { continue };
                excess[code].0 += f64::from(row[partner] - row[code]);
                excess[code].1 += 1;
            }
        }
        let mean = |&(code, unused): &Halves| {
            let (sum, n) = excess[code];
            ((code, unused), (sum / f64::from(n.max(1))) as f32)
        };
        balance(weights, &splits.iter().map(mean).collect::<Vec<_>>())
    }

    /// Returns a warning if few codes are used after update `step`.
    fn collapse(&self, used: usize, step: u64) -> Option<String> {
        let (relax, vocab) = (&self.config.relax, self.config.dvae.vocab);
        // While β rises, the number of codes still changes much.
        (step >= relax.beta_steps && (used as f64) < COLLAPSED * vocab as f64).then(|| {
            format!(
                "only {used} of {vocab} codes are used: the codebook has collapsed. A smaller relax.beta ({}), more steps for \
                 it to rise (relax.beta_steps = {}) or a smaller dvae.vocab would help",
                relax.beta, relax.beta_steps
            )
        })
    }

    fn pictures(&self, values: Vec<f32>) -> Tensor<4> {
        let side = self.config.dvae.image_size;
        let n = values.len() / (3 * side * side);
        Tensor::from_data(TensorData::new(values, [n, 3, side, side]), &self.compute.device)
    }
}

impl StageTask for DvaeTask {
    const STAGE: Stage = Stage::Dvae;
    const SAME_INPUTS: &'static [&'static str] = &[];

    fn config(&self) -> &Config {
        &self.config
    }

    fn with_config(self, config: Config) -> DvaeTask {
        DvaeTask { config, ..self }
    }

    fn cpu(&self) -> Cpu {
        self.compute.cpu
    }

    fn batch(&self, step: u64, slots: Slots) -> Result<Self::Batch> {
        let config = &self.config.train_dvae;
        let indices = batch_indices(self.train.len(), config.batch, step, self.seed);
        let side = self.config.dvae.image_size as u32;
        let crop = |slot: usize| -> Result<Vec<f32>> {
            let sample = self.train.get(indices[slot])?;
            let mut rng = item_rng(self.seed, Purpose::Augment, step, slot as u64);
            let image = augment(&sample.image, side, self.config.data.dvae_crop, &mut rng);
            Ok(to_floats(&image.with_context(|| format!("picture {}", sample.key))?))
        };
        let pictures = slots.range().into_par_iter().map(crop).collect::<Result<Vec<_>>>()?.concat();
        Ok((pictures, self.noise(Purpose::Gumbel, step).skip_rows(slots.first * self.cells())))
    }

    /// One scale for the complete graph (paper §A.2).
    fn scales(&self, _: &Dvae) -> Option<Scales> {
        let format = self.config.train_dvae.storage.format()?;
        Some(Scales::new(Rules::paper(Scaling::Global), 1, format, 1))
    }

    /// The loss no longer changes when β has reached its final value.
    fn loss_is_final_from(&self) -> u64 {
        self.config.relax.beta_steps
    }

    fn random(&self) -> Dvae {
        let model = Dvae::new(&self.config.dvae, self.seed, &self.compute);
        model.stored(self.config.train_dvae.storage.format())
    }

    fn of_file(&mut self, file: ModelFile, _: Control) -> Result<Dvae> {
        let ours = &self.config.dvae;
        // The picture size may differ, because no weight depends on it.
        let theirs = file.config.dvae.clone();
        let theirs = theirs.map(|dvae| DvaeConfig { image_size: ours.image_size, ..dvae });
        ensure_same_architecture("dVAE", "dvae", theirs.as_ref(), ours)?;
        Ok(file.dvae(&self.compute)?.stored(self.config.train_dvae.storage.format()))
    }

    fn file(&self, model: &Dvae) -> ModelFile {
        ModelFile {
            config: ModelConfig { dvae: Some(self.config.dvae.clone()), ..ModelConfig::default() },
            dvae: export(model),
            ..ModelFile::default()
        }
    }
}

impl Task for DvaeTask {
    type Model = Dvae;
    /// Pictures `[n, 3, S, S]`, flattened, and the noise for their tokens.
    type Batch = (Vec<f32>, GumbelNoise);

    fn accumulate(
        &self,
        model: &Dvae,
        parts: Vec<Self::Batch>,
        Update { step, scales, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        let (relax, min_log_b) = (&self.config.relax, self.config.dvae.min_log_b);
        let scale = scales.and_then(|scales| scales.first().copied());
        let mut sums = Sums::default();
        for (pictures, noise) in parts {
            let x = map_pixels(self.pictures(pictures)).autodiff();
            sums.add(differentiate(model, scale, sink, |model| {
                let logits = model.encoder.forward(x.clone());
                let codes = gumbel_softmax_drawn(self.cpu(), logits.clone(), noise, relax.tau_at(step));
                let stats = model.decoder.forward(codes);
                let elbo = elbo(self.cpu(), x, stats, logits, relax.beta_at(step), min_log_b);
                let figures = vec![
                    ("nll_nats_per_value", elbo.nll_per_value),
                    ("kl_nats_per_token", elbo.kl_per_token),
                ];
                Loss { total: elbo.loss, figures }
            })?);
        }
        Ok(sums)
    }

    /// Splits codes every `relax.split_every` updates, up to update `relax.split_until`
    /// ([`split_codes`]).
    fn after_update(&self, step: u64, params: &mut ParamStore) -> Result<()> {
        let (relax, done) = (&self.config.relax, step + 1);
        if relax.split_every == 0 || !done.is_multiple_of(relax.split_every) || done > relax.split_until {
            return Ok(());
        }
        let batches = self.split_pictures(step)?;
        let (usage, positions) = self.usage(&params.to_host(Which::Value), &batches)?;
        let splits = usage.splits();
        for which in [Which::Value, Which::Average] {
            let mut weights = params.to_host(which);
            self.split(&mut weights, &splits, (&batches, &positions), step)?;
            params.set(which, &weights);
        }
        Ok(())
    }

    fn validate(&self, model: &Dvae, step: u64) -> Result<Validation> {
        ensure!(!self.val.is_empty(), "no pictures to validate on");
        let model = &model.clone().stored(None);
        let config = &self.config.dvae;
        let recon = recon(model, config, &self.val);
        let noise = self.noise(Purpose::ValidationGumbel, 0);
        let gap = relaxation_gap(model, config, &self.val, noise, self.config.relax.tau_at(step));
        let metrics = vec![
            ("relaxed_elbo_nats_per_value", gap.relaxed_elbo_nats_per_value),
            ("sampled_elbo_nats_per_value", gap.sampled_elbo_nats_per_value),
            (
                "relaxation_gap_nats_per_value",
                gap.relaxed_elbo_nats_per_value - gap.sampled_elbo_nats_per_value,
            ),
            ("psnr_db", recon.psnr_db),
            ("argmax_objective_nats_per_value", recon.argmax_objective_nats_per_value),
            ("kl_nats_per_token", recon.kl_nats_per_token),
            ("codes_used", recon.codes_used as f64),
            ("perplexity", recon.perplexity),
        ];
        let loss = Some(-gap.sampled_elbo_nats_per_value);
        Ok(Validation { metrics, loss, warning: self.collapse(recon.codes_used, step) })
    }

    fn sample(&self, model: &Dvae) -> Result<Option<RgbImage>> {
        let side = self.config.dvae.image_size as u32;
        let every = self.val.len().div_ceil(SAMPLES);
        let shown: Vec<&Vec<f32>> = self.val.iter().step_by(every.max(1)).collect();
        let x = self.pictures(shown.iter().flat_map(|v| v.iter().copied()).collect());
        let restored = model.decode(model.encode(x)).into_data();
        let restored = restored.try_to_vec::<f32>().map_err(Internal::debug)?;
        let originals = shown.iter().map(|v| from_floats(v, side));
        let restored = restored.chunks(shown[0].len()).map(|v| from_floats(v, side));
        Ok(Some(contact_sheet(&originals.chain(restored).collect::<Vec<_>>(), shown.len())))
    }
}

#[cfg(test)]
mod tests {
    use tessera_model::nn::GradientSums;

    /// The complete batch of the tiny preset.
    const ALL: Slots = Slots { first: 0, len: 16 };

    use super::*;

    fn with_task<T>(sets: &[&str], body: impl FnOnce(&DvaeTask) -> T) -> T {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let config = Config::resolve("tiny", &sets).unwrap();
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        let train = tessera_data::Dataset::open(&dir).unwrap().train;
        body(&DvaeTask {
            config,
            seed: 3,
            train: TrainSamples::Stored(train),
            val: Vec::new(),
            compute: Cpu::best().into(),
        })
    }

    /// In the tiny preset, β rises over 10 updates and the temperature falls over 24. The test
    /// fails if one is computed with the key of the other.
    #[test]
    fn gradient_uses_beta_and_temperature_of_its_step() {
        with_task(&[], |task| {
            let model = Dvae::new(&task.config.dvae, 1, &task.compute);
            let half_way = 0.0625 + 0.5 * 0.9375 * (1.0 + (std::f64::consts::PI * 5.0 / 24.0).cos());
            for (step, beta, tau) in [(5, 0.85, half_way), (12, 1.7, 0.53125), (40, 1.7, 0.0625)] {
                let (pictures, noise) = task.batch(step, ALL).unwrap();
                let x = map_pixels(task.pictures(pictures.clone()));
                let logits = model.encoder.forward(x.clone());
                let stats =
                    model.decoder.forward(gumbel_softmax_drawn(task.cpu(), logits.clone(), noise, tau));
                let expected = elbo(task.cpu(), x, stats, logits, beta, task.config.dvae.min_log_b);
                let expected = expected.loss.into_scalar::<f64>();
                let sums = &mut GradientSums::new(task.cpu());
                let got =
                    task.accumulate(&model, vec![(pictures, noise)], Update::alone(step), sums).unwrap().loss;
                assert!((got - expected).abs() < 1e-6, "step {step}: {got}, wanted {expected}");
            }
        });
    }

    /// Threads crop the pictures in parallel. Each picture has its own random numbers, and the
    /// order is that of the batch.
    #[test]
    fn batch_has_the_same_crops_with_any_number_of_ranks() {
        let pictures = |parts: usize, part| {
            with_task(&[], |task| task.batch(7, Slots::of_rank(16, 1, part, parts)[0]).unwrap().0)
        };
        let single = pictures(1, 0);
        with_task(&[], |task| {
            let indices = batch_indices(task.train.len(), 16, 7, 3);
            for (slot, got) in single.chunks(3 * 32 * 32).enumerate() {
                let mut rng = item_rng(3, Purpose::Augment, 7, slot as u64);
                let image = &task.train.get(indices[slot]).unwrap().image;
                let expected = augment(image, 32, task.config.data.dvae_crop, &mut rng).unwrap();
                assert!(got == to_floats(&expected), "slot {slot}");
            }
        });
        assert_eq!(single, (0..4).flat_map(|part| pictures(4, part)).collect::<Vec<_>>());
    }

    #[test]
    fn batch_has_the_same_noise_with_any_number_of_ranks() {
        let noise = |parts: usize, part| {
            with_task(&[], |task| task.batch(7, Slots::of_rank(16, 1, part, parts)[0]).unwrap().1)
        };
        let single = noise(1, 0);
        for part in 0..4 {
            assert_eq!(noise(4, part), single.skip_rows(part * 4 * 64)); // 4 pictures of 8 × 8 tokens
        }
        let validated = with_task(&[], |task| task.noise(Purpose::ValidationGumbel, 7));
        assert_ne!(validated.seed, single.seed);
    }
}
