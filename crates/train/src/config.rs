//! Configs are presets plus differences: `configs/NAME.toml`, or a file that names its `preset`, then `--set key=value`.
//!
//! An unknown key is an error that names the nearest key; the resolved config is saved with every run.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tessera_data::{Augment, read_text};
use tessera_kernels::{Cpu, Precision, SmallFloat};
use tessera_model::dvae::DvaeConfig;
use tessera_model::nn::Compute;
use tessera_model::prior::{Activations, PriorConfig};
use tessera_model::rerank::ClipConfig;
use toml::{Table, Value};

use crate::capacity::Stage;
use crate::device::DeviceChoice;
use crate::optim::Moments;
use crate::pace::{ensure_fits, scale};
use crate::precision::Scaling;
use crate::samples::ScenesConfig;
use crate::schedule::{Schedule, cosine_decay};

/// The presets inside the program.
const PRESETS: [(&str, &str); 6] = [
    ("tiny", include_str!("../../../configs/tiny.toml")),
    ("emoji", include_str!("../../../configs/emoji.toml")),
    ("embedded", include_str!("../../../configs/embedded.toml")),
    ("paper", include_str!("../../../configs/paper.toml")),
    ("5.6b", include_str!("../../../configs/5.6b.toml")),
    ("2.8b", include_str!("../../../configs/2.8b.toml")),
];

/// Everything that training needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Architecture of stage 1.
    pub dvae: DvaeConfig,
    /// Architecture of stage 2.
    pub prior: PriorConfig,
    /// How pictures and captions are varied.
    pub data: DataConfig,
    /// Training of stage 1.
    pub train_dvae: FitConfig,
    /// The relaxation of stage 1.
    pub relax: RelaxConfig,
    /// Training of stage 2.
    pub train_prior: FitConfig,
    /// How the prior's chain of resblocks is run in training.
    pub chain: ChainConfig,
    /// Architecture of the contrastive model.
    pub rerank: ClipConfig,
    /// Training of the contrastive model.
    pub train_rerank: FitConfig,
    /// How the processor is used.
    pub cpu: CpuConfig,
}

/// How the prior's chain of resblocks is run in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// `keep` keeps what happens inside resblocks for the backward pass; `recompute` computes it again: less memory, a
    /// third more work, the same gradients.
    pub activations: Activations,
    /// With numbers of 16 bits: whether each `resblock` has a gradient scale of its own, as in the paper, or all share a
    /// `global` one.
    pub scaling: Scaling,
    /// Binary logarithm of the first gradient scales (paper §D.1: 13).
    pub scale_first: f64,
    /// Updates without an overflow that double a gradient scale (paper §D.1: 1000).
    pub scale_doubling: u64,
    /// Updates within which a gradient scale is lowered once at most (paper §D.1: 125).
    pub scale_rest: u64,
}

/// What numbers are stored as in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingDtype {
    /// As the kernels have them.
    Full,
    /// 5 bits of exponent, 10 of significand.
    F16,
    /// 8 bits of exponent, 7 of significand.
    Bf16,
    /// 3 bits of exponent, 12 of significand: for experiments (`docs/precision.md`).
    #[serde(rename = "1-3-12")]
    OneThreeTwelve,
}

impl TrainingDtype {
    /// The format, if there is one of 16 bits.
    pub fn format(self) -> Option<SmallFloat> {
        match self {
            TrainingDtype::Full => None,
            TrainingDtype::F16 => Some(SmallFloat::F16),
            TrainingDtype::Bf16 => Some(SmallFloat::Bf16),
            TrainingDtype::OneThreeTwelve => Some(SmallFloat::OneThreeTwelve),
        }
    }
}

/// How the processor is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// `bf16` multiplies bf16 numbers into f32 sums, `f32` only f32; `auto` is bf16 where the processor has it.
    pub precision: Precision,
}

