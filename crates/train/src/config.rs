//! Configs: a preset, or a file with differences from a preset, and then `--set key=value`.
//!
//! The presets are `configs/NAME.toml`; a file names its base with the key `preset`. An unknown key
//! is an error that names the nearest key. The resolved config is saved with every run.

mod compute;
mod powersgd;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use strsim::levenshtein;
use tessera_data::{Augment, read_text};
use tessera_kernels::{Precision, SmallFloat};
use tessera_model::device::DeviceConfig;
use tessera_model::dvae::DvaeConfig;
use tessera_model::prior::{Activations, PriorConfig};
use tessera_model::rerank::ClipConfig;
use toml::{Table, Value};

pub use self::powersgd::{CompressionRank, PowerSgdConfig};
use crate::capacity::Stage;
use crate::optim::Moments;
use crate::pace::{Length, ensure_fits, set_length};
use crate::precision::Scaling;
use crate::samples::ScenesConfig;
use crate::schedule::{Schedule, cosine_decay};

/// The presets that are compiled into the program.
const PRESETS: [(&str, &str); 7] = [
    ("tiny", include_str!("../configs/tiny.toml")),
    ("small", include_str!("../configs/small.toml")),
    ("emoji", include_str!("../configs/emoji.toml")),
    ("embedded", include_str!("../configs/embedded.toml")),
    ("paper", include_str!("../configs/paper.toml")),
    ("5.6b", include_str!("../configs/5.6b.toml")),
    ("2.8b", include_str!("../configs/2.8b.toml")),
];

/// The settings of all models and their training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Architecture of stage 1.
    pub dvae: DvaeConfig,
    /// Architecture of stage 2.
    pub prior: PriorConfig,
    /// Augmentation and sources of training pictures and captions.
    pub data: DataConfig,
    /// Training of stage 1.
    pub train_dvae: FitConfig,
    /// Schedules of the Gumbel-softmax relaxation of stage 1.
    pub relax: RelaxConfig,
    /// Training of stage 2.
    pub train_prior: FitConfig,
    /// Memory and gradient scales of the prior's resblocks in training.
    pub chain: ChainConfig,
    /// Architecture of the contrastive model.
    pub rerank: ClipConfig,
    /// Training of the contrastive model.
    pub train_rerank: FitConfig,
    /// Precision of the kernels on the CPU.
    pub cpu: CpuConfig,
    /// Precision on other devices.
    #[serde(default)]
    pub device: DeviceConfig,
    /// Compression of the prior's gradients between replicas.
    #[serde(default)]
    pub powersgd: PowerSgdConfig,
}

/// Memory and gradient scales of the prior's resblocks in training (paper §2.4, §D.1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// `keep` keeps the activations inside resblocks for the backward pass; `recompute` computes
    /// them again, which takes less memory and a third more computation and gives the same
    /// gradients.
    pub activations: Activations,
    /// With 16-bit storage: whether each `resblock` has its own gradient scale, as in the paper, or
    /// all share one `global` scale.
    pub scaling: Scaling,
    /// Base-2 logarithm of the initial gradient scales (paper §D.1: 13).
    pub scale_first: f64,
    /// Number of updates without an overflow after which a gradient scale has doubled (paper §D.1:
    /// 1000).
    pub scale_doubling: u64,
    /// A gradient scale is lowered at most once within this number of updates (paper §D.1: 125).
    pub scale_rest: u64,
}

/// The dtype in which values are stored in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingDtype {
    /// The dtype of the kernels.
    Full,
    /// f16: 5 exponent bits and 10 significand bits.
    F16,
    /// bf16: 8 exponent bits and 7 significand bits.
    Bf16,
    /// 3 exponent bits and 12 significand bits, for experiments (`docs/precision.md`).
    #[serde(rename = "1-3-12")]
    OneThreeTwelve,
}

