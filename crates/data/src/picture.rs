//! Decodes, encodes and resizes pictures.
//!
//! Every untrusted picture goes through [`decode`](decode()), which checks the claimed size before
//! it allocates memory.

mod area;
mod decode;
mod exif;
mod jpeg;
pub(crate) mod png;
mod scan;

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use area::{Corners, area};
pub use decode::{MAX_PIXELS, decode, decode_any, on_white};

/// The filter of [`resize`]: how it weights the source pixels under a target pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeFilter {
    /// The mean of the covered pixels, weighted by the covered fraction, with aligned corners. This
    /// is the paper's AREA (listings 1 and 2).
    Area,
    /// Like [`ResizeFilter::Area`], but without aligned corners, so that all rows have the same
    /// weight. Used for picture prompts.
    Mean,
    /// A sharper filter, used to store a picture at a smaller size.
    Lanczos,
    /// A smooth filter, used to enlarge small pictures for display.
    CatmullRom,
}

/// A square within a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Square {
    /// The distance from the left edge.
    pub left: u32,
    /// The distance from the top edge.
    pub top: u32,
    /// The length of a side.
    pub side: u32,
}

impl Square {
    /// Returns the largest square in the middle of the picture.
    pub fn centre(image: &RgbImage) -> Self {
        let side = image.width().min(image.height());
        Self { left: (image.width() - side) / 2, top: (image.height() - side) / 2, side }
    }
}

/// Encodes a picture as PNG. The same pixels always give the same bytes.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, PngFilter::Adaptive)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .context("cannot encode the picture as PNG")?;
    Ok(bytes)
}

/// Scales the square `from` of `image` to `side` x `side` pixels.
pub fn resize(image: &RgbImage, from: Square, side: u32, filter: ResizeFilter) -> Result<RgbImage> {
    let Square { left, top, side: length } = from;
    scale(image, [left, top, length, length], [side, side], filter)
}

/// Scales the rectangle `from` of `image`, given as `[left, top, width, height]`, to `to` pixels,
/// given as `[width, height]`.
pub fn scale(image: &RgbImage, from: [u32; 4], to: [u32; 2], filter: ResizeFilter) -> Result<RgbImage> {
    ensure!(to[0] > 0 && to[1] > 0, "cannot resize a picture to 0 pixels");
    let inside = |start: u32, length: u32, all: u32| length > 0 && start.saturating_add(length) <= all;
    ensure!(
        inside(from[0], from[2], image.width()) && inside(from[1], from[3], image.height()),
        "cannot resize {from:?} of a {}x{} picture: wanted a rectangle inside it",
        image.width(),
        image.height()
    );
    let kernel = match filter {
        ResizeFilter::Area => return Ok(area(image, from, to, Corners::Aligned)),
        ResizeFilter::Mean => return Ok(area(image, from, to, Corners::Edges)),
        ResizeFilter::Lanczos => FilterType::Lanczos3,
        ResizeFilter::CatmullRom => FilterType::CatmullRom,
    };
    // The typed call is used because the untyped one would compile code for every pixel format.
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
        .context("the picture's pixels do not fit its size")?;
    let [left, top, width, height] = from.map(f64::from);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(kernel)).crop(left, top, width, height);
    let mut target = TypedImage::<U8x3>::new(to[0], to[1]);
    Resizer::new().resize_typed(&source, &mut target, &options).with_context(|| {
        format!("cannot resize {from:?} of a {}x{} picture to {to:?}", image.width(), image.height())
    })?;
    let bytes = target.pixels().iter().flat_map(|pixel| pixel.0).collect();
    RgbImage::from_raw(to[0], to[1], bytes).context("the resized picture has the wrong size")
}

/// Scales `image` smoothly to `to` pixels. Generated pictures are shown like this, in files and by
/// the server.
pub fn enlarge(image: &RgbImage, to: [u32; 2]) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    match [width, height] == to {
        true => Ok(image.clone()),
        false => scale(image, [0, 0, width, height], to, ResizeFilter::CatmullRom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_round_trip_is_exact_and_deterministic() {
        let image = RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 5]));
        let bytes = encode_png(&image).unwrap();
        assert_eq!(decode(&bytes).unwrap(), image);
        assert_eq!(encode_png(&image).unwrap(), bytes);
    }

    #[test]
    fn damaged_and_huge_pictures_are_errors() {
        assert!(decode(b"not a picture").is_err());
        let mut bytes = encode_png(&RgbImage::new(4, 4)).unwrap();
        bytes.truncate(bytes.len() / 2);
        assert!(decode(&bytes).is_err());
        let error = decode(&png_claiming(60_000, 60_000)).unwrap_err();
        assert!(format!("{error:#}").contains("60000x60000"), "{error:#}");
    }

    /// Returns a PNG whose header claims a size that its data does not have. The header's checksum
    /// is correct.
    fn png_claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encode_png(&RgbImage::new(1, 1)).unwrap();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32fast::hash(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn transparency_becomes_white() {
        let rgba = |alpha| image::RgbaImage::from_pixel(2, 2, image::Rgba([10, 20, 30, alpha]));
        let blended = |alpha| on_white(rgba(alpha).into()).get_pixel(0, 0).0;
        assert_eq!([blended(0), blended(128), blended(255)], [[255; 3], [132, 137, 142], [10, 20, 30]]);
    }
}
