//! `tessera eval human`: comparisons by people (the paper's figure 7).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_data::{Captioned, Pictures};
use tessera_eval::{Comparison, Hasty, comparison_page, votes};

use crate::args::Human;
use crate::commands::draw::check_writable;
use crate::commands::say;

pub fn run(human: &Human) -> Result<()> {
    match human {
        Human::Page { a, b, tasks, out } => {
            check_writable(out)?;
            write(out, &comparison_page(&comparisons(a, b, *tasks)?)?)?;
            say(out.display())
        }
        Human::Votes { files, drop_hasty, names, out, json } => {
            check_writable(out)?;
            let read = |path: &std::path::PathBuf| {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok((path.display().to_string(), text))
            };
            let files = files.iter().map(read).collect::<Result<Vec<_>>>()?;
            let hasty = if *drop_hasty { Hasty::Dropped } else { Hasty::Kept };
            let [a, b] = names.as_slice() else { anyhow::bail!("--names: wanted two") };
            let found = votes(&files, [a, b], hasty)?;
            found.dropped.iter().for_each(|why| eprintln!("left out {why}"));
            write(out, &found.plot([a, b])?)?;
            match json {
                true => say(serde_json::to_string_pretty(&found.reports)?),
                false => found.reports.iter().try_for_each(say),
            }
        }
    }
}

fn write(out: &Path, text: &str) -> Result<()> {
    std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))
}

/// Pictures of the same captions from two folders, `n` of them evenly chosen.
fn comparisons(a: &Path, b: &Path, n: Option<usize>) -> Result<Vec<Comparison>> {
    let read = |path: &Path| Pictures::open(path)?.from(0).collect::<Result<Vec<Captioned>>>();
    let (first, second) = (read(a)?, read(b)?);
    let (ours, theirs) = (first.len(), second.len());
    ensure!(
        ours == theirs,
        "{ours} pictures in {} and {theirs} in {}; wanted the same captions",
        a.display(),
        b.display()
    );
    let n = n.unwrap_or(ours).clamp(1, ours.max(1));
    let every = ours / n;
    let pairs = first.into_iter().zip(second).step_by(every.max(1)).take(n);
    pairs
        .map(|(first, second)| {
            let caption =
                first.caption.context("a picture has no caption; wanted NAME.txt beside NAME.png")?;
            let other = second.caption.as_ref().is_some_and(|other| *other != caption);
            ensure!(
                !other,
                "{caption:?} in {} is {:?} in {}",
                a.display(),
                second.caption.unwrap_or_default(),
                b.display()
            );
            Ok(Comparison { caption, pictures: [first.image, second.image] })
        })
        .collect()
}
