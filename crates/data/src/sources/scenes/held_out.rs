//! The combinations that training never shows: what "can it draw what it never saw?" is measured on (paper §3.3).
//!
//! `held_out.txt` is the list, one combination a line: `KIND: THING | WITH`, for example `rendition: owl | x-ray`.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};

use super::scene::{Colour, Extra, Operation, Rendition};
use super::world::World;
use crate::sources::emoji::style::Style;

/// The list that the embedded model was trained without.
pub(super) const LIST: &str = include_str!("held_out.txt");

/// A thing and what it is combined with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Combination {
    Style(usize, Style),
    Rendition(usize, Rendition),
    Colour(usize, Colour),
    Extra(usize, Extra),
    /// Two things in one picture, the smaller index first: make it with [`Combination::things`].
    Things(usize, usize),
    /// A whole and the parts that it is made of.
    MadeOf(usize, usize),
    /// A surface and a shape.
    ShapedLike(usize, usize),
    Panel(usize, Operation),
}

impl Combination {
    /// Two things in one picture, whichever comes first.
    pub(super) fn things(first: usize, second: usize) -> Self {
        Self::Things(first.min(second), first.max(second))
    }

    /// The kind, as the list names it.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Combination::Style(..) => "style",
            Combination::Rendition(..) => "rendition",
            Combination::Colour(..) => "colour",
            Combination::Extra(..) => "extra",
            Combination::Things(..) => "things",
            Combination::MadeOf(..) => "made of",
            Combination::ShapedLike(..) => "shaped like",
            Combination::Panel(..) => "panel",
        }
    }
}

/// A list of held-out combinations, in its order.
#[derive(Debug)]
pub(super) struct HeldOut {
    pub(super) list: Vec<Combination>,
    set: HashSet<Combination>,
}

impl HeldOut {
    /// Parses a list. An unknown thing or word and a combination that comes twice are errors that name the line.
    pub(super) fn parse(text: &str, world: &World) -> Result<Self> {
        let mut held_out = Self { list: Vec::new(), set: HashSet::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = || format!("line {} of the held-out list, {line:?}", number + 1);
            let combination = combination(line, world).with_context(at)?;
            ensure!(held_out.set.insert(combination), "{}: it is there already", at());
            held_out.list.push(combination);
        }
        Ok(held_out)
    }

    pub(super) fn contains(&self, combination: &Combination) -> bool {
        self.set.contains(combination)
    }

    /// Checks that every thing keeps a style in which it is trained on.
    pub(super) fn check(&self, world: &World) -> Result<()> {
        for (index, thing) in world.things.iter().enumerate() {
            let is_kept = |style: &Style| !self.contains(&Combination::Style(index, *style));
            ensure!(
                thing.drawings.keys().any(is_kept),
                "every style of {:?} is held out, so that training never shows it; keep one",
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
        world.find(name).with_context(|| format!("there is no thing called {name:?}; things.txt lists all"))
    };
    let thing = find(thing)?;
    Ok(match kind.trim() {
        "style" => {
            let style = word(with, &Style::ALL.map(|style| (style.name(), style)))?;
            ensure!(world.things[thing].drawings.contains_key(&style), "it isn't drawn in {with} style");
            Combination::Style(thing, style)
        }
        "rendition" => Combination::Rendition(thing, word(with, &RENDITIONS)?),
        "colour" => Combination::Colour(thing, word(with, &COLOURS)?),
        "extra" => Combination::Extra(thing, word(with, &EXTRAS)?),
        "things" => Combination::things(thing, find(with)?),
        "made of" => Combination::MadeOf(thing, find(with)?),
        "shaped like" => Combination::ShapedLike(thing, find(with)?),
        "panel" => Combination::Panel(thing, operation(with)?),
        other => bail!(
            "unknown kind {other:?}; wanted style, rendition, colour, extra, things, made of, shaped like or panel"
        ),
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

/// The names of colours, in English.
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
