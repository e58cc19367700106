//! What a run writes while it trains: a bar for people, `metrics.jsonl` and TensorBoard events for programs.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tessera_data::atomic;

use crate::config::FitConfig;
use crate::events::EventWriter;

/// Names and values.
pub type Metrics = Vec<(&'static str, f64)>;

/// The outputs of one run.
pub struct Log {
    bar: ProgressBar,
    metrics: BufWriter<File>,
    events: EventWriter,
    started: Instant,
    first_step: u64,
    /// Sums of the training figures since the last line, and how many.
    sums: Metrics,
    n_sums: u32,
    n_skipped: u32,
}

impl Log {
    /// Continues the log of a run at `step`; lines of later steps, left by a killed run, are dropped.
    pub fn open(dir: &Path, step: u64, steps: u64) -> Result<Log> {
        let path = dir.join("metrics.jsonl");
        atomic::write(&path, lines_up_to(&path, step)?.as_bytes())?;
        let metrics = BufWriter::new(File::options().append(true).open(&path)?);
        let bar = ProgressBar::new(steps).with_position(step);
        let style = "{elapsed_precise} {bar:30} {pos}/{len} {per_sec} eta {eta} {msg}";
        bar.set_style(ProgressStyle::with_template(style)?);
        bar.reset_eta();
        let events = EventWriter::create(dir, step)?;
        Ok(Log {
            bar,
            metrics,
            events,
            started: Instant::now(),
            first_step: step,
            sums: Vec::new(),
            n_sums: 0,
            n_skipped: 0,
        })
    }

    /// Counts a training step, without figures one that was skipped; every `log_every` steps writes the figures' means.
    pub fn train(&mut self, step: u64, figures: &[(&'static str, f64)], config: &FitConfig) -> Result<()> {
        match (figures.is_empty(), self.sums.is_empty()) {
            (true, _) => self.n_skipped += 1,
            (_, true) => self.sums = figures.to_vec(),
            (_, false) => self.sums.iter_mut().zip(figures).for_each(|(sum, figure)| sum.1 += figure.1),
        }
        self.n_sums += u32::from(!figures.is_empty());
        self.bar.set_position(step);
        if !step.is_multiple_of(config.log_every) {
            return Ok(());
        }
        let n = f64::from(std::mem::take(&mut self.n_sums));
        let skipped = std::mem::take(&mut self.n_skipped);
        let mut means: Metrics = self.sums.drain(..).map(|(name, sum)| (name, sum / n)).collect();
        let seconds = self.started.elapsed().as_secs_f64();
        means.push(("pictures_per_second", (step - self.first_step) as f64 * config.batch as f64 / seconds));
        if skipped > 0 {
            means.push(("updates_skipped", f64::from(skipped)));
        }
        if means[0].0 == "loss" {
            self.bar.set_message(format!("loss {:.4}", means[0].1));
        }
        self.write("train", step, &means)
    }

    /// Every `log_every` steps writes the gradient scales and the sizes of the gradients toward resblocks, both as binary
    /// logarithms, first resblock first.
    pub fn scales(&mut self, step: u64, scales: &[f64], entering: &[f64], config: &FitConfig) -> Result<()> {
        if step.is_multiple_of(config.log_every) {
            let [scales, entering] =
                [scales, entering].map(|all| all.iter().map(|x| (x * 1e3).round() / 1e3));
            let line = json!({
                "split": "resblocks",
                "step": step,
                "scale_log2": scales.collect::<Vec<_>>(),
                "gradient_log2": entering.collect::<Vec<_>>(),
            });
            writeln!(self.metrics, "{line}")?;
            self.metrics.flush()?;
        }
        Ok(())
    }

    /// Writes figures on held-out data.
    pub fn validation(&mut self, step: u64, figures: &Metrics) -> Result<()> {
        if figures.is_empty() {
            return Ok(());
        }
        let text: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let line = format!("step {step}: {}", text.join(", "));
        self.bar.suspend(|| eprintln!("{line}"));
        self.write("val", step, figures)
    }

    fn write(&mut self, split: &str, step: u64, figures: &Metrics) -> Result<()> {
        let mut line = Map::from_iter([("step".into(), json!(step)), ("split".into(), json!(split))]);
        line.extend(figures.iter().map(|(name, value)| (name.to_string(), json!(value))));
        writeln!(self.metrics, "{}", Value::Object(line))?;
        self.metrics.flush()?;
        self.events.scalars(split, step, figures)
    }
}

fn lines_up_to(path: &Path, step: u64) -> Result<String> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let step_of = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
    let kept = text.lines().filter(|line| step_of(line).is_some_and(|at| at <= step));
    Ok(kept.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_behind_the_checkpoint_and_half_lines_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(lines_up_to(&path, 10).unwrap(), "");
        fs::write(&path, "{\"step\":5}\n{\"step\":10}\n{\"step\":15}\n{\"st").unwrap();
        assert_eq!(lines_up_to(&path, 10).unwrap(), "{\"step\":5}\n{\"step\":10}\n");
    }
}
