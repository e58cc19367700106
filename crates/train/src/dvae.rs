//! `train dvae`: stage 1 (paper §2.1).

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use tessera_data::{Augment, Dataset, Purpose, Sample, augment, batch_indices, item_rng};
use tessera_eval::{recon, relaxation_gap};
use tessera_model::dvae::{Dvae, DvaeConfig, elbo, gumbel_noise, gumbel_softmax, map_pixels};
use tessera_model::weights::{ModelConfig, ModelFile, export};

use crate::config::Config;
use crate::fit::{Outcome, Task, fit};
use crate::gradient::{Gradient, Loss, differentiate};
use crate::log::Metrics;
use crate::picture::{from_floats, grid, to_floats};
use crate::precision::{Rules, Scales, Scaling};
use crate::run_dir::{RunDir, RunOptions};
use crate::schedule::cosine;

/// Columns of the sample sheet; originals stand above reconstructions.
const SAMPLES: usize = 16;

struct DvaeTask<'a> {
    config: &'a Config,
    seed: u64,
    train: &'a [Sample],
    /// Held-out pictures, `[3·S·S]` in [0, 1] each.
    val: Vec<Vec<f32>>,
    device: Device,
}

/// Trains a dVAE on the data set at `data`; writes `RUN/dvae.tessera.safetensors` when it finishes or is stopped.
pub fn train_dvae(config: &Config, data: &Path, options: &RunOptions, stop: &AtomicBool) -> Result<Outcome> {
    let dataset = open_dataset(data)?;
    let seed = options.seed;
    let side = config.dvae.image_size as u32;
    let floats = |sample: &Sample| centre(sample, side);
    let held_out = if dataset.val.is_empty() { &dataset.train } else { &dataset.val };
    let val = held_out.iter().map(floats).collect::<Result<Vec<_>>>()?;
    let task = DvaeTask { config, seed, train: &dataset.train, val, device: Device::default() };
    let (initial, named) = options.initial()?;
    let model = match initial {
        Some(file) => {
            // The picture's size is no size of a weight.
            let theirs = file
                .config
                .dvae
                .as_ref()
                .map(|dvae| DvaeConfig { image_size: side as usize, ..dvae.clone() });
            ensure!(
                theirs.as_ref() == Some(&config.dvae),
                "--init holds a dVAE of {theirs:?}, wanted {:?}",
                config.dvae
            );
            file.dvae(&task.device)?
        }
        None => Dvae::new(&config.dvae, seed, &task.device),
    };
    let model = model.stored(config.train_dvae.storage.format());
    let run = RunDir::start(options, "dvae", &format!("data {}{named}", dataset.fingerprint()), config)?;
    let (model, outcome) = fit(&task, model, &config.train_dvae, &run, stop)?;
    let file = ModelFile {
        config: ModelConfig { dvae: Some(config.dvae.clone()), ..ModelConfig::default() },
        dvae: export(&model),
        ..ModelFile::default()
    };
    file.write(&run.path().join("dvae.tessera.safetensors"))?;
    Ok(outcome)
}

/// A data set; what had to be passed over is reported.
pub(crate) fn open_dataset(data: &Path) -> Result<Dataset> {
    let dataset = Dataset::open(data)?;
    if dataset.skipped.total() > 0 {
        eprintln!("{}", dataset.skipped);
    }
    Ok(dataset)
}

/// The centre of a picture at the model's size, `[3·S·S]` in [0, 1].
pub(crate) fn centre(sample: &Sample, side: u32) -> Result<Vec<f32>> {
    let mut unused = item_rng(0, Purpose::Augment, 0, 0);
    let image = augment(&sample.image, side, Augment::CentreOnly, &mut unused)
        .with_context(|| format!("picture {}", sample.key))?;
    Ok(to_floats(&image))
}

impl DvaeTask<'_> {
    /// Temperature of update `step`.
    fn tau(&self, step: u64) -> f64 {
        cosine(1.0, self.config.relax.tau_end, step, self.config.relax.tau_steps)
    }

    fn pictures(&self, values: Vec<f32>, n: usize) -> Tensor<4> {
        let side = self.config.dvae.image_size;
        Tensor::from_data(TensorData::new(values, [n, 3, side, side]), &self.device)
    }
}

