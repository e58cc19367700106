//! Majority votes of several people for each comparison, with confidence intervals (paper, appendix
//! F).

use anyhow::{Context, Result, bail, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Report;
use crate::interval::wilson;
use crate::plot::svg;

/// Answers that take less than this many seconds are hasty (appendix F).
const HASTY_SECS: f64 = 4.0;
/// A person with more than this fraction of hasty answers can be left out. The paper states no
/// limit.
const MAX_HASTY: f64 = 0.5;
/// A person is left out only if they also agree with the majority of the others in less than this
/// fraction of the answers. The paper states no limit.
const MIN_AGREEMENT: f64 = 0.6;

/// Whether to leave out people whose answers are mostly hasty and disagree with the others. The
/// paper left out one person for this reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hasty {
    /// All answers count.
    Kept,
    /// The answers of such people do not count.
    Dropped,
}

/// An answer to one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    A,
    B,
    Neither,
}

/// The answers of one person.
struct Rater {
    name: String,
    /// The answers to both questions, per task.
    answers: Vec<[Answer; 2]>,
    /// The time for both answers, per task.
    seconds: Vec<f64>,
}

/// The questions of the page.
const QUESTIONS: [&str; 2] = ["more realistic", "matches the caption better"];

/// The result of the votes.
#[derive(Debug, Clone, PartialEq)]
pub struct Votes {
    /// For each question: the percentage of tasks in which each model had the majority, and in
    /// which neither had; the ends of Wilson's 95 % intervals, as separate figures because the
    /// intervals are not symmetric; and the number of tasks for each size of the majority.
    pub reports: Vec<Report>,
    /// The people who were left out, and why.
    pub dropped: Vec<String>,
    /// The majorities for each question.
    tallies: [Tally; 2],
}

/// The majorities for one question. A majority is more than half of all votes: the votes A, A,
/// neither, neither, neither count as neither.
#[derive(Debug, Clone, PartialEq)]
struct Tally {
    /// For A and for B: the number of tasks that the model won, indexed by the number of its votes.
    won: [Vec<usize>; 2],
    /// The number of tasks in which most votes are "neither", or no answer has a majority.
    open: usize,
}

/// Counts the answers in `files`, pairs of a file name and the text that the page saved. `models`
/// are the names of A and B.
///
/// # Errors
/// If a file is not in the page's format, has missing answers, belongs to another page than the
/// first file, or repeats a person.
pub fn votes(files: &[(String, String)], models: [&str; 2], hasty: Hasty) -> Result<Votes> {
    let mut raters: Vec<Rater> = Vec::new();
    let mut page: Option<String> = None;
    for (file, text) in files {
        let (id, rater) = read(text).with_context(|| file.clone())?;
        let page = page.get_or_insert_with(|| id.clone());
        ensure!(*page == id, "{file} has answers to the page {id}, the files before it to {page}");
        ensure!(
            raters.iter().all(|other| other.name != rater.name),
            "{file}: {} has answered already",
            rater.name
        );
        let n = raters.first().map_or(rater.answers.len(), |first| first.answers.len());
        ensure!(
            rater.answers.len() == n,
            "{file} has {} answers, the files before it {n}",
            rater.answers.len()
        );
        raters.push(rater);
    }
    ensure!(!raters.is_empty(), "no answers; wanted at least one file");
    let mut dropped = Vec::new();
    if hasty == Hasty::Dropped {
        let reasons: Vec<Option<String>> = (0..raters.len()).map(|i| reason(&raters, i)).collect();
        let mut reasons = reasons.into_iter();
        raters.retain(|_| {
            let reason = reasons.next().flatten();
            dropped.extend(reason.clone());
            reason.is_none()
        });
        ensure!(!raters.is_empty(), "all answers were dropped as hasty; run without --drop-hasty");
    }
    let tallies = [0, 1].map(|question| tally(&raters, question));
    let reports =
        QUESTIONS.iter().zip(&tallies).flat_map(|(question, tally)| tally.reports(question, models));
    Ok(Votes { reports: reports.collect(), dropped, tallies })
}