/// How pictures and captions are varied in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Random crops that the dVAE is trained on: `stage1` (paper §A.2: 9/8 to 12/8 of the target size, mirrored half
    /// of the time) or `stage2` (§B.2: 8/8 to 9/8, never mirrored).
    pub dvae_crop: Augment,
    /// Probability of skipping a BPE merge when the prior is trained (paper §2.2: 0.1).
    pub bpe_dropout: f32,
    /// Probability of training a picture without its caption, so that drawing can be guided.
    pub caption_drop: f32,
    /// The most of a picture's tokens in whose place the prior reads what another picture has there: each stream draws its
    /// share between 0 and this. What is predicted stays as it is (the paper: 0). Against learning a small set by heart from
    /// its first tokens instead of from the words, and against being lost after one unlucky draw.
    pub token_noise: f32,
    /// Random crops that the contrastive model is trained on: `random-square` (CLIP), `stage1` or `stage2`.
    pub rerank_crop: Augment,
    /// Probability of skipping a BPE merge when the contrastive model is trained (CLIP: 0).
    pub rerank_bpe_dropout: f32,
    /// Share of the pictures that the contrastive model sees as they come out of a dVAE's tokens, since what it ranks are drawings (CLIP: 0).
    pub reconstructed: f32,
    /// When pictures become the prior's tokens: `stored` reads those that `encode` wrote; `online`, the paper's way, crops
    /// (§B.2, Listing 2) and encodes each picture again whenever it is read, and takes a data set and `--dvae`.
    pub encode: Encoding,
    /// Random crops (paper §B.2, Listing 2) of each training picture that `encode` stores; 0: its centre.
    pub copies: usize,
    /// Training pictures are scenes, composed when they are read, instead of those of the data set, which still gives
    /// the held-out ones: `{ packages = "packages", size = 128 }`, also `seed` and `shares`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenes: Option<ScenesConfig>,
}

/// When pictures become the prior's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Before training, by `encode`.
    Stored,
    /// In training, from a new crop each time.
    Online,
}

/// Steps, batch, optimiser and reporting of one training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitConfig {
    /// Updates in all.
    pub steps: u64,
    /// Pictures an update.
    pub batch: usize,
    /// Parts of a batch, run one after another, so that a batch need not fit in memory at once.
    pub micro_batches: usize,
    /// How the step size falls.
    pub schedule: Schedule,
    /// Largest step size.
    pub lr: f64,
    /// Smallest step size; with `cosine_decay` that from `lr_steps` on.
    pub lr_end: f64,
    /// Updates over which `cosine_decay` falls.
    pub lr_steps: u64,
    /// Updates over which the step size rises from 0, linearly.
    pub warmup: u64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε, added to the root of the running variance.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay; gains, biases and embeddings are left out.
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    pub clip: f64,
    /// Largest running variance (paper §B.2: 5); `inf` for no bound.
    pub variance_clip: f64,
    /// What activations, weights where they are used, and their gradients are stored as: `full` as the kernels have them;
    /// `f16`, the paper's, and `bf16` are emulated in f32, and gradients are then scaled (paper §D). The residual stream, what
    /// is next to codes, gains, biases, embeddings and heads keep 32 bits.
    pub storage: TrainingDtype,
    /// What the optimizer's moments are stored as: `full` or, for matrices and filters inside blocks, the paper's 16 bits,
    /// `small`.
    pub moments: Moments,
    /// Decay of the weights' moving average; 0 for none: the weights themselves are validated and shipped.
    pub ema: f64,
    /// Updates between two averagings.
    pub ema_every: u64,
    /// Whether early averages follow faster; not in the paper.
    pub ema_rise: bool,
    /// Updates between two validations with sample pictures.
    pub eval_every: u64,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// Updates between two lines of training metrics.
    pub log_every: u64,
}

/// Schedules of the relaxation (paper §A.2), all cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelaxConfig {
    /// Final weight β of the KL term; the paper's 6.6 is for 192 values a token.
    pub beta: f64,
    /// Updates over which β rises from 0.
    pub beta_steps: u64,
    /// Final Gumbel-softmax temperature (1/16).
    pub tau_end: f64,
    /// Updates over which the temperature falls from 1.
    pub tau_steps: u64,
    /// Unused codes take over half of a code with a large error whenever so many updates are done; 0: never.
    #[serde(default)]
    pub split_every: u64,
    /// Updates after which no code is split any more.
    #[serde(default)]
    pub split_until: u64,
}

impl RelaxConfig {
    /// The weight of the KL term in update `step`.
    pub fn beta_at(&self, step: u64) -> f64 {
        cosine_decay(0.0, self.beta, step, self.beta_steps)
    }

