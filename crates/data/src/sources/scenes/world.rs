//! The things that scenes are made of, with their names in six languages and their drawings in six
//! styles.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::words::plural;
use crate::sources::emoji::captions::{phrase, with_article};
use crate::sources::emoji::catalog::Catalog;
use crate::sources::emoji::package::{Emoji, read_json};
use crate::sources::emoji::style::Style;

/// The list of things.
const THINGS: &str = include_str!("things.txt");
/// Our own drawings, for things that no icon set has.
const OWN: [(&str, &str); 2] = [
    ("drawings/radish.svg", include_str!("drawings/radish.svg")),
    ("drawings/armchair.svg", include_str!("drawings/armchair.svg")),
];
/// The languages other than English and Chinese in which single things are named. The codes are the
/// folder names of emojibase.
pub(super) const OTHER_LANGUAGES: [&str; 4] = ["es", "de", "fr", "ja"];

/// The kind of a thing. It determines what the thing can wear and which classifier it has in
/// Chinese.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A complete animal, seen from the side or the front.
    Animal,
    /// The face of an animal, or a figure that is mostly head.
    Face,
    /// A flower, a tree, a leaf.
    Plant,
    /// A fruit or a vegetable.
    Produce,
    /// Prepared food and drink.
    Food,
    /// A building, a landscape, a vehicle, the sky.
    Place,
    /// Anything else.
    Object,
}

impl Kind {
    /// Whether things of this kind can wear clothes, hold things and walk a dog.
    pub(super) fn is_character(self) -> bool {
        match self {
            Kind::Animal | Kind::Face | Kind::Produce => true,
            Kind::Plant | Kind::Food | Kind::Place | Kind::Object => false,
        }
    }
}

/// A thing with its names and drawings.
#[derive(Debug, Clone)]
pub(super) struct Thing {
    /// The English name without an article: "red apple".
    pub(super) name: String,
    /// The English plural. `None` if the name is uncountable ("bacon") or already a plural
    /// ("grapes").
    pub(super) plural: Option<String>,
    /// The Chinese name.
    pub(super) chinese: String,
    /// The names in other languages.
    pub(super) others: Vec<String>,
    /// The keywords, the most important first.
    pub(super) tags: Vec<String>,
    pub(super) kind: Kind,
    /// The available styles, each with its SVG document.
    pub(super) drawings: BTreeMap<Style, String>,
}

impl Thing {
    /// Returns the name with its article, if it takes one: "a red apple", "grapes".
    pub(super) fn with_article(&self) -> String {
        with_article(&self.name)
    }
}

/// All things, with an index by name.
#[derive(Debug)]
pub(super) struct World {
    pub(super) things: Vec<Thing>,
    by_name: HashMap<String, usize>,
}

impl World {
    /// Reads the packages that `runs/fetch_emoji.sh` fetches.
    pub(super) fn read(packages: &Path) -> Result<Self> {
        let catalog = Catalog::read(packages)?;
        let labels = Labels::read(packages)?;
        let mut things = Vec::new();
        for Entry { label, name, chinese, kind } in entries()? {
            let own = OWN.iter().find(|(file, _)| *file == label).map(|(_, svg)| *svg);
            let thing = match own {
                Some(svg) => own_thing(svg, name, chinese, kind).with_context(|| label.to_string())?,
                None => emoji_thing(&catalog, &labels, label, name, chinese, kind)?,
            };
            things.push(thing);
        }
        let by_name = things.iter().enumerate().map(|(n, thing)| (thing.name.clone(), n)).collect();
        Ok(Self { things, by_name })
    }

    /// Returns the index of the thing with this English name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns the indices of the things for which `predicate` is true.
    pub(super) fn those(&self, predicate: impl Fn(&Thing) -> bool) -> Vec<usize> {
        (0..self.things.len()).filter(|&n| predicate(&self.things[n])).collect()
    }
}

#[cfg(test)]
impl World {
    /// Returns a world in which every thing is the same shape in every style, for tests without
    /// packages.
    pub(super) fn of_shapes() -> Self {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 8 8\">\
                   <path d=\"M1 1h6v4H5v2H1z\" fill=\"#c33\"/></svg>";
        let thing = |Entry { label, name, chinese, kind }: Entry| {
            let name = name.map_or_else(|| phrase(label), str::to_string);
            let chinese = Some(chinese.unwrap_or("物"));
            own_thing(svg, Some(&name), chinese, kind).unwrap()
        };
        let things: Vec<Thing> = entries().unwrap().into_iter().map(thing).collect();
        let by_name = things.iter().enumerate().map(|(n, thing)| (thing.name.clone(), n)).collect();
        Self { things, by_name }
    }
}

