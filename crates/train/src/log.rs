//! Output of a training run: progress for a reporter, `metrics.jsonl`, and TensorBoard events.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use image::RgbImage;
use serde_json::{Map, Value, json};
use tessera_base::atomic;
use tessera_base::{Progress, Reporter};
use tessera_data::picture::encode_png;

use crate::config::FitConfig;
use crate::tensorboard::{EventWriter, Setting};

/// Names and values of metrics.
pub type Metrics = Vec<(&'static str, f64)>;

/// The outputs of one run.
pub struct Log<'a> {
    reporter: &'a dyn Reporter,
    /// Whether something could not be written. This is reported only once.
    is_incomplete: bool,
    /// Whether there was a warning about the metrics.
    has_warned: bool,
    steps: u64,
    /// The last mean loss, shown with the progress.
    detail: String,
    metrics: BufWriter<File>,
    events: EventWriter,
    started: Instant,
    first_step: u64,
    /// Sums of the training metrics since the last line, and the number of summands.
    sums: Metrics,
    n_sums: u32,
    /// The number of skipped updates since the last line.
    n_skipped: u32,
}

impl<'a> Log<'a> {
    /// Continues the log of a run at `step`. Lines of later steps, which a killed run may have
    /// left, are removed.
    pub fn open(dir: &Path, step: u64, steps: u64, reporter: &'a dyn Reporter) -> Result<Log<'a>> {
        let path = dir.join("metrics.jsonl");
        atomic::write(&path, &lines_up_to(&path, step)?)?;
        let metrics = BufWriter::new(File::options().append(true).open(&path)?);
        let events = EventWriter::create(dir, step)?;
        Ok(Log {
            reporter,
            is_incomplete: false,
            has_warned: false,
            steps,
            detail: String::new(),
            metrics,
            events,
            started: Instant::now(),
            first_step: step,
            sums: Vec::new(),
            n_sums: 0,
            n_skipped: 0,
        })
    }

    /// Adds the metrics of one training step; without metrics, it counts a skipped update. Writes
    /// the means every `log_every` steps.
    pub fn train(&mut self, step: u64, figures: &[(&'static str, f64)], config: &FitConfig) {
        match (figures.is_empty(), self.sums.is_empty()) {
            (true, _) => self.n_skipped += 1,
            (_, true) => self.sums = figures.to_vec(),
            (_, false) => self.sums.iter_mut().zip(figures).for_each(|(sum, figure)| sum.1 += figure.1),
        }
        self.n_sums += u32::from(!figures.is_empty());
        self.progress(step);
        if !step.is_multiple_of(config.log_every) {
            return;
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
            self.detail = format!("loss {:.4}", means[0].1);
            self.progress(step);
        }
        self.write("train", step, &means);
    }

    /// Every `log_every` steps, writes the gradient scales and the sizes of the gradients that
    /// enter the resblocks, both as base-2 logarithms in the order of the resblocks.
    pub fn scales(&mut self, step: u64, scales: &[f64], gradient_log2: &[f64], config: &FitConfig) {
        if step.is_multiple_of(config.log_every) {
            let [scales, gradient_log2] =
                [scales, gradient_log2].map(|all| all.iter().map(|x| (x * 1e3).round() / 1e3));
            let line = json!({
                "split": "resblocks",
                "step": step,
                "scale_log2": scales.collect::<Vec<_>>(),
                "gradient_log2": gradient_log2.collect::<Vec<_>>(),
            });
            let written = self.write_line(&line);
            self.note(written);
        }
    }

    /// Writes metrics on held-out data.
    pub fn validation(&mut self, step: u64, figures: &Metrics) {
        if figures.is_empty() {
            return;
        }
        let text: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        self.reporter.note(&format!("step {step}: {}", text.join(", ")));
        self.write("val", step, figures);
    }

    /// Reports the first error in writing metrics or samples. The run continues without them.
    pub fn note(&mut self, written: Result<()>) {
        if let Err(error) = written
            && !std::mem::replace(&mut self.is_incomplete, true)
        {
            self.reporter.note(&format!(
                "warning: {error:#}; training continues, but its metrics and samples will be incomplete"
            ));
        }
    }

    /// Reports a message.
    pub fn say(&self, message: &str) {
        self.reporter.note(message);
    }

    /// Reports the first warning about the metrics of the run.
    pub fn warn_once(&mut self, warning: Option<String>) {
        if let Some(warning) = warning
            && !std::mem::replace(&mut self.has_warned, true)
        {
            self.reporter.note(&format!("warning: {warning}"));
        }
    }

    /// Writes the settings of the run to the TensorBoard events.
    pub fn settings(&mut self, settings: &[(String, Setting)]) {
        let written = self.events.settings(settings).context("cannot write the events");
        self.note(written);
    }

    /// Writes a sample sheet to the TensorBoard events.
    pub fn picture(&mut self, step: u64, picture: &RgbImage) {
        let written =
            encode_png(picture).and_then(|png| self.events.picture(step, picture.dimensions(), &png));
        self.note(written.context("cannot write the events"));
    }

    fn progress(&self, step: u64) {
        let Log { steps, detail, .. } = self;
        self.reporter.progress(Progress { task: "training", done: step, total: *steps, detail });
    }

    fn write(&mut self, split: &str, step: u64, figures: &Metrics) {
        let mut line = Map::from_iter([("step".into(), json!(step)), ("split".into(), json!(split))]);
        line.extend(figures.iter().map(|(name, value)| (name.to_string(), json!(value))));
        let written = self.write_line(&Value::Object(line));
        self.note(written);
        let written = self.events.scalars(split, step, figures).context("cannot write the events");
        self.note(written);
    }

    fn write_line(&mut self, line: &Value) -> Result<()> {
        let written = writeln!(self.metrics, "{line}").and_then(|()| self.metrics.flush());
        written.context("cannot write metrics.jsonl")
    }
}

/// Returns the lines of `metrics.jsonl` up to `step`. Damaged or unknown lines are left out;
/// nothing depends on them.
fn lines_up_to(path: &Path, step: u64) -> Result<Vec<u8>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        bytes => bytes.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let step_of = |line: &[u8]| serde_json::from_slice::<Value>(line).ok()?.get("step")?.as_u64();
    let kept = bytes.split(|&byte| byte == b'\n').filter(|line| step_of(line).is_some_and(|at| at <= step));
    Ok(kept.flat_map(|line| [line, b"\n"].concat()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::config::Config;

    /// A reporter that records its messages.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Reporter for Recorder {
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_string());
        }

        fn progress(&self, _: Progress) {}
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_reported_once_and_writing_resumes_with_space() {
        let (dir, recorder) = (tempfile::tempdir().unwrap(), Recorder::default());
        let config = FitConfig { log_every: 1, ..Config::resolve("tiny", &[]).unwrap().train_dvae };
        let mut log = Log::open(dir.path(), 0, 9, &recorder).unwrap();
        let full = || BufWriter::new(File::options().write(true).open("/dev/full").unwrap());
        let metrics = std::mem::replace(&mut log.metrics, full());
        log.train(1, &[("loss", 1.0)], &config);
        log.scales(1, &[13.0], &[], &config);
        log.note(Err(anyhow::anyhow!("cannot write a sample")));
        log.train(2, &[("loss", 1.0)], &config);
        drop(std::mem::replace(&mut log.metrics, metrics));
        log.train(3, &[("loss", 1.0)], &config);
        let notes = recorder.0.into_inner().unwrap();
        assert!(
            notes.len() == 1 && notes[0].starts_with("warning: cannot write metrics.jsonl: No space"),
            "{notes:?}"
        );
        let lines = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        assert!(lines.lines().count() == 1 && lines.contains("\"step\":3"), "{lines}");
    }

    #[test]
    fn lines_after_the_checkpoint_and_partial_lines_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(lines_up_to(&path, 10).unwrap(), b"");
        fs::write(&path, "{\"step\":5}\n{\"step\":10}\n{\"step\":15}\n{\"st").unwrap();
        assert_eq!(lines_up_to(&path, 10).unwrap(), b"{\"step\":5}\n{\"step\":10}\n");
        // A damaged byte removes its line, and is not an error.
        fs::write(&path, b"{\"step\":5}\n{\"st\xe5p\":7}\r\n{\"step\":10}\r\n").unwrap();
        assert_eq!(lines_up_to(&path, 10).unwrap(), b"{\"step\":5}\n{\"step\":10}\r\n");
    }
}
