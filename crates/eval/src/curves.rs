//! Plots of training curves from the `metrics.jsonl` of one or several runs, with one panel per
//! metric.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::plot::{Frame, Series, XAxis, draw_lines, svg};

/// The size of a panel in pixels.
const PANEL: (u32, u32) = (420, 260);
/// The number of panels in a row.
const COLUMNS: usize = 2;
/// The curves of a panel, in the order in which they were added. Points are (step, value), without
/// an error.
#[derive(Default)]
struct Panel(Vec<Series>);

impl Panel {
    fn push(&mut self, curve: &str, (step, value): (f64, f64)) {
        let point = (step, value, None);
        match self.0.iter_mut().find(|(name, _)| name == curve) {
            Some((_, points)) => points.push(point),
            None => self.0.push((curve.to_string(), vec![point])),
        }
    }
}

/// Panels by the name of the metric. A metric with one value per resblock has one panel per run.
type Panels = BTreeMap<String, Panel>;

/// Plots the `requested` metrics of the runs as an SVG. If `requested` is empty, it plots all
/// metrics, except those with one value per resblock.
///
/// # Errors
/// If a file is missing, or no file contains any of the metrics.
pub fn curves(runs: &[PathBuf], requested: &[String]) -> Result<String> {
    let mut panels = Panels::new();
    for run in runs {
        let path = run.join("metrics.jsonl");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("no metrics at {}", path.display()))?;
        read(&text, &name_of(run, runs), requested, &mut panels);
    }
    ensure!(!panels.is_empty() || !requested.is_empty(), "the runs have logged no metrics yet");
    ensure!(!panels.is_empty(), "the runs hold none of the metrics {}", requested.join(", "));
    draw(&panels).map_err(|error| anyhow!("cannot draw the curves: {error}"))
}

/// The name of a run in the legend: the name of its folder, or its path if another run has the same
/// name. Empty if there is only one run.
fn name_of(run: &Path, runs: &[PathBuf]) -> String {
    let namesakes = runs.iter().filter(|other| other.file_name() == run.file_name()).count();
    match (runs.len(), namesakes, run.file_name()) {
        (1, ..) => String::new(),
        (_, 1, Some(name)) => name.to_string_lossy().into_owned(),
        _ => run.display().to_string(),
    }
}

/// Adds the `requested` metrics in the `text` of a `metrics.jsonl` to `panels`. Damaged lines are
/// skipped.
fn read(text: &str, run: &str, requested: &[String], panels: &mut Panels) {
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(step), Some(split), Some(metrics)) =
            (line["step"].as_f64(), line["split"].as_str(), line.as_object())
        else {
            continue;
        };
        for (name, value) in metrics.iter().filter(|(name, _)| *name != "step") {
            let is_named = requested.contains(name);
            match value {
                Value::Number(value) if is_named || requested.is_empty() => {
                    let point = (step, value.as_f64().unwrap_or_default());
                    panels.entry(name.clone()).or_default().push(format!("{run} {split}").trim(), point);
                }
                Value::Array(values) if is_named => {
                    let panel = panels.entry(format!("{name}, {run}").trim_end_matches(", ").to_string());
                    let panel = panel.or_default();
                    // Non-finite values are `null`, such as the logarithm of a gradient of 0.
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
    svg((PANEL.0 * columns as u32, PANEL.1 * rows as u32), |root| {
        for (area, (name, panel)) in root.split_evenly((rows, columns)).iter().zip(panels) {
            let title = name.replace('_', " ");
            let frame = Frame { title: &title, x_label: "", y_label: "", x_axis: XAxis::Linear };
            draw_lines(area, &frame, &panel.0)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"step\":1,\"split\":\"train\",\"loss\":2.5}\n{\"step\":2,\"split\":\"val\",\"psnr_db\":9.0}\n\
        {\"step\":2,\"split\":\"resblocks\",\"scale_log2\":[13.0,12.5]}\n{\"st";

    #[test]
    fn each_metric_has_a_panel_and_damaged_lines_are_skipped() {
        let mut panels = Panels::new();
        read(TEXT, "", &[], &mut panels);
        assert_eq!(panels.keys().collect::<Vec<_>>(), ["loss", "psnr_db"]);
        assert_eq!(panels["loss"].0, [("train".to_string(), vec![(1.0, 2.5, None)])]);
        let svg = draw(&panels).unwrap();
        assert!(svg.contains("psnr db") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn runs_with_the_same_folder_name_are_named_by_their_paths() {
        let runs = ["a/prior", "b/prior", "b/other"].map(PathBuf::from);
        assert_eq!(runs.each_ref().map(|run| name_of(run, &runs)), ["a/prior", "b/prior", "other"]);
        assert_eq!(name_of(&runs[0], &runs[..1]), "");
    }

    #[test]
    fn runs_share_panels_except_for_metrics_per_resblock() {
        let mut panels = Panels::new();
        let requested = ["loss", "scale_log2"].map(String::from);
        read(TEXT, "one", &requested, &mut panels);
        read(TEXT, "two", &requested, &mut panels);
        assert_eq!(panels.keys().collect::<Vec<_>>(), ["loss", "scale_log2, one", "scale_log2, two"]);
        let names: Vec<&str> = panels["loss"].0.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["one train", "two train"]);
        assert_eq!(panels["scale_log2, two"].0[1], ("1".to_string(), vec![(2.0, 12.5, None)]));
        let svg = draw(&panels).unwrap();
        assert!(svg.contains("one train") && svg.contains("scale log2, two"));
    }
}
