//! The held-out combinations, which never occur in training. Evaluation uses them to test whether a
//! model can draw what it has not seen (paper §3.3).
//!
//! `held_out.txt` is the list with one combination per line: `KIND: THING | WITH`, for example
//! `rendition: owl | x-ray`.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::scene::{Colour, Extra, Operation, Rendition};
use super::world::World;
use crate::sources::emoji::style::Style;

/// The combinations that were held out when the embedded model was trained.
pub(super) const LIST: &str = include_str!("held_out.txt");

/// The kind of a held-out combination: what a thing is combined with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CombinationKind {
    /// A drawing style.
    Style,
    /// A rendition, such as an x-ray.
    Rendition,
    /// A colour that the thing does not usually have.
    Colour,
    /// Clothes, or an activity.
    Extra,
    /// A second thing in the same picture.
    Things,
    /// The parts that the thing is made of.
    #[serde(rename = "made of")]
    MadeOf,
    /// The shape that the thing takes.
    #[serde(rename = "shaped like")]
    ShapedLike,
    /// The operation that is applied to the thing in the lower of two panels.
    Panel,
}

impl CombinationKind {
    /// All kinds, in the order of the list.
    pub const ALL: [CombinationKind; 8] = [
        CombinationKind::Style,
        CombinationKind::Rendition,
        CombinationKind::Colour,
        CombinationKind::Extra,
        CombinationKind::Things,
        CombinationKind::MadeOf,
        CombinationKind::ShapedLike,
        CombinationKind::Panel,
    ];

    /// Returns the name of the kind in the held-out list.
    pub fn name(self) -> &'static str {
        match self {
            CombinationKind::Style => "style",
            CombinationKind::Rendition => "rendition",
            CombinationKind::Colour => "colour",
            CombinationKind::Extra => "extra",
            CombinationKind::Things => "things",
            CombinationKind::MadeOf => "made of",
            CombinationKind::ShapedLike => "shaped like",
            CombinationKind::Panel => "panel",
        }
    }

    /// Returns the kind with this name. Hyphens are accepted in place of spaces.
    ///
    /// # Errors
    /// If there is no kind with this name.
    pub fn parse(name: &str) -> Result<CombinationKind> {
        let spaced = name.replace('-', " ");
        Self::ALL.into_iter().find(|kind| kind.name() == spaced).with_context(|| {
            format!(
                "unknown kind {name:?}; wanted style, rendition, colour, extra, things, made of, shaped like or panel"
            )
        })
    }
}

/// A thing, given by its index in the world, and what it is combined with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Combination {
    Style(usize, Style),
    Rendition(usize, Rendition),
    Colour(usize, Colour),
    Extra(usize, Extra),
    /// Two things in one picture, the smaller index first. [`Combination::things`] creates it.
    Things(usize, usize),
    /// A thing and the parts that it is made of.
    MadeOf(usize, usize),
    /// A surface and a shape.
    ShapedLike(usize, usize),
    Panel(usize, Operation),
}

impl Combination {
    /// Creates the combination of two things, given in any order.
    pub(super) fn things(first: usize, second: usize) -> Self {
        Self::Things(first.min(second), first.max(second))
    }

    /// Returns the kind of the combination.
    pub(super) fn kind(self) -> CombinationKind {
        match self {
            Combination::Style(..) => CombinationKind::Style,
            Combination::Rendition(..) => CombinationKind::Rendition,
            Combination::Colour(..) => CombinationKind::Colour,
            Combination::Extra(..) => CombinationKind::Extra,
            Combination::Things(..) => CombinationKind::Things,
            Combination::MadeOf(..) => CombinationKind::MadeOf,
            Combination::ShapedLike(..) => CombinationKind::ShapedLike,
            Combination::Panel(..) => CombinationKind::Panel,
        }
    }
}

/// The held-out combinations, in the order of the list.
#[derive(Debug)]
pub(super) struct HeldOut {
    pub(super) list: Vec<Combination>,
    set: HashSet<Combination>,
}

impl HeldOut {
    /// Parses a list.
    ///
    /// # Errors
    /// If a thing or word is unknown, or a combination occurs twice. The message contains the line.
    pub(super) fn parse(text: &str, world: &World) -> Result<Self> {
        let mut held_out = Self { list: Vec::new(), set: HashSet::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = || format!("line {} of the held-out list, {line:?}", number + 1);
            let combination = combination(line, world).with_context(at)?;
            ensure!(held_out.set.insert(combination), "{}: it is already in the list", at());
            held_out.list.push(combination);
        }
        Ok(held_out)
    }

