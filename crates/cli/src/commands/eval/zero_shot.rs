//! `tessera eval zero-shot`: draws held-out combinations and evaluates the drawings of each kind.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use indicatif::ProgressStyle;
use serde::Serialize;
use tessera_base::pixels::contact_sheet;
use tessera_data::sources::{CombinationKind, Scenes, ScenesOptions};
use tessera_data::{evenly, read_text};
use tessera_eval::{
    CaseResult, Estimate, KindFigures, Mistakes, ZeroShotFigure, describe_sampling, zero_shot_figures,
};
use tessera_model::Sampling;

use super::drawn::judge;
use super::{as_in_the_paper, measured_tessera};
use crate::args::{PrecisionFlag, ZeroShot};
use crate::commands::draw::enlarge;
use crate::commands::output::{Content, Outputs, write_picture};
use crate::commands::{model_file, model_name, say};
use crate::reporter::progress_bar;
use crate::stderr::note;

/// The number of best drawings of a kind on the sheet, and also of worst ones.
const BEST: usize = 2;
/// The number of pictures for each drawing on the sheet.
const PICTURES: usize = 3;
/// The minimum width of a picture on the sheet, in pixels.
const CELL: u32 = 96;

/// The results, and the models and settings that made them.
#[derive(Serialize)]
struct Measured<'a> {
    model: String,
    ranker: Option<String>,
    judge: String,
    candidates: u32,
    seed: u64,
    sampling: &'a Sampling,
    kinds: &'a [KindFigures],
    cases: &'a [CaseResult],
}

/// Runs `tessera eval zero-shot`.
pub fn run(args: &ZeroShot) -> Result<()> {
    let files: Vec<_> = args.sheet.iter().map(|path| (path.as_path(), Content::Picture)).collect();
    let outputs = Outputs::check(&files, args.json)?;
    let kinds = args.kinds.iter().map(|name| CombinationKind::parse(name.trim())).collect::<Result<Vec<_>>>();
    let kinds = kinds.context("--kinds")?;
    let path = args.which.model.as_deref();
    let tessera = measured_tessera(&model_file(path)?, &args.which, PrecisionFlag::Auto)?;
    let judge = judge(&args.judge, &tessera, args.which.on)?;
    let scenes = scenes(args, scene_size(tessera.image_size)?)?;
    let sampling = as_in_the_paper(&args.sampling);
    tessera.guidance(Some(sampling.guidance))?;
    sampling.check()?;
    let how = (args.candidates as usize, args.seed);
    let zero_shot = tessera_eval::ZeroShot::new(&tessera, &judge, &scenes, how, sampling.clone())?;
    let chosen = chosen(args, &kinds, &scenes);
    ensure!(
        !chosen.is_empty(),
        "the list holds out no combination of the selected kinds; select others with --kinds"
    );
    let cases = drawn_and_measured(&zero_shot, &chosen)?;
    if let Some(path) = &args.sheet {
        write_picture(path, &sheet(&cases)?, None)?;
    }
    let measured = Measured {
        model: model_name(path),
        ranker: tessera.reranker.as_ref().map(|ranker| ranker.fingerprint()),
        judge: format!("{} ({})", model_name(Some(&args.judge)), judge.fingerprint()),
        candidates: args.candidates,
        seed: args.seed,
        sampling: &sampling,
        kinds: &zero_shot_figures(&cases),
        cases: &cases,
    };
    match args.json {
        true => say(serde_json::to_string_pretty(&measured)?),
        false => outputs.say(table(&measured)),
    }
}

/// Draws and evaluates the combinations at these indices of the list, with a progress bar.
fn drawn_and_measured(zero_shot: &tessera_eval::ZeroShot, chosen: &[usize]) -> Result<Vec<CaseResult>> {
    let bar = progress_bar(chosen.len() as u64);
    bar.set_style(ProgressStyle::with_template("drawing {bar:30} {pos}/{len} combinations eta {eta}")?);
    let measure = |&index: &usize| {
        let result = zero_shot.measure(index);
        bar.inc(1);
        result
    };
    let cases = chosen.iter().map(measure).collect();
    bar.finish_and_clear();
    cases
}

/// Returns the side of the scenes for a model whose pictures have a side of `side` pixels.
fn scene_size(side: usize) -> Result<u32> {
    ensure!(
        (16..=1024).contains(&side) && side.is_multiple_of(2),
        "the model draws pictures of {side}x{side} pixels; wanted a model of scenes, whose side is an even number from 16 to 1024"
    );
    Ok(side as u32)
}

fn scenes(args: &ZeroShot, size: u32) -> Result<Scenes> {
    let held_out = args.held_out.as_ref().map(|file| {
        read_text(file).with_context(|| format!("cannot read the held-out list {}", file.display()))
    });
    Scenes::open(ScenesOptions {
        held_out: held_out.transpose()?,
        ..ScenesOptions::new(&args.packages, size)
    })
}

/// Returns the indices in the held-out list of the combinations to draw.
fn chosen(args: &ZeroShot, kinds: &[CombinationKind], scenes: &Scenes) -> Vec<usize> {
    let all = scenes.held_out_kinds().into_iter().enumerate();
    let selected = all.filter(|(_, kind)| kinds.is_empty() || kinds.contains(kind));
    let selected: Vec<usize> = selected.map(|(index, _)| index).collect();
    let limit = args.limit.map_or(selected.len(), |limit| limit as usize);
    evenly(limit, selected.len()).map(|n| selected[n]).collect()
}

