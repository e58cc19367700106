//! Decides whether two trainings are the same run: with the same stage, seed and inputs, and the
//! same values of the config keys that the stage reads.
//!
//! The text of a run's `config.toml` contains all of these: a comment with stage, seed and inputs,
//! followed by the resolved config. Every checkpoint contains a copy of this text. Texts are
//! compared by their values; keys of other stages are ignored. If a key of the config is in only
//! one of the texts, because different versions of the program wrote them, there is a warning. If
//! an input is in only one of them, they are different runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};

use anyhow::{Context, Result};
use tessera_container::{Origin, hash};
use tessera_data::is_older_fingerprint;
use toml::{Table, Value};

use crate::capacity::Stage;
use crate::config::Config;

/// The beginning of the first line, which the stage follows.
const HEAD: &str = "# tessera train ";
/// The input for the initial weights of a run. It is not needed to resume the run.
const FROM: &str = "from";
/// The input for the scenes that are composed in training.
pub(crate) const SCENES: &str = "scenes";
/// The value of [`SCENES`] without scenes.
pub(crate) const NO_SCENES: &str = "none";

/// Keys of a stage's training section that may change whenever a run is resumed.
const FREE: [&str; 4] = ["steps", "eval_every", "checkpoint_every", "log_every"];
/// Keys that may also change when a run continues after it has diverged.
const OPTIMIZER: [&str; 11] = [
    "schedule",
    "lr",
    "lr_end",
    "lr_steps",
    "warmup",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "clip",
    "variance_clip",
];

/// Keys of `data` that only the training of the contrastive model reads.
const OF_RERANK: [&str; 3] = ["reconstructed", "rerank_bpe_dropout", "rerank_crop"];

impl Stage {
    /// Returns the name of the stage on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Dvae => "dvae",
            Stage::Prior => "prior",
            Stage::Rerank => "rerank",
        }
    }

    /// Returns the stage with this name on the command line.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn named(name: &str) -> Result<Stage> {
        let all = [Stage::Dvae, Stage::Prior, Stage::Rerank];
        all.into_iter().find(|stage| stage.name() == name).with_context(|| format!("unknown stage {name:?}"))
    }

    /// Returns the section of the config with the training settings of the stage.
    pub(crate) fn training(self) -> &'static str {
        match self {
            Stage::Dvae => "train_dvae",
            Stage::Prior => "train_prior",
            Stage::Rerank => "train_rerank",
        }
    }

    /// Returns whether the stage reads a key of the config.
    fn reads(self, section: &str, key: &str) -> bool {
        match self {
            Stage::Dvae => match section {
                "data" => key == "dvae_crop",
                _ => ["dvae", "relax", "train_dvae", "cpu"].contains(&section),
            },
            Stage::Prior => match section {
                // Scenes are an input, because the config does not contain everything that decides
                // them, for example the versions of their packages.
                "data" => key != "dvae_crop" && key != SCENES && !OF_RERANK.contains(&key),
                _ => ["prior", "chain", "train_prior", "cpu", "powersgd"].contains(&section),
            },
            Stage::Rerank => match section {
                "data" => OF_RERANK.contains(&key),
                _ => ["rerank", "train_rerank", "cpu"].contains(&section),
            },
        }
    }

    /// Returns when a key of the config may change.
    fn may_change(self, section: &str, key: &str) -> MayChange {
        match section == self.training() {
            true if FREE.contains(&key) => MayChange::Always,
            true if OPTIMIZER.contains(&key) => MayChange::AfterDivergence,
            _ => MayChange::Never,
        }
    }
}

/// An input of a run: its name and its fingerprint.
pub(crate) type Input = (&'static str, String);

/// When a run may continue with another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayChange {
    Always,
    AfterDivergence,
    Never,
    /// The values cannot be compared, because another version of the program wrote one of the
    /// texts: it lacks the value, or has an older kind of fingerprint. There is a warning.
    Unknown,
}

/// A value that differs between two texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// The key, for example `train_dvae.lr`.
    pub key: String,
    pub was: String,
    pub is: String,
    pub may_change: MayChange,
}

impl Display for Difference {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let Difference { key, was, is, may_change } = self;
        match may_change {
            MayChange::Unknown => {
                write!(
                    f,
                    "warning: another version of the program began this run: {key} was {was}, is now {is}"
                )
            }
            MayChange::Always | MayChange::AfterDivergence | MayChange::Never => {
                write!(f, "{key} was {was} so far, and is {is} from here")
            }
        }
    }
}