impl Task for DvaeTask<'_> {
    type Model = Dvae;
    /// Pictures `[n, 3, S, S]` and Gumbel noise `[n, G, G, V]`, flat.
    type Batch = (Vec<f32>, Vec<f32>);

    fn batch(&self, step: u64, part: usize) -> Result<Self::Batch> {
        let config = &self.config.train_dvae;
        let share = config.batch / config.micro_batches;
        let indices = batch_indices(self.train.len(), config.batch, step, self.seed);
        let side = self.config.dvae.image_size as u32;
        let cells = self.config.dvae.vocab * self.config.dvae.grid() * self.config.dvae.grid();
        let crop = self.config.data.dvae_crop;
        let (mut pictures, mut noise) = (Vec::new(), Vec::new());
        for (slot, &index) in indices.iter().enumerate().skip(part * share).take(share) {
            let rng = |purpose| item_rng(self.seed, purpose, step, slot as u64);
            let sample = &self.train[index];
            let image = augment(&sample.image, side, crop, &mut rng(Purpose::Augment))?;
            pictures.extend(to_floats(&image));
            noise.extend(gumbel_noise(cells, &mut rng(Purpose::Gumbel)));
        }
        Ok((pictures, noise))
    }

    /// One for the whole graph (paper §A.2).
    fn scales(&self, _: &Dvae) -> Option<Scales> {
        let format = self.config.train_dvae.storage.format()?;
        Some(Scales::new(Rules::paper(Scaling::Global), 1, format, 1))
    }

    fn gradient(
        &self,
        model: &Dvae,
        (pictures, noise): Self::Batch,
        step: u64,
        scales: Option<&[f32]>,
    ) -> Result<Gradient> {
        let relax = &self.config.relax;
        let share = self.config.train_dvae.batch / self.config.train_dvae.micro_batches;
        let beta = cosine(0.0, relax.beta, step, relax.beta_steps);
        let tau = self.tau(step);
        let x = map_pixels(self.pictures(pictures, share)).autodiff();
        differentiate(model, scales, |model| {
            let logits = model.encoder.forward(x.clone());
            let noise = Tensor::from_data(TensorData::new(noise, logits.dims()), &self.device).autodiff();
            let codes = gumbel_softmax(logits.clone(), noise, tau);
            let elbo = elbo(x, model.decoder.forward(codes), logits, beta, self.config.dvae.min_log_b);
            let figures =
                vec![("nll_nats_per_value", elbo.nll_per_value), ("kl_nats_per_token", elbo.kl_per_token)];
            Loss { total: elbo.loss, figures }
        })
    }

    fn validate(&self, model: &Dvae, step: u64) -> Result<Metrics> {
        ensure!(!self.val.is_empty(), "no pictures to validate on");
        let model = &model.clone().stored(None);
        let config = &self.config.dvae;
        let recon = recon(model, config, &self.val, &self.device);
        let cells = config.vocab * config.grid() * config.grid();
        let noise = |i| gumbel_noise(cells, &mut item_rng(self.seed, Purpose::ValidationGumbel, 0, i as u64));
        let gap = relaxation_gap(model, config, &self.val, noise, self.tau(step));
        Ok(vec![
            ("relaxed_elbo_nats_per_value", gap.relaxed_elbo_nats_per_value),
            ("sampled_elbo_nats_per_value", gap.sampled_elbo_nats_per_value),
            (
                "relaxation_gap_nats_per_value",
                gap.relaxed_elbo_nats_per_value - gap.sampled_elbo_nats_per_value,
            ),
            ("psnr_db", recon.psnr_db),
            ("elbo_nats_per_value", recon.elbo_nats_per_value),
            ("kl_nats_per_token", recon.kl_nats_per_token),
            ("codes_used", recon.codes_used as f64),
            ("perplexity", recon.perplexity),
        ])
    }

    fn picture(&self, model: &Dvae) -> Result<RgbImage> {
        let side = self.config.dvae.image_size as u32;
        let every = self.val.len().div_ceil(SAMPLES);
        let shown: Vec<&Vec<f32>> = self.val.iter().step_by(every.max(1)).collect();
        let x = self.pictures(shown.iter().flat_map(|v| v.iter().copied()).collect(), shown.len());
        let restored = model.decode(model.encode(x)).into_data();
        let restored = restored.try_to_vec::<f32>().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let originals = shown.iter().map(|v| from_floats(v, side));
        let restored = restored.chunks(shown[0].len()).map(|v| from_floats(v, side));
        Ok(grid(&originals.chain(restored).collect::<Vec<_>>(), shown.len()))
    }
}