/// A line of the list of things.
pub(super) struct Entry {
    pub(super) label: &'static str,
    name: Option<&'static str>,
    chinese: Option<&'static str>,
    kind: Kind,
}

/// Parses the list of things.
pub(super) fn entries() -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut kind = Kind::Object;
    let mut seen = HashSet::new();
    for line in THINGS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(heading) = line.strip_prefix('[') {
            kind = kind_of(heading.trim_end_matches(']'))?;
            continue;
        }
        let (rest, chinese) = split(line, " | ");
        let (label, name) = split(rest, " = ");
        ensure!(seen.insert(label), "things.txt has {label:?} twice");
        let is_face = label.ends_with(" face") && kind == Kind::Animal;
        entries.push(Entry { label, name, chinese, kind: if is_face { Kind::Face } else { kind } });
    }
    Ok(entries)
}

fn split<'a>(text: &'a str, separator: &str) -> (&'a str, Option<&'a str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before.trim(), Some(after.trim())),
        None => (text.trim(), None),
    }
}

fn kind_of(heading: &str) -> Result<Kind> {
    Ok(match heading {
        "animals" => Kind::Animal,
        "plants" => Kind::Plant,
        "vegetables and fruit" => Kind::Produce,
        "food" => Kind::Food,
        "places and vehicles" => Kind::Place,
        "toys and sports" | "objects" => Kind::Object,
        "figures" => Kind::Face,
        other => bail!("things.txt has the unknown heading [{other}]"),
    })
}

/// For each language, a map from code points to labels.
struct Labels(HashMap<&'static str, HashMap<String, String>>);

impl Labels {
    fn read(packages: &Path) -> Result<Self> {
        let mut languages = HashMap::new();
        for language in ["zh"].into_iter().chain(OTHER_LANGUAGES) {
            let path = packages.join("emojibase-data").join(language).join("data.json");
            let all: Vec<Emoji> = read_json(&path)?;
            languages.insert(language, all.into_iter().map(|emoji| (emoji.hexcode, emoji.label)).collect());
        }
        Ok(Self(languages))
    }

    fn get(&self, language: &str, hexcode: &str) -> Option<&String> {
        self.0.get(language)?.get(hexcode)
    }
}

fn emoji_thing(
    catalog: &Catalog,
    labels: &Labels,
    label: &str,
    name: Option<&str>,
    chinese: Option<&str>,
    kind: Kind,
) -> Result<Thing> {
    let emoji = catalog.emoji.iter().find(|emoji| emoji.label == label).with_context(|| {
        format!(
            "emojibase has no {label:?}, which things.txt lists; fetch the version that \
             `runs/fetch_emoji.sh` pins"
        )
    })?;
    let mut drawings = BTreeMap::new();
    for (style, icon) in catalog.icons(emoji) {
        drawings.insert(style, catalog.svg(style, icon)?);
    }
    ensure!(!drawings.is_empty(), "no set draws {label:?}, which things.txt lists");
    let name = name.map_or_else(|| phrase(label), str::to_string);
    let chinese = chinese.or_else(|| labels.get("zh", &emoji.hexcode).map(String::as_str));
    let others = OTHER_LANGUAGES.iter().filter_map(|language| labels.get(language, &emoji.hexcode));
    Ok(Thing {
        plural: plural(&name),
        chinese: chinese.with_context(|| format!("{label:?} has no Chinese name"))?.to_string(),
        others: others.map(|label| label.to_lowercase()).collect(),
        tags: catalog.tags(emoji),
        kind,
        drawings,
        name,
    })
}

/// Creates a thing with one of our own drawings, which is used for every style.
fn own_thing(svg: &str, name: Option<&str>, chinese: Option<&str>, kind: Kind) -> Result<Thing> {
    let name = name.context("a drawing of our own needs a name")?.to_string();
    Ok(Thing {
        plural: plural(&name),
        chinese: chinese.context("a drawing of our own needs a Chinese name")?.to_string(),
        others: Vec::new(),
        tags: Vec::new(),
        kind,
        drawings: Style::ALL.iter().map(|&style| (style, svg.to_string())).collect(),
        name,
    })
}
