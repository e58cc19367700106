//! What makes two trainings the same run: stage, seed, inputs, and the part of the config that the stage reads.
//!
//! All of it is the text of a run's `config.toml`, of which every checkpoint holds a copy: a comment with stage, seed and
//! inputs, then the resolved config. Texts are compared by their values. Keys of other stages don't matter. A key of the
//! config that only one of the texts has, because another version of the program wrote the other, gives a warning; an input
//! that only one of them has is another run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};

use anyhow::{Context, Result};
use tessera_container::{Origin, hash};
use tessera_data::is_older_fingerprint;
use toml::Table;

use crate::capacity::Stage;
use crate::config::Config;

/// What precedes the stage in the first line.
const HEAD: &str = "# tessera train ";
/// The input that says which weights a run began with. A run that goes on doesn't need it.
const FROM: &str = "from";
/// The input that says which scenes are composed in training.
pub(crate) const SCENES: &str = "scenes";
/// Its value where there are none.
pub(crate) const NO_SCENES: &str = "none";

/// Keys of a stage's training that may change whenever a run is continued.
const FREE: [&str; 4] = ["steps", "eval_every", "checkpoint_every", "log_every"];
/// Keys that may change, too, where a run goes on from before it diverged.
const OPTIMISER: [&str; 11] = [
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

/// Keys of `data` that only the contrastive model's training reads.
const OF_RERANK: [&str; 3] = ["reconstructed", "rerank_bpe_dropout", "rerank_crop"];

impl Stage {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Stage::Dvae => "dvae",
            Stage::Prior => "prior",
            Stage::Rerank => "rerank",
        }
    }

    /// The section of the config with steps and optimiser.
    pub(crate) fn training(self) -> &'static str {
        match self {
            Stage::Dvae => "train_dvae",
            Stage::Prior => "train_prior",
            Stage::Rerank => "train_rerank",
        }
    }

    /// Whether the stage reads a key of the config.
    fn reads(self, section: &str, key: &str) -> bool {
        match self {
            Stage::Dvae => match section {
                "data" => key == "dvae_crop",
                _ => ["dvae", "relax", "train_dvae", "cpu"].contains(&section),
            },
            Stage::Prior => match section {
                // Scenes are an input: the config says neither which packages they are made of nor all that decides them.
                "data" => key != "dvae_crop" && key != SCENES && !OF_RERANK.contains(&key),
                _ => ["prior", "chain", "train_prior", "cpu"].contains(&section),
            },
            Stage::Rerank => match section {
                "data" => OF_RERANK.contains(&key),
                _ => ["rerank", "train_rerank", "cpu"].contains(&section),
            },
        }
    }

    /// When a key of the config may change.
    fn may_change(self, section: &str, key: &str) -> MayChange {
        match section == self.training() {
            true if FREE.contains(&key) => MayChange::Always,
            true if OPTIMISER.contains(&key) => MayChange::AfterDivergence,
            _ => MayChange::Never,
        }
    }
}

/// What a run reads: name and fingerprint.
pub(crate) type Input = (&'static str, String);

/// When a run may go on with another value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MayChange {
    Always,
    AfterDivergence,
    Never,
    /// One of the texts does not say it, or says it by a fingerprint of an earlier kind, since another version of the program wrote it:
    /// a warning is given.
    Unknown,
}

/// A value that is not the same in two texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// As in `train_dvae.lr`.
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

/// The text of a new run.
pub(crate) fn text(stage: Stage, seed: u64, inputs: &[Input], config: &Config) -> Result<String> {
    let inputs: String = inputs.iter().map(|(name, value)| format!(", {name} {value}")).collect();
    Ok(format!("{HEAD}{}, seed {seed}{inputs}\n\n{}", stage.name(), config.to_toml()?))
}

/// `text`, with the weights that a run began with if `saved` names some and `text` doesn't.
pub(crate) fn begun_as(text: &str, saved: &str) -> String {
    let began = |text: &str| inputs(text).ok()?.remove(FROM);
    match (began(saved), began(text), text.split_once('\n')) {
        (Some(from), None, Some((head, rest))) => format!("{head}, {FROM} {from}\n{rest}"),
        _ => text.to_string(),
    }
}

/// What a file made by the run of `text` was made from. Settings that change no weight don't count.
///
/// # Errors
/// If the text is no run's.
pub(crate) fn origin(text: &str, stage: Stage) -> Result<Origin> {
    let mut counts = String::new();
    for ((section, key), value) in read_by(stage, text)? {
        if key == "steps" || stage.may_change(&section, &key) != MayChange::Always {
            counts += &format!("{section}.{key} = {value}\n");
        }
    }
    Ok(Origin { config: hash(&counts), data: head(text)?.to_string() })
}

