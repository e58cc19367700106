//! Writes placeholder packages in which every drawing is a plain shape, for tests without the real
//! packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::world::{OTHER_LANGUAGES, entries};
use crate::sources::emoji::package::plain_hexcode;
use crate::sources::emoji::style::Style;

/// Outlines in a view box of 16 x 16. None of them is symmetric when turned upside down.
const OUTLINES: [&str; 4] =
    ["M1 1h14v8H9v6H1z", "M2 1h12l1 14H8V8H2z", "M1 3l14-2v6l-8 1 1 7H2z", "M4 1h11v14h-3V6H4z"];

/// Writes packages to `dir` in the layout of `runs/fetch_emoji.sh`. Each thing of scenes is one
/// shape in a different colour. It is the same in every style that finds its icons by code points;
/// the other styles have no drawings.
///
/// # Errors
/// If a file cannot be written.
pub fn write_placeholder_packages(dir: &Path) -> Result<()> {
    let labels: Vec<&str> = entries()?.iter().map(|entry| entry.label).collect();
    let labels: Vec<&str> = labels.into_iter().filter(|label| !label.starts_with("drawings/")).collect();
    let hexcode = |n: usize| format!("F{n:04X}");
    let emoji = |(n, label): (usize, &&str)| json!({ "label": label, "hexcode": hexcode(n), "group": 1 });
    let data: Vec<Value> = labels.iter().enumerate().map(emoji).collect();
    for language in ["en", "zh"].into_iter().chain(OTHER_LANGUAGES) {
        write(dir, &format!("emojibase-data/{language}/data.json"), &json!(data))?;
    }
    write(dir, "emojibase-data/package.json", &json!({ "version": "0.0.0" }))?;
    let name = |n: usize| format!("shape-{n}");
    let icons: BTreeMap<String, Value> = (0..labels.len()).map(|n| (name(n), icon(n))).collect();
    let chars: BTreeMap<String, String> =
        (0..labels.len()).map(|n| (plain_hexcode(&hexcode(n)), name(n))).collect();
    for style in Style::ALL {
        let folder = style.folder();
        write(dir, &format!("{folder}/icons.json"), &json!({ "prefix": folder, "icons": icons }))?;
        write(dir, &format!("{folder}/chars.json"), &json!(chars))?;
        write(dir, &format!("{folder}/package.json"), &json!({ "version": "0.0.0" }))?;
    }
    Ok(())
}

/// Returns a shape in a dark colour.
fn icon(n: usize) -> Value {
    let [r, g, b] = [67, 131, 199].map(|step| 10 + n * step % 120);
    let outline = OUTLINES[n % OUTLINES.len()];
    json!({ "body": format!("<path fill=\"#{r:02x}{g:02x}{b:02x}\" d=\"{outline}\"/>") })
}

fn write(dir: &Path, name: &str, value: &Value) -> Result<()> {
    let path = dir.join(name);
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(&path, value.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
