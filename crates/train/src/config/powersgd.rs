//! How the prior's gradients are compressed between replicas.

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::dist::powersgd::PowerSgdSettings;
use crate::optim::Moments;
use tessera_kernels::SmallFloat;

/// The paper's rank, as a fraction of the model's width (§E.2: 896 of 3,968 columns).
const PAPER: f64 = 0.23;

/// The default scale of both factors. Values up to 16,000 then fit 1-6-9, and its smallest normal
/// number stands for 4e-15.
const SCALE: f32 = 1.0 / 1024.0;

/// Compression of the prior's gradients between replicas by PowerSGD (paper §2.5, §E.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PowerSgdConfig {
    /// The number of columns of each factor, over all shards together.
    pub rank: CompressionRank,
    /// What error buffers and factors are stored and sent in: `small` is the paper's 1-6-9.
    pub storage: Moments,
    /// The scale of the first factor. It moves the values into the range of 1-6-9.
    pub p_scale: f32,
    /// The scale of the second factor.
    pub q_scale: f32,
    /// Whether each update draws new random matrices. The paper found that this hurts a lot; it is here
    /// to be measured.
    pub resample: bool,
}

impl Default for PowerSgdConfig {
    fn default() -> PowerSgdConfig {
        PowerSgdConfig {
            rank: CompressionRank::Off,
            storage: Moments::Small,
            p_scale: SCALE,
            q_scale: SCALE,
            resample: false,
        }
    }
}

impl PowerSgdConfig {
    /// Returns the settings for a prior of width `d_model`, or `None` if gradients are not
    /// compressed.
    pub fn settings(&self, d_model: usize, seed: u64) -> Option<PowerSgdSettings> {
        let rank = match self.rank {
            CompressionRank::Off => return None,
            CompressionRank::Paper => ((PAPER * d_model as f64).round() as usize).max(1),
            CompressionRank::Columns(columns) => columns,
        };
        let storage = match self.storage {
            Moments::Full => None,
            Moments::Small => Some(SmallFloat::OneSixNine),
        };
        let (p_scale, q_scale, resample) = (self.p_scale, self.q_scale, self.resample);
        Some(PowerSgdSettings { rank, storage, p_scale, q_scale, seed, resample })
    }
}

/// The number of columns of PowerSGD's factors (`powersgd.rank`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum CompressionRank {
    /// Gradients are not compressed.
    Off,
    /// The paper's: 0.23 of the model's width.
    Paper,
    /// This many.
    Columns(usize),
}

impl TryFrom<Value> for CompressionRank {
    type Error = String;

    fn try_from(value: Value) -> Result<CompressionRank, String> {
        match &value {
            Value::String(name) if name == "off" => Ok(CompressionRank::Off),
            Value::String(name) if name == "paper" => Ok(CompressionRank::Paper),
            Value::Integer(columns) if *columns >= 1 => Ok(CompressionRank::Columns(*columns as usize)),
            _ => Err(format!("powersgd.rank = {value}: wanted \"off\", \"paper\" or a number from 1")),
        }
    }
}

impl From<CompressionRank> for Value {
    fn from(rank: CompressionRank) -> Value {
        match rank {
            CompressionRank::Off => Value::from("off"),
            CompressionRank::Paper => Value::from("paper"),
            CompressionRank::Columns(columns) => Value::from(columns as i64),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn rank_is_off_the_papers_or_a_number() {
        let settings = |rank: &str| {
            let config = Config::resolve("tiny", &[format!("powersgd.rank={rank}")]);
            config.map(|config| config.powersgd.settings(3968, 0).map(|settings| settings.rank))
        };
        assert_eq!(settings("'off'").unwrap(), None);
        assert_eq!(settings("'paper'").unwrap(), Some(913));
        assert_eq!(settings("12").unwrap(), Some(12));
        for wrong in ["0", "'all'", "true"] {
            let error = format!("{:#}", settings(wrong).unwrap_err());
            assert!(error.contains("wanted \"off\", \"paper\" or a number from 1"), "{error}");
        }
    }
}
