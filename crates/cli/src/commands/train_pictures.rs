//! `tessera train PICTURES`: from a folder of pictures to a model that draws them.
//!
//! This command only chooses and runs other commands, each in a process of its own. It prints them
//! first and writes them to `RUN/commands.sh`, so a user can change and repeat each of them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tessera_base::atomic;
use tessera_data::{Dataset, Sample, evenly};
use tessera_model::weights::EMBEDDED;

use super::{Reported, say};
use crate::args::{CaptionArgs, TrainPictures};
use crate::signals;
use crate::stderr::note;

/// The preset with the sizes of the embedded model.
const PRESET: &str = "emoji";
/// The PSNR in dB from which the embedded dVAE reconstructs the pictures well enough.
const GOOD_PSNR: f64 = 16.0;
/// The minimum number of pictures.
const MIN_PICTURES: usize = 8;
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

/// One command of the plan.
struct Step {
    /// What the command does.
    title: &'static str,
    /// The arguments of this program.
    args: Vec<String>,
    /// The file that the command leaves at its end. A training that is stopped leaves it too.
    result: PathBuf,
    /// The folder of a training run, which can be resumed.
    run: Option<PathBuf>,
    /// The file that lists the commands that are done, one per line.
    done: PathBuf,
}

/// Trains a model on a folder of pictures, or continues where an earlier call stopped.
pub fn run(args: &TrainPictures) -> Result<()> {
    let (Some(pictures), Some(run)) = (&args.pictures, &args.run) else {
        bail!(
            "wanted a folder of pictures and --run DIR, or one of bpe, dvae, prior, rerank; see `tessera train --help`"
        );
    };
    let minutes = args.minutes;
    ensure!(minutes > 0.0 && minutes.is_finite(), "--minutes {minutes}: wanted a positive number of minutes");
    fs::create_dir_all(run).with_context(|| format!("cannot create {}", run.display()))?;
    // A signal also reaches the command that runs at the time: it saves and ends, and then this one
    // does.
    signals::on_first(|| {})?;
    let plan = Plan { pictures, captions: &args.captions, run, minutes, seed: args.seed };
    let data = plan.data();
    // Also for an existing data set: the command checks that the pictures are still the same.
    data.run()?;
    let dataset = Dataset::open(&run.join("data"))?;
    let n = dataset.train.len() + dataset.val.len();
    ensure!(
        n >= MIN_PICTURES,
        "{}: {n} pictures with captions; wanted at least {MIN_PICTURES}, and better a few hundred",
        pictures.display()
    );
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

    /// How well the embedded dVAE reconstructs held-out pictures, in dB.
    fn psnr(&self) -> Result<f64> {
        let args = ["eval", "recon", "--data", &self.path("data"), "--json"].map(str::to_string);
        let output = program(&args)?.stderr(Stdio::inherit()).output().context("cannot run `eval recon`")?;
        let Output { status, stdout, .. } = output;
        ensure!(status.success(), "`eval recon` failed");
        let found: Value = serde_json::from_slice(&stdout).context("`eval recon` printed no JSON")?;
        found["psnr_db"].as_f64().context("`eval recon` printed no PSNR")
    }

    /// The steps after the data set.
    fn steps(&self, psnr: f64) -> Vec<Step> {
        let shares = if psnr >= GOOD_PSNR { KEEP_DVAE } else { TRAIN_DVAE };
        let minutes = |share: f64| format!("{:.2}", self.minutes * share);
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
        note!("{train} pictures to train on, {val} held out");
        let enough = if psnr >= GOOD_PSNR { "is kept" } else { "is trained further" };
        note!("the embedded dVAE reconstructs held-out pictures with {psnr:.1} dB; it {enough}");
        let mut script = format!(
            "#!/bin/sh\n# The commands of `tessera train`. To run them again, change to the folder in which that was run, and\n\
             # give a new folder for the results: sh commands.sh NEW\nset -e\nrun=${{1:?give a new folder for the results}}\n\
             mkdir \"$run\"\ncp {} \"$run\"\n",
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

impl Step {
    fn is_done(&self) -> bool {
        let done = fs::read_to_string(&self.done).unwrap_or_default();
        self.result.exists() && done.lines().any(|line| line == self.command_line())
    }

    /// Adds the command to those that are done.
    fn mark_done(&self) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let done = fs::read_to_string(&self.done).unwrap_or_default();
        atomic::write(&self.done, format!("{done}{}\n", self.command_line()).as_bytes())
    }

    /// Whether the command is a training that has saved a checkpoint.
    fn is_begun(&self) -> bool {
        let checkpoints = self.run.as_ref().and_then(|run| fs::read_dir(run.join("checkpoints")).ok());
        checkpoints.is_some_and(|mut entries| entries.next().is_some())
    }

    /// The command as a user would type it.
    fn command_line(&self) -> String {
        let args = self.args.iter().map(|arg| format!(" {}", quoted(arg)));
        format!("tessera{}", args.collect::<String>())
    }

    /// The command in a script, in which the variable `run` contains the path of the folder `run`.
    fn script_line(&self, run: &Path) -> String {
        let args = self.args.iter().map(|arg| match Path::new(arg).strip_prefix(run) {
            Ok(name) => format!(" \"$run\"/{}", name.display()),
            Err(_) => format!(" {}", quoted(arg)),
        });
        format!("tessera{}", args.collect::<String>())
    }

    /// Runs the command, or resumes it, unless it is done.
    fn execute(&self) -> Result<()> {
        if self.is_done() { Ok(()) } else { self.run() }
    }

    /// Runs the command, or resumes it. If it fails, it has reported why.
    fn run(&self) -> Result<()> {
        let status = program(&self.args)?.args(self.is_begun().then_some("--resume")).status();
        let status = status.with_context(|| format!("cannot run `{}`", self.command_line()))?;
        if signals::received().is_some() {
            bail!(Reported(signals::exit_code()));
        }
        if !status.success() {
            bail!(Reported(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
        }
        ensure!(self.result.exists(), "`{}` left no {}", self.command_line(), self.result.display());
        self.mark_done()
    }
}

/// Quotes an argument for a shell if it needs to be quoted.
fn quoted(arg: &str) -> String {
    match arg.chars().all(|c| c.is_alphanumeric() || "-_./=:,".contains(c)) {
        true => arg.to_string(),
        false => format!("'{}'", arg.replace('\'', "'\\''")),
    }
}

/// This program with `args`.
fn program(args: &[String]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args);
    Ok(command)
}