fn read(text: &str) -> Result<(String, Rater)> {
    let text = text.trim_start_matches('\u{feff}'); // a byte order mark
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, head) = lines.next().context("an empty file")?;
    let head = head.strip_prefix("# ").and_then(|head| head.split_once(','));
    let (id, name) = head.context("no answers of a comparison page: the first line is not `# PAGE,NAME`")?;
    ensure!(
        lines.next().is_some_and(|(_, line)| line.trim() == "task,left,realism,match,seconds"),
        "the second line is not `task,left,realism,match,seconds`"
    );
    let mut rater = Rater { name: name.trim().to_string(), answers: Vec::new(), seconds: Vec::new() };
    for (number, line) in lines {
        let invalid = || {
            format!("line {}: {line:?}, wanted TASK,0|1,left|right,left|right|neither,SECONDS", number + 1)
        };
        let [task, left, realism, matching, seconds] = line.trim().split(',').collect::<Vec<_>>()[..] else {
            bail!(invalid())
        };
        let left = match left {
            "0" => Answer::A,
            "1" => Answer::B,
            _ => bail!(invalid()),
        };
        let right = if left == Answer::A { Answer::B } else { Answer::A };
        let answer = |word: &str| match word {
            "left" => Some(left),
            "right" => Some(right),
            "neither" => Some(Answer::Neither),
            _ => None,
        };
        let realism = answer(realism).filter(|answer| *answer != Answer::Neither).with_context(invalid)?;
        let expected = rater.answers.len();
        ensure!(task == expected.to_string(), "line {}: task {task}, wanted {expected}", number + 1);
        rater.answers.push([realism, answer(matching).with_context(invalid)?]);
        let seconds = seconds.parse().ok().filter(|s: &f64| *s >= 0.0 && s.is_finite());
        rater.seconds.push(seconds.with_context(invalid)?);
    }
    ensure!(!rater.answers.is_empty(), "no answers below the second line; wanted one line per task");
    Ok((id.to_string(), rater))
}

/// Returns why rater `i` is left out, or `None` if the rater is kept.
fn reason(raters: &[Rater], i: usize) -> Option<String> {
    let rater = &raters[i];
    let n = rater.answers.len();
    let hasty = rater.seconds.iter().filter(|seconds| **seconds < HASTY_SECS).count() as f64 / n as f64;
    let others: Vec<&Rater> =
        raters.iter().enumerate().filter(|(other, _)| *other != i).map(|(_, other)| other).collect();
    let (mut agreed, mut decided) = (0, 0);
    for question in 0..2 {
        for task in 0..n {
            if let Some((answer, _)) = majority(others.iter().map(|other| other.answers[task][question])) {
                decided += 1;
                agreed += usize::from(rater.answers[task][question] == answer);
            }
        }
    }
    let agreement = if decided == 0 { 1.0 } else { agreed as f64 / decided as f64 };
    (hasty > MAX_HASTY && agreement < MIN_AGREEMENT).then(|| {
        format!(
            "{}: {:.0} % of the answers in less than {HASTY_SECS} s, {:.0} % agree with the majority of the others",
            rater.name,
            100.0 * hasty,
            100.0 * agreement
        )
    })
}

/// Returns the answer that more than half of `answers` give, and how many do. `None` if there is no
/// such answer.
fn majority(answers: impl Iterator<Item = Answer>) -> Option<(Answer, usize)> {
    let answers: Vec<Answer> = answers.collect();
    let count = |counted| answers.iter().filter(|answer| **answer == counted).count();
    let counts = [Answer::A, Answer::B, Answer::Neither].map(|answer| (answer, count(answer)));
    counts.into_iter().find(|(_, count)| 2 * count > answers.len())
}

fn tally(raters: &[Rater], question: usize) -> Tally {
    let mut tally = Tally { won: [0, 1].map(|_| vec![0; raters.len() + 1]), open: 0 };
    for task in 0..raters[0].answers.len() {
        match majority(raters.iter().map(|rater| rater.answers[task][question])) {
            Some((Answer::A, count)) => tally.won[0][count] += 1,
            Some((Answer::B, count)) => tally.won[1][count] += 1,
            Some((Answer::Neither, _)) | None => tally.open += 1,
        }
    }
    tally
}

impl Tally {
    /// The number of tasks that A won, and that B won.
    fn wins(&self) -> [usize; 2] {
        [0, 1].map(|model| self.won[model].iter().sum())
    }

    fn tasks(&self) -> usize {
        self.wins().iter().sum::<usize>() + self.open
    }

    fn reports(&self, question: &str, models: [&str; 2]) -> Vec<Report> {
        let (n, wins) = (self.tasks(), self.wins());
        let percent =
            |name: String, share: f64| Report { unit: "%".into(), ..Report::new(&name, 100.0 * share, n) };
        let share =
            |name: &str, count: usize| percent(format!("{question}: {name}"), count as f64 / n as f64);
        let mut reports = vec![
            share(models[0], wins[0]),
            share(models[1], wins[1]),
            share("neither or no majority", self.open),
        ];
        for (model, won) in models.iter().zip(wins) {
            let (low, high) = wilson(won, n);
            reports.push(percent(format!("{question}: {model}, 95 % from"), low));
            reports.push(percent(format!("{question}: {model}, 95 % to"), high));
        }
        for (model, won) in models.iter().zip(&self.won) {
            let raters = won.len() - 1;
            for votes in (raters / 2 + 1..=raters).rev() {
                let name = format!("{question}: {model}, {votes} of {raters}");
                reports.push(Report { unit: "tasks".into(), ..Report::new(&name, won[votes] as f64, n) });
            }
        }
        reports
    }
}

