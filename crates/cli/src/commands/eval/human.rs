//! `tessera eval human`: compares two models by human votes (the paper's figure 7).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tessera_base::atomic;
use tessera_data::{Pictures, SkipKind, counted, evenly, read_text};
use tessera_eval::{Comparison, Hasty, comparison_page, votes};

use crate::args::Human;
use crate::commands::output::{Content, Outputs};
use crate::commands::say;
use crate::stderr::note;

/// Runs `tessera eval human`.
pub fn run(human: &Human) -> Result<()> {
    match human {
        Human::Page { a, b, tasks, out } => {
            let outputs = Outputs::check(&[(out, Content::Page)], false)?;
            atomic::write(out, comparison_page(&comparisons(a, b, *tasks)?)?.as_bytes())?;
            outputs.say(out.display())
        }
        Human::Votes { files, drop_hasty, names, out, json } => {
            let outputs = Outputs::check(&[(out, Content::Plot)], *json)?;
            let read = |path: &std::path::PathBuf| Ok((path.display().to_string(), read_text(path)?));
            let files = files.iter().map(read).collect::<Result<Vec<_>>>()?;
            let hasty = if *drop_hasty { Hasty::Dropped } else { Hasty::Kept };
            let [a, b] = names.as_slice() else { anyhow::bail!("--names A B: expected two names") };
            let found = votes(&files, [a, b], hasty)?;
            found.dropped.iter().for_each(|why| note!("left out {why}"));
            atomic::write(out, found.plot([a, b])?.as_bytes())?;
            match json {
                true => say(serde_json::to_string_pretty(&found.reports)?),
                false => found.reports.iter().try_for_each(|report| outputs.say(report)),
            }
        }
    }
}

/// Returns pairs of pictures with the same captions from two folders: all of them, or `n` evenly
/// chosen ones.
fn comparisons(a: &Path, b: &Path, n: Option<usize>) -> Result<Vec<Comparison>> {
    let (first, second) = (Pictures::open(a)?, Pictures::open(b)?);
    let count = |pictures: &Pictures| pictures.count().unwrap_or_else(|| pictures.from(0).count());
    let (ours, theirs) = (count(&first), count(&second));
    ensure!(
        ours == theirs,
        "{} in {} and {theirs} in {}; wanted the same captions in both",
        counted(ours as u64, "picture"),
        a.display(),
        b.display()
    );
    let n = n.unwrap_or(ours);
    ensure!((1..=ours).contains(&n), "--tasks {n}: wanted 1 to {ours}");
    let mut chosen = evenly(n, ours).peekable();
    let mut tasks = Vec::with_capacity(n);
    let (mut ones, mut others) = (first.from(0), second.from(0));
    for (i, (first, second)) in ones.by_ref().zip(others.by_ref()).enumerate() {
        if chosen.next_if_eq(&i).is_none() {
            continue;
        }
        let (first, second) = (first?, second?);
        let caption = first.caption.context("a picture has no caption; wanted NAME.txt beside NAME.png")?;
        let other = second.caption.unwrap_or_else(|| caption.clone());
        ensure!(
            other == caption,
            "caption {} differs: {caption:?} in {}, {other:?} in {}; both folders need the same captions",
            i + 1,
            a.display(),
            b.display()
        );
        tasks.push(Comparison { caption, pictures: [first.image, second.image] });
    }
    for (dir, reader) in [(a, &ones), (b, &others)] {
        let damaged = reader.skipped().count(&SkipKind::Damaged);
        ensure!(
            damaged == 0,
            "{}: {}; wanted pairs of undamaged pictures",
            dir.display(),
            reader.skipped().brief()
        );
    }
    Ok(tasks)
}
