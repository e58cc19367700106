//! `tessera gallery`: writes a web page of drawings with the settings that made each, as one file
//! that needs no other files.

use std::fmt::Write;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tessera_base::atomic;
use tessera_data::{counted, png_text};
use tessera_model::{Parameters, Sampling};

use super::output::{Content, Outputs};

/// The template of the page, with the placeholders `{{title}}`, `{{drawings}}` and `{{others}}`.
const PAGE: &str = include_str!("gallery.html");

/// A drawing in the folder.
struct Drawing {
    png: Vec<u8>,
    made: Parameters,
}

/// Runs `tessera gallery`.
pub fn run(dir: &Path, out: &Path, title: &str) -> Result<()> {
    let outputs = Outputs::check(&[(out, Content::Page)], false)?;
    let (mut drawings, mut others) = (Vec::new(), 0);
    for path in pngs(dir)? {
        let png = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = png_text::read(Cursor::new(&png)).ok().flatten();
        match text.and_then(|text| serde_json::from_str(&text).ok()) {
            Some(made) => drawings.push(Drawing { png, made }),
            None => others += 1,
        }
    }
    ensure!(
        !drawings.is_empty(),
        "{} holds no drawing: wanted PNGs that `tessera draw` wrote, found {}",
        dir.display(),
        counted(others, "other PNG")
    );
    atomic::write(out, page(title, &drawings, others).as_bytes())?;
    let left_out = match others {
        0 => String::new(),
        n => format!("; left out: {}", counted(n, "other PNG")),
    };
    outputs.say(format_args!("{}: {}{left_out}", out.display(), counted(drawings.len() as u64, "drawing")))
}

/// Returns the PNGs in the folder and its subfolders, sorted by name. Symbolic links are not
/// followed, so the search stays in the folder and ends.
fn pngs(dir: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read the folder {}", dir.display());
    let mut entries =
        fs::read_dir(dir).with_context(cannot)?.collect::<Result<Vec<_>, _>>().with_context(cannot)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.path();
        if entry.file_type().with_context(cannot)?.is_dir() {
            found.extend(pngs(&path)?);
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            found.push(path);
        }
    }
    Ok(found)
}

fn page(title: &str, drawings: &[Drawing], others: u64) -> String {
    let others = match others {
        0 => String::new(),
        n => format!(" Left out: {} without parameters.", counted(n, "picture")),
    };
    let cards: String = drawings.iter().map(card).collect();
    // The template is split before values are inserted, so a prompt cannot contain a placeholder.
    let mut page = String::new();
    for (at, part) in PAGE.split("{{").enumerate() {
        let (name, rest) = if at == 0 { ("", part) } else { part.split_once("}}").unwrap_or(("", part)) };
        page += match name {
            "title" => escaped(title),
            "drawings" => cards.clone(),
            "others" => format!("{}.{others}", counted(drawings.len() as u64, "drawing")),
            _ => String::new(),
        }
        .as_str();
        page += rest;
    }
    page
}

fn card(Drawing { png, made }: &Drawing) -> String {
    // Drawings of earlier versions store only the prompts that the model read.
    let prompts = if made.asked.is_empty() { &made.prompts } else { &made.asked };
    let prompt = match prompts.join(" · ") {
        prompt if prompt.is_empty() => "without words".to_string(),
        prompt => escaped(&prompt),
    };
    let mut facts = String::new();
    for (name, value) in facts_of(made) {
        let _ = write!(facts, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
    }
    let image = STANDARD.encode(png);
    format!(
        "<figure><img src=\"data:image/png;base64,{image}\" alt=\"{prompt}\" loading=\"lazy\">\
        <figcaption><h2>{prompt}</h2><dl>{facts}</dl></figcaption></figure>\n"
    )
}

fn facts_of(made: &Parameters) -> Vec<(&'static str, String)> {
    let Sampling { temperature, top_k, top_p, guidance } = made.sampling;
    let scores: Vec<String> = made.scores.iter().map(|score| format!("{score:.3}")).collect();
    let read = made.prompts.join(" · ");
    let facts = [
        ("Read as", (!made.asked.is_empty() && made.asked != made.prompts).then_some(read)),
        ("Seed", Some(made.seed.to_string())),
        ("Number", made.index.map(|index| index.to_string())),
        ("Best of", made.of.map(|of| of.to_string())),
        ("Score", (!scores.is_empty()).then(|| scores.join(" "))),
        ("Negative prompt", (!made.negative.is_empty()).then(|| made.negative.clone())),
        ("Kept cells", made.kept.map(|kept| kept.to_string())),
        ("Redrawn", made.strength.map(|strength| format!("{:.0} %", 100.0 * strength))),
        ("Guidance", Some(guidance.to_string())),
        ("Top-p", top_p.map(|p| p.to_string())),
        ("Top-k", top_k.map(|k| k.to_string())),
        ("Temperature", Some(temperature.to_string())),
        ("Model", Some([made.model.as_str(), made.model_id.as_deref().unwrap_or_default()].join(" "))),
        ("Program", Some(made.program.clone())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Escapes `text` for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