impl TrainingDtype {
    /// Returns the 16-bit format, or `None` for [`TrainingDtype::Full`].
    pub fn format(self) -> Option<SmallFloat> {
        match self {
            TrainingDtype::Full => None,
            TrainingDtype::F16 => Some(SmallFloat::F16),
            TrainingDtype::Bf16 => Some(SmallFloat::Bf16),
            TrainingDtype::OneThreeTwelve => Some(SmallFloat::OneThreeTwelve),
        }
    }
}

/// Precision of the kernels on the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Precision of matrix products: `bf16` multiplies bf16 values and sums in f32; `f32` computes
    /// everything in f32; `auto` is `bf16` on a CPU with bf16 instructions, otherwise `f32`.
    pub precision: Precision,
}

/// Augmentation and sources of training pictures and captions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Random crops for training the dVAE: `stage1` (paper §A.2: scaled to 9/8 to 12/8 of the
    /// target size, mirrored half of the time) or `stage2` (§B.2: 8/8 to 9/8, never mirrored).
    pub dvae_crop: Augment,
    /// Probability of skipping a BPE merge in training the prior (paper §2.2: 0.1).
    pub bpe_dropout: f32,
    /// Probability of dropping the caption of a training sample, which classifier-free guidance
    /// needs.
    pub caption_drop: f32,
    /// Maximum fraction of input image tokens replaced by another image's tokens at the same
    /// positions. Each sample draws its fraction between 0 and this maximum. Targets are not
    /// changed (the paper: 0). This keeps the prior from memorising a small data set by its first
    /// tokens instead of using the caption, and makes it robust to one unlucky token in sampling.
    pub token_noise: f32,
    /// Random crops for training the contrastive model: `random-square` (CLIP: any square, scaled
    /// to the model's size), `stage1` or `stage2`.
    pub rerank_crop: Augment,
    /// Probability of skipping a BPE merge in training the contrastive model (CLIP: 0).
    pub rerank_bpe_dropout: f32,
    /// Fraction of the contrastive model's training pictures that are replaced by their
    /// reconstruction from the dVAE's tokens, because the model ranks drawings (CLIP: 0).
    pub reconstructed: f32,
    /// When pictures are encoded to the prior's tokens: `stored` reads the tokens that `encode`
    /// wrote; `online`, as in the paper, makes a new crop (§B.2, Listing 2) and encodes it each
    /// time a picture is read. `online` needs a data set and `--dvae`.
    pub encode: Encoding,
    /// Number of random crops (paper §B.2, Listing 2) of each training picture that `encode`
    /// stores; 0 stores the centre crop.
    pub copies: usize,
    /// Train on scenes as of `tessera data scenes`, composed when they are read, instead of the
    /// pictures of the data set, which still provides the held-out ones:
    /// `{ packages = "packages", size = 128 }`, optionally with `seed` and `shares`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenes: Option<ScenesConfig>,
}

/// When pictures are encoded to the prior's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Before training, by `encode`.
    Stored,
    /// During training, from a new crop each time a picture is read.
    Online,
}

/// Updates, batch, optimizer and reporting of one training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitConfig {
    /// Total number of updates.
    pub steps: u64,
    /// Pictures per update.
    pub batch: usize,
    /// Number of parts of a batch that are differentiated one after another (gradient
    /// accumulation). The activations of only one part must fit in memory; the inputs of this batch
    /// and of the next one are held completely.
    pub micro_batches: usize,
    /// How the learning rate decays: `cosine`, or `plateau`, which halves it whenever the training
    /// loss stops falling.
    pub schedule: Schedule,
    /// Maximum learning rate.
    pub lr: f64,
    /// Minimum learning rate; `cosine` reaches it at `lr_steps` and keeps it.
    pub lr_end: f64,
    /// Updates over which `cosine` decays.
    pub lr_steps: u64,
    /// Updates over which the learning rate rises linearly from 0.
    pub warmup: u64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε, added to the square root of the running variance.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay; it does not apply to gains, biases and embeddings.
    pub weight_decay: f64,
    /// Maximum global norm of the gradient; a larger gradient is scaled down to it. `inf` for no
    /// limit.
    pub clip: f64,
    /// Maximum running variance (paper §B.2: 5); `inf` for no limit.
    pub variance_clip: f64,
    /// Dtype in which activations, the weights where they are used, and the gradients of both are
    /// stored: `full` is the dtype of the kernels; `f16` (the paper's) and `bf16` are emulated in
    /// f32, with gradient scaling (paper §D). The residual stream, the layers next to the codes,
    /// gains, biases, embeddings and heads stay in 32 bits.
    pub storage: TrainingDtype,
    /// Dtype of the optimizer's moments: `full`, or `small`, which stores the moments of matrices
    /// and filters inside blocks in the paper's 16-bit formats.
    pub moments: Moments,
    /// Decay of the moving average of the weights, which is what is validated and saved as the
    /// model. With 0 there is no average, and the weights themselves are used.
    pub ema: f64,
    /// Updates between two updates of the average.
    pub ema_every: u64,
    /// Whether the average follows faster at the beginning; not in the paper.
    pub ema_rise: bool,
    /// Updates between two validations with sample pictures.
    pub eval_every: u64,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// Updates between two lines of training metrics.
    pub log_every: u64,
}

