//! The six drawn sets: what a caption calls each, whose it is, and under which licence.

use serde::{Deserialize, Serialize};

/// A set of drawings by one hand. Each draws the same things, so style and concept can be told apart.
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

/// How a set's icons are found for a concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// By code points, through the `chars.json` of the folder given.
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

    /// Its name; captions say "`name` style".
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

    /// The folder of its package under the packages folder.
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

    /// SPDX name of its licence.
    pub fn licence(self) -> &'static str {
        match self {
            Style::Noto | Style::Firefox => "Apache-2.0",
            Style::Twemoji | Style::EmojiOne => "CC-BY-4.0",
            Style::Flat | Style::Glossy => "MIT",
        }
    }

    /// Who drew it.
    pub fn author(self) -> &'static str {
        match self {
            Style::Noto => "Google Inc",
            Style::Twemoji => "Twitter and contributors",
            Style::Flat | Style::Glossy => "Microsoft Corporation",
            Style::EmojiOne => "Emoji One, EmojiTwo",
            Style::Firefox => "Mozilla",
        }
    }

    /// Where it comes from.
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
            // The glossy set has no chars.json of its own; its icons bear the flat set's names.
            Style::Flat | Style::Glossy => Naming::CodePoints("fluent-emoji-flat"),
            Style::EmojiOne => Naming::Hyphens,
            Style::Firefox => Naming::Joined,
        }
    }
}