impl Votes {
    /// Plots one bar per question as an SVG, with B's majorities on the left and A's on the right.
    /// Majorities with more votes are darker (paper, figure 7).
    ///
    /// # Errors
    /// If the plot cannot be drawn.
    pub fn plot(&self, models: [&str; 2]) -> Result<String> {
        svg((640, 210), |root| {
            for (i, (question, tally)) in QUESTIONS.iter().zip(&self.tallies).enumerate() {
                bar(root, 14 + 98 * i as i32, question, tally, models)?;
            }
            Ok(())
        })
        .map_err(|error| anyhow::anyhow!("cannot draw the votes: {error}"))
    }
}

impl Tally {
    /// The pieces of a bar, from B's largest majority to A's: the number of tasks, and the colour.
    fn pieces(&self) -> Vec<(usize, RGBAColor)> {
        let raters = self.won[0].len() - 1;
        let least = raters / 2 + 1;
        let piece = |model: usize, votes: usize, colour: RGBColor| {
            let strength = (votes - least + 1) as f64 / (raters - least + 1) as f64;
            (self.won[model][votes], colour.mix(0.3 + 0.7 * strength))
        };
        let theirs = (least..=raters).rev().map(|votes| piece(1, votes, RGBColor(200, 60, 40)));
        let ours = (least..=raters).map(|votes| piece(0, votes, RGBColor(60, 90, 160)));
        theirs.chain([(self.open, RGBColor(200, 200, 200).mix(1.0))]).chain(ours).collect()
    }
}

