//! `tessera train PICTURES`: from a folder of pictures to a model that draws them.
//!
//! This command only chooses and runs other commands, each in a process of its own. It prints them
//! first and writes them to `RUN/commands.sh`, so a user can change and repeat each of them.

mod step;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tessera_base::atomic;
use tessera_data::{Dataset, Sample, counted, evenly};
use tessera_model::weights::EMBEDDED;

use self::step::{Step, VARIABLES, quoted, run_program};
use super::output::check_folder;
use super::say;
use crate::args::{CaptionArgs, TrainPictures};
use crate::signals;
use crate::stderr::note;

/// The preset with the sizes of the embedded model.
const PRESET: &str = "emoji";
/// The PSNR in dB from which the embedded dVAE reconstructs the pictures well enough.
const GOOD_PSNR: f64 = 16.0;
/// The minimum number of pictures.
const MIN_PICTURES: usize = 8;
/// The minimum time for training in minutes.
const MIN_MINUTES: f64 = 0.01;
/// The start of the line of the script with the settings of the plan.
const PLANNED: &str = "# Planned with ";
/// The number of random crops of each picture that are encoded.
const COPIES: usize = 4;
/// The number of captions on the contact sheet, and of drawings for each.
const SHEET: [usize; 2] = [12, 3];

/// The fractions of the time for training the dVAE, the prior and the contrastive model.
struct Shares {
    dvae: f64,
    prior: f64,
    rerank: f64,
}

/// For pictures that the embedded dVAE reconstructs well.
const KEEP_DVAE: Shares = Shares { dvae: 0.0, prior: 0.85, rerank: 0.1 };
/// For pictures that it does not.
const TRAIN_DVAE: Shares = Shares { dvae: 0.25, prior: 0.6, rerank: 0.1 };

/// Trains a model on a folder of pictures, or continues where an earlier call stopped.
pub fn run(args: &TrainPictures) -> Result<()> {
    let (Some(pictures), Some(run)) = (&args.pictures, &args.run) else {
        bail!(
            "wanted a folder of pictures and --run DIR, or one of bpe, dvae, prior, rerank; see `tessera train --help`"
        );
    };
    let minutes = args.minutes;
    ensure!(
        minutes >= MIN_MINUTES && minutes.is_finite(),
        "--minutes {minutes}: wanted a number of minutes, at least {MIN_MINUTES}"
    );
    let plan = Plan { pictures, captions: &args.captions, run, minutes, seed: args.seed };
    plan.check_run()?;
    signals::pass_on()?;
    let data = plan.data();
    let dataset = plan.data_set(&data)?;
    let psnr = plan.psnr()?;
    let steps = plan.steps(psnr);
    plan.announce(&dataset, psnr, &data, &steps)?;
    plan.write_prompts(&dataset)?;
    steps.iter().try_for_each(Step::execute)?;
    let (model, sheet) = (plan.path("model.tessera.safetensors"), plan.path("sheet.png"));
    say(format_args!(
        "{model}: the model\n{sheet}: drawings of its captions\n{}: the commands that made them\n\
         next: tessera draw \"...\" --model {model}",
        plan.path("commands.sh")
    ))
}

/// What is trained, where, and how long.
struct Plan<'a> {
    pictures: &'a Path,
    captions: &'a CaptionArgs,
    run: &'a Path,
    minutes: f64,
    seed: u64,
}

