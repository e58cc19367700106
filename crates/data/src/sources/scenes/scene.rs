//! The description of a scene, from which its captions and its picture are made.

use super::held_out::Combination;
use crate::sources::emoji::style::Style;

/// A colour that captions can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
}

impl Colour {
    pub(super) const ALL: [Colour; 8] = [
        Colour::Red,
        Colour::Orange,
        Colour::Yellow,
        Colour::Green,
        Colour::Blue,
        Colour::Purple,
        Colour::Pink,
        Colour::Brown,
    ];
}

/// A way to render a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Rendition {
    XRay,
    Sketch,
    Silhouette,
    BlackAndWhite,
    PixelArt,
    Neon,
    Stamp,
    Eraser,
}

impl Rendition {
    pub(super) const ALL: [Rendition; 8] = [
        Rendition::XRay,
        Rendition::Sketch,
        Rendition::Silhouette,
        Rendition::BlackAndWhite,
        Rendition::PixelArt,
        Rendition::Neon,
        Rendition::Stamp,
        Rendition::Eraser,
    ];
}

/// Something that a character wears or does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Extra {
    /// Small, with a face drawn on it: "a baby radish".
    Baby,
    Tutu,
    Crown,
    Hat,
    Sunglasses,
    Scarf,
    Sweater,
    WalkingDog,
}

impl Extra {
    pub(super) const ALL: [Extra; 8] = [
        Extra::Baby,
        Extra::Tutu,
        Extra::Crown,
        Extra::Hat,
        Extra::Sunglasses,
        Extra::Scarf,
        Extra::Sweater,
        Extra::WalkingDog,
    ];

    /// Whether two extras cannot be combined.
    pub(super) fn excludes(self, other: Extra) -> bool {
        use Extra::{Baby, Crown, Hat, Sunglasses, Sweater, Tutu};
        matches!(
            (self, other),
            (Crown, Hat)
                | (Hat, Crown)
                | (Tutu, Sweater)
                | (Sweater, Tutu)
                | (Baby, Sunglasses)
                | (Sunglasses, Baby)
        ) || self == other
    }
}

/// The change that is applied in the lower half of a picture with two panels (paper Fig. 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Operation {
    Sketch,
    XRay,
    Silhouette,
    UpsideDown,
    BlackAndWhite,
    Coloured(Colour),
    Sunglasses,
    Stamp,
}

impl Operation {
    /// Returns all operations, with recolouring once per colour.
    pub(super) fn all() -> Vec<Operation> {
        use Operation::{BlackAndWhite, Coloured, Silhouette, Sketch, Stamp, Sunglasses, UpsideDown, XRay};
        let others = [Sketch, XRay, Silhouette, UpsideDown, BlackAndWhite, Sunglasses, Stamp];
        others.into_iter().chain(Colour::ALL.map(Coloured)).collect()
    }
}

/// The relative position of two things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Relation {
    SideBySide,
    LeftOf,
    RightOf,
    Above,
    Below,
    InFrontOf,
}

impl Relation {
    pub(super) const ALL: [Relation; 6] = [
        Relation::SideBySide,
        Relation::LeftOf,
        Relation::RightOf,
        Relation::Above,
        Relation::Below,
        Relation::InFrontOf,
    ];
}

/// An attribute of a single thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Look {
    Plain,
    Coloured(Colour),
    Tiny,
    Huge,
    UpsideDown,
}

/// The background of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Background {
    White,
    Named(Colour),
}

/// The content of a scene: its things, given by their indices in the world, and how they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Content {
    One {
        thing: usize,
        look: Look,
    },
    Several {
        thing: usize,
        count: usize,
    },
    Rendered {
        thing: usize,
        rendition: Rendition,
    },
    Two {
        first: usize,
        second: usize,
        relation: Relation,
    },
    /// The outline of `whole`, filled with small copies of `part`.
    MadeOf {
        whole: usize,
        part: usize,
    },
    /// The outline of `shape`, filled with the surface of `surface`.
    ShapedLike {
        surface: usize,
        shape: usize,
    },
    Dressed {
        thing: usize,
        extras: Vec<Extra>,
        held: Option<usize>,
    },
    Panels {
        thing: usize,
        operation: Operation,
    },
}

