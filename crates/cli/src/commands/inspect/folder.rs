//! What a folder contains: a data set, codes, a training run, or a checkpoint.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tessera_data::{CodeSet, Split};

/// Describes the folder `dir`.
///
/// # Errors
/// If it is no folder that Tessera wrote, or is damaged.
pub fn describe(dir: &Path) -> Result<Value> {
    let has = |name: &str| dir.join(name).exists();
    if has("dataset.json") {
        data_set(dir)
    } else if has("train.jsonl") && has("train.safetensors") {
        codes(dir)
    } else if has("config.toml") && has("checkpoints") {
        run(dir)
    } else if has("state.safetensors") {
        Ok(json!({ "folder": "a checkpoint", "file": dir.join("state.safetensors") }))
    } else if has("commands.sh") && has("prompts.txt") {
        pictures_run(dir)
    } else {
        bail!(
            "{} is not a data set, codes, a training run or a checkpoint; wanted a folder that `tessera data`, `encode` or `train` wrote",
            dir.display()
        )
    }
}

/// Describes a data set by the record that `tessera data` wrote.
fn data_set(dir: &Path) -> Result<Value> {
    let record = parsed(&dir.join("dataset.json"))?;
    let styles = record["counts"]["styles"].as_array().map_or(&[][..], Vec::as_slice);
    let count =
        |split: Split| -> u64 { styles.iter().filter_map(|style| style[split.name()].as_u64()).sum() };
    Ok(json!({
        "folder": "a data set",
        "training_pictures": count(Split::Train),
        "held_out_pictures": count(Split::Val),
        "things": record["counts"]["concepts"],
        "captions": record["counts"]["captions"],
        "made_by": record["recipe"],
        "next": format!("tessera encode --data {} --dvae embedded --out codes", dir.display()),
    }))
}

/// Describes a folder of codes.
fn codes(dir: &Path) -> Result<Value> {
    let [train, val] = [Split::Train, Split::Val].map(|split| CodeSet::open(&dir.join(split.name())));
    let (train, val) = (train?, val?);
    Ok(json!({
        "folder": "codes",
        "training_pictures": train.len(),
        "held_out_pictures": val.len(),
        "copies": train.copies,
        "grid": train.grid,
        "vocab": train.vocab,
        "dvae": train.dvae,
        "next": format!("tessera train prior --data {} --bpe embedded --init embedded --run run", dir.display()),
    }))
}

/// Describes a training run by its config, its newest checkpoint and its last metrics.
fn run(dir: &Path) -> Result<Value> {
    let config = read(&dir.join("config.toml"))?;
    // The first line is `# tessera train STAGE, seed N, INPUTS`.
    let (first, config) = config.split_once('\n').unwrap_or((&config, ""));
    let title = first.trim_start_matches("# tessera ").to_string();
    let stage = title.split([' ', ',']).nth(1).unwrap_or_default().to_string();
    let config: toml::Table = config.parse().context("config.toml is damaged")?;
    let steps = config.get(&format!("train_{stage}")).and_then(|section| section.get("steps"));
    let metrics = read(&dir.join("metrics.jsonl")).unwrap_or_default();
    let last = |split: &str| {
        let lines = metrics.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["split"] == split)
    };
    Ok(json!({
        "folder": "a training run",
        "command": title,
        "checkpoints": checkpoints(dir)?,
        "steps": steps.and_then(toml::Value::as_integer),
        "last_training_metrics": last("train"),
        "last_held_out_metrics": last("val"),
        "files": files(dir)?,
    }))
}

/// Describes the folder of `tessera train PICTURES`.
fn pictures_run(dir: &Path) -> Result<Value> {
    Ok(json!({
        "folder": "a run of `tessera train PICTURES`",
        "files": files(dir)?,
        "commands": read(&dir.join("commands.sh"))?.lines().filter(|line| line.starts_with("tessera ")).collect::<Vec<_>>(),
    }))
}

/// The names of the checkpoints of a run, in ascending order.
fn checkpoints(run: &Path) -> Result<Vec<String>> {
    let mut names = names(&run.join("checkpoints"))?;
    names.retain(|name| name.starts_with("step_") && !name.contains('.'));
    Ok(names)
}

/// The names of the model files and pictures in a folder.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = names(dir)?;
    names.retain(|name| name.ends_with(".safetensors") || name.ends_with(".png"));
    Ok(names)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn parsed(path: &Path) -> Result<Value> {
    serde_json::from_str(&read(path)?).with_context(|| format!("{} is damaged", path.display()))
}
