//! Selects the concepts of an emoji set: a few hundred everyday things, or all emoji.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::captions::phrase;
use super::package::Emoji;

/// The selection of emoji that become pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// The manually selected labels of `small_world.txt`, without people, hands, smileys, flags and
    /// signs.
    Small,
    /// All emoji, in all skin tones and genders.
    Full,
}

/// The labels of the small world, one per line, grouped by kind.
const SMALL_WORLD: &str = include_str!("small_world.txt");

/// An emoji and its name in captions.
#[derive(Debug, Clone)]
pub(super) struct Concept<'a> {
    pub(super) name: String,
    pub(super) emoji: &'a Emoji,
}

impl World {
    /// Returns the concepts of this world in its order. If there is a limit, they are an evenly
    /// spaced selection.
    pub(super) fn pick(self, all: &[Emoji], max_concepts: Option<usize>) -> Result<Vec<Concept<'_>>> {
        let picked = match self {
            World::Small => {
                small_world().map(|(label, name)| find_concept(all, label, name)).collect::<Result<_>>()?
            }
            World::Full => all
                .iter()
                .filter(|emoji| emoji.group.is_some())
                .map(|emoji| Concept { name: phrase(&emoji.label), emoji })
                .collect(),
        };
        Ok(spaced(picked, max_concepts))
    }

    /// Whether the world includes variants with skin tones.
    pub(super) fn has_skin_tones(self) -> bool {
        match self {
            World::Small => false,
            World::Full => true,
        }
    }
}

/// Returns the label and the name of each concept of the small world.
fn small_world() -> impl Iterator<Item = (&'static str, String)> {
    let lines = SMALL_WORLD.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| match line.split_once(" = ") {
        Some((label, name)) => (label, name.to_string()),
        None => (line, phrase(line)),
    })
}

fn find_concept<'a>(all: &'a [Emoji], label: &str, name: String) -> Result<Concept<'a>> {
    let emoji = all.iter().find(|emoji| emoji.label == label).with_context(|| {
        format!("emojibase has no {label:?}, which the small world needs; fetch the version that `runs/fetch_emoji.sh` pins")
    })?;
    Ok(Concept { name, emoji })
}

/// Returns at most `limit` evenly spaced items, beginning with the first.
fn spaced<T: Clone>(items: Vec<T>, limit: Option<usize>) -> Vec<T> {
    match limit {
        Some(limit) if limit < items.len() => {
            (0..limit).map(|n| items[n * items.len() / limit].clone()).collect()
        }
        _ => items,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn small_world_has_distinct_everyday_things() {
        let (labels, names): (Vec<&str>, Vec<String>) = small_world().unzip();
        let unique: HashSet<&str> = names.iter().map(String::as_str).collect();
        assert_eq!((unique.len(), labels.iter().collect::<HashSet<_>>().len()), (labels.len(), labels.len()));
        assert!((300..400).contains(&labels.len()), "{}", labels.len());
        for label in
            ["red apple", "green apple", "banana", "cat face", "dog face", "pizza", "red heart", "blue heart"]
        {
            assert!(unique.contains(label), "{label}");
        }
        for label in ["rose", "sunflower", "rocket", "red circle", "blue square", "padlock", "snowman"] {
            assert!(unique.contains(label), "{label}");
        }
    }

    #[test]
    fn limit_selects_evenly_spaced_items() {
        assert_eq!(spaced((0..10).collect(), Some(4)), [0, 2, 5, 7]);
        assert_eq!(spaced(vec![1, 2], Some(5)), [1, 2]);
        assert!(spaced(vec![1, 2], Some(0)).is_empty());
    }
}
