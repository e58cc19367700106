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
    /// Pictures (or pairs, or captions) that it was measured on; of two sets that are compared, those that were drawn.
    pub n: usize,
    /// Real pictures that they are compared with; none if there is one set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_real: Option<usize>,
    /// Its standard error, or the spread over splits where that is the custom; none if it has none.
    pub plus_minus: Option<f64>,
    /// Whose features it was measured by, since others give other figures; empty if it needs none.
    pub features: String,
}

impl Report {
    /// A figure without an error, unit or features.
    pub fn new(name: &str, value: f64, n: usize) -> Report {
        let (unit, features) = (String::new(), String::new());
        Report { name: name.into(), value, unit, n, n_real: None, plus_minus: None, features }
    }
}

impl Report {
    /// How many pictures, of each set if there are two.
    pub fn counted(&self) -> String {
        match self.n_real {
            None => self.n.to_string(),
            Some(real) => format!("{real} real, {} drawn", self.n),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A KID of a good model is a few thousandths.
        let decimals = if self.value.abs() < 0.1 { 6 } else { 4 };
        write!(f, "{:<24} {:>12.decimals$}", self.name, self.value)?;
        if let Some(error) = self.plus_minus {
            write!(f, " ± {error:.decimals$}")?;
        }
        if !self.unit.is_empty() {
            write!(f, " {}", self.unit)?;
        }
        write!(f, "   (n = {}", self.counted())?;
        if !self.features.is_empty() {
            write!(f, "; {}", self.features)?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_and_small_figures_have_more_digits() {
        let report = Report {
            plus_minus: Some(0.0003),
            features: "Inception of 2015, pool 3".into(),
            ..Report::new("KID", 0.0021234, 1000)
        };
        let line = report.to_string();
        assert!(line.ends_with("0.002123 ± 0.000300   (n = 1000; Inception of 2015, pool 3)"), "{line}");
        let report = Report { n_real: Some(7), ..Report::new("KID", 0.5, 4) };
        assert!(report.to_string().ends_with("0.5000   (n = 7 real, 4 drawn)"), "{report}");
        let report = Report { unit: "%".into(), ..Report::new("R-precision", 87.5, 200) };
        assert!(report.to_string().ends_with("     87.5000 %   (n = 200)"), "{report}");
    }
}