/// Schedules of the Gumbel-softmax relaxation of stage 1 (paper §A.2). All follow a cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelaxConfig {
    /// Final weight β of the KL term; the paper's 6.6 is for 192 values per token.
    pub beta: f64,
    /// Updates over which β rises from 0.
    pub beta_steps: u64,
    /// Final temperature of the Gumbel-softmax (1/16).
    pub tau_end: f64,
    /// Updates over which the temperature falls from 1.
    pub tau_steps: u64,
    /// Number of updates between two splits of codes, in which each unused code takes over half of
    /// a code with a large reconstruction error; 0 turns splitting off. Not in the paper.
    #[serde(default)]
    pub split_every: u64,
    /// Number of updates after which no code is split any more.
    #[serde(default)]
    pub split_until: u64,
}

impl RelaxConfig {
    /// Returns the weight of the KL term in update `step`.
    pub fn beta_at(&self, step: u64) -> f64 {
        cosine_decay(0.0, self.beta, step, self.beta_steps)
    }

    /// Returns the temperature in update `step`.
    pub fn tau_at(&self, step: u64) -> f64 {
        cosine_decay(1.0, self.tau_end, step, self.tau_steps)
    }
}

impl Config {
    /// Returns the lengths and the optimizer settings of a stage.
    pub fn fit(&self, stage: Stage) -> &FitConfig {
        match stage {
            Stage::Dvae => &self.train_dvae,
            Stage::Prior => &self.train_prior,
            Stage::Rerank => &self.train_rerank,
        }
    }

    /// Resolves `name` (a preset, or a TOML file with a `preset` key) and then applies each
    /// `key=value` of `sets`.
    ///
    /// # Errors
    /// If a preset, file or key is unknown, a value has the wrong type, or sizes do not fit each
    /// other.
    pub fn resolve(name: &str, sets: &[String]) -> Result<Config> {
        Config::scaled(name, sets, None)
    }

    /// Resolves a config for training `stage`, as [`Config::resolve`] does. The schedule of the
    /// stage is changed to `length` before `sets` are applied.
    ///
    /// # Errors
    /// As for [`Config::resolve`], and if `sets` change only the number of updates of a new run, so
    /// that the schedule would be longer than the run.
    pub fn resolve_for(name: &str, sets: &[String], stage: Stage, length: Length) -> Result<Config> {
        let config = Config::scaled(name, sets, Some((stage, length)))?;
        if length.resumed.is_none() {
            ensure_fits(&config, stage, sets)?;
        }
        Ok(config)
    }

    fn scaled(name: &str, sets: &[String], length: Option<(Stage, Length)>) -> Result<Config> {
        let mut table = match preset(name, 0) {
            Some(table) => table?,
            None => read_file(Path::new(name))?,
        };
        if let Some((stage, length)) = length {
            set_length(&mut table, stage, length)?;
        }
        for set in sets {
            apply_set(&mut table, set)?;
        }
        let one_line = |error: toml::de::Error| error.to_string().trim_end().replace('\n', " ");
        let config: Config =
            table.try_into().map_err(|error| anyhow::anyhow!("config {name}: {}", one_line(error)))?;
        config.check()?;
        Ok(config)
    }

