//! Figures against what they depend on, as a picture: a panel a figure, with its errors.

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Size of a panel in pixels.
const PANEL: (u32, u32) = (420, 260);
/// Panels a row.
const COLUMNS: usize = 2;
const COLOUR: RGBColor = RGBColor(60, 90, 160);

/// A figure at several places.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// (x, y, error of y)
    pub points: Vec<(f64, f64, Option<f64>)>,
}

/// One panel a series over `x`, as an SVG. Numbers that double are evenly spaced.
///
/// # Errors
/// If there is nothing to draw.
pub fn line_plot(x: &str, series: &[Series]) -> Result<String> {
    ensure!(series.iter().any(|series| !series.points.is_empty()), "nothing to plot over the {x}");
    draw(x, series).map_err(|error| anyhow!("cannot draw the plot: {error}"))
}

fn draw(x: &str, series: &[Series]) -> Result<String, Box<dyn std::error::Error>> {
    let columns = COLUMNS.min(series.len());
    let rows = series.len().div_ceil(columns);
    let mut svg = String::new();
    {
        let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, series) in root.split_evenly((rows, columns)).iter().zip(series) {
            panel(area, x, series)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    x: &str,
    series: &Series,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = &series.points;
    let doubling = points.len() > 2 && points.windows(2).all(|pair| pair[1].0 == 2.0 * pair[0].0);
    let place = |value: f64| if doubling { value.log2() } else { value };
    let (low, high) = points.iter().fold((f64::MAX, f64::MIN), |(low, high), &(_, y, error)| {
        (low.min(y - error.unwrap_or(0.0)), high.max(y + error.unwrap_or(0.0)))
    });
    let pad = ((high - low) * 0.08).max(1e-6);
    let ends = [points.first(), points.last()].map(|point| point.map_or(0.0, |point| place(point.0)));
    let margin = ((ends[1] - ends[0]) * 0.04).max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .caption(&series.name, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(38)
        .y_label_area_size(56)
        .build_cartesian_2d(ends[0] - margin..ends[1] + margin, low - pad..high + pad)?;
    let name = |value: &f64| match doubling {
        true if value.fract().abs() < 1e-6 => format!("{}", value.exp2().round()),
        true => String::new(),
        false => format!("{value}"),
    };
    let labels = if doubling { points.len() + 1 } else { 6 };
    chart
        .configure_mesh()
        .x_desc(x)
        .x_labels(labels)
        .x_label_formatter(&name)
        .y_labels(5)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(
        points.iter().map(|&(x, y, _)| (place(x), y)),
        COLOUR.stroke_width(2),
    ))?;
    chart.draw_series(points.iter().map(|&(x, y, _)| Circle::new((place(x), y), 3, COLOUR.filled())))?;
    let errors = points.iter().filter_map(|&(x, y, error)| {
        let (x, error) = (place(x), error?);
        Some(PathElement::new([(x, y - error), (x, y + error)], COLOUR.stroke_width(1)))
    });
    chart.draw_series(errors)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_panel_and_doubling_numbers_their_names() {
        let points = |n: i32| (0..n).map(|i| (f64::from(1 << i), f64::from(i), Some(0.1))).collect();
        let series = ["IS", "FID"].map(|name| Series { name: name.into(), points: points(6) });
        let svg = line_plot("best of N", &series).unwrap();
        for text in ["IS", "FID", "best of N", "\n16\n", "\n32\n"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        let none = Series { name: "IS".into(), points: Vec::new() };
        assert!(line_plot("best of N", &[none]).unwrap_err().to_string().contains("nothing to plot"));
    }
}
