//! What every measurement returns: a figure with its name, unit, count and error.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was measured, as the field calls it: "FID".
    pub name: String,
    /// The figure.
    pub value: f64,
    /// What it counts: "" for a plain number.
    pub unit: String,
    /// Pictures (or pairs, or captions) that it was measured on.
    pub n: usize,
    /// Its standard error, or the spread over splits where that is the custom; none if it has none.
    pub plus_minus: Option<f64>,
    /// Whose features it was measured by, since others give other figures; empty if it needs none.
    pub features: String,
}

impl Report {
    /// A figure without an error, unit or features.
    pub fn new(name: &str, value: f64, n: usize) -> Report {
        Report { name: name.into(), value, unit: String::new(), n, plus_minus: None, features: String::new() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<24} {:>12.4}", self.name, self.value)?;
        if let Some(error) = self.plus_minus {
            write!(f, " ± {error:.4}")?;
        }
        if !self.unit.is_empty() {
            write!(f, " {}", self.unit)?;
        }
        write!(f, "   (n = {}", self.n)?;
        if !self.features.is_empty() {
            write!(f, "; {}", self.features)?;
        }
        write!(f, ")")
    }
}