    /// Returns the config in the text of a run's `config.toml`.
    ///
    /// # Errors
    /// If a key is missing or unknown, or a value has the wrong type.
    pub fn of_run(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Returns the config as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    fn check(&self) -> Result<()> {
        self.dvae.check()?;
        self.prior.check()?;
        self.rerank.check()?;
        for (name, fit) in [
            ("train_dvae", &self.train_dvae),
            ("train_prior", &self.train_prior),
            ("train_rerank", &self.train_rerank),
        ] {
            ensure!(
                fit.micro_batches >= 1 && fit.batch.is_multiple_of(fit.micro_batches) && fit.batch > 0,
                "{name}.batch = {}: wanted a multiple of {name}.micro_batches = {}",
                fit.batch,
                fit.micro_batches
            );
            for (key, value, range) in [
                ("lr", fit.lr, f64::MIN_POSITIVE..=10.0),
                ("lr_end", fit.lr_end, 0.0..=10.0),
                ("beta1", fit.beta1, 0.0..=0.999_999),
                ("beta2", fit.beta2, 0.0..=0.999_999),
                ("epsilon", fit.epsilon, 0.0..=1.0),
                ("weight_decay", fit.weight_decay, 0.0..=10.0),
                ("clip", fit.clip, f64::MIN_POSITIVE..=f64::INFINITY),
                ("variance_clip", fit.variance_clip, f64::MIN_POSITIVE..=f64::INFINITY),
                ("ema", fit.ema, 0.0..=1.0),
            ] {
                in_range(&format!("{name}.{key}"), value, range)?;
            }
            ensure!(
                fit.storage == TrainingDtype::Full || self.cpu.precision == Precision::F32,
                "{name}.storage = {:?} is emulated in f32: wanted cpu.precision = \"f32\"",
                fit.storage
            );
            ensure!(fit.steps >= 1, "{name}.steps = 0: wanted at least 1");
            let periods = [fit.ema_every, fit.eval_every, fit.checkpoint_every, fit.log_every];
            ensure!(
                periods.iter().all(|&p| p > 0),
                "{name}: wanted at least 1 for every key that ends in `_every`"
            );
        }
        let ChainConfig { scale_doubling, scale_rest, .. } = self.chain;
        ensure!(
            scale_doubling >= 1 && scale_rest >= 1,
            "chain.scale_doubling = {scale_doubling}, chain.scale_rest = {scale_rest}: wanted at least 1"
        );
        in_range("chain.scale_first", self.chain.scale_first, -100.0..=100.0)?;
        ensure!(
            self.train_rerank.storage == TrainingDtype::Full,
            "train_rerank.storage: the contrastive model is trained with full storage only; wanted \"full\""
        );
        in_range("data.bpe_dropout", self.data.bpe_dropout.into(), 0.0..=1.0)?;
        in_range("data.rerank_bpe_dropout", self.data.rerank_bpe_dropout.into(), 0.0..=1.0)?;
        in_range("data.caption_drop", self.data.caption_drop.into(), 0.0..=1.0)?;
        in_range("data.token_noise", self.data.token_noise.into(), 0.0..=1.0)?;
        in_range("data.reconstructed", self.data.reconstructed.into(), 0.0..=1.0)?;
        in_range("relax.beta", self.relax.beta, 0.0..=1e6)?;
        in_range("relax.tau_end", self.relax.tau_end, 1e-4..=1.0)?;
        let fits = (self.prior.grid, self.prior.image_vocab) == (self.dvae.grid(), self.dvae.vocab);
        ensure!(
            fits,
            "the dVAE makes a grid of {grid} tokens per side, of {vocab} codes, which the prior's settings do not fit; \
             add --set prior.grid={grid} --set prior.image_vocab={vocab}",
            grid = self.dvae.grid(),
            vocab = self.dvae.vocab
        );
        Ok(())
    }
}

fn in_range(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    ensure!(range.contains(&value), "{key} = {value}: wanted {:e} to {:e}", range.start(), range.end());
    Ok(())
}

/// The maximum depth of a chain of presets in which each names the next one as its base.
const DEEPEST: usize = 4;

fn preset(name: &str, depth: usize) -> Option<Result<Table>> {
    let (_, text) = PRESETS.iter().find(|(preset, _)| *preset == name)?;
    Some(over_its_base(text, None, depth).with_context(|| format!("preset {name}")))
}

fn read_file(path: &Path) -> Result<Table> {
    let shown = path.display();
    let text = read_text(path).with_context(|| {
        format!("config {shown}: neither a preset ({}) nor a readable file", preset_names())
    })?;
    over_its_base(&text, Some("emoji"), 0).with_context(|| format!("config {shown}"))
}

/// Merges the table in `text` into the preset that it names as its base. If it names none, the base
/// is `usual`, if present.
fn over_its_base(text: &str, usual: Option<&str>, depth: usize) -> Result<Table> {
    let mut differences: Table = text.parse()?;
    let base = match (differences.remove("preset"), usual) {
        (Some(Value::String(base)), _) => base,
        (Some(other), _) => bail!("preset = {other}: wanted one of {}", preset_names()),
        (None, Some(usual)) => usual.to_string(),
        (None, None) => return Ok(differences),
    };
    ensure!(depth < DEEPEST, "presets name each other as their base");
    let unknown = || format!("preset {base:?}: wanted one of {}", preset_names());
    let mut table = preset(&base, depth + 1).with_context(unknown)??;
    merge(&mut table, differences, "")?;
    Ok(table)
}

fn preset_names() -> String {
    PRESETS.map(|(name, _)| name).join(", ")
}

/// Keys that a config may set although no preset contains them.
const OPTIONAL: [&str; 1] = ["data.scenes"];

/// Merges `differences` into `table`. Only keys that exist or are [`OPTIONAL`] may be set.
fn merge(table: &mut Table, differences: Table, prefix: &str) -> Result<()> {
    for (key, value) in differences {
        let path = format!("{prefix}{key}");
        let known: Vec<String> = table.keys().cloned().collect();
        match (table.get_mut(&key), value) {
            (None, value) if OPTIONAL.contains(&path.as_str()) => drop(table.insert(key, value)),
            (None, _) => bail!("unknown config key {path}{}", hint(&key, &known, prefix)),
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value, &format!("{path}."))?,
            (Some(old), value) => *old = like(old, value, &path)?,
        }
    }
    Ok(())
}