/// Makes a sheet with a row for each kind: the best drawings, then the worst, each between its true
/// picture and the most similar wrong picture. The captions are listed on standard error.
fn sheet(cases: &[CaseResult]) -> Result<RgbImage> {
    let side = cases.first().map_or(1, |case| case.pictures[0].width());
    let scale = CELL.div_ceil(side);
    let blank = RgbImage::from_pixel(side * scale, side * scale, image::Rgb([255; 3]));
    let mut cells = Vec::new();
    for kind in CombinationKind::ALL {
        let mut of_kind: Vec<&CaseResult> = cases.iter().filter(|case| case.kind == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        of_kind.sort_by(|a, b| b.drawn.margin.total_cmp(&a.drawn.margin));
        for (slot, case) in best_and_worst(&of_kind).into_iter().enumerate() {
            let Some(case) = case else {
                cells.extend(vec![blank.clone(); PICTURES]);
                continue;
            };
            let name = if slot < BEST { "best" } else { "worst" };
            note!("{}, {name}: {} (margin {:+.3})", kind.name(), case.caption, case.drawn.margin);
            for picture in &case.pictures {
                cells.push(enlarge(picture, scale)?);
            }
        }
    }
    Ok(contact_sheet(&cells, 2 * BEST * PICTURES))
}

/// Returns the first two and the last two items, without repeating any.
fn best_and_worst<T: Copy>(sorted: &[T]) -> [Option<T>; 2 * BEST] {
    let n = sorted.len();
    std::array::from_fn(|slot| match slot < BEST {
        true => sorted.get(slot).copied(),
        false => {
            (n + slot).checked_sub(2 * BEST).filter(|at| *at >= BEST).and_then(|at| sorted.get(at).copied())
        }
    })
}

fn table(measured: &Measured) -> String {
    let ranker = match &measured.ranker {
        Some(ranker) => format!("ranked by contrastive model {ranker}, "),
        None => String::new(),
    };
    let mut lines = vec![
        format!("best of {} candidates, {}", measured.candidates, describe_sampling(measured.sampling)),
        format!("{ranker}judged by {}, which did not rank", measured.judge),
    ];
    for KindFigures { kind, cases, mistaken_for, figures } in measured.kinds {
        let Mistakes { operation, thing, unrelated } = mistaken_for;
        lines.push(String::new());
        lines.push(format!(
            "{:39} {:>24}  {:>24}  {:>6}",
            format!("{kind}, {cases} combinations"),
            "drawings",
            "true pictures",
            "chance"
        ));
        lines.extend(figures.iter().map(row));
        lines.push(format!(
            "  mistaken for another operation {operation}, another thing {thing}, unrelated scenes {unrelated}"
        ));
    }
    lines.join("\n")
}

fn row(figure: &ZeroShotFigure) -> String {
    let ZeroShotFigure { name, unit, n, drawn, real, chance } = figure;
    let name = if unit.is_empty() { name.clone() } else { format!("{name}, {unit}") };
    let real = real.as_ref().map(interval).unwrap_or_default();
    let chance = chance.map(|chance| format!("{chance:.1}")).unwrap_or_default();
    let row = format!("  {name:31} {n:>5} {:>24}  {real:>24}  {chance:>6}", interval(drawn));
    row.trim_end().to_string()
}

/// Formats an estimate with its interval, as in "42.2 (31.0 to 54.3)".
fn interval(Estimate { value, low, high }: &Estimate) -> String {
    let decimals = if value.abs() < 10.0 { 2 } else { 1 };
    format!("{value:.decimals$} ({low:.decimals$} to {high:.decimals$})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_and_worst_contains_no_item_twice() {
        assert_eq!(best_and_worst(&[1]), [Some(1), None, None, None]);
        assert_eq!(best_and_worst(&[1, 2, 3]), [Some(1), Some(2), None, Some(3)]);
        assert_eq!(best_and_worst(&[1, 2, 3, 4, 5, 6]), [Some(1), Some(2), Some(5), Some(6)]);
    }

    #[test]
    fn scene_size_outside_the_range_is_an_error() {
        assert_eq!((scene_size(16).unwrap(), scene_size(128).unwrap()), (16, 128));
        for side in [8, 45, 2048] {
            let error = scene_size(side).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("the model draws pictures of {side}x{side} pixels; wanted")),
                "{error}"
            );
        }
    }

    #[test]
    fn row_shows_the_interval_and_omits_missing_values() {
        let estimate = Estimate { value: 42.19, low: 30.95, high: 54.29 };
        let figure = ZeroShotFigure {
            name: "retrieval@1".into(),
            unit: "%",
            n: 64,
            drawn: estimate,
            real: None,
            chance: Some(2.0),
        };
        let line = row(&figure);
        assert!(
            line.starts_with("  retrieval@1, %  ") && line.contains("   64      42.2 (30.9 to 54.3)"),
            "{line}"
        );
        assert!(line.ends_with(" 2.0"), "{line}");
        let ratio = ZeroShotFigure {
            unit: "",
            drawn: Estimate { value: 0.5, low: 0.4, high: 0.6 },
            chance: None,
            ..figure
        };
        assert!(row(&ratio).ends_with("0.50 (0.40 to 0.60)"), "{}", row(&ratio));
    }
}
