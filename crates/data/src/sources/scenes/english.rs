//! English captions of scenes: at least eight phrasings for every kind.

use super::held_out::COLOURS;
use super::scene::{Colour, Content, Extra, Look, Operation, Relation, Rendition};
use super::words::number;
use super::world::{Thing, World};
use crate::sources::emoji::captions::with_article;

/// Prefixes of a phrase that do not change its meaning.
const WRAPS: [&str; 6] =
    ["", "a picture of ", "an image of ", "an illustration of ", "a drawing of ", "this is "];

/// Returns all phrasings of the content, the canonical one first. The caller adds style and
/// background.
pub(super) fn phrasings(world: &World, content: &Content) -> Vec<String> {
    let thing = |index: usize| &world.things[index];
    match *content {
        Content::One { thing: index, look } => one(thing(index), look),
        Content::Several { thing: index, count } => several(thing(index), count),
        Content::Rendered { thing: index, rendition } => rendered(thing(index), rendition),
        Content::Two { first, second, relation } => two(thing(first), thing(second), relation),
        Content::MadeOf { whole, part } => made_of(thing(whole), thing(part)),
        Content::ShapedLike { surface, shape } => shaped_like(thing(surface), thing(shape)),
        Content::Dressed { thing: index, ref extras, held } => dressed(thing(index), extras, held.map(thing)),
        Content::Panels { thing: index, operation } => panels(thing(index), operation),
    }
}

/// Combines every prefix of [`WRAPS`] with every core. The first prefix is empty.
fn wrapped(cores: &[String]) -> Vec<String> {
    WRAPS.iter().flat_map(|wrap| cores.iter().map(move |core| format!("{wrap}{core}"))).collect()
}

fn one(thing: &Thing, look: Look) -> Vec<String> {
    let (name, a) = (&thing.name, thing.with_article());
    match look {
        Look::Plain => {
            let mut all = wrapped(std::slice::from_ref(&a));
            all.extend([name.clone(), format!("an emoji of {a}"), format!("a small picture of {a}")]);
            all.extend(keywords(thing));
            all
        }
        Look::Coloured(colour) => {
            let (colour, name) = (colour_name(colour), without_colour(name));
            let coloured = with_article(&format!("{colour} {name}"));
            let mut all = wrapped(&[coloured, format!("{} in {colour}", with_article(name))]);
            all.push(format!("{colour} {name}"));
            all
        }
        Look::Tiny => {
            wrapped(&["tiny", "very small", "little"].map(|size| with_article(&format!("{size} {name}"))))
        }
        Look::Huge => {
            wrapped(&["huge", "giant", "very large"].map(|size| with_article(&format!("{size} {name}"))))
        }
        Look::UpsideDown => wrapped(&[
            with_article(&format!("upside-down {name}")),
            format!("{a} upside down"),
            format!("{a} turned upside down"),
        ]),
    }
}

/// Returns a list of keywords: "apple, red, food, fruit".
fn keywords(thing: &Thing) -> Option<String> {
    let tags: Vec<&str> =
        thing.tags.iter().map(String::as_str).filter(|tag| **tag != thing.name).take(3).collect();
    (tags.len() >= 2).then(|| format!("{}, {}", thing.name, tags.join(", ")))
}

fn several(thing: &Thing, count: usize) -> Vec<String> {
    let (n, many) = (number(count), thing.plural.as_ref().unwrap_or(&thing.name));
    wrapped(&[format!("{n} {many}"), format!("a group of {n} {many}"), format!("{n} {many} together")])
}

fn rendered(thing: &Thing, rendition: Rendition) -> Vec<String> {
    let (name, a) = (&thing.name, thing.with_article());
    let cores = match rendition {
        Rendition::XRay => [
            format!("an x-ray of {a}"),
            format!("{a} as an x-ray"),
            format!("an x-ray picture of {a}"),
            format!("{a} seen in x-ray"),
        ],
        Rendition::Sketch => [
            format!("a pencil sketch of {a}"),
            format!("a sketch of {a}"),
            format!("{a} as a pencil sketch"),
            format!("{a} drawn in pencil"),
        ],
        Rendition::Silhouette => [
            format!("a silhouette of {a}"),
            format!("the black silhouette of {a}"),
            format!("{a} as a silhouette"),
            with_article(&format!("{name} silhouette")),
        ],
        Rendition::BlackAndWhite => [
            format!("{a} in black and white"),
            format!("a black and white picture of {a}"),
            format!("a black and white {name}"),
            format!("{a} in shades of grey"),
        ],
        Rendition::PixelArt => [
            format!("{a} as pixel art"),
            format!("pixel art of {a}"),
            format!("a pixel art {name}"),
            format!("a pixelated {name}"),
        ],
        Rendition::Neon => [
            format!("a neon sign of {a}"),
            format!("{a} as a neon sign"),
            with_article(&format!("{name} neon sign")),
            format!("a glowing neon {name}"),
        ],
        Rendition::Stamp => [
            format!("a postage stamp of {a}"),
            format!("a postage stamp with {a}"),
            format!("{a} on a postage stamp"),
            format!("a stamp of {a}"),
        ],
        Rendition::Eraser => [
            with_article(&format!("{name} eraser")),
            format!("an eraser in the shape of {a}"),
            format!("an eraser shaped like {a}"),
            with_article(&format!("{name} rubber eraser")),
        ],
    };
    let seen = cores.iter().map(|core| format!("this is {core}")).collect::<Vec<_>>();
    cores.into_iter().chain(seen).collect()
}

