//! Probes: attributes of a picture that simple image processing can check. They are the background
//! colour, the number of connected components, the positions of two things, and whether the lower
//! half is the upper half turned upside down.

use std::collections::BTreeSet;

use image::{RgbImage, imageops};
use serde::Serialize;
use tessera_base::pixels::mean_squared_error;
use tessera_data::sources::scenes::{Facts, Halves, background_colours};

use super::panels::{lower_half, upper_half};

/// A pixel belongs to the background if no channel differs from it by more than this, of 255.
const BACKGROUND: u8 = 40;
/// Components smaller than this fraction of the picture are ignored as specks.
const SPECK: f64 = 1.0 / 256.0;
/// The foreground is dilated by the picture's side divided by this number, to close gaps within a
/// figure. More dilation would merge two things.
const GROWTH: usize = 128;
/// The number of cells along each side of a half, for the comparison of halves.
const CELLS: u32 = 8;

/// A probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The background has the colour that the caption names.
    Background,
    /// The number of connected components is that of a true picture.
    Components,
    /// The things on the left and on the right are not swapped.
    LeftRight,
    /// The things above and below are not swapped.
    TopBottom,
    /// The lower half is the upper half turned upside down.
    Inversion,
}

impl Probe {
    /// All probes, in the order in which they are reported.
    pub const ALL: [Probe; 5] =
        [Probe::Background, Probe::Components, Probe::LeftRight, Probe::TopBottom, Probe::Inversion];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Probe::Background => "background colour",
            Probe::Components => "number of components",
            Probe::LeftRight => "left and right",
            Probe::TopBottom => "top and bottom",
            Probe::Inversion => "upside down",
        }
    }
}

/// Returns every probe that is defined for `facts`, and whether `picture` passes it. `real` are
/// true pictures, at least one.
pub(super) fn probe(picture: &RgbImage, facts: &Facts, real: &[RgbImage]) -> Vec<(Probe, bool)> {
    let mut found = Vec::new();
    if let Some(expected) = facts.background {
        found.push((Probe::Background, named_background(picture) == expected));
        let counts: BTreeSet<usize> = real.iter().map(components).collect();
        found.push((Probe::Components, counts.contains(&components(picture))));
    }
    match facts.halves {
        Some(Halves::LeftRight) => {
            found.push((Probe::LeftRight, is_arranged(halves_across(picture), halves_across(&real[0]))))
        }
        Some(Halves::TopBottom) => {
            found.push((Probe::TopBottom, is_arranged(halves_down(picture), halves_down(&real[0]))))
        }
        None => {}
    }
    if facts.is_inverted {
        found.push((Probe::Inversion, is_inverted(picture)));
    }
    found
}

/// The median of each channel over the pixels along the border.
fn background(picture: &RgbImage) -> [u8; 3] {
    let (width, height) = picture.dimensions();
    let border = (width.min(height) / 32).max(1);
    let is_border = |x: u32, y: u32| x.min(width - 1 - x) < border || y.min(height - 1 - y) < border;
    let pixels: Vec<[u8; 3]> =
        picture.enumerate_pixels().filter(|(x, y, _)| is_border(*x, *y)).map(|(.., pixel)| pixel.0).collect();
    [0, 1, 2].map(|channel| {
        let mut values: Vec<u8> = pixels.iter().map(|pixel| pixel[channel]).collect();
        values.sort_unstable();
        values[values.len() / 2]
    })
}

/// The background colour of scenes that is nearest to the picture's background.
fn named_background(picture: &RgbImage) -> [u8; 3] {
    let found = background(picture);
    let distance = |colour: &[u8; 3]| -> u32 {
        colour.iter().zip(found).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
    };
    background_colours().into_iter().min_by_key(distance).unwrap_or(found)
}

