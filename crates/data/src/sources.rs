//! Sources of pictures: the emoji sets, composed scenes, or a folder of the user.
//!
//! Each source is one function that fills a folder with shards and reports what it wrote in a
//! [`Counts`]. The folder's `dataset.json` records the settings, so a second call with the same
//! settings does no work (see `sources/output.rs`).

pub mod coco;
pub mod emoji;
pub mod folder;
mod output;
pub mod scenes;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::shard::Split;

pub use coco::{COCO_CAPTIONS, Described, coco_captions, cub_captions};
pub use emoji::{EmojiOptions, Style, World, build_emoji};
pub use folder::{CaptionOptions, FolderOptions, Small, build_folder};
pub use scenes::{CombinationKind, HeldOutCase, Scenes, ScenesOptions, Shares, build_scenes};

/// The numbers of pictures and captions that a source wrote and left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The counts per style, in a fixed order.
    pub styles: Vec<StyleCount>,
    /// The number of different concepts in the pictures.
    pub concepts: u64,
    /// The number of captions of all pictures together.
    pub captions: u64,
    /// The number of pictures that were too small and were enlarged.
    pub enlarged: u64,
    /// The names of the first few drawings that are invisible on the background.
    pub blank_names: Vec<String>,
}

/// The counts of one style.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StyleCount {
    /// The style's name.
    pub style: String,
    /// The number of training pictures.
    pub train: u64,
    /// The number of validation pictures.
    pub val: u64,
    /// The number of icons without a name in the catalog or that were withdrawn.
    pub unmatched: u64,
    /// The number of drawings that are invisible on the background.
    pub blank: u64,
}

/// Returns a number with a noun, which gets an s unless the number is 1.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

impl Counts {
    /// Returns the number of pictures in both splits.
    pub fn pictures(&self) -> u64 {
        self.styles.iter().map(|row| row.train + row.val).sum()
    }

    /// Returns the number of pictures in one split.
    pub fn in_split(&self, split: Split) -> u64 {
        self.styles.iter().map(|row| row.in_split(split)).sum()
    }

    fn row(&mut self, style: &str) -> &mut StyleCount {
        let at = self.styles.iter().position(|row| row.style == style).unwrap_or_else(|| {
            self.styles.push(StyleCount { style: style.to_string(), ..StyleCount::default() });
            self.styles.len() - 1
        });
        &mut self.styles[at]
    }

    fn add_picture(&mut self, style: &str, split: Split, n_captions: usize) {
        let row = self.row(style);
        match split {
            Split::Train => row.train += 1,
            Split::Val => row.val += 1,
        }
        self.captions += n_captions as u64;
    }
}

impl StyleCount {
    fn in_split(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
        }
    }
}

impl Counts {
    /// Writes the number of enlarged pictures, if there are any.
    fn write_enlarged(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.enlarged > 0 { write!(f, ", {} enlarged", self.enlarged) } else { Ok(()) }
    }
}

impl fmt::Display for Counts {
    /// Writes a table with a row per style, or one line if there is nothing to compare.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [StyleCount { train, val, unmatched: 0, blank: 0, .. }] = self.styles.as_slice() {
            let (pictures, captions) =
                (counted(self.pictures(), "picture"), counted(self.captions, "caption"));
            write!(f, "{pictures}: {train} to train on, {val} held out; {captions}")?;
            return self.write_enlarged(f);
        }
        let width = self.styles.iter().map(|row| row.style.len()).max().unwrap_or(0).max(5);
        writeln!(f, "{:width$}  {:>7}  {:>7}  {:>9}  {:>5}", "style", "train", "val", "unmatched", "blank")?;
        let sum = |field: fn(&StyleCount) -> u64| self.styles.iter().map(field).sum();
        let total = StyleCount {
            style: "all".to_string(),
            train: sum(|row| row.train),
            val: sum(|row| row.val),
            unmatched: sum(|row| row.unmatched),
            blank: sum(|row| row.blank),
        };
        for StyleCount { style, train, val, unmatched, blank } in self.styles.iter().chain([&total]) {
            writeln!(f, "{style:width$}  {train:>7}  {val:>7}  {unmatched:>9}  {blank:>5}")?;
        }
        write!(f, "{}, {}", counted(self.concepts, "concept"), counted(self.captions, "caption"))?;
        self.write_enlarged(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_aligned_and_has_a_total_row() {
        let mut counts = Counts { concepts: 2, ..Counts::default() };
        counts.add_picture("flat", Split::Train, 5);
        counts.add_picture("emojione", Split::Val, 6);
        let lines: Vec<String> = counts.to_string().lines().map(str::to_string).collect();
        assert_eq!(lines[0], "style       train      val  unmatched  blank");
        assert_eq!(lines[3], "all             1        1          0      0");
        assert_eq!(lines[4], "2 concepts, 11 captions");
        assert_eq!((counts.pictures(), counts.in_split(Split::Val)), (2, 1));
    }

    #[test]
    fn counts_of_one_style_are_one_line() {
        let mut counts = Counts { concepts: 2, enlarged: 2, ..Counts::default() };
        counts.add_picture("own", Split::Train, 1);
        counts.add_picture("own", Split::Val, 1);
        let line = "2 pictures: 1 to train on, 1 held out; 2 captions, 2 enlarged";
        assert_eq!(counts.to_string(), line);
    }
}