/// Stage, seed and inputs by name. A text from before scenes were an input has none of them if its config asks for none.
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

/// The decay of the weights' moving average in a run of `stage`, if its text says it.
///
/// # Errors
/// If the text is no run's.
pub(crate) fn ema(text: &str, stage: Stage) -> Result<Option<f64>> {
    let table: Table = text.parse()?;
    Ok(table.get(stage.training()).and_then(|training| training.get("ema")?.as_float()))
}

fn head(text: &str) -> Result<&str> {
    let head = text.lines().next().and_then(|line| line.strip_prefix(HEAD));
    head.with_context(|| format!("its first line is not `{HEAD}…`"))
}

/// What `stage` reads of the config in a text: section and key, and the value as TOML.
fn read_by(stage: Stage, text: &str) -> Result<BTreeMap<(String, String), String>> {
    let table: Table = text.parse()?;
    let mut read = BTreeMap::new();
    for (section, keys) in table.iter().filter_map(|(name, value)| Some((name, value.as_table()?))) {
        for (key, value) in keys.iter().filter(|(key, _)| stage.reads(section, key)) {
            read.insert((section.clone(), key.clone()), value.to_string());
        }
    }
    Ok(read)
}

/// What the config of a run says of its scenes, but for where their packages lie.
fn scenes_of(text: &str) -> Result<Option<Table>> {
    let table: Table = text.parse()?;
    let mut scenes = table.get("data").and_then(|data| data.get(SCENES)?.as_table().cloned());
    if let Some(scenes) = &mut scenes {
        scenes.remove("packages");
    }
    Ok(scenes)
}