/// The number of connected components in front of the background. Narrow gaps are closed and specks
/// are ignored.
fn components(picture: &RgbImage) -> usize {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let found = background(picture);
    let is_figure =
        |pixel: &image::Rgb<u8>| pixel.0.iter().zip(found).any(|(a, b)| a.abs_diff(b) > BACKGROUND);
    let figure: Vec<bool> = picture.pixels().map(is_figure).collect();
    let dilated = dilated(&figure, [width, height], width.min(height) / GROWTH);
    let least = SPECK * (width * height) as f64;
    areas(&dilated, &figure, [width, height]).into_iter().filter(|&area| area as f64 >= least).count()
}

/// Dilates `mask` by a square: the pixels within `reach` of a pixel of `mask`, horizontally and
/// vertically.
fn dilated(mask: &[bool], [width, height]: [usize; 2], reach: usize) -> Vec<bool> {
    let near = |at: usize, length: usize| at.saturating_sub(reach)..(at + reach + 1).min(length);
    let across: Vec<bool> =
        (0..mask.len()).map(|n| near(n % width, width).any(|x| mask[n / width * width + x])).collect();
    (0..mask.len()).map(|n| near(n / width, height).any(|y| across[y * width + n % width])).collect()
}

/// For each connected component of `mask`, returns the number of pixels of `figure` in it.
fn areas(mask: &[bool], figure: &[bool], [width, height]: [usize; 2]) -> Vec<usize> {
    let mut visited = vec![false; mask.len()];
    let mut areas = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || visited[start] {
            continue;
        }
        let mut area = 0;
        let mut open = vec![start];
        visited[start] = true;
        while let Some(n) = open.pop() {
            area += usize::from(figure[n]);
            let (x, y) = (n % width, n / width);
            let neighbours = [
                (x > 0).then(|| n - 1),
                (x + 1 < width).then(|| n + 1),
                (y > 0).then(|| n - width),
                (y + 1 < height).then(|| n + width),
            ];
            for next in neighbours.into_iter().flatten().filter(|&next| mask[next]) {
                if !std::mem::replace(&mut visited[next], true) {
                    open.push(next);
                }
            }
        }
        areas.push(area);
    }
    areas
}

fn halves_across(picture: &RgbImage) -> [RgbImage; 2] {
    let (half, height) = (picture.width() / 2, picture.height());
    [0, picture.width() - half].map(|left| imageops::crop_imm(picture, left, 0, half, height).to_image())
}

fn halves_down(picture: &RgbImage) -> [RgbImage; 2] {
    [upper_half(picture), lower_half(picture)]
}

/// Whether the halves are closer to the true halves in their order than swapped, by the mean
/// colours of their cells.
fn is_arranged(halves: [RgbImage; 2], real: [RgbImage; 2]) -> bool {
    let cells = |half: &RgbImage| imageops::thumbnail(half, CELLS, CELLS);
    let [first, second] = halves.each_ref().map(cells);
    let [real_first, real_second] = real.each_ref().map(cells);
    let straight = mean_squared_error(&first, &real_first) + mean_squared_error(&second, &real_second);
    let swapped = mean_squared_error(&first, &real_second) + mean_squared_error(&second, &real_first);
    straight < swapped
}

/// Whether the lower half is closer to the upper half turned upside down than to the upper half.
fn is_inverted(picture: &RgbImage) -> bool {
    let [upper, lower] = halves_down(picture);
    mean_squared_error(&imageops::flip_vertical(&lower), &upper) < mean_squared_error(&lower, &upper)
}

#[cfg(test)]
mod tests {
    use tessera_data::sources::scenes::write_placeholder_packages;
    use tessera_data::sources::{HeldOutCase, Scenes, ScenesOptions};

    use super::*;

    /// The first case of a held-out list for each seed, with placeholder images, at 64 pixels.
    fn cases(list: &str, seeds: std::ops::Range<u64>) -> Vec<HeldOutCase> {
        let dir = tempfile::tempdir().unwrap();
        write_placeholder_packages(dir.path()).unwrap();
        let held_out = Some(list.to_string());
        let scenes = Scenes::open(ScenesOptions { held_out, ..ScenesOptions::new(dir.path(), 64) }).unwrap();
        seeds.map(|seed| scenes.held_out_case(0, seed, 3).unwrap()).collect()
    }