/// Converts `value` to the type of `old`. An integer is accepted in place of a float.
fn like(old: &Value, value: Value, path: &str) -> Result<Value> {
    match (old, value) {
        (Value::Float(_), Value::Integer(value)) => Ok(Value::Float(value as f64)),
        // The type of this key checks its values.
        (_, value) if path == "powersgd.rank" => Ok(value),
        (old, value) if old.same_type(&value) => Ok(value),
        (old, value) => bail!("{path} = {value}: wanted a value of type {}", old.type_str()),
    }
}

fn apply_set(table: &mut Table, set: &str) -> Result<()> {
    let (path, value) = set
        .split_once('=')
        .with_context(|| format!("--set {set}: wanted key=value, as in prior.n_layers=12"))?;
    let value: Table = format!("value = {value}")
        .parse()
        .with_context(|| format!("--set {set}: {value:?} is not a TOML value"))?;
    let Some(mut value) = value.get("value").cloned() else { bail!("--set {set}: no value") };
    for key in path.trim().rsplit('.') {
        value = Value::Table(Table::from_iter([(key.to_string(), value)]));
    }
    match value {
        Value::Table(differences) => merge(table, differences, ""),
        _ => bail!("--set {set}: wanted key=value"),
    }
}

/// Returns the end of an error about an unknown key: the known one that was probably meant.
fn hint(key: &str, known: &[String], prefix: &str) -> String {
    match known.iter().min_by_key(|name| levenshtein(key, name)) {
        Some(nearest) => format!("; did you mean {prefix}{nearest}?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
