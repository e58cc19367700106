//! The result of a measurement: a figure with its name, unit, sample size and error.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The usual name of the metric, such as "FID".
    pub name: String,
    /// The value.
    pub value: f64,
    /// The unit. Empty for a plain number.
    pub unit: String,
    /// The number of pictures, pairs or captions that were measured. If two sets are compared, the
    /// number of generated pictures.
    pub n: usize,
    /// The number of real pictures. `None` if no two sets are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_real: Option<usize>,
    /// The standard error; for metrics that are usually reported that way, the standard deviation
    /// over splits or subsets. `None` if there is none.
    pub plus_minus: Option<f64>,
    /// The name of the feature extractor, on which the value depends. Empty if the metric needs
    /// none.
    pub features: String,
}

impl Report {
    /// Creates a figure without an error, unit or features.
    pub fn new(name: &str, value: f64, n: usize) -> Report {
        let (unit, features) = (String::new(), String::new());
        Report { name: name.into(), value, unit, n, n_real: None, plus_minus: None, features }
    }
}

impl Report {
    /// Returns the number of pictures as text, for each set if there are two.
    pub fn counted(&self) -> String {
        match self.n_real {
            None => self.n.to_string(),
            Some(real) => format!("{real} real, {} drawn", self.n),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // More decimals for small values: the KID of a good model is a few thousandths.
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
    fn line_contains_all_fields_and_small_values_have_more_decimals() {
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
