//! Records which files and samples were skipped while reading: a count per kind, with the first few
//! names. Nothing is skipped silently.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The maximum number of names that are kept per kind.
const NAMED: usize = 8;
/// The maximum number of kinds. Files with other endings are counted together.
const KINDS: usize = 64;

/// The reason why something was skipped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipKind {
    /// Pictures and captions that cannot be decoded or are too large.
    Damaged,
    /// Files and folders without read permission, and broken links.
    Unreadable,
    /// Pictures whose shorter side is less than the model's image size.
    TooSmall,
    /// Pictures without a caption.
    NoCaption,
    /// Captions without a picture.
    NoPicture,
    /// Pictures and captions with the same name as another one.
    SameName,
    /// Links to folders that were already read.
    SameFolder,
    /// Pictures in a folder whose tars are read instead.
    BesideTars,
    /// Captions that a table has twice for the same picture.
    SameCaption,
    /// Caption files of pictures that have captions in a table.
    TableInstead,
    /// Hard and symbolic links in tars, which contain only the name of another file.
    LinkInTar,
    /// Files with an unsupported ending. The ending is in lower case, and empty if a file has none.
    Ending(String),
}

/// The skipped items of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SkipGroup {
    kind: SkipKind,
    count: u64,
    /// The names of the first few items.
    names: Vec<String>,
}

/// Everything that was skipped while reading. Records of earlier versions have other fields and are
/// read as empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The skipped items per kind, sorted by kind.
    #[serde(default)]
    passed: Vec<SkipGroup>,
}

impl Skipped {
    /// Returns how many items were skipped.
    pub fn total(&self) -> u64 {
        self.passed.iter().map(|passed| passed.count).sum()
    }

    /// Returns how many items of one kind were skipped.
    pub fn count(&self, kind: &SkipKind) -> u64 {
        self.passed.iter().find(|passed| passed.kind == *kind).map_or(0, |passed| passed.count)
    }

    /// Returns a summary of all kinds in one line, each with one name and a hint how to fix the
    /// problem.
    pub fn brief(&self) -> String {
        let kind = |SkipGroup { kind, count, names }: &SkipGroup| {
            let known = names.first().map(String::as_str).into_iter().chain(kind.hint());
            format!("{count} {} ({})", kind.description(*count), known.collect::<Vec<_>>().join("; "))
        };
        match self.passed.is_empty() {
            true => "it holds no files".to_string(),
            false => self.passed.iter().map(kind).collect::<Vec<_>>().join(", "),
        }
    }

    pub(crate) fn note(&mut self, kind: SkipKind, name: impl fmt::Display) {
        self.absorb(Skipped { passed: vec![SkipGroup { kind, count: 1, names: vec![name.to_string()] }] });
    }

    /// Adds the skipped items of `other`.
    pub fn absorb(&mut self, other: Skipped) {
        for SkipGroup { mut kind, count, names } in other.passed {
            let is_new = |kind: &SkipKind| self.passed.iter().all(|passed| passed.kind != *kind);
            if matches!(kind, SkipKind::Ending(_)) && self.passed.len() >= KINDS && is_new(&kind) {
                kind = SkipKind::Ending("*".to_string());
            }
            match self.passed.binary_search_by(|passed| passed.kind.cmp(&kind)) {
                Ok(at) => {
                    let passed = &mut self.passed[at];
                    passed.count += count;
                    let room = NAMED.saturating_sub(passed.names.len());
                    passed.names.extend(names.into_iter().take(room));
                }
                Err(at) => self.passed.insert(at, SkipGroup { kind, count, names }),
            }
        }
    }
}

impl SkipKind {
    /// Returns the description of this kind for `n` items, in the singular or plural.
    fn description(&self, n: u64) -> String {
        let plural = |one: &str, many: &str| if n == 1 { one.to_string() } else { many.to_string() };
        match self {
            SkipKind::Damaged => "damaged".to_string(),
            SkipKind::Unreadable => "unreadable".to_string(),
            SkipKind::TooSmall => {
                plural("picture smaller than the model's", "pictures smaller than the model's")
            }
            SkipKind::NoCaption => plural("picture without a caption", "pictures without a caption"),
            SkipKind::NoPicture => plural("caption without a picture", "captions without a picture"),
            SkipKind::SameName => plural("file with a duplicate name", "files with duplicate names"),
            SkipKind::SameFolder => plural("link to a folder already read", "links to folders already read"),
            SkipKind::BesideTars => plural("picture next to the tars", "pictures next to the tars"),
            SkipKind::SameCaption => plural("repeated caption", "repeated captions"),
            SkipKind::TableInstead => plural(
                "caption file of a picture with captions in a table",
                "caption files of pictures with captions in a table",
            ),
            SkipKind::LinkInTar => plural("link in a tar", "links in tars"),
            SkipKind::Ending(ending) if ending.is_empty() => {
                plural("file without an ending", "files without an ending")
            }
            SkipKind::Ending(ending) => format!(".{ending} {}", plural("file", "files")),
        }
    }