/// Where `now` differs from `saved`, in what matters to `stage`.
///
/// # Errors
/// If a text is no run's.
pub(crate) fn differences(saved: &str, now: &str, stage: Stage) -> Result<Vec<Difference>> {
    let mut all = Vec::new();
    let mut note = |key: String, was: Option<&String>, is: Option<&String>, may_change| {
        let value = |value: Option<&String>, absent: &str| value.map_or(absent, String::as_str).to_string();
        let absent = if may_change == MayChange::Unknown { "not recorded" } else { "nothing" };
        all.push(Difference { key, was: value(was, absent), is: value(is, absent), may_change });
    };
    let (was, is) = (inputs(saved)?, inputs(now)?);
    for name in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (was.get(name), is.get(name));
        let goes_on = name == FROM && is.is_none();
        if was != is && !goes_on {
            let is_older = was.zip(is).is_some_and(|(was, is)| is_older_fingerprint(was, is));
            let is_unknown =
                is_older || name == SCENES && was.is_none() && scenes_of(saved)? == scenes_of(now)?;
            let may_change = if is_unknown { MayChange::Unknown } else { MayChange::Never };
            note(name.clone(), was, is, may_change);
        }
    }
    let (was, is) = (read_by(stage, saved)?, read_by(stage, now)?);
    for at in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let ((section, key), was, is) = (at, was.get(at), is.get(at));
        if was != is {
            let is_unknown = was.is_none() || is.is_none();
            let may_change = if is_unknown { MayChange::Unknown } else { stage.may_change(section, key) };
            note(format!("{section}.{key}"), was, is, may_change);
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
    fn line_endings_and_other_stages_make_no_difference() {
        let dos = run(&[]).replace('\n', "\r\n");
        assert_eq!(keys(&dos, &run(&[]), Stage::Dvae), []);
        assert_eq!(keys(&run(&[]), &run(&["train_prior.lr=0.5", "data.bpe_dropout=0.2"]), Stage::Dvae), []);
        let found = keys(&run(&[]), &run(&["train_prior.lr=0.5", "data.bpe_dropout=0.2"]), Stage::Prior);
        let wanted = [("data.bpe_dropout", MayChange::Never), ("train_prior.lr", MayChange::AfterDivergence)];
        assert_eq!(found, wanted.map(|(key, when)| (key.to_string(), when)));
    }

    #[test]
    fn steps_may_change_and_sizes_may_not() {
        let sets = ["train_dvae.steps=80", "train_dvae.log_every=1", "dvae.n_hid=8", "train_dvae.batch=8"];
        let wanted = [
            ("dvae.n_hid", MayChange::Never),
            ("train_dvae.batch", MayChange::Never),
            ("train_dvae.log_every", MayChange::Always),
            ("train_dvae.steps", MayChange::Always),
        ];
        let mut found = keys(&run(&[]), &run(&sets), Stage::Dvae);
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, wanted.map(|(key, when)| (key.to_string(), when)));
    }

    /// `differences` compared only what both texts have.
    #[test]
    fn a_key_of_another_version_is_a_warning() {
        let older = run(&[]).replace("ema_rise = true\n", "");
        let newer = run(&[]).replace("[dvae]\n", "[dvae]\nnew = 1\n");
        let told = |saved: &str| {
            let all = differences(saved, &run(&[]), Stage::Dvae).unwrap();
            assert!(all.iter().all(|found| found.may_change == MayChange::Unknown), "{all:?}");
            all.iter().map(Difference::to_string).collect::<Vec<_>>()
        };
        let began = "warning: another version of the program began this run: ";
        assert_eq!(told(&older), [format!("{began}train_dvae.ema_rise was not recorded, is now true")]);
        assert_eq!(told(&newer), [format!("{began}dvae.new was 1, is now not recorded")]);
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
            // The same packages may lie elsewhere.
            let set = |folder| format!("data.scenes={{ packages = '{folder}', size = 128 }}");
            let [here, there] = ["a", "b"].map(|folder| with(&["ab"], &[&set(folder)]));
            assert_eq!(keys(&here, &there, stage), []);
            // Before scenes were an input, a config without them meant none, and one with them some.
            assert_eq!(keys(&with(&[], &[]), &with(&["none"], &[]), stage), []);
            assert_eq!(keys(&with(&[], &[]), &with(&["ab"], &[&set("a")]), stage), never);
            let unknown = vec![("scenes".to_string(), MayChange::Unknown)];
            assert_eq!(keys(&with(&[], &[&set("a")]), &here, stage), unknown);
            let smaller = "data.scenes={ packages = 'a', size = 64 }";
            assert_eq!(keys(&with(&[], &[smaller]), &here, stage), never);
        }
    }

    #[test]
    fn an_input_that_one_run_lacks_makes_another_run() {
        let of = |inputs: &[Input]| text(Stage::Rerank, 7, inputs, &config(&[])).unwrap();
        let data = ("data", "1234".to_string());
        let without = of(std::slice::from_ref(&data));
        let with = of(&[data, ("dVAE", "ab".to_string())]);
        let never = vec![("dVAE".to_string(), MayChange::Never)];
        assert_eq!(keys(&without, &with, Stage::Rerank), never);
        assert_eq!(keys(&with, &without, Stage::Rerank), never);
    }

    #[test]
    fn another_seed_or_input_is_another_run() {
        let of = |seed, inputs: &[Input]| text(Stage::Dvae, seed, inputs, &config(&[])).unwrap();
        let data = ("data", "1234".to_string());
        let from = ("from", "ab".to_string());
        let whole = of(7, std::slice::from_ref(&data));
        let begun = of(7, &[data.clone(), from]);
        let found = differences(&whole, &of(9, &[("data", "5".to_string())]), Stage::Dvae).unwrap();
        let seen = |found: &Difference| format!("{} {} {}", found.key, found.was, found.is);
        assert_eq!(found.iter().map(seen).collect::<Vec<_>>(), ["data 1234 5", "seed 7 9"]);
        // What a run began from is told once.
        assert_eq!(keys(&begun, &whole, Stage::Dvae), []);
        assert_eq!(keys(&whole, &begun, Stage::Dvae), [("from".to_string(), MayChange::Never)]);
        assert_eq!((begun_as(&whole, &begun), begun_as(&whole, &whole)), (begun, whole));
    }

    #[test]
    fn fingerprints_of_an_earlier_version_are_not_compared() {
        let of =
            |data: &str, seed| text(Stage::Dvae, seed, &[("data", data.to_string())], &config(&[])).unwrap();
        let unverified = [("data".to_string(), MayChange::Unknown)];
        assert_eq!(keys(&of("1234abcd", 7), &of("v2-1234abcd", 7), Stage::Dvae), unverified);
        for (was, is) in
            [("v2-1234abcd", "v2-5678abcd"), ("1234abcd", "5678abcd"), ("v2-1234abcd", "1234abcd")]
        {
            let never = [("data".to_string(), MayChange::Never)];
            assert_eq!(keys(&of(was, 7), &of(is, 7), Stage::Dvae), never, "{was} {is}");
        }
    }

    #[test]
    fn an_origin_names_inputs_and_config() {
        let of = |sets: &[&str]| origin(&run(sets), Stage::Dvae).unwrap();
        assert_eq!(of(&[]).data, "dvae, seed 7, data 1234");
        assert_eq!(of(&[]), of(&["train_prior.lr=0.5", "train_dvae.log_every=1"]));
        assert_ne!(of(&[]).config, of(&["train_dvae.lr=0.5"]).config);
        assert_ne!(of(&[]).config, of(&["train_dvae.steps=1"]).config);
    }
}