/// Returns the text of a new run.
pub(crate) fn text(stage: Stage, seed: u64, inputs: &[Input], config: &Config) -> Result<String> {
    let inputs: String = inputs.iter().map(|(name, value)| format!(", {name} {value}")).collect();
    Ok(format!("{HEAD}{}, seed {seed}{inputs}\n\n{}", stage.name(), config.to_toml()?))
}

/// Returns `text` with the initial weights that `saved` names, unless `text` names some itself.
pub(crate) fn begun_as(text: &str, saved: &str) -> String {
    let began = |text: &str| inputs(text).ok()?.remove(FROM);
    match (began(saved), began(text), text.split_once('\n')) {
        (Some(from), None, Some((head, rest))) => format!("{head}, {FROM} {from}\n{rest}"),
        _ => text.to_string(),
    }
}

/// Returns the origin to record in files that the run of `text` makes. It ignores settings that do
/// not affect the weights.
///
/// # Errors
/// If the text is not that of a run.
pub(crate) fn origin(text: &str, stage: Stage) -> Result<Origin> {
    let mut counts = String::new();
    for ((section, key), value) in read_by(stage, text)? {
        if key == "steps" || stage.may_change(&section, &key) != MayChange::Always {
            counts += &format!("{section}.{key} = {value}\n");
        }
    }
    Ok(Origin { config: hash(&counts), data: head(text)?.to_string() })
}

/// Returns the stage, the seed and the inputs by name. If an older text does not contain the input
/// [`SCENES`] and its config has no scenes, the value is [`NO_SCENES`].
pub(crate) fn inputs(text: &str) -> Result<BTreeMap<String, String>> {
    let pair = |part: &str| {
        let (name, value) = part.split_once(' ').unwrap_or(("stage", part));
        (name.to_string(), value.to_string())
    };
    let mut inputs: BTreeMap<String, String> = head(text)?.split(", ").map(pair).collect();
    let table: Table = text.parse()?;
    if table.get("data").and_then(|data| data.get(SCENES)).is_none() {
        inputs.entry(SCENES.to_string()).or_insert(NO_SCENES.to_string());
    }
    Ok(inputs)
}

/// Returns the decay of the moving average of the weights in a run of `stage`, if its text contains
/// it.
///
/// # Errors
/// If the text is not that of a run.
pub(crate) fn ema(text: &str, stage: Stage) -> Result<Option<f64>> {
    let table: Table = text.parse()?;
    Ok(table.get(stage.training()).and_then(|training| training.get("ema")?.as_float()))
}

fn head(text: &str) -> Result<&str> {
    let head = text.lines().next().and_then(|line| line.strip_prefix(HEAD));
    head.with_context(|| format!("its first line is not `{HEAD}…`"))
}

/// Returns the config keys in a text that `stage` reads: section and key, and the value as TOML.
fn read_by(stage: Stage, text: &str) -> Result<BTreeMap<(String, String), String>> {
    let mut table: Table = text.parse()?;
    // Without compression, its other settings have no effect.
    if table.get("powersgd").is_none_or(|powersgd| powersgd.get("rank") == Some(&Value::from("off"))) {
        table.remove("powersgd");
    }
    let mut read = BTreeMap::new();
    for (section, keys) in table.iter().filter_map(|(name, value)| Some((name, value.as_table()?))) {
        for (key, value) in keys.iter().filter(|(key, _)| stage.reads(section, key)) {
            read.insert((section.clone(), key.clone()), value.to_string());
        }
    }
    Ok(read)
}

/// Returns the settings of a run's scenes, without the path of their packages.
fn scenes_of(text: &str) -> Result<Option<Table>> {
    let table: Table = text.parse()?;
    let mut scenes = table.get("data").and_then(|data| data.get(SCENES)?.as_table().cloned());
    if let Some(scenes) = &mut scenes {
        scenes.remove("packages");
    }
    Ok(scenes)
}