/// A scene: its content, style and background.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scene {
    pub(super) content: Content,
    pub(super) style: Style,
    pub(super) background: Background,
}

impl Content {
    /// Returns the thing that determines the available styles.
    pub(super) fn first(&self) -> usize {
        match *self {
            Content::One { thing, .. }
            | Content::Several { thing, .. }
            | Content::Rendered { thing, .. }
            | Content::Dressed { thing, .. }
            | Content::Panels { thing, .. } => thing,
            Content::Two { first, .. } => first,
            Content::MadeOf { whole, .. } => whole,
            Content::ShapedLike { surface, .. } => surface,
        }
    }

    /// Returns the main things. A thing that a character holds is not included.
    pub(super) fn things(&self) -> Vec<usize> {
        match *self {
            Content::One { thing, .. }
            | Content::Several { thing, .. }
            | Content::Rendered { thing, .. }
            | Content::Dressed { thing, .. }
            | Content::Panels { thing, .. } => vec![thing],
            Content::Two { first, second, .. } => vec![first, second],
            Content::MadeOf { whole, part } => vec![whole, part],
            Content::ShapedLike { surface, shape } => vec![surface, shape],
        }
    }

    /// Returns the same content with the thing `old` replaced by `new`.
    pub(super) fn with_thing(&self, old: usize, new: usize) -> Content {
        let swap = |thing: usize| if thing == old { new } else { thing };
        match *self {
            Content::One { thing, look } => Content::One { thing: swap(thing), look },
            Content::Several { thing, count } => Content::Several { thing: swap(thing), count },
            Content::Rendered { thing, rendition } => Content::Rendered { thing: swap(thing), rendition },
            Content::Two { first, second, relation } => {
                Content::Two { first: swap(first), second: swap(second), relation }
            }
            Content::MadeOf { whole, part } => Content::MadeOf { whole: swap(whole), part: swap(part) },
            Content::ShapedLike { surface, shape } => {
                Content::ShapedLike { surface: swap(surface), shape: swap(shape) }
            }
            Content::Dressed { thing, ref extras, held } => {
                Content::Dressed { thing: swap(thing), extras: extras.clone(), held }
            }
            Content::Panels { thing, operation } => Content::Panels { thing: swap(thing), operation },
        }
    }

    /// Whether the scene can have a coloured background.
    pub(super) fn takes_background(&self) -> bool {
        match self {
            Content::One { .. }
            | Content::Several { .. }
            | Content::Two { .. }
            | Content::MadeOf { .. }
            | Content::ShapedLike { .. }
            | Content::Dressed { .. } => true,
            Content::Rendered { .. } | Content::Panels { .. } => false,
        }
    }
}

impl Scene {
    /// Returns all combinations in the scene that can be held out.
    pub(super) fn combinations(&self) -> Vec<Combination> {
        let mut all = vec![Combination::Style(self.content.first(), self.style)];
        match self.content {
            Content::One { thing, look: Look::Coloured(colour) } => {
                all.push(Combination::Colour(thing, colour));
            }
            Content::One { .. } | Content::Several { .. } => {}
            Content::Rendered { thing, rendition } => all.push(Combination::Rendition(thing, rendition)),
            Content::Two { first, second, .. } => all.push(Combination::things(first, second)),
            Content::MadeOf { whole, part } => all.push(Combination::MadeOf(whole, part)),
            Content::ShapedLike { surface, shape } => all.push(Combination::ShapedLike(surface, shape)),
            Content::Dressed { thing, ref extras, held } => {
                all.extend(extras.iter().map(|&extra| Combination::Extra(thing, extra)));
                all.extend(held.map(|held| Combination::things(thing, held)));
            }
            Content::Panels { thing, operation } => all.push(Combination::Panel(thing, operation)),
        }
        all
    }
}
