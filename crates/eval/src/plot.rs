//! Line plots as SVG, for training curves and for metrics as a function of a setting.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// The size of a panel in pixels.
const SIZE: (u32, u32) = (440, 280);
/// The number of panels in a row.
const COLUMNS: usize = 2;
/// The maximum number of lines in a panel with a legend and fixed colours.
const NAMED: usize = 6;
/// The colours of the lines in such a panel.
const COLOURS: [RGBColor; NAMED] = [
    RGBColor(60, 90, 160),
    RGBColor(200, 60, 40),
    RGBColor(40, 140, 90),
    RGBColor(170, 110, 20),
    RGBColor(120, 60, 150),
    RGBColor(90, 90, 90),
];
/// Half the width of the caps of an error bar in pixels.
const CAP: i32 = 4;

/// x, y, and the error of y if it has one.
pub type Point = (f64, f64, Option<f64>);
/// A line: its name and its points.
pub type Series = (String, Vec<Point>);
/// A drawing area of plotters.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// A chart of plotters.
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type PlotResult = Result<(), Box<dyn std::error::Error>>;

/// The scale of the x axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XAxis {
    /// A linear scale.
    Linear,
    /// A logarithmic scale with base 2. All x must be above 0.
    Log2,
}

/// The title and the axes of a panel.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// The title above the plot.
    pub title: &'a str,
    /// The label of the x axis. Omitted if empty.
    pub x_label: &'a str,
    /// The label of the y axis. Omitted if empty.
    pub y_label: &'a str,
    /// The scale of the x axis.
    pub x_axis: XAxis,
}

/// A panel: its frame and its lines.
pub type Panel<'a> = (Frame<'a>, Vec<Series>);

/// Plots panels with lines, point markers and error bars as an SVG, two panels per row.
///
/// # Errors
/// If there are no points, a number is not finite, or an x on a logarithmic axis is not above 0.
pub fn line_plots(panels: &[Panel<'_>]) -> Result<String> {
    ensure!(!panels.is_empty(), "nothing to plot; wanted at least one panel");
    panels.iter().try_for_each(check)?;
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let drawn = svg((SIZE.0 * columns as u32, SIZE.1 * rows as u32), |root| {
        for (area, (frame, series)) in root.split_evenly((rows, columns)).iter().zip(panels) {
            let chart = draw_lines(area, frame, series)?;
            draw_points(&chart, frame.x_axis, series)?;
        }
        Ok(())
    });
    drawn.map_err(|error| anyhow!("cannot plot {}: {error}", panels[0].0.title))
}

fn check((frame, series): &Panel<'_>) -> Result<()> {
    let points = || series.iter().flat_map(|(_, points)| points);
    ensure!(points().next().is_some(), "nothing to plot of {}: no points; wanted at least 1", frame.title);
    for &(x, y, error) in points() {
        let finite = x.is_finite() && y.is_finite() && error.is_none_or(f64::is_finite);
        ensure!(finite, "a point of {} is ({x}, {y} ± {error:?}); wanted finite numbers", frame.title);
        let fits = frame.x_axis == XAxis::Linear || x > 0.0;
        ensure!(
            fits,
            "x of {} is {x} on a logarithmic axis; wanted it above 0, or a linear axis",
            frame.title
        );
    }
    Ok(())
}

/// Returns what `draw` draws on a white background as an SVG.
pub(crate) fn svg(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> PlotResult,
) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
    }
    Ok(svg)
}

/// Draws a frame and its lines. If there are 2 to [`NAMED`] lines, it adds a legend in the corner
/// with the fewest points.
pub(crate) fn draw_lines<'a, 'b>(
    area: &'a Area<'b>,
    frame: &Frame<'_>,
    series: &[Series],
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error>> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (x0, x1) = range(points().map(|point| place(frame.x_axis, point.0)));
    let ends = |&(_, y, error): &Point| [y - error.unwrap_or(0.0), y + error.unwrap_or(0.0)];
    let (y0, y1) = range(points().flat_map(ends));
    let room = |label: &str, ticks: u32| if label.is_empty() { ticks } else { ticks + 16 };
    let mut chart = ChartBuilder::on(area)
        .caption(frame.title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(room(frame.x_label, 22))
        .y_label_area_size(room(frame.y_label, 48))
        .build_cartesian_2d(x0..x1, y0..y1)?;
    draw_mesh(&mut chart, frame, area.dim_in_pixel())?;
    let n = series.len();
    for (i, (name, points)) in series.iter().enumerate() {
        let (colour, width) = (colour(i, n), if n <= NAMED { 2 } else { 1 });
        let line = points.iter().map(|&(x, y, _)| (place(frame.x_axis, x), y));
        let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(width)))?;
        if 1 < n && n <= NAMED {
            let sample = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2));
            drawn.label(name).legend(sample);
        }
    }
    if 1 < n && n <= NAMED {
        let places: Vec<(f64, f64)> = points()
            .map(|&(x, y, _)| ((place(frame.x_axis, x) - x0) / (x1 - x0), (y - y0) / (y1 - y0)))
            .collect();
        let labels = &mut chart.configure_series_labels();
        labels.position(free_corner(&places)).background_style(WHITE.mix(0.8)).draw()?;
    }
    Ok(chart)
}

