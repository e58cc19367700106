//! A fraction of a set, in percent or in parts per million. The paper holds out 2,424 of a million
//! pictures (§B.2).

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use tessera_base::random::below;

/// One percent in parts per million.
const PERCENT: u32 = 10_000;
/// The complete set in parts per million.
const ALL: u32 = 1_000_000;

/// A fraction between 0 and 100%. Serialized, an integer percentage is a number, and any other
/// value is a text such as `2424ppm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Serialized", into = "Serialized")]
pub struct Share {
    ppm: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Serialized {
    Percent(u32),
    Text(String),
}

impl Share {
    /// Returns a share of `percent`; values above 100 are clamped to 100.
    pub const fn percent(percent: u32) -> Share {
        let ppm = percent.saturating_mul(PERCENT);
        Share { ppm: if ppm < ALL { ppm } else { ALL } }
    }

    /// Draws from `rng` and returns true with this share's probability.
    pub fn draws(self, rng: &mut impl Rng) -> bool {
        below(rng, u64::from(ALL)) < u64::from(self.ppm)
    }
}

impl FromStr for Share {
    type Err = anyhow::Error;

    /// Parses percentages such as `5`, `5%`, `0.25` and `0.25%`, and parts per million such as
    /// `2424ppm`.
    fn from_str(text: &str) -> Result<Share> {
        let error_text = || format!("{text:?}: wanted a share such as 5, 0.25% or 2424ppm, at most 100%");
        let (number, unit) = match text.strip_suffix("ppm") {
            Some(number) => (number, 1.0),
            None => (text.strip_suffix('%').unwrap_or(text), f64::from(PERCENT)),
        };
        let ppm = number.trim().parse::<f64>().ok().with_context(error_text)? * unit;
        ensure!((0.0..=f64::from(ALL)).contains(&ppm), error_text());
        ensure!(
            (ppm - ppm.round()).abs() < 1e-6,
            "{text:?}: wanted a whole number of parts per million (a percent has {PERCENT})"
        );
        Ok(Share { ppm: ppm.round() as u32 })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ppm % PERCENT {
            0 => write!(f, "{}%", self.ppm / PERCENT),
            _ => write!(f, "{}ppm", self.ppm),
        }
    }
}

impl From<Share> for Serialized {
    fn from(share: Share) -> Serialized {
        match share.ppm % PERCENT {
            0 => Serialized::Percent(share.ppm / PERCENT),
            _ => Serialized::Text(share.to_string()),
        }
    }
}

impl TryFrom<Serialized> for Share {
    type Error = anyhow::Error;

    fn try_from(serialized: Serialized) -> Result<Share> {
        match serialized {
            Serialized::Percent(percent) => percent.to_string().parse(),
            Serialized::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_base::random::{Purpose, item_rng};

    #[test]
    fn percent_and_ppm_are_parsed() {
        let ppm = |text: &str| text.parse::<Share>().unwrap().ppm;
        assert_eq!(
            ["5", "5%", "0.25%", "0.25", "2424ppm", "0", "100"].map(ppm),
            [50_000, 50_000, 2_500, 2_500, 2_424, 0, ALL]
        );
        for wrong in ["", "-1", "101", "2000000ppm", "half", "nan", "0.00001", "1.5ppm", "inf"] {
            assert!(wrong.parse::<Share>().unwrap_err().to_string().contains("wanted"), "{wrong}");
        }
    }

    #[test]
    fn integer_percentages_are_serialized_as_numbers() {
        for (text, json) in [("8", "8"), ("2424ppm", "\"2424ppm\""), ("0", "0")] {
            let share: Share = text.parse().unwrap();
            assert_eq!(serde_json::to_string(&share).unwrap(), json);
            assert_eq!(serde_json::from_str::<Share>(json).unwrap(), share);
        }
    }

    /// Earlier versions split sets by integer percentages. Such sets keep their split: a draw is
    /// below `p` of 100 exactly if it is below `10,000 p` of a million.
    #[test]
    fn percent_shares_draw_the_same_items_as_earlier_versions() {
        for index in 0..5_000 {
            let rng = || item_rng(1, Purpose::Split, 0, index);
            assert_eq!(Share::percent(8).draws(&mut rng()), below(&mut rng(), 100) < 8);
        }
    }

    #[test]
    fn fraction_of_draws_matches_the_share() {
        let share: Share = "2424ppm".parse().unwrap();
        let drawn = (0..200_000).filter(|&i| share.draws(&mut item_rng(0, Purpose::Split, 0, i))).count();
        assert!((400..570).contains(&drawn), "{drawn}, wanted about 485");
    }
}