    /// The temperature of update `step`.
    pub fn tau_at(&self, step: u64) -> f64 {
        cosine_decay(1.0, self.tau_end, step, self.tau_steps)
    }
}

impl Config {
    /// Resolves `name` (a preset, or a TOML file with a `preset` key) and then each `key=value` of `sets`.
    ///
    /// # Errors
    /// An unknown preset, file or key, a value of the wrong type, or sizes that do not fit each other.
    pub fn resolve(name: &str, sets: &[String]) -> Result<Config> {
        Config::scaled(name, sets, None)
    }

    /// Resolves a config as [`Config::resolve`] does, for training `stage`: with its schedule scaled
    /// to `steps` updates before `sets` are applied.
    ///
    /// # Errors
    /// As for [`Config::resolve`], and if `sets` change the number of updates alone so that the
    /// schedule would outlast them.
    pub fn resolve_for(name: &str, sets: &[String], stage: Stage, steps: Option<u64>) -> Result<Config> {
        let config = Config::scaled(name, sets, steps.map(|steps| (stage, steps)))?;
        ensure_fits(&config, stage, sets)?;
        Ok(config)
    }

    fn scaled(name: &str, sets: &[String], steps: Option<(Stage, u64)>) -> Result<Config> {
        let mut table = match preset(name, 0) {
            Some(table) => table?,
            None => read_file(Path::new(name))?,
        };
        if let Some((stage, steps)) = steps {
            scale(&mut table, stage, steps)?;
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

    /// The config as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The kernels that the config asks for.
    ///
    /// # Errors
    /// If this processor lacks them.
    pub fn cpu(&self) -> Result<Cpu> {
        Cpu::new(self.cpu.precision).map_err(|why| anyhow::anyhow!("cpu.{why}"))
    }

    /// What models compute with that are on `device`.
    ///
    /// # Errors
    /// As for [`Config::cpu`], and if there is no such device.
    pub fn compute(&self, device: DeviceChoice) -> Result<Compute> {
        Ok(Compute { device: device.open()?, cpu: self.cpu()? })
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
            ensure!(periods.iter().all(|&p| p > 0), "{name}: every `*_every` wants at least 1");
        }
        let ChainConfig { scale_doubling, scale_rest, .. } = self.chain;
        ensure!(
            scale_doubling >= 1 && scale_rest >= 1,
            "chain.scale_doubling = {scale_doubling}, chain.scale_rest = {scale_rest}: wanted at least 1"
        );
        in_range("chain.scale_first", self.chain.scale_first, -100.0..=100.0)?;
        ensure!(
            self.train_rerank.storage == TrainingDtype::Full,
            "train_rerank.storage: the contrastive model is trained in full numbers only; wanted \"full\""
        );
        in_range("data.bpe_dropout", self.data.bpe_dropout.into(), 0.0..=1.0)?;
        in_range("data.rerank_bpe_dropout", self.data.rerank_bpe_dropout.into(), 0.0..=1.0)?;
        in_range("data.caption_drop", self.data.caption_drop.into(), 0.0..=1.0)?;
        in_range("data.token_noise", self.data.token_noise.into(), 0.0..=1.0)?;
        in_range("data.reconstructed", self.data.reconstructed.into(), 0.0..=1.0)?;
        in_range("relax.beta", self.relax.beta, 0.0..=1e6)?;
        in_range("relax.tau_end", self.relax.tau_end, 1e-4..=1.0)?;
        ensure!(
            (self.prior.grid, self.prior.image_vocab) == (self.dvae.grid(), self.dvae.vocab),
            "prior.grid = {}, prior.image_vocab = {}: the dVAE makes a grid of {} with {} codes",
            self.prior.grid,
            self.prior.image_vocab,
            self.dvae.grid(),
            self.dvae.vocab
        );
        Ok(())
    }
}

fn in_range(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    ensure!(range.contains(&value), "{key} = {value}: wanted {:e} to {:e}", range.start(), range.end());
    Ok(())
}

/// Bases of bases that a file may have.
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

/// The table in `text`, laid over the preset that it names as its base; without a name over `usual`, if there is one.
fn over_its_base(text: &str, usual: Option<&str>, depth: usize) -> Result<Table> {
    let mut differences: Table = text.parse()?;
    let base = match (differences.remove("preset"), usual) {
        (Some(Value::String(base)), _) => base,
        (Some(other), _) => bail!("preset = {other}: wanted one of {}", preset_names()),
        (None, Some(usual)) => usual.to_string(),
        (None, None) => return Ok(differences),
    };
    ensure!(depth < DEEPEST, "presets name each other as their base");
    let wanted = || format!("preset {base:?}: wanted one of {}", preset_names());
    let mut table = preset(&base, depth + 1).with_context(wanted)??;
    merge(&mut table, differences, "")?;
    Ok(table)
}

fn preset_names() -> String {
    PRESETS.map(|(name, _)| name).join(", ")
}

/// Keys that no preset has and that may be given.
const OPTIONAL: [&str; 1] = ["data.scenes"];

/// Lays `differences` over `table`; only keys that exist or are optional may change.
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

/// `value` in the type of `old`; whole numbers may stand for fractions.
fn like(old: &Value, value: Value, path: &str) -> Result<Value> {
    match (old, value) {
        (Value::Float(_), Value::Integer(value)) => Ok(Value::Float(value as f64)),
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

fn hint(key: &str, known: &[String], prefix: &str) -> String {
    match known.iter().min_by_key(|name| edit_distance(key, name)) {
        Some(nearest) => format!("; did you mean {prefix}{nearest}?"),
        None => String::new(),
    }
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(set: &str) -> String {
        format!("{:#}", Config::resolve("tiny", &[set.to_string()]).unwrap_err())
    }

    #[test]
    fn every_preset_resolves_and_survives_its_own_toml() {
        for (name, _) in PRESETS {
            let config = Config::resolve(name, &[]).unwrap();
            assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn presets_of_the_paper_and_of_scenes_encode_online_and_the_small_ones_read_stored_tokens() {
        for (name, _) in PRESETS {
            let is_online = ["paper", "5.6b", "2.8b", "embedded"].contains(&name);
            let expected = if is_online { Encoding::Online } else { Encoding::Stored };
            assert_eq!(Config::resolve(name, &[]).unwrap().data.encode, expected, "{name}");
        }
        assert!(error("data.encode='never'").contains("expected `stored` or `online`"));
    }

    #[test]
    fn scenes_are_asked_for_by_a_key_that_no_preset_has() {
        let sets = ["data.scenes={ packages = 'p', size = 128, shares = { panels = 1.0 } }".to_string()];
        let config = Config::resolve("embedded", &sets).unwrap();
        let scenes = config.data.scenes.as_ref().unwrap();
        assert_eq!((scenes.size, scenes.seed, scenes.shares.panels), (128, 0, 1.0));
        assert_eq!(toml::from_str::<Config>(&config.to_toml().unwrap()).unwrap(), config);
        assert!(error("data.scenes={ size = 128 }").contains("packages"));
    }

    #[test]
    fn sets_change_one_value() {
        let sets = ["prior.n_layers=12".to_string(), "train_dvae.lr=1".to_string()];
        let config = Config::resolve("tiny", &sets).unwrap();
        assert_eq!((config.prior.n_layers, config.train_dvae.lr), (12, 1.0));
    }

    #[test]
    fn a_misspelt_key_names_the_nearest() {
        assert_eq!(
            error("prior.n_layer=3"),
            "unknown config key prior.n_layer; did you mean prior.n_layers?"
        );
        assert_eq!(error("pior.n_layers=3"), "unknown config key pior; did you mean prior?");
    }

    #[test]
    fn bad_values_are_refused() {
        assert!(error("prior.n_layers=\"six\"").contains("wanted a value of type integer"));
        assert!(error("prior.n_layers").contains("wanted key=value"));
        assert!(error("prior.n_heads=5").contains("multiple of prior.n_heads"));
        assert!(error("train_dvae.lr=nan").contains("train_dvae.lr = NaN: wanted"));
        assert!(error("data.bpe_dropout=7").contains("data.bpe_dropout = 7"));
        assert!(error("relax.tau_end=0").contains("relax.tau_end = 0"));
        assert!(error("train_prior.storage='f16'").contains("wanted cpu.precision"));
        assert!(error("train_prior.steps=0").contains("wanted at least 1"));
        assert!(error("dvae.vocab=32").contains("prior.image_vocab = 64: the dVAE makes"));
    }
}
