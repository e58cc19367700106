//! Reads the packages: icon sets in Iconify's JSON format, names and keywords in emojibase's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tessera_text::decode_text;

/// An `icons.json` file. Fields that are not needed are not listed.
#[derive(Debug, Deserialize)]
pub(in crate::sources) struct IconSet {
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
    #[serde(default = "default_side")]
    width: f32,
    #[serde(default = "default_side")]
    height: f32,
}

/// Returns Iconify's default side, for a set without a size.
fn default_side() -> f32 {
    16.0
}

/// An icon: the content of an `<svg>` element, and its view box where it differs from the default
/// of the set.
#[derive(Debug, Deserialize)]
struct Icon {
    body: String,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    left: f32,
    #[serde(default)]
    top: f32,
    width: Option<f32>,
    height: Option<f32>,
}

#[derive(Debug, Deserialize)]
struct Alias {
    parent: String,
    /// Flips, rotations and similar changes. An alias with any of them is a different picture and
    /// is not used.
    #[serde(flatten)]
    changes: BTreeMap<String, serde_json::Value>,
}

impl IconSet {
    pub(in crate::sources) fn read(path: &Path) -> Result<Self> {
        read_json(path)
    }

    /// Returns the names of all icons, including hidden ones.
    pub(in crate::sources) fn names(&self) -> impl Iterator<Item = &str> {
        self.icons.keys().map(String::as_str)
    }

    /// Returns the name of the icon with this name or alias. Hidden (withdrawn) icons are treated
    /// as missing.
    pub(in crate::sources) fn resolve(&self, name: &str) -> Option<&str> {
        let name = match self.aliases.get(name) {
            Some(alias) if alias.changes.is_empty() => alias.parent.as_str(),
            Some(_) => return None,
            None => name,
        };
        self.icons.get_key_value(name).filter(|(_, icon)| !icon.hidden).map(|(name, _)| name.as_str())
    }

    /// Returns the icon as an SVG document.
    pub(in crate::sources) fn svg(&self, name: &str) -> Option<String> {
        let icon = self.icons.get(name)?;
        let (width, height) = (icon.width.unwrap_or(self.width), icon.height.unwrap_or(self.height));
        Some(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"{} {} {width} {height}\">{}</svg>",
            icon.left, icon.top, icon.body
        ))
    }
}

/// One emoji of emojibase.
#[derive(Debug, Clone, Deserialize)]
pub(in crate::sources) struct Emoji {
    pub(in crate::sources) label: String,
    pub(in crate::sources) hexcode: String,
    #[serde(default)]
    pub(in crate::sources) tags: Vec<String>,
    /// The group. Absent for components of emoji, which are not pictures.
    pub(in crate::sources) group: Option<u32>,
    #[serde(default)]
    pub(in crate::sources) skins: Vec<Emoji>,
    pub(in crate::sources) tone: Option<Tone>,
}

/// One skin tone, or one for each person.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(in crate::sources) enum Tone {
    One(u8),
    Several(Vec<u8>),
}

/// Reads a JSON file of a package. If it is missing, the error says how to fetch it.
pub(in crate::sources) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).with_context(|| {
        format!("cannot read {}; fetch the packages with `runs/fetch_emoji.sh DIR`", path.display())
    })?;
    decode_text(&bytes).and_then(|text| Ok(serde_json::from_str(&text)?)).with_context(|| {
        format!(
            "{} does not have the expected content; fetch the packages again with `runs/fetch_emoji.sh`",
            path.display()
        )
    })
}

/// Returns the version in the package's `package.json`.
pub(in crate::sources) fn version(package: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Manifest {
        version: String,
    }
    Ok(read_json::<Manifest>(&package.join("package.json"))?.version)
}

/// Converts a code point sequence to the form in `chars.json`: lower case, without the variation
/// selector FE0F.
pub(in crate::sources) fn plain_hexcode(hexcode: &str) -> String {
    let hexcode = hexcode.to_ascii_lowercase();
    hexcode.split('-').filter(|code| *code != "fe0f").collect::<Vec<_>>().join("-")
}

/// Converts a label to lower case and replaces everything between letters and digits by
/// `separator`.
pub(in crate::sources) fn slug(label: &str, separator: &str) -> String {
    let label: String =
        label.to_lowercase().chars().filter(|c| !matches!(c, '\'' | '’')).map(unaccented).collect();
    let words = label.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(separator)
}

/// Removes the accents that occur in emojibase's English labels.
fn unaccented(c: char) -> char {
    match c {
        'á' | 'ã' | 'å' => 'a',
        'ç' => 'c',
        'é' => 'e',
        'í' => 'i',
        'ñ' => 'n',
        'ô' => 'o',
        'ü' => 'u',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> IconSet {
        serde_json::from_str(
            r#"{"prefix": "x", "width": 32, "icons": {
                "bear-face": {"body": "<path/>", "left": -2, "height": 20},
                "old": {"body": "", "hidden": true}},
              "aliases": {"bear": {"parent": "bear-face"}, "raeb": {"parent": "bear-face", "hFlip": true}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn aliases_are_followed_unless_they_change_the_picture() {
        let set = set();
        assert_eq!(set.resolve("bear"), Some("bear-face"));
        assert_eq!((set.resolve("raeb"), set.resolve("old"), set.resolve("new")), (None, None, None));
    }

    #[test]
    fn icon_keeps_its_view_box() {
        assert!(set().svg("bear-face").unwrap().contains("viewBox=\"-2 0 32 20\""));
    }

    #[test]
    fn names_have_the_format_of_the_sets() {
        assert_eq!(plain_hexcode("1F3C3-200D-2640-FE0F"), "1f3c3-200d-2640");
        assert_eq!(slug("woman’s boot", "-"), "womans-boot");
        assert_eq!(slug("woman: dark skin tone", "-"), "woman-dark-skin-tone");
        assert_eq!(slug("piñata", ""), "pinata");
    }
}
