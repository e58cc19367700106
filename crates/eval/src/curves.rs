//! Training curves as a picture: one panel a metric, from a run's `metrics.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use serde_json::Value;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (420, 260);
/// Panels a row.
const COLUMNS: usize = 2;

/// Points (step, value) of each metric, by `split` and name.
type Series = BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>>;

/// Draws every metric of `run/metrics.jsonl` that `wanted` names (all if empty) as an SVG.
///
/// # Errors
/// If the file is missing or holds none of the metrics.
pub fn curves(run: &Path, wanted: &[String]) -> Result<String> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("no metrics at {}", path.display()))?;
    let mut series = read(&text);
    if !wanted.is_empty() {
        series.retain(|name, _| wanted.contains(name));
    }
    ensure!(!series.is_empty(), "{} holds none of the metrics {}", path.display(), wanted.join(", "));
    draw(&series).map_err(|error| anyhow!("cannot draw the curves: {error}"))
}

fn read(text: &str) -> Series {
    let mut series = Series::new();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(step), Some(split), Some(metrics)) =
            (line["step"].as_f64(), line["split"].as_str(), line.as_object())
        else {
            continue;
        };
        for (name, value) in metrics.iter().filter(|(name, _)| *name != "step") {
            if let Some(value) = value.as_f64() {
                let splits = series.entry(name.clone()).or_default();
                splits.entry(split.to_string()).or_default().push((step, value));
            }
        }
    }
    series
}

fn draw(series: &Series) -> Result<String, Box<dyn std::error::Error>> {
    let rows = series.len().div_ceil(COLUMNS);
    let mut svg = String::new();
    {
        let size = (PANEL.0 * COLUMNS as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, (name, splits)) in root.split_evenly((rows, COLUMNS)).iter().zip(series) {
            let points = || splits.values().flatten();
            let (x0, x1) = range(points().map(|p| p.0));
            let (y0, y1) = range(points().map(|p| p.1));
            let mut chart = ChartBuilder::on(panel)
                .caption(name.replace('_', " "), ("sans-serif", 15))
                .margin(8)
                .x_label_area_size(22)
                .y_label_area_size(48)
                .build_cartesian_2d(x0..x1, y0..y1)?;
            chart.configure_mesh().x_labels(5).y_labels(5).light_line_style(WHITE).draw()?;
            for (split, points) in splits {
                let colour = if split == "val" { RGBColor(200, 60, 40) } else { RGBColor(60, 90, 160) };
                chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

/// Smallest and largest value, apart.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let pad = ((high - low) * 0.05).max(1e-6);
    (low - pad, high + pad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_panel_and_damaged_lines_are_skipped() {
        let text = "{\"step\":1,\"split\":\"train\",\"loss\":2.5}\n{\"step\":2,\"split\":\"val\",\"psnr_db\":9.0}\n{\"st";
        let series = read(text);
        assert_eq!(series.keys().collect::<Vec<_>>(), ["loss", "psnr_db"]);
        assert_eq!(series["loss"]["train"], [(1.0, 2.5)]);
        let svg = draw(&series).unwrap();
        assert!(svg.contains("psnr db") && svg.ends_with("</svg>\n"));
    }
}
