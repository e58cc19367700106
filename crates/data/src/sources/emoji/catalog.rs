//! Finds the icon of each set that draws a given emoji.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};

use super::package::{Emoji, IconSet, plain_hexcode, read_json, slug, version};
use super::style::{Naming, Style};

/// Icons whose names differ from the label in emojibase, as lines of `SET ICON LABEL`.
const RENAMED: &str = include_str!("renamed.txt");
/// The folder of the package with names and keywords.
const EMOJIBASE: &str = "emojibase-data";

/// The content of all packages.
pub(in crate::sources) struct Catalog {
    pub(in crate::sources) emoji: Vec<Emoji>,
    sets: Vec<StyleSet>,
    tag_uses: HashMap<String, usize>,
}

/// One icon set, with the tables that are needed to find an icon in it.
struct StyleSet {
    style: Style,
    icons: IconSet,
    by_code_points: HashMap<String, String>,
    renamed: HashMap<&'static str, &'static str>,
}

impl Catalog {
    /// Reads the packages under `packages`.
    pub(in crate::sources) fn read(packages: &Path) -> Result<Self> {
        let emoji: Vec<Emoji> = read_json(&packages.join(EMOJIBASE).join("en/data.json"))?;
        let sets = Style::ALL.iter().map(|&style| StyleSet::read(packages, style)).collect::<Result<_>>()?;
        let mut tag_uses = HashMap::new();
        for tag in emoji.iter().flat_map(|emoji| &emoji.tags) {
            *tag_uses.entry(tag.clone()).or_default() += 1;
        }
        Ok(Self { emoji, sets, tag_uses })
    }

    /// Returns the styles that have a drawing of `emoji`, each with the name of its icon.
    pub(in crate::sources) fn icons<'a>(
        &'a self,
        emoji: &'a Emoji,
    ) -> impl Iterator<Item = (Style, &'a str)> {
        self.sets.iter().filter_map(|set| Some((set.style, set.icon(emoji)?)))
    }

    /// Returns the icon as an SVG document.
    pub(in crate::sources) fn svg(&self, style: Style, icon: &str) -> Result<String> {
        let set = self.sets.iter().find(|set| set.style == style);
        set.and_then(|set| set.icons.svg(icon))
            .with_context(|| format!("{} has no icon {icon}", style.folder()))
    }

    /// Returns the keywords of `emoji`: first those that occur in its label, then the others by
    /// frequency, because the most frequent ones describe the kind of thing.
    pub(in crate::sources) fn tags(&self, emoji: &Emoji) -> Vec<String> {
        let label = emoji.label.to_lowercase();
        let mut tags: Vec<String> = emoji.tags.iter().map(|tag| tag.to_lowercase()).collect();
        tags.sort_by_cached_key(|tag| {
            let uses = self.tag_uses.get(tag).copied().unwrap_or(0);
            (!label.split(' ').any(|word| word == tag), usize::MAX - uses, tag.clone())
        });
        tags
    }

    /// Returns, for each set, the number of icons that match no emoji of emojibase or are
    /// withdrawn.
    pub(in crate::sources) fn unmatched(&self) -> BTreeMap<Style, u64> {
        let all: Vec<&Emoji> =
            self.emoji.iter().flat_map(|emoji| std::iter::once(emoji).chain(&emoji.skins)).collect();
        let unmatched = |set: &StyleSet| {
            let matched: HashSet<&str> = all.iter().filter_map(|emoji| set.icon(emoji)).collect();
            set.icons.names().filter(|name| !matched.contains(name)).count() as u64
        };
        self.sets.iter().map(|set| (set.style, unmatched(set))).collect()
    }
}

/// Returns the version of each package. The versions are stored in the record of a set.
pub(in crate::sources) fn versions(packages: &Path) -> Result<BTreeMap<String, String>> {
    let folders = Style::ALL.iter().map(|style| style.folder()).chain([EMOJIBASE]);
    folders.map(|folder| Ok((folder.to_string(), version(&packages.join(folder))?))).collect()
}

impl StyleSet {
    fn read(packages: &Path, style: Style) -> Result<Self> {
        let icons = IconSet::read(&packages.join(style.folder()).join("icons.json"))?;
        let by_code_points = match style.naming() {
            Naming::CodePoints(folder) => read_json(&packages.join(folder).join("chars.json"))?,
            Naming::Hyphens | Naming::Joined => HashMap::new(),
        };
        Ok(Self { style, icons, by_code_points, renamed: renamed_in(style.folder()) })
    }

    /// Returns the icon that draws `emoji`, if there is one.
    fn icon<'a>(&'a self, emoji: &Emoji) -> Option<&'a str> {
        if let Some((icon, _)) = self.renamed.iter().find(|(_, label)| **label == emoji.label) {
            return self.icons.resolve(icon);
        }
        let icon = match self.style.naming() {
            Naming::CodePoints(_) => {
                self.icons.resolve(self.by_code_points.get(&plain_hexcode(&emoji.hexcode))?)
            }
            Naming::Hyphens => self.resolve_slug(&flag_for(&emoji.label), "-"),
            Naming::Joined => self.resolve_slug(&emoji.label, ""),
        }?;
        // An icon in the list of renamed icons matches only the label given there.
        (!self.renamed.contains_key(icon)).then_some(icon)
    }

    fn resolve_slug(&self, label: &str, separator: &str) -> Option<&str> {
        self.icons.resolve(&slug(label, separator))
    }
}

/// Converts the label of a flag to its older form, "flag for France".
fn flag_for(label: &str) -> String {
    label.replace("flag: ", "flag for ")
}

/// Returns the renamed icons of one set as a map from icon to label.
fn renamed_in(folder: &str) -> HashMap<&'static str, &'static str> {
    let lines = RENAMED.lines().filter(|line| !line.starts_with('#'));
    let entries = lines.filter_map(|line| {
        let (set, rest) = line.split_once(' ')?;
        let (icon, label) = rest.split_once(' ')?;
        (set == folder).then_some((icon, label.trim()))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_renamed_icons_is_well_formed() {
        let lines = RENAMED.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        let entries: usize = Style::ALL.iter().map(|style| renamed_in(style.folder()).len()).sum();
        assert_eq!(entries, lines, "a line names no set, or an icon comes twice");
        assert_eq!(renamed_in("fxemoji")["catside"], "cat");
    }
}
