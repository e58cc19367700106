//! The six icon sets: their names in captions, authors and licences.

use serde::{Deserialize, Serialize};

/// An icon set in a uniform style. All sets draw the same things, so style and concept are
/// independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// Noto Emoji.
    Noto,
    /// Twemoji.
    Twemoji,
    /// Fluent Emoji, flat.
    Flat,
    /// Fluent Emoji, in colour gradients.
    Glossy,
    /// EmojiTwo, the free continuation of EmojiOne 2.
    EmojiOne,
    /// Firefox OS Emoji.
    Firefox,
}

/// The rule by which the icon of a concept is found in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// By code points, with the `chars.json` in the given folder.
    CodePoints(&'static str),
    /// By the label in lower case with hyphens: "red-apple".
    Hyphens,
    /// By the label in lower case with nothing between words: "redapple".
    Joined,
}

impl Style {
    /// All sets, in the order in which pictures of one concept are listed.
    pub const ALL: [Style; 6] =
        [Style::Noto, Style::Twemoji, Style::Flat, Style::Glossy, Style::EmojiOne, Style::Firefox];

    /// Returns the name of the style. Captions contain "`name` style".
    pub fn name(self) -> &'static str {
        match self {
            Style::Noto => "noto",
            Style::Twemoji => "twemoji",
            Style::Flat => "flat",
            Style::Glossy => "glossy",
            Style::EmojiOne => "emojione",
            Style::Firefox => "firefox",
        }
    }

    /// Returns the folder of its package in the packages folder.
    pub fn folder(self) -> &'static str {
        match self {
            Style::Noto => "noto",
            Style::Twemoji => "twemoji",
            Style::Flat => "fluent-emoji-flat",
            Style::Glossy => "fluent-emoji",
            Style::EmojiOne => "emojione",
            Style::Firefox => "fxemoji",
        }
    }

    /// Returns the SPDX name of its licence.
    pub fn licence(self) -> &'static str {
        match self {
            Style::Noto | Style::Firefox => "Apache-2.0",
            Style::Twemoji | Style::EmojiOne => "CC-BY-4.0",
            Style::Flat | Style::Glossy => "MIT",
        }
    }

    /// Returns the author.
    pub fn author(self) -> &'static str {
        match self {
            Style::Noto => "Google Inc",
            Style::Twemoji => "Twitter and contributors",
            Style::Flat | Style::Glossy => "Microsoft Corporation",
            Style::EmojiOne => "Emoji One, EmojiTwo",
            Style::Firefox => "Mozilla",
        }
    }

    /// Returns the address of its source.
    pub fn url(self) -> &'static str {
        match self {
            Style::Noto => "https://github.com/googlefonts/noto-emoji",
            Style::Twemoji => "https://github.com/jdecked/twemoji",
            Style::Flat | Style::Glossy => "https://github.com/microsoft/fluentui-emoji",
            Style::EmojiOne => "https://github.com/EmojiTwo/emojitwo",
            Style::Firefox => "https://github.com/mozilla/fxemoji",
        }
    }

    pub(super) fn naming(self) -> Naming {
        match self {
            Style::Noto => Naming::CodePoints("noto"),
            Style::Twemoji => Naming::CodePoints("twemoji"),
            // The glossy set has no chars.json, but its icons have the same names as those of the
            // flat set.
            Style::Flat | Style::Glossy => Naming::CodePoints("fluent-emoji-flat"),
            Style::EmojiOne => Naming::Hyphens,
            Style::Firefox => Naming::Joined,
        }
    }
}