impl Plan<'_> {
    /// Checks that the folder for the results is not among the pictures, and that it is empty or
    /// contains an earlier run with the same settings.
    fn check_run(&self) -> Result<()> {
        let (run, pictures) = (self.run.display(), self.pictures.display());
        ensure!(
            !resolved(self.run)?.starts_with(resolved(self.pictures)?),
            "--run {run} is in the folder of pictures {pictures}, so its pictures would be taken for yours; choose a folder \
             outside of it"
        );
        check_folder(
            self.run,
            &["data/dataset.json", "commands.sh"],
            "run of `train PICTURES`; choose another --run",
        )?;
        let script = fs::read_to_string(self.run.join("commands.sh")).unwrap_or_default();
        let planned = script.lines().find_map(|line| line.strip_prefix(PLANNED));
        let (now, is_finished) = (self.settings(), self.run.join("sheet.png").exists());
        match planned.filter(|planned| *planned != now) {
            Some(planned) if is_finished => {
                bail!("{run} is finished; it was planned with {planned}. For {now}, choose another --run")
            }
            Some(planned) => bail!(
                "{run} was planned with {planned}, this command has {now}; give {planned} again to continue it, or choose \
                 another --run"
            ),
            None => Ok(()),
        }
    }

    /// The flags that change the commands after the data set.
    fn settings(&self) -> String {
        format!("--minutes {} --seed {}", self.minutes, self.seed)
    }

    /// The path of `name` in the run's folder.
    fn path(&self, name: &str) -> String {
        self.run.join(name).display().to_string()
    }

    fn step(&self, title: &'static str, args: &[&str], result: &str, run: Option<&str>) -> Step {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        Step {
            title,
            args,
            result: self.run.join(result),
            run: run.map(|run| self.run.join(run)),
            done: self.run.join("done.txt"),
        }
    }

    /// The step that makes the data set.
    fn data(&self) -> Step {
        let (pictures, out) = (self.pictures.display().to_string(), self.path("data"));
        let args =
            ["data", "folder", &pictures, "--out", &out, "--config", PRESET, "--holdout", "10", "--enlarge"];
        let mut step = self.step("make a data set", &args, "data/dataset.json", None);
        let CaptionArgs { captions, image_column, text_column, folder_names } = self.captions;
        let captions = captions.as_ref().map(|path| path.display().to_string());
        let named =
            [("--captions", &captions), ("--image-column", image_column), ("--text-column", text_column)];
        let given = named.into_iter().filter_map(|(flag, value)| Some([flag.to_string(), value.clone()?]));
        step.args.extend(given.flatten());
        step.args.extend(folder_names.then(|| "--folder-names".to_string()));
        step
    }

    /// Makes the data set. If it exists, the command checks that the pictures are still the same.
    fn data_set(&self, data: &Step) -> Result<Dataset> {
        let folder = self.run.join("data");
        let is_new = !folder.exists();
        data.run()?;
        let dataset = Dataset::open(&folder)?;
        let n = dataset.train.len() + dataset.val.len();
        if n < MIN_PICTURES && is_new {
            // The same command then works when there are more pictures.
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        ensure!(
            n >= MIN_PICTURES,
            "{}: {} with captions; wanted at least {MIN_PICTURES}, and better a few hundred",
            self.pictures.display(),
            counted(n as u64, "picture")
        );
        data.mark_done()?;
        Ok(dataset)
    }

    /// How well the embedded dVAE reconstructs held-out pictures, in dB.
    fn psnr(&self) -> Result<f64> {
        let args = ["eval", "recon", "--data", &self.path("data"), "--model", EMBEDDED, "--json"];
        let output = run_program(&args.map(str::to_string), Stdio::piped())?;
        let found: Value = serde_json::from_slice(&output).context("`eval recon` printed no JSON")?;
        found["psnr_db"].as_f64().context("`eval recon` printed no PSNR")
    }

    /// The steps after the data set.
    fn steps(&self, psnr: f64) -> Vec<Step> {
        let shares = if psnr >= GOOD_PSNR { KEEP_DVAE } else { TRAIN_DVAE };
        let minutes = |share: f64| ((self.minutes * share * 1e4).round() / 1e4).to_string();
        let (seed, copies) = (self.seed.to_string(), format!("data.copies={COPIES}"));
        let [data, codes, prior, rerank] = ["data", "codes", "prior", "rerank"].map(|name| self.path(name));
        let config = ["--config", PRESET, "--seed", &seed];
        let train = |task: &'static str, data: &str, run: &str, share: f64| -> Vec<String> {
            let args = ["train", task, "--data", data, "--run", run, "--init", EMBEDDED, "--minutes"];
            [&args[..], &[&minutes(share)], &config].concat().into_iter().map(str::to_string).collect()
        };
        let extended = |args: Vec<String>, more: &[&str]| -> Vec<String> {
            args.into_iter().chain(more.iter().map(|arg| arg.to_string())).collect()
        };
        let mut steps = Vec::new();
        let dvae = match shares.dvae > 0.0 {
            true => {
                let args = train("dvae", &data, &self.path("dvae"), shares.dvae);
                let result = "dvae/dvae.tessera.safetensors";
                steps.push(Step { args, ..self.step("train the dVAE further", &[], result, Some("dvae")) });
                self.path(result)
            }
            false => EMBEDDED.to_string(),
        };
        let encode = ["encode", "--data", &data, "--dvae", &dvae, "--out", &codes, "--set", &copies];
        steps.push(self.step(
            "encode the pictures",
            &[&encode[..], &config].concat(),
            "codes/val.safetensors",
            None,
        ));
        let model = "prior/model.tessera.safetensors";
        let args = extended(train("prior", &codes, &prior, shares.prior), &["--bpe", EMBEDDED, "--last"]);
        steps.push(Step { args, ..self.step("train the prior further", &[], model, Some("prior")) });
        let ranker = "rerank/rerank.tessera.safetensors";
        let args = train("rerank", &data, &rerank, shares.rerank);
        let args = extended(args, &["--bpe", EMBEDDED, "--dvae", &dvae]);
        steps.push(Step { args, ..self.step("train the reranker further", &[], ranker, Some("rerank")) });
        let [model, ranker, packed] =
            [model, ranker, "model.tessera.safetensors"].map(|name| self.path(name));
        let pack = ["pack", &model, "--rerank", &ranker, "--dtype", "exact", "--out", &packed];
        steps.push(self.step("join them in one file", &pack, "model.tessera.safetensors", None));
        let (prompts, sheet, n) = (self.path("prompts.txt"), self.path("sheet.png"), SHEET[1].to_string());
        let draw =
            ["draw", "--prompts", &prompts, "--model", &packed, "--best", &n, "--scale", "2", "--labels"];
        let draw = [&draw[..], &["--seed", &seed, "--out", &sheet]].concat();
        steps.push(self.step("draw a contact sheet", &draw, "sheet.png", None));
        steps
    }

    /// Prints what will be done, warns about what may disappoint, and writes the commands down.
    fn announce(&self, dataset: &Dataset, psnr: f64, data: &Step, steps: &[Step]) -> Result<()> {
        let (train, val) = (dataset.train.len(), dataset.val.len());
        note!("{} to train on, {val} held out", counted(train as u64, "picture"));
        let enough = if psnr >= GOOD_PSNR { "is kept" } else { "is trained further" };
        note!("the embedded dVAE reconstructs held-out pictures with {psnr:.1} dB; it {enough}");
        let mut script = format!(
            "#!/bin/sh\n# The commands of `tessera train`. To run them again, change to the folder in which that was run, and\n\
             # give a new folder for the results: sh commands.sh NEW\n{PLANNED}{}\nset -e\nunset {}\n\
             run=${{1:?give a new folder for the results}}\nmkdir \"$run\"\ncp {} \"$run\"\n",
            self.settings(),
            VARIABLES.join(" "),
            quoted(&self.path("prompts.txt"))
        );
        for step in [data].into_iter().chain(steps) {
            let state = if step.is_done() { " (done)" } else { "" };
            note!("- {}{state}: {}", step.title, step.command_line());
            writeln!(script, "{}", step.script_line(self.run))?;
        }
        atomic::write(&self.run.join("commands.sh"), script.as_bytes())
    }

    /// Writes evenly chosen captions, held-out ones first, for the contact sheet.
    fn write_prompts(&self, dataset: &Dataset) -> Result<()> {
        let chosen = |samples: &[Sample], n: usize| -> Result<Vec<String>> {
            evenly(n, samples.len()).map(|i| Ok(samples[i].caption()?.to_string())).collect()
        };
        let mut prompts = chosen(&dataset.val, SHEET[0] / 2)?;
        prompts.extend(chosen(&dataset.train, SHEET[0] - prompts.len())?);
        atomic::write(&self.run.join("prompts.txt"), (prompts.join("\n") + "\n").as_bytes())
    }
}

/// Returns the absolute path without links. The end of the path may not exist yet.
fn resolved(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let known = path.ancestors().find_map(|known| Some((known, known.canonicalize().ok()?)));
    Ok(match known {
        Some((known, real)) => real.join(path.strip_prefix(known)?),
        None => path,
    })
}