fn two(first: &Thing, second: &Thing, relation: Relation) -> Vec<String> {
    let (a, b) = (first.with_article(), second.with_article());
    wrapped(&match relation {
        Relation::SideBySide => vec![
            format!("{a} and {b}"),
            format!("{a} and {b} side by side"),
            format!("{a} next to {b}"),
            format!("{a} beside {b}"),
        ],
        Relation::LeftOf => vec![
            format!("{a} to the left of {b}"),
            format!("{a} on the left and {b} on the right"),
            format!("{a} left of {b}"),
        ],
        Relation::RightOf => vec![
            format!("{a} to the right of {b}"),
            format!("{a} on the right and {b} on the left"),
            format!("{a} right of {b}"),
        ],
        Relation::Above => vec![
            format!("{a} above {b}"),
            format!("{a} on the top and {b} on the bottom"),
            format!("{a} over {b}"),
        ],
        Relation::Below => vec![
            format!("{a} below {b}"),
            format!("{a} on the bottom and {b} on the top"),
            format!("{a} under {b}"),
        ],
        Relation::InFrontOf => vec![format!("{a} in front of {b}"), format!("{b} behind {a}")],
    })
}

fn made_of(whole: &Thing, part: &Thing) -> Vec<String> {
    let (a, parts) = (whole.with_article(), part.plural.as_ref().unwrap_or(&part.name));
    wrapped(&[
        format!("{a} made of {parts}"),
        format!("{a} made out of {parts}"),
        format!("{a} built from many {parts}"),
        format!("{a} filled with {parts}"),
    ])
}

fn shaped_like(surface: &Thing, shape: &Thing) -> Vec<String> {
    let (a, b) = (surface.with_article(), shape.with_article());
    wrapped(&[
        format!("{a} in the shape of {b}"),
        format!("{a} shaped like {b}"),
        format!("{a} imitating {b}"),
        format!("{a} in the form of {b}"),
    ])
}

fn dressed(thing: &Thing, extras: &[Extra], held: Option<&Thing>) -> Vec<String> {
    let is_baby = extras.contains(&Extra::Baby);
    let a = if is_baby { format!("a baby {}", thing.name) } else { thing.with_article() };
    let worn: Vec<&str> = extras.iter().filter_map(|&extra| garment(extra)).collect();
    let mut doing = Vec::new();
    doing.extend(held.map(|held| format!("holding {}", held.with_article())));
    doing.extend(extras.contains(&Extra::WalkingDog).then(|| "walking a dog".to_string()));
    let tail = if doing.is_empty() { String::new() } else { format!(" {}", doing.join(" and ")) };
    if worn.is_empty() {
        return wrapped(&[format!("{a}{tail}")])
            .into_iter()
            .chain([format!("{a},{tail}"), format!("here is {a}{tail}")])
            .collect();
    }
    let worn = worn.join(" and ");
    wrapped(&["wearing", "in", "with", "dressed in"].map(|verb| format!("{a} {verb} {worn}{tail}")))
}

/// Returns the name of a garment in captions.
fn garment(extra: Extra) -> Option<&'static str> {
    match extra {
        Extra::Tutu => Some("a tutu"),
        Extra::Crown => Some("a crown"),
        Extra::Hat => Some("a top hat"),
        Extra::Sunglasses => Some("sunglasses"),
        Extra::Scarf => Some("a scarf"),
        Extra::Sweater => Some("a christmas sweater"),
        Extra::Baby | Extra::WalkingDog => None,
    }
}

fn panels(thing: &Thing, operation: Operation) -> Vec<String> {
    let (name, a) = (&thing.name, thing.with_article());
    let how = match operation {
        Operation::Sketch => "as a sketch".to_string(),
        Operation::XRay => "as an x-ray".to_string(),
        Operation::Silhouette => "as a silhouette".to_string(),
        Operation::UpsideDown => "upside down".to_string(),
        Operation::BlackAndWhite => "in black and white".to_string(),
        Operation::Coloured(colour) => format!("coloured {}", colour_name(colour)),
        Operation::Sunglasses => "with sunglasses".to_string(),
        Operation::Stamp => "as a postage stamp".to_string(),
    };
    vec![
        format!("the exact same {name} on the top {how} on the bottom"),
        format!("2 panel image of the exact same {name}, on the top as it is, on the bottom {how}"),
        format!("{a} on the top and the same {name} {how} on the bottom"),
        format!("{a} above, the same {name} {how} below"),
        format!("two panels of {a}, the bottom one {how}"),
        format!("the same {name} twice, on the bottom {how}"),
        format!("top: {a}; bottom: the same {name} {how}"),
        format!("a picture of {a}, and under it the exact same {name} {how}"),
    ]
}

/// Returns the English name of a colour.
pub(super) fn colour_name(colour: Colour) -> &'static str {
    COLOURS.iter().find(|(_, known)| *known == colour).map_or("", |(name, _)| name)
}

/// Removes a colour from the start of a name: a purple "red apple" is a purple apple.
fn without_colour(name: &str) -> &str {
    let own = COLOURS.iter().map(|(colour, _)| *colour).chain(["black", "white"]);
    own.filter_map(|colour| name.strip_prefix(colour)?.strip_prefix(' ')).next().unwrap_or(name)
}