fn draw_mesh(chart: &mut Chart<'_, '_>, frame: &Frame<'_>, size: (u32, u32)) -> PlotResult {
    // Only powers of 2 are labelled on a logarithmic axis.
    let power_of_2 = |x: &f64| if x.fract() == 0.0 { number(&x.exp2()) } else { String::new() };
    let (columns, rows) = (size.0 as usize / 80, size.1 as usize / 50);
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(columns).y_labels(rows).y_label_formatter(&number).light_line_style(WHITE);
    if !frame.x_label.is_empty() {
        mesh.x_desc(frame.x_label);
    }
    if !frame.y_label.is_empty() {
        mesh.y_desc(frame.y_label);
    }
    match frame.x_axis {
        XAxis::Linear => mesh.x_label_formatter(&number).draw()?,
        XAxis::Log2 => mesh.x_labels(10).x_label_formatter(&power_of_2).draw()?,
    }
    Ok(())
}

/// Formats the label of a tick with up to five significant digits, without trailing zeros.
fn number(value: &f64) -> String {
    if value.fract() == 0.0 || value.abs() < 1e-12 {
        return format!("{}", *value as i64);
    }
    let decimals = (4.0 - value.abs().log10().floor()).clamp(1.0, 12.0) as usize;
    format!("{value:.decimals$}").trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Draws the point markers and the error bars.
fn draw_points(chart: &Chart<'_, '_>, x_axis: XAxis, series: &[Series]) -> PlotResult {
    let area = chart.plotting_area();
    for (i, (_, points)) in series.iter().enumerate() {
        let colour = colour(i, series.len());
        for &(x, y, error) in points {
            let x = place(x_axis, x);
            area.draw(&Circle::new((x, y), 3, colour.filled()))?;
            if let Some(error) = error {
                let bar =
                    |from: (i32, i32), to: (i32, i32)| PathElement::new([from, to], colour.stroke_width(1));
                let middle = area.map_coordinate(&(x, y));
                let [low, high] = [y - error, y + error].map(|y| area.map_coordinate(&(x, y)).1 - middle.1);
                let line = EmptyElement::at((x, y)) + bar((0, low), (0, high));
                let caps =
                    EmptyElement::at((x, y)) + bar((-CAP, low), (CAP, low)) + bar((-CAP, high), (CAP, high));
                area.draw(&line)?;
                area.draw(&caps)?;
            }
        }
    }
    Ok(())
}

/// The coordinate of `x` on its axis.
fn place(x_axis: XAxis, x: f64) -> f64 {
    match x_axis {
        XAxis::Linear => x,
        XAxis::Log2 => x.log2(),
    }
}

/// The colour of line `i` of `n`. Up to [`NAMED`] lines have fixed colours; more lines range from
/// blue through green to red.
fn colour(i: usize, n: usize) -> RGBColor {
    if n <= NAMED {
        return COLOURS[i];
    }
    let share = i as f64 / (n - 1) as f64;
    let (red, green, blue) = HSLColor(0.66 * (1.0 - share), 0.7, 0.45).rgb();
    RGBColor(red, green, blue)
}

/// The corner with the fewest points, preferably the upper right one. The coordinates are fractions
/// of width and height.
fn free_corner(places: &[(f64, f64)]) -> SeriesLabelPosition {
    let near = |right: bool, upper: bool| {
        let within =
            |&&(x, y): &&(f64, f64)| (x > 0.6) == right && (y > 0.6) == upper && beyond(x) && beyond(y);
        places.iter().filter(within).count()
    };
    let corners = [
        (near(true, true), SeriesLabelPosition::UpperRight),
        (near(false, true), SeriesLabelPosition::UpperLeft),
        (near(true, false), SeriesLabelPosition::LowerRight),
        (near(false, false), SeriesLabelPosition::LowerLeft),
    ];
    let best = corners.into_iter().min_by_key(|(n, _)| *n);
    best.map_or(SeriesLabelPosition::UpperRight, |(_, corner)| corner)
}

/// Whether a coordinate lies in the first or the last two fifths.
fn beyond(coordinate: f64) -> bool {
    !(0.4..=0.6).contains(&coordinate)
}

/// The range of an axis: the smallest and largest value with a margin of 5 %. The margin around a
/// single value is a tenth of it.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let pad = if high > low { (high - low) * 0.05 } else { (high.abs() * 0.1).max(1e-6) };
    (low - pad, high + pad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(x_axis: XAxis) -> Frame<'static> {
        Frame { title: "FID of drawings", x_label: "best of", y_label: "FID", x_axis }
    }

    fn series(points: &[Point]) -> Vec<Series> {
        vec![("ours".to_string(), points.to_vec())]
    }

    #[test]
    fn log2_axis_places_doublings_at_equal_distances() {
        let points = [(1.0, 40.0, None), (2.0, 30.0, None), (4.0, 25.0, Some(1.0)), (512.0, 20.0, None)];
        let svg = line_plots(&[(frame(XAxis::Log2), series(&points))]).unwrap();
        for text in ["FID of drawings", "best of", "\nFID\n", "\n512\n", "\n1\n"] {
            assert!(svg.contains(text), "no {text:?} in {svg}");
        }
        let x: Vec<f64> = svg
            .lines()
            .filter_map(|line| line.strip_prefix("<circle cx=\"")?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(x.len(), 4);
        assert!(
            ((x[2] - x[1]) - (x[1] - x[0])).abs() <= 1.0 && ((x[3] - x[0]) - 9.0 * (x[1] - x[0])).abs() < 9.0
        );
    }

    #[test]
    fn error_bars_fit_into_the_panel_and_two_lines_have_a_legend() {
        let plot = |error| {
            line_plots(&[(frame(XAxis::Linear), series(&[(0.0, 1.0, error), (8.0, 2.0, None)]))]).unwrap()
        };
        let (bare, bars) = (plot(None), plot(Some(5.0)));
        let polylines = |svg: &str| {
            svg.lines().filter(|line| line.contains("<polyline") && line.contains("#3C5AA0")).count()
        };
        assert_eq!((polylines(&bare), polylines(&bars)), (1, 4), "a bar and its two caps");
        let heights = bars.lines().filter(|line| line.contains("#3C5AA0")).flat_map(|line| {
            let points =
                line.split("points=\"").nth(1).unwrap_or_default().split('"').next().unwrap_or_default();
            points
                .split_whitespace()
                .filter_map(|point| point.split_once(',')?.1.parse::<i32>().ok())
                .collect::<Vec<_>>()
        });
        assert!(heights.into_iter().all(|y| (20..370).contains(&y)));
        // A single line has no legend.
        assert!(!bare.contains("ours"));
        let two =
            [series(&[(0.0, 1.0, None)]), vec![("theirs".to_string(), vec![(1.0, 1.0, None)])]].concat();
        let both = line_plots(&[(frame(XAxis::Linear), two)]).unwrap();
        assert!(both.contains("ours") && both.contains("theirs"));
    }

    #[test]
    fn invalid_points_are_refused() {
        let error = |x_axis, points: &[Point]| {
            line_plots(&[(frame(x_axis), series(points))]).unwrap_err().to_string()
        };
        assert!(error(XAxis::Linear, &[]).contains("no points"));
        assert!(
            error(XAxis::Log2, &[(0.0, 1.0, None)])
                .contains("x of FID of drawings is 0 on a logarithmic axis")
        );
        assert!(error(XAxis::Linear, &[(0.0, f64::NAN, None)]).contains("wanted finite numbers"));
    }

    #[test]
    fn tick_labels_have_at_most_five_significant_digits() {
        let labels = [0.0, -1e-17, 3.0000000000000004, 0.72, -12.5, 12_000.0, 1_000.25, 0.000999, 1.0 / 3.0]
            .map(|x| number(&x));
        assert_eq!(labels, ["0", "0", "3", "0.72", "-12.5", "12000", "1000.2", "0.000999", "0.33333"]);
    }

    #[test]
    fn legend_is_placed_in_a_corner_without_points() {
        let falling: Vec<(f64, f64)> =
            (0..10).map(|i| (f64::from(i) / 9.0, 1.0 - f64::from(i) / 9.0)).collect();
        assert!(matches!(free_corner(&falling), SeriesLabelPosition::UpperRight));
        let rising: Vec<(f64, f64)> = falling.iter().map(|&(x, y)| (x, 1.0 - y)).collect();
        assert!(matches!(free_corner(&rising), SeriesLabelPosition::UpperLeft));
    }
}
