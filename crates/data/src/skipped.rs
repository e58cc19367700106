//! What was passed over while reading, by kind, with the first few names of each: nothing is left out in silence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many names of each kind are kept.
const NAMED: usize = 8;

/// Why something was passed over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipKind {
    /// Pictures and captions that cannot be decoded, or are too large.
    Damaged,
    /// Files and folders that may not be read, and links that lead nowhere.
    Unreadable,
    /// Pictures with a short side under the model's.
    TooSmall,
    /// Pictures without a caption.
    NoCaption,
    /// Captions without a picture.
    NoPicture,
    /// Pictures and captions whose name another has.
    SameName,
    /// Links to folders that were read already.
    SameFolder,
    /// Pictures in a folder whose tars are read.
    BesideTars,
    /// Hard and symbolic links in tars, which hold the name of another file and nothing else.
    LinkInTar,
    /// Files with another ending, in lower case; empty if there is none.
    Ending(String),
}

/// What is passed over for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Passed {
    kind: SkipKind,
    count: u64,
    /// The first few.
    names: Vec<String>,
}

/// What was passed over while reading. Records of earlier versions had other fields and count as empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// By kind.
    #[serde(default)]
    passed: Vec<Passed>,
}

impl Skipped {
    /// How much was passed over.
    pub fn total(&self) -> u64 {
        self.passed.iter().map(|passed| passed.count).sum()
    }

    /// How much was passed over for one reason.
    pub fn count(&self, kind: &SkipKind) -> u64 {
        self.passed.iter().find(|passed| passed.kind == *kind).map_or(0, |passed| passed.count)
    }

    /// All kinds in one line, each with one of its names and what may be done about it.
    pub fn brief(&self) -> String {
        let kind = |Passed { kind, count, names }: &Passed| {
            let known = names.first().map(String::as_str).into_iter().chain(kind.hint());
            format!("{count} {} ({})", kind.called(*count), known.collect::<Vec<_>>().join("; "))
        };
        match self.passed.is_empty() {
            true => "it holds no files".to_string(),
            false => self.passed.iter().map(kind).collect::<Vec<_>>().join(", "),
        }
    }

    pub(crate) fn note(&mut self, kind: SkipKind, name: impl fmt::Display) {
        self.absorb(Skipped { passed: vec![Passed { kind, count: 1, names: vec![name.to_string()] }] });
    }

    /// Adds what was passed over elsewhere.
    pub fn absorb(&mut self, other: Skipped) {
        for Passed { kind, count, names } in other.passed {
            match self.passed.binary_search_by(|passed| passed.kind.cmp(&kind)) {
                Ok(at) => {
                    let passed = &mut self.passed[at];
                    passed.count += count;
                    let room = NAMED.saturating_sub(passed.names.len());
                    passed.names.extend(names.into_iter().take(room));
                }
                Err(at) => self.passed.insert(at, Passed { kind, count, names }),
            }
        }
    }
}

impl SkipKind {
    /// What `n` of this kind are called.
    fn called(&self, n: u64) -> String {
        let of = |one: &str, many: &str| if n == 1 { one.to_string() } else { many.to_string() };
        match self {
            SkipKind::Damaged => "damaged".to_string(),
            SkipKind::Unreadable => "unreadable".to_string(),
            SkipKind::TooSmall => of("picture smaller than the model's", "pictures smaller than the model's"),
            SkipKind::NoCaption => of("picture without a caption", "pictures without a caption"),
            SkipKind::NoPicture => of("caption without a picture", "captions without a picture"),
            SkipKind::SameName => of("file whose name another has", "files whose name another has"),
            SkipKind::SameFolder => of("linked folder read already", "linked folders read already"),
            SkipKind::BesideTars => of("picture beside the tars", "pictures beside the tars"),
            SkipKind::LinkInTar => of("link in a tar", "links in tars"),
            SkipKind::Ending(ending) if ending.is_empty() => {
                of("file without an ending", "files without an ending")
            }
            SkipKind::Ending(ending) => format!(".{ending} {}", of("file", "files")),
        }
    }

    /// What may be done about it.
    fn hint(&self) -> Option<&'static str> {
        match self {
            SkipKind::TooSmall => Some(
                "enlarge them with --enlarge, or make the set for a smaller model (--config, or --set dvae.image_size=N)",
            ),
            SkipKind::BesideTars => Some("the tars are read; put pictures elsewhere to read them"),
            SkipKind::LinkInTar => {
                Some("make the tar with --dereference --hard-dereference to have the files read")
            }
            SkipKind::Ending(ending) => match ending.as_str() {
                "caption" | "captions" | "cap" | "text" | "tags" => {
                    Some("rename them to .txt to have them read")
                }
                "gif" | "bmp" | "tif" | "tiff" | "heic" | "avif" | "jxl" | "svg" => {
                    Some("convert them to .png, .jpg or .webp to have them read")
                }
                "tar" => Some("the pictures beside them are read; tars are a data set of their own"),
                ending if ending.contains('.') => Some("names in a tar end at their first dot; rename them"),
                _ => None,
            },
            SkipKind::Damaged
            | SkipKind::Unreadable
            | SkipKind::NoCaption
            | SkipKind::NoPicture
            | SkipKind::SameName
            | SkipKind::SameFolder => None,
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.passed.is_empty() {
            return write!(f, "nothing skipped");
        }
        let kinds =
            self.passed.iter().map(|passed| format!("{} {}", passed.count, passed.kind.called(passed.count)));
        write!(f, "skipped {}: {}", self.total(), kinds.collect::<Vec<_>>().join(", "))?;
        for Passed { kind, count, names } in &self.passed {
            write!(f, "\n  {}", kind.called(*count))?;
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
    fn every_kind_is_counted_and_named() {
        let mut skipped = Skipped::default();
        for number in 0..21 {
            skipped.note(SkipKind::NoCaption, format!("o{number}.png"));
        }
        let mut more = Skipped::default();
        more.note(SkipKind::Damaged, "zbad: not a picture");
        more.note(SkipKind::Ending("caption".into()), "a.caption");
        more.note(SkipKind::NoCaption, "late.png");
        skipped.absorb(more);
        let lines: Vec<String> = skipped.to_string().lines().map(str::to_string).collect();
        assert_eq!(lines[0], "skipped 24: 1 damaged, 22 pictures without a caption, 1 .caption file");
        assert_eq!(lines[1..3], ["  damaged", "    zbad: not a picture"]);
        assert!(lines.contains(&"    o7.png".to_string()) && lines.contains(&"    and 14 more".to_string()));
        assert!(lines.iter().any(|line| line.contains("rename them to .txt")), "{skipped}");
        let brief = "1 damaged (zbad: not a picture), 22 pictures without a caption (o0.png), \
                     1 .caption file (a.caption; rename them to .txt to have them read)";
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