    /// Returns a hint how to fix the problem.
    fn hint(&self) -> Option<&'static str> {
        match self {
            SkipKind::TooSmall => Some(
                "enlarge them with --enlarge, or make the set for a smaller model (--config, or --set dvae.image_size=N)",
            ),
            SkipKind::BesideTars => {
                Some("only the tars are read; move the pictures to another folder to have them read")
            }
            SkipKind::LinkInTar => {
                Some("make the tar with --dereference --hard-dereference to have the files read")
            }
            SkipKind::Ending(ending) => match ending.as_str() {
                "captions" | "cap" | "text" | "tags" => Some("rename them to .txt to have them read"),
                "gif" | "bmp" | "tif" | "tiff" | "heic" | "avif" | "jxl" | "svg" => {
                    Some("convert them to .png, .jpg or .webp to have them read")
                }
                "tar" => Some("only the pictures are read; tars make a separate data set"),
                "csv" | "tsv" | "jsonl" => Some("if one contains the captions, name it with --captions FILE"),
                ending if ending.contains('.') => Some("names in a tar end at their first dot; rename them"),
                _ => None,
            },
            SkipKind::Damaged
            | SkipKind::Unreadable
            | SkipKind::NoCaption
            | SkipKind::NoPicture
            | SkipKind::SameName
            | SkipKind::SameFolder
            | SkipKind::SameCaption
            | SkipKind::TableInstead => None,
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed.is_empty() {
            return write!(f, "nothing skipped");
        }
        let kinds = self
            .passed
            .iter()
            .map(|passed| format!("{} {}", passed.count, passed.kind.description(passed.count)));
        write!(f, "skipped {}: {}", self.total(), kinds.collect::<Vec<_>>().join(", "))?;
        for SkipGroup { kind, count, names } in &self.passed {
            write!(f, "\n  {}", kind.description(*count))?;
            if let Some(hint) = kind.hint() {
                write!(f, ": {hint}")?;
            }
            for name in names {
                write!(f, "\n    {name}")?;
            }
            let unnamed = count - names.len() as u64;
            if unnamed > 0 {
                write!(f, "\n    and {unnamed} more")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_counted_and_have_names() {
        let mut skipped = Skipped::default();
        for number in 0..21 {
            skipped.note(SkipKind::NoCaption, format!("o{number}.png"));
        }
        let mut more = Skipped::default();
        more.note(SkipKind::Damaged, "zbad: not a picture");
        more.note(SkipKind::Ending("tags".into()), "a.tags");
        more.note(SkipKind::NoCaption, "late.png");
        skipped.absorb(more);
        let lines: Vec<String> = skipped.to_string().lines().map(str::to_string).collect();
        assert_eq!(lines[0], "skipped 24: 1 damaged, 22 pictures without a caption, 1 .tags file");
        assert_eq!(lines[1..3], ["  damaged", "    zbad: not a picture"]);
        assert!(lines.contains(&"    o7.png".to_string()) && lines.contains(&"    and 14 more".to_string()));
        assert!(lines.iter().any(|line| line.contains("rename them to .txt")), "{skipped}");
        let brief = "1 damaged (zbad: not a picture), 22 pictures without a caption (o0.png), \
                     1 .tags file (a.tags; rename them to .txt to have them read)";
        assert_eq!(skipped.brief(), brief);
        let json = serde_json::to_string(&skipped).unwrap();
        assert_eq!(serde_json::from_str::<Skipped>(&json).unwrap(), skipped);
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let old = r#"{"corrupt":1,"orphan_image":0,"orphan_caption":2,"names":["a"]}"#;
        assert_eq!(serde_json::from_str::<Skipped>(old).unwrap(), Skipped::default());
    }
}
