//! Aggregates the results of many cases into figures with confidence intervals, for each kind of
//! combination.

use serde::Serialize;
use tessera_data::sources::CombinationKind;
use tessera_data::sources::scenes::{Difference, WRONG};

use super::{CaseResult, Found, Probe, Probed, Variety};
use crate::interval::{Estimate, mean};

/// The figures of one kind of combination, or of all kinds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindFigures {
    /// The name of the kind as in the held-out list, or "all".
    pub kind: String,
    /// The number of combinations that were drawn.
    pub cases: usize,
    /// The nearest wrong pictures of the drawings whose true picture is not the nearest.
    pub mistaken_for: Mistakes,
    /// The figures that are defined for this kind.
    pub figures: Vec<ZeroShotFigure>,
}

/// The number of drawings for which a wrong picture is the nearest, by its difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Mistakes {
    /// The number of wrong pictures of the same things with another operation.
    pub operation: usize,
    /// The number of wrong pictures of the same operation with another thing.
    pub thing: usize,
    /// The number of unrelated scenes.
    pub unrelated: usize,
}

/// A figure for drawings, with its value for true pictures and by chance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ZeroShotFigure {
    /// The name of the figure.
    pub name: String,
    /// The unit. Empty for a plain number.
    pub unit: &'static str,
    /// The number of combinations for which it was measured.
    pub n: usize,
    /// The value for drawings.
    pub drawn: Estimate,
    /// The value for true pictures. For continued panels: the value for the dVAE's reconstructions
    /// of the true panels.
    pub real: Option<Estimate>,
    /// The value by chance. For probes: the value for unrelated pictures.
    pub chance: Option<f64>,
}

/// Returns the figures of each kind that occurs. If there are several kinds, the last element has
/// the figures of all of them together.
pub fn zero_shot_figures(results: &[CaseResult]) -> Vec<KindFigures> {
    let results_of = |kind: &CombinationKind| -> Vec<&CaseResult> {
        results.iter().filter(|result| result.kind == *kind).collect()
    };
    let kinds = CombinationKind::ALL.iter().map(|kind| (kind.name(), results_of(kind)));
    let mut figures: Vec<KindFigures> = kinds
        .filter(|(_, results)| !results.is_empty())
        .map(|(name, results)| figures_of(name, &results))
        .collect();
    if figures.len() > 1 {
        figures.push(figures_of("all", &results.iter().collect::<Vec<_>>()));
    }
    figures
}

fn figures_of(kind: &str, results: &[&CaseResult]) -> KindFigures {
    let mistakes =
        |difference| results.iter().filter(|result| result.mistaken_for == Some(difference)).count();
    let founds: Vec<[Found; 2]> = results.iter().map(|result| [result.drawn, result.real]).collect();
    let mut figures = vec![retrieval("retrieval@1", &founds)];
    figures.extend(Probe::ALL.into_iter().filter_map(|probe| probe_figure(probe, results)));
    figures.extend(panel_figures(results));
    figures.extend(variety_figures(results));
    KindFigures {
        kind: kind.to_string(),
        cases: results.len(),
        mistaken_for: Mistakes {
            operation: mistakes(Difference::Operation),
            thing: mistakes(Difference::Thing),
            unrelated: mistakes(Difference::Unrelated),
        },
        figures,
    }
}

/// How often the true picture is the nearest, with drawings and with true pictures as queries.
fn retrieval(name: &str, founds: &[[Found; 2]]) -> ZeroShotFigure {
    let first = |which: usize| {
        let count = founds.iter().filter(|found| found[which].rank == 0).count();
        Estimate::percent(count, founds.len())
    };
    ZeroShotFigure {
        name: name.to_string(),
        unit: "%",
        n: founds.len(),
        drawn: first(0),
        real: Some(first(1)),
        chance: Some(100.0 / (WRONG + 1) as f64),
    }
}

fn probe_figure(probe: Probe, results: &[&CaseResult]) -> Option<ZeroShotFigure> {
    let all = results.iter().flat_map(|result| &result.probes);
    let found: Vec<&Probed> = all.filter(|probed| probed.probe == probe).collect();
    let share = |passed: fn(&Probed) -> bool| {
        Estimate::percent(found.iter().filter(|probed| passed(probed)).count(), found.len())
    };
    let unrelated: Vec<f64> = found.iter().map(|probed| 100.0 * probed.unrelated).collect();
    (!found.is_empty()).then(|| ZeroShotFigure {
        name: probe.name().to_string(),
        unit: "%",
        n: found.len(),
        drawn: share(|probed| probed.drawn),
        real: Some(share(|probed| probed.real)),
        chance: Some(mean(&unrelated)),
    })
}

