//! From a picture of any size to the 299×299 numbers for each colour that the network is given, by the rule of whoever's
//! figures are to be met. The rules differ by more than rounding, and so do the figures.

use image::RgbImage;

use tessera_model::pil;

/// Height and width of what the network sees.
pub const SIDE: usize = 299;

/// Whose rule it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convention {
    /// pytorch-fid's: between the two nearest pixels by their centres, also when a picture shrinks; `2x - 1`.
    PytorchFid,
    /// torch-fidelity's, which is TensorFlow 1's: the same by the corners; `(x - 128) / 128` of bytes.
    TorchFidelity,
    /// That of DM-GAN's code for the graph of 2015, which gives the paper's IS: Pillow's, then `(x - 128) / 128` of bytes.
    DmGanScore,
    /// That of DM-GAN's code for torchvision's network, which the paper's FIDs are by (§3): Pillow's, then ImageNet's means and deviations put
    /// in where they should have been taken out.
    Torchvision,
}

/// ImageNet's mean and deviation of each colour.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// `picture` as the network wants it: `[3, SIDE, SIDE]`.
pub fn prepare(picture: &RgbImage, convention: Convention) -> Vec<f32> {
    match convention {
        Convention::PytorchFid => {
            between(picture, centres, |byte| f32::from(byte) / 255.0, |value| 2.0 * value - 1.0)
        }
        Convention::TorchFidelity => between(picture, corners, f32::from, |value| (value - 128.0) / 128.0),
        Convention::DmGanScore => pillow(picture, |byte, _| (f32::from(byte) - 128.0) / 128.0),
        Convention::Torchvision => pillow(picture, |byte, c| {
            let [scale, shift] = [DEVIATION[c] / 0.5, (MEAN[c] - 0.5) / 0.5];
            f32::from(byte) / 255.0 * scale + shift
        }),
    }
}

/// `after` the bytes that Pillow makes, each with its colour.
fn pillow(picture: &RgbImage, after: impl Fn(u8, usize) -> f32) -> Vec<f32> {
    let bytes = pil::resize(picture, [SIDE as u32; 2], pil::PilFilter::Bilinear).into_raw();
    (0..3)
        .flat_map(|c| bytes[c..].iter().step_by(3).map(|&byte| after(byte, c)).collect::<Vec<f32>>())
        .collect()
}

/// The two pixels of a line that a new one lies between, and how near it is to the second.
#[derive(Debug, Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    share: f32,
}

impl Between {
    fn at(place: f32, from: usize) -> Between {
        let low = (place as usize).min(from - 1);
        Between { low, high: (low + 1).min(from - 1), share: place - low as f32 }
    }
}

// In f32, as theirs: a step of its rounding is enough to move a pixel of a large picture by more than a test allows.

fn centres(from: usize) -> Vec<Between> {
    let scale = from as f32 / SIDE as f32;
    (0..SIDE).map(|i| Between::at((scale * (i as f32 + 0.5) - 0.5).max(0.0), from)).collect()
}

fn corners(from: usize) -> Vec<Between> {
    let scale = (from as f64 / SIDE as f64) as f32;
    (0..SIDE).map(|i| Between::at(i as f32 * scale, from)).collect()
}

/// `after` what lies between the values of pixels, which are `before` their bytes, where `places` says.
fn between(
    picture: &RgbImage,
    places: fn(usize) -> Vec<Between>,
    before: impl Fn(u8) -> f32,
    after: impl Fn(f32) -> f32,
) -> Vec<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (columns, rows, bytes) = (places(width), places(height), picture.as_raw());
    let mut values = Vec::with_capacity(3 * SIDE * SIDE);
    for c in 0..3 {
        let pixel = |x: usize, y: usize| before(bytes[3 * (y * width + x) + c]);
        for row in &rows {
            for column in &columns {
                let across = |y| mix(pixel(column.low, y), pixel(column.high, y), column.share);
                values.push(after(mix(across(row.low), across(row.high), row.share)));
            }
        }
    }
    values
}

fn mix(low: f32, high: f32, share: f32) -> f32 {
    low + (high - low) * share
}
