//! Training curves as a picture: one panel a metric, from the `metrics.jsonl` of one run or of several to compare.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use serde_json::Value;

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (420, 260);
/// Panels a row.
const COLUMNS: usize = 2;
/// Curves in a panel that are still told apart by name.
const NAMED: usize = 6;
/// Colours of such curves.
const COLOURS: [RGBColor; NAMED] = [
    RGBColor(60, 90, 160),
    RGBColor(200, 60, 40),
    RGBColor(40, 140, 90),
    RGBColor(170, 110, 20),
    RGBColor(120, 60, 150),
    RGBColor(90, 90, 90),
];

/// Points (step, value).
type Points = Vec<(f64, f64)>;

/// A panel's curves by name, in the order in which they came.
#[derive(Default)]
struct Panel(Vec<(String, Points)>);

impl Panel {
    fn push(&mut self, curve: &str, point: (f64, f64)) {
        match self.0.iter_mut().find(|(name, _)| name == curve) {
            Some((_, points)) => points.push(point),
            None => self.0.push((curve.to_string(), vec![point])),
        }
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.0.iter().flat_map(|(_, points)| points)
    }
}

/// Panels by the name of the metric; a metric with a value for each resblock has a panel for each run.
type Panels = BTreeMap<String, Panel>;

/// Draws every metric of the runs that `wanted` names (all if empty) as an SVG; metrics with a value for each resblock only if
/// they are named.
///
/// # Errors
/// If a file is missing or none holds any of the metrics.
pub fn curves(runs: &[PathBuf], wanted: &[String]) -> Result<String> {
    let mut panels = Panels::new();
    for run in runs {
        let path = run.join("metrics.jsonl");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("no metrics at {}", path.display()))?;
        read(&text, &name_of(run, runs), wanted, &mut panels);
    }
    ensure!(!panels.is_empty(), "the runs hold none of the metrics {}", wanted.join(", "));
    draw(&panels).map_err(|error| anyhow!("cannot draw the curves: {error}"))
}

/// What a run is called among others: its folder's name, or all of its path if another is called so too. Nothing if it is alone.
fn name_of(run: &Path, runs: &[PathBuf]) -> String {
    let namesakes = runs.iter().filter(|other| other.file_name() == run.file_name()).count();
    match (runs.len(), namesakes, run.file_name()) {
        (1, ..) => String::new(),
        (_, 1, Some(name)) => name.to_string_lossy().into_owned(),
        _ => run.display().to_string(),
    }
}

fn read(text: &str, run: &str, wanted: &[String], panels: &mut Panels) {
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(step), Some(split), Some(metrics)) =
            (line["step"].as_f64(), line["split"].as_str(), line.as_object())
        else {
            continue;
        };
        for (name, value) in metrics.iter().filter(|(name, _)| *name != "step") {
            let named = wanted.contains(name);
            match value {
                Value::Number(value) if named || wanted.is_empty() => {
                    let point = (step, value.as_f64().unwrap_or_default());
                    panels.entry(name.clone()).or_default().push(format!("{run} {split}").trim(), point);
                }
                Value::Array(values) if named => {
                    let panel = panels.entry(format!("{name}, {run}").trim_end_matches(", ").to_string());
                    let panel = panel.or_default();
                    // What is not finite is `null`: the gradient of a resblock that has none.
                    for (i, value) in
                        values.iter().enumerate().filter_map(|(i, value)| Some((i, value.as_f64()?)))
                    {
                        panel.push(&i.to_string(), (step, value));
                    }
                }
                _ => {}
            }
        }
    }
}

fn draw(panels: &Panels) -> Result<String, Box<dyn std::error::Error>> {
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let mut svg = String::new();
    {
        let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (name, panel)) in root.split_evenly((rows, columns)).iter().zip(panels) {
            draw_panel(area, name, panel)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    name: &str,
    panel: &Panel,
) -> Result<(), Box<dyn std::error::Error>> {
    let (x0, x1) = range(panel.points().map(|p| p.0));
    let (y0, y1) = range(panel.points().map(|p| p.1));
    let mut chart = ChartBuilder::on(area)
        .caption(name.replace('_', " "), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(48)
        .build_cartesian_2d(x0..x1, y0..y1)?;
    chart.configure_mesh().x_labels(5).y_labels(5).light_line_style(WHITE).draw()?;
    let n = panel.0.len();
    for (i, (curve, points)) in panel.0.iter().enumerate() {
        let colour = if n <= NAMED { COLOURS[i] } else { rainbow(i as f64 / (n - 1) as f64) };
        let width = if n <= NAMED { 2 } else { 1 };
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(width));
        let drawn = chart.draw_series(line)?;
        if 1 < n && n <= NAMED {
            let sample = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2));
            drawn.label(curve).legend(sample);
        }
    }
    if 1 < n && n <= NAMED {
        let labels = &mut chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8)).draw()?;
    }
    Ok(())
}

/// Blue for the first of many curves, over green, to red for the last.
fn rainbow(share: f64) -> RGBColor {
    let (red, green, blue) = HSLColor(0.66 * (1.0 - share), 0.7, 0.45).rgb();
    RGBColor(red, green, blue)
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

    const TEXT: &str = "{\"step\":1,\"split\":\"train\",\"loss\":2.5}\n{\"step\":2,\"split\":\"val\",\"psnr_db\":9.0}\n\
        {\"step\":2,\"split\":\"resblocks\",\"scale_log2\":[13.0,12.5]}\n{\"st";

    #[test]
    fn every_metric_has_a_panel_and_damaged_lines_are_skipped() {
        let mut panels = Panels::new();
        read(TEXT, "", &[], &mut panels);
        assert_eq!(panels.keys().collect::<Vec<_>>(), ["loss", "psnr_db"]);
        assert_eq!(panels["loss"].0, [("train".to_string(), vec![(1.0, 2.5)])]);
        let svg = draw(&panels).unwrap();
        assert!(svg.contains("psnr db") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn runs_of_the_same_name_are_told_apart_by_their_paths() {
        let runs = ["a/prior", "b/prior", "b/other"].map(PathBuf::from);
        assert_eq!(runs.each_ref().map(|run| name_of(run, &runs)), ["a/prior", "b/prior", "other"]);
        assert_eq!(name_of(&runs[0], &runs[..1]), "");
    }

    #[test]
    fn runs_share_a_panel_and_resblocks_have_one_for_each_run() {
        let mut panels = Panels::new();
        let wanted = ["loss", "scale_log2"].map(String::from);
        read(TEXT, "one", &wanted, &mut panels);
        read(TEXT, "two", &wanted, &mut panels);
        assert_eq!(panels.keys().collect::<Vec<_>>(), ["loss", "scale_log2, one", "scale_log2, two"]);
        let names: Vec<&str> = panels["loss"].0.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["one train", "two train"]);
        assert_eq!(panels["scale_log2, two"].0[1], ("1".to_string(), vec![(2.0, 12.5)]));
        let svg = draw(&panels).unwrap();
        assert!(svg.contains("one train") && svg.contains("scale log2, two"));
    }
}