    pub(super) fn contains(&self, combination: &Combination) -> bool {
        self.set.contains(combination)
    }

    /// Checks that every thing has at least one style that is not held out.
    pub(super) fn check(&self, world: &World) -> Result<()> {
        for (index, thing) in world.things.iter().enumerate() {
            let is_kept = |style: &Style| !self.contains(&Combination::Style(index, *style));
            ensure!(
                thing.drawings.keys().any(is_kept),
                "every style of {:?} is held out, so training never shows it; remove one from the list",
                thing.name
            );
        }
        Ok(())
    }
}

fn combination(line: &str, world: &World) -> Result<Combination> {
    let (kind, rest) = line.split_once(':').context("wanted KIND: THING | WITH")?;
    let (thing, with) = rest.split_once('|').context("wanted KIND: THING | WITH")?;
    let (thing, with) = (thing.trim(), with.trim());
    let find = |name: &str| {
        world
            .find(name)
            .with_context(|| format!("there is no thing called {name:?}; things.txt lists all things"))
    };
    let thing = find(thing)?;
    Ok(match CombinationKind::parse(kind.trim())? {
        CombinationKind::Style => {
            let style = word(with, &Style::ALL.map(|style| (style.name(), style)))?;
            ensure!(world.things[thing].drawings.contains_key(&style), "it isn't drawn in {with} style");
            Combination::Style(thing, style)
        }
        CombinationKind::Rendition => Combination::Rendition(thing, word(with, &RENDITIONS)?),
        CombinationKind::Colour => Combination::Colour(thing, word(with, &COLOURS)?),
        CombinationKind::Extra => Combination::Extra(thing, word(with, &EXTRAS)?),
        CombinationKind::Things => Combination::things(thing, find(with)?),
        CombinationKind::MadeOf => Combination::MadeOf(thing, find(with)?),
        CombinationKind::ShapedLike => Combination::ShapedLike(thing, find(with)?),
        CombinationKind::Panel => Combination::Panel(thing, operation(with)?),
    })
}

fn word<T: Copy>(name: &str, known: &[(&'static str, T)]) -> Result<T> {
    let found = known.iter().find(|(word, _)| *word == name).map(|(_, value)| *value);
    found.with_context(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        format!("unknown word {name:?}; wanted one of {}", words.join(", "))
    })
}

fn operation(name: &str) -> Result<Operation> {
    match COLOURS.iter().find(|(word, _)| *word == name) {
        Some((_, colour)) => Ok(Operation::Coloured(*colour)),
        None => word(name, &OPERATIONS),
    }
}

/// The English names of the colours.
pub(super) const COLOURS: [(&str, Colour); 8] = [
    ("red", Colour::Red),
    ("orange", Colour::Orange),
    ("yellow", Colour::Yellow),
    ("green", Colour::Green),
    ("blue", Colour::Blue),
    ("purple", Colour::Purple),
    ("pink", Colour::Pink),
    ("brown", Colour::Brown),
];

const RENDITIONS: [(&str, Rendition); 8] = [
    ("x-ray", Rendition::XRay),
    ("sketch", Rendition::Sketch),
    ("silhouette", Rendition::Silhouette),
    ("black and white", Rendition::BlackAndWhite),
    ("pixel art", Rendition::PixelArt),
    ("neon sign", Rendition::Neon),
    ("postage stamp", Rendition::Stamp),
    ("eraser", Rendition::Eraser),
];

const EXTRAS: [(&str, Extra); 8] = [
    ("baby", Extra::Baby),
    ("tutu", Extra::Tutu),
    ("crown", Extra::Crown),
    ("top hat", Extra::Hat),
    ("sunglasses", Extra::Sunglasses),
    ("scarf", Extra::Scarf),
    ("christmas sweater", Extra::Sweater),
    ("walking a dog", Extra::WalkingDog),
];

const OPERATIONS: [(&str, Operation); 7] = [
    ("sketch", Operation::Sketch),
    ("x-ray", Operation::XRay),
    ("silhouette", Operation::Silhouette),
    ("upside down", Operation::UpsideDown),
    ("black and white", Operation::BlackAndWhite),
    ("sunglasses", Operation::Sunglasses),
    ("postage stamp", Operation::Stamp),
];