/// Returns the differences between the texts `saved` and `now` that matter for `stage`.
///
/// # Errors
/// If a text is not that of a run.
pub(crate) fn differences(saved: &str, now: &str, stage: Stage) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    let mut add = |key: String, was: Option<&String>, is: Option<&String>, may_change| {
        let value = |value: Option<&String>, absent: &str| value.map_or(absent, String::as_str).to_string();
        let absent = if may_change == MayChange::Unknown { "not recorded" } else { "nothing" };
        all.push(Difference { key, was: value(was, absent), is: value(is, absent), may_change });
    };
    let (was, is) = (inputs(saved)?, inputs(now)?);
    for name in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (was.get(name), is.get(name));
        let is_resumed = name == FROM && is.is_none();
        if was != is && !is_resumed {
            let is_older = was.zip(is).is_some_and(|(was, is)| is_older_fingerprint(was, is));
            let is_unknown =
                is_older || name == SCENES && was.is_none() && scenes_of(saved)? == scenes_of(now)?;
            let may_change = if is_unknown { MayChange::Unknown } else { MayChange::Never };
            add(name.clone(), was, is, may_change);
        }
    }
    let (was, is) = (read_by(stage, saved)?, read_by(stage, now)?);
    for at in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let ((section, key), was, is) = (at, was.get(at), is.get(at));
        if was != is {
            let is_unknown = was.is_none() || is.is_none();
            let may_change = if is_unknown { MayChange::Unknown } else { stage.may_change(section, key) };
            add(format!("{section}.{key}"), was, is, may_change);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sets: &[&str]) -> Config {
        Config::resolve("tiny", &sets.iter().map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
    }

    fn run(sets: &[&str]) -> String {
        text(Stage::Dvae, 7, &[("data", "1234".to_string())], &config(sets)).unwrap()
    }

    fn keys(saved: &str, now: &str, stage: Stage) -> Vec<(String, MayChange)> {
        let all = differences(saved, now, stage).unwrap();
        all.into_iter().map(|found| (found.key, found.may_change)).collect()
    }

    #[test]
    fn line_endings_and_other_stages_are_ignored() {
        let dos = run(&[]).replace('\n', "\r\n");
        assert_eq!(keys(&dos, &run(&[]), Stage::Dvae), []);
        assert_eq!(keys(&run(&[]), &run(&["train_prior.lr=0.5", "data.bpe_dropout=0.2"]), Stage::Dvae), []);
        let found = keys(&run(&[]), &run(&["train_prior.lr=0.5", "data.bpe_dropout=0.2"]), Stage::Prior);
        let expected =
            [("data.bpe_dropout", MayChange::Never), ("train_prior.lr", MayChange::AfterDivergence)];
        assert_eq!(found, expected.map(|(key, when)| (key.to_string(), when)));
    }

    #[test]
    fn steps_may_change_but_sizes_may_not() {
        let sets = ["train_dvae.steps=80", "train_dvae.log_every=1", "dvae.n_hid=8", "train_dvae.batch=8"];
        let expected = [
            ("dvae.n_hid", MayChange::Never),
            ("train_dvae.batch", MayChange::Never),
            ("train_dvae.log_every", MayChange::Always),
            ("train_dvae.steps", MayChange::Always),
        ];
        let mut found = keys(&run(&[]), &run(&sets), Stage::Dvae);
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, expected.map(|(key, when)| (key.to_string(), when)));
    }

    #[test]
    fn key_of_another_version_is_a_warning() {
        let older = run(&[]).replace("ema_rise = true\n", "");
        let newer = run(&[]).replace("[dvae]\n", "[dvae]\nnew = 1\n");
        let warnings = |saved: &str| {
            let all = differences(saved, &run(&[]), Stage::Dvae).unwrap();
            assert!(all.iter().all(|found| found.may_change == MayChange::Unknown), "{all:?}");
            all.iter().map(Difference::to_string).collect::<Vec<_>>()
        };
        let began = "warning: another version of the program began this run: ";
        assert_eq!(warnings(&older), [format!("{began}train_dvae.ema_rise was not recorded, is now true")]);
        assert_eq!(warnings(&newer), [format!("{began}dvae.new was 1, is now not recorded")]);
    }

    #[test]
    fn other_scenes_are_another_run_in_all_stages() {
        for stage in [Stage::Dvae, Stage::Prior, Stage::Rerank] {
            let with = |scenes: &[&str], sets: &[&str]| {
                let scenes = scenes.iter().map(|scenes| (SCENES, scenes.to_string()));
                let inputs: Vec<Input> = [("data", "1234".to_string())].into_iter().chain(scenes).collect();
                text(stage, 7, &inputs, &config(sets)).unwrap()
            };
            let never = vec![("scenes".to_string(), MayChange::Never)];
            assert_eq!(keys(&with(&["ab"], &[]), &with(&["cd"], &[]), stage), never);
            assert_eq!(keys(&with(&["none"], &[]), &with(&["cd"], &[]), stage), never);
            // The same packages may be in another folder.
            let set = |folder| format!("data.scenes={{ packages = '{folder}', size = 128 }}");
            let [here, there] = ["a", "b"].map(|folder| with(&["ab"], &[&set(folder)]));
            assert_eq!(keys(&here, &there, stage), []);
            // Texts from before scenes were an input: the config alone says whether there are
            // scenes.
            assert_eq!(keys(&with(&[], &[]), &with(&["none"], &[]), stage), []);
            assert_eq!(keys(&with(&[], &[]), &with(&["ab"], &[&set("a")]), stage), never);
            let unknown = vec![("scenes".to_string(), MayChange::Unknown)];
            assert_eq!(keys(&with(&[], &[&set("a")]), &here, stage), unknown);
            let smaller = "data.scenes={ packages = 'a', size = 64 }";
            assert_eq!(keys(&with(&[], &[smaller]), &here, stage), never);
        }
    }

    #[test]
    fn input_that_one_run_lacks_makes_another_run() {
        let text_of = |inputs: &[Input]| text(Stage::Rerank, 7, inputs, &config(&[])).unwrap();
        let data = ("data", "1234".to_string());
        let without = text_of(std::slice::from_ref(&data));
        let with = text_of(&[data, ("dVAE", "ab".to_string())]);
        let never = vec![("dVAE".to_string(), MayChange::Never)];
        assert_eq!(keys(&without, &with, Stage::Rerank), never);
        assert_eq!(keys(&with, &without, Stage::Rerank), never);
    }

    #[test]
    fn another_seed_or_input_is_another_run() {
        let text_of = |seed, inputs: &[Input]| text(Stage::Dvae, seed, inputs, &config(&[])).unwrap();
        let data = ("data", "1234".to_string());
        let from = ("from", "ab".to_string());
        let without = text_of(7, std::slice::from_ref(&data));
        let with = text_of(7, &[data.clone(), from]);
        let found = differences(&without, &text_of(9, &[("data", "5".to_string())]), Stage::Dvae).unwrap();
        let shown = |found: &Difference| format!("{} {} {}", found.key, found.was, found.is);
        assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), ["data 1234 5", "seed 7 9"]);
        // To resume a run, its initial weights need not be given again.
        assert_eq!(keys(&with, &without, Stage::Dvae), []);
        assert_eq!(keys(&without, &with, Stage::Dvae), [("from".to_string(), MayChange::Never)]);
        assert_eq!((begun_as(&without, &with), begun_as(&without, &without)), (with, without));
    }

    #[test]
    fn fingerprints_of_an_earlier_version_are_not_compared() {
        let text_of =
            |data: &str, seed| text(Stage::Dvae, seed, &[("data", data.to_string())], &config(&[])).unwrap();
        let unverified = [("data".to_string(), MayChange::Unknown)];
        assert_eq!(keys(&text_of("1234abcd", 7), &text_of("v2-1234abcd", 7), Stage::Dvae), unverified);
        for (was, is) in
            [("v2-1234abcd", "v2-5678abcd"), ("1234abcd", "5678abcd"), ("v2-1234abcd", "1234abcd")]
        {
            let never = [("data".to_string(), MayChange::Never)];
            assert_eq!(keys(&text_of(was, 7), &text_of(is, 7), Stage::Dvae), never, "{was} {is}");
        }
    }

    #[test]
    fn origin_contains_inputs_and_relevant_config() {
        let origin_of = |sets: &[&str]| origin(&run(sets), Stage::Dvae).unwrap();
        assert_eq!(origin_of(&[]).data, "dvae, seed 7, data 1234");
        assert_eq!(origin_of(&[]), origin_of(&["train_prior.lr=0.5", "train_dvae.log_every=1"]));
        assert_ne!(origin_of(&[]).config, origin_of(&["train_dvae.lr=0.5"]).config);
        assert_ne!(origin_of(&[]).config, origin_of(&["train_dvae.steps=1"]).config);
    }
}