/// Draws the bar of one question, with the question above it and the percentages of both models
/// below its ends.
fn bar(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    top: i32,
    question: &str,
    tally: &Tally,
    models: [&str; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    let (left, width) = (20, 600.0);
    let n = tally.tasks();
    let share = |count: usize| 100.0 * count as f64 / n.max(1) as f64;
    root.draw(&Text::new(question.to_string(), (left, top), ("sans-serif", 15)))?;
    let mut drawn = 0;
    for (count, colour) in tally.pieces() {
        let at = |count: usize| left + (width * count as f64 / n.max(1) as f64).round() as i32;
        root.draw(&Rectangle::new([(at(drawn), top + 22), (at(drawn + count), top + 52)], colour.filled()))?;
        drawn += count;
    }
    let wins = tally.wins();
    let label = |model: usize| format!("{} {:.1} %", models[model], share(wins[model]));
    root.draw(&Text::new(label(1), (left, top + 58), ("sans-serif", 13)))?;
    let at = |h| TextStyle::from(("sans-serif", 13)).pos(Pos::new(h, VPos::Top));
    let right = label(0);
    root.draw(&Text::new(right, (left + width as i32, top + 58), at(HPos::Right)))?;
    let half = left + width as i32 / 2;
    let key = if tally.open > 0 {
        format!("darker: larger majority; grey: neither or no majority, {:.1} %", share(tally.open))
    } else {
        "darker: larger majority".to_string()
    };
    root.draw(&Text::new(key, (half, top + 58), at(HPos::Center).color(&BLACK.mix(0.5))))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the person `name`. Each line is left, realism, match, seconds.
    fn file(name: &str, lines: &[&str]) -> (String, String) {
        let lines: Vec<String> = lines.iter().enumerate().map(|(i, line)| format!("{i},{line}")).collect();
        let text = format!("# 00ab,{name}\ntask,left,realism,match,seconds\n{}\n", lines.join("\n"));
        (format!("{name}.csv"), text)
    }

    #[test]
    fn majorities_do_not_depend_on_the_order_of_the_pictures() {
        // The votes for A as more realistic: two of three in the first task, three in the second,
        // none in the third.
        let files = [
            file("ann", &["0,left,left,9", "1,right,neither,9", "0,right,right,9"]),
            file("ben", &["1,right,left,9", "0,left,neither,9", "1,left,left,9"]),
            file("cat", &["0,right,left,9", "0,left,left,9", "0,right,neither,9"]),
        ];
        let found = votes(&files, ["ours", "theirs"], Hasty::Kept).unwrap();
        let value = |name: &str| found.reports.iter().find(|report| report.name == name).unwrap().value;
        assert!((value("more realistic: ours") - 66.6667).abs() < 1e-3);
        assert!((value("more realistic: theirs") - 33.3333).abs() < 1e-3);
        // The votes on the caption: A, B, A in the first task; neither, neither, A in the second;
        // B, B, neither in the third.
        for name in ["ours", "theirs", "neither or no majority"] {
            assert!((value(&format!("matches the caption better: {name}")) - 33.3333).abs() < 1e-3, "{name}");
        }
        assert_eq!(found.tallies[0], Tally { won: [vec![0, 0, 1, 1], vec![0, 0, 0, 1]], open: 0 });
        assert_eq!(
            (value("more realistic: ours, 3 of 3"), value("more realistic: ours, 2 of 3")),
            (1.0, 1.0)
        );
        let svg = found.plot(["ours", "theirs"]).unwrap();
        assert!(svg.contains("ours 66.7 %") && svg.contains("theirs 33.3 %"));
    }

    #[test]
    fn intervals_stay_within_0_and_100_percent() {
        let all = ["0,left,left,9"; 20];
        let found = votes(&[file("ann", &all), file("ben", &all)], ["A", "B"], Hasty::Kept).unwrap();
        let value = |name: &str| found.reports.iter().find(|report| report.name == name).unwrap().value;
        assert_eq!(value("more realistic: A"), 100.0);
        assert!((value("more realistic: A, 95 % from") - 83.887).abs() < 1e-3);
        assert!((value("more realistic: A, 95 % to") - 100.0).abs() < 1e-9);
        assert!(found.reports.iter().all(|report| report.plus_minus.is_none()));
    }

    #[test]
    fn majority_requires_more_than_half_of_all_votes() {
        let tally = |answers: [&str; 5]| {
            let files: Vec<_> =
                (0..5).map(|i| file(&format!("r{i}"), &[&format!("0,left,{},9", answers[i])])).collect();
            votes(&files, ["A", "B"], Hasty::Kept).unwrap().tallies[1].clone()
        };
        let neither = tally(["left", "left", "neither", "neither", "neither"]);
        assert_eq!((neither.wins(), neither.open), ([0, 0], 1));
        let tied = tally(["left", "left", "right", "right", "neither"]);
        assert_eq!((tied.wins(), tied.open), ([0, 0], 1));
        assert_eq!(tally(["right", "right", "right", "left", "neither"]).won[1], [0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn hasty_and_disagreeing_raters_are_dropped_on_request() {
        let calm = ["0,left,left,9"; 6];
        let files = [file("ann", &calm), file("ben", &calm), file("dan", &["0,right,right,1"; 6])];
        assert!(votes(&files, ["A", "B"], Hasty::Kept).unwrap().dropped.is_empty());
        let found = votes(&files, ["A", "B"], Hasty::Dropped).unwrap();
        assert_eq!(found.dropped.len(), 1);
        assert!(
            found.dropped[0].starts_with("dan: 100 % of the answers in less than 4 s, 0 %"),
            "{:?}",
            found.dropped
        );
        // Hasty but in agreement with the others, or slow but in disagreement: both are kept.
        let files =
            [file("ann", &calm), file("eve", &["0,left,left,1"; 6]), file("fay", &["0,right,right,9"; 6])];
        assert!(votes(&files, ["A", "B"], Hasty::Dropped).unwrap().dropped.is_empty());
    }

    #[test]
    fn invalid_files_are_refused_with_a_reason() {
        let good = file("ann", &["0,left,left,9", "0,left,left,9"]);
        let error =
            |files: &[(String, String)]| format!("{:#}", votes(files, ["A", "B"], Hasty::Kept).unwrap_err());
        let other = |text: &str| ("x.csv".to_string(), text.to_string());
        let head = "# 00ab,bob\ntask,left,realism,match,seconds\n";
        for (text, expected) in [
            ("", "x.csv: an empty file"),
            ("hello\n", "the first line is not"),
            ("# 00ab,bob\nhello\n", "the second line is not"),
            (
                "# ffff,bob\ntask,left,realism,match,seconds\n0,0,left,left,9\n1,0,left,left,9\n",
                "to the page ffff",
            ),
            (&format!("{head}0,0,left,left,9\n"), "has 1 answers, the files before it 2"),
            (&format!("{head}0,0,left,left,9\n2,0,left,left,9\n"), "line 4: task 2, wanted 1"),
            (&format!("{head}0,0,neither,left,9\n"), "line 3: \"0,0,neither,left,9\", wanted"),
            (&format!("{head}0,0,left,left,soon\n"), "line 3"),
            (&format!("{head}0,7,left,left,9\n"), "line 3"),
            (&head.replace("bob", "ann"), "no answers"),
        ] {
            let error = error(&[good.clone(), other(text)]);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert!(error(&[good.clone(), good]).contains("ann has answered already"));
        assert!(error(&[]).contains("no answers; wanted at least one file"));
    }
}
