//! `tessera inspect`: how a drawing was made, or what a model file or a folder contains.

mod folder;

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tessera_data::png_text;
use tessera_model::Parameters;
use tessera_model::device::{Adapter, adapters};
use tessera_model::weights::{HostTensor, ModelFile, model_bytes};

use super::{model_of, say};
use crate::args::Inspect;

/// The first bytes of every PNG.
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Prints what a file or a folder contains.
pub fn run(args: &Inspect) -> Result<()> {
    let Some(file) = &args.file else { return list_devices(args) };
    if file.is_dir() {
        ensure!(!args.words, "--words: {} is a folder; wanted a model file", file.display());
        return print(args, &folder::describe(file)?);
    }
    // Read once, because standard input can be read only once.
    let (shown, bytes) = (file.display(), model_bytes(file)?);
    let is_png = bytes.starts_with(PNG_SIGNATURE);
    if args.words {
        ensure!(!is_png, "--words: {shown} is a picture; wanted a model file");
        return list_words(&model_of(&bytes, file)?, file, args);
    }
    let value = match is_png {
        true => match drawn_with(&bytes).with_context(|| shown.to_string())? {
            Some(parameters) => serde_json::to_value(parameters)?,
            None => bail!("{shown} has no stored drawing parameters: only PNGs of `tessera draw` have them"),
        },
        false => describe(&model_of(&bytes, file).context("neither a PNG nor a model")?)?,
    };
    print(args, &value)
}

/// Prints the adapters of this machine.
fn list_devices(args: &Inspect) -> Result<()> {
    let adapters = adapters()?;
    if args.json {
        return say(json!(adapters));
    }
    if adapters.is_empty() {
        return say("no adapters: the graphics driver is missing (docs/devices.md)");
    }
    adapters.iter().enumerate().try_for_each(|(index, adapter)| {
        let Adapter { name, kind, driver, features, memory_bytes } = adapter;
        let memory = memory_bytes
            .map_or("memory unknown".to_string(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9));
        say(format_args!("gpu:{index}  {name} ({kind}; {memory}; {driver}; {features})"))
    })
}

fn print(args: &Inspect, value: &Value) -> Result<()> {
    match args.json {
        true => say(value),
        false => say(table(value)?),
    }
}

/// Prints the words of the captions that a model was trained on.
fn list_words(file: &ModelFile, path: &Path, args: &Inspect) -> Result<()> {
    let words = file.words.as_ref().with_context(|| {
        let shown = path.display();
        format!("--words: {shown} has no list of the words of its training captions; files that `train prior` writes have one")
    })?;
    match args.json {
        true => say(json!(words)),
        false => words.iter().try_for_each(say),
    }
}

/// What the picture says that it was drawn with.
fn drawn_with(png: &[u8]) -> Result<Option<Parameters>> {
    png_text::read(Cursor::new(png))?
        .map(|text| serde_json::from_str(&text).context("its parameters are damaged"))
        .transpose()
}

fn describe(file: &ModelFile) -> Result<Value> {
    let count = |tensors: &[HostTensor]| tensors.iter().map(|t| t.values.len()).sum::<usize>();
    let mut value = json!({
        "dvae_parameters": count(&file.dvae),
        "prior_parameters": count(&file.prior),
        "reranker_parameters": count(&file.rerank),
        "tokenizer": file.tokenizer.is_some(),
        "caption_drop": file.caption_drop.map(shortest),
        "int8_nats_per_token": file.int8.nats_per_token(),
        "words": file.words.as_ref().map(BTreeSet::len),
        "notes": file.notes,
        "origin": file.origin,
    });
    value["config"] = serde_json::to_value(&file.config)?;
    Ok(value)
}

/// Returns the number in f64 whose decimal form is the shortest one of `value`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn table(value: &Value) -> Result<String> {
    let mut lines = Vec::new();
    for (name, value) in value.as_object().context("nothing to show")? {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                lines.push(name.clone());
                lines.extend(inner.iter().map(|(name, value)| format!("  {name:22} {}", on_a_line(value))));
            }
            Value::Null | Value::Object(_) => {}
            Value::Array(items)
                if items.iter().any(|item| item.as_str().is_some_and(|text| text.len() > 30)) =>
            {
                lines.push(name.clone());
                lines.extend(items.iter().filter_map(Value::as_str).map(|item| format!("  {item}")));
            }
            Value::String(text) => lines.push(format!("{name:24} {text}")),
            other => lines.push(format!("{name:24} {other}")),
        }
    }
    Ok(lines.join("\n"))
}

/// Shows a value on one line: objects as `name value` pairs, without braces and quotes.
fn on_a_line(value: &Value) -> String {
    match value {
        Value::Object(inner) => {
            let pairs = inner.iter().map(|(name, value)| format!("{name} {}", on_a_line(value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => format!("[{}]", items.iter().map(on_a_line).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
