//! Resizing and normalization of a picture of any size to the network's input, `[3, 299, 299]`, by
//! one of four conventions. They differ by more than rounding, and so do the metrics.

use image::RgbImage;

use tessera_model::pil;

/// The height and width of the network's input.
pub const SIDE: usize = 299;

/// The convention for resizing and normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// pytorch-fid's: bilinear with pixels aligned by their centres, without antialiasing; then
    /// `2x - 1` for x in [0, 1].
    PytorchFid,
    /// torch-fidelity's, which is TensorFlow 1's: bilinear with pixels aligned by their corners,
    /// without antialiasing; then `(x - 128) / 128` for bytes x.
    TorchFidelity,
    /// DM-GAN's for the graph of 2015, from which the paper's IS comes: Pillow's bilinear filter,
    /// then `(x - 128) / 128` for bytes x.
    DmGanScore,
    /// DM-GAN's for torchvision's network, from which the paper's FIDs come (§3): Pillow's bilinear
    /// filter; then ImageNet's statistics are applied in the wrong direction: the values are
    /// multiplied by the standard deviations and the means are added.
    Torchvision,
}

/// ImageNet's mean of each channel.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's standard deviation of each channel.
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Resizes and normalizes `picture` to the network's input, `[3, SIDE, SIDE]`.
pub fn prepare(picture: &RgbImage, convention: Convention) -> Vec<f32> {
    match convention {
        Convention::PytorchFid => {
            bilinear(picture, centres, |byte| f32::from(byte) / 255.0, |value| 2.0 * value - 1.0)
        }
        Convention::TorchFidelity => bilinear(picture, corners, f32::from, |value| (value - 128.0) / 128.0),
        Convention::DmGanScore => pillow(picture, |byte, _| (f32::from(byte) - 128.0) / 128.0),
        Convention::Torchvision => pillow(picture, |byte, c| {
            let [scale, shift] = [DEVIATION[c] / 0.5, (MEAN[c] - 0.5) / 0.5];
            f32::from(byte) / 255.0 * scale + shift
        }),
    }
}

/// Resizes with Pillow's bilinear filter and normalizes with `after`, which receives each byte and
/// its channel.
fn pillow(picture: &RgbImage, after: impl Fn(u8, usize) -> f32) -> Vec<f32> {
    let bytes = pil::resize(picture, [SIDE as u32; 2], pil::PilFilter::Bilinear).into_raw();
    (0..3)
        .flat_map(|c| bytes[c..].iter().step_by(3).map(|&byte| after(byte, c)).collect::<Vec<f32>>())
        .collect()
}

/// The two input pixels of a row or column between which an output pixel lies, and the weight of
/// the second one.
#[derive(Debug, Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    weight: f32,
}

impl Between {
    fn at(position: f32, from: usize) -> Between {
        let low = (position as usize).min(from - 1);
        Between { low, high: (low + 1).min(from - 1), weight: position - low as f32 }
    }
}

// Positions are computed in f32, as in the reference implementations. In large pictures, one
// rounding step changes a pixel by more than the tests allow.

/// The positions of the output pixels among `from` input pixels, aligned by pixel centres.
fn centres(from: usize) -> Vec<Between> {
    let scale = from as f32 / SIDE as f32;
    (0..SIDE).map(|i| Between::at((scale * (i as f32 + 0.5) - 0.5).max(0.0), from)).collect()
}

/// The positions of the output pixels among `from` input pixels, aligned by pixel corners.
fn corners(from: usize) -> Vec<Between> {
    let scale = (from as f64 / SIDE as f64) as f32;
    (0..SIDE).map(|i| Between::at(i as f32 * scale, from)).collect()
}

/// Interpolates between pixels at `positions`. `before` converts bytes to the values that are
/// interpolated, and `after` normalizes the results.
fn bilinear(
    picture: &RgbImage,
    positions: fn(usize) -> Vec<Between>,
    before: impl Fn(u8) -> f32,
    after: impl Fn(f32) -> f32,
) -> Vec<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (columns, rows, bytes) = (positions(width), positions(height), picture.as_raw());
    let mut values = Vec::with_capacity(3 * SIDE * SIDE);
    for c in 0..3 {
        let pixel = |x: usize, y: usize| before(bytes[3 * (y * width + x) + c]);
        for row in &rows {
            for column in &columns {
                let across = |y| mix(pixel(column.low, y), pixel(column.high, y), column.weight);
                values.push(after(mix(across(row.low), across(row.high), row.weight)));
            }
        }
    }
    values
}

fn mix(low: f32, high: f32, weight: f32) -> f32 {
    low + (high - low) * weight
}