fn panel_figures(results: &[&CaseResult]) -> Vec<ZeroShotFigure> {
    let panels: Vec<_> = results.iter().filter_map(|result| result.panel).collect();
    if panels.is_empty() {
        return Vec::new();
    }
    let [drawn, tokens] = [
        panels.iter().map(|panel| panel.psnr_db).collect::<Vec<f64>>(),
        panels.iter().map(|panel| panel.tokens_psnr_db).collect(),
    ];
    let psnr = ZeroShotFigure {
        name: "lower panel, PSNR".to_string(),
        unit: "dB",
        n: panels.len(),
        drawn: Estimate::mean(&drawn),
        real: Some(Estimate::mean(&tokens)),
        chance: None,
    };
    let founds: Vec<[Found; 2]> = panels.iter().map(|panel| [panel.drawn, panel.tokens]).collect();
    vec![psnr, retrieval("lower panel, retrieval@1", &founds)]
}

fn variety_figures(results: &[&CaseResult]) -> Vec<ZeroShotFigure> {
    let pairs: Vec<Variety> = results.iter().filter_map(|result| result.variety).collect();
    if pairs.is_empty() {
        return Vec::new();
    }
    let mean_of =
        |pairs: &[Variety], field: fn(&Variety) -> f64| mean(&pairs.iter().map(field).collect::<Vec<_>>());
    let drawn = |pairs: &[Variety]| mean_of(pairs, |pair| pair.drawn);
    let real = |pairs: &[Variety]| mean_of(pairs, |pair| pair.real);
    let figure = |name: &str, unit, drawn, real| ZeroShotFigure {
        name: name.to_string(),
        unit,
        n: pairs.len(),
        drawn,
        real,
        chance: None,
    };
    let both = [Estimate::bootstrap(&pairs, drawn), Estimate::bootstrap(&pairs, real)];
    let mut figures = vec![figure("variety, distance", "of 255", both[0], Some(both[1]))];
    if both[1].low > 0.0 {
        let ratio = Estimate::bootstrap(&pairs, |pairs| drawn(pairs) / real(pairs));
        figures.push(figure("variety, ratio", "", ratio, None));
    }
    figures
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::super::PanelResult;
    use super::*;

    fn result(kind: CombinationKind, rank: usize) -> CaseResult {
        let found = |rank| Found { rank, margin: 0.5 - rank as f64, nearest_wrong: 3 };
        CaseResult {
            index: 0,
            kind,
            caption: "a cat".to_string(),
            drawn: found(rank),
            mistaken_for: (rank > 0).then_some(Difference::Thing),
            real: found(0),
            probes: vec![Probed { probe: Probe::Background, drawn: rank == 0, real: true, unrelated: 0.25 }],
            panel: None,
            variety: Some(Variety { drawn: 10.0, real: 20.0 }),
            pictures: [(); 3].map(|()| RgbImage::new(2, 2)),
        }
    }

    fn named<'a>(kind: &'a KindFigures, name: &str) -> &'a ZeroShotFigure {
        kind.figures.iter().find(|figure| figure.name == name).unwrap()
    }

    #[test]
    fn figures_are_reported_per_kind_and_for_all_kinds() {
        let mut panel = result(CombinationKind::Panel, 0);
        panel.panel =
            Some(PanelResult { psnr_db: 15.0, tokens_psnr_db: 20.0, drawn: panel.drawn, tokens: panel.real });
        let colours = [0, 0, 1, 2].map(|rank| result(CombinationKind::Colour, rank));
        let figures = zero_shot_figures(&[&colours[..], &[panel]].concat());
        let kinds: Vec<(&str, usize)> = figures.iter().map(|kind| (kind.kind.as_str(), kind.cases)).collect();
        assert_eq!(kinds, [("colour", 4), ("panel", 1), ("all", 5)]);
        let found = named(&figures[0], "retrieval@1");
        assert_eq!((found.drawn.value, found.chance), (50.0, Some(2.0)));
        assert!((found.drawn.low - 15.0).abs() < 0.1 && found.real.unwrap().value == 100.0, "{found:?}");
        assert_eq!(figures[0].mistaken_for, Mistakes { thing: 2, ..Mistakes::default() });
        assert_eq!(named(&figures[2], "background colour").chance, Some(25.0));
        assert_eq!(named(&figures[0], "variety, ratio").drawn.value, 0.5);
        let psnr = named(&figures[1], "lower panel, PSNR");
        assert_eq!((psnr.drawn.value, psnr.real.unwrap().value), (15.0, 20.0));
        assert!(figures[0].figures.iter().all(|figure| !figure.name.contains("panel")));
    }

    #[test]
    fn single_kind_has_no_total_and_single_drawing_no_variety() {
        let single = CaseResult { variety: None, ..result(CombinationKind::Style, 0) };
        let figures = zero_shot_figures(&[single]);
        assert_eq!(figures.len(), 1);
        assert!(figures[0].figures.iter().all(|figure| !figure.name.contains("variety")));
        assert!(zero_shot_figures(&[]).is_empty());
    }
}