    /// The results of `tested` for the first true picture of each case, compared with the others.
    fn results_of(cases: &[HeldOutCase], tested: Probe) -> Vec<bool> {
        let found = cases.iter().flat_map(|case| probe(&case.real[0], &case.facts, &case.real[1..]));
        found.filter(|(probe, _)| *probe == tested).map(|(_, passed)| passed).collect()
    }

    #[test]
    fn background_probe_accepts_only_the_right_colour() {
        let cases = cases("colour: banana | purple", 0..40);
        let colours: BTreeSet<[u8; 3]> = cases.iter().filter_map(|case| case.facts.background).collect();
        assert!(colours.len() > 3 && colours.contains(&[255; 3]), "{colours:?}");
        assert_eq!(results_of(&cases, Probe::Background), [true; 40]);
        let other = |case: &HeldOutCase| {
            let colour = if case.facts.background == Some([255; 3]) { [241, 180, 118] } else { [255; 3] };
            probe(&RgbImage::from_pixel(64, 64, image::Rgb(colour)), &case.facts, &case.real)[0]
        };
        assert!(cases.iter().all(|case| other(case) == (Probe::Background, false)));
    }

    #[test]
    fn two_things_are_two_components_and_swapping_them_fails() {
        let cases = cases("things: cat | pizza", 0..40);
        for case in &cases {
            if case.facts.halves.is_some() {
                assert!(case.real.iter().all(|picture| components(picture) == 2), "{}", case.caption);
            }
        }
        for (tested, halves, second) in [
            (Probe::LeftRight, halves_across as fn(&RgbImage) -> [RgbImage; 2], [32, 0]),
            (Probe::TopBottom, halves_down, [0, 32]),
        ] {
            let passed = results_of(&cases, tested);
            assert!(passed.len() > 3 && passed.iter().all(|passed| *passed), "{tested:?}: {passed:?}");
            for case in &cases {
                let [first_half, second_half] = halves(&case.real[0]);
                let mut exchanged = case.real[0].clone();
                imageops::replace(&mut exchanged, &second_half, 0, 0);
                imageops::replace(&mut exchanged, &first_half, second[0], second[1]);
                let probed = probe(&exchanged, &case.facts, &case.real).into_iter();
                let passed = probed.filter(|(probe, _)| *probe == tested).any(|(_, passed)| passed);
                assert!(!passed, "{}", case.caption);
            }
        }
    }

    #[test]
    fn inversion_probe_rejects_an_upright_lower_half() {
        let turned = cases("panel: cat | upside down", 0..4);
        assert_eq!(results_of(&turned, Probe::Inversion), [true; 4]);
        let mut upright = turned[0].real[0].clone();
        imageops::replace(&mut upright, &upper_half(&turned[0].real[0]), 0, 32);
        assert_eq!(probe(&upright, &turned[0].facts, &turned[0].real), [(Probe::Inversion, false)]);
        let sketched = cases("panel: cat | x-ray", 0..4);
        assert_eq!(results_of(&sketched, Probe::TopBottom), [true; 4]);
        assert!(results_of(&sketched, Probe::Inversion).is_empty());
    }

    #[test]
    fn components_ignore_specks_and_narrow_gaps() {
        let mut picture = RgbImage::from_pixel(128, 128, image::Rgb([255; 3]));
        let mut block = |left: i64, side: u32| {
            imageops::replace(&mut picture, &RgbImage::new(side, 20.min(side)), left, 20);
            components(&picture)
        };
        assert_eq!(block(4, 20), 1);
        assert_eq!(block(25, 10), 1, "a gap of one pixel");
        assert_eq!(block(50, 2), 1, "a speck of four pixels");
        assert_eq!(block(45, 12), 2);
    }
}
